"""What a report allows one to say: differences, and whether they are resolved.

Input is the `report` dictionary that `experiments.unlearn` makes. No metric is
computed here, only differences of the measured ones, paired by seed.
"""

import math
import re
from typing import Any

from unlearn_jax.metrics import Interval, paired_interval

Report = dict[str, Any]
Row = dict[str, Any]

GAP = 'gap_to_retrained'
CONTROL = 'finetune'
LOWEST = '↓'
LEVEL = '(↓)'


def find(report: Report, strategy: str) -> Row | None:
  """The row of that strategy, or None where it was not run."""
  rows = (row for row in report['rows'] if row['strategy'] == strategy)
  return next(rows, None)


def finite(value: Any) -> bool:
  """Whether this is a number that can be shown (None and NaN are not)."""
  return value is not None and math.isfinite(value)


def estimate(row: Row, metric: str, table: str = 'mean') -> Interval | None:
  """A row's metric over seeds, from its `mean` or its `paired` table."""
  found = (row.get(table) or {}).get(metric)
  if not found or not finite(found['mean']):
    return None
  low, high = found.get('low'), found.get('high')
  count = sum(map(finite, row['values'].get(metric, [])))
  if finite(low) and finite(high):
    return Interval(found['mean'], low, high, count)
  return Interval(found['mean'], None, None, count)


def paired_difference(row: Row, other: Row, metric: str) -> Interval | None:
  """`row - other` over the seeds that both have; None where there is none."""
  pairs = zip(row['values'].get(metric, []), other['values'].get(metric, []))
  both = [(a, b) for a, b in pairs if finite(a) and finite(b)]
  if not both:
    return None
  return paired_interval([a for a, _ in both], [b for _, b in both])


def number(value: float, digits: int) -> str:
  """A number with thousands separated and a true minus sign.

  Example:
    >>> number(-1234.56, 1)
    '−1,234.6'
  """
  text = f'{value:,.{digits}f}'
  if not re.search('[1-9]', text):
    text = text.lstrip('-')  # No "-0.0".
  return text.replace('-', '−')


def points(share: float) -> str:
  """A share of one as percentage points.

  Example:
    >>> points(0.012)
    '1.20'
  """
  return number(100 * share, 2)


def half_width(value: Interval) -> float | None:
  """Half the interval; where it is not symmetric, the longer side."""
  if value.low is None or value.high is None:
    return None
  return max(value.high - value.mean, value.mean - value.low)


def gap_marks(report: Report) -> dict[str, str]:
  """Per strategy ↓ (lowest gap) or (↓) (not resolvably above the lowest).

  Every row but Retrain takes part, the untouched source and the controls too.
  """
  rows = [
    row
    for row in report['rows']
    if row['role'] != 'reference' and estimate(row, GAP)
  ]
  if not rows:
    return {}
  best = min(rows, key=lambda row: row['mean'][GAP]['mean'])
  marks = {best['strategy']: LOWEST}
  for row in rows:
    difference = paired_difference(row, best, GAP)
    if row is best or difference is None or difference.low is None:
      continue
    if difference.low <= 0:
      marks[row['strategy']] = LEVEL
  return marks


def verdicts(report: Report) -> list[str]:
  """One sentence a method or baseline: is it closer to Retrain than K = 0?

  From the interval of the paired difference (strategy minus plain fine-tuning)
  in the gap to Retrain; nothing is claimed where that interval contains 0.
  """
  judged = [r for r in report['rows'] if r['role'] in ('method', 'baseline')]
  control = find(report, CONTROL)
  missing = ''
  if find(report, 'retrain') is None:
    missing = 'Retrain'
  elif control is None:
    missing = 'plain fine-tuning (K = 0)'
  if judged and (missing or control is None):
    return [
      f'No verdict: {missing} was not among the strategies, and without it '
      'nothing can be said about what the methods achieve.'
    ]
  return [_verdict(row, control) for row in judged if control]


def _verdict(row: Row, control: Row) -> str:
  label = row['label']
  if estimate(control, GAP) is None and estimate(row, GAP):
    return f'{label}: no verdict, because {control["label"]} has no numbers.'
  difference = estimate(row, GAP, 'paired')
  if difference is None:
    return f'{label}: its gap to Retrain was not measured.'
  mean, low, high, _ = difference
  if low is None or high is None:
    side = 'closer to' if mean < 0 else 'farther from'
    return (
      f'{label}: one seed: no interval, nothing can be concluded (here '
      f'{points(abs(mean))} points {side} Retrain than plain fine-tuning).'
    )
  pairs = zip(row['values'].get(GAP, []), control['values'].get(GAP, []))
  seeds = f'{sum(finite(a) and finite(b) for a, b in pairs)} seeds'
  if low <= 0 <= high:
    return (
      f'{label} cannot be told apart from plain fine-tuning (difference '
      f'{points(mean)} points [{points(low)}, {points(high)}], {seeds}).'
    )
  side = 'closer to' if high < 0 else 'farther from'
  if high < 0:
    mean, low, high = -mean, -high, -low
  return (
    f'{label} is {side} Retrain than plain fine-tuning by {points(mean)} '
    f'points [{points(low)}, {points(high)}], {seeds}.'
  )


def yardsticks(report: Report) -> list[str]:
  """For scale: how far from Retrain the untouched source and K = 0 are.

  A strategy that is no closer to Retrain than the source has not been shown to
  have made the model forget, whatever its forget accuracy.
  """
  known = []
  for strategy, name in (
    ('source', 'the untouched source'),
    (CONTROL, 'plain fine-tuning (K = 0)'),
  ):
    row = find(report, strategy)
    gap = estimate(row, GAP) if row else None
    if gap:
      half = half_width(gap)
      tail = f' ± {points(half)}' if half is not None else ''
      known.append(f'{name} {points(gap.mean)}{tail}')
  sentences = []
  if known:
    sentences.append(
      f'For scale, distance from Retrain in points: {", ".join(known)}.'
    )
  unproven = _not_closer_than_source(report)
  if unproven:
    sentences.append(
      'Not shown to be closer to Retrain than the untouched source, which '
      f'forgot nothing: {", ".join(unproven)}.'
    )
  return sentences


def _not_closer_than_source(report: Report) -> list[str]:
  """Labels whose paired difference in gap to the source is not below 0."""
  source = find(report, 'source')
  found = []
  for row in report['rows']:
    if source is None or row['role'] in ('source', 'reference'):
      continue
    difference = paired_difference(row, source, GAP)
    if difference and difference.high is not None and difference.high >= 0:
      found.append(row['label'])
  return found
