"""Statistics, standardising and augmentation against plain NumPy."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import base, data
from unlearn_jax.data import images as images_module


def random_images(shape, seed=0) -> np.ndarray:
  return np.random.RandomState(seed).randint(1, 256, shape, np.uint8)


def test_pixel_statistics():
  images = random_images((300, 6, 5, 3)) // np.array([1, 2, 4], np.uint8)
  examples = base.Examples.of(images, np.zeros(300, np.int32))
  for chosen in (examples, examples.take(np.arange(10, 200))):
    mean, std = data.pixel_statistics(chosen)
    pixels = images[chosen.indices].astype(np.float64) / 255
    assert mean.dtype == std.dtype == jnp.float32
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_pixel_statistics_of_many_pixels():
  # A float32 sum over so many loses digits if it is done plainly.
  images = np.full((30000, 32, 32, 1), 200, np.uint8)
  images[::3] = 201
  examples = base.Examples.of(images, np.zeros(30000, np.int32))
  mean, std = data.pixel_statistics(examples)
  pixels = images[:, 0, 0, 0].astype(np.float64) / 255
  np.testing.assert_allclose(mean, [pixels.mean()], rtol=1e-6)
  np.testing.assert_allclose(std, [pixels.std()], rtol=1e-4)


def test_a_constant_channel_is_not_blown_up():
  images = np.full((4, 2, 2, 1), 77, np.uint8)
  mean, std = data.pixel_statistics(base.Examples.of(images, np.zeros(4, int)))
  assert std.tolist() == [np.float32(images_module.MIN_STD)]


def windows(image: np.ndarray, pad: int) -> dict[bytes, tuple]:
  """Every result that padding, cropping and flipping can have."""
  height, width, _ = image.shape
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  results = {}
  for top in range(2 * pad + 1):
    for left in range(2 * pad + 1):
      crop = padded[top : top + height, left : left + width]
      results[crop.tobytes()] = (top, left, False)
      results[crop[:, ::-1].tobytes()] = (top, left, True)
  return results


@pytest.mark.parametrize(
  ('shape', 'pad'), [((400, 6, 5, 3), 1), ((9, 3, 4, 1), 5), ((40, 4, 7, 2), 0)]
)
def test_augment_draws_among_all_windows(shape, pad):
  images = random_images(shape)
  augment = jax.jit(data.augment, static_argnums=2)
  result = augment(jax.random.key(0), images, pad)
  assert result.dtype == jnp.uint8 and result.shape == shape
  drawn = []
  for before, after in zip(images, np.asarray(result)):
    choices = windows(before, pad)
    assert after.tobytes() in choices
    drawn.append(choices[after.tobytes()])
  if shape[0] == 400:  # Enough to see each of the 18 about 22 times.
    assert len(set(drawn)) == 18
    tops, lefts, flips = np.array(drawn).T
    for values in (tops, lefts):
      assert np.abs(np.bincount(values) - 400 / 3).max() < 5 * 9.5
    assert abs(flips.sum() - 200) < 5 * 10
    # The three are drawn independently of each other.
    correlation = np.corrcoef([tops, lefts, flips]) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(400)


def test_augment_under_jit_and_scan():
  images = random_images((16, 8, 8, 3))
  keys = jax.random.split(jax.random.key(1), 3)
  plain = [data.augment(key, images) for key in keys]
  _, scanned = jax.jit(
    lambda keys: jax.lax.scan(
      lambda carry, key: (carry, data.augment(key, images)), None, keys
    )
  )(keys)
  np.testing.assert_array_equal(scanned, np.stack(plain))
  assert (plain[0] != plain[1]).any()


def test_augment_refuses():
  with pytest.raises(ValueError, match=r'\(8, 8, 3\), allowed: '):
    data.augment(jax.random.key(0), np.zeros((8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match='pad=-1, allowed'):
    data.augment(jax.random.key(0), np.zeros((1, 8, 8, 3), np.uint8), -1)


def test_statistics_do_not_depend_on_where_images_lie_or_their_order():
  images = random_images((2500, 5, 4, 3))
  here = base.Examples.of(images, np.zeros(2500, np.int32))
  there = here._replace(images=jnp.asarray(images))
  shuffled = here.take(np.random.default_rng(0).permutation(2500))
  for other in (there, shuffled):
    for a, b in zip(
      data.pixel_statistics(here), data.pixel_statistics(other), strict=True
    ):
      np.testing.assert_array_equal(a, b)


def test_pixel_statistics_take_memory_by_bytes_and_not_by_images(monkeypatch):
  monkeypatch.setattr(images_module, '_PIECE', 2**16)
  images = np.zeros((256, 128, 128, 3), np.uint8)
  examples = base.Examples.of(images, np.zeros(256, int))
  tracemalloc.start()
  try:
    data.pixel_statistics(examples)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 10 * 8 * images[0].size < images.size / 3
