"""Which differences of a report are resolved, and how numbers are written."""

from collections.abc import Sequence
import math
import re
from typing import TypeGuard

from experiments.report.model import Estimate, Row
from unlearn_jax.metrics import paired_interval

GAP = 'gap_to_retrained'
GAP_MINUS = 'gap_minus_control'  # Its paired difference to the control.
LOWEST = '↓'
LEVEL = '(↓)'


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


def half_width(value: Estimate) -> float | None:
  """Half the interval; where it is not symmetric, the longer side."""
  if value.low is None or value.high is None:
    return None
  return max(value.high - value.mean, value.mean - value.low)


def plus_minus(value: Estimate, scale: float, digits: int) -> str:
  """Mean and half-width, '50.0 ± 25.0'; no ± where there is no interval."""
  text, half = number(scale * value.mean, digits), half_width(value)
  if half is None:
    return text
  return f'{text} ± {number(abs(scale) * half, digits)}'


def estimate(row: Row | None, metric: str) -> Estimate | None:
  """Over seeds; None where there is no number, without ends that are none."""
  found = None
  if row:
    found = row.paired.get(GAP) if metric == GAP_MINUS else row.mean.get(metric)
  if found is None or not finite(found.mean):
    return None
  ends = finite(found.low) and finite(found.high)
  return found if ends else Estimate(found.mean)


def pairs(row: Row, other: Row) -> list[tuple[float, float]]:
  """The gaps of the seeds for which both rows have one."""
  every = zip(row.values.get(GAP, ()), other.values.get(GAP, ()))
  return [(a, b) for a, b in every if finite(a) and finite(b)]


def paired_difference(row: Row, other: Row) -> Estimate | None:
  """`row - other` in the gap, over the seeds of both; None where none are."""
  if not (both := pairs(row, other)):
    return None
  own, its = zip(*both)
  return Estimate.of(paired_interval(own, its))


def gap_marks(rows: Sequence[Row]) -> dict[str, str]:
  """By strategy ↓ (lowest gap but for Retrain) or (↓) (not resolvably more)."""
  gaps = [
    (gap.mean, row)
    for row in rows
    if row.role != 'reference' and (gap := estimate(row, GAP))
  ]
  if not gaps:
    return {}
  _, best = min(gaps, key=lambda pair: pair[0])
  marks = {best.strategy: LOWEST}
  for _, row in gaps:
    above = None if row is best else paired_difference(row, best)
    if above and above.low is not None and above.low <= 0:
      marks[row.strategy] = LEVEL
  return marks
