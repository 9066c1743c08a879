"""Networks of others as a `Model`: what they carry, draw, freeze and order."""

from flax import linen as nn
from flax import nnx
import foreign
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import models, parallel, snapshots, training
from unlearn_jax.base import ModelState, is_float, tensor_paths
from unlearn_jax.models.nnx import from_nnx
from unlearn_jax.normalization import reestimate

SHAPE = 6, 6, 1


class Linen(nn.Module):
  """BatchNorm, Dropout and a counter; says `deterministic`."""

  rate: float = 0.5

  @nn.compact
  def __call__(self, x, *, deterministic):
    calls = self.variable('calls', 'count', lambda: jnp.int32(0))
    calls.value += 1
    x = nn.Conv(4, (3, 3), name='z')(x)
    x = nn.BatchNorm(use_running_average=deterministic, name='a')(x)
    x = nn.Dropout(self.rate, deterministic=deterministic)(nn.relu(x))
    return nn.Dense(3, name='b')(x.mean((1, 2)))


class Net(nnx.Module):
  """The same; a list of twelve, so that '10' comes before '2' as text."""

  def __init__(self, rate=0.5, *, rngs):
    self.z = nnx.Conv(1, 4, (3, 3), rngs=rngs)
    self.a = nnx.BatchNorm(4, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)
    many = [nnx.Linear(4, 4, rngs=rngs) for _ in range(12)]
    self.many = getattr(nnx, 'List', list)(many)  # The lowest Flax has none.
    self.b = nnx.Linear(4, 3, rngs=rngs)
    self.tied = self.b

  def __call__(self, x):
    x = self.drop(nnx.relu(self.a(self.z(x)))).mean((1, 2))
    for layer in self.many:
      x = x + 0.1 * layer(x)
    return self.b(x)


def linen(**fields):
  return models.from_linen(Linen(**fields), SHAPE, scale=255)


def from_flax_nnx(**fields):
  return from_nnx(lambda rngs: Net(**fields, rngs=rngs), SHAPE, scale=255)


MAKERS = linen, from_flax_nnx, foreign.haiku, foreign.equinox
ALL = pytest.mark.parametrize('make', MAKERS)


def pixels(count):
  rng = np.random.default_rng(0)
  return rng.integers(0, 255, (count, *SHAPE)).astype(np.uint8)


@ALL
def test_order_is_that_of_definition(make):
  model = make()
  own = jax.eval_shape(model.init, jax.random.key(0))
  assert sorted(model.order) == sorted(tensor_paths(own.params))
  heads = list(dict.fromkeys(path.split('/')[0] for path in model.order))
  assert [name for name in heads if name != 'many'] == ['z', 'a', 'b']
  several = [path for path in model.order if path.startswith('many')]
  assert several[::2] == [f'many/{i}/kernel' for i in range(len(several) // 2)]


@ALL
def test_dropout_draws_anew_each_step_and_on_each_device(make):
  with_state = jax.jit(make().apply, static_argnums=2)
  state = make().init(jax.random.key(0))
  image = pixels(4)
  first, carried = with_state(state, image, True)
  second, _ = with_state(state._replace(batch_stats=carried), image, True)
  again, _ = with_state(state, image, True)
  assert (first == again).all() and not np.allclose(first, second)
  still, same = with_state(state, image, False)
  assert (with_state(state, image, False)[0] == still).all()
  assert tensor_paths(same) == tensor_paths(state.batch_stats)
  # Of one image on both devices; without Dropout nothing differs.
  for rate, alike in ((0.5, False), (0.0, True)):
    model = make(rate=rate)
    with parallel.use(jax.devices()[:2]):
      program = parallel.spmd(
        lambda rank, s, x, m=model: jax.lax.all_gather(
          m.apply(s, x, True)[0], 'batch'
        )
      )
      one, two = program(model.init(jax.random.key(0)), image)
    assert np.allclose(one, two) == alike


@ALL
def test_what_is_carried_along_is_kept_and_counted(make):
  model, parts = make(), helpers.splits()
  start = model.init(jax.random.key(0))
  kinds = jax.tree.map(lambda leaf: leaf.dtype, start)
  fits = []
  for count in (1, 2):
    with parallel.use(jax.devices()[:count]):
      fits.append(
        training.train(
          jax.random.key(0), model, parts.train, epochs=2, batch_size=32
        ).state
      )
  for fit in fits:
    assert jax.tree.map(lambda leaf: leaf.dtype, fit) == kinds
    steps = [
      int(leaf) - int(first)
      for path, first, leaf in zip(
        tensor_paths(fit[1]), *map(jax.tree.leaves, (start[1], fit[1]))
      )
      if path.endswith('count')
    ]
    assert steps and {*steps} == {6}  # 2 · 96 / 32
  # Keys of devices are folded in for a call, and never kept.
  keys = [
    [np.asarray(leaf) for leaf in jax.tree.leaves(fit[1]) if leaf.ndim == 1]
    for fit in fits
  ]
  for one, two in zip(*keys):
    assert one.dtype != np.uint32 or (one == two).all()
  settled = reestimate(model, fits[0], parts.retain)
  assert jax.tree.map(lambda leaf: leaf.dtype, settled) == kinds


def ours(rate):
  del rate  # It has no Dropout.
  return models.build('cnn', 3, SHAPE, width=4)


@pytest.mark.parametrize('make', [*MAKERS, ours])
def test_batch_norm_sees_the_batches_of_all_devices(make):
  """One device's images are dark: by themselves they would be normalised."""
  model, images = make(rate=0.0), pixels(8)
  images[:4] //= 8
  state = model.init(jax.random.key(1))
  logits, alone = model.apply(state, images, True)
  with parallel.use(jax.devices()[:2]):

    def trained(rank, s, x):
      said, stats = model.apply(s, x[rank], True)
      return jax.lax.all_gather(said, 'batch'), parallel.mean(stats)

    said, both = parallel.spmd(trained)(state, images.reshape(2, 4, *SHAPE))
  np.testing.assert_allclose(said.reshape(8, -1), logits, rtol=1e-3, atol=1e-4)
  for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(both)):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
  by_itself = model.apply(state, images[:4], True)[0]
  assert abs(by_itself - logits[:4]).max() > 0.05


@ALL
def test_a_frozen_batch_norm_keeps_its_statistics_and_uses_them(make):
  model, images = make(rate=0.0), pixels(8)
  state = model.init(jax.random.key(1))
  norm = [path for path in model.order if path.startswith('a/')]
  frozen = model.freeze(frozenset(norm))
  (logits, carried), (still, _) = (
    frozen.apply(state, images, True),
    frozen.apply(state, images, False),
  )
  np.testing.assert_allclose(logits, still, rtol=1e-5, atol=1e-6)
  moved, _ = model.apply(state, images, True)
  assert not np.allclose(moved, still)
  old, new = (
    dict(zip(tensor_paths(tree), jax.tree.leaves(tree)))
    for tree in (state.batch_stats, carried)
  )
  for path in old:
    assert (old[path] == new[path]).all() or not is_float(old[path]), path


@pytest.mark.parametrize(
  ('network', 'wanted'),
  [
    (lambda x, train: x, {'train': True}),
    (lambda x, *, is_training=False: x, {'is_training': True}),
    (lambda x, deterministic=True: x, {'deterministic': False}),
    (lambda x, learns: x, {'learns': True}),
    (lambda x, mask=None: x, {}),
    (lambda x: x, {}),
  ],
)
def test_a_network_is_told_in_its_own_words(network, wanted):
  assert models.told(network)(True) == wanted


def test_batch_norm_alone_is_stored_as_ever():
  state = helpers.model().init(jax.random.key(0))
  assert sorted(state.batch_stats) == ['bn1', 'bn2']
  bare = models.from_linen(nn.Dense(2), (3,)).init(jax.random.key(0))
  assert isinstance(bare, ModelState) and bare.batch_stats == {}


class Keeper:
  """Ends a training after its first epoch, and lets the next go on."""

  def __init__(self):
    self.packed = None

  def load(self, like):
    return None if self.packed is None else snapshots.unpack(self.packed, like)

  def save(self, snapshot):
    first = self.packed is None
    self.packed = snapshots.pack(snapshot)
    if first:
      raise KeyboardInterrupt


@ALL
def test_a_stopped_training_draws_on_as_if_it_never_stopped(make):
  model, parts, keeper = make(), helpers.splits(), Keeper()

  def train(**more):
    how = {'epochs': 3, 'batch_size': 32, **more}
    with parallel.use(jax.devices()[:1]):
      return training.train(jax.random.key(0), model, parts.train, **how).state

  whole = train()
  with pytest.raises(KeyboardInterrupt):
    train(keeper=keeper)
  assert len(keeper.packed.course.history) < 4
  jax.tree.map(np.testing.assert_array_equal, train(keeper=keeper), whole)
