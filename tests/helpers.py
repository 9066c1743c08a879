"""A small problem with BatchNorm that trains in a second."""

from flax import linen as nn
import numpy as np

from unlearn_jax import finetuning, models, objectives, training
from unlearn_jax.base import Context, Examples, Splits
from unlearn_jax.models import layers


class Clock:
  """A clock that stands still unless a test moves it; in place of `time`."""

  now = 0.0

  def monotonic(self):
    return self.now


class Tiny(layers.Classifier):
  """Two convolutions under BatchNorm, and a classifier."""

  num_classes: int = 3
  width: int = 4

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(self.norm(self.conv(4, 3, name='conv1')(x), train, 'bn1'))
    x = nn.relu(self.norm(self.conv(6, 3, 2, 'conv2')(x), train, 'bn2'))
    return self.classify(layers.mean_over_pixels(x))


def model():
  return models.from_linen(
    Tiny(), (6, 6, 1), mean=(0.5,), std=(0.25,), scale=255
  )


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


def flip(path):
  """Changes one bit in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def cut(path):
  """Leaves the first half of a file."""
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


# What can happen to a file.
HARMS = {'flipped': flip, 'cut': cut, 'missing': lambda path: path.unlink()}


def files(folder):
  """Every file below a folder, sorted."""
  return sorted(path for path in folder.rglob('*') if path.is_file())


def stripes_file(folder, train=240, test=60):
  """An npz file of such stripes, one channel: trained in a second."""
  rng, count = np.random.default_rng(0), train + test
  labels = rng.integers(0, 3, count)
  images = rng.normal(90, 25, (count, 6, 6))
  for image, label in zip(images, labels):
    image[2 * label : 2 * label + 2] += 60
  images = images.clip(0, 255).astype(np.uint8)
  path = folder / 'stripes.npz'
  np.savez(
    path,
    x_train=images[:train],
    y_train=labels[:train],
    x_test=images[train:],
    y_test=labels[train:],
  )
  return path


def finetune(key, model, state, splits, *, teacher, js_weight=0.1, **options):
  """JS-guided fine-tuning of a state, with any teacher or none."""
  options = {'optimizer': training.adam(1e-3), **options}
  guide = 'none' if teacher is None else 'source'
  return finetuning.minimize(
    Context(key, model, teacher or state, splits),
    state,
    objectives.guided(js_weight, guide),
    **options,
  )
