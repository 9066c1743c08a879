"""`experiments.train`, whose processes miss one another after seconds."""

from absl import flags as absl_flags

from experiments import binary, flags, train, watch

if __name__ == '__main__':
  watch._BEAT, watch._SILENCE = 0.5, 6.0
  flags.define_data_and_model()
  flags.define_processes()
  train.define()
  absl_flags.adopt_module_key_flags(train)
  binary.run(train.main)
