"""The selection under `jit`, on one device or on many.

A threshold is searched on counts, ties at it are cut by their place in the
tree, and the mask is written: sums and elementwise operations only. Where the
shardings are known, all of it runs inside `shard_map` on each device's own
part, and counts are all that travels. Where they cannot be known (axes of
type Auto, inside somebody else's `jit`), nothing is reshaped or sliced, so
that XLA's partitioner has no reason to move a leaf.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.masks import keys
from unlearn_jax.masks.pieces import (
  NO_KEY,
  Piece,
  Plan,
  Source,
  Ties,
  count,
  from_place,
  placed,
  pooled,
  sampled,
)

# Fewer scalars than this need no sample to start from.
_SAMPLED = 2**20


def select(
  sources: Sequence[Source],
  k: jax.Array,
  plan: Plan,
  *,
  expected: float | jax.Array | None = None,
) -> tuple[list[jax.Array], jax.Array]:
  """True at the k highest keys; among equal ones, at the earlier.

  Args:
    sources: one for each leaf, with the shapes of whole leaves; their arrays
      are this device's parts inside `shard_map`.
    k: uint32 `[1]`, for the tree; or `[L]`, one for each leaf, from 1 to its
      size (0 where it is empty).
    plan: how; `plan.mesh` means that this runs inside `shard_map`.
    expected: where random keys have their threshold, as a share of 2³².

  Returns:
    Boolean arrays like the leaves, and the number (uint32) of keys that are
    not NaN, if `plan.whole` is false or if the tree is small; else 0.
  """
  offsets = np.cumsum([0, *(math.prod(s.shape) for s in sources)])
  leaves, start = [], jnp.uint32(0)
  for i, source in enumerate(sources):
    leaves.append(placed(source, start, plan, i))
    # Not a constant: so leaves of one shape share their compiled kernels.
    start = _kept(start + np.uint32(math.prod(source.shape)))
  wide = _wide(sources)
  by_leaf = len(k) == len(leaves) > 1
  start = None
  if by_leaf:
    groups = [[leaf] for leaf in leaves]
    spans = [(int(a), int(b)) for a, b in zip(offsets, offsets[1:])]
  else:
    known = plan.whole or plan.mesh is not None
    groups = [pooled(leaves) if known else leaves]
    spans = [(0, int(offsets[-1]))]
    start = _start(groups[0], k, spans[0][1], wide, plan, expected)
  threshold, cut, valid = _cutoff(groups, spans, k, wide, plan, start)
  masks = []
  for i, leaf in enumerate(leaves):
    g = i if by_leaf else 0
    masks.append(_mask(leaf, threshold[g], cut[g], wide, plan))
  return masks, valid


def _cutoff(
  groups: list[list[Piece]],
  spans: list[tuple[int, int]],
  k: jax.Array,
  wide: jnp.dtype | None,
  plan: Plan,
  start: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Threshold, place from which ties stay out, and count of numbers: `[G]`."""
  state = _state_dtype(wide)
  first = np.array([first for first, _ in spans], np.uint32)
  last = np.array([last for _, last in spans], np.uint32)
  most = keys.infinity(wide) + 2 if wide is not None else 2**32 - 1
  number = _number_of_bounds(plan, wide)
  low = jnp.zeros(len(groups), state)
  high = jnp.full(len(groups), most, state)
  if start is None:
    start = evenly(low, high, number).at[0].set(1)
  size = jnp.asarray(last - first)

  # Keys are searched first, then ties by their place: twice the same program.
  def phase(i, goal):
    def reach(bounds):
      return _counts(groups, bounds, goal.threshold, i == 1, wide, plan)

    found = search(reach, goal.k, goal.low, goal.at_low, goal.high, goal.start)
    low = from_place(last - np.uint32(1)).astype(state)
    high = from_place(first).astype(state) + jnp.asarray(1, state)
    return _Goal(
      k=goal.k - found.short,
      low=low,
      at_low=found.at_bound - found.short,
      high=high,
      start=evenly(low, high, number),
      threshold=jnp.where(i == 0, found.bound, goal.threshold),
      bound=found.bound,
      first=jnp.where(i == 0, found.first, goal.first),
    )

  goal = _Goal(k, low, size, high, start, low, low, jnp.zeros_like(size))
  goal = jax.lax.fori_loop(0, 2, phase, goal)
  cut = from_place(goal.bound).astype(jnp.uint32) + np.uint32(1)
  return goal.threshold, cut, goal.first.sum(dtype=jnp.uint32)


class _Goal(NamedTuple):
  """What a phase searches, and what those before it have found; `[G]`."""

  k: jax.Array
  low: jax.Array
  at_low: jax.Array
  high: jax.Array
  start: jax.Array  # [B, G]
  threshold: jax.Array
  bound: jax.Array
  first: jax.Array


def _counts(
  groups: list[list[Piece]],
  bounds: jax.Array,
  threshold: jax.Array,
  by_place: jax.Array,
  wide: jnp.dtype | None,
  plan: Plan,
) -> jax.Array:
  """Counts `[B, G]` over the pieces of each group, and over devices.

  The bounds `[B, G]` are keys; or, `by_place`, what `pieces.from_place` makes
  of the places of the keys that equal the threshold.
  """
  columns = []
  keep = jnp.where(by_place, 0, jnp.asarray(-1).astype(bounds.dtype))
  for g, pieces in enumerate(groups):
    column = jnp.zeros(len(bounds), jnp.uint32)
    for piece in pieces:
      mine = _own(bounds[:, g], wide, piece.dtype)
      low, above = _pair(threshold[g], wide, piece.dtype)
      none = jnp.asarray(NO_KEY).astype(low.dtype)
      ties = Ties(jnp.where(by_place & (low < above), low, none), keep)
      mine = jnp.where(by_place, bounds[:, g], mine.astype(bounds.dtype))
      column += count(piece, mine, ties, loop=plan.loop)
    columns.append(column)
  counts = jnp.stack(columns, axis=1)
  if plan.mesh is not None:
    counts = jax.lax.psum(counts, plan.mesh.axis_names)
  return counts


def _mask(
  leaf: Piece,
  threshold: jax.Array,
  cut: jax.Array,
  wide: jnp.dtype | None,
  plan: Plan,
) -> jax.Array:
  low, above = _pair(threshold, wide, leaf.dtype)
  shape = leaf.shape
  if plan.whole and leaf.size < 2**31:
    leaf = leaf.flat()
  key, places = leaf.keys(), leaf.places()
  mask = key >= jnp.where(places < cut, low, above)
  # The barrier keeps the kernel one-dimensional: a third of the compilation.
  return mask if mask.shape == shape else _kept(mask).reshape(shape)


def _kept(x: jax.Array) -> jax.Array:
  return jax.lax.optimization_barrier(x)


def _own(bounds: jax.Array, wide: jnp.dtype | None, own: Any) -> jax.Array:
  return bounds if wide is None else keys.narrow_bound(bounds, wide, own)


def _pair(
  threshold: jax.Array, wide: jnp.dtype | None, own: Any
) -> tuple[jax.Array, jax.Array]:
  """What a tie reaches, and what it does not, in a piece's own keys."""
  return _own(threshold, wide, own), _own(threshold + 1, wide, own)


def _start(
  pieces: list[Piece],
  k: jax.Array,
  total: int,
  wide: jnp.dtype | None,
  plan: Plan,
  expected: float | jax.Array | None,
) -> jax.Array | None:
  """Where a search over the tree counts first, `[B, 1]`; None for no idea."""
  share = k[0].astype(jnp.float32) / total
  bounds = _number_of_bounds(plan, wide)
  spread = jnp.asarray(np.linspace(4, -4, bounds), jnp.float32)
  if expected is not None:
    place = jnp.asarray(expected, jnp.float32)
    deviation = jnp.sqrt(place * (1 - place) / total)
    guess = jnp.clip(place - deviation * spread, 0, 1 - 2**-16) * 2.0**32
    return guess.astype(jnp.uint32)[:, None]
  if not plan.whole or wide is None or total < _SAMPLED:
    return None
  if plan.loop:
    # XLA:CPU would take the sample from a float32 copy of the leaf.
    pieces = [piece for piece in pieces if piece.dtype != jnp.bfloat16]
    if sum(piece.size for piece in pieces) < total / 2:
      return None
  sample = sampled(pieces, wide, total)
  rank = share * sample.size
  ranks = rank + spread * jnp.sqrt(rank * (1 - share)) + jnp.sign(spread)
  place = sample.size - jnp.round(ranks).astype(jnp.int32)
  guess = sample[jnp.clip(place, 0, sample.size - 1)].astype(_state_dtype(wide))
  # Beyond the highest of the sample: up to eight times its value.
  beyond = jnp.maximum(place - sample.size + 1, 0).astype(guess.dtype)
  octave = 1 << jnp.finfo(wide).nmant
  guess += beyond * (octave // 2)
  # Below 1 there is NaN only: its count is asked for where a pass is free.
  return (guess if bounds == 3 else guess.at[0].set(1))[:, None]


def _number_of_bounds(plan: Plan, wide: jnp.dtype | None) -> int:
  """A loop counts three at about the cost of one, a reduction seven."""
  return 3 if plan.loop and wide != jnp.bfloat16 else 7


def _wide(sources: Sequence[Source]) -> jnp.dtype | None:
  dtypes = [source.dtype for source in sources if source.dtype is not None]
  return keys.widest(dtypes) if dtypes else None


def _state_dtype(wide: jnp.dtype | None) -> jnp.dtype:
  bits = 32 if wide is None else jnp.finfo(wide).bits
  return jnp.dtype(f'uint{max(bits, 32)}')


class Found(NamedTuple):
  """What `search` returns, `[G]` each."""

  # The highest bound that counts k or more, or one that counts exactly k (which
  # settles the matter as well).
  bound: jax.Array
  at_bound: jax.Array  # uint32, what it counts
  # Uint32, what the lowest known bound above it counts: less than k.
  short: jax.Array
  # Uint32, what the first of the starting bounds counted; 0 where no pass was
  # needed.
  first: jax.Array


class _State(NamedTuple):
  low: jax.Array  # Counts k or more.
  at_low: jax.Array
  high: jax.Array  # Counts less than k,
  at_high: jax.Array  # namely this.
  bounds: jax.Array
  first: jax.Array
  passes: jax.Array


def search(
  count: Callable[[jax.Array], jax.Array],
  k: jax.Array,
  low: jax.Array,
  at_low: jax.Array,
  high: jax.Array,
  start: jax.Array,
) -> Found:
  """Narrows G intervals at once, to 1/(B + 1) of their length a pass.

  Args:
    count: from bounds `[B, G]` to uint32 counts `[B, G]`, none of which rises
      with its bound.
    k: uint32 `[G]`.
    low: unsigned `[G]`, bounds that count at least k.
    at_low: uint32 `[G]`, what they count.
    high: unsigned `[G]`, bounds above `low` that count less than k.
    start: `[B, G]`, where the first pass counts; any guess is right, a good
      one saves passes.

  Returns:
    Bounds and counts.
  """

  def unsettled(state):
    apart = (state.at_low != k) & (state.high - state.low > 1)
    return jnp.any(apart)

  def narrow(state):
    counts = count(state.bounds)
    enough = counts >= k
    inside = (state.bounds > state.low) & (state.bounds < state.high)
    low = jnp.where(inside & enough, state.bounds, state.low).max(0)
    # The counts of the bounds that reach k: the fewest is that of `low`.
    at_low = jnp.where(inside & enough, counts, state.at_low).min(0)
    high = jnp.where(inside & ~enough, state.bounds, state.high).min(0)
    at_high = jnp.where(inside & ~enough, counts, state.at_high).max(0)
    first = jnp.where(state.passes == 0, counts[0], state.first)
    bounds = evenly(low, high, len(state.bounds))
    return _State(low, at_low, high, at_high, bounds, first, state.passes + 1)

  zeros = jnp.zeros_like(at_low)
  state = _State(low, at_low, high, zeros, start, zeros, jnp.uint32(0))
  state = jax.lax.while_loop(unsettled, narrow, state)
  return Found(state.low, state.at_low, state.at_high, state.first)


def evenly(low: jax.Array, high: jax.Array, count: int) -> jax.Array:
  """`count` bounds that split each of G intervals into equal parts.

  Args:
    low: unsigned `[G]`.
    high: unsigned `[G]`, not below `low`.
    count: B.

  Returns:
    `[B, G]`, rounded down, computed without overflow.
  """
  parts = jnp.arange(1, count + 1, dtype=low.dtype)[:, None]
  length, share = high - low, jnp.asarray(count + 1, low.dtype)
  whole, rest = length // share, length % share
  return low + whole * parts + rest * parts // share
