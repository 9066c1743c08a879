"""Attacks against hand-worked numbers, other formulas, and known truths."""

import contextlib
import io
import pathlib
import re

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import metrics as sklearn_metrics
from sklearn.svm import SVC

from unlearn_jax import attacks
from unlearn_jax.attacks import Status

OUT, IN, KEPT = Status


# Scores.


def test_margins_by_hand():
  logits = np.array([[2.0, 0, 0], [0, np.log(9), -np.inf], [1e4, 0, 0]])
  got = attacks.true_class_margin(logits, [0, 1, 1])
  np.testing.assert_allclose(got, [2 - np.log(2), np.log(9), -1e4], rtol=1e-12)


def test_log_probabilities_keep_what_softmax_rounds():
  logits = np.array([[50.0, 0], [0, 1e3]])
  got = attacks.true_class_log_probability(logits, [0, 0])
  np.testing.assert_allclose(got, [-np.exp(-50), -1e3], rtol=1e-12)


@pytest.mark.parametrize(
  'labels, words',
  [
    ([0, 3], 'labels=3, allowed: 0 to 2'),
    ([0, -1], 'labels=-1, allowed: 0 to 2'),
    ([0.0, 1.0], r'labels=.*allowed: integers \[2\]'),
    ([0], r'labels=.*allowed: integers \[2\]'),
  ],
)
def test_labels_that_do_not_fit_are_refused(labels, words):
  with pytest.raises(ValueError, match=words):
    attacks.true_class_margin(np.zeros((2, 3)), labels)


@pytest.mark.parametrize('seed', range(3))
def test_auc_against_sklearn(seed):
  rng = np.random.default_rng(seed)
  members = rng.integers(0, 9, 40) / 4
  others = rng.integers(2, 12, 25) / 4
  truth = np.r_[np.ones(40), np.zeros(25)]
  want = sklearn_metrics.roc_auc_score(truth, np.r_[members, others])
  assert attacks.auc(members, others) == pytest.approx(want, abs=1e-12)
  got = attacks.loss_threshold(members, others)
  assert got == pytest.approx(1 - want, abs=1e-12)


@pytest.mark.parametrize(
  'members, others', [([], [1.0]), ([1.0], []), ([np.nan], [1.0])]
)
@pytest.mark.parametrize('attack', [attacks.auc, attacks.loss_threshold])
def test_auc_of_nothing_is_refused(attack, members, others):
  with pytest.raises(ValueError, match='allowed: (.[MN]., each|numbers)'):
    attack(np.array(members), np.array(others))


def test_the_interval_of_the_auc_is_delongs():
  rng = np.random.default_rng(0)
  members, others = rng.integers(1, 9, 30), rng.integers(0, 8, 20)
  wins = (members[:, None] > others) + (members[:, None] == others) / 2
  variance = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 20
  half = 1.959964 * np.sqrt(variance)
  want = wins.mean() - half, wins.mean() + half
  got = attacks.auc_interval(members, others)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_interval_of_the_auc_covers_and_is_clipped():
  rng = np.random.default_rng(1)
  truth = scipy.stats.norm.cdf(1 / np.sqrt(2))
  held = 0
  for _ in range(300):
    low, high = attacks.auc_interval(rng.normal(1, 1, 50), rng.normal(0, 1, 50))
    held += low <= truth <= high
  assert 0.91 <= held / 300 <= 0.98
  assert attacks.auc_interval(np.arange(3) + 9, np.arange(3)) == (1, 1)
  assert attacks.auc_interval(np.arange(4) - 1, np.arange(4))[0] == 0
  with pytest.raises(ValueError, match='2 or more'):
    attacks.auc_interval([1.0], [0.0, 1.0])


def test_tpr_is_a_step_that_is_never_interpolated():
  members, others = np.array([5, 4, 3, 1]), np.array([4, 2, 2, 0])
  steps = {0: 0.25, 0.24: 0.25, 0.25: 0.75, 0.74: 0.75, 0.75: 1, 1: 1}
  for fpr, want in steps.items():
    assert attacks.tpr_at_fpr(members, others, fpr) == want, fpr
  # As many false alarms as 0.29 of 100 allows, whatever floats make of it.
  assert attacks.tpr_at_fpr(np.arange(100) + 0.5, np.arange(100), 0.29) == 0.3


def test_the_interval_of_the_tpr_is_exact():
  low, high = attacks.tpr_interval(np.r_[np.ones(40), np.zeros(10)], [0.5], 0)
  beta = scipy.stats.beta
  want = beta.ppf(0.025, 40, 11), beta.ppf(0.975, 41, 10)
  np.testing.assert_allclose((low, high), want, atol=1e-9)


# LiRA.


def two_sides():
  phi = np.array([[1.0], [3.0], [-1.0], [1.0]])
  return phi, np.array([[IN], [IN], [OUT], [OUT]])


def test_u_lira_by_hand():
  target, truth = (
    np.array([[2.0], [1.0], [0.0]]),
    np.array([[IN], [OUT], [OUT]]),
  )
  found = attacks.u_lira(*two_sides(), target, truth)
  np.testing.assert_allclose(found.log_ratio[:, 0], [2, 0, -2], atol=1e-12)
  want = [0.8808, 0.5, 0.1192]
  np.testing.assert_allclose(found.posterior[:, 0], want, atol=5e-5)
  # The member is found, an OUT is not, and Λ = 0 counts half.
  assert found.balanced_accuracy == 0.875 and found.oracle_accuracy == 1
  assert found.auc == 1 and found.auc_by_target == (None, None, None)
  assert (found.fewest_in, found.fewest_out, found.out) == (2, 2, 'unlearned')


def test_margins_that_are_all_equal_say_nothing():
  """So does an unlearner that answers with one margin: look at its utility."""
  phi, status = np.full((20, 3), 7.0), np.repeat([[IN], [OUT]], 10, 0)
  status = np.repeat(status, 3, 1)
  found = attacks.u_lira(phi, status, phi[:4] + 1, status[8:12])
  np.testing.assert_array_equal(found.log_ratio, 0)
  assert found.auc == found.balanced_accuracy == found.oracle_accuracy == 0.5


def test_of_few_models_the_standard_deviation_is_pooled():
  rng = np.random.default_rng(0)
  phi, target = rng.normal(0, [1, 5, 2], (14, 3)), rng.normal(0, 1, (2, 3))
  status = np.repeat([[IN], [OUT]], 7, 0) * np.ones((1, 3), int)
  sides = phi[:7], phi[7:]

  def density(side):
    pooled = np.sqrt(np.mean((side - side.mean(0)) ** 2))
    return scipy.stats.norm.logpdf(target, side.mean(0), pooled)

  got = attacks.lira(phi, status, target)
  np.testing.assert_allclose(got, density(sides[0]) - density(sides[1]))


def test_no_standard_deviation_is_far_below_the_others():
  """An example on which all models agree is not evidence without end."""
  rng = np.random.default_rng(0)
  phi = rng.normal(0, 1, (20, 50))
  phi[:, 0] = np.r_[np.zeros(10), np.full(10, 0.01)]
  status = np.repeat([[IN], [OUT]], 10, 0) * np.ones((1, 50), int)
  ratio = attacks.lira(phi, status, np.full((1, 50), 1.0))
  pooled = [np.sqrt(np.mean((s - s.mean(0)) ** 2)) for s in np.split(phi, 2)]
  want = [
    scipy.stats.norm.logpdf(1, mean, 0.1 * own)
    for mean, own in zip((0, 0.01), pooled)
  ]
  assert ratio[0, 0] == pytest.approx(want[0] - want[1], rel=1e-9)


def world(seed, shift, models=44, examples=300):
  """φ and statuses; what a model unlearned keeps a margin higher by `shift`."""
  rng = np.random.default_rng(seed)
  column = np.resize([OUT, IN, OUT, IN, KEPT], (models, 1))
  status = rng.permuted(np.repeat(column, examples, 1), axis=0)
  moved = np.array([0, shift, 4])[status]
  return rng.normal(0, 2, examples) + rng.normal(moved, 1), status


@pytest.mark.parametrize('shift, low, high', [(0, 0.45, 0.55), (2, 0.88, 0.93)])
def test_u_lira_finds_what_is_left_and_nothing_else(shift, low, high):
  """Two normals 2σ apart have an AUC of Φ(√2) = .921."""
  phi, status = world(0, shift)
  found = attacks.u_lira(phi[:40], status[:40], phi[40:], status[40:])
  assert low < found.auc < high and len(found.auc_by_target) == 4
  assert low - 0.1 < found.balanced_accuracy <= found.oracle_accuracy
  assert list(found.tpr) == [0.001, 0.01, 0.05]
  counts = [(status[:40] == s).sum(0).min() for s in (IN, OUT)]
  assert [found.fewest_in, found.fewest_out] == counts


def test_a_target_in_its_own_fit_sees_what_is_not_there():
  phi, status = world(1, 0, models=10)

  def area(ratio):
    return attacks.auc(ratio[status == IN], ratio[status == OUT])

  assert area(attacks.lira(phi, status, phi)) > 0.6
  assert 0.4 < area(attacks.lira_leave_one_out(phi, status)) < 0.53


def test_out_may_be_what_retrained_models_say():
  phi, status = two_sides()
  retrained = np.array([[-2.0], [0.0], [-2.0], [0.0]])
  target = np.array([[2.0], [-1.0]])
  got = attacks.lira(phi, status, target, out=retrained)
  np.testing.assert_allclose(got[:, 0], [4.5, -4.5])
  truth = np.array([[IN], [OUT]])
  found = attacks.u_lira(phi, status, target, truth, out=retrained)
  assert found.out == 'retrained' and found.fewest_out == 4


def test_what_is_retained_can_be_attacked():
  phi, status = world(2, 0)
  ratio = attacks.lira(phi[4:], status[4:], phi[:4], members=KEPT)
  truth = status[:4]
  assert attacks.auc(ratio[truth == KEPT], ratio[truth == OUT]) > 0.95


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda p, s: (p * np.nan, s), 'phi=nan, allowed: finite numbers'),
    (lambda p, s: (p, s + 2), r'status=3, allowed: 0 \(OUT\), 1 \(IN_FORGET\)'),
    (lambda p, s: (p, s[:2]), r'status.shape=\(2, 1\), allowed: \(4, 1\)'),
    (lambda p, s: (p[1:], s[1:]), 'status of IN_FORGET=1, allowed: 2 models'),
  ],
)
def test_shadow_models_that_do_not_fit_are_refused(change, words):
  phi, status = change(*two_sides())
  with pytest.raises(ValueError, match=words):
    attacks.lira(phi, status, np.zeros((1, 1)))


def test_the_most_vulnerable_are_chosen_by_what_training_changed():
  phi, status = world(3, 4)
  noise = np.random.default_rng(0).normal(0, 1, phi.shape)
  phi[:, 5:] = np.where(status == OUT, 0, 0.1)[:, 5:] + noise[:, 5:]
  got = attacks.most_vulnerable(phi, status, share=0.0151)
  assert set(got[:5]) == set(range(5)) and len(got) == 5
  hundred = phi[:, :100], status[:, :100]
  sizes = {0.07: 7, 0.071: 8, 1: 100, 1e-12: 1}
  for share, size in sizes.items():
    assert len(attacks.most_vulnerable(*hundred, share)) == size, share


def test_offline_lira_is_one_sided():
  out = np.array([[-1.0] * 4, [1.0] * 4])
  got = attacks.lira_offline(np.array([1.6449, 0, -3, 3]), out)
  want = [0.95, 0.5, 0.00135, 0.99865]
  np.testing.assert_allclose(got, want, atol=1e-5)


# RMIA.


def test_rmia_by_hand():
  x = np.log([0.9]), np.log([[0.3], [0.5]])
  z = np.log([0.3, 0.6, 0.8]), np.log([[0.4, 0.4, 0.9]] * 2)
  assert np.exp(attacks.rmia(*x))[0] == pytest.approx(1.47541, abs=5e-6)
  ratios = np.exp(attacks.rmia(*z))
  np.testing.assert_allclose(ratios, [0.4918, 0.98361, 0.85561], atol=5e-6)
  assert attacks.rmia(*x, z)[0] == 1
  assert attacks.rmia(*x, z, gamma=2)[0] == pytest.approx(1 / 3)


def test_of_a_population_ties_count_as_dominated():
  x = np.log([0.5]), np.log([[0.4]])
  z = np.log([0.5, 0.5, 0.6]), np.log([[0.4, 0.3, 0.4]])
  assert attacks.rmia(*x, z)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize('a, want', [(0, 2 * 0.9), (1, 0.9 / 1e-12)])
def test_references_that_rule_an_example_out_divide_by_no_zero(a, want):
  got = attacks.rmia(np.log([0.9]), np.array([[-np.inf], [-900.0]]), a=a)
  assert np.exp(got)[0] == pytest.approx(want)


def test_rmia_of_probabilities_that_underflow():
  z = np.array([-1000.0, -3000.0]), np.log([[0.5, 0.5]])
  got = attacks.rmia(np.array([-2000.0]), np.log([[0.5]]), z)
  assert got[0] == 0.5 and np.exp(z[0]).max() == 0


def test_for_one_model_the_population_changes_ties_only():
  rng = np.random.default_rng(0)
  log_p = np.log(rng.uniform(0.1, 1, 60))
  references = np.log(rng.uniform(0.1, 1, (3, 60)))
  z = np.log(rng.uniform(0.1, 1, 5000)), np.log(rng.uniform(0.1, 1, (3, 5000)))
  ratio = attacks.rmia(log_p, references)
  score = attacks.rmia(log_p, references, z)
  assert np.all(np.diff(score[np.argsort(ratio)]) >= 0)
  areas = [attacks.auc(s[:30], s[30:]) for s in (ratio, score)]
  assert areas[0] == pytest.approx(areas[1], abs=0.005)


@pytest.mark.parametrize(
  'arguments, words',
  [
    (dict(log_p=[0.9]), 'log_p=0.9, allowed: log-probabilities, at most 0'),
    (dict(log_p=[-1.0, -1.0]), r'log_p.shape=\(2,\), allowed: one n'),
    (
      dict(z=([-1.0], [[-1.0], [-2.0]])),
      r'len\(references, z\[1\]\)=\(1, 2\), allowed: the same models',
    ),
    (dict(gamma=0), 'gamma=0, allowed: above 0'),
    (dict(a=1.5), r'a=1.5, allowed: \[0, 1\]'),
  ],
)
def test_what_rmia_cannot_use_is_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    attacks.rmia(**dict(log_p=[-1.0], references=[[-1.0]]) | arguments)


# Against the formulas of other tools, derived again.


def test_rmia_is_ml_privacy_meters():
  """All references are OUT; of theirs the default is the upper half of them."""
  rng = np.random.default_rng(0)
  p, z = rng.uniform(0, 1, 200), rng.uniform(0, 1, 500)
  own, its = rng.uniform(0, 1, (4, 200)), rng.uniform(0, 1, (4, 500))

  def theirs(count, a=0.3):
    ratios = []
    for target, references in ((p, own), (z, its)):
      largest = np.sort(references, axis=0)[::-1][:count].mean(0)
      ratios.append(target / ((1 + a) / 2 * largest + (1 - a) / 2))
    return np.mean(ratios[0][:, None] / ratios[1] > 1.0, axis=1)

  got = attacks.rmia(np.log(p), np.log(own), (np.log(z), np.log(its)))
  np.testing.assert_allclose(got, theirs(4), atol=1e-12)
  assert abs(got - theirs(2)).max() > 0.02


def test_lira_is_tf_privacys_but_for_median_and_side():
  rng = np.random.default_rng(0)
  inside, outside = rng.normal(1, 1, (32, 100)), rng.normal(0, 1.5, (32, 100))
  target = rng.normal(0.5, 1, (1, 100))

  def theirs(middle, *sides):
    densities = [
      scipy.stats.norm.logpdf(target, middle(s, axis=0), s.std(0) + 1e-30)
      for s in sides
    ]
    return densities[0] - densities[1] if len(sides) == 2 else -densities[0]

  status = np.repeat([[IN], [OUT]], 32, 0) * np.ones((1, 100), int)
  got = attacks.lira(np.concatenate([inside, outside]), status, target)
  np.testing.assert_allclose(got, theirs(np.mean, inside, outside))
  median = theirs(np.median, inside, outside)
  assert 0.1 < abs(got - median).max() and np.corrcoef(got, median)[0, 1] > 0.95
  # Offline theirs is a density: what is far below is a "member" too.
  offline = attacks.lira_offline(target[0], outside)
  two_sided = theirs(np.mean, outside)[0]
  above = target[0] > outside.mean(0)
  for side, sign in ((above, 1), (~above, -1)):
    z = abs(target[0] - outside.mean(0)) / outside.std(0)
    ranks = scipy.stats.rankdata(offline[side])
    np.testing.assert_array_equal(ranks, scipy.stats.rankdata(sign * z[side]))
  assert two_sided[~above].max() > np.median(two_sided[above])


# SVC.


def logits_of(*confidences):
  p = np.array(confidences)
  with np.errstate(divide='ignore'):
    return np.log(np.stack([p, 1 - p], 1)), np.zeros(len(p), int)


def test_svc_efficacy_by_hand():
  found = attacks.svc_efficacy(
    logits_of(1, 1, 1, 1),
    logits_of(0.2, 0.2, 0.2, 0.2),
    logits_of(1, 1, 0.2, 0.2),
  )
  names = ['correctness', 'confidence', 'entropy', 'modified_entropy', 'prob']
  assert found == dict.fromkeys(names, 0.5)


def test_svc_efficacy_is_scikit_learns():
  rng = np.random.default_rng(0)
  parts = [(rng.normal(0, s, (40, 4)), np.zeros(40, int)) for s in (3, 1, 2)]
  p = [scipy.special.softmax(logits, axis=1) for logits, _ in parts]
  found = attacks.svc_efficacy(*parts)
  for name, feature in {'prob': slice(4), 'confidence': slice(1)}.items():
    x = [own[:, feature] for own in p]
    classifier = SVC(C=3, gamma=1 / x[0].shape[1])
    classifier.fit(np.concatenate(x[:2]), np.repeat([1, 0], 40))
    assert found[name] == 1 - classifier.predict(x[2]).mean()
    assert 0.1 < found[name] < 0.9


def test_a_feature_that_is_the_same_for_all_calls_all_the_same():
  alike = logits_of(0.9, 0.9), logits_of(0.9, 0.9, 0.9), logits_of(0.9, 0.1)
  assert attacks.svc_efficacy(*alike)['confidence'] == 1
  assert attacks.svc_efficacy(alike[1], alike[0], alike[2])['correctness'] == 0


def test_modified_entropy_by_hand_and_where_softmax_rounds():
  logits, _ = logits_of(0.8, 0.8)
  got = attacks.modified_entropy(logits, [0, 1])
  np.testing.assert_allclose(got, [0.08926, 2.5751], atol=5e-6)
  got = attacks.modified_entropy(np.array([[800.0, 0], [800.0, 0]]), [0, 1])
  np.testing.assert_allclose(got, [0, 1600])


def test_compat_repeats_the_fault_of_the_papers_code():
  """There each label of the batch is taken for the label of every row."""
  from unlearn_jax.attacks import svc

  rng = np.random.default_rng(0)
  logits, labels = rng.normal(0, 3, (6, 4)), np.array([0, 2, 0, 2, 2, 0])
  p = scipy.special.softmax(logits, axis=1)
  mixed = p.copy()
  mixed[:, labels] = (1 - p)[:, labels]
  want = -np.sum(mixed * np.log(p), axis=1)
  features = svc._features(logits, labels, compat=True)
  np.testing.assert_allclose(features['modified_entropy'][:, 0], want)
  right = svc._features(logits, labels, compat=False)
  assert abs(right['modified_entropy'][:, 0] - want).min() > 0.1


def test_the_page_on_auditing_shows_what_runs():
  page = pathlib.Path(__file__).parent.parent / 'docs' / 'auditing.md'
  code = '\n'.join(
    re.findall(r'^```python\n(.*?)^```$', page.read_text(), re.M | re.S)
  )
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, page.name, 'exec'), {})
  assert 0.4 < float(out.getvalue().split()[0]) < 0.6
  z = re.search(r'CanaryTest\(z=(\S+), .*used=100, dropped=0\)', out.getvalue())
  assert abs(float(z[1])) < 4
