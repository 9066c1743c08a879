"""What an attacker scores an example by, and how well scores tell members."""

import numpy as np
import scipy

from unlearn_jax.base import Array, require


def true_class_margin(logits: Array, labels: Array) -> np.ndarray:
  """φ = z_y − log Σ_{c≠y} exp z_c, which is log p_y / (1 − p_y).

  Finite where softmax rounds p_y to 0 or 1; the loss is log(1 + exp(−φ)).

  Args:
    logits: `[M, C]`, C ≥ 2.
    labels: integers `[M]` in `[0, C)`.

  Returns:
    float64 `[M]`.

  Example:
    >>> float(true_class_margin(np.array([[2.0, 0, 0]]), [0]).round(5)[0])
    1.30685
  """
  others = as_floats('logits', logits, '[M, C]', finite=False).copy()
  classes = others.shape[1]
  require('logits.shape', others.shape, classes > 1, 'C ≥ 2')
  labels = np.asarray(labels)
  holds = labels.shape == others.shape[:1] and labels.dtype.kind in 'iu'
  require('labels', labels, holds, f'integers [{len(others)}]')
  for label in (labels.min(), labels.max()):
    require('labels', int(label), 0 <= label < classes, f'0 to {classes - 1}')
  rows = np.arange(len(others)), labels
  own = others[rows]
  others[rows] = -np.inf
  return own - scipy.special.logsumexp(others, axis=1)


def true_class_log_probability(logits: Array, labels: Array) -> np.ndarray:
  """The negative loss `[M]`, log p_y = −log(1 + exp(−φ)).

  Example:
    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1]])
    >>> true_class_log_probability(logits, [0, 1]).round(4).tolist()
    [-0.1054, -2.3026]
  """
  return -np.logaddexp(0, -true_class_margin(logits, labels))


def auc(members: Array, others: Array) -> float:
  """Probability that a random member scores higher than a random other.

  Ties count half (the Mann–Whitney statistic). Where both are alike, its
  standard error is √((M + N + 1) / 12MN): .029 for 200 and 200.

  Args:
    members: scores `[M]`, higher for likely members, M ≥ 1.
    others: those of non-members `[N]`, N ≥ 1.

  Returns:
    A share in [0, 1]; 0.5 where nothing tells them apart.

  Example:
    >>> auc(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
    0.875
  """
  below, above = _placements(members, others)
  return float(below.sum() / (len(below) * len(above)))


def auc_interval(
  members: Array, others: Array, confidence: float = 0.95
) -> tuple[float, float]:
  """Ends of the interval of `auc` by DeLong's variance, within [0, 1].

  Its normal approximation fails near the ends: at an AUC of 1 or 0 the variance
  is 0 and the interval has no width, whatever M and N (2 or more). It speaks of
  other examples, not of another model.

  Example:
    >>> low, high = auc_interval(np.arange(4), np.arange(4) - 1)
    >>> round(low, 3), round(high, 3)
    (0.335, 1.0)
  """
  require('confidence', confidence, 0 < confidence < 1, '(0, 1)')
  below, above = _placements(members, others)
  sizes = len(below), len(above)
  require('len(members), len(others)', sizes, min(sizes) > 1, '2 or more')
  shares = below / len(above), above / len(below)
  variance = sum(np.var(share, ddof=1) / share.size for share in shares)
  half = scipy.stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
  area = np.mean(shares[0])
  return max(0.0, float(area - half)), min(1.0, float(area + half))


def tpr_at_fpr(members: Array, others: Array, fpr: float) -> float:
  """The largest share of members found at a false positive rate ≤ `fpr`.

  A step function: between two thresholds it is the lower value, so that
  nothing is promised that no threshold keeps. It takes 10 / fpr others or more
  to mean anything. Scores as in `auc`.

  Example:
    >>> tpr_at_fpr(np.array([4, 3, 2, 1]), np.array([3, 0, 0, 0]), fpr=0.2)
    0.25
  """
  return _found(members, others, fpr) / np.size(members)


def tpr_interval(
  members: Array, others: Array, fpr: float, confidence: float = 0.95
) -> tuple[float, float]:
  """Ends of the Clopper–Pearson interval of `tpr_at_fpr`.

  Exact for a threshold that was fixed beforehand; that this one was chosen by
  the others' scores is not in it.

  Example:
    >>> low, high = tpr_interval(np.arange(100), np.zeros(100), fpr=0.01)
    >>> round(low, 4), round(high, 4)
    (0.9455, 0.9997)
  """
  found = _found(members, others, fpr)
  return proportion_interval(found, np.size(members), confidence)


def proportion_interval(
  count: int, size: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Ends of the exact (Clopper–Pearson) interval of a share, α/2 a side."""
  require('confidence', confidence, 0 < confidence < 1, '(0, 1)')
  test = scipy.stats.binomtest(count, size)
  interval = test.proportion_ci(confidence, method='exact')
  return float(interval.low), float(interval.high)


def loss_threshold(member_losses: Array, nonmember_losses: Array) -> float:
  """AUC of the attack that calls an example a member when its loss is low.

  Yeom et al., 2018. Forget examples are the members `[M]`, test examples the
  non-members `[N]`: 0.5 says that D_UL looks as if it had never been seen.

  Example:
    >>> loss_threshold(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
    0.875
  """
  return auc(-np.asarray(member_losses), -np.asarray(nonmember_losses))


def as_floats(
  name: str, values: Array, shape: str, finite: bool = True
) -> np.ndarray:
  """float64 of as many axes as `shape` names, none empty, without NaN.

  Raises:
    ValueError: it is otherwise, or infinite and has to be `finite`.
  """
  array = np.asarray(values, np.float64)
  holds = array.ndim == shape.count(',') + 1 and array.size > 0
  require(f'{name}.shape', array.shape, holds, f'{shape}, each 1 or more')
  wrong = array[~np.isfinite(array) if finite else np.isnan(array)]
  what = 'finite numbers' if finite else 'numbers'
  require(name, float(wrong[0]) if wrong.size else 0, not wrong.size, what)
  return array


def _placements(members: Array, others: Array) -> tuple[np.ndarray, np.ndarray]:
  """How many others each member beats, and members each other loses to."""
  members = as_floats('members', members, '[M]', finite=False)
  others = as_floats('others', others, '[N]', finite=False)
  size, rank = len(members), scipy.stats.rankdata
  ranks = rank(np.concatenate([members, others]))
  return ranks[:size] - rank(members), size - ranks[size:] + rank(others)


def _found(members: Array, others: Array, fpr: float) -> int:
  """How many members score higher than all others but a share of `fpr`."""
  members = as_floats('members', members, '[M]', finite=False)
  others = as_floats('others', others, '[N]', finite=False)
  require('fpr', fpr, 0 <= fpr <= 1, '[0, 1]')
  # 0.29 · 100 is 28.999… in floating point.
  alarms = int(fpr * len(others) + 1e-9)
  if alarms == len(others):
    return len(members)
  return int(np.sum(members > np.sort(others)[::-1][alarms]))
