"""Multi-way bisection on counts: several searches side by side in one loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Found(NamedTuple):
  """What `search` returns, `[G]` each.

  Attributes:
    bound: the highest bound that counts k or more, or one that counts
      exactly k (which settles the matter as well).
    at_bound: uint32, what it counts.
    short: uint32, what the lowest known bound above it counts: less than k.
    first: uint32, what the first of the starting bounds counted; 0 where no
      pass was needed.
  """

  bound: jax.Array
  at_bound: jax.Array
  short: jax.Array
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
