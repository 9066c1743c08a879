"""What k may be, and how many scalars a tree has."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import require_floats

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
