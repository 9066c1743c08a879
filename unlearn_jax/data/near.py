"""Images that look like forgotten ones: resaved, recompressed, recoloured.

A perceptual hash finds candidates, their pixels decide. Of the extra `copies`;
docs/auditing.md says what was measured, and why small images are left out.
"""

import hashlib
import importlib.util

import numpy as np

from unlearn_jax import base

# Sides below this have hashes that JPEG changes as much as another image does.
LEAST_SIDE = 16
# It takes some 0.3 ms an image of 32×32.
MOST_IMAGES = 100_000
_BITS = 4  # of 64, that may differ
_PIXELS = 20.0  # of 255, the root mean square that pixels may
_MADE: dict[tuple[tuple[int, ...], bytes], np.ndarray] = {}


def near_copies(splits: base.Splits) -> tuple[int, int] | None:
  """How many retained and test images look like one that is to be forgotten.

  Those that equal one are left out, `splits.copies` counts them.

  Args:
    splits: of uint8 images `[N, height, width, 1 or 3]` on the host or device.

  Returns:
    The two numbers; None where ImageHash is not installed, or for images that
    are no pictures, smaller than `LEAST_SIDE`, or more than `MOST_IMAGES`.

  Example:
    >>> every = base.Examples.of(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 1])
    >>> print(near_copies(base.Splits.of(every, [0], every)))  # Too small.
    None
  """
  parts = splits.forget, splits.retain, splits.test
  if not importlib.util.find_spec('imagehash') or not all(map(_fits, parts)):
    return None
  (lost, wanted), *others = map(_hashed, parts)
  retain, test = (_count(lost, wanted, *other) for other in others)
  return retain, test


def _fits(part: base.Examples) -> bool:
  shape, kind = part.images.shape, part.images.dtype
  picture = kind == np.uint8 and len(shape) == 4 and shape[3] in (1, 3)
  few = shape[0] <= MOST_IMAGES
  return picture and few and min(shape[1:3]) >= LEAST_SIDE


def _hashed(part: base.Examples) -> tuple[np.ndarray, np.ndarray]:
  """Images and hashes of a part."""
  images, rows = np.asarray(part.images), np.asarray(part.indices)
  return images[rows], _hashes(images)[rows]


def _hashes(images: np.ndarray) -> np.ndarray:
  """uint64 `[N]`; of the same pixels they are made once."""
  from imagehash import phash  # Of an extra, and slow to load.
  from PIL import Image

  key = images.shape, hashlib.sha256(np.ascontiguousarray(images).data).digest()
  if key not in _MADE:
    pictures = images[..., 0] if images.shape[3] == 1 else images
    bits = [phash(Image.fromarray(x)).hash.ravel() for x in pictures]
    made = np.packbits(np.array(bits), axis=1).view(np.uint64)[:, 0]
    while len(_MADE) >= 2:  # Of the training images, and the test images.
      del _MADE[next(iter(_MADE))]
    _MADE[key] = made
  return _MADE[key]


def _count(
  lost: np.ndarray, wanted: np.ndarray, images: np.ndarray, hashes: np.ndarray
) -> int:
  """How many images are near one of `lost`, and equal to none of them."""
  near, equal = np.zeros(len(images), bool), np.zeros(len(images), bool)
  for image, own in zip(lost, wanted):
    rows = np.flatnonzero(np.bitwise_count(hashes ^ own) <= _BITS)
    apart = (images[rows].astype(np.float32) - image) ** 2
    apart = np.sqrt(apart.mean((1, 2, 3)))
    near[rows] |= apart <= _PIXELS
    equal[rows] |= apart == 0
  return int((near & ~equal).sum())
