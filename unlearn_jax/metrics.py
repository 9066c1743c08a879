"""Numbers for a report, made once, on the host, from what was measured."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import chex
import numpy as np
import scipy

from unlearn_jax.base import Array, require

# What two models are compared by: each a share in [0, 1].
COMPARED = ('forget_accuracy', 'retain_accuracy', 'test_accuracy', 'mia_auc')


class Interval(NamedTuple):
  """A mean and how well it is known.

  Attributes:
    mean: mean of the values, in their unit.
    low: lower end of the confidence interval; None for a single value.
    high: upper end, likewise.
    size: number of values.
  """

  mean: float
  low: float | None
  high: float | None
  size: int


def accuracy(logits: Array, labels: Array) -> float:
  """The share of examples whose largest output is at their label.

  Among equal outputs the first class is the prediction.

  Args:
    logits: `[M, C]` logits or probabilities.
    labels: integers `[M]` in `[0, C)`.

  Returns:
    Accuracy in [0, 1].

  Raises:
    ValueError: there are no examples, an output is NaN, or a label is none of
      the classes.
    AssertionError: the shapes do not fit.

  Example:
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
  """
  logits, labels = np.asarray(logits), np.asarray(labels)
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  require('logits.shape', logits.shape, logits.size > 0, 'M and C above 0')
  require('logits', math.nan, not np.isnan(logits).any(), 'numbers')
  for label in (labels.min(), labels.max()):
    holds = 0 <= label < logits.shape[1]
    require('labels', int(label), holds, f'0 to {logits.shape[1] - 1}')
  return float(np.mean(np.argmax(logits, axis=1) == labels))


def forgetting_rate(before: float, after: float) -> float:
  """FR = (Acc_before - Acc_after) / Acc_before (Zuo et al., Eq. 17).

  Args:
    before: the source's accuracy on D_UL, in (0, 1].
    after: the unlearned model's accuracy on D_UL, in [0, 1].

  Returns:
    The forgetting rate, at most 1; negative where accuracy has risen.

  Raises:
    ValueError: an accuracy is out of range.

  Example:
    >>> forgetting_rate(before=1.0, after=0.75)
    0.25
  """
  _require_shares(before=before, after=after)
  require('before', before, before > 0, 'above 0, it is the denominator')
  return (before - after) / before


def memory_retention_rate(retain_after: float, forget_before: float) -> float:
  """MRR = Acc_after(D_RE) / Acc_before(D_UL) (Zuo et al., Eq. 18).

  The denominator is the source's accuracy on D_UL, not on D_RE, as in the
  equation; above 1 where the former is the lower one.

  Args:
    retain_after: the unlearned model's accuracy on D_RE, in [0, 1].
    forget_before: the source's accuracy on D_UL, in (0, 1].

  Returns:
    The memory retention rate, at least 0.

  Raises:
    ValueError: an accuracy is out of range.

  Example:
    >>> memory_retention_rate(retain_after=0.9, forget_before=1.0)
    0.9
  """
  _require_shares(retain_after=retain_after, forget_before=forget_before)
  allowed = 'above 0, it is the denominator'
  require('forget_before', forget_before, forget_before > 0, allowed)
  return retain_after / forget_before


def acceleration(retrain_seconds: float, seconds: float) -> float:
  """How many times as fast as Retrain a strategy is (Zuo et al., §IV-B).

  Args:
    retrain_seconds: seconds that Retrain took.
    seconds: seconds that the strategy took, by the same stop rule.

  Returns:
    The quotient.

  Raises:
    ValueError: a time is not positive and finite.

  Example:
    >>> acceleration(retrain_seconds=60.0, seconds=15.0)
    4.0
  """
  times = {'retrain_seconds': retrain_seconds, 'seconds': seconds}
  for name, value in times.items():
    require(name, value, 0 < value < math.inf, 'finite times above 0')
  return retrain_seconds / seconds


def gap(
  metrics_a: Mapping[str, float | None],
  metrics_b: Mapping[str, float | None],
  names: Sequence[str] = COMPARED,
) -> float:
  """Mean absolute difference of two models' metrics, usually to Retrain's.

  Runs over those of `names` that both have; None counts as not there, other
  keys are ignored.

  Args:
    metrics_a: one model's metrics, by name, each in [0, 1].
    metrics_b: the other's.
    names: `forget_accuracy`, `retain_accuracy`, `test_accuracy` and `mia_auc`.

  Returns:
    The gap in [0, 1]; 0 if the two behave alike.

  Raises:
    ValueError: they have no such metric in common, or one is out of range.

  Example:
    >>> gap({'test_accuracy': 0.5, 'mia_auc': 0.5}, {'test_accuracy': 0.75})
    0.25
  """
  differences = []
  for name in names:
    a, b = metrics_a.get(name), metrics_b.get(name)
    if a is not None and b is not None:
      _require_shares(**{f'metrics_a[{name!r}]': a, f'metrics_b[{name!r}]': b})
      differences.append(abs(a - b))
  keys = [sorted(metrics_a), sorted(metrics_b)]
  allowed = f'mappings that share one of {", ".join(names)}'
  require('metrics', keys, bool(differences), allowed)
  return float(np.mean(differences))


@dataclasses.dataclass(frozen=True)
class PixelChange:
  """How far perturbed images are from the originals.

  Attributes:
    linf: the largest change of a pixel, in [0, 1] of the pixel range.
    rms: root of the mean squared change, in the same unit.
  """

  linf: float
  rms: float


def pixel_change(before: np.ndarray, after: np.ndarray) -> PixelChange:
  """How far images moved.

  Args:
    before: `[M, height, width, channels]`, in [0, 255].
    after: the same shape.

  Returns:
    The `PixelChange`.

  Example:
    >>> images = np.full((2, 8, 8, 1), 100.0)
    >>> change = pixel_change(images, images + 25.5)
    >>> round(change.linf, 4), round(change.rms, 4)
    (0.1, 0.1)
  """
  change = (np.asarray(after, np.float64) - np.asarray(before)) / 255
  return PixelChange(
    linf=float(np.abs(change).max()),
    rms=math.sqrt(np.mean(np.square(change))),
  )


def mean_interval(
  values: Sequence[float], confidence: float = 0.95
) -> Interval:
  """Mean and its confidence interval by Student's t: x̄ ± t · s / √n.

  Args:
    values: one finite number a seed.
    confidence: in (0, 1), how often such intervals hold the true mean.

  Returns:
    The interval; without ends for a single value, about whose spread nothing
    is known.

  Raises:
    ValueError: there are no values, one is None or not finite, or
      `confidence` is out of range.

  Example:
    >>> interval = mean_interval([1.0, 2.0, 3.0])
    >>> interval.mean, round(interval.low, 3), round(interval.high, 3)
    (2.0, -0.484, 4.484)
  """
  _check_values('values', values)
  require('confidence', confidence, 0 < confidence < 1, '(0, 1)')
  count = len(values)
  mean = float(np.mean(values))
  if count == 1:
    return Interval(mean, None, None, 1)
  quantile = scipy.stats.t.ppf((1 + confidence) / 2, count - 1)
  half = float(quantile * np.std(values, ddof=1) / math.sqrt(count))
  return Interval(mean, mean - half, mean + half, count)


def paired_interval(
  values: Sequence[float], control: Sequence[float]
) -> Interval:
  """Mean and 95 % interval of the differences to a control with the same seeds.

  What a seed does to both sides drops out, so that smaller differences are
  resolved than by comparing two intervals.

  Args:
    values: one finite number a seed.
    control: the control's numbers, by the same seeds in the same order.

  Returns:
    The interval of `values - control`; no difference is resolved where it
    contains 0.

  Raises:
    ValueError: the lengths differ, or as in `mean_interval`.

  Example:
    >>> paired_interval([1.0, 5.0], [0.5, 4.5])
    Interval(mean=0.5, low=0.5, high=0.5, size=2)
  """
  _check_values('values', values)
  _check_values('control', control)
  alike = len(values) == len(control)
  require('len(control)', len(control), alike, f'{len(values)}, as of values')
  return mean_interval([v - c for v, c in zip(values, control)])


def _require_shares(**shares: float) -> None:
  for name, value in shares.items():
    require(name, value, 0 <= value <= 1, '[0, 1]')


def _check_values(name: str, values: Sequence[float]) -> None:
  require(name, values, len(values) > 0, 'one number or more')
  for i, value in enumerate(values):
    holds = value is not None and math.isfinite(value)
    require(f'{name}[{i}]', value, holds, 'finite numbers')
