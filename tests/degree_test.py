"""The degree: its theorems, its halves, its nulls, its verdicts, bad input."""

import functools

import helpers
import jax
import numpy as np
import pytest

from unlearn_jax import degree, parallel, training
from unlearn_jax.base import InputError, ModelState
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.degree import Standing
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.timing import Stopwatch

SETTINGS = GeneratorSettings(epochs=2, batch_size=8, width=2)


@pytest.fixture(autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@functools.cache
def problem():
  """Model, splits, M, M', and a model that is wrong wherever M is right."""
  model, splits = helpers.model(), helpers.splits(forget=33)
  source, other = (
    training.train(
      jax.random.key(seed),
      model,
      splits.train,
      epochs=15,
      batch_size=16,
      optimizer=training.adam(0.02),
    ).state
    for seed in (0, 1)
  )
  head = jax.tree.map(lambda x: np.roll(x, 1, -1), source.params['linear'])
  wrong = ModelState({**source.params, 'linear': head}, source.batch_stats)
  return model, splits, source, other, wrong


@functools.cache
def found():
  """By name, the degrees of pairs, and what was told while they were made."""
  _, _, source, other, wrong = problem()
  told = []
  every = {
    'unlearned': (wrong, 'known'),
    'null': (other, 'known'),
    'unseen': (wrong, 'unseen'),
    'identity': (source, 'known'),
  }
  pairs = {
    name: measured(model, part, on_epoch=lambda *epoch: told.append(epoch))
    for name, (model, part) in every.items()
  }
  return pairs, told


def measured(other, part='known', seed=0, seeds=5, **options):
  model, splits, source, *_ = problem()
  plan = degree.plan_pairs(jax.random.key(seed), splits, 40)
  return degree.pair_degree(
    plan.key,
    model,
    source,
    other,
    getattr(plan, part),
    SETTINGS,
    seeds=seeds,
    **options,
  )


def test_a_standing_by_hand():
  standing = Standing(8, 1.0, 0.875, 0.75, 0.25)
  assert standing.degree == 0.5
  assert standing.gap == 0.125
  assert standing.excess == 0.375


def test_the_sets_have_their_sizes_and_every_pair_its_generators():
  pairs, told = found()
  for pair in pairs.values():
    assert [run.seed for run in pair.runs] == [0, 1, 2, 3, 4]
    for run in pair.runs:
      assert (run.fitted.size, run.held_out.size) == (16, 17)
      assert (run.retain.size, run.test.size) == (40, 40)
      assert run.pixels.linf <= 8 / 255 + 1e-6
      assert len(run.history) == 3
  epochs = [(seed, epoch.epoch) for seed, epoch in told]
  assert epochs[:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
  assert len(epochs) == 4 * 5 * 3


def test_m_against_itself_is_exactly_0():
  for run in found()[0]['identity'].runs:
    for standing in (run.held_out, run.fitted, run.retain, run.test):
      assert standing.degree == standing.gap == standing.excess == 0


def test_a_model_that_is_always_wrong_separates():
  pairs, _ = found()
  for run in pairs['unlearned'].runs:
    assert run.held_out.degree == run.held_out.source_perturbed > 0.8
    assert run.held_out.gap > 0.8
  own, null = (pairs[name].values for name in ('unlearned', 'null'))
  calibrated = calibrated_degree(own, null)
  assert calibrated.verdict == 'separates'
  assert calibrated.p_value == pytest.approx(1 / 252)
  expected = np.mean(own) - np.mean(null)
  assert calibrated.difference.mean == pytest.approx(expected)


def fits(monkeypatch, part='known', seed=0):
  """(key, M_UL, images) of each fit, in their order."""
  seen = []
  real = degree.fit_generator

  def spy(key, model, source, unlearned, examples, *rest, **options):
    seen.append((key, unlearned, np.asarray(examples.images)))
    return real(key, model, source, unlearned, examples, *rest, **options)

  monkeypatch.setattr(degree, 'fit_generator', spy)
  measured(problem()[-1], part, seed, seeds=2)
  return seen


def images_of(examples):
  rows = np.asarray(examples.images)[np.asarray(examples.indices)]
  return {row.tobytes() for row in rows}


def test_generators_are_fitted_on_half_of_d_ul_or_on_unseen_images(monkeypatch):
  _, splits, _, _, wrong = problem()
  for part, allowed in (('known', splits.forget), ('unseen', splits.test)):
    seen = fits(monkeypatch, part)
    for _, unlearned, images in seen:
      assert {row.tobytes() for row in images} <= images_of(allowed)
      assert len(images) == 16 and unlearned is wrong
    first, second = (jax.random.key_data(key).tolist() for key, *_ in seen)
    assert first != second
  # The same starts in every pair.
  assert first == jax.random.key_data(fits(monkeypatch)[0][0]).tolist()


def test_the_held_out_half_is_the_other_one():
  _, splits, *_ = problem()
  known = degree.plan_pairs(jax.random.key(0), splits, 40).known
  fitted, held_out = (
    images_of(known.part(name)) for name in ('fitted', 'held_out')
  )
  assert not fitted & held_out
  assert fitted | held_out == images_of(splits.forget)


def test_what_is_scored_beside_is_spread_evenly():
  _, splits, *_ = problem()
  known = degree.plan_pairs(jax.random.key(0), splits, 4).known
  for name in ('retain', 'test'):
    examples = getattr(splits, name)
    rows = np.linspace(0, examples.size - 1, 4).round().astype(int)
    want = np.asarray(examples.images)[np.asarray(examples.indices)[rows]]
    np.testing.assert_array_equal(known.every.images[known.parts[name]], want)


def test_another_key_takes_another_half(monkeypatch):
  first = {row.tobytes() for row in fits(monkeypatch)[0][2]}
  second = {row.tobytes() for row in fits(monkeypatch, seed=1)[0][2]}
  assert first != second


def test_the_same_key_gives_the_same_numbers_and_nothing_compiles_again():
  before, wrong = found()[0]['unlearned'], problem()[-1]
  same = measured(wrong)
  for old, new in zip(before.runs, same.runs):
    assert old.held_out == new.held_out and old.pixels == new.pixels
  with Stopwatch() as watch:
    measured(wrong, seed=3)
  assert watch.compilations == 0


def refused(message, error=InputError, **changes):
  model, splits, source, *_ = problem()
  known = {'source': source, 'splits': splits, 'settings': SETTINGS, **changes}
  with pytest.raises(error, match=message) as caught:
    degree.require_measurable(model, **known)
  assert '\n' not in str(caught.value)


def test_a_forget_set_below_two_batches_is_refused():
  splits = problem()[1]
  few = splits._replace(forget=splits.forget.take(np.arange(15)))
  message = '^the forget set has 15 examples; allowed: two batches, 16'
  refused(message, splits=few)
  few = splits._replace(test=splits.test.take(np.arange(15)))
  refused('^the test set has 15 examples', splits=few)


def test_a_source_no_better_than_chance_is_refused():
  _, _, source, _, _ = problem()
  blank = ModelState(
    jax.tree.map(np.zeros_like, source.params), source.batch_stats
  )
  refused('^the source has .* no better than chance', source=blank)


def test_chance_is_the_share_of_the_commonest_class():
  """Who always says the commonest class is right more often than 1 in C."""
  _, splits, source, *_ = problem()
  labels = splits.forget.own_labels
  zeros, others = np.flatnonzero(labels == 0), np.flatnonzero(labels != 0)
  rows = np.concatenate([zeros, others[: 16 - len(zeros)]])
  assert len(zeros) >= 10 and len(rows) == 16
  head = {
    'kernel': np.zeros_like(source.params['linear']['kernel']),
    'bias': np.float32([9, 0, 0]),
  }
  constant = ModelState({**source.params, 'linear': head}, source.batch_stats)
  skewed = splits._replace(forget=splits.forget.take(rows))
  message = f'has {len(zeros)} of 16 forgotten examples right, no better than'
  refused(message, source=constant, splits=skewed)


def test_batches_that_do_not_fit_the_devices_are_refused():
  settings = GeneratorSettings(batch_size=6)
  with parallel.use(jax.devices()):
    refused('^batch_size=6, allowed: ', ValueError, settings=settings)


HIGH = [0.5, 0.6, 0.5, 0.6, 0.5]
LOW = [0.1, 0.0, 0.1, 0.0, 0.1]
EVEN = [0.1, 0.1, 0.1, 0.1, 0.1]
NEAR = [0.1, 0.1, 0.1, 0.1, 0.11]
WIDE = [0.9, 0.1, 0.8, 0.0, 0.5]


@pytest.mark.parametrize(
  'degrees, null, target, verdict',
  [
    (HIGH, LOW, None, 'separates'),
    # Whatever the target does.
    (HIGH, LOW, LOW, 'separates'),
    # Surely below 5 points.
    (EVEN, NEAR, None, 'does not separate'),
    (EVEN, NEAR, HIGH, 'does not separate'),
    # Below the null: no degree at all.
    (LOW, HIGH, None, 'does not separate'),
    # By generator anything: the interval is wide.
    (WIDE, [0.2, 0.6, 0.1, 0.5, 0.3], None, 'cannot tell'),
    # Nor does the target: the measure is blind here.
    (EVEN, NEAR, NEAR, 'cannot tell'),
    # All are above the null, p = 1/252, but one so far that 0.28 ± 0.50 says no
    # more than that.
    ([0.1, 0.1, 0.1, 0.1, 1.0], [0.0] * 5, None, 'cannot tell'),
    # Two generators a side: the smallest p is 1/6.
    ([0.9, 0.9], [0.1, 0.1], None, 'cannot tell'),
  ],
)
def test_verdicts(degrees, null, target, verdict):
  assert calibrated_degree(degrees, null, target).verdict == verdict


def test_the_p_value_is_exact_by_hand():
  """Of the 6 deals of {3, 2, 1, 0} by twos, 2 put ≥ 3 points on the left."""
  # Differences of sums: {3,0} − {2,1} = 0; above it {3,1}: 2, {3,2}: 4.
  found = calibrated_degree([0.3, 0.1], [0.2, 0.0])
  assert found.p_value == pytest.approx(2 / 6)
  assert calibrated_degree([0.3, 0.2], [0.1, 0.0]).p_value == pytest.approx(
    1 / 6
  )
  assert found.difference.mean == pytest.approx(0.1)


def test_one_value_or_unequal_numbers_are_refused():
  with pytest.raises(ValueError, match=r'len\(degrees\)=1, allowed: 2'):
    calibrated_degree([0.1], [0.1])
  with pytest.raises(ValueError, match=r'len\(control\)=3'):
    calibrated_degree([0.1, 0.2], [0.1, 0.2, 0.3])
