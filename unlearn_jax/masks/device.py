"""The selection under `jit`, on one device or on many.

Each scalar has a key, and among equal keys a rank: the earlier, the higher.
The lowest (key, rank) that is chosen is found digit by digit, by counting how
many scalars reach it; then the mask is written. Keys and ranks are made where
they are counted and are never an array.

Where the shardings are known, all of it runs inside `shard_map` on each
device's own part, and counts are all that travels. Where they cannot be known
(axes of type Auto, inside somebody else's `jit`), nothing is reshaped or
sliced, so that XLA's partitioner has no reason to move a leaf.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

Shardings = tuple[NamedSharding, ...] | None


def shardings_of(leaves: Sequence[Any]) -> Shardings:
  """How the leaves are spread over one mesh; None if that is not known.

  Args:
    leaves: arrays of JAX, traced or not; or of NumPy, or only shapes: those
      are taken to be on one device.

  Returns:
    Their shardings; None as well where all are on one device.

  Raises:
    ValueError: inside a `shard_map` that checks what varies over devices.
  """
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    # JAX renames the attribute that says so, and prints it alike.
    if any('{V' in str(jax.typeof(leaf)) for leaf in leaves):
      raise ValueError(
        'params vary over the devices of a shard_map, allowed there:'
        ' check_vma=False (each device then selects among its own)'
      )
    found = [jax.typeof(leaf).sharding for leaf in leaves]
    known = set(found[0].mesh.axis_types) == {AxisType.Explicit}
  else:
    found = [x.sharding for x in leaves if isinstance(x, jax.Array)]
    known = len(set().union(*(s.device_set for s in found))) > 1
  named = [s for s in found if isinstance(s, NamedSharding)]
  if known and len(named) == len(leaves) and len({s.mesh for s in named}) == 1:
    return tuple(named)
  return None


def select(
  key_of: Callable[..., jax.Array],
  extra: Any,
  leaves: Sequence[jax.Array | None],
  shapes: Sequence[tuple[int, ...]],
  k: jax.Array,
  *,
  bits: int,
  shardings: Shardings,
) -> list[jax.Array]:
  """True at the k highest keys; among equal ones, at the earlier.

  Args:
    key_of: from a leaf, the places of its scalars in the tree (uint32, of its
      shape) and `extra` to unsigned keys below 2^`bits`, elementwise.
    extra: arrays that every device has, such as the words of a key.
    leaves: arrays, or None where keys depend on places only.
    shapes: of the leaves.
    k: uint32 `[1]`, for the tree; or `[L]`, one for each leaf, from 1 to its
      size (0 where it is empty).
    bits: see `key_of`.
    shardings: of the leaves, by `shardings_of`.

  Returns:
    Boolean arrays of the leaves' shapes.
  """
  sizes = [math.prod(shape) for shape in shapes]
  total, by_leaf = sum(sizes), len(k) > 1
  dtype = jnp.dtype('uint64' if bits > 32 else 'uint32')

  def run(leaves, k, extra):
    parts, shares = [], []
    for i, leaf in enumerate(leaves):
      corner, share = _here(shapes[i], shardings[i] if shardings else None)
      parts.append((leaf, corner, jnp.uint32(sum(sizes[:i]))))
      shares.append(share)
    # Not constants: so leaves of one shape share their compiled kernels.
    parts = jax.lax.optimization_barrier(parts)

    def values(i, part, threshold, by_rank):
      """What is counted: keys, or the ranks of those at the threshold."""
      leaf, corner, origin = part
      shape = shardings[i].shard_shape(shapes[i]) if shardings else shapes[i]
      places = origin + _index_of(shape, shapes[i], corner)
      key = key_of(leaf, places, extra).astype(dtype)
      rank = (np.uint32(total) - places).astype(dtype)  # From 1 on.
      beyond = jnp.where(key > threshold, ~jnp.zeros((), dtype), 0)
      ranked = jnp.where(key == threshold, rank, beyond)
      return jnp.where(by_rank, ranked, key)

    def count(bounds, threshold, by_rank):
      """How many scalars of all devices reach each bound: uint32 `[B, G]`."""
      # Tied to the bounds, keys and places cannot be hoisted out of the loop,
      # where they would be arrays.
      tied, bounds = jax.lax.optimization_barrier((parts, bounds))
      counted = []
      for i, part in enumerate(tied):
        g = i if by_leaf else 0
        found = values(i, part, threshold[g], by_rank)
        counted += _count(found, bounds[:, g])
      counts = jnp.stack(counted).reshape(-1, len(bounds)).T * jnp.stack(shares)
      if not by_leaf:
        counts = jnp.sum(counts, 1, dtype=jnp.uint32, keepdims=True)
      if shardings:
        counts = jax.lax.psum(counts, shardings[0].mesh.axis_names)
      return counts

    every = jnp.asarray(sizes if by_leaf else [total], jnp.uint32)
    found = _search(count, k, every, bits, total.bit_length(), dtype)
    masks = []
    for i, part in enumerate(parts):
      g = i if by_leaf else 0
      masks.append(values(i, part, found.key[g], True) >= found.rank[g])
    return masks

  if shardings is None:
    return run(list(leaves), k, extra)
  specs = [sharding.spec for sharding in shardings]
  none = PartitionSpec()
  return jax.shard_map(
    run,
    mesh=shardings[0].mesh,
    in_specs=(specs, none, none),
    out_specs=specs,
    check_vma=False,
  )(list(leaves), k, extra)


class _Found(NamedTuple):
  """At least k scalars reach this key and, of those that equal it, this rank.

  `[G]` each, where G is 1, or L with a budget for each leaf.
  """

  step: jax.Array  # no `[G]`: how many digits are known
  key: jax.Array
  rank: jax.Array
  reached: jax.Array  # uint32, how many do


def _search(
  count: Callable[..., jax.Array],
  k: jax.Array,
  every: jax.Array,
  bits: int,
  rank_bits: int,
  dtype: jnp.dtype,
) -> _Found:
  """The highest key, and then the highest rank of it, that k scalars reach.

  `count` is given bounds, the key so far, and whether they bound ranks.
  `every` is how many scalars there are. Once exactly k are reached, it stops.
  """
  digit = _digit()
  digits = jnp.arange(1, 2**digit, dtype=dtype)[:, None]
  of_key = _shifts(bits, digit)
  shifts = jnp.asarray(of_key + _shifts(rank_bits, digit), dtype)

  def unsettled(found):
    return jnp.any(found.reached != k) & (found.step < len(shifts))

  def narrow(found):
    by_rank = found.step >= len(of_key)
    base = jnp.where(by_rank, found.rank, found.key)
    shift = shifts[found.step]
    bounds = base + (digits << shift)
    counts = count(bounds, found.key, by_rank)
    enough = (counts >= k) & (bounds > base)  # Else they have wrapped round.
    base += jnp.sum(enough, 0, dtype=dtype) << shift
    return _Found(
      found.step + 1,
      jnp.where(by_rank, found.key, base),
      jnp.where(by_rank, base, found.rank),
      jnp.where(enough, counts, found.reached).min(0),
    )

  zero, one = jnp.zeros(len(k), dtype), jnp.ones(len(k), dtype)
  start = _Found(jnp.int32(0), zero, one, every)
  return jax.lax.while_loop(unsettled, narrow, start)


def _digit() -> int:
  """How many bits a pass finds.

  A GPU compares with seven bounds in the time of a read; XLA:CPU compiles
  three in a third of the time that seven take, and gains little by more.
  """
  return 2 if jax.default_backend() == 'cpu' else 3


def _shifts(bits: int, digit: int) -> list[int]:
  """Where the digits of a number begin, the highest first."""
  return [max(end - digit, 0) for end in range(bits, 0, -digit)]


def _count(values: jax.Array, bounds: jax.Array) -> Sequence[jax.Array]:
  """How many values reach each bound, by one reduction: a single read."""
  reach = [(values >= bound).astype(jnp.uint32) for bound in bounds]
  return jax.lax.reduce(
    reach,
    [np.uint32(0)] * len(reach),
    lambda x, y: [a + b for a, b in zip(x, y)],
    tuple(range(values.ndim)),
  )


def _here(
  shape: tuple[int, ...], sharding: NamedSharding | None
) -> tuple[list[jax.Array], jax.Array]:
  """Where this device's part of a leaf begins along each axis, as uint32.

  And by what to multiply its counts: 0 for a copy that another device counts.
  """
  if sharding is None:
    return [jnp.uint32(0)] * len(shape), jnp.uint32(1)
  corner: list[jax.Array] = []
  left = list(sharding.mesh.axis_names)
  spec = (*sharding.spec, *[None] * len(shape))
  for length, names in zip(sharding.shard_shape(shape), spec):
    names = names if isinstance(names, tuple) else (names,) if names else ()
    left = [name for name in left if name not in names]
    index = jax.lax.axis_index(names).astype(jnp.uint32)
    corner.append(index * np.uint32(length))
  return corner, (jax.lax.axis_index(tuple(left)) == 0).astype(jnp.uint32)


def _index_of(
  part: tuple[int, ...], whole: tuple[int, ...], corner: list[jax.Array]
) -> jax.Array:
  """uint32 of shape `part`: the row-major index in `whole` of each scalar."""
  index = jnp.zeros(part, jnp.uint32)
  for axis, length in enumerate(whole):
    along = jax.lax.broadcasted_iota(jnp.uint32, part, axis)
    index = index * np.uint32(length) + (corner[axis] + along)
  return index
