"""What a model says about examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from unlearn_jax import parallel
from unlearn_jax.base import AXIS, Examples, Model, ModelState, require
from unlearn_jax.data import streaming


@functools.lru_cache(maxsize=32)
def _program(model: Model):
  """Logits of every step's images, or of those at its rows of `images`."""

  def predict(_, state: ModelState, images, steps):
    def batch(_, own):
      inputs = own if images is None else images[own]
      logits, _ = model.apply(state, inputs, False)
      return None, logits.astype(jnp.float32)

    _, outputs = jax.lax.scan(batch, None, steps)
    # [steps, P, C] on each device to [steps, D, P, C], the padded order.
    every = jax.lax.all_gather(outputs, AXIS, axis=1)
    return every.reshape(-1, every.shape[-1])

  return parallel.spmd(predict, split=[2])


@parallel.apart
def predict(
  model: Model,
  state: ModelState,
  examples: Examples,
  *,
  batch_size: int = 512,
  logits: bool = False,
) -> np.ndarray:
  """Class probabilities, or logits, of every example, in evaluation mode.

  Exact on every example whatever the batch size: what pads the last batch is
  cut off again.

  Args:
    model: the classifier.
    state: its parameters and BatchNorm statistics.
    examples: a set of M examples; images on the host beyond
      `data.streaming.limit` come in blocks.
    batch_size: examples a step over all devices; rounded up to a multiple of
      the devices.
    logits: whether to return these; softmax rounds what a model is sure of.

  Returns:
    float32 `[M, C]` on the host, rows in the order of `examples.indices`.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> x, w = np.eye(2, dtype=np.float32), {'w': jnp.eye(2) * 1000}
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> predict(model, ModelState(w), Examples.of(x, np.arange(2))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  count, size = len(parallel.devices()), max(examples.size, 1)
  share = -(-min(batch_size, size) // count)
  padding = -size % (share * count) + size - examples.size
  order = np.pad(np.asarray(examples.indices), (0, padding))
  order = order.reshape(-1, count, share)[:, parallel.ranks()].swapaxes(0, 1)
  images, blocks = streaming.once(examples, order, parallel.shard, even=True)
  start = functools.partial(
    _program(model), *parallel.replicate((state, images))
  )
  parts = streaming.each(blocks, lambda block: start(block.images[0]))
  found = np.concatenate(parts)[: examples.size]
  return found if logits else probabilities(found)


def probabilities(logits: np.ndarray) -> np.ndarray:
  """Softmax: `[M, C]` to `[M, C]` of the same dtype; NaN of what overflows."""
  with np.errstate(invalid='ignore'):
    return scipy.special.softmax(logits, axis=-1)


def require_classes(model: Model, state: ModelState, *parts: Examples) -> None:
  """Refuses outputs that are no logits of classes, and labels beyond them.

  Args:
    model: the classifier.
    state: its parameters and BatchNorm statistics.
    *parts: examples that it is to be trained on or judged by.

  Raises:
    ValueError: logits that are not `[B, C]` with C ≥ 2, a label ≥ C, or a part
      without examples.
  """
  images = parts[0].images
  row = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
  logits = jax.eval_shape(lambda s, x: model.apply(s, x, False)[0], state, row)
  shape: tuple[int, ...] = getattr(logits, 'shape', ())
  if len(shape) != 2 or shape[1] < 2:
    what = f'logits a {type(logits).__name__}'
    if isinstance(logits, jax.ShapeDtypeStruct):
      what = f'logits {logits.dtype}{list(shape)}'
    raise ValueError(f'model: {what}, allowed: [B, C] of 2 classes or more')
  most = logits.shape[1] - 1
  for part in parts:
    require('examples', part.size, part.size > 0, '1 or more')
    label = int(part.own_labels.max())
    require('labels', label, label <= most, f'0 to {most}, the classes')
