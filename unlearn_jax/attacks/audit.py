"""U-LiRA on targets whose answers are known, and whom to attack first."""

from typing import Literal, NamedTuple

import numpy as np
import scipy

from unlearn_jax.attacks import scores
from unlearn_jax.attacks.likelihood import Status, fit, lira, shadows, statuses
from unlearn_jax.base import Array, require


class Audit(NamedTuple):
  """What U-LiRA found.

  Attributes:
    log_ratio: Λ, `[M, n]`.
    posterior: `[M, n]`, the probability of membership at equal priors.
    auc: of Λ, members against OUT, over all targets.
    auc_by_target: of each alone; None where one side is missing.
    tpr: by false positive rate: .001, .01 and .05.
    balanced_accuracy: at the threshold Λ = 0 of theory, which counts half.
    oracle_accuracy: at the best threshold, chosen with the answers: an upper
      bound, not an attack.
    fewest_in: shadow models that unlearned the least covered example.
    fewest_out: models that never saw the least covered one.
    out: the convention of OUT, see `lira`.
  """

  log_ratio: np.ndarray
  posterior: np.ndarray
  auc: float
  auc_by_target: tuple[float | None, ...]
  tpr: dict[float, float]
  balanced_accuracy: float
  oracle_accuracy: float
  fewest_in: int
  fewest_out: int
  out: Literal['unlearned', 'retrained']


def u_lira(
  phi: Array,
  status: Array,
  target_phi: Array,
  target_status: Array,
  *,
  out: Array | None = None,
  members: Status = Status.IN_FORGET,
) -> Audit:
  """`lira` on held-out targets, M ≥ 4 at best, and what it found.

  `target_status` `[M, n]` holds the answers; what is neither `members` nor OUT
  is not judged. The rest is as in `lira`.
  """
  ratio = lira(phi, status, target_phi, out=out, members=members)
  counted = shadows(phi, status)[1]
  truth = statuses('target_status', target_status, ratio.shape)
  inside, outside = ratio[truth == members], ratio[truth == Status.OUT]
  sizes = len(inside), len(outside)
  allowed = f'examples that are {members.name} and some that are OUT'
  require('target_status', sizes, min(sizes) > 0, allowed)
  said = [float(np.mean(np.sign(side) + 1) / 2) for side in (inside, outside)]
  # max(TPR − FPR) is the one-sided Kolmogorov–Smirnov statistic.
  largest = scipy.stats.ks_2samp(
    outside, inside, alternative='greater', method='asymp'
  ).statistic
  never = counted == Status.OUT if out is None else np.ones(np.shape(out))
  return Audit(
    log_ratio=ratio,
    posterior=scipy.special.expit(ratio),
    auc=scores.auc(inside, outside),
    auc_by_target=tuple(
      scores.auc(row[own == members], row[own == Status.OUT])
      if {members, Status.OUT} <= set(own.tolist())
      else None
      for row, own in zip(ratio, truth)
    ),
    tpr={f: scores.tpr_at_fpr(inside, outside, f) for f in (0.001, 0.01, 0.05)},
    balanced_accuracy=(said[0] + 1 - said[1]) / 2,
    oracle_accuracy=(1 + float(largest)) / 2,
    fewest_in=int((counted == members).sum(0).min()),
    fewest_out=int(never.sum(0).min()),
    out='unlearned' if out is None else 'retrained',
  )


def lira_leave_one_out(phi: Array, status: Array, **options) -> np.ndarray:
  """`lira` of each shadow model `[N, n]`, by fits to the others alone.

  For want of held-out targets: a model in its own fit looks like what it is
  said to be.
  """
  phi, status = shadows(phi, status)
  rows = []
  for i in range(len(phi)):
    rest = np.delete(phi, i, 0), np.delete(status, i, 0)
    rows.append(lira(*rest, phi[i : i + 1], **options))
  return np.concatenate(rows)


def most_vulnerable(
  phi: Array, status: Array, share: float = 0.01
) -> np.ndarray:
  """The examples that training changed most: the slice to attack first.

  Largest |μ_in − μ_out| / √((σ_in² + σ_out²) / 2) of margins *before*
  unlearning, where forgotten and retained examples both are IN. On shadow
  models: a slice chosen on targets has seen the answers.

  Args:
    phi: margins under the shadow models as they were trained, `[N, n]`.
    status: a `Status` each, `[N, n]`.
    share: of the n examples, in (0, 1].

  Returns:
    Their indices, `[⌈share · n⌉]`, the most vulnerable first.

  Example:
    >>> phi = np.array([[1.0, 9.0], [2.0, 8.0], [1.0, 1.0], [2.0, 2.0]])
    >>> status = np.array([[1, 1], [2, 2], [0, 0], [0, 0]])
    >>> most_vulnerable(phi, status, share=0.5).tolist()
    [1]
  """
  phi, status = shadows(phi, status)
  require('share', share, 0 < share <= 1, '(0, 1]')
  inside = fit('status of IN', phi, status != Status.OUT)
  outside = fit('status of OUT', phi, status == Status.OUT)
  std = np.sqrt((inside.std**2 + outside.std**2) / 2)
  order = np.argsort(-abs(inside.mean - outside.mean) / std, kind='stable')
  # 0.07 · 100 is 7.000…01 in floating point.
  return order[: max(1, int(np.ceil(share * len(order) - 1e-9)))]
