"""BatchNorm statistics after the weights were changed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import parallel
from unlearn_jax.base import Examples, Model, ModelState


@functools.lru_cache(maxsize=32)
def _program(model: Model):
  def statistics(rank, state: ModelState, images, order):
    first = order[0, rank]
    _, seen = model.apply(state, images[first], True)
    # A frozen layer normalises with its statistics and returns them as they
    # are; they must stay in place, or all that follows would be off.
    kept = jax.tree.map(
      lambda old, new: jnp.all(old == new), state.batch_stats, seen
    )

    def updated(start, chosen):
      running = jax.tree.map(
        lambda old, keep: jnp.where(keep, old, start), state.batch_stats, kept
      )
      started = ModelState(state.params, running)
      return model.apply(started, images[chosen], True)[1]

    def batch(total, chosen):
      new = updated(0.0, chosen[rank])
      return jax.tree.map(jnp.add, total, new), None

    # Another layer returns m·running + (1 − m)·batch. Started at 0 it shows
    # the batch's statistics times 1 − m; started at 1 it shows m as well.
    momentum = jax.tree.map(
      jnp.subtract, updated(1.0, first), updated(0.0, first)
    )
    zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
    total, _ = jax.lax.scan(batch, zeros, order)

    def average(old, keep, total, m):
      return jnp.where(keep, old, total / (len(order) * (1 - m)))

    return parallel.mean(
      jax.tree.map(average, state.batch_stats, kept, total, momentum)
    )

  return parallel.spmd(statistics)


def reestimate(
  model: Model,
  state: ModelState,
  examples: Examples,
  *,
  batch_size: int = 128,
) -> ModelState:
  """Replaces BatchNorm's running statistics by their averages over examples.

  After a perturbation the running statistics describe activations that no
  longer occur; what a model loses by that alone is not forgetting (scaling a
  whole tensor before a BatchNorm is a symmetry of the network).

  Args:
    model: the classifier; its momentum needs no knowing.
    state: the perturbed model.
    examples: D_RE, the retained examples.
    batch_size: examples a step over all devices, in the order of `examples`;
      the last ones that do not fill a batch are left out.

  Returns:
    The same parameters with statistics averaged over all batches. Layers
    that the model freezes keep theirs. `state` itself without BatchNorm.

  Example:
    >>> def apply(state, x, train):  # normalises, remembers the mean: m = 0.9
    ...   mean = x.mean(0) if train else state.batch_stats['mean']
    ...   remembered = 0.9 * state.batch_stats['mean'] + 0.1 * mean
    ...   return x - mean, {'mean': remembered}
    >>> state = ModelState({}, {'mean': jnp.zeros(1)})
    >>> examples = Examples.of(np.ones((8, 1), np.float32), np.zeros(8))
    >>> got = reestimate(Model(apply), state, examples)
    >>> round(float(got.batch_stats['mean'][0]), 3)
    1.0
  """
  if not jax.tree.leaves(state.batch_stats):
    return state
  count = len(parallel.devices())
  size = max(count, min(batch_size, examples.size) // count * count)
  steps = max(1, examples.size // size)
  order = np.resize(np.asarray(examples.indices), steps * size)
  replicated = parallel.replicate(state)
  batch_stats = _program(model)(
    replicated,
    parallel.replicate(examples.images),
    parallel.replicate(order.reshape(steps, count, -1)),
  )
  return ModelState(state.params, batch_stats)
