"""Small models are trained for an epoch on real images, saved and restored."""

import jax
import numpy as np
import pytest

from unlearn_jax import checkpoints, data, models, parallel, training
from unlearn_jax.base import Examples
from unlearn_jax.data import images
from unlearn_jax.prediction import predict

# A width that compiles and trains in seconds. The others are held to stored
# numbers by `models_test`: their training is the same loop, and dear.
WIDTHS = {'cnn': 4, 'resnet9': 8}


def digits(count=96):
  """Digits as 32×32 images of three channels."""
  small = data.load('digits').train
  pixels = np.asarray(small.images[:count]).repeat(4, 1).repeat(4, 2)
  return Examples.of(pixels.repeat(3, 3), np.asarray(small.labels[:count]))


@pytest.mark.parametrize('name', WIDTHS)
def test_trains_saves_restores_and_says_the_same_on_four_devices(
  name, tmp_path
):
  examples = digits()
  mean, std = images.pixel_statistics(examples)
  model = models.build(
    name, 10, (32, 32, 3), width=WIDTHS[name], mean=mean, std=std
  )
  with parallel.use(jax.devices()[:1]):
    fit = training.train(
      jax.random.key(0), model, examples, epochs=3, batch_size=32
    )
    one = predict(model, fit.state, examples, batch_size=32)
  assert all(np.isfinite(epoch.loss) for epoch in fit.history[1:])
  assert fit.history[-1].loss < fit.history[1].loss
  for leaf in jax.tree.leaves(fit.state):
    assert np.isfinite(leaf).all()

  checkpoints.save(tmp_path / 'model', fit.state, {'model': name})
  restored, _ = checkpoints.restore(tmp_path / 'model', model=name)
  for a, b in zip(
    jax.tree.leaves(fit.state), jax.tree.leaves(restored), strict=True
  ):
    np.testing.assert_array_equal(a, b, strict=True)

  with parallel.use(jax.devices()[:4]):
    four = predict(model, restored, examples, batch_size=32)
  np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-6)
  assert (one.argmax(-1) == four.argmax(-1)).all()
