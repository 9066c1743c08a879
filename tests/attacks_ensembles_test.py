"""Ensembles, comparisons with Retrain, and canaries, with known answers."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import attacks, base

# Ensembles.


def columns(*values):
  return [np.array(v, float)[:, None] for v in values]


@pytest.mark.parametrize(
  'own, its, want',
  [
    ([0, 0, 1, 1], [0, 1, 1, 1], 0.14384),
    ([1] * 4, [0] * 4, np.log(1e5)),
    ([3] * 4, [3] * 4, 0),
    ([150] * 4, [100] * 4, 0),
    ([100] * 4, [150] * 4, 0),
  ],
)
def test_klom_by_hand(own, its, want):
  got = attacks.klom(*columns(own, its))
  np.testing.assert_allclose(got, [want], atol=5e-6)


@pytest.mark.parametrize(
  'own, its, epsilon, score',
  [
    ([1, 2, 3, 4], [0, 1.5, 2.5, 3.5], np.log(2), 0.5),
    ([1, 2, 3, 4], [1, 2, 3, 4], 0, 1),
    ([1, 2, 3, 4], [-2, -1, 0, 1.5], np.log(3), 0.25),
    ([10, 11, 12], [0, 1, 2], 50, 0),
    ([5, 5, 5], [5, 5, 5], 0, 1),
    ([5, 5, 5], [1, 2, 3], 50, 0),
    ([5, 5, 5], [4, 4, 4], 50, 0),
  ],
)
def test_forgetting_score_by_hand(own, its, epsilon, score):
  for pair in (columns(own, its), columns(its, own)):
    got, epsilons = attacks.forgetting_score(*pair)
    assert got == score
    np.testing.assert_allclose(epsilons, [epsilon], atol=3e-5)


def test_forgetting_score_against_all_thresholds_at_once():
  rng = np.random.default_rng(0)
  own, its = rng.normal(0, 1, 8), rng.normal(0.8, 0.6, 8)
  w, both = np.ptp(its), np.concatenate([own, its])
  assert np.median(its) > np.median(own) and w < np.ptp(own)
  t = np.linspace(both.min(), both.max(), int(np.ceil(np.ptp(both) * 100)))
  right = np.linspace(its.max() - 2, its.max() + 2, 400)[:, None]
  left = np.linspace(right[:, 0] - w - 2, right[:, 0] - w + 2, 400, axis=1)
  tpr, fpr = (
    np.concatenate(
      [
        np.mean(x[:, None] >= t, 0),
        np.mean(
          (left <= x[:, None, None]) & (x[:, None, None] <= right), 0
        ).ravel(),
      ]
    )
    for x in (its, own)
  )
  kept = (tpr < 1) & (fpr > 0)
  fnr, fpr = 1 - tpr[kept], fpr[kept]
  rates = np.maximum(1 - 1e-5 - np.stack([fpr, fnr]), 1e-9)
  want = np.log(rates / [fnr, fpr]).max()
  got = attacks.forgetting_score(own[:, None], its[:, None])[1][0]
  assert got == pytest.approx(want) and 0.5 < want < 5


def test_alike_ensembles_score_neither_1_nor_0():
  rng = np.random.default_rng(0)
  a, b = attacks.halves(jax.random.key(0), rng.normal(0, 1, (128, 50)))
  assert a.shape == b.shape == (64, 50)
  assert 0.1 < attacks.forgetting_score(a, b)[0] < 0.35
  assert 0.4 < attacks.klom(a, b).mean() < 0.9
  far = attacks.forgetting_score(a + 3, b)[0], attacks.klom(a + 3, b).mean()
  assert far[0] < 0.01 and far[1] > 4


def test_the_forgetting_score_depends_on_the_unit_and_klom_does_not():
  rng = np.random.default_rng(0)
  a, b = rng.normal(0, 1, (2, 64, 10))
  assert attacks.forgetting_score(a / 50, b / 50) != (
    attacks.forgetting_score(a, b)
  )
  np.testing.assert_allclose(attacks.klom(a / 50, b / 50), attacks.klom(a, b))


def test_ensembles_that_cannot_be_compared_are_refused():
  three, narrow = columns([1, 2, 3]), columns([0, 1e-4, 3e-4])
  with pytest.raises(ValueError, match=r'models=\(3, 2\), allowed: as many'):
    attacks.forgetting_score(*three, *columns([1, 2]))
  with pytest.raises(ValueError, match='allowed: wide enough'):
    attacks.forgetting_score(*narrow, *columns([1e-4, 2e-4, 4e-4]))
  with pytest.raises(ValueError, match=r'examples=\(1, 2\)'):
    attacks.klom(*three, np.zeros((3, 2)))


# Against Retrain.


def test_residual_knowledge_is_undefined_where_retrain_knows_nothing():
  right, wrong = np.array([[1.0, 0]]), np.array([[0, 1.0]])
  found = attacks.residual_knowledge(right, wrong, np.array([0]))
  assert found == (None, 1, 0)


def test_js_to_retrained_by_hand():
  p = np.array([[0.5, 0.5], [1, 0]])
  got = attacks.js_to_retrained(p, np.array([[1.0, 0], [0, 1]]))
  assert got == pytest.approx((0.31128 + 1) / 2, abs=5e-6)


def test_a_distance_of_logits_is_refused():
  p, logits = np.array([[0.9, 0.1]]), np.array([[4.0, -3.0]])
  for pair, name in (((logits, p), 'p'), ((p, logits), 'q')):
    with pytest.raises(ValueError, match=f'{name}, off by=3.0, allowed: prob'):
      attacks.activation_distance(*pair)
  halves = np.float32([[0.3, 0.7]]), np.float32([[0.7, 0.3]])
  got = attacks.activation_distance(*halves)
  assert got == pytest.approx(0.4 * np.sqrt(2))


def test_relearning_is_censored_at_the_end_of_the_curve():
  assert attacks.relearn_epochs([0.96], 1.0) == 0
  assert attacks.relearn_epochs([0.1, 0.94, 0.2], 1.0) is None
  assert attacks.relearn_epochs([0.1, 0.8], 0.8, tolerance=0) == 1


def test_relearned_is_who_has_just_as_many_right_as_asked_for():
  assert 0.95 * (20 / 53) > 19 / 53  # In floating point.
  assert attacks.relearn_epochs([0.1, 19 / 53, 1], 20 / 53) == 1
  assert attacks.relearn_epochs([0.1, 18 / 53, 1], 20 / 53) == 2
  for curve, source in (([0.1], np.nan), ([0.1, 95.0], 1.0), ([0.1], 98.0)):
    with pytest.raises(ValueError, match=r'accuracy=.*, allowed: \[0, 1\]'):
      attacks.relearn_epochs(curve, source)


# Canaries.


def test_noise_is_returned_as_drawn_and_as_added():
  images = np.array([[0, 128, 255]] * 50, np.uint8)
  found = attacks.plant(jax.random.key(0), images, scale=20)
  assert found.images.dtype == np.uint8 and 15 < found.noise.std() < 25
  np.testing.assert_array_equal(
    found.added, found.images.astype(int) - images.astype(int)
  )
  assert found.added[:, 0].min() == 0 and found.added[:, 2].max() == 0
  whole = attacks.plant(jax.random.key(0), images / 255, scale=0.1)
  np.testing.assert_allclose(whole.added, whole.noise, atol=1e-6)
  with pytest.raises(ValueError, match="dtype='int64', allowed: uint8 or floa"):
    attacks.plant(jax.random.key(0), images.astype(np.int64), scale=1)


def test_canaries_find_what_was_learned_and_nothing_else():
  """A linear softmax on canaries with random labels, against a twin without."""
  keys = jax.random.split(jax.random.key(0), 4)
  images = jax.random.uniform(keys[0], (100, 128))
  labels = jax.random.randint(keys[1], (100,), 0, 5)
  planted = attacks.plant(keys[2], images, scale=0.3)

  def loss(weights, x):
    log_p = jax.nn.log_softmax(x @ weights)
    return -jnp.take_along_axis(log_p, labels[:, None], 1).sum()

  def z_of(x):
    weights = jax.lax.fori_loop(
      0, 300, lambda _, w: w - 0.005 * jax.grad(loss)(w, x), jnp.zeros((128, 5))
    )
    gradients = jax.grad(loss, 1)(weights, images)
    statistic = attacks.canary_statistic(gradients, planted.noise, 0.3)
    return attacks.canary_test(statistic)

  knows, never = z_of(jnp.asarray(planted.images)), z_of(images)
  assert knows.z < -10 and knows.p_value < 1e-20 and knows.used == 100
  assert abs(never.z) < 3 and never.p_value > 0.001


def test_clipped_noise_gives_false_alarms_and_drawn_noise_none():
  """Images that are black at the border, and gradients that look there."""
  images = np.zeros((400, 10, 10), np.uint8)
  images[:, 3:7, 3:7] = 128
  gradients = np.random.default_rng(0).normal(1, 0.5, images.shape)
  planted = attacks.plant(jax.random.key(1), images, scale=16)
  drawn, added = (
    attacks.canary_test(attacks.canary_statistic(gradients, noise, 16))
    for noise in (planted.noise, planted.added)
  )
  assert abs(drawn.z) < 3 and added.z > 20


def test_a_rank_among_decoys_is_of_mean_0_and_variance_1():
  rng = np.random.default_rng(0)
  decoys = rng.normal(size=(19, 20_000))
  found = attacks.canary_ranks(rng.normal(size=20_000), decoys)
  assert abs(found.mean()) < 0.03 and abs(found.var() - 1) < 0.03
  # All ranks, and a tie with each decoy.
  three = np.array([[1.0] * 4, [2.0] * 4])
  found = attacks.canary_ranks([0.0, 1.5, 3.0, 1.0], three)
  unit = np.sqrt(3 / 2)
  np.testing.assert_allclose(found, [-unit, 0, unit, -unit / 2])
  with pytest.raises(ValueError, match=r'allowed: \[K, 4\], K above 0'):
    attacks.canary_ranks(np.zeros(4), np.zeros((3, 5)))


def test_canaries_without_a_gradient_are_counted():
  g = np.array([[3.0, 4], [4, -3], [0, 0]])
  statistic = attacks.canary_statistic(g, np.array([[3.0, 4]] * 3), 1)
  np.testing.assert_array_equal(statistic, [5, 0, np.nan])
  found = attacks.canary_test(statistic)
  assert (found.used, found.dropped) == (2, 1)
  assert found.z == pytest.approx(5 / np.sqrt(2))
  assert attacks.canary_test([np.nan]) == (None, None, 0, 1)


@pytest.mark.parametrize(
  'counts, want',
  [
    ((100, 100, 0, 100), 3.2813),
    ((40, 50, 10, 50), 0.6759),
    ((5, 50, 5, 50), 0),
  ],
)
def test_epsilon_by_clopper_and_pearson(counts, want):
  got = attacks.epsilon_clopper_pearson(*counts)
  assert got == pytest.approx(want, abs=5e-5)


def test_epsilon_with_delta_is_lower_and_never_of_a_negative():
  got = attacks.epsilon_clopper_pearson(40, 50, 10, 50, delta=0.1)
  low, high = 0.66281, 0.33719
  assert got == pytest.approx(np.log((low - 0.1) / high), abs=1e-4)
  assert attacks.epsilon_clopper_pearson(1, 50, 0, 50, delta=0.5) == 0
  for delta in (-1e-5, 1, np.nan):  # Below 0 it would be a higher bound.
    with pytest.raises(ValueError, match=r'delta=.*, allowed: \[0, 1\)'):
      attacks.epsilon_clopper_pearson(40, 50, 10, 50, delta=delta)


def test_epsilon_of_one_run():
  pytest.importorskip('jax_privacy', reason='the extra [audit]')
  scores = np.ones(100), np.zeros(100)
  got = attacks.epsilon_one_run(*scores, 0.5)
  assert got == pytest.approx(3.4875, abs=1e-4)
  tiny = attacks.epsilon_one_run(*scores, 0.5, delta=1e-12)
  assert tiny == pytest.approx(3.4930, abs=1e-4)
  some = np.r_[np.ones(40), np.zeros(10)]
  got = attacks.epsilon_one_run(some, 1 - some, 0.5, delta=1e-12)
  assert got == pytest.approx(0.7741, abs=1e-4)
  assert attacks.epsilon_one_run(some, some, 0.5) == 0


def test_without_the_extra_the_error_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax_privacy', None)
  with pytest.raises(
    base.InputError, match=r"pip install 'unlearn_jax\[audit\]"
  ):
    attacks.epsilon_one_run(np.ones(2), np.zeros(2), 0.5)
