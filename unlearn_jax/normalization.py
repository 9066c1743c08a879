"""BatchNorm statistics after the weights were changed by hand."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import parallel
from unlearn_jax.base import Examples, Key, Model, ModelState, is_float
from unlearn_jax.data import streaming


@functools.lru_cache(maxsize=32)
def _program(
  model: Model, augment: Callable[[Key, jax.Array], jax.Array] | None
):
  """The sum of the statistics over batches, and the average so far.

  `steps` are the images of each step or, where there are `images`, rows of
  these; `before` is the sum so far and over how many steps.
  """

  def statistics(rank, state: ModelState, images, before, steps):
    count, start = before

    def draw(own, number):
      found = own if images is None else images[own]
      if augment is None:
        return found
      key = jax.random.fold_in(jax.random.key(0), number)
      return augment(jax.random.fold_in(key, rank), found)

    numbers = count.astype(int) + jnp.arange(len(steps))
    first = draw(steps[0], numbers[0])
    _, seen = model.apply(state, first, True)
    # A frozen layer normalises with its statistics and returns them as they
    # are; they must stay in place, or all that follows would be off.
    # So must what is no float: a counter, a key.
    held = state.batch_stats
    kept = jax.tree.map(
      lambda old, new: not is_float(old) or jnp.all(old == new), held, seen
    )

    def updated(start, inputs):
      running = jax.tree.map(
        lambda old, keep: old if keep is True else jnp.where(keep, old, start),
        held,
        kept,
      )
      started = ModelState(state.params, running)
      found = model.apply(started, inputs, True)[1]
      return jax.tree.map(
        lambda new, keep: 0.0 if keep is True else new, found, kept
      )

    def batch(total, step):
      new = updated(0.0, draw(*step))
      return jax.tree.map(jnp.add, total, new), None

    # Another layer returns m·running + (1 − m)·batch. Started at 0 it shows
    # the batch's statistics times 1 − m; started at 1 it shows m as well.
    momentum = jax.tree.map(
      jnp.subtract, updated(1.0, first), updated(0.0, first)
    )
    total, _ = jax.lax.scan(batch, start, (steps, numbers))
    count = count + len(steps)

    # What another batch does not draw nearer is no average: it counts.
    def average(old, keep, total, m):
      if keep is True:
        return old
      return jnp.where(keep | (m >= 1), old, total / (count * (1 - m)))

    averages = jax.tree.map(average, held, kept, total, momentum)
    return parallel.mean(((count, total), averages))

  return parallel.spmd(statistics, split=[3])


@parallel.apart
def reestimate(
  model: Model,
  state: ModelState,
  examples: Examples,
  *,
  batch_size: int = 128,
  augment: Callable[[Key, jax.Array], jax.Array] | None = None,
) -> ModelState:
  """Replaces BatchNorm's running statistics by their averages over examples.

  After a perturbation the running statistics describe activations that no
  longer occur; what a model loses by that alone is not forgetting (scaling a
  whole tensor before a BatchNorm is a symmetry of the network).

  Args:
    model: the classifier; its momentum needs no knowing.
    state: the perturbed model.
    examples: D_RE, the retained examples; images on the host beyond
      `data.streaming.limit` come in blocks.
    batch_size: examples a step over all devices, by the same lot each time, for
      data may be sorted by class; those that fill no batch are left out.
    augment: of images, as the model was trained with: by the statistics of
      plain ones a network that learned flips and crops loses accuracy.

  Returns:
    The same parameters with statistics averaged over all batches. Layers
    that the model freezes keep theirs. `state` itself without BatchNorm.

  Example:
    >>> def apply(state, x, train):  # normalises, remembers the mean: m = 0.9
    ...   mean = x.mean(0) if train else state.batch_stats['mean']
    ...   remembered = 0.9 * state.batch_stats['mean'] + 0.1 * mean
    ...   return x - mean, {'mean': remembered}
    >>> state = ModelState({}, {'mean': jnp.zeros(1)})
    >>> examples = Examples.of(np.ones((8, 1), np.float32), np.zeros(8, int))
    >>> got = reestimate(Model(apply), state, examples)
    >>> round(float(got.batch_stats['mean'][0]), 3)
    1.0
  """
  if not jax.tree.leaves(state.batch_stats):
    return state
  count = len(parallel.devices())
  size = max(count, min(batch_size, examples.size) // count * count)
  steps = max(1, examples.size // size)
  rows = np.random.default_rng(0).permutation(np.asarray(examples.indices))
  order = np.resize(rows, steps * size)
  order = order.reshape(steps, count, -1)[:, parallel.ranks()].swapaxes(0, 1)
  images, blocks = streaming.once(examples, order, parallel.shard)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros_like(leaf) if is_float(leaf) else jnp.zeros(()),
    state.batch_stats,
  )
  own, images, total = parallel.replicate(
    (state, images, (np.float32(0), zeros))
  )
  batch_stats, program = None, _program(model, augment)

  def add(block: streaming.Block) -> jax.Array:
    nonlocal total, batch_stats
    total, batch_stats = program(own, images, total, block.images[0])
    return total[0]

  streaming.each(blocks, add)
  return ModelState(state.params, batch_stats)
