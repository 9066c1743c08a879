"""What per-example sensitivity costs beside one mean gradient.

  python -m benchmarks.sensitivity
  python -m benchmarks.sensitivity --model=resnet18 --out=mine.json

On one device, in one run, interleaved: `gradient_sensitivity` with
`reduction='mean_abs'` (the default: |g| of each example, averaged) over the
same call with `reduction='mean'` (one gradient of whole batches), and the
memory that XLA plans for the first. Goals for ResNet18 at width 64 on a CPU:
at most 2 times, at most 100 MB above the model.

Cost: about two minutes on two CPU cores.
"""

import functools
import os
from typing import Any

from absl import flags as absl_flags
import jax
import numpy as np

from benchmarks import jax_worker, output, train
from benchmarks.environment import environment
from experiments import binary, flags
from unlearn_jax import models, parallel, training
from unlearn_jax.base import Batch
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.timing import Stopwatch


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_string('model', 'resnet18', 'The network.')
  absl_flags.DEFINE_integer('width', None, "Default the family's own.")
  absl_flags.DEFINE_integer('examples', 64, 'How many are averaged.')
  absl_flags.DEFINE_integer('repeats', 5, 'Interleaved rounds.')
  output.define()


def measure(
  name: str, width: int | None, examples: int, repeats: int
) -> dict[str, Any]:
  """The raw rounds, their ratios, and the memory above model and data."""
  model = models.build(name, 10, (32, 32, 3), width=width)
  rng = np.random.default_rng(0)
  batch = Batch(
    rng.integers(0, 256, (examples, 32, 32, 3)).astype(np.uint8),
    rng.integers(0, 10, examples).astype(np.int32),
  )
  objective = model_objective(model)
  device = jax.devices()[0]
  with parallel.use([device]):
    state = parallel.replicate(training.initialize(jax.random.key(0), model))

    def seconds(reduction: str) -> float:
      with Stopwatch() as watch:
        watch.wait(
          gradient_sensitivity(
            objective,
            state.params,
            batch,
            state.batch_stats,
            reduction=reduction,
          )
        )
      return watch.seconds

    for reduction in ('mean_abs', 'mean'):  # Compiles.
      seconds(reduction)
    program = jax.jit(functools.partial(gradient_sensitivity, objective))
    compiled = program.lower(state.params, batch, state.batch_stats).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    rounds = [
      {reduction: seconds(reduction) for reduction in ('mean_abs', 'mean')}
      for _ in range(repeats)
    ]
  return {
    'rounds': rounds,
    'time_per_example_over_mean': train.spread(
      [turn['mean_abs'] / turn['mean'] for turn in rounds]
    ),
    'temporary_bytes': memory.temp_size_in_bytes,
    'result_bytes': memory.output_size_in_bytes,
  }


def main() -> None:
  """Measures, prints two lines, and writes JSON where it was asked for."""
  values = absl_flags.FLAGS
  load = list(os.getloadavg())
  if values.model not in models.FAMILIES:
    allowed = flags.closest(values.model, sorted(models.FAMILIES))
    raise flags.FlagError('model', values.model, allowed)
  for name in ('width', 'examples', 'repeats'):
    value = getattr(values, name)
    if value is not None and value < 1:
      raise flags.FlagError(name, value, '1 or more')
  path = output.path(values)
  found = measure(values.model, values.width, values.examples, values.repeats)
  ratio = found['time_per_example_over_mean']
  print(
    f'|g| of each of {values.examples} examples: {ratio["median"]:.2f} times a'
    f' mean gradient ({ratio["min"]:.2f}-{ratio["max"]:.2f})'
  )
  print(
    f'{found["temporary_bytes"] / 1e6:.0f} MB while it runs, above model, data'
    f' and the result of {found["result_bytes"] / 1e6:.0f} MB'
  )
  if path:
    names = ('model', 'width', 'examples', 'repeats')
    record = {
      'settings': {name: getattr(values, name) for name in names},
      'environment': environment(jax_worker.probe(), load),
      **found,
    }
    output.write(path, record)


if __name__ == '__main__':
  define()
  binary.run(main)
