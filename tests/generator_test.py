"""The generator's layers, its sizes, and up-sampling against a reference."""

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models, training
from unlearn_jax.base import ModelState
from unlearn_jax.models.generator import Generator, depth_to_space

PAPER = {
  'conv1/bias': (2,),
  'conv1/kernel': (3, 3, 3, 2),
  'conv2/kernel': (3, 3, 2, 4),
  'bn2/bias': (4,),
  'bn2/scale': (4,),
  'conv3/kernel': (3, 3, 4, 8),
  'bn3/bias': (8,),
  'bn3/scale': (8,),
  'up1/kernel': (3, 3, 8, 16),
  'bn4/bias': (4,),
  'bn4/scale': (4,),
  'up2/bias': (8,),
  'up2/kernel': (3, 3, 4, 8),
  'conv4/bias': (3,),
  'conv4/kernel': (3, 3, 2, 3),
}


def test_the_layers_are_the_papers_in_order():
  model = models.from_linen(
    Generator(channels=3, width=2), (8, 8, 3), scale=255
  )
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  shapes = {
    f'{layer}/{name}': leaf.shape
    for layer, tensors in params.items()
    for name, leaf in tensors.items()
  }
  assert shapes == PAPER
  layers = dict.fromkeys(path.split('/')[0] for path in model.order)
  assert list(layers) == [
    *('conv1', 'conv2', 'bn2', 'conv3', 'bn3'),
    *('up1', 'bn4', 'up2', 'conv4'),
  ]


@pytest.mark.parametrize(
  'shape', [(1, 1, 1), (5, 6, 3), (8, 8, 1), (7, 4, 4), (32, 32, 3)]
)
def test_any_size_and_channels_come_out_as_they_went_in(shape):
  module = Generator(channels=shape[-1], width=2)
  model = models.from_linen(module, shape, scale=255)
  state = jax.eval_shape(model.init, jax.random.key(0))
  for train in (False, True):
    out, stats = jax.eval_shape(
      lambda s, x: model.apply(s, x, train),
      state,
      jax.ShapeDtypeStruct((2, *shape), jnp.uint8),
    )
    assert out.shape == (2, *shape) and out.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes(stats, state.batch_stats)


def test_outputs_are_within_the_bound_and_reach_it():
  module = Generator(channels=1, width=2, bound=8.0)
  model = models.from_linen(module, (6, 6, 1), scale=255)
  state = training.initialize(jax.random.key(0), model)
  large = ModelState(
    jax.tree.map(lambda x: 100 * x, state.params), state.batch_stats
  )
  apply = jax.jit(model.apply, static_argnums=2)
  out, _ = apply(large, jnp.full((1, 6, 6, 1), 255.0), False)
  assert float(jnp.abs(out).max()) == 8.0


def test_depth_to_space_of_four_pixels():
  x = jnp.arange(8.0).reshape(1, 1, 2, 4)
  rows = [[0, 1, 4, 5], [2, 3, 6, 7]]
  assert depth_to_space(x)[0, :, :, 0].tolist() == rows
  # Two channels: those of one pixel stay together.
  x = jnp.arange(8.0).reshape(1, 1, 1, 8)
  expected = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
  assert depth_to_space(x)[0].tolist() == expected


def test_up_sampling_is_a_transposed_convolution():
  """Of a 6×6 kernel and stride 2, put together from the 3×3 one's channels."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 3, 4 * 2)).astype(np.float32)
  layout = ('NHWC', 'HWIO', 'NHWC')
  got = depth_to_space(
    lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout
    )
  )
  # Output pixel 2i + a takes input pixel i + u − 1 by tap u of group a; in a
  # convolution of the input spread by 2 that is tap 2u + (1 − a).
  whole = np.zeros((6, 6, 3, 2), np.float32)
  parts = kernel.reshape(3, 3, 3, 2, 2, 2)
  for a in range(2):
    for b in range(2):
      whole[1 - a :: 2, 1 - b :: 2] = parts[:, :, :, a, b]
  expected = lax.conv_general_dilated(
    x,
    whole,
    (1, 1),
    ((3, 3), (3, 3)),
    lhs_dilation=(2, 2),
    dimension_numbers=layout,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
