"""Which differences of a report are resolved, and how numbers are written."""

from collections.abc import Sequence
import math
from typing import TypeGuard

import numpy as np

from unlearn_jax.metrics import Interval, paired_interval
from .model import NULL, UNJUDGED, Estimate, Row

GAP = 'gap_to_retrained'
GAP_MINUS = 'gap_minus_control'  # Its paired difference to the control.
RETAIN = 'retain_accuracy'
NO_DAMAGE = 0.005  # Of retain accuracy: what no one would call damage.


def finite(value: float | None) -> TypeGuard[float]:
  """Whether this is a number that can be shown (None and NaN are not)."""
  return value is not None and math.isfinite(value)


def known(values: Sequence[float | None] | None) -> list[float]:
  """Those of the values that can be shown."""
  return [value for value in values or () if finite(value)]


def number(value: float, digits: int) -> str:
  """With thousands separated and a true minus sign: '−1,234.6'."""
  return f'{value:z,.{digits}f}'.replace('-', '−')  # z: no "-0.0".


def plus_minus(value: Estimate, scale: float, digits: int) -> str:
  """Mean and half-width, '50.0 ± 25.0'; no ± where there is no interval."""
  text = number(scale * value.mean, digits)
  if value.low is None or value.high is None:
    return text
  half = max(value.high - value.mean, value.mean - value.low)
  return f'{text} ± {number(scale * half, digits)}'


def estimate(row: Row | None, metric: str) -> Estimate | None:
  """Over seeds; None where there is no number, without ends that are none."""
  found = None
  if row:
    found = row.paired.get(GAP) if metric == GAP_MINUS else row.mean.get(metric)
  if found is None or not finite(found.mean):
    return None
  ends = finite(found.low) and finite(found.high)
  return found if ends else Estimate(found.mean)


def paired_difference(row: Row, other: Row) -> Interval | None:
  """`row - other` in the gap, over the seeds of both; None where none are."""
  every = zip(row.values.get(GAP, ()), other.values.get(GAP, ()))
  both = [(a, b) for a, b in every if finite(a) and finite(b)]
  if not both:
    return None
  own, its = zip(*both)
  return paired_interval(own, its)


def damaged(row: Row, reference: Row | None) -> bool:
  """Whether a model lost what it should have kept, or did not settle.

  Its retain accuracy lies below Retrain's by more than half a point and than
  Retrain's own range over seeds, or the stop rule was not met.
  """
  if row.role in UNJUDGED:
    return False
  its = known(reference.values.get(RETAIN)) if reference else []
  return None in row.stop_epoch or lost(known(row.values.get(RETAIN)), its)


def lost(own: Sequence[float], its: Sequence[float]) -> bool:
  """Whether retain accuracies lie so far below Retrain's; both by seed."""
  if not own or not its:
    return False
  fall, spread = float(np.mean(its) - np.mean(own)), max(its) - min(its)
  return fall > max(spread, NO_DAMAGE)


def gap_marks(rows: Sequence[Row]) -> dict[str, str]:
  """By strategy ↓ (lowest gap but for Retrain) or (↓) (not resolvably more).

  † of what is `damaged`, which is lowest in no case: the gap alone would
  reward it.
  """
  reference = next((row for row in rows if row.role == 'reference'), None)
  every = [
    r for r in rows if r.role not in ('reference', NULL) and estimate(r, GAP)
  ]
  marks = {r.strategy: '†' for r in every if damaged(r, reference)}
  own = [row for row in every if row.strategy not in marks]
  if not own:
    return marks
  best = min(own, key=lambda row: row.mean[GAP].mean)
  above = {row.strategy: paired_difference(row, best) for row in own}
  level = [
    n for n, a in above.items() if a and a.low is not None and a.low <= 0
  ]
  return {**marks, **dict.fromkeys(level, '(↓)'), best.strategy: '↓'}
