"""What is left of D_UL: one report of a model against source and Retrain."""

from typing import NamedTuple

import numpy as np

from unlearn_jax import attacks, metrics
from unlearn_jax.base import Examples, Model, ModelState, Splits
from unlearn_jax.divergences import similarity
from unlearn_jax.prediction import per_example_loss, predict


class Predictions(NamedTuple):
  """A model's class probabilities.

  Attributes:
    forget: float32 `[|D_UL|, C]`.
    retain: float32 `[|D_RE|, C]`.
    test: float32 `[|test|, C]`.
  """

  forget: np.ndarray
  retain: np.ndarray
  test: np.ndarray


class Evaluation(NamedTuple):
  """How a model stands to the source and to Retrain; shares in [0, 1].

  Attributes:
    forget_accuracy: on D_UL. Lower is not better: the goal is Retrain's.
    retain_accuracy: on D_RE.
    test_accuracy: on data that no model has seen.
    forgetting_rate: Eq. 17, relative to the *source* on D_UL; None where
      the source has none of D_UL right.
    memory_retention_rate: Eq. 18, on D_RE relative to the source on *D_UL*;
      None likewise.
    mia_auc: loss-threshold membership inference, D_UL against test; 0.5 is
      no leak.
    similarity: 1 − mean JS divergence to Retrain on D_UL, in bits; None
      without a retrained model.
    gap_to_retrained: mean |Δ| to Retrain over forget, retain and test
      accuracy and `mia_auc`; None without a retrained model.
  """

  forget_accuracy: float
  retain_accuracy: float
  test_accuracy: float
  forgetting_rate: float | None
  memory_retention_rate: float | None
  mia_auc: float
  similarity: float | None
  gap_to_retrained: float | None


def predict_splits(
  model: Model, state: ModelState, splits: Splits
) -> Predictions:
  """Predicts every example of D_UL, D_RE and the test set."""
  return Predictions(
    *(
      predict(model, state, examples)
      for examples in (splits.forget, splits.retain, splits.test)
    )
  )


def compare(
  unlearned: Predictions,
  source: Predictions,
  splits: Splits,
  retrained: Predictions | None = None,
) -> Evaluation:
  """`evaluate`, for predictions that are already there.

  Args:
    unlearned: of the model that is evaluated.
    source: of M.
    splits: what was predicted.
    retrained: of M_RE, or None.

  Returns:
    The `Evaluation`.
  """
  own = _standing(unlearned, splits)
  before = _standing(source, splits)['forget_accuracy']
  likeness = gap = None
  if retrained is not None:
    likeness = similarity(unlearned.forget, retrained.forget)
    gap = metrics.gap(own, _standing(retrained, splits))
  forgetting = retention = None
  if before > 0:
    forgetting = metrics.forgetting_rate(before, own['forget_accuracy'])
    retention = metrics.memory_retention_rate(own['retain_accuracy'], before)
  return Evaluation(
    forgetting_rate=forgetting,
    memory_retention_rate=retention,
    similarity=likeness,
    gap_to_retrained=gap,
    **own,
  )


def evaluate(
  model: Model,
  unlearned: ModelState,
  source: ModelState,
  splits: Splits,
  retrained: ModelState | None = None,
) -> Evaluation:
  """Evaluates a model on every example of every split.

  Args:
    model: the classifier that all three states belong to.
    unlearned: M_UL, or any other state: the source's own row is a control.
    source: M.
    splits: D_UL, D_RE and test.
    retrained: M_RE, or None where there is no reference.

  Returns:
    The `Evaluation`.

  Example:
    >>> import jax.numpy as jnp
    >>> from unlearn_jax.base import stateless
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3])
    >>> every = Examples.of(x, y)
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params)
    >>> knows_all = ModelState(9 * jnp.eye(4))
    >>> knows_3 = ModelState(9 * jnp.eye(4).at[3, 3].set(-1))
    >>> result = evaluate(model, knows_3, knows_all, splits, knows_3)
    >>> result.forgetting_rate, result.test_accuracy, result.gap_to_retrained
    (1.0, 0.75, 0.0)
  """
  return compare(
    predict_splits(model, unlearned, splits),
    predict_splits(model, source, splits),
    splits,
    None if retrained is None else predict_splits(model, retrained, splits),
  )


def _standing(predictions: Predictions, splits: Splits) -> dict[str, float]:
  """The numbers that need no other model."""

  def labels(examples: Examples) -> np.ndarray:
    return np.asarray(examples.labels)[np.asarray(examples.indices)]

  parts = ('forget', 'retain', 'test')
  own = {
    f'{part}_accuracy': metrics.accuracy(
      getattr(predictions, part), labels(getattr(splits, part))
    )
    for part in parts
  }
  own['mia_auc'] = attacks.loss_threshold_auc(
    per_example_loss(predictions.forget, labels(splits.forget)),
    per_example_loss(predictions.test, labels(splits.test)),
  )
  return own
