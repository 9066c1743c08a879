"""What is searched under `jit`: keys that are made where they are counted.

A `Piece` says how to make the keys of some scalars from arrays that exist
anyway (gradients, a mask, nothing at all for random priorities). Keys exist
only inside of loops and reductions, never as an array.

There are two ways to count. On a GPU or TPU, and wherever a leaf may be
spread over devices, one variadic `lax.reduce` for all bounds: a single read.
XLA:CPU runs that one number at a time, so there a loop takes 1024 numbers at
a time and keeps three counts in the bits of one lane.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Numbers that a step of the loop takes; addresses are int32.
_BLOCK = 1024
_LIMIT = 2**31
# Each lane holds three counts of ten bits, so that many steps are safe.
_PACKED, _BITS = 3, 10
_STEPS = 2**_BITS - 1


class Piece(NamedTuple):
  """Some scalars of the tree, all that is there or this device's part.

  Attributes:
    arrays: what keys are made from, all of the same shape.
    shape: that shape; it is needed where there are no arrays.
    origin: uint32 in this shape, the scalars' places in the tree; or a number,
      the place of the first one.
    strides: by how much the place rises along each axis.
    make: `(arrays, index) -> unsigned keys`, elementwise.
    dtype: of the float behind the keys; None for uint32 priorities.
    counts: uint32 0 or 1, whether this device's copy is counted.
    axes: those of the mesh that the leaf is spread over, which `counts`
      depends on.
  """

  arrays: tuple[jax.Array, ...]
  shape: tuple[int, ...]
  origin: jax.Array
  strides: tuple[int | jax.Array, ...]
  make: Callable[[tuple[jax.Array, ...], jax.Array], jax.Array]
  dtype: jnp.dtype | None
  counts: jax.Array | int = 1
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
  """Which keys are ties, while these are searched by place.

  Attributes:
    key: of a tie, in the piece's own dtype; `NO_KEY` while keys are searched.
    keep: all bits set while keys are searched, otherwise none.
  """

  key: jax.Array
  keep: jax.Array


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
  if piece.dtype == jnp.bfloat16 and jax.default_backend() == 'cpu':
    # XLA:CPU takes bfloat16 through a barrier as a float32 copy; like this,
    # the bits are copied all the same, in two bytes each.
    zero = jnp.zeros((), jnp.uint16)
    changing = (zero, piece.origin, _runtime(piece))
    (zero, origin, strides), bounds = jax.lax.optimization_barrier(
      (changing, bounds)
    )
    arrays = tuple(_changed_by(x, zero) for x in piece.arrays)
  else:
    tied = (piece.arrays, piece.origin, _runtime(piece))
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


def _runtime(piece: Piece) -> tuple[jax.Array, ...]:
  return tuple(jnp.uint32(stride) for stride in piece.strides)


def _changed_by(x: jax.Array, zero: jax.Array) -> jax.Array:
  bits = jax.lax.bitcast_convert_type(x, zero.dtype)
  return jax.lax.bitcast_convert_type(bits ^ zero, x.dtype)


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
