"""How sensitive a trained model is to each of its parameters."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import parallel
from unlearn_jax.base import Batch, Model, ModelState, Params

REDUCTIONS = ('mean_abs', 'mean', 'single')
OBJECTIVES = ('loss', 'output_norm')

# `(params, batch, *args) -> scalar`, a mean over the batch's leading axis.
Objective = Callable[..., jax.Array]


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

  Args:
    objective: F, `(params, batch, *args) -> scalar`; called on one example at
      a time, as a batch with a leading axis of 1. Pass the same function
      object again and it is not compiled again.
    params: ω, where the gradient is taken.
    batch: pytree of arrays `[N, ...]`, N ≥ 1.
    *args: pytrees passed on to `objective`, not differentiated.
    reduction: `mean_abs`, the mean over examples of |g|; `mean`, |mean of g|;
      `single`, |g| of the first example (the paper's).

  Returns:
    A tree like `params`, float32, non-negative.

  Raises:
    ValueError: an unknown reduction or an empty batch.

  Example:
    >>> def objective(params, x):
    ...   return jnp.mean(x * params['w'])
    >>> x = jnp.array([1.0, -3.0])
    >>> gradient_sensitivity(objective, {'w': jnp.array(2.0)}, x)['w'].item()
    2.0
  """
  if reduction not in REDUCTIONS:
    raise ValueError(
      f'reduction={reduction!r}, allowed: {", ".join(REDUCTIONS)}'
    )
  sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or 0 in sizes:
    raise ValueError(
      f'batch has leading axes {sorted(sizes)}, allowed: one size of 1 or more'
    )
  (size,) = sizes
  if reduction == 'single':
    size, batch = 1, jax.tree.map(lambda x: x[:1], batch)
  share = -(-size // len(parallel.devices()))
  padding = share * len(parallel.devices()) - size
  padded = jax.tree.map(
    lambda x: jnp.concatenate([x, jnp.repeat(x[:1], padding, 0)]), batch
  )
  return _program(objective, share, reduction == 'mean')(
    *parallel.replicate((params, padded, jnp.float32(size), args))
  )


@functools.lru_cache(maxsize=32)
def _program(objective: Objective, share: int, signed: bool):
  def sensitivity(rank, params, batch, size, args):
    def add(total, position):
      example = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, position, 1), batch
      )
      # ∂F/∂ω of one example (Eq. 5).
      grads = jax.grad(objective)(params, example, *args)
      weight = jnp.where(position < size, 1 / size, 0.0)
      return jax.tree.map(
        lambda t, g: (
          t + weight * (g if signed else jnp.abs(g)).astype(jnp.float32)
        ),
        total,
        grads,
      ), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    own = rank * share + jnp.arange(share)
    total, _ = jax.lax.scan(add, zeros, own)
    # Devices hold disjoint examples: their sum is D times their mean.
    devices = len(parallel.devices())
    return jax.tree.map(lambda t: jnp.abs(t) * devices, parallel.mean(total))

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
  if name not in OBJECTIVES:
    raise ValueError(f'name={name!r}, allowed: {", ".join(OBJECTIVES)}')

  def objective(params: Params, batch: Batch, batch_stats: Any) -> jax.Array:
    logits, _ = model.apply(
      ModelState(params, batch_stats), batch.images, False
    )
    if name == 'loss':
      return model.loss(logits, batch.labels).mean()
    return 0.5 * jnp.square(logits).sum(-1).mean()

  return objective
