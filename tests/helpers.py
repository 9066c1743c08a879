"""A small problem with BatchNorm that trains in a second."""

from flax import linen as nn
import numpy as np

from unlearn_jax import models
from unlearn_jax.base import Examples, Splits


class Tiny(nn.Module):
  """Two convolutions, one of them under BatchNorm, and a classifier."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train):
    x = models.layers.conv(4, 3, name='conv1')(x)
    x = nn.relu(models.layers.norm(self.axis_name, 'bn1')(x, not train))
    x = models.layers.conv(6, 3, 2, name='conv2')(x)
    x = nn.relu(models.layers.norm(self.axis_name, 'bn2')(x, not train))
    return nn.Dense(3, name='linear')(x.mean((1, 2)))


def model():
  return models.from_linen(Tiny(), (6, 6, 1), mean=(0.5,), std=(0.25,))


def splits(count=96, forget=16, seed=0):
  """Three classes of noisy stripes; the last rows are the test set."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, count + 48).astype(np.int32)
  images = rng.normal(100, 25, (count + 48, 6, 6, 1))
  for image, label in zip(images, labels):
    image[2 * label : 2 * label + 2] += 60
  images = images.clip(0, 255).astype(np.uint8)
  every = Examples.of(images, labels)
  train = every.take(np.arange(count))
  return Splits(
    train=train,
    forget=train.take(np.arange(forget)),
    retain=train.take(np.arange(forget, count)),
    test=every.take(np.arange(count, count + 48)),
  )
