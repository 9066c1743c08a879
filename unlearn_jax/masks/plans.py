"""How to select: where the leaves of a tree are, and what is counted where."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from unlearn_jax.masks.pieces import Piece, row_major


class Plan(NamedTuple):
  """How to go about it; hashable, and static under `jit`.

  Attributes:
    loop: count in loops (CPU), not in one reduction.
    whole: each leaf lies on one device as a whole.
    mesh: where `specs` apply; None with `whole` or where nothing is known.
    specs: how each leaf is spread over `mesh`; None as above.
  """

  loop: bool
  whole: bool
  mesh: Any = None
  specs: tuple[PartitionSpec, ...] | None = None


class Source(NamedTuple):
  """What a leaf's keys are made from, see `pieces.Piece`."""

  arrays: tuple[jax.Array, ...]
  shape: tuple[int, ...]
  dtype: jnp.dtype | None
  make: Callable[..., jax.Array]


def placed(source: Source, origin: jax.Array, plan: Plan, leaf: int) -> Piece:
  """The scalars of a leaf that are here.

  Args:
    source: the leaf.
    origin: uint32, the place in the tree of its first scalar.
    plan: how it is spread, if `plan.mesh` says that this is in `shard_map`.
    leaf: its origin in the tree.

  Returns:
    The piece; copies on several devices are counted on one of them.
  """
  strides = row_major(source.shape)
  if plan.mesh is None:
    return Piece(
      source.arrays,
      source.shape,
      origin,
      strides,
      source.make,
      source.dtype,
    )
  assert plan.specs is not None
  sizes = plan.mesh.shape
  shape: list[int] = []
  named: set[str] = set()
  spec = (*plan.specs[leaf], *[None] * len(source.shape))
  for length, stride, names in zip(source.shape, strides, spec):
    names = () if names is None else names
    names = (names,) if isinstance(names, str) else tuple(names)
    parts = math.prod(sizes[name] for name in names)
    shape.append(length // parts)
    if parts > 1:
      place = jax.lax.axis_index(names).astype(jnp.uint32)
      origin += place * np.uint32(length // parts * stride)
    named.update(names)
  counts = jnp.uint32(1)
  for name in plan.mesh.axis_names:
    if name not in named:
      counts *= (jax.lax.axis_index(name) == 0).astype(jnp.uint32)
  return Piece(
    source.arrays,
    tuple(shape),
    origin,
    strides,
    source.make,
    source.dtype,
    counts,
    frozenset(named),
  )
