"""The selection by NumPy, for arrays that lie in the memory of the host.

A sample says between which two numbers the threshold must lie. One pass
counts what is above and collects what is between, the k-th of which is the
threshold; a second pass writes the mask. Both work on blocks that stay in the
cache, in as many threads as there are cores. Where the sample was wrong, or
ties are so many that collecting them would cost memory, the interval is
narrowed by further passes: the result is exact in any case.

Here a key is the bits of |x| as a signed integer; NaN is an error.
"""

from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import os
import threading
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.masks import keys

# Scalars in a block: their keys fit a core's L2 cache.
_BLOCK = 2**18
# Below this many scalars all are collected and threads do not pay.
_SMALL = 2**16
_THREADED = 2**22
_SAMPLE = 2**16

# Blocks that a thread takes at once, at most.
_CHUNK = 8

_T = TypeVar('_T')


class _Scratch(threading.local):
  """Buffers of a thread, since fresh memory costs more than a pass."""

  def __init__(self):
    self.bits = np.empty(_BLOCK, np.int64)
    self.above = np.empty(_BLOCK, bool)
    self.below = np.empty(_BLOCK, bool)


class NaNError(Exception):
  """A leaf contains NaN; its index is the argument."""


class _Block(NamedTuple):
  values: np.ndarray  # Signed integers: the bits.
  wide_to_own: Callable[[int], int]
  own_to_wide: Callable[[np.ndarray], np.ndarray]
  leaf: int
  start: int
  nan: int  # The lowest key that is NaN.


class _Scan(NamedTuple):
  low: int  # How many keys reach `low`,
  high: int  # and how many `high`.
  between: np.ndarray | None  # Wide keys from `low` to below `high`.
  has_nan: bool


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
  size = sum(x.size for x in arrays)
  if not size:
    return [np.zeros(x.shape, bool) for x in arrays]
  workers = _cores() if size >= _THREADED else 1
  scratch = _Scratch()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:

    def each(function: Callable[..., _T], *items: Iterable[Any]) -> list[_T]:
      if workers == 1:
        return list(map(function, *items))
      rows = list(zip(*items))
      length = max(1, min(_CHUNK, len(rows) // (2 * workers)))
      chunks = [rows[i : i + length] for i in range(0, len(rows), length)]
      done = pool.map(lambda rows: [function(*row) for row in rows], chunks)
      return [found for chunk in done for found in chunk]

    wide = keys.widest([x.dtype for x in arrays])
    blocks = [b for i, x in enumerate(arrays) for b in _blocks(i, x, wide)]
    threshold, ties, needed = _threshold(blocks, arrays, wide, k, scratch, each)
    masks = [_aligned(x.size) for x in arrays]
    # The ties before each block; those from `needed` on stay out.
    before = np.concatenate([[0], np.cumsum(ties)[:-1]])
    keep = np.clip(needed - before, 0, ties)
    each(
      lambda block, ties, keep: _mark(
        block, masks, threshold, ties, keep, scratch
      ),
      blocks,
      ties,
      keep,
    )
  return [mask.reshape(x.shape) for mask, x in zip(masks, arrays)]


def _threshold(
  blocks: list[_Block],
  arrays: list[np.ndarray],
  wide: np.dtype,
  k: int,
  scratch: _Scratch,
  each: Callable[..., list],
) -> tuple[int, np.ndarray, int]:
  """The k-th largest key, its ties in each block, how many of them to take."""
  size = sum(block.values.size for block in blocks)
  # At least k keys reach `least`, fewer than k reach `most`.
  least, most = 0, keys.infinity(wide) + 1
  sample = _sample(arrays, wide, min(_SAMPLE, size // 64))
  room = size if size <= _SMALL else max(_SMALL, size // 32)
  low, high = _bracket(sample, k / size, least, most, size <= _SMALL)
  while True:
    budget = [room]
    scans = each(lambda block: _scan(block, low, high, budget, scratch), blocks)
    for block, found in zip(blocks, scans):
      if found.has_nan:
        raise NaNError(block.leaf)
    reach_low = np.array([found.low for found in scans])
    reach_high = np.array([found.high for found in scans])
    if reach_high.sum() >= k:
      least = high
    elif reach_low.sum() < k:
      most = low
    else:
      least, most = low, high
      needed = k - int(reach_high.sum())
      if most - least == 1:
        return least, reach_low - reach_high, needed
      if all(found.between is not None for found in scans):
        return _among([found.between for found in scans], needed)
    sample = sample[(sample >= least) & (sample < most)]
    low, high = _narrower(sample, least, most)


def _among(
  collected: list[np.ndarray], needed: int
) -> tuple[int, np.ndarray, int]:
  """`_threshold`, once all keys that can be it are collected."""
  pool = np.concatenate(collected)
  place = pool.size - needed
  pool.partition(place)
  threshold = int(pool[place])
  needed -= int(np.count_nonzero(pool[place:] > threshold))
  ties = [np.count_nonzero(found == threshold) for found in collected]
  return threshold, np.array(ties), needed


def _bracket(
  sample: np.ndarray, share: float, least: int, most: int, everything: bool
) -> tuple[int, int]:
  """An interval that holds the threshold, by the sample, nearly surely."""
  if everything or not sample.size:
    return least, most
  rank = share * sample.size
  slack = 4 * np.sqrt(rank * (1 - share)) + 3
  lower = sample.size - int(np.ceil(rank + slack))
  upper = sample.size - int(rank - slack)
  low = int(sample[lower]) if lower >= 0 else least
  high = int(sample[upper]) if upper < sample.size else most
  return low, max(high, low + 1)


def _narrower(sample: np.ndarray, least: int, most: int) -> tuple[int, int]:
  """The next interval within one that holds the threshold but is too full."""
  if not sample.size:
    # So few keys are left that they can be collected, or else ties that the
    # sample missed: the halves of the interval tell.
    middle = least + (most - least) // 2
    return (least, most) if most - least < 2 else (middle, most)
  value = int(sample[sample.size // 2])
  return value, value + 1


def _scan(
  block: _Block, low: int, high: int, budget: list[int], scratch: _Scratch
) -> _Scan:
  """Counts the keys that reach `low` and `high`, collects those between.

  `budget[0]` is how many may still be collected. Threads may lose each
  other's subtraction: that costs memory for some blocks more, nothing else.
  """
  bits = _magnitude(block, scratch)
  above = scratch.above[: bits.size]
  below = scratch.below[: bits.size]
  low, high = block.wide_to_own(low), block.wide_to_own(high)
  has_nan = bits.size > 0 and int(bits.max()) >= block.nan
  np.greater_equal(bits, low, out=above)
  count, beyond = int(np.count_nonzero(above)), 0
  if high < block.nan:
    np.less(bits, high, out=below)
    beyond = bits.size - int(np.count_nonzero(below))
    above &= below
  between = None
  if count - beyond <= budget[0]:
    budget[0] -= count - beyond
    between = block.own_to_wide(bits[np.flatnonzero(above)])
  return _Scan(count, beyond, between, has_nan)


def _mark(
  block: _Block,
  masks: list[np.ndarray],
  threshold: int,
  ties: int,
  keep: int,
  scratch: _Scratch,
) -> None:
  """Writes the block's part of the mask: above, and the first `keep` ties."""
  bits = _magnitude(block, scratch)
  part = masks[block.leaf][block.start : block.start + bits.size]
  bound = threshold if keep == ties else threshold + 1
  np.greater_equal(bits, block.wide_to_own(bound), out=part)
  if 0 < keep < ties:
    equal = np.flatnonzero(bits == block.wide_to_own(threshold))
    part[equal[:keep]] = True


def _magnitude(block: _Block, scratch: _Scratch) -> np.ndarray:
  """The block's keys, in the thread's buffer."""
  dtype = block.values.dtype
  out = scratch.bits.view(dtype)[: block.values.size]
  return np.bitwise_and(block.values, np.iinfo(dtype).max, out=out)


def _blocks(leaf: int, x: np.ndarray, wide: np.dtype) -> list[_Block]:
  flat = np.ascontiguousarray(x).reshape(-1)
  own = x.dtype
  integers = flat.view(f'int{8 * own.itemsize}')
  return [
    _Block(
      integers[start : start + _BLOCK],
      lambda bound: _narrow_bound(bound, wide, own),
      lambda bits: _widen(bits, own, wide),
      leaf,
      start,
      keys.infinity(own) + 1,
    )
    for start in range(0, x.size, _BLOCK)
  ]


def _widen(bits: np.ndarray, own: np.dtype, wide: np.dtype) -> np.ndarray:
  if own == wide:
    return bits
  return bits.view(own).astype(wide).view(f'int{8 * wide.itemsize}')


def _narrow_bound(bound: int, wide: np.dtype, own: np.dtype) -> int:
  """The lowest bits in `own` whose number is not below that of `bound`."""
  if own == wide:
    return bound
  if bound > keys.infinity(wide):
    return keys.infinity(own) + 1
  integer = np.array([bound], f'int{8 * wide.itemsize}')
  with np.errstate(over='ignore'):
    rounded = integer.view(wide).astype(own)
  bits = rounded.view(f'int{8 * own.itemsize}')
  return int(bits[0]) + int(_widen(bits, own, wide)[0] < bound)


def _sample(arrays: list[np.ndarray], wide: np.dtype, size: int) -> np.ndarray:
  """About `size` wide keys from all leaves, sorted."""
  rng = np.random.default_rng(0)
  total = sum(x.size for x in arrays)
  parts = [np.empty(0, f'int{8 * wide.itemsize}')]
  for x in arrays:
    count = round(size * x.size / total)
    if count:
      # One from each of `count` equal stretches.
      places = (np.arange(count) + rng.random(count)) * (x.size / count)
      taken = np.ascontiguousarray(x).reshape(-1)[places.astype(np.int64)]
      bits = taken.view(f'int{8 * x.itemsize}')
      bits &= np.iinfo(bits.dtype).max
      parts.append(_widen(bits, x.dtype, wide))
  return np.sort(np.concatenate(parts))


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
  if isinstance(like, jax.Array) and like.committed:
    return jax.device_put(mask, like.sharding)
  if mask.ndim == 0 or mask.size == 0:
    return jnp.asarray(mask)
  return jax.device_put(mask)
