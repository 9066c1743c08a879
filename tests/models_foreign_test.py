"""Haiku and Equinox: what they compute, keep, order and forget as a `Model`."""

import pathlib
import re
from typing import Any

import equinox as eqx
import foreign
import haiku as hk
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.study import networks
import unlearn_jax as uj
from unlearn_jax import checkpoints, parallel
from unlearn_jax.base import ModelState, tensor_paths
from unlearn_jax.normalization import reestimate
from unlearn_jax.recipes import RECIPES
from unlearn_jax.timing import Stopwatch

BOTH = pytest.mark.parametrize('make', [foreign.haiku, foreign.equinox])
SHAPE = foreign.SHAPE


def pixels(count=8, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (count, *SHAPE)).astype(np.uint8)


def trained(model, state, steps=3):
  """After some batches; the parameters stay."""
  for step in range(steps):
    _, stats = model.apply(state, pixels(seed=step), True)
    state = state._replace(batch_stats=stats)
  return state


def close(one, two):
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def key_of(lot):
  """The key of a step, on one device."""
  return jax.random.fold_in(jax.random.wrap_key_data(lot['key']), lot['count'])


def test_haiku_computes_what_it_does_by_itself():
  model, net = foreign.haiku(), foreign.haiku_function(0.5)
  start = model.init(jax.random.key(3))
  params, state = net.init(jax.random.key(3), jnp.zeros((1, *SHAPE)), True)
  jax.tree.map(np.testing.assert_array_equal, start.params, params)
  own = start
  for step in range(3):
    images = pixels(seed=step)
    key = key_of(own.batch_stats['lot'])
    want, state = net.apply(params, state, key, images / 255, True)
    logits, stats = model.apply(own, images, True)
    own = own._replace(batch_stats=stats)
    close(logits, want)
  carried = {n: part for n, part in own.batch_stats.items() if n != 'lot'}
  jax.tree.map(close, carried, state)
  assert int(carried['a/~/mean_ema']['counter']) == 3
  assert np.abs(carried['a/~/mean_ema']['average']).max() > 0.01
  want, _ = net.apply(params, state, None, images / 255, False)
  close(model.apply(own, images, False)[0], want)
  # Weights of one's own are these dictionaries.
  given = ModelState(params, {**start.batch_stats, **state})
  close(model.apply(given, images, False)[0], want)


def test_equinox_computes_what_it_does_by_itself():
  def make(key):
    return foreign.Equinox(0.5, key)

  model = foreign.equinox()
  own = model.init(jax.random.key(3))
  net, state = eqx.nn.make_with_state(make)(jax.random.key(3))
  by_hand = jax.vmap(
    lambda x, s, key: net(x, s, key=key), (0, None, 0), (0, None), 'any'
  )
  for step in range(3):
    images = pixels(seed=step)
    key = key_of(own.batch_stats['lot'])
    first = jnp.moveaxis(images / 255, -1, 1)
    want, state = by_hand(first, state, jax.random.split(key, 8))
    logits, stats = model.apply(own, images, True)
    own = own._replace(batch_stats=stats)
    close(logits, want)
  still = eqx.nn.inference_mode(net)
  want, _ = jax.vmap(still, (0, None), (0, None), 'any')(first, state)
  close(model.apply(own, images, False)[0], want)
  # What stands in the state is what inference uses, not the sum.
  mean, _ = state.get(net.a.batch_state_index)
  close(own.batch_stats['1'], mean / (1 - 0.9**3))
  # A module and a state that somebody trained.
  both = uj.from_equinox(lambda key: (net, state), SHAPE, scale=255)
  source = both.init(jax.random.key(0))
  close(both.apply(source, images, False)[0], want)
  assert both.order == model.order


@BOTH
@pytest.mark.parametrize('steps', [1, 3])
def test_statistics_are_averaged_over_the_retained(make, steps):
  """By hand; after so few steps sums are far from averages."""
  model, parts = make(rate=0.0), helpers.splits()
  state = trained(model, model.init(jax.random.key(0)), steps)
  with parallel.use(jax.devices()[:1]):
    settled = reestimate(model, state, parts.retain, batch_size=40)
  images = parts.retain.images[parts.retain.indices].astype(np.float32) / 255
  layer = state.params['z']
  kernel = layer.get('w')
  if kernel is None:
    kernel = layer['weight'].transpose(2, 3, 1, 0)
  bias = layer.get('b', layer.get('bias')).reshape(-1)
  outs = bias + jax.lax.conv_general_dilated(
    images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  parts_of = outs.reshape(2, -1, 4)
  stats = settled.batch_stats
  mean, var = stats.get('1'), stats.get('2')
  if mean is None:
    mean, var = (stats[f'a/~/{n}_ema']['average'] for n in ('mean', 'var'))
  close(jnp.ravel(mean), parts_of.mean((0, 1)))
  close(jnp.ravel(var), parts_of.var(1).mean(0))
  # And they are what is used.
  logits = model.apply(settled, pixels(), False)[0]
  assert not np.allclose(logits, model.apply(state, pixels(), False)[0])


@BOTH
def test_it_is_unlearned_and_nothing_compiles_again(make):
  model, parts = make(), helpers.splits()
  budget = uj.Budget(epochs=1, batch_size=40)
  recipe = RECIPES['paper']._replace(epochs=1, batch_size=40)
  methods = [
    uj.strategies.finetune(),
    uj.strategies.top_k(k=8),
    uj.strategies.retrain(),
    uj.strategies.eu_k(k=2),
  ]
  with parallel.use(jax.devices()[:1]):
    source = uj.train(
      jax.random.key(0), model, parts.train, epochs=2, batch_size=32
    ).state
    for again in (False, True):
      with Stopwatch() as watch:
        found = [
          uj.unlearn(
            *(jax.random.key(1), model, source, parts, own, budget),
            recipe=recipe,
          )
          for own in methods
        ]
      assert not (again and watch.compilations)
  for own in found:
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(own.state))
  before, after = (
    dict(zip(tensor_paths(s.params), jax.tree.leaves(s.params)))
    for s in (source, found[-1].state)
  )
  moved = {path for path in before if (before[path] != after[path]).any()}
  assert moved == {*model.order[-2:]}
  assert {path.split('/')[0] for path in moved} == {'b'}
  jax.tree.map(
    lambda old, new: (old != new).any() or pytest.fail('they stand still'),
    *({n: v for n, v in s.batch_stats.items() if n in ('2', 'a/~/var_ema')}
      for s in (source, found[0].state)),
  )  # fmt: skip


@BOTH
def test_a_checkpoint_holds_all_of_it(make, tmp_path):
  model = make()
  state = trained(model, model.init(jax.random.key(0)))
  checkpoints.save(tmp_path / 'model', state, {'model': 'own'})
  again, _ = checkpoints.restore(tmp_path / 'model', model='own')
  assert tensor_paths(again) == tensor_paths(state)
  close(*(model.apply(s, pixels(), False)[0] for s in (state, again)))


def test_haiku_orders_by_creation_not_by_module():
  class Around(hk.Module):
    def __call__(self, x):
      w = hk.get_parameter('w', (4, 4), init=jnp.ones)
      x = hk.Linear(4, name='inner')(x @ w)
      return x + hk.get_parameter('late', (4,), init=jnp.zeros)

  net = hk.transform(lambda x: hk.Linear(2, name='a')(Around(name='z')(x)))
  model = uj.from_haiku(net, (4,))
  inner = 'z/inner/w', 'z/inner/b'
  assert model.order == ('z/w', *inner, 'z/late', 'a/w', 'a/b')
  state = model.init(jax.random.key(0))
  assert sorted(model.order) == sorted(tensor_paths(state.params))
  assert state.batch_stats == {}


class Parts(eqx.Module):
  """Fields, and a dictionary, against the alphabet."""

  z: eqx.nn.Linear
  many: Any
  a: eqx.nn.Linear
  steps: Any = None

  def __init__(self, key, steps=None):
    one, two, three, four = jax.random.split(key, 4)
    self.z = eqx.nn.Linear(4, 4, key=one)
    second = eqx.nn.Linear(4, 4, key=three)
    self.many = {'y': [eqx.nn.Linear(4, 4, key=two)], 'b': second}
    self.a = eqx.nn.Linear(4, 2, key=four)
    self.steps = steps

  def __call__(self, x):
    return self.a(self.many['b'](self.many['y'][0](self.z(x))))


def test_equinox_orders_by_fields_and_keys_as_they_were_set():
  model = uj.from_equinox(Parts, (4,), channels_first=False)
  layers = [path.rpartition('/')[0] for path in model.order[::2]]
  assert layers == ['z', 'many/y/0', 'many/b', 'a']
  state = model.init(jax.random.key(0))
  assert sorted(model.order) == sorted(tensor_paths(state.params))
  x = np.ones((3, 4), np.float32)
  want = jax.vmap(Parts(jax.random.key(0)))(x)
  close(model.apply(state, x, True)[0], want)


def old_norm(key):
  return eqx.nn.Sequential([eqx.nn.BatchNorm(4, 'batch', mode='ema')])


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (old_norm, "BatchNorm's mode='ema', allowed: 'batch'"),
    (
      lambda key: Parts(key, jnp.arange(3)),
      "make='int32', allowed: floats; st",
    ),
    (
      eqx.nn.make_with_state(Parts),
      'allowed: arrays in modules, lists, tuples',
    ),
  ],
)
def test_what_equinox_has_and_a_model_has_not(make, words):
  with pytest.raises(ValueError, match='allowed') as caught:
    uj.from_equinox(make, (4,), channels_first=False)
  assert words in str(caught.value) and '\n' not in str(caught.value)


def test_a_function_that_is_not_transformed_is_refused():
  with pytest.raises(ValueError, match="^transformed='function', allowed: wh"):
    uj.from_haiku(lambda x: x, (4,))


def test_the_network_of_the_page_is_a_model(tmp_path):
  page = pathlib.Path(__file__).parent.parent / 'docs' / 'own-weights.md'
  blocks = re.findall(r'^```python\n(.*?)^```$', page.read_text(), re.M | re.S)
  (tmp_path / 'nets.py').write_text(blocks[1])
  own = networks.read(f'{tmp_path}/nets.py:net(width=6)', 3, SHAPE, (0,), (1,))
  assert own.model.order[0] == 'conv2_d/w' and len(own.model.order) == 6
  state = trained(own.model, own.model.init(jax.random.key(0)))
  assert own.model.apply(state, pixels(), False)[0].shape == (8, 3)


@pytest.mark.parametrize('name', ['haiku', 'equinox'])
def test_a_file_names_them(name, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'mine.py').write_text('from foreign import equinox, haiku\n')
  own = networks.read(
    f'{tmp_path}/mine.py:{name}(rate=0.1)', 3, SHAPE, (0.5,), (0.5,)
  )
  assert own.name == f'mine.py:{name}(rate=0.1)'
  assert own.model.order[0].startswith('z/')
