"""Masks of whole tensors, and what a mask counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Mask, Params, require, tensor_paths
from unlearn_jax.masks import keys


def last_k_mask(params: Params, k: int, order: tuple[str, ...]) -> Mask:
  """Chooses the last k tensors in definition order, whole.

  What EU-K and CF-K train (Zuo et al., §IV-A). Weights, biases, and the scale
  and bias of a BatchNorm count one each, as in the paper's Table I.

  Args:
    params: pytree of arrays.
    k: how many tensors to choose, an int in `[1, number of tensors]`.
    order: the paths of all tensors in definition order, as
      `base.tensor_paths` writes them. It cannot be read off `params`, since
      JAX sorts dictionary keys.

  Returns:
    Boolean tree like `params`, true in the last k tensors of `order`.

  Raises:
    ValueError: `k` is out of range, or `order` does not name every tensor of
      `params` exactly once.

  Example:
    >>> params = {'bias': jnp.zeros(2), 'kernel': jnp.zeros((1, 2))}
    >>> mask = last_k_mask(params, 1, order=('kernel', 'bias'))
    >>> jax.tree.map(lambda m: m.tolist(), mask)
    {'bias': [True, True], 'kernel': [[False, False]]}
  """
  paths = tensor_paths(params)
  whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
  holds = whole and 1 <= k <= len(paths)
  require('k', k, holds, f'1 to {len(paths)} tensors')
  for path in (*paths, *order):
    known = paths.count(path) == order.count(path) == 1
    require('order', path, known, 'each tensor of params once')
  chosen = frozenset(order[-k:])
  leaves, treedef = jax.tree.flatten(params)
  return jax.tree.unflatten(
    treedef,
    [jnp.full(jnp.shape(x), path in chosen) for path, x in zip(paths, leaves)],
  )


def count_scalars(mask: Mask) -> int:
  """How many scalars are chosen.

  Args:
    mask: boolean tree.

  Returns:
    The number of true scalars.

  Example:
    >>> count_scalars({'a': jnp.array([True, False]), 'b': jnp.array(True)})
    2
  """
  leaves = jax.tree.leaves(mask)
  chex.assert_type(leaves, bool)
  return sum(int(jnp.sum(x, dtype=jnp.uint32)) for x in leaves)


@jax.jit
def loudest(leaves: list[jax.Array], k: jax.Array) -> jax.Array:
  """Whether each leaf is among the k of largest L2 norm; ties to the earlier.

  Args:
    leaves: L float arrays.
    k: uint32, from 1 to L.

  Returns:
    bool `[L]`.
  """
  wide = keys.widest([x.dtype for x in leaves])
  wide = jnp.promote_types(wide, jnp.float32)
  norms = jnp.stack([_norm(x.astype(wide)) for x in leaves])
  order = jnp.argsort(~keys.keys_of(norms, wide), stable=True)
  return jnp.argsort(order) < k


def _norm(x: jax.Array) -> jax.Array:
  """L2 norm, scaled by the peak so that no square over- or underflows."""
  peak = jnp.max(jnp.abs(x), initial=0)
  scale = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
  norm = scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))
  return jnp.where(jnp.isfinite(peak), norm, peak)
