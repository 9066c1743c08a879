from typing import NamedTuple

import helpers
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.base import ModelState, tensor_paths

# name: (image shape, tensors, parameters, in the last 5, in the last 10).
SIZES = {
  'cnn': ((8, 8, 1), 11, 24_058, 19_210, 23_914),
  'resnet9': ((32, 32, 3), 26, 2_563_522, 592_906, 1_183_754),
  'resnet18': ((32, 32, 3), 62, 11_173_962, 2_365_450, 4_726_794),
  'vgg19': ((32, 32, 3), 66, 20_040_522, 6_666, 4_726_794),
  'densenet121': ((32, 32, 3), 362, 6_956_298, 49_162, 178_378),
  'googlenet': ((32, 32, 3), 258, 6_166_250, 10_634, 264_970),
}


def test_no_model_escapes_the_table_of_sizes():
  assert set(SIZES) == set(models.FAMILIES)


@pytest.mark.parametrize('name', SIZES)
def test_sizes(name):
  shape, tensors, parameters, last_5, last_10 = SIZES[name]
  model = models.build(name, 10, shape)
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  sizes = {
    path: leaf.size
    for path, leaf in zip(tensor_paths(params), jax.tree.leaves(params))
  }
  assert len(sizes) == tensors
  assert sum(sizes.values()) == parameters
  assert sorted(model.order) == sorted(sizes)
  assert sum(sizes[path] for path in model.order[-5:]) == last_5
  assert sum(sizes[path] for path in model.order[-10:]) == last_10


@pytest.mark.parametrize('name', SIZES)
def test_bfloat16_is_for_activations_only(name):
  """Convolutions take bfloat16; what is stored or summed up is float32."""
  model = models.build(name, 10, SIZES[name][0], dtype='bfloat16')
  state = jax.eval_shape(model.init, jax.random.key(0))

  def loss(params, stats, images, labels):
    logits, stats = model.apply(ModelState(params, stats), images, True)
    return model.loss(logits, labels).mean(), (logits, stats)

  images = jax.ShapeDtypeStruct((2, *SIZES[name][0]), jnp.uint8)
  labels = jax.ShapeDtypeStruct((2,), jnp.int32)
  arguments = (state.params, state.batch_stats, images, labels)
  step = jax.value_and_grad(loss, has_aux=True)
  for leaf in jax.tree.leaves((state, jax.eval_shape(step, *arguments))):
    assert leaf.dtype == jnp.float32
  convolved = [
    operand.aval.dtype
    for equation in _equations(jax.make_jaxpr(step)(*arguments).jaxpr)
    if equation.primitive.name == 'conv_general_dilated'
    for operand in equation.invars
  ]
  assert convolved and set(convolved) == {jnp.dtype('bfloat16')}


def _equations(jaxpr):
  """All equations, those of inner functions too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _equations(inner)


def test_order_is_that_of_definition_not_of_names():
  order = helpers.model().order
  assert order[:3] == ('conv1/kernel', 'bn1/scale', 'bn1/bias')
  assert order[-2:] == ('linear/kernel', 'linear/bias')
  assert list(order) != sorted(order)


def test_order_of_plain_dictionaries_lists_and_tuples():
  class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array

  def init(key):
    del key
    one = jnp.ones(1)
    return {'z': Layer(one, one), 'a': [{'w': one, 'b': one}, (one, one)]}

  order = models.definition_order(init)
  assert order == ('z/w', 'z/b', 'a/0/w', 'a/0/b', 'a/1/0', 'a/1/1')
  params = init(jax.random.key(0))
  assert sorted(order) == sorted(tensor_paths(params))


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'name': 'resnet19'},
      "name='resnet19', allowed: cnn, densenet121, googlenet, resnet18,",
    ),
    ({'dtype': 'float16'}, "dtype='float16', allowed: float32, bfloat16"),
    ({'num_classes': 1}, 'num_classes=1, allowed: 2 or more'),
    ({'width': 0}, 'width=0, allowed: 1 or more'),
    ({'image_shape': (2, 9, 1)}, 'sides of at least 4 pixels'),
  ],
)
def test_bad_values_are_named(changes, message):
  arguments = {'name': 'cnn', 'num_classes': 10, 'image_shape': (8, 8, 1)}
  with pytest.raises(ValueError, match=message):
    models.build(**{**arguments, **changes})


def test_pixels_are_standardised_inside():
  model = models.from_linen(_Sum(), (2, 2, 1), mean=(0.2,), std=(0.5,))
  image = np.full((1, 2, 2, 1), 51, np.uint8)
  logits, _ = model.apply(ModelState({}), image, False)
  np.testing.assert_allclose(logits, [[0.0, 0.0]], atol=1e-6)
  logits, _ = model.apply(ModelState({}), 255 * np.ones((1, 2, 2, 1)), False)
  np.testing.assert_allclose(logits, [[6.4, -6.4]], rtol=1e-6)


class _Sum(helpers.nn.Module):
  @helpers.nn.compact
  def __call__(self, x, train):
    total = x.sum((1, 2, 3))
    return jnp.stack([total, -total], -1)


def test_digits_are_learned_to_97_percent():
  from unlearn_jax import data, training
  from unlearn_jax.data import images
  from unlearn_jax.prediction import predict

  digits = data.load('digits')
  mean, std = images.pixel_statistics(digits.train)
  model = models.build('cnn', 10, digits.image_shape, mean=mean, std=std)
  fit = training.train(
    jax.random.key(0), model, digits.train, epochs=12, batch_size=64
  )
  chosen = predict(model, fit.state, digits.test).argmax(-1)
  assert (chosen == digits.test.labels).mean() >= 0.97
