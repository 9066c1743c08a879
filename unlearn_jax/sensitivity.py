"""How sensitive a trained model is to each of its parameters."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import parallel
from unlearn_jax.base import Batch, Model, ModelState, Params, require

REDUCTIONS = ('mean_abs', 'mean', 'single', 'mean_square', 'signed')
OBJECTIVES = ('loss', 'output_norm')

# What becomes of the gradient of each example; None where that of the mean is
# enough.
_EACH = {'mean': None, 'signed': None, 'mean_square': jnp.square}

# Examples a batch, where only the gradient of their mean is wanted.
_BATCH = 64
# Bytes that gradients of single examples may take on each device, beside the
# sum.
_MEMORY = 2**28

# `(params, batch, *args) -> scalar`, a mean over the batch's leading axis.
Objective = Callable[..., jax.Array]


@parallel.apart
def gradient_sensitivity(
  objective: Objective,
  params: Params,
  batch: Any,
  *args: Any,
  reduction: str = 'mean_abs',
) -> Params:
  """Elementwise |∂F/∂ω| over examples (Zuo et al., Eq. 5 and 6).

  The paper's Algorithm 1 takes one example, and which parameters it picks
  changes with the example. The default averages |∂F/∂ω| over all of them;
  the gradient of the mean is mostly noise once a model has converged.

  Gradients of single examples are taken one after the other on a CPU, and
  several at a time elsewhere, as many as fit 256 MB.

  Args:
    objective: F, `(params, batch, *args) -> scalar`, a mean over the leading
      axis of the batch. Pass the same function object again and it is not
      compiled again.
    params: ω, where the gradient is taken.
    batch: pytree of arrays `[N, ...]`, N ≥ 1.
    *args: pytrees passed on to `objective`, not differentiated.
    reduction: `mean_abs`, the mean over examples of |g|; `mean`, |mean of g|;
      `single`, |g| of the first example (the paper's); `mean_square`, the mean
      of g², the diagonal of the empirical Fisher; `signed`, the mean of g.

  Returns:
    A tree like `params`, float32; non-negative but with `signed`.

  Raises:
    ValueError: an unknown reduction, or an empty batch.

  Example:
    >>> def objective(params, x):
    ...   return jnp.mean(x * params['w'])
    >>> x = jnp.array([1.0, -3.0])
    >>> gradient_sensitivity(objective, {'w': jnp.array(2.0)}, x)['w'].item()
    2.0
  """
  known = reduction in REDUCTIONS
  require('reduction', reduction, known, ', '.join(REDUCTIONS))
  sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or 0 in sizes:
    raise ValueError(
      f'batch has leading axes {sorted(sizes)}, allowed: one size of 1 or more'
    )
  (size,) = sizes
  if reduction == 'single':
    size, batch = 1, jax.tree.map(lambda x: x[:1], batch)
  each, devices = _EACH.get(reduction, jnp.abs), len(parallel.devices())
  share = -(-size // devices)
  if each is None:
    # Whole batches, where they tile what each device takes.
    chunk = math.gcd(share, _BATCH) if share * devices == size else 1
  else:
    chunk = min(share, _at_a_time(params))
  share = -(-share // chunk) * chunk
  padding = share * devices - size
  padded = jax.tree.map(
    lambda x: jnp.concatenate([x, jnp.repeat(x[:1], padding, 0)]), batch
  )
  found = _program(objective, share, chunk, each)(
    *parallel.replicate((params, padded, jnp.float32(size), args))
  )
  if reduction == 'mean':
    found = jax.tree.map(jnp.abs, found)
  return parallel.placed_like(found, params)


def _at_a_time(params: Params) -> int:
  """How many gradients of single examples are taken at once."""
  # `vmap` makes convolutions grouped, which a CPU has no fast kernel for.
  if jax.default_backend() == 'cpu':
    return 1
  own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
  return max(1, _MEMORY // max(1, own))


@functools.lru_cache(maxsize=32)
def _program(
  objective: Objective,
  share: int,
  chunk: int,
  each: Callable[[jax.Array], jax.Array] | None,
):
  def sensitivity(rank, params, batch, size, args):
    def gradient(examples):
      return jax.grad(objective)(params, examples, *args)

    # The weighted sum of g, or of |g| example by example (Eq. 5).
    def summed(examples, weights):
      if each is None or chunk == 1:
        return jax.tree.map(
          lambda g: weights.sum() * own(g), gradient(examples)
        )
      single = jax.tree.map(lambda x: x[:, None], examples)
      return jax.tree.map(
        lambda g: jnp.tensordot(weights, own(g), 1),
        jax.vmap(gradient)(single),
      )

    def own(g):
      g = g.astype(jnp.float32)
      return each(g) if each else g

    def add(total, start):
      positions = start + jnp.arange(chunk)
      examples = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), batch
      )
      weights = jnp.where(positions < size, 1 / size, 0.0)
      return jax.tree.map(jnp.add, total, summed(examples, weights)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    starts = rank * share + jnp.arange(0, share, chunk)
    total, _ = jax.lax.scan(add, zeros, starts)
    # Devices hold disjoint examples: their sum is D times their mean.
    devices = len(parallel.devices())
    return jax.tree.map(lambda t: t * devices, parallel.mean(total))

  return parallel.spmd(sensitivity)


@functools.lru_cache(maxsize=32)
def model_objective(model: Model, name: str = 'loss') -> Objective:
  """F for a `Model`: `(params, batch, batch_stats) -> scalar`.

  Args:
    model: the classifier; BatchNorm uses its running statistics.
    name: `loss`, the mean loss; `output_norm`, the mean of ½‖f(x)‖², which
      needs no labels (Aljundi et al., 2018, the paper's [47]).

  Returns:
    A function for `gradient_sensitivity`, the same object for the same
    arguments.

  Raises:
    ValueError: an unknown name.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> objective = model_objective(model, 'output_norm')
    >>> batch = Batch(jnp.ones((1, 2)), jnp.zeros(1, int))
    >>> float(objective({'w': jnp.eye(2)}, batch, {}))
    1.0
  """
  require('name', name, name in OBJECTIVES, ', '.join(OBJECTIVES))

  def objective(params: Params, batch: Batch, batch_stats: Any) -> jax.Array:
    state = ModelState(params, batch_stats)
    logits = model.apply(state, batch.images, False)[0].astype(jnp.float32)
    if name == 'loss':
      return model.loss(logits, batch.labels).mean()
    return 0.5 * jnp.square(logits).sum(-1).mean()

  return objective
