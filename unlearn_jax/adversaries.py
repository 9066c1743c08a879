"""Images near the given ones that a model takes for something else."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import parallel
from unlearn_jax.base import (
  Array,
  Examples,
  InputError,
  Model,
  ModelState,
  require,
)

# Images that are attacked at once; as few numbers as are compiled.
_BATCHES = 256, 64, 16
# How often a radius is doubled at most; after how many steps who is done goes.
_DOUBLINGS, _STEPS = 16, 10


@parallel.apart
def fgsm(
  model: Model, state: ModelState, examples: Examples, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
  """The fast gradient sign, x + ε · sign(∂CE/∂x) (Goodfellow et al., 2015).

  Args:
    model: the classifier, in evaluation mode.
    state: its parameters and statistics.
    examples: M images with labels.
    epsilon: ε, a share of the range of pixels: 255 of bytes, of floats what
      lies between the least and the largest.

  Returns:
    float32 `[M, ...]`, in the units of the images and in their range; and the
    classes that the model takes them for, `[M]`.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> x = Examples.of(np.eye(2, dtype=np.float32), np.array([0, 1]))
    >>> moved, classes = fgsm(model, ModelState({'w': jnp.eye(2)}), x, 0.75)
    >>> moved.tolist(), classes.tolist()
    ([[0.25, 0.75], [0.75, 0.25]], [1, 0])
  """
  images, labels = _given(examples)
  low, high = _range(images)
  program = _programs(model, _scale(model, state, images))

  def moved(x: Array, y: Array) -> tuple[np.ndarray, jax.Array]:
    signs = np.sign(program.gradient(x, state, y))
    there = x + np.float32(epsilon * (high - low)) * signs
    there = np.clip(there, low, high)
    return there, program.classes(there, state)

  found, classes = _in_batches(moved, images.astype(np.float32), labels)
  return found, classes


@parallel.apart
def nearest(
  model: Model,
  state: ModelState,
  examples: Examples,
  *,
  epsilon: float = 0.04,
  steps: int = 50,
) -> tuple[Examples, np.ndarray]:
  """The nearest images that are taken for another class, by PGD in L2.

  x ← x + ε/10 · g/‖g‖ with g = ∂CE/∂x, projected on the ball of radius ε
  around the image and on the range of pixels, until the class is another; ε
  doubles where it is not after so many steps (Ebrahimpour-Boroojeny et al.,
  2025). Who is done is looked at no more: every ten steps, and before a
  doubling, the others move up.

  Args:
    model: the classifier, in evaluation mode.
    state: its parameters and statistics.
    examples: M images with labels.
    epsilon: the first radius, in units in which pixels range over 1.
    steps: at most, with each radius.

  Returns:
    The images, as floats that are to the model what `examples` are, with the
    class that it takes them for as label. Those that it takes for another
    class as they are come as they are; those that no radius sufficed for are
    left out. And of each its radius `[M']`, 0 for the former.

  Raises:
    InputError: no image could be moved to another class.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> x = Examples.of(np.eye(2, dtype=np.float32), np.array([0, 1]))
    >>> found, _ = nearest(model, ModelState({'w': jnp.eye(2)}), x)
    >>> found.labels.tolist()
    [1, 0]
  """
  images, labels = _given(examples)
  low, high = _range(images)
  scale = _scale(model, state, images)
  program = _programs(model, scale)
  start = images.astype(np.float32)
  moved, classes = start.copy(), labels.copy()
  radii = np.zeros(len(labels))
  left, radius = np.arange(len(labels)), 0.0
  for _ in range(_DOUBLINGS + 1):
    moved[left] = start[left]
    reach, active = np.float32(radius * (high - low)), left
    for taken in range(0, steps if radius else 1, _STEPS):
      most = min(_STEPS, steps - taken) if radius else 0

      def search(*x: Array, own: Any = (reach, most)) -> Any:
        return program.attack(state, *x, *own, low=low, high=high)

      sets = start[active], moved[active], labels[active]
      moved[active], classes[active] = _in_batches(search, *sets)
      radii[active] = radius
      active = active[classes[active] == labels[active]]
      if not active.size:
        break
    left, radius = active, 2 * radius or epsilon
    if not left.size:
      break
  kept = np.setdiff1d(np.arange(len(labels)), left)
  if not kept.size:
    raise InputError('examples: no class moves, allowed: images where one can')
  found = moved[kept] * np.float32(scale), classes[kept].astype(np.int32)
  return Examples.of(*found), radii[kept]


class _Programs(NamedTuple):
  classes: Callable[..., jax.Array]
  gradient: Callable[..., jax.Array]
  attack: Callable[..., jax.Array]


@functools.lru_cache(maxsize=32)
def _programs(model: Model, scale: float) -> _Programs:
  """What is compiled once for a model, and sees images times `scale`."""

  def classes(x, state):
    return _logits(model, state, x, scale).argmax(-1)

  @jax.grad
  def gradient(x, state, labels):
    logits = _logits(model, state, x, scale)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

  def attack(state, start, x, labels, radius, steps, *, low, high):
    def unfinished(carry):
      step, _, found = carry
      return (step < steps) & (found == labels).any()

    def moved(carry):
      step, x, found = carry
      g = gradient(x, state, labels)
      there = x + radius / 10 * g / jnp.maximum(_norm(g), 1e-30)
      delta = there - start
      delta *= jnp.minimum(1.0, radius / jnp.maximum(_norm(delta), 1e-30))
      there = jnp.clip(start + delta, low, high)
      still = (found != labels).reshape(-1, *[1] * (x.ndim - 1))
      x = jnp.where(still, x, there)
      return step + 1, x, classes(x, state)

    carry = 0, x, classes(x, state)
    return jax.lax.while_loop(unfinished, moved, carry)[1:]

  return _Programs(jax.jit(classes), jax.jit(gradient), jax.jit(attack))


def _logits(model: Model, state: ModelState, x: Any, scale: float) -> jax.Array:
  return model.apply(state, jnp.asarray(x, jnp.float32) * scale, False)[0]


def _norm(x: jax.Array) -> jax.Array:
  axes = tuple(range(1, x.ndim))
  return jnp.sqrt(jnp.square(x).sum(axes, keepdims=True))


def _given(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
  rows = np.asarray(examples.indices)
  kind = examples.images.dtype
  moves = kind == np.uint8 or jnp.issubdtype(kind, jnp.floating)
  allowed = 'uint8 or floats, which can be moved a little'
  require('images', kind.name, moves, allowed)
  return np.asarray(examples.images[rows]), examples.own_labels


def _range(images: np.ndarray) -> tuple[float, float]:
  if images.dtype == np.uint8:
    return 0.0, 255.0
  return float(images.min()), float(images.max())


def _scale(model: Model, state: ModelState, images: np.ndarray) -> float:
  """What images are multiplied by as floats, to be the same to the model."""
  few = images[:8]
  want = model.apply(state, few, False)[0]
  for scale in (1.0, 1 / 255):
    if np.allclose(want, _logits(model, state, few, scale), 1e-3, 1e-3):
      return scale
  raise InputError(
    f'model: other logits of {images.dtype} images than of the same as floats,'
    ' allowed: the same, or those of pixels divided by 255'
  )


def _in_batches(
  function: Callable[..., Any], *arrays: np.ndarray
) -> list[np.ndarray]:
  """What a function gives of rows, in batches of few sizes; the last is padded.

  Of sizes that add at most a quarter the largest is taken, or the smallest.
  """
  count, found = len(arrays[0]), []
  fitting = [n for n in _BATCHES if -count % n <= count / 4]
  size = fitting[0] if fitting else _BATCHES[-1]
  rows = np.pad(np.arange(count), (0, -count % size), mode='edge')
  for chosen in rows.reshape(-1, size):
    own = function(*(array[chosen] for array in arrays))
    found.append(jax.device_get(own))
  return [np.concatenate(column)[:count] for column in zip(*found)]
