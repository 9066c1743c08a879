"""`experiments.reproduce`, with a preset of seconds named toy."""

import dataclasses

from absl import flags as absl_flags

from experiments import binary, reproduce
from experiments.reproduction import options, presets

smoke = presets.PRESETS['smoke']
presets.PRESETS['toy'] = dataclasses.replace(
  smoke,
  name='toy',
  problems=(
    dataclasses.replace(
      smoke.problems[0], train_subset=300, width=4, fractions=(0.10,)
    ),
  ),
  train_epochs=3,
  curve_epochs=2,
)

if __name__ == '__main__':
  options.define()
  absl_flags.adopt_module_key_flags(options)
  binary.run(reproduce.main)
