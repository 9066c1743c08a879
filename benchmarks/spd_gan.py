"""What an SPD-GAN step costs beside its two classifiers alone.

  python -m benchmarks.spd_gan
  python -m benchmarks.spd_gan --model=resnet9 --out=mine.json

On one device, in one run, taking turns: an epoch of `fit_generator`, as its
own clock has it, over a scan of as many steps that do no more than the two
frozen classifiers' forward pass and the gradient of the loss with respect to
the images. What is above 1 is the generator: forward, backward, Adam. The goal
is at most 1.5 for ResNet18 at width 64.

Cost: about three minutes on two CPU cores.
"""

import functools
import os
from typing import Any

from absl import flags as absl_flags
import jax
import jax.numpy as jnp

from benchmarks import jax_worker, output, train
from benchmarks.environment import environment
from experiments import binary, flags
from unlearn_jax import models, parallel, training
from unlearn_jax.base import Examples, Model, ModelState
from unlearn_jax.spd_gan import GeneratorSettings, fit_generator
from unlearn_jax.timing import Stopwatch

GOAL = 1.5
_POSITIVE = ('width', 'images', 'batch_size', 'generator_width', 'repeats')


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_string('model', 'resnet18', 'The classifiers.')
  absl_flags.DEFINE_integer('width', None, "Default the family's own.")
  absl_flags.DEFINE_integer('images', 128, 'Images an epoch.')
  absl_flags.DEFINE_integer('batch_size', 32, 'Images a step.')
  absl_flags.DEFINE_integer(
    'generator_width', 32, "Channels of G's first layer."
  )
  absl_flags.DEFINE_integer('repeats', 5, 'Interleaved rounds.')
  output.define()


def classifiers_alone(model: Model, eta: float, steps: int, batch_size: int):
  """A scan of forward passes and input gradients, nothing else.

  Args:
    model: of both classifiers.
    eta: η of Eq. 13.
    steps: how many, on consecutive images.
    batch_size: images a step.

  Returns:
    `(source, unlearned, examples) -> [steps]`, sums over |gradient|, which
    are there so that none of it is optimised away.
  """

  def scan(rank, source: ModelState, unlearned: ModelState, examples: Examples):
    del rank

    def step(carry, rows):
      images, labels = examples.images[rows], examples.labels[rows]

      def loss(pixels):
        own, its = (
          model.loss(model.apply(state, pixels, False)[0], labels).mean()
          for state in (source, unlearned)
        )
        return own - eta * its

      gradient = jax.grad(loss)(images.astype(jnp.float32))
      return carry, jnp.abs(gradient).sum()

    order = jnp.arange(steps * batch_size).reshape(steps, batch_size)
    return parallel.mean(jax.lax.scan(step, None, order)[1])

  return parallel.spmd(scan)


def measure(
  name: str,
  width: int | None,
  images: int,
  settings: GeneratorSettings,
) -> dict[str, Any]:
  """The raw rounds, one an epoch but for the first, and their ratios.

  Args:
    name: a key of `models.FAMILIES`.
    width: of the classifiers; None for the family's own.
    images: images an epoch, a multiple of the batch.
    settings: of the generator; its epochs are the rounds and one more.

  Returns:
    `rounds` in seconds, and `time_step_over_classifiers`.
  """
  model = models.build(name, 10, (32, 32, 3), width=width)
  examples = jax_worker.synthetic(images)
  steps, rounds = images // settings.batch_size, []
  device = jax.devices()[0]
  with parallel.use([device]):
    states = parallel.replicate(
      [training.initialize(jax.random.key(i), model) for i in range(2)]
    )
    bare = functools.partial(
      classifiers_alone(model, settings.eta, steps, settings.batch_size),
      *states,
      parallel.replicate(examples),
    )
    jax.block_until_ready(bare())  # Compiles.
    before = 0.0

    def take_turns(epoch: training.Epoch) -> None:
      nonlocal before
      with Stopwatch() as watch:
        watch.wait(bare())
      if epoch.epoch > 1:  # The first one warms up.
        own = (epoch.seconds - before) / steps
        rounds.append({'step': own, 'classifiers': watch.seconds / steps})
      before = epoch.seconds

    fit_generator(
      jax.random.key(2),
      model,
      states[0],
      states[1],
      examples,
      settings,
      num_classes=10,
      on_epoch=take_turns,
    )
  return {
    'rounds': rounds,
    'time_step_over_classifiers': train.spread(
      [turn['step'] / turn['classifiers'] for turn in rounds]
    ),
  }


def main() -> None:
  """Measures, prints one line, and writes JSON where it was asked for."""
  values = absl_flags.FLAGS
  load = list(os.getloadavg())
  if values.model not in models.FAMILIES:
    allowed = flags.closest(values.model, sorted(models.FAMILIES))
    raise flags.FlagError('model', values.model, allowed)
  for name in _POSITIVE:
    value = getattr(values, name)
    if value is not None and value < 1:
      raise flags.FlagError(name, value, '1 or more')
  if values.images % values.batch_size:
    allowed = f'a multiple of the batch, {values.batch_size}'
    raise flags.FlagError('images', values.images, allowed)
  path = output.path(values)
  settings = GeneratorSettings(
    epochs=values.repeats + 1,
    batch_size=values.batch_size,
    width=values.generator_width,
  )
  found = measure(values.model, values.width, values.images, settings)
  ratio = found['time_step_over_classifiers']
  print(
    f'A step is {ratio["median"]:.2f} times the two classifiers alone'
    f' ({ratio["min"]:.2f}-{ratio["max"]:.2f}); the goal is {GOAL}'
  )
  if path:
    record = {
      'settings': {
        name: getattr(values, name) for name in ('model', *_POSITIVE)
      },
      'environment': environment(jax_worker.probe(), load),
      **found,
    }
    output.write(path, record)


if __name__ == '__main__':
  define()
  binary.run(main)
