"""A model held against Retrain, by what both say and how fast they relearn."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unlearn_jax import divergences, metrics
from unlearn_jax.attacks.scores import as_floats
from unlearn_jax.base import Array, require


class Residual(NamedTuple):
  """Accuracies on perturbed inputs; the ratio is None where it is x / 0."""

  ratio: float | None
  unlearned: float
  retrained: float


def tug_of_war(
  own: Mapping[str, float], retrained: Mapping[str, float]
) -> float:
  """ToW = Π (1 − |Δ accuracy|) over forget, retain and test (Zhao et al., '24).

  Of two models' `forget_accuracy`, `retain_accuracy` and `test_accuracy`, each
  in [0, 1]; 1 if all three are Retrain's.

  Example:
    >>> own, its = (dict(zip(metrics.COMPARED, shares)) for shares in
    ...             ((0.92, 1.0, 0.79), (0.9, 1.0, 0.8)))
    >>> round(tug_of_war(own, its), 4)
    0.9702
  """
  names = metrics.COMPARED[:3]
  pairs = np.array([[one[name] for name in names] for one in (own, retrained)])
  holds = bool(np.all((pairs >= 0) & (pairs <= 1)))
  require('accuracies', pairs.tolist(), holds, '[0, 1]')
  return float(np.prod(1 - np.abs(pairs[0] - pairs[1])))


def activation_distance(p: Array, q: Array) -> float:
  """Mean ‖p − q‖₂ of probabilities `[M, C]`, in [0, √2] (Golatkar et al., '21).

  Example:
    >>> round(activation_distance(np.eye(2)[:1], np.eye(2)[1:]), 5)
    1.41421
  """
  p, q = as_floats('p', p, '[M, C]'), as_floats('q', q, '[M, C]')
  require('shapes', (p.shape, q.shape), p.shape == q.shape, 'the same of both')
  for name, rows in ('p', p), ('q', q):
    far = max(-rows.min(), abs(rows.sum(1) - 1).max())
    require(f'{name}, off by', float(far), far <= 0.01, 'probabilities')
  return float(np.mean(np.linalg.norm(p - q, axis=1)))


def js_to_retrained(p: Array, q: Array) -> float:
  """Mean JS divergence of probabilities `[M, C]`, in bits: 1 − `similarity`.

  Example:
    >>> round(js_to_retrained(np.array([[0.5, 0.5]]), np.eye(2)[:1]), 5)
    0.31128
  """
  return 1 - divergences.similarity(p, q)


def residual_knowledge(
  unlearned: Array, retrained: Array, labels: Array
) -> Residual:
  """Accuracy of the unlearned model on inputs near D_UL, over Retrain's.

  Of logits `[M, C]` and labels `[M]` on x + δ, δ Gaussian or adversarial and
  at most τ, such as .01 or .03 of a pixel's range. The goal is 1.

  Example:
    >>> right = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> residual_knowledge(right, np.eye(2), np.array([0, 0]))
    Residual(ratio=2.0, unlearned=1.0, retrained=0.5)
  """
  own, its = (metrics.accuracy(z, labels) for z in (unlearned, retrained))
  return Residual(own / its if its else None, own, its)


def relearn_epochs(
  accuracies: Sequence[float], source_accuracy: float, tolerance: float = 0.05
) -> int | None:
  """The first epoch on D_UL with (1 − tolerance) · the source's accuracy again.

  Of a curve on D_UL, before the first epoch and after each; None if there is
  none: more epochs than were run. The goal is Retrain's number, at the same
  rate, batch size, augmentation and mode of BatchNorm.

  Example:
    >>> relearn_epochs([0.2, 0.6, 0.97, 1.0], 1.0), relearn_epochs([0.2], 1.0)
    (2, None)
  """
  require('tolerance', tolerance, 0 <= tolerance < 1, '[0, 1)')
  curve = as_floats('accuracies', np.asarray(accuracies), '[epochs + 1]')
  for name, share in ('source', source_accuracy), ('largest', curve.max()):
    require(f'{name} accuracy', float(share), 0 <= share <= 1, '[0, 1]')
  # 19 of 53 is not below .95 · 20 of 53, whatever floats make of it.
  reached = curve >= (1 - tolerance) * source_accuracy - 1e-9
  return int(np.argmax(reached)) if reached.any() else None
