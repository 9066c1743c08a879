"""What a metric may look at, and what attackers find in it."""

from collections.abc import Mapping, Sequence
import importlib.util
from typing import NamedTuple

import numpy as np

from unlearn_jax import attacks
from unlearn_jax.base import Splits

# Examples a side on which classifiers are fitted, whose time is quadratic.
_MOST_FITTED = 1000


class Predictions(NamedTuple):
  """A model's logits.

  Attributes:
    forget: float32 `[|D_UL|, C]`.
    retain: float32 `[|D_RE|, C]`.
    test: float32 `[|test|, C]`.
  """

  forget: np.ndarray
  retain: np.ndarray
  test: np.ndarray


class Cost(NamedTuple):
  """What making a model took.

  Attributes:
    seconds: until the stop rule held, or of all epochs; no compilation.
    compile_seconds: of compilation.
    stop_epoch: when the stop rule held first; None if it never did.
    by_tensor: scalars that were changed before the training, by tensor.
    perturbation_js: bits by which that still moved held-out outputs.
  """

  seconds: float
  compile_seconds: float
  stop_epoch: int | None
  by_tensor: Mapping[str, int]
  perturbation_js: float


class Evidence(NamedTuple):
  """All that a metric of one model may look at.

  Attributes:
    own: the model's predictions.
    source: those of M.
    splits: what was predicted.
    retrained: those of M_RE, or None.
    references: of more models that never saw D_UL, Retrains of other seeds.
    cost: what the model took; None of the source and of foreign models.
    retrained_cost: what M_RE took, or None.
  """

  own: Predictions
  source: Predictions
  splits: Splits
  retrained: Predictions | None = None
  references: Sequence[Predictions] = ()
  cost: Cost | None = None
  retrained_cost: Cost | None = None


def _compared_by_attacks(
  own: Predictions, splits: Splits
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Logits and labels of D_UL, and of the test images that are held against.

  Nothing where there are none of these.
  """
  forget, test = (own.forget, splits.forget.own_labels), splits.test
  if splits.unseen is None:
    return [forget, (own.test, test.own_labels)]
  if not splits.unseen.size:
    return []
  place = {row: n for n, row in enumerate(np.asarray(test.indices).tolist())}
  rows = [place[row] for row in np.asarray(splits.unseen.indices).tolist()]
  return [forget, (own.test[rows], splits.unseen.own_labels)]


def loss_attack(evidence: Evidence) -> float | None:
  """AUC of the attack by the loss."""
  # The margin falls as the loss rises, and is not 0 where the model is sure.
  both = _compared_by_attacks(evidence.own, evidence.splits)
  margins = [attacks.true_class_margin(*part) for part in both]
  return attacks.auc(*margins) if margins else None


def _likelihood_ratios(evidence: Evidence) -> list[np.ndarray]:
  """RMIA's, of D_UL and of what it is held against; [] without references."""
  own, retrained = evidence.own, evidence.retrained
  references = list(evidence.references)
  if not references and retrained is not None:
    # By itself Retrain cannot be told from a model that never saw D_UL.
    alone = np.array_equal(own.forget, retrained.forget)
    references = [] if alone else [retrained]
  if not references:
    return []
  target, *others = (
    [
      attacks.true_class_log_probability(*part)
      for part in _compared_by_attacks(every, evidence.splits)
    ]
    for every in (own, *references)
  )
  return [
    attacks.rmia(part, np.stack([other[n] for other in others]))
    for n, part in enumerate(target)
  ]


def reference_attack(evidence: Evidence) -> float | None:
  """AUC of RMIA."""
  ratios = _likelihood_ratios(evidence)
  return attacks.auc(*ratios) if ratios else None


def reference_attack_tpr(evidence: Evidence) -> float | None:
  """TPR of RMIA at 1 % FPR."""
  ratios = _likelihood_ratios(evidence)
  # Of fewer, one per cent is less than ten.
  if not ratios or ratios[1].size < 1000:
    return None
  members, others = ratios
  return attacks.tpr_at_fpr(members, others, 0.01)


def svc_attack(evidence: Evidence) -> float | None:
  """The literature's "MIA efficacy" by confidence; needs scikit-learn."""
  own, splits = evidence.own, evidence.splits
  known = np.isin(splits.test.own_labels, splits.retain.own_labels)
  rows = np.flatnonzero(known)[: min(splits.retain.size, _MOST_FITTED)]
  if not rows.size or not importlib.util.find_spec('sklearn'):
    return None
  found = attacks.svc_efficacy(
    (own.retain[: rows.size], splits.retain.own_labels[: rows.size]),
    (own.test[rows], splits.test.own_labels[rows]),
    (own.forget, splits.forget.own_labels),
    features=('confidence',),
  )
  return found['confidence']
