"""Images that do not fit the devices: they come from the host in blocks.

A set is streamed if its images lie on the host (a NumPy array, `np.memmap`,
or anything else with `shape`, `dtype` and `array[rows]`) and have more bytes
than `limit` allows on a device. What is made of it is cut into blocks of
whole steps; Grain's threads gather the rows of the next blocks while the
devices work on this one. Labels, indices and a teacher's targets are small
and lie on the devices as ever. With several processes each reads only the rows
that its own devices take.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearn_jax import base

# Bytes; a longer block gains nothing and costs host memory.
_LONGEST = 2**28

_chosen: contextvars.ContextVar[int | None] = contextvars.ContextVar(
  'limit', default=None
)


@contextlib.contextmanager
def limit(nbytes: int | None) -> Iterator[None]:
  """Sets how much of a data set may lie on a device, inside a `with` block.

  Args:
    nbytes: images of more bytes are streamed, in blocks of which two take at
      most half of this (unless two steps alone take more); the other half is
      for subsets that are small enough to lie on the devices after all. None
      for the default: no limit on a CPU, whose memory is the host's, and half
      of a device's memory elsewhere.

  Raises:
    ValueError: a negative number.

  Example:
    >>> images = base.Examples.of(np.zeros((9, 2, 2, 1)), np.zeros(9, int))
    >>> with limit(100):
    ...   streams(images)
    True
  """
  holds = nbytes is None or nbytes >= 0
  base.require('nbytes', nbytes, holds, '0 or more, or None')
  token = _chosen.set(nbytes)
  try:
    yield
  finally:
    _chosen.reset(token)


def limit_bytes() -> float:
  """The limit that holds here, in bytes a device; infinite without one."""
  chosen = _chosen.get()
  if chosen is not None:
    return chosen
  device = jax.local_devices()[0]
  if device.platform == 'cpu':
    return math.inf
  known = (device.memory_stats() or {}).get('bytes_limit')
  return known / 2 if known else math.inf


def streams(examples: base.Examples) -> bool:
  """Whether the images of a set stay on the host."""
  images = examples.images
  if isinstance(images, jax.Array):
    return False
  return images.shape[0] * _row_bytes(images) > limit_bytes()


def gathered(examples: base.Examples) -> base.Examples:
  """The set with rows of its own, where these fit though the whole does not.

  Args:
    examples: a set of M examples, say a forget set that shares the images of
      a large data set.

  Returns:
    The same examples in the same order with images `[M, ...]`, if that makes
    them fit half of the limit; otherwise `examples` itself.

  Example:
    >>> few = base.Examples.of(np.eye(8), np.arange(8)).take(np.array([5, 2]))
    >>> with limit(256):
    ...   gathered(few).images.shape, gathered(few).labels.tolist()
    ((2, 8), [5, 2])
  """
  size = examples.size * _row_bytes(examples.images)
  if not streams(examples) or size > limit_bytes() / 2:
    return examples
  rows = np.asarray(examples.indices)
  own = base.Examples.of(examples.images[rows], examples.labels[rows])
  return examples._replace(
    images=own.images, labels=own.labels, indices=own.indices
  )


def _row_bytes(images: Any) -> int:
  return math.prod(images.shape[1:]) * np.dtype(images.dtype).itemsize


class Block(NamedTuple):
  """The streamed images of consecutive steps."""

  first: int  # the first step
  last: int  # the step after the last one; S = last − first
  # For each set `[D, S, P, ...]`, P images a step for each of the D devices of
  # this process; None for a set that is not streamed.
  images: tuple[Any, ...]


def _take(images: Any, rows: np.ndarray | None, first: int, last: int) -> Any:
  if images is None or rows is None:
    return None
  chosen = rows[:, first:last]
  taken = np.asarray(images[chosen.reshape(-1)])
  taken = taken.reshape(*chosen.shape, *taken.shape[1:])
  missing = last - first - chosen.shape[1]
  if not missing:
    return taken
  nothing = np.zeros((len(taken), missing, *taken.shape[2:]), taken.dtype)
  return np.concatenate([taken, nothing], 1)


class Stream:
  """How the images of some sets are cut into blocks."""

  def __init__(
    self,
    images: Sequence[Any],
    shares: Sequence[int],
    steps: int,
    even: bool = False,
  ):
    """Cuts the steps.

    Args:
      images: of each set the host array `[N, ...]`, or None for a set that is
        not streamed; at least one is.
      shares: P, the images of each set that a device takes a step.
      steps: of all blocks together, ≥ 1.
      even: makes all blocks equally long, the last one beyond `steps`.
    """
    # Imported here, not inside an epoch, whose time is measured.
    from unlearn_jax.data.extras import optional

    self._grain = optional('grain', 'images that are streamed')

    self._images = tuple(images)
    step = sum(
      share * _row_bytes(array)
      for array, share in zip(images, shares)
      if array is not None
    )
    most = max(1, int(min(limit_bytes() / 4, _LONGEST)) // max(step, 1))
    # A loop of a single step is compiled differently, and rounds differently.
    count = max(1, min(-(-steps // most), steps // 2))
    longest = -(-steps // count)
    if even:
      count = -(-steps // longest)
      steps = count * longest
    ends = [steps * number // count for number in range(count + 1)]
    self.spans = tuple(zip(ends, ends[1:]))

  def blocks(
    self,
    rows: Sequence[np.ndarray | None],
    place: Callable[[Any], Any] = lambda images: images,
    step: int = 0,
  ) -> Iterator[Block]:
    """Reads the images of an epoch, ahead of whoever takes them.

    Args:
      rows: of each set int `[D, steps, P]`, what this process's devices take
        of its images; None for a set that is not streamed.
      place: puts a tuple of `[D, S, P, ...]` onto the devices.
      step: the first block is the one that holds it.

    Returns:
      The blocks; of a step beyond those of `rows` the images are black.

    Example:
      >>> stream = Stream([np.arange(4)[:, None]], [1], steps=4)
      >>> rows = np.array([3, 2, 1, 0]).reshape(1, 4, 1)
      >>> [block.images[0].ravel().tolist() for block in stream.blocks([rows])]
      [[3, 2, 1, 0]]
    """
    spans = [span for span in self.spans if span[1] > step]

    def read(number: int) -> Block:
      span, parts = spans[number], zip(self._images, rows)
      return Block(*span, tuple(_take(*part, *span) for part in parts))

    # One block in the making beside the one that waits.
    options = self._grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    numbers = self._grain.MapDataset.range(len(spans))
    dataset = numbers.map(read).to_iter_dataset(options)
    return (block._replace(images=place(block.images)) for block in dataset)


def once(
  examples: base.Examples,
  order: np.ndarray,
  place: Callable[[Any], Any],
  even: bool = False,
) -> tuple[Any, Iterator[Block]]:
  """One pass over a set, whether it is streamed or not.

  Args:
    examples: the set.
    order: int `[D, S, P]`, the rows of `images` that each of the D devices of
      this process takes in S steps.
    place: puts `[D, S, P, ...]` onto the devices.
    even: makes all blocks of a streamed set equally long, see `Stream`.

  Returns:
    (None, blocks of the images) of a set that is streamed, else (all images,
    one block with `order` in place of its images).
  """
  _, steps, share = order.shape
  if not streams(examples):
    return examples.images, iter([Block(0, steps, (place(order),))])
  stream = Stream([examples.images], [share], steps, even)
  return None, stream.blocks([order], place)


def each(blocks: Iterator[Block], run: Callable[[Block], Any]) -> list[Any]:
  """Runs a computation on every block while the next one is on its way.

  Args:
    blocks: what is left of them.
    run: starts the computation; returns a tree of arrays, without waiting.

  Returns:
    What `run` returned, on the host. Never more than two blocks lie on the
    devices: before a third is put there, the first has been used.
  """
  results: list[Any] = []
  running: list[Any] = []
  for block in blocks:
    running.append(run(block))
    if len(running) > 1:
      results.append(jax.device_get(running.pop(0)))
  return results + jax.device_get(running)
