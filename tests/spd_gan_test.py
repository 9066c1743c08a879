"""Algorithm 2: what moves, what does not, and within which bounds."""

import dataclasses
import functools
import math

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import metrics, parallel, snapshots, spd_gan, training
from unlearn_jax.base import Batch, Examples, InputError, ModelState, stateless
from unlearn_jax.epoch import Step
from unlearn_jax.spd_gan import GeneratorSettings, fit_generator
from unlearn_jax.timing import Stopwatch

SETTINGS = GeneratorSettings(epochs=2, batch_size=8, width=2)


@pytest.fixture(autouse=True)
def one_device():
  """Programs for one device compile sooner."""
  with parallel.use(jax.devices()[:1]):
    yield


@functools.cache
def problem():
  """A model, two states of it, and its splits."""
  model, splits = helpers.model(), helpers.splits()
  states = [
    training.train(
      jax.random.key(seed), model, splits.train, epochs=4, batch_size=16,
      optimizer=training.adam(0.02),
    ).state
    for seed in (0, 1)
  ]  # fmt: skip
  return model, [jax.tree.map(np.asarray, s) for s in states], splits


def fit(seed=0, settings=SETTINGS, **options):
  model, (source, unlearned), splits = problem()
  return fit_generator(
    jax.random.key(seed),
    model,
    source,
    unlearned,
    splits.train.take(np.arange(32)),
    settings,
    num_classes=3,
    **options,
  )


@pytest.mark.parametrize(
  'name, value',
  [
    ('eta', -0.1),
    ('eta', math.nan),
    ('cap', 0.0),
    ('cap', 'none'),
    ('max_perturbation', 0.0),
    ('max_perturbation', 1.01),
    ('max_perturbation', math.nan),
    ('epochs', 0),
    ('batch_size', 0),
    ('learning_rate', 1.0),
    ('width', 0),
  ],
)
def test_settings_out_of_range_are_named(name, value):
  with pytest.raises(ValueError, match=f'^{name}={value!r}, allowed: '):
    GeneratorSettings(**{name: value})


def test_the_defaults_are_the_issues():
  settings = GeneratorSettings()
  assert settings.eta == 0.03
  assert settings.max_perturbation == 8 / 255
  assert settings.cap == 'default'


@pytest.mark.parametrize(
  'given, cap, far',
  [
    ('default', 2 * math.log(3), 2 * math.log(3)),
    (None, None, 2 * math.log(3)),
    (3.0, 3.0, 3.0),
  ],
)
def test_the_cap_is_twice_that_of_chance(given, cap, far, monkeypatch):
  seen = []
  real = spd_gan._loss
  monkeypatch.setattr(
    spd_gan, '_loss', lambda *of: seen.append(of[2:]) or real(*of)
  )
  # A batch that does not fit ends it before it begins.
  with pytest.raises(ValueError, match='at most the 32'):
    fit(settings=dataclasses.replace(SETTINGS, cap=given, batch_size=64))
  assert seen == [(cap, pytest.approx(far))]


def loss_of(eta, cap, bias):
  """The loss on two examples with logits that a stub of G cannot change.

  The source gives the true class log-odds 0 and log 3, the unlearned model
  the logits `bias`; so their cross-entropies are log 2, log 4/3 and those of
  `bias`.
  """
  classifier = stateless(lambda logits, x: logits)
  generator = stateless(lambda params, x: jnp.zeros(x.shape))
  source = ModelState(jnp.array([[0.0, 0.0], [math.log(3.0), 0.0]]))
  unlearned = ModelState(jnp.array(bias))
  state = ModelState({}, spd_gan._Carried({}, jnp.zeros((1, 4))))
  step = Step(jnp.int32(0), jnp.int32(1), 1, given=(source, unlearned))
  batch = Batch(jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, jnp.int32))
  value, carried = spd_gan._loss(classifier, eta, cap, cap or 1.0)(
    generator, state, (batch,), step
  )
  return float(value), carried.sums[0].tolist()


def test_the_loss_is_equation_13_by_hand():
  bias = [[0.0, math.log(3.0)], [0.0, 0.0]]  # log 4 and log 2
  source = (math.log(2) + math.log(4 / 3)) / 2
  value, sums = loss_of(0.5, None, bias)
  assert value == pytest.approx(source - 0.5 * 1.5 * math.log(2), rel=1e-6)
  assert sums == pytest.approx([1, source, 1.5 * math.log(2), 0.5], rel=1e-6)


def test_the_cap_holds_each_example():
  bias = [[0.0, 50.0], [0.0, 0.0]]  # 50 nats and log 2
  source = (math.log(2) + math.log(4 / 3)) / 2
  value, sums = loss_of(0.5, 2.0, bias)
  assert value == pytest.approx(source - 0.25 * (2 + math.log(2)), rel=1e-6)
  assert sums[2:] == pytest.approx([25 + math.log(2) / 2, 0.5], rel=1e-6)


def test_only_the_generator_has_a_gradient_and_an_optimiser(monkeypatch):
  seen = {}
  real = training.fit

  def spy(key, model, state, sets, **options):
    seen.update(options, state=state)
    return real(key, model, state, sets, **options)

  monkeypatch.setattr(training, 'fit', spy)
  fit()
  generator = training.initialize(
    jax.random.key(0), spd_gan.generator_model((6, 6, 1), 8 / 255, 2)
  )
  own = training.tensor_paths(generator.params)
  assert training.tensor_paths(seen['state'].params) == own
  assert 'frozen' not in seen
  _, states, _ = problem()
  chex.assert_trees_all_equal(seen['given'], tuple(states))
  assert all(state.batch_stats for state in seen['given'])


def test_what_is_given_is_not_donated_and_all_of_the_generator_moves():
  _, (source, unlearned), _ = problem()
  before = jax.tree.map(np.copy, (source, unlearned))
  with parallel.use(jax.devices()):
    fitted = fit()
  chex.assert_trees_all_equal((source, unlearned), before)
  start = training.initialize(
    jax.random.split(jax.random.key(0))[0],
    spd_gan.generator_model((6, 6, 1), 8 / 255, 2),
  )
  moved = jax.tree.map(
    lambda a, b: bool(np.any(np.asarray(a) != b)), start, fitted.state
  )
  assert all(jax.tree.leaves(moved)), moved


def test_the_classifiers_see_pixels_with_running_statistics():
  """Training G on one example at a time must not change what M says of it."""
  model, (source, _), splits = problem()
  flags = []

  def apply(state, images, train):
    flags.append((train, images.dtype))
    return model.apply(state, images, train)

  spied = dataclasses.replace(model, apply=apply)
  examples = splits.train.take(np.arange(8))
  fit_generator(
    jax.random.key(0), spied, source, source, examples, SETTINGS, num_classes=3
  )
  assert flags and set(flags) == {(False, jnp.dtype('float32'))}


@pytest.mark.parametrize('bound', [8 / 255, 0.5, None])
def test_the_bound_holds_and_pixels_stay_in_range(bound, monkeypatch):
  settings = dataclasses.replace(SETTINGS, max_perturbation=bound)
  images = np.stack([np.full((6, 6, 1), v, np.uint8) for v in (0, 3, 128, 255)])
  examples = Examples.of(images, np.zeros(4, np.int32))
  generator = spd_gan.generator_model((6, 6, 1), bound, 2)
  state = training.initialize(jax.random.key(1), generator)
  loud = ModelState(
    jax.tree.map(lambda x: 30 * x, state.params), state.batch_stats
  )
  monkeypatch.setattr(spd_gan, '_AT_ONCE', 3)
  moved = spd_gan.perturb_images(loud, examples, settings)
  assert moved.shape == images.shape and moved.dtype == np.float32
  assert moved.min() >= 0 and moved.max() <= 255
  most = 255 if bound is None else 255 * bound
  change = np.abs(moved - images)
  assert change.max() <= most + 1e-4
  assert change[2].max() >= min(most, 127) - 1e-4  # The bound is reached.


def test_perturbed_predictions_are_of_the_perturbed_images():
  model, (source, unlearned), splits = problem()
  fitted = fit()
  from unlearn_jax.prediction import predict

  moved = spd_gan.perturb_images(fitted.state, splits.test, SETTINGS)
  for state in (source, unlearned):
    got = spd_gan.predict_perturbed(
      model, state, fitted.state, splits.test, SETTINGS
    )
    plain = Examples.of(moved, np.zeros(len(moved), np.int32))
    np.testing.assert_allclose(got, predict(model, state, plain), atol=1e-6)


def test_one_device_equals_four():
  settings = dataclasses.replace(SETTINGS, epochs=1)
  one = fit(settings=settings)
  with parallel.use(jax.devices()):
    assert len(parallel.devices()) == 4
    four = fit(settings=settings)
  chex.assert_trees_all_close(
    jax.tree.map(np.asarray, one.state),
    jax.tree.map(np.asarray, four.state),
    rtol=2e-2,
    atol=2e-4,
  )
  assert one.history[1].loss == pytest.approx(four.history[1].loss, rel=1e-3)
  for name, value in one.history[1].measured.items():
    assert value == pytest.approx(four.history[1].measured[name], rel=1e-3)


def test_nothing_compiles_from_seed_to_seed_or_pair_to_pair():
  model, (source, unlearned), splits = problem()
  examples = splits.train.take(np.arange(32))

  def run(seed, first, second):
    return fit_generator(
      jax.random.key(seed), model, first, second, examples, SETTINGS,
      num_classes=3,
    )  # fmt: skip

  run(0, source, unlearned)
  with Stopwatch() as watch:
    run(1, unlearned, source)
  assert watch.compilations == 0


def test_the_same_key_gives_the_same_generator_and_another_another():
  first, second, third = fit(0), fit(0), fit(1)
  chex.assert_trees_all_equal(
    jax.tree.map(np.asarray, first.state),
    jax.tree.map(np.asarray, second.state),
  )
  kernels = [
    np.asarray(f.state.params['conv4']['kernel']) for f in (first, third)
  ]
  assert not np.array_equal(*kernels)


def test_the_curve_has_both_cross_entropies_and_the_loss_of_them():
  told = []
  settings = dataclasses.replace(SETTINGS, cap=None, eta=0.25)
  fitted = fit(settings=settings, on_epoch=told.append)
  assert tuple(told) == fitted.history
  assert [epoch.epoch for epoch in fitted.history] == [0, 1, 2]
  assert fitted.history[0].measured == {}
  for epoch in fitted.history[1:]:
    own = epoch.measured
    assert 0 <= own['capped_share'] <= 1
    expected = own['source_loss'] - 0.25 * own['unlearned_loss']
    assert epoch.loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_it_takes_off_where_nothing_but_the_cap_holds_it():
  wild = GeneratorSettings(
    eta=10.0,
    max_perturbation=None,
    epochs=25,
    batch_size=8,
    width=4,
    learning_rate=0.02,
  )
  capped = fit(settings=wild)
  assert capped.took_off
  assert capped.history[-1].measured['capped_share'] > 0.5
  free = fit(settings=dataclasses.replace(wild, cap=None))
  assert free.took_off
  far = free.history[-1].measured['unlearned_loss']
  assert far > capped.history[-1].measured['unlearned_loss']
  assert not fit().took_off


def test_a_generator_finds_what_tells_two_models_apart():
  """M looks at the top row, M_UL at the bottom row: G darkens the latter."""

  def look(rows, x):
    bright = (x / 255 * rows[:, None, None]).mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(bright), 60 * (bright - 0.25)], -1)

  model = stateless(look)
  top, bottom = np.zeros((2, 4), np.float32)
  top[:2], bottom[2:] = 1, 1
  images = np.full((64, 4, 4, 1), 140, np.uint8)
  images[:, :2] = 180
  examples = Examples.of(images, np.ones(64, np.int32))
  settings = GeneratorSettings(
    eta=0.5, max_perturbation=0.25, epochs=30, batch_size=16, width=4,
    learning_rate=0.01,
  )  # fmt: skip
  states = ModelState(jnp.array(top)), ModelState(jnp.array(bottom))
  fitted = fit_generator(
    jax.random.key(0), model, *states, examples, settings, num_classes=2
  )
  right = [
    spd_gan.predict_perturbed(model, s, fitted.state, examples, settings)
    .argmax(-1)
    .mean()
    for s in states
  ]
  assert right == [1.0, 0.0]


@pytest.mark.parametrize(
  'batch_size, message',
  [(6, 'multiple of the 4 device'), (64, 'at most the 32 examples')],
)
def test_batches_that_do_not_fit_are_refused(batch_size, message):
  settings = dataclasses.replace(SETTINGS, batch_size=batch_size)
  with parallel.use(jax.devices()), pytest.raises(ValueError, match=message):
    fit(settings=settings)


def test_what_is_no_image_is_refused():
  examples = Examples.of(np.zeros((8, 5)), np.zeros(8, np.int32))
  with pytest.raises(ValueError, match=r'shape \(5,\), allowed: \(height'):
    fit_generator(
      jax.random.key(0), helpers.model(), ModelState({}), ModelState({}),
      examples, SETTINGS, num_classes=3,
    )  # fmt: skip


def test_a_training_that_diverges_says_so():
  model, (source, unlearned), splits = problem()
  broken = ModelState(
    jax.tree.map(lambda x: np.full_like(x, np.nan), unlearned.params),
    unlearned.batch_stats,
  )
  with pytest.raises(InputError, match='^the generator diverged: '):
    fit_generator(
      jax.random.key(0), model, source, broken,
      splits.train.take(np.arange(32)), SETTINGS, num_classes=3,
    )  # fmt: skip


def test_pixel_change_by_hand():
  before = np.zeros((1, 8, 8, 1), np.uint8)
  after = np.zeros((1, 8, 8, 1), np.float32)
  after[0, 0, 0, 0] = 51.0
  change = metrics.pixel_change(before, after)
  assert change.linf == pytest.approx(0.2)
  assert change.rms == pytest.approx(0.2 / 8)
  same = metrics.pixel_change(before, before)
  assert same == metrics.PixelChange(linf=0, rms=0)


class BrokenOffError(Exception):
  """A training that was ended from outside."""


class OneKept:
  """Keeps the last snapshot on the host; ends the training at one."""

  def __init__(self, after=None):
    self.after, self.packed, self.count = after, None, 0

  def load(self, like):
    return self.packed and snapshots.unpack(self.packed, like)

  def save(self, snapshot):
    self.count += 1
    self.packed = snapshots.pack(snapshot)
    if self.count == self.after:
      raise BrokenOffError


@pytest.mark.parametrize('after', [1, 2, 6, 7])
def test_a_generator_goes_on_from_any_call_to_the_same_bits(monkeypatch, after):
  """Two epochs of four steps, a call each."""
  whole = fit()
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  kept = OneKept(after)
  with pytest.raises(BrokenOffError):
    fit(keeper=kept)
  kept.after = None
  leaves = kept.packed.facts['leaves']
  assert not [path for path in leaves if 'source' in path or 'unlearn' in path]
  again = fit(keeper=kept)
  assert kept.count == 8
  chex.assert_trees_all_equal(again.state, whole.state)
  for one, other in zip(again.history, whole.history, strict=True):
    assert one._replace(seconds=0) == other._replace(seconds=0)
  finished = fit(keeper=kept)  # Nothing is trained a second time.
  assert kept.count == 8
  chex.assert_trees_all_equal(finished.state, whole.state)


def test_an_infinite_loss_of_any_epoch_is_no_result(monkeypatch):
  """The cap hides it from the sum of both losses, and later ones are finite."""
  real = training.fit

  def one_infinite(*args, **options):
    found = real(*args, **options)
    first, second, third = found.history
    second.measured['unlearned_loss'] = math.inf
    return found._replace(history=(first, second, third))

  monkeypatch.setattr(training, 'fit', one_infinite)
  with pytest.raises(InputError, match='^the generator diverged: '):
    fit()
