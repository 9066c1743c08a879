import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from unlearn_jax import metrics


def test_accuracy_by_hand():
  logits = np.array([[3.0, 1, 2], [0, 5, 5], [-1, -np.inf, -2], [0, 0, 9]])
  # The second is a tie, which the first class wins.
  assert metrics.accuracy(logits, np.array([0, 1, 0, 1])) == 0.75
  assert metrics.accuracy(jnp.asarray(logits), jnp.array([0, 2, 1, 2])) == 0.5
  assert isinstance(metrics.accuracy(logits, np.zeros(4, int)), float)


@pytest.mark.parametrize(
  'logits, labels, message',
  [
    (np.zeros((0, 3)), np.zeros(0, int), r'logits.shape=\(0, 3\)'),
    (np.array([[np.nan, 1.0]]), np.array([0]), 'logits=nan, allowed: numbers'),
    (np.zeros((2, 3)), np.array([0, 3]), 'labels=3, allowed: 0 to 2'),
    (np.zeros((2, 3)), np.array([-1, 2]), 'labels=-1, allowed: 0 to 2'),
  ],
)
def test_accuracy_of_what_cannot_be(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    metrics.accuracy(logits, labels)


@pytest.mark.parametrize(
  'logits, labels', [((2,), (2,)), ((2, 3), (3,)), ((2, 3), (2, 1))]
)
def test_accuracy_of_shapes_that_do_not_fit(logits, labels):
  with pytest.raises(AssertionError):
    metrics.accuracy(np.zeros(logits), np.zeros(labels, int))


def test_rates_by_hand():
  # Table II of the paper, Top-K at 5 %.
  assert metrics.forgetting_rate(0.8, 0.6) == pytest.approx(0.25)
  assert metrics.forgetting_rate(0.5, 0.75) == -0.5
  assert metrics.forgetting_rate(0.4, 0.0) == 1
  assert metrics.memory_retention_rate(0.45, 0.9) == 0.5
  assert metrics.memory_retention_rate(1.0, 0.5) == 2
  assert metrics.memory_retention_rate(0.0, 0.5) == 0


@pytest.mark.parametrize('value', [-0.01, 1.01, 85.0, np.nan, np.inf])
def test_accuracies_have_to_be_shares(value):
  allowed = r'allowed: \[0, 1\]'
  with pytest.raises(ValueError, match=f'^before={value}, {allowed}'):
    metrics.forgetting_rate(value, 0.5)
  with pytest.raises(ValueError, match=f'^after={value}, {allowed}'):
    metrics.forgetting_rate(0.5, value)
  with pytest.raises(ValueError, match=f'^retain_after={value}, {allowed}'):
    metrics.memory_retention_rate(value, 0.5)
  with pytest.raises(ValueError, match=f'^forget_before={value}, {allowed}'):
    metrics.memory_retention_rate(0.5, value)


def test_denominators_must_not_be_zero():
  with pytest.raises(ValueError, match='before=0.0, .* denominator'):
    metrics.forgetting_rate(0.0, 0.0)
  with pytest.raises(ValueError, match='forget_before=0.0, .* denominator'):
    metrics.memory_retention_rate(1.0, 0.0)


def test_acceleration():
  assert metrics.acceleration(10, 4) == 2.5
  for value in (0, -1.0, np.nan, np.inf):
    with pytest.raises(ValueError, match=f'^retrain_seconds={value}, allow'):
      metrics.acceleration(value, 1.0)
    with pytest.raises(ValueError, match=f'^seconds={value}, allowed'):
      metrics.acceleration(1.0, value)


def test_gap_runs_over_what_both_have():
  a = {
    'forget_accuracy': 0.5,
    'retain_accuracy': 1.0,
    'test_accuracy': 0.75,
    'mia_auc': None,
    'seconds': 100.0,
  }
  b = {'forget_accuracy': 0.75, 'test_accuracy': 0.25, 'mia_auc': 0.5}
  assert metrics.gap(a, b) == metrics.gap(b, a) == 0.375
  assert metrics.gap(a, a) == 0
  full = dict.fromkeys(a, 0.0)
  assert metrics.gap(full, {'mia_auc': 1.0, 'seconds': 7.0}) == 1


def test_gap_of_what_cannot_be():
  with pytest.raises(ValueError, match=r"metrics=\[\['seconds'\]"):
    metrics.gap({'seconds': 1.0}, {'seconds': 1.0, 'mia_auc': 0.5})
  good = {'mia_auc': 0.5}
  for value in (1.5, np.nan):
    bad = {'mia_auc': value}
    with pytest.raises(ValueError, match=rf"metrics_a\['mia_auc'\]={value}"):
      metrics.gap(bad, good)
    with pytest.raises(ValueError, match=rf"metrics_b\['mia_auc'\]={value}"):
      metrics.gap(good, bad)


def test_interval_by_hand():
  # t(0.975, 2 degrees) = 4.302653, s = 1, n = 3.
  interval = metrics.mean_interval([1.0, 2.0, 3.0])
  half = 4.302653 / np.sqrt(3)
  assert interval.mean == 2
  assert interval.low == pytest.approx(2 - half, rel=1e-6)
  assert interval.high == pytest.approx(2 + half, rel=1e-6)
  assert interval.size == 3


def test_interval_is_what_scipy_gives():
  values = np.random.default_rng(0).standard_normal(7)
  for confidence in (0.5, 0.95, 0.99):
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(
      confidence
    )
    interval = metrics.mean_interval(values, confidence)
    assert interval[1:3] == pytest.approx((low, high))


def test_intervals_hold_the_mean_as_often_as_they_say():
  rng = np.random.default_rng(1)
  held = 0
  for _ in range(1000):
    interval = metrics.mean_interval(rng.normal(3.0, 2.0, size=4), 0.8)
    held += interval.low <= 3.0 <= interval.high
  assert 760 <= held <= 840


def test_a_single_value_has_no_interval():
  assert metrics.mean_interval([0.5]) == (0.5, None, None, 1)


def test_paired_interval_drops_what_a_seed_does_to_both():
  control = np.array([0.1, 0.5, 0.9, 0.3])
  values = control + np.array([0.01, 0.02, 0.01, 0.02])
  paired = metrics.paired_interval(values, control)
  assert paired == pytest.approx(metrics.mean_interval(values - control))
  assert paired.low > 0
  apart = metrics.mean_interval(values)
  assert apart.low < np.mean(control) < apart.high
  assert metrics.paired_interval([1.0], [0.5]) == (0.5, None, None, 1)


@pytest.mark.parametrize('value', [None, np.nan, np.inf])
def test_values_have_to_be_numbers(value):
  with pytest.raises(ValueError, match=rf'^values\[1\]={value}, allowed'):
    metrics.mean_interval([1.0, value])
  with pytest.raises(ValueError, match=rf'^values\[0\]={value}, allowed'):
    metrics.paired_interval([value], [1.0])
  with pytest.raises(ValueError, match=rf'^control\[0\]={value}, allowed'):
    metrics.paired_interval([1.0], [value])


def test_interval_errors():
  with pytest.raises(ValueError, match=r'values=\[\], allowed'):
    metrics.mean_interval([])
  with pytest.raises(ValueError, match=r'len\(control\)=1, allowed: 2'):
    metrics.paired_interval([1.0, 2.0], [1.0])
  for confidence in (0, 1, 95, -0.5, np.nan):
    with pytest.raises(ValueError, match=f'confidence={confidence}, allow'):
      metrics.mean_interval([1.0, 2.0], confidence)
