"""Membership inference: can an attacker tell who was trained on?"""

import numpy as np
from scipy import special, stats

from unlearn_jax.base import require


def true_class_margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
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
  others = np.array(logits, np.float64)
  rows = np.arange(len(others)), np.asarray(labels)
  own = others[rows]
  others[rows] = -np.inf
  return own - special.logsumexp(others, axis=1)


def loss_threshold_auc(
  member_losses: np.ndarray, nonmember_losses: np.ndarray
) -> float:
  """AUC of the attack that calls an example a member when its loss is low.

  The probability that a random member has a lower loss than a random
  non-member, ties counted half (the Mann–Whitney statistic); Yeom et al.,
  2018. Forget examples are the members, test examples the non-members: 0.5
  says that D_UL looks as if it had never been seen.

  Args:
    member_losses: `[M]`, M ≥ 1, in any unit.
    nonmember_losses: `[N]`, N ≥ 1, in the same unit.

  Returns:
    A share in [0, 1].

  Raises:
    ValueError: an empty array, or a NaN.

  Example:
    >>> loss_threshold_auc(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
    0.875
  """
  members = np.asarray(member_losses, np.float64)
  others = np.asarray(nonmember_losses, np.float64)
  both = {'member_losses': members, 'nonmember_losses': others}
  for name, losses in both.items():
    holds = losses.ndim == 1 and losses.size > 0
    require(name, losses.shape, holds, '[M], M ≥ 1')
    require(name, 'NaN', not np.isnan(losses).any(), 'numbers')
  statistic = stats.mannwhitneyu(others, members).statistic
  return float(statistic / (members.size * others.size))


def true_class_log_probability(
  logits: np.ndarray, labels: np.ndarray
) -> np.ndarray:
  """Log p_y of each row, float64 `[M]`."""
  return -np.logaddexp(0, -true_class_margin(logits, labels))


def auc(members: np.ndarray, others: np.ndarray) -> float:
  """AUC of scores that are higher of members."""
  return loss_threshold_auc(-np.asarray(members), -np.asarray(others))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
  """Share of members above what at most `fpr` of the others are above."""
  threshold = np.sort(others)[::-1][int(fpr * len(others))]
  return float((np.asarray(members) > threshold).mean())


def rmia(
  log_p: np.ndarray, references: np.ndarray, a: float = 0.3
) -> np.ndarray:
  """RMIA's log ratio of `log_p` `[M]` to `references` `[R, M]`, offline."""
  out = np.exp(references).mean(0)
  return log_p - np.log(0.5 * ((1 + a) * out + 1 - a))
