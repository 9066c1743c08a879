"""A small model is trained on real images, saved and restored."""

import jax
import numpy as np

from unlearn_jax import checkpoints, data, models, parallel, training
from unlearn_jax.base import Examples
from unlearn_jax.data import images
from unlearn_jax.prediction import predict


def digits(count=96):
  """Digits as 32×32 images of three channels."""
  small = data.load('digits').train
  pixels = np.asarray(small.images[:count]).repeat(4, 1).repeat(4, 2)
  return Examples.of(pixels.repeat(3, 3), np.asarray(small.labels[:count]))


def test_trains_saves_restores_and_says_the_same_on_four_devices(tmp_path):
  """The others are held to stored numbers by `models_test`."""
  examples = digits()
  mean, std = images.pixel_statistics(examples)
  model = models.build('resnet9', 10, (32, 32, 3), width=8, mean=mean, std=std)
  with parallel.use(jax.devices()[:1]):
    fit = training.train(
      jax.random.key(0), model, examples, epochs=3, batch_size=32
    )
    one = predict(model, fit.state, examples, batch_size=32)
  assert all(np.isfinite(epoch.loss) for epoch in fit.history[1:])
  assert fit.history[-1].loss < fit.history[1].loss
  for leaf in jax.tree.leaves(fit.state):
    assert np.isfinite(leaf).all()

  checkpoints.save(tmp_path / 'model', fit.state, {'model': 'resnet9'})
  restored, _ = checkpoints.restore(tmp_path / 'model', model='resnet9')
  for a, b in zip(
    jax.tree.leaves(fit.state), jax.tree.leaves(restored), strict=True
  ):
    np.testing.assert_array_equal(a, b, strict=True)

  with parallel.use(jax.devices()[:4]):
    four = predict(model, restored, examples, batch_size=32)
  np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-6)
  assert (one.argmax(-1) == four.argmax(-1)).all()
