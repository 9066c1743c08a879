"""Small leaves joined, and samples of large ones.

Most leaves of a network are tiny, and each that a search reads is compiled on
its own. So the smallest are copied into one array, as long as this costs
little memory.
"""

from collections.abc import Sequence
import itertools

import jax
import jax.numpy as jnp

from unlearn_jax.masks import keys
from unlearn_jax.masks.pieces import Piece

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
  """Which leaves are joined or sorted."""
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


def sample(leaves: Sequence[Piece], wide: jnp.dtype, total: int) -> jax.Array:
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


def by_sorting(
  leaves: Sequence[Piece], k: jax.Array, wide: jnp.dtype
) -> dict[int, jax.Array]:
  """Masks of the small leaves, each with a k of its own.

  Args:
    leaves: pieces that can be reshaped.
    k: uint32 `[L]`.
    wide: a dtype that holds the numbers of every leaf.

  Returns:
    From the index of a small leaf to its mask.
  """

  def padded(i):
    return 1 << max(leaves[i].size - 1, 0).bit_length()

  masks = {}
  chosen = sorted(sorted(_small(leaves)), key=padded)
  for length, members in itertools.groupby(chosen, key=padded):
    rows = list(members)
    stacked = []
    for i in rows:
      key = keys.widen(
        leaves[i].keys().reshape(-1), leaves[i].dtype or wide, wide
      )
      # Padding has the lowest key and comes last, so nothing is behind it.
      stacked.append(jnp.pad(key, (0, length - key.size)))
    order = jnp.argsort(~jnp.stack(stacked), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    for row, i in enumerate(rows):
      mask = rank[row, : leaves[i].size] < k[i]
      masks[i] = mask.reshape(leaves[i].shape)
  return masks
