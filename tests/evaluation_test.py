import helpers
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from unlearn_jax import attacks, evaluation
from unlearn_jax.base import Examples, Splits
from unlearn_jax.evaluation import Predictions


def one_hot(labels, wrong=0):
  """Certain and right, except on the first `wrong` examples."""
  out = np.full((len(labels), 3), 0.05, np.float32)
  chosen = np.asarray(labels).copy()
  chosen[:wrong] = (chosen[:wrong] + 1) % 3
  out[np.arange(len(labels)), chosen] = 0.9
  return out


def test_every_number_by_hand():
  labels = np.arange(30, dtype=np.int32) % 3
  every = Examples.of(np.zeros((30, 1), np.float32), labels)
  splits = Splits(
    every.take(np.arange(20)),
    every.take(np.arange(10)),
    every.take(np.arange(10, 20)),
    every.take(np.arange(20, 30)),
  )

  def made(forget, retain, test):
    return Predictions(
      one_hot(labels[:10], forget),
      one_hot(labels[10:20], retain),
      one_hot(labels[20:], test),
    )

  source, retrained = made(0, 0, 4), made(4, 0, 4)
  got = evaluation.compare(made(2, 1, 5), source, splits, retrained)
  assert got.forget_accuracy == pytest.approx(0.8)
  assert got.retain_accuracy == pytest.approx(0.9)
  assert got.test_accuracy == pytest.approx(0.5)
  assert got.forgetting_rate == pytest.approx(0.2)
  assert got.memory_retention_rate == pytest.approx(0.9)
  # Two of ten forget and five of ten test losses are high, all others equal:
  # P(low, high) + half the ties = 0.8·0.5 + 0.5·(0.8·0.5 + 0.2·0.5).
  assert got.mia_auc == pytest.approx(0.65)
  # Retrain: 0.6, 1.0, 0.6 and an AUC of 0.5.
  assert got.gap_to_retrained == pytest.approx((0.2 + 0.1 + 0.1 + 0.15) / 4)
  assert 0 < got.similarity < 1
  same = evaluation.compare(retrained, source, splits, retrained)
  assert (same.gap_to_retrained, same.similarity) == (0, pytest.approx(1))
  alone = evaluation.compare(source, source, splits)
  assert alone.similarity is None and alone.gap_to_retrained is None
  assert alone.forgetting_rate == 0


def test_without_a_right_answer_before_there_is_no_rate():
  every = Examples.of(np.zeros((4, 1), np.float32), np.zeros(4, np.int32))
  splits = Splits.of(every, np.array([0, 1]), every)
  source = Predictions(one_hot([1, 1]), one_hot([0, 0]), one_hot([0, 0, 0, 0]))
  got = evaluation.compare(source, source, splits)
  assert got.forget_accuracy == 0
  assert got.forgetting_rate is None and got.memory_retention_rate is None


def test_evaluate_predicts_every_split():
  import jax

  from unlearn_jax import training

  model, splits = helpers.model(), helpers.splits()
  states = [
    training.initialize(jax.random.key(seed), model) for seed in range(3)
  ]
  got = evaluation.evaluate(model, states[0], states[1], splits, states[2])
  want = evaluation.compare(
    *(evaluation.predict_splits(model, s, splits) for s in states[:2]),
    splits,
    evaluation.predict_splits(model, states[2], splits),
  )
  assert got == want


@pytest.mark.parametrize('seed', range(3))
def test_auc_against_sklearn(seed):
  rng = np.random.default_rng(seed)
  members = rng.integers(0, 9, 40) / 4
  others = rng.integers(2, 12, 25) / 4
  truth = np.r_[np.ones(40), np.zeros(25)]
  want = sklearn_metrics.roc_auc_score(truth, -np.r_[members, others])
  got = attacks.loss_threshold_auc(members, others)
  assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
  'members, others', [([], [1.0]), ([1.0], []), ([np.nan], [1.0])]
)
def test_auc_of_nothing_is_refused(members, others):
  with pytest.raises(ValueError, match='allowed: a vector of at least one'):
    attacks.loss_threshold_auc(np.array(members), np.array(others))
