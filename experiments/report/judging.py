"""What a report allows one to say: differences, and which are resolved."""

from collections.abc import Sequence
import math
import re
from typing import Any, TypeGuard

from experiments.report.model import REFERENCE, SOURCE, Estimate, Report, Row
from experiments.report.words import say
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


def _pairs(row: Row, other: Row) -> list[tuple[float, float]]:
  """The gaps of the seeds for which both rows have one."""
  pairs = zip(row.values.get(GAP, ()), other.values.get(GAP, ()))
  return [(a, b) for a, b in pairs if finite(a) and finite(b)]


def paired_difference(row: Row, other: Row) -> Estimate | None:
  """`row - other` in the gap, over the seeds of both; None where none are."""
  pairs = _pairs(row, other)
  if not pairs:
    return None
  own, its = zip(*pairs)
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


def verdicts(report: Report) -> list[str]:
  """One sentence a method or baseline: is it closer to Retrain than K = 0?"""
  # Nothing is claimed where the interval of the paired difference contains 0.
  judged = [row for row in report.rows if row.role in ('method', 'baseline')]
  reference, control = report.row(REFERENCE), report.control
  if judged and not (reference and control):
    missing = 'plain fine-tuning (K = 0)' if reference else 'Retrain'
    return [say('verdicts', 'none', missing=missing)]
  return [_verdict(row, control) for row in judged if control]


def _verdict(row: Row, control: Row) -> str:
  facts: dict[str, Any] = {'label': row.label, 'control': control.label}
  if estimate(control, GAP) is None and estimate(row, GAP):
    return say('verdicts', 'unknown_control', **facts)
  difference = estimate(row, GAP_MINUS)
  if difference is None:
    return say('verdicts', 'unknown', **facts)
  mean, low, high = difference.mean, difference.low, difference.high
  facts['side'] = 'closer to' if mean < 0 else 'farther from'
  if low is None or high is None:
    return say('verdicts', 'one_seed', mean=number(100 * abs(mean), 2), **facts)
  kind = 'undecided' if low <= 0 <= high else 'decided'
  if high < 0:
    mean, low, high = -mean, -high, -low
  numbers = [number(100 * share, 2) for share in (mean, low, high)]
  seeds = len(_pairs(row, control))
  return say('verdicts', kind, numbers=numbers, seeds=seeds, **facts)


def yardsticks(report: Report) -> list[str]:
  """How far from Retrain the source and K = 0 are, and who is no nearer."""
  # Who is no closer than the source has not been shown to forget anything,
  # whatever its forget accuracy.
  source = report.row(SOURCE)
  named = {'the untouched source': source}
  named |= {'plain fine-tuning (K = 0)': report.control}
  distances = [
    f'{name} {plus_minus(gap, 100, 2)}'
    for name, row in named.items()
    if (gap := estimate(row, GAP))
  ]
  unproven = [
    row.label
    for row in report.rows
    if source and row.role not in ('source', 'reference')
    if (difference := paired_difference(row, source))
    and difference.high is not None
    and difference.high >= 0
  ]
  found = {'scale': ', '.join(distances), 'unproven': ', '.join(unproven)}
  return [
    say('yardsticks', name, rows=own) for name, own in found.items() if own
  ]
