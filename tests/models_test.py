import json
import pathlib
from typing import NamedTuple

from flax import linen as nn
import helpers
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models
from unlearn_jax.base import ModelState, tensor_paths
from unlearn_jax.models import densenet, googlenet, vit

STORED = pathlib.Path(__file__).with_name('models.json')

# name: (image shape, tensors, parameters, in the last 5, in the last 10).
SIZES = {
  'cnn': ((8, 8, 1), 11, 24_058, 19_210, 23_914),
  'resnet9': ((32, 32, 3), 26, 2_563_522, 592_906, 1_183_754),
  'resnet18': ((32, 32, 3), 62, 11_173_962, 2_365_450, 4_726_794),
  'vgg19': ((32, 32, 3), 66, 20_040_522, 6_666, 4_726_794),
  'densenet121': ((32, 32, 3), 362, 6_956_298, 49_162, 178_378),
  'googlenet': ((32, 32, 3), 258, 6_166_250, 10_634, 264_970),
  'vit_ti': ((32, 32, 3), 152, 5_489_482, 2_506, 298_570),
  'vit_s': ((32, 32, 3), 152, 21_595_786, 5_002, 1_186_954),
}
# Narrower than that they can be.
NARROW = {'vit_ti': 12, 'vit_s': 12}


@pytest.fixture
def shallow(monkeypatch):
  """Of what a network repeats, less: `test_sizes` sees how often it does."""
  monkeypatch.setattr(densenet, '_BLOCKS', (2, 1, 1, 1))
  few = googlenet._INCEPTIONS
  few = *few[: few.index(None) + 1], few[-1]
  monkeypatch.setattr(googlenet, '_INCEPTIONS', few)
  monkeypatch.setattr(vit, '_DEPTH', 2)


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
def test_bfloat16_is_for_activations_only(name, shallow):
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
  jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(*arguments)
  for leaf in jax.tree.leaves((state, shapes)):
    assert leaf.dtype == jnp.float32
  convolved = [
    operand.aval.dtype
    for equation in _equations(jaxpr.jaxpr)
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
    ({'patch_size': 2}, 'patch_size=2, allowed: none for cnn'),
    ({'name': 'vit_s', 'width': 9}, 'width=9, allowed: a multiple of 6, the'),
    (
      {'name': 'vit_ti'},
      'patch_size=16, allowed: what divides both sides of the images: 1, 2, 4',
    ),
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
  logits, _ = model.apply(ModelState({}), np.ones((1, 2, 2, 1)), False)
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


# What they compute: worked by hand, and stored.


def waves(tree, scale=1.0):
  """Values in the place of drawn ones: the same wherever and whenever."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef.unflatten(
    [
      np.sin(np.arange(leaf.size) * 1.3 + number).reshape(leaf.shape)
      * (scale / max(1, np.prod(leaf.shape[:-1])) ** 0.5)
      for number, leaf in enumerate(leaves)
    ]
  )


def waved(name):
  """A narrow model: kernels are waves, BatchNorm's numbers are near 1."""
  width = NARROW.get(name, 4)
  model = models.build(name, 3, SIZES[name][0], width=width)
  state = jax.eval_shape(model.init, jax.random.key(0))

  def value(path, leaf, wave):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return wave + 1 if name.endswith(('scale', 'var')) else wave

  waved = jax.tree_util.tree_map_with_path(
    value, state, ModelState(waves(state.params, 2.0), waves(state[1], 0.3))
  )
  return model, jax.tree.map(jnp.float32, waved)


def computed(name):
  """Logits in evaluation mode; in training mode, with the new statistics."""
  model, state = waved(name)
  shape = (2, *SIZES[name][0])
  images = np.uint8(127 + 127 * np.sin(np.arange(np.prod(shape)) * 0.7))
  images = images.reshape(shape)

  def both(state, images):
    logits, _ = model.apply(state, images, False)
    return logits, *model.apply(state, images, True)

  # Compiling costs far more than running.
  quick = {'xla_backend_optimization_level': '0'}
  program = jax.jit(both, compiler_options=quick)
  logits, trained, stats = program(state, images)
  sums = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(stats)]
  return {
    'logits': np.ravel(logits).tolist(),
    'training': np.ravel(trained).tolist(),
    'statistics': [*sums[:1], *sums[-1:], sum(sums)],
  }


@pytest.mark.parametrize('name', SIZES)
def test_models_compute_what_they_did(name, shallow):
  """To store them anew: `json.dumps({n: computed(n) for n in SIZES})`."""
  stored = json.loads(STORED.read_text())[name]
  for what, values in computed(name).items():
    np.testing.assert_allclose(
      values, stored[what], rtol=2e-3, atol=2e-3, err_msg=f'{name}: {what}'
    )
  assert np.std(stored['logits']) > 1e-2, 'these say nothing'


def with_kernels(state, kernels, **scalars):
  """All else 0, BatchNorm the identity, but for its 1e-5 under the root."""

  def value(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for ending, array in kernels.items():
      if name.endswith(ending):
        return jnp.broadcast_to(jnp.float32(array), leaf.shape)
    return jnp.full(leaf.shape, float(name.endswith(('scale', 'var'))))

  return ModelState(
    *(jax.tree_util.tree_map_with_path(value, tree) for tree in state)
  )


# A 3×3 kernel that hands on what is at its centre.
CENTRE = np.zeros((3, 3, 1, 1))
CENTRE[1, 1] = 1


def blank(name):
  model = models.build(name, 2, (32, 32, 1), width=1, mean=(0,), std=(1,))
  return model, jax.eval_shape(model.init, jax.random.key(0))


def test_resnet18_without_residuals_hands_its_input_on():
  """Through eight shortcuts, of which three are convolutions of 1×1."""
  model, state = blank('resnet18')
  state = with_kernels(state, {'linear/kernel': 1})
  state.params['conv1']['kernel'] = jnp.float32(CENTRE)
  for stage, wide in enumerate((1, 2, 4), 2):
    kernel = np.zeros((1, 1, wide, 2 * wide), np.float32)
    kernel[0, 0, 0, 0] = 1
    state.params[f'layer{stage}_0']['shortcut_conv']['kernel'] = kernel
  logits, _ = model.apply(state, np.full((1, 32, 32, 1), 255, np.uint8), False)
  np.testing.assert_allclose(logits, [[1, 1]], rtol=1e-4)


def test_vgg19_pools_by_the_maximum():
  """One bright pixel is as bright behind five pools; its mean is 1/1024."""
  model, state = blank('vgg19')
  state = with_kernels(state, {'linear/kernel': 1})
  for path in tensor_paths(state.params):
    if path.startswith('conv') and path.endswith('kernel'):
      layer = state.params[path.split('/')[0]]
      kernel = np.zeros(layer['kernel'].shape, np.float32)
      kernel[1, 1, 0, 0] = 1
      layer['kernel'] = kernel
  image = np.zeros((1, 32, 32, 1), np.uint8)
  image[0, 9, 20] = 255
  logits, _ = model.apply(state, image, False)
  np.testing.assert_allclose(logits, [[1, 1]], rtol=1e-3)


def test_a_bottleneck_normalises_and_rectifies_before_each_convolution():
  """−1 is cut off; were it not, a kernel of −1 would hand on 1."""
  block = densenet.Bottleneck(growth=1)
  state = jax.eval_shape(
    lambda: block.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)), False)
  )
  kernels = {
    'conv1/kernel': -1,
    'conv2/kernel': np.broadcast_to(CENTRE, (3, 3, 4, 1)),
  }
  made = with_kernels(
    ModelState(state['params'], state['batch_stats']), kernels
  )
  variables = {'params': made.params, 'batch_stats': made.batch_stats}
  for value in (-1.0, 1.0):
    out = block.apply(variables, jnp.full((1, 4, 4, 1), value), False)
    assert out[..., 0].tolist() == np.zeros((1, 4, 4)).tolist()
    assert (out[..., 1] == value).all()


def test_the_pooled_branch_of_an_inception_pools():
  """A bright pixel spreads to the nine around it in the last branch only."""
  block = googlenet.Inception(features=(1, 1, 1, 1, 1, 1))
  state = jax.eval_shape(
    lambda: block.init(jax.random.key(0), jnp.ones((1, 5, 5, 1)), False)
  )
  kernels = {
    'b1_conv/kernel': 1, 'in_conv/kernel': 1, 'b4_conv/kernel': 1,
    'conv/kernel': CENTRE,
  }  # fmt: skip
  made = with_kernels(
    ModelState(state['params'], state['batch_stats']), kernels
  )
  x = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2].set(1.0)
  out = block.apply(
    {'params': made.params, 'batch_stats': made.batch_stats}, x, False
  )
  assert (out > 0.5).sum((0, 1, 2)).tolist() == [1, 1, 1, 9]


@pytest.mark.parametrize('name', ['cnn', 'resnet18'])
def test_statistics_move_by_a_tenth_a_step(name):
  """Of constant activations the variance is 0: 0.9 remain of 1."""
  model = models.build(name, 3, SIZES[name][0], width=4)
  state = with_kernels(jax.eval_shape(model.init, jax.random.key(0)), {})
  images = np.zeros((1, *SIZES[name][0]), np.uint8)
  _, stats = jax.jit(lambda s: model.apply(s, images, True))(state)
  for path, leaf in zip(tensor_paths(stats), jax.tree.leaves(stats)):
    want = 0.9 if path.endswith('var') else 0.0
    np.testing.assert_allclose(leaf, want, atol=1e-6, err_msg=path)


def test_the_order_of_mappings_that_are_no_dict():
  from flax import nnx
  from flax.core import FrozenDict

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.stem = nnx.Linear(2, 3, rngs=rngs)
      self.head = nnx.Linear(3, 2, rngs=rngs)

  def frozen(key):
    inner = FrozenDict({'z': jnp.ones(1), 'y': jnp.ones(2)})
    return FrozenDict({'b': jnp.ones(1), 'a': inner})

  assert models.definition_order(frozen) == ('b', 'a/z', 'a/y')
  # NNX sorts by name: EU-K would work on the stem.
  with pytest.raises(
    ValueError, match='^params is a State, whose order is not'
  ):
    models.definition_order(
      lambda key: nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)[1]
    )


class Flat(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize(
  'images, options, wanted',
  [
    (np.uint8(51), {}, 0.2),
    (np.float32(0.2), {}, 0.2),
    (np.float32(51), {'scale': 255}, 0.2),
    (np.uint8(51), {'scale': 255, 'mean': (0.1,), 'std': (0.5,)}, 0.2),
  ],
)
def test_pixels_are_read_in_their_units(images, options, wanted):
  model = models.from_linen(Flat(), (1, 2, 1), **options)
  logits, _ = model.apply(ModelState({}), np.full((3, 1, 2, 1), images), False)
  np.testing.assert_allclose(logits, wanted, rtol=1e-6)
