"""What a tree has, what k may be, and masks of whole tensors."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Mask, Params, require, require_floats, tensor_paths
from unlearn_jax.masks import keys

# One past the largest number of scalars: they are counted in uint32.
LIMIT = 2**32 - 1


def size_of(tree: Any) -> int:
  """N, the number of scalars in the tree; `ValueError` if out of range."""
  require_floats('params', tree)
  size = sum(sizes_of(tree))
  if not 1 <= size < LIMIT:
    raise ValueError(
      f'params has {size} scalars; allowed are 1 to {LIMIT - 1}.'
    )
  return size


def sizes_of(tree: Any) -> list[int]:
  """The number of scalars in each leaf."""
  return [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]


def number(name: str, k: Any, size: int) -> int | jax.Array:
  """`k` as a number in [1, size], be it a number or a share.

  A traced integer cannot be checked: it is clipped.
  """
  if isinstance(k, jax.core.Tracer) and jnp.issubdtype(k.dtype, jnp.integer):
    most = min(size, jnp.iinfo(k.dtype).max)  # What its dtype can hold.
    return jnp.clip(k, 1, most).astype(jnp.uint32)
  if isinstance(k, jax.Array | np.ndarray) and k.ndim == 0:
    k = k if isinstance(k, jax.core.Tracer) else k.item()
  if isinstance(k, int | np.integer) and not isinstance(k, bool):
    if 1 <= k <= size:
      return int(k)
  elif isinstance(k, float | np.floating) and 0 < k <= 1:
    return max(1, round(float(k) * size))
  raise ValueError(
    f'{name} is {k!r}; allowed are an int from 1 to {size} (how many) and a '
    'float in (0, 1] (the share).'
  )


def budgets(k: Any, sizes: list[int]) -> list[Any]:
  """How many to take of each leaf with `scope='leaf'`.

  An int is taken from each leaf, at most its size; a float is a share of
  each, at least one scalar. Of an empty leaf none are taken.
  """
  if isinstance(k, float | np.floating):
    return [number('k', k, size) if size else 0 for size in sizes]
  checked = number('k', k, max(sizes))
  if isinstance(checked, int):
    return [min(checked, size) for size in sizes]
  return [jnp.minimum(checked, np.uint32(size)) for size in sizes]


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
