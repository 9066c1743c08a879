"""What is searched under `jit`: keys that are made where they are counted.

A `Piece` says how to make the keys of some scalars from arrays that exist
anyway (gradients, a mask, nothing at all for random priorities). Keys exist
only inside of loops and reductions, never as an array.

There are two ways to count. On a GPU or TPU, and wherever a leaf may be
spread over devices, one variadic `lax.reduce` for all bounds: a single read.
XLA:CPU runs that one number at a time, so there a loop takes 1024 numbers at
a time and keeps three counts in the bits of one lane.

A `Plan` says where the leaves of a tree lie, and how to go about it. Most
leaves of a network are tiny, and each that a search reads is compiled on its
own: so the smallest are copied into one array, as long as this costs little
memory (`pooled`).
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from unlearn_jax.masks import keys

# Numbers that a step of the loop takes; addresses are int32.
_BLOCK = 1024
_LIMIT = 2**31
# Each lane holds three counts of ten bits, so that many steps are safe.
_PACKED, _BITS = 3, 10
_STEPS = 2**_BITS - 1


class Piece(NamedTuple):
  """Some scalars of the tree, all that is there or this device's part."""

  # What keys are made from, all of the same shape.
  arrays: tuple[jax.Array, ...]
  shape: tuple[int, ...]  # that shape; it is needed where there are no arrays
  # Uint32 in this shape, the scalars' places in the tree; or a number, the
  # place of the first one.
  origin: jax.Array
  # By how much the place rises along each axis.
  strides: tuple[int | jax.Array, ...]
  # `(arrays, index) -> unsigned keys`, elementwise.
  make: Callable[[tuple[jax.Array, ...], jax.Array], jax.Array]
  # Of the float behind the keys; None for uint32 priorities.
  dtype: jnp.dtype | None
  # Uint32 0 or 1, whether this device's copy is counted.
  counts: jax.Array | int = 1
  # Those of the mesh that the leaf is spread over, which `counts` depends on.
  axes: frozenset[str] = frozenset()

  @property
  def size(self) -> int:
    """How many scalars."""
    return math.prod(self.shape)

  def places(self) -> jax.Array:
    """uint32 in the piece's shape: each scalar's place in the tree."""
    index = jnp.broadcast_to(self.origin, self.shape)
    if jnp.ndim(self.origin) == len(self.shape) > 0:
      return index
    for axis, stride in enumerate(self.strides):
      iota = jax.lax.broadcasted_iota(jnp.uint32, self.shape, axis)
      index = index + iota * jnp.uint32(stride)
    return index

  def flat(self) -> 'Piece':
    """The same scalars in one row, where their places are consecutive."""
    arrays = tuple(x.reshape(-1) for x in self.arrays)
    return self._replace(arrays=arrays, shape=(self.size,), strides=(1,))

  def keys(self) -> jax.Array:
    """The keys, in the piece's shape."""
    return self.make(self.arrays, self.places())


class Ties(NamedTuple):
  """Which keys are ties, while these are searched by place."""

  # Of a tie, in the piece's own dtype; `NO_KEY` while keys are searched.
  key: jax.Array
  keep: jax.Array  # all bits set while keys are searched, otherwise none


# No key is the largest of its dtype; and no tree has so many scalars, so that
# the place of a tie, counted down from here, is above 0.
NO_KEY = -1
_LAST = np.uint32(2**32 - 2)


def from_place(place: Any) -> Any:
  """What a tie at this place is searched as, and the other way round."""
  return _LAST - place


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
  """By how much a row-major index rises along each axis."""
  return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def count(
  piece: Piece, bounds: jax.Array, ties: Ties, *, loop: bool
) -> jax.Array:
  """How many keys (or ties, by their place) reach each bound.

  Args:
    piece: the scalars.
    bounds: unsigned `[B]`.
    ties: what is searched.
    loop: whether to count in a loop over blocks, in the order of a
      contiguous array; otherwise in one reduction, without a reshape.

  Returns:
    uint32 `[B]`.
  """
  if piece.size == 0:
    return jnp.zeros(len(bounds), jnp.uint32)
  # Tied to the bounds, keys and places cannot be hoisted out of the search's
  # loop, where they would be arrays.
  contiguous = piece.strides == row_major(piece.shape)
  strides = tuple(jnp.uint32(stride) for stride in piece.strides)
  tied = (piece.arrays, piece.origin, strides)
  (arrays, origin, strides), bounds = jax.lax.optimization_barrier(
    (tied, bounds)
  )
  piece = piece._replace(arrays=arrays, origin=origin, strides=strides)
  # XLA:CPU cuts slices from bfloat16 by way of a float32 copy of the leaf.
  sliceable = contiguous and piece.dtype != jnp.bfloat16
  way = _by_reduction
  if loop and sliceable and _BLOCK <= piece.size < _LIMIT:
    way = _by_blocks
  return way(piece, list(bounds), ties) * piece.counts


def _searched(
  key: jax.Array, places: jax.Array, ties: Ties, bound: jax.Array
) -> jax.Array:
  """The key; or, while ties are searched, their place and 0 for others."""
  kept = key.astype(bound.dtype) & ties.keep
  return jnp.where(
    key == ties.key, from_place(places).astype(bound.dtype), kept
  )


def _by_reduction(
  piece: Piece, bounds: list[jax.Array], ties: Ties
) -> jax.Array:
  values = _searched(piece.keys(), piece.places(), ties, bounds[0])
  truths = [(values >= bound).astype(jnp.uint32) for bound in bounds]
  sums = jax.lax.reduce(
    truths,
    [np.uint32(0)] * len(truths),
    lambda x, y: [a + b for a, b in zip(x, y)],
    tuple(range(len(piece.shape))),
  )
  return jnp.stack(sums)


def _by_blocks(piece: Piece, bounds: list[jax.Array], ties: Ties) -> jax.Array:
  flat = [x.reshape(-1) for x in piece.arrays]
  given = jnp.ndim(piece.origin) > 0
  steps = -(-piece.size // _BLOCK)
  lanes = jnp.arange(_BLOCK, dtype=jnp.uint32)
  groups = [bounds[i : i + _PACKED] for i in range(0, len(bounds), _PACKED)]

  def step(i, sums):
    # The last block overlaps with the one before it.
    start = jnp.minimum(i * _BLOCK, piece.size - _BLOCK)
    cut = [jax.lax.dynamic_slice(x, (start,), (_BLOCK,)) for x in flat]
    if given:
      places = jax.lax.dynamic_slice(
        piece.origin.reshape(-1), (start,), (_BLOCK,)
      )
    else:
      places = piece.origin + start.astype(jnp.uint32) + lanes
    key = piece.make(tuple(cut), places)
    values = _searched(key, places, ties, bounds[0])
    if piece.size % _BLOCK:
      fresh = lanes >= (i * _BLOCK - start).astype(jnp.uint32)
      values = jnp.where(fresh, values, 0)
    added = []
    for total, group in zip(sums, groups):
      for j, bound in enumerate(group):
        one = np.uint32(1 << (_BITS * j))
        total = total + jnp.where(values >= bound, one, np.uint32(0))
      added.append(total)
    return tuple(added)

  def unpack(i, counts):
    sums = tuple(jnp.zeros(_BLOCK, jnp.uint32) for _ in groups)
    first = i * _STEPS
    last = jnp.minimum(first + _STEPS, steps)
    sums = jax.lax.fori_loop(first, last, step, sums)
    found = [
      jnp.sum((total >> (_BITS * j)) & _STEPS, dtype=jnp.uint32)
      for total, group in zip(sums, groups)
      for j in range(len(group))
    ]
    return counts + jnp.stack(found)

  start = jnp.zeros(len(bounds), jnp.uint32)
  return jax.lax.fori_loop(0, -(-steps // _STEPS), unpack, start)


class Plan(NamedTuple):
  """How to go about it; hashable, and static under `jit`."""

  loop: bool  # count in loops (CPU), not in one reduction
  whole: bool  # each leaf lies on one device as a whole
  # Where `specs` apply; None with `whole` or where nothing is known.
  mesh: Any = None
  # How each leaf is spread over `mesh`; None as above.
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


# A leaf below this many scalars is small; and so many may be joined whatever
# the size of the tree, otherwise one of `_PART`.
_SMALL = 2**16
_FREE = 2**20
_PART = 64
# How many numbers a sample has at most, and one of how many it takes.
_SAMPLE = 2**17
_STRIDE = 2**10


def pooled(leaves: Sequence[Piece]) -> list[Piece]:
  """The large leaves, and the small ones joined: one piece for each dtype.

  Args:
    leaves: pieces that can be reshaped.

  Returns:
    Pieces with the same scalars.
  """
  chosen = _small(leaves)
  by_kind: dict[tuple, list[Piece]] = {}
  for i in sorted(chosen):
    by_kind.setdefault((leaves[i].dtype, leaves[i].axes), []).append(leaves[i])
  large = [leaf for i, leaf in enumerate(leaves) if i not in chosen]
  return large + [_join(pieces) for pieces in by_kind.values()]


def _small(leaves: Sequence[Piece]) -> set[int]:
  """Which leaves are joined."""
  room = max(_FREE, sum(leaf.size for leaf in leaves) // _PART)
  chosen = set()
  for i in sorted(range(len(leaves)), key=lambda i: leaves[i].size):
    room -= leaves[i].size
    if room < 0 or leaves[i].size >= _SMALL:
      break
    chosen.add(i)
  return chosen


def _join(pieces: Sequence[Piece]) -> Piece:
  arrays = tuple(
    jnp.concatenate([x.reshape(-1) for x in columns])
    for columns in zip(*(piece.arrays for piece in pieces))
  )
  index = jnp.concatenate([piece.places().reshape(-1) for piece in pieces])
  return pieces[0]._replace(
    arrays=arrays, shape=index.shape, origin=index, strides=(1,)
  )


def sampled(leaves: Sequence[Piece], wide: jnp.dtype, total: int) -> jax.Array:
  """Keys of about one in 1024 scalars, widened, sorted upwards.

  Args:
    leaves: pieces that can be reshaped, with numbers as keys.
    wide: the dtype whose keys are returned.
    total: how many scalars the pieces have.

  Returns:
    Unsigned keys, at least one.
  """
  # Odd, so as not to meet the same column of every matrix.
  stride = max(_STRIDE, total // _SAMPLE) | 1
  drawn = []
  for leaf in leaves:
    taken = tuple(x.reshape(-1)[::stride] for x in leaf.arrays)
    if taken[0].size:
      key = leaf.make(taken, jnp.zeros(taken[0].shape, jnp.uint32))
      drawn.append(keys.widen(key, leaf.dtype or wide, wide))
  return jnp.sort(jnp.concatenate(drawn))
