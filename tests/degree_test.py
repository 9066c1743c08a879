"""The degree: its theorems, its halves, its nulls, its verdicts, bad input."""

import functools

import helpers
import jax
import numpy as np
import pytest

from unlearn_jax import pairs, parallel, training
from unlearn_jax.base import InputError, ModelState
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.degree import unlearning_degree
from unlearn_jax.pairs import Standing
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
  model, splits, source, other, wrong = problem()
  told = []
  result = unlearning_degree(
    jax.random.key(0),
    model,
    source,
    wrong,
    splits,
    null=other,
    retrained=other,
    settings=SETTINGS,
    limit=40,
    on_epoch=lambda *epoch: told.append(epoch),
  )
  return result, told


def test_a_standing_by_hand():
  standing = Standing(8, 1.0, 0.875, 0.75, 0.25)
  assert standing.degree == 0.5
  assert standing.gap == 0.125
  assert standing.excess == 0.375


def test_the_sets_have_their_sizes_and_every_pair_its_generators():
  result, told = found()
  for name, pair in result._asdict().items():
    if not isinstance(pair, pairs.Degree):
      continue
    assert [run.seed for run in pair.runs] == (
      [0] if name == 'identity' else [0, 1, 2, 3, 4]
    )
    for run in pair.runs:
      assert (run.fitted.size, run.held_out.size) == (16, 17)
      assert (run.retain.size, run.test.size) == (40, 40)
      assert run.pixels.linf <= 8 / 255 + 1e-6
      assert len(run.history) == 3
  epochs = [(name, seed, epoch.epoch) for name, seed, epoch in told]
  assert epochs[:3] == [('unlearned', 0, epoch) for epoch in (0, 1, 2)]
  assert len(epochs) == 21 * 3
  assert {name for name, *_ in epochs} == {
    *('unlearned', 'null', 'unseen', 'identity', 'retrained')
  }


def test_m_against_itself_is_exactly_0():
  (run,) = found()[0].identity.runs
  for standing in (run.held_out, run.fitted, run.retain, run.test):
    assert standing.degree == standing.gap == standing.excess == 0


def test_all_is_exactly_0_where_all_models_are_one():
  model, splits, source, *_ = problem()
  result = unlearning_degree(
    jax.random.key(0),
    model,
    source,
    source,
    splits,
    null=source,
    settings=SETTINGS,
    limit=40,
  )
  assert result.unlearned.values == result.null.values == [0] * 5
  assert result.unseen.values == [0] * 5
  assert result.retrained is None and result.calibrated_target is None
  assert result.calibrated.difference == (0, 0, 0, 5)
  assert result.calibrated.p_value == 1
  assert result.calibrated.verdict == 'does not separate'


def test_a_model_that_is_always_wrong_separates():
  result, _ = found()
  for run in result.unlearned.runs:
    assert run.held_out.degree == run.held_out.source_perturbed > 0.8
    assert run.held_out.gap > 0.8
  assert result.calibrated.verdict == 'separates'
  assert result.calibrated.p_value == pytest.approx(1 / 252)
  expected = np.mean(result.unlearned.values) - np.mean(result.null.values)
  assert result.calibrated.difference.mean == pytest.approx(expected)
  # The target is M' itself here, so that it cannot be told from the null.
  assert result.retrained.values == result.null.values
  assert result.calibrated_target.difference.mean == 0


def halves(monkeypatch, seed=0, **changes):
  """(key, M_UL, images) of each fit, in their order."""
  model, splits, source, other, wrong = problem()
  seen = []
  real = pairs.fit_generator

  def spy(key, model, source, unlearned, examples, *rest, **options):
    seen.append((key, unlearned, np.asarray(examples.images)))
    return real(key, model, source, unlearned, examples, *rest, **options)

  monkeypatch.setattr(pairs, 'fit_generator', spy)
  options = {'null': other, 'settings': SETTINGS, 'limit': 40, **changes}
  unlearning_degree(
    jax.random.key(seed), model, source, wrong, splits, **options
  )
  return seen, splits, wrong


def images_of(examples):
  rows = np.asarray(examples.images)[np.asarray(examples.indices)]
  return {row.tobytes() for row in rows}


def test_generators_are_fitted_on_half_of_d_ul_or_on_unseen_images(monkeypatch):
  seen, splits, wrong = halves(monkeypatch)
  forget, test = images_of(splits.forget), images_of(splits.test)
  assert len(seen) == 16
  for place, (_, unlearned, images) in enumerate(seen):
    own = {row.tobytes() for row in images}
    assert len(own) == 16
    unseen = 10 <= place < 15
    assert own <= (test if unseen else forget)
    assert (unlearned is wrong) == (place < 5 or unseen)
    assert own == {row.tobytes() for row in seen[place // 5 * 5][2]} or (
      place == 15
    )
  keys = [jax.random.key_data(key).tolist() for key, *_ in seen]
  # The same five starts in every pair.
  assert keys[:5] == keys[5:10] == keys[10:15] and keys[15] == keys[0]
  assert len({tuple(key) for key in keys}) == 5


def test_another_key_takes_another_half(monkeypatch):
  first = {row.tobytes() for row in halves(monkeypatch)[0][0][2]}
  second = {row.tobytes() for row in halves(monkeypatch, seed=1)[0][0][2]}
  assert first != second


def test_retrain_as_the_unlearned_model_is_not_computed_twice(monkeypatch):
  wrong = problem()[-1]
  assert len(halves(monkeypatch, retrained=wrong)[0]) == 16


def test_the_same_key_gives_the_same_numbers_and_nothing_compiles_again():
  model, splits, source, other, wrong = problem()
  before, _ = found()

  def again(key):
    return unlearning_degree(
      jax.random.key(key),
      model,
      source,
      wrong,
      splits,
      null=other,
      settings=SETTINGS,
      limit=40,
    )

  same = again(0)
  for name in ('unlearned', 'null', 'unseen'):
    for old, new in zip(getattr(before, name).runs, getattr(same, name).runs):
      assert old.held_out == new.held_out and old.pixels == new.pixels
  with Stopwatch() as watch:
    again(3)
  assert watch.compilations == 0


def refused(message, error=InputError, **changes):
  model, splits, source, other, wrong = problem()
  arguments = {'source': source, 'unlearned': wrong, 'splits': splits}
  options = {'null': other, 'settings': SETTINGS}
  for name, value in changes.items():
    (arguments if name in arguments else options)[name] = value
  with pytest.raises(error, match=message) as caught:
    unlearning_degree(jax.random.key(0), model, **arguments, **options)
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


def test_few_seeds_are_refused():
  refused('^seeds=4, allowed: 5 or more', ValueError, seeds=4)


def test_states_of_other_models_are_refused():
  _, _, _, other, _ = problem()
  head = {'kernel': np.zeros((6, 4)), 'bias': np.zeros(4)}
  four = ModelState({**other.params, 'linear': head}, other.batch_stats)
  refused("^null has tensors or shapes unlike source's", ValueError, null=four)
  refused('^unlearned has tensors', ValueError, unlearned=four)
  refused('^retrained has tensors', ValueError, retrained=four)


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
  with pytest.raises(ValueError, match='degrees has 1 values'):
    calibrated_degree([0.1], [0.1])
  with pytest.raises(ValueError, match='control has 3 values'):
    calibrated_degree([0.1, 0.2], [0.1, 0.2, 0.3])
