"""How source and Retrain are trained: presets of optimiser and schedule."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import optax

from unlearn_jax import training

_MOMENTUM = 0.9
_WARM_UP = 0.1  # the share of all steps


class Recipe(NamedTuple):
  """A preset; every number of it can be replaced by the caller's.

  Attributes:
    optimizer: `(peak learning rate, steps in all) -> optimiser`, with the same
      `update` for the same steps, so that compiled epochs are shared.
    epochs: passes over the examples.
    learning_rate: the highest.
    batch_size: over all devices.
    augment: whether images are flipped and cropped at random.
  """

  optimizer: Callable[[float, int], optax.GradientTransformation]
  epochs: int
  learning_rate: float
  batch_size: int
  augment: bool


def adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
  """Adam at a constant rate, whatever the number of steps."""
  del steps
  return training.adam(learning_rate)


def momentum(learning_rate: float, steps: int) -> optax.GradientTransformation:
  """SGD with Nesterov momentum 0.9, warmed up, then annealed by a cosine.

  Weights decay by 5e-4; biases and BatchNorm's scales do not.

  Args:
    learning_rate: the highest, reached after a tenth of the steps.
    steps: of the whole training; the rate is 0 at the last.

  Returns:
    The optimiser.

  Example:
    >>> import jax
    >>> state = momentum(0.1, 10).init({'kernel': jax.numpy.ones((2, 2))})
    >>> len(jax.tree.leaves(state))  # the momentum, the step, the rate
    3
  """
  return training.descent(_momentum(steps), learning_rate)


@functools.lru_cache(maxsize=64)
def _momentum(steps: int) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, 1.0, max(1, round(_WARM_UP * steps)), max(2, steps)
  )
  return optax.chain(
    training.decay,
    optax.trace(_MOMENTUM, nesterov=True),
    optax.scale_by_schedule(schedule),
  )


RECIPES = {
  # The paper's regime: M remembers its training data.
  'paper': Recipe(adam, 20, 1e-3, 128, augment=False),
  # The same, until wrong labels of the bundled digits are remembered as well.
  'digits': Recipe(adam, 30, 3e-3, 128, augment=False),
  # What the field trains CIFAR-10 with.
  'standard': Recipe(momentum, 60, 0.1, 128, augment=True),
}
