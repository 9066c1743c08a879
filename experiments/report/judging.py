"""Which differences of a report are resolved, and how numbers are written."""

from collections.abc import Sequence
import math
import re
from typing import TypeGuard

from experiments.report.model import Estimate, Row
from unlearn_jax.metrics import Interval, paired_interval

GAP = 'gap_to_retrained'
GAP_MINUS = 'gap_minus_control'  # Its paired difference to the control.


def finite(value: float | None) -> TypeGuard[float]:
  """Whether this is a number that can be shown (None and NaN are not)."""
  return value is not None and math.isfinite(value)


def known(values: Sequence[float | None] | None) -> list[float]:
  """Those of the values that can be shown."""
  return [value for value in values or () if finite(value)]


def number(value: float, digits: int) -> str:
  """With thousands separated and a true minus sign: '−1,234.6'."""
  text = f'{value:,.{digits}f}'
  if not re.search('[1-9]', text):
    text = text.lstrip('-')  # No "-0.0".
  return text.replace('-', '−')


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


def gap_marks(rows: Sequence[Row]) -> dict[str, str]:
  """By strategy ↓ (lowest gap but for Retrain) or (↓) (not resolvably more)."""
  own = [r for r in rows if r.role != 'reference' and estimate(r, GAP)]
  if not own:
    return {}
  best = min(own, key=lambda row: row.mean[GAP].mean)
  above = {row.strategy: paired_difference(row, best) for row in own}
  level = [
    n for n, a in above.items() if a and a.low is not None and a.low <= 0
  ]
  return {**dict.fromkeys(level, '(↓)'), best.strategy: '↓'}
