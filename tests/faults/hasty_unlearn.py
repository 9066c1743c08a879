"""`experiments.unlearn`, in whose eyes hundredths of a second are long."""

from experiments import binary, flags, generator_flags, unlearn
from unlearn_jax import training

# Not where pytest imports it, looking for doctests.
if __name__ == '__main__':
  training._CALL_SECONDS = 0.015
  flags.define_data_and_model()
  flags.define_unlearning()
  flags.define_processes()
  generator_flags.define_beside_unlearning()
  binary.run(unlearn.main)
