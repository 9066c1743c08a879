"""Copies of forgotten images that are no longer the same bytes."""

import io
import types

import numpy as np
from PIL import Image
import pytest

from experiments.study import setup as setups
from unlearn_jax.base import Examples, Splits
from unlearn_jax.data import near

pytest.importorskip('imagehash')  # Of the extras `copies` and `test`.


def pictures(count, side=32, seed=0):
  """Coloured shapes without noise, unlike each other."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
  size = side, side
  return np.stack([np.asarray(Image.fromarray(x).resize(size)) for x in small])


def resaved(image, quality):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'JPEG', quality=quality)
  return np.asarray(Image.open(file))


def splits_of(images, forget=(0, 1)):
  every = Examples.of(images, np.arange(len(images)) % 2)
  half = len(images) // 2
  test = every.take(np.arange(half, len(images)))
  return Splits.of(every.take(np.arange(half)), list(forget), test)


@pytest.mark.parametrize('quality', [95, 75, 50])
def test_what_was_resaved_is_found_and_nothing_else(quality):
  images = pictures(80)
  assert near.near_copies(splits_of(images)) == (0, 0)
  images[7] = resaved(images[0], quality)
  images[60] = resaved(images[1], quality)
  images[61] = np.clip(images[0] * 0.97, 0, 255)  # A little darker.
  images[62] = images[1]  # The very same is counted elsewhere.
  assert (images[7] != images[0]).any() and (images[60] != images[1]).any()
  assert near.near_copies(splits_of(images)) == (1, 2)


def test_a_like_hash_is_not_enough():
  images = pictures(80)
  images[7] = images[0] // 3  # The same hash, and another image.
  assert near.near_copies(splits_of(images)) == (0, 0)


@pytest.mark.parametrize(
  'images',
  [
    pictures(8, side=near.LEAST_SIDE - 1),
    pictures(8).astype(np.float32),
    pictures(8)[..., :2],
    pictures(8).reshape(8, -1),
  ],
)
def test_nothing_is_said_of_what_has_no_hash(images):
  images[1] = images[0]
  assert near.near_copies(splits_of(images)) is None


def test_nothing_is_said_without_the_extra(monkeypatch):
  splits = splits_of(pictures(8))
  assert near.near_copies(splits) is not None
  monkeypatch.setattr(near.importlib.util, 'find_spec', lambda name: None)
  assert near.near_copies(splits) is None


def test_other_images_of_the_same_shape_have_hashes_of_their_own():
  for seed in range(4):
    images = pictures(8, seed=seed)
    images[3] = resaved(images[0], 90)
    assert near.near_copies(splits_of(images)) == (1, 0)


def test_a_run_warns_of_them():
  images = pictures(20)
  images[5] = resaved(images[1], 75)
  setup = types.SimpleNamespace(
    dataset=types.SimpleNamespace(class_names=('a', 'b'))
  )
  (line,) = setups.cautions(setup, {0: splits_of(images)})
  assert line.startswith('1 retained and 0 test images look like one that is')
