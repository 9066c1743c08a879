"""The selection by NumPy, for arrays that lie in the memory of the host.

A sample says between which two numbers the threshold must lie. One pass
counts what is above and collects what is between, the k-th of which is the
threshold; a second pass writes the mask. Both work on blocks that stay in the
cache, in as many threads as there are cores. Where the sample was wrong, the
first pass is repeated on its other side: the result is exact in any case.

Here a key is the bits of |x| as a signed integer; NaN is an error.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import os
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from unlearn_jax.masks import keys

# Scalars in a block: their keys fit a core's L2 cache.
_BLOCK = 2**18
# Below this many scalars threads do not pay.
_THREADED = 2**21
_SAMPLE = 2**16

_T = TypeVar('_T')


class NaNError(Exception):
  """A leaf contains NaN."""


class _Block(NamedTuple):
  values: np.ndarray
  mask: np.ndarray  # Where the result goes.

  def keys(self, wide: np.dtype, scratch: np.ndarray) -> np.ndarray:
    """The block's keys, in a buffer that the next block overwrites."""
    signed = np.dtype(f'int{8 * wide.itemsize}')
    values = self.values.astype(wide, copy=False).view(signed)
    out = scratch.view(signed)[: values.size]
    return np.bitwise_and(values, np.iinfo(signed).max, out=out)


def is_host(leaf: Any) -> bool:
  """Whether the leaf can be read by NumPy without a copy."""
  if isinstance(leaf, jax.core.Tracer):
    return False
  if not isinstance(leaf, jax.Array):
    return True
  devices: set[Any] = leaf.sharding.device_set
  return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def select(leaves: Sequence[Any], k: int) -> list[np.ndarray]:
  """True at the k largest |x| of all leaves; among equal ones, at the earlier.

  Args:
    leaves: float arrays, of NumPy or of JAX on one CPU device.
    k: from 1 to the number of scalars; of none it does not matter.

  Returns:
    Boolean arrays of the leaves' shapes, aligned so that JAX can take them
    over without a copy.

  Raises:
    NaNError: a leaf contains NaN.
  """
  arrays = [np.asarray(leaf) for leaf in leaves]
  flat = [np.ascontiguousarray(x).reshape(-1) for x in arrays]
  masks = [_aligned(x.size) for x in flat]
  blocks = [
    _Block(x[start : start + _BLOCK], mask[start : start + _BLOCK])
    for x, mask in zip(flat, masks)
    for start in range(0, x.size, _BLOCK)
  ]
  if blocks:
    wide = keys.widest([x.dtype for x in flat])
    threshold, reached = _threshold(blocks, flat, wide, k)

    def mark(block, scratch):
      np.greater_equal(block.keys(wide, scratch), threshold, out=block.mask)

    _each(mark, blocks)
    _drop_last_ties(blocks, wide, threshold, reached - k)
  return [mask.reshape(x.shape) for mask, x in zip(masks, arrays)]


def _threshold(
  blocks: list[_Block], flat: list[np.ndarray], wide: np.dtype, k: int
) -> tuple[int, int]:
  """The k-th largest key, and how many reach it."""
  top = keys.infinity(wide)
  low, high = _bracket(_sample(flat, wide), k / sum(x.size for x in flat), top)

  def scan(block, scratch):
    bits = block.keys(wide, scratch)
    if bits.max() > top:
      raise NaNError
    inside = bits < high
    reach_high = bits.size - np.count_nonzero(inside)
    inside &= bits > low
    between = bits[np.flatnonzero(inside)]
    above, reach_low = bits > high, np.count_nonzero(bits >= low)
    return np.count_nonzero(above), reach_high, reach_low, between

  while True:
    *counts, kept = zip(*_each(scan, blocks))
    above, reach_high, reach_low = map(sum, counts)
    between = np.concatenate(kept)
    if above >= k:  # The sample was wrong, here and in the next case.
      low, high = high + 1, top
    elif reach_low < k:
      low, high = 0, low - 1
    elif reach_high >= k:
      return high, reach_high
    elif reach_high + between.size < k:
      return low, reach_low
    else:
      place = between.size - (k - reach_high)
      between.partition(place)
      threshold = int(between[place])
      # Below the k-th there may be others that equal it.
      return threshold, k + int((between[:place] == threshold).sum())


def _bracket(sample: np.ndarray, share: float, top: int) -> tuple[int, int]:
  """Between which keys the threshold lies, by the sample, nearly surely."""
  rank = share * sample.size
  slack = 4 * np.sqrt(rank * (1 - share)) + 3
  lower = sample.size - int(np.ceil(rank + slack))
  upper = sample.size - int(rank - slack)
  low = int(sample[lower]) if lower >= 0 else 0
  return low, int(sample[upper]) if upper < sample.size else top


def _sample(flat: list[np.ndarray], wide: np.dtype) -> np.ndarray:
  """Keys of one scalar from each of so many equal stretches, sorted."""
  ends = np.cumsum([0, *(x.size for x in flat)])
  count = min(_SAMPLE, int(ends[-1]) // 64)
  share = np.arange(count) + np.random.default_rng(0).random(count)
  places = (share * (ends[-1] / max(count, 1))).astype(np.int64)
  cuts = np.searchsorted(places, ends)
  drawn = [
    x[places[first:last] - start].astype(wide)
    for x, start, first, last in zip(flat, ends, cuts, cuts[1:])
  ]
  bits = np.concatenate(drawn).view(f'int{8 * wide.itemsize}')
  return np.sort(bits & np.iinfo(bits.dtype).max)


def _drop_last_ties(
  blocks: list[_Block], wide: np.dtype, threshold: int, excess: int
) -> None:
  """Takes so many of the last keys that equal the threshold out again."""
  scratch = np.empty(_BLOCK, wide)
  for block in reversed(blocks):
    if not excess:
      return
    ties = np.flatnonzero(block.keys(wide, scratch) == threshold)[-excess:]
    block.mask[ties] = False
    excess -= ties.size


def _each(
  function: Callable[[_Block, np.ndarray], _T], blocks: list[_Block]
) -> list[_T]:
  """What the function makes of each block, given a buffer for its keys."""

  def run(part):
    # Fresh memory costs more than a pass: one buffer for many blocks.
    scratch = np.empty(_BLOCK, np.int64)
    return [function(block, scratch) for block in part]

  workers = _cores()
  if sum(block.values.size for block in blocks) < _THREADED or workers == 1:
    return run(blocks)
  # Few pieces, as handing them over costs; more than workers, as some wait.
  ends = np.linspace(0, len(blocks), 4 * workers + 1).astype(int)
  parts = [blocks[start:end] for start, end in zip(ends, ends[1:])]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    return [found for done in pool.map(run, parts) for found in done]


def _aligned(size: int) -> np.ndarray:
  """Booleans, not initialised, at an address that JAX takes over as it is."""
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(bool)


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def adopt(mask: np.ndarray, like: Any) -> jax.Array:
  """The mask as a JAX array where `like` is, without a copy if possible."""
  known = isinstance(like, jax.Array) and like.committed
  return jax.device_put(mask, like.sharding if known else None)
