"""The numbers as tables, and as CSV.

Headers, units, scales and digits are those of `METRICS`. A metric that no part
names is shown in a table of its own, so a new row there is all that it takes.
"""

from collections.abc import Sequence
import csv as csv_writer
import io
from typing import Any

from unlearn_jax.evaluation import METRICS, Metric
from . import judging, rendering
from .judging import GAP, GAP_MINUS, estimate, number
from .model import REFERENCE, Report, Row
from .sections import Line, Table
from .wording import WORDS, by_seeds, say

MISSING = '–'
RULE_MET = 'stop_epoch'
# Titles and metrics; of the last all that no other names.
PARTS: dict[str, dict[str, Any]] = WORDS['parts']
FURTHER = [*PARTS][-1]


def _shown(name: str) -> Metric:
  """A metric, or the gap's paired difference to the control."""
  own: Any = {'name': GAP_MINUS, 'label': 'Gap minus K=0’s', 'needs': ()}
  return METRICS.get(name) or METRICS[GAP]._replace(**own)


def shown(report: Report, part: str) -> list[Metric]:
  """The columns of a part that any row can fill."""
  placed = {name for own in PARTS.values() for name in own['metrics']}
  further = [name for name in METRICS if name not in placed]
  names = further if part == FURTHER else PARTS[part]['metrics']
  return [
    metric
    for metric in map(_shown, names)
    if any(cell(metric, row) not in (MISSING, 'ref.') for row in report.rows)
  ]


def cell(metric: Metric, row: Row, reference: Row | None = None) -> str:
  """What stands in one cell: '91.2 ± 0.4', '≥ 12.0 ± 1.5', or '–'."""
  if row.role == 'reference' and not metric.of_retrained:
    return 'ref.' if 'retrained' in metric.needs else MISSING
  if metric.shown == 'range':
    columns: dict[str, Any] = {**row.values, RULE_MET: row.stop_epoch}
    return _range(metric, columns.get(metric.name, []))
  value = estimate(row, metric.name)
  if value is None:
    return MISSING
  mean, digits = value.mean * metric.scale, metric.digits
  if mean == 0 and value.low in (None, 0):
    return '0'
  smallest = 10.0**-digits
  if digits >= 4 and 0 < mean < smallest:
    return f'< {number(smallest, digits)}'
  if not digits and mean % 1 and mean < 1000:
    digits = 1
  text = judging.plus_minus(value, metric.scale, digits)
  # A count that never varies needs no ±.
  sign = bound(metric.name, row, reference)
  return f'{sign} {text}'.strip().removesuffix(' ± 0')


def bound(metric: str, row: Row, reference: Row | None) -> str:
  """The sign before a time that was cut off before the stop rule held."""
  cut, its = (
    None in own.stop_epoch if own else False for own in (row, reference)
  )
  if metric == 'seconds':
    return '≥' if cut else ''
  if metric == 'acceleration':
    return (('', '≥'), ('≤', '~'))[cut][its]
  return ''


def _range(metric: Metric, column: Sequence[float | None]) -> str:
  met = judging.known(column)
  if not met:
    return 'never' if column else MISSING
  missed = len(column) - len(met)
  more = f' ({missed}/{len(column)} never)' if missed else ''
  ends = [metric.scale * end for end in (min(met), max(met))]
  texts = dict.fromkeys(number(end, metric.digits) for end in ends)
  return '–'.join(texts) + more


def every(report: Report) -> list[Table]:
  """All parts that have columns."""
  return [own for part in PARTS if (own := table(report, part)).columns[1:]]


def table(report: Report, part: str = 'main') -> Table:
  """One of `PARTS`; the signs that occur in it are explained in its notes."""
  columns = shown(report, part)
  made = lines(report.rows, columns, report.control)
  notes = [by_seeds(report, 'interval_note')] if part == 'main' else []
  for own in columns if part == FURTHER else []:
    better = f'; {own.better} is better' if own.better else ''
    notes.append(f'{own.label}: {own.docs}{better}.')
  words = ' '.join(text for line in made for text in line.cells).split()
  signs = [sign for sign in WORDS['signs'] if sign in words]
  notes += [f'{sign}: {say("signs", sign)}.' for sign in signs]
  heads = [f'{own.label}, {own.unit}'.removesuffix(', ') for own in columns]
  return Table(['Strategy', *heads], made, PARTS[part]['title'], notes)


def lines(
  rows: Sequence[Row], columns: Sequence[Metric], control: Row | None = None
) -> list[Line]:
  """A line a row, of its metrics; ↓ stands beside the lowest gap to Retrain."""
  marks, found = judging.gap_marks(rows), []
  reference = next((row for row in rows if row.role == 'reference'), None)
  for row in rows:
    cells = {own.name: cell(own, row, reference) for own in columns}
    if GAP in cells and row.strategy in marks:
      cells[GAP] += f' {marks[row.strategy]}'
    kind = row.role if row.role in ('source', 'reference') else ''
    kind = 'control' if row is control else kind
    found.append(Line(row.label, list(cells.values()), kind))
  return found


def csv(report: Report) -> str:
  """A line a strategy and metric, every number in the unit that is shown."""
  out = io.StringIO()
  writer = csv_writer.writer(out, lineterminator='\n')
  head = ['strategy', 'label', 'role', 'metric', 'unit', 'mean', 'low', 'high']
  writer.writerow([*head, 'bound', *(f'seed {n}' for n in report.seeds)])
  reference, missing = report.row(REFERENCE), [None] * len(report.seeds)
  for row in report.rows:
    names = [_spreadsheet(text) for text in (row.strategy, row.label, row.role)]
    seeds = {**row.values, RULE_MET: row.stop_epoch or missing}
    for metric in map(_shown, [*METRICS, GAP_MINUS]):
      value = estimate(row, metric.name)
      over = [value.mean, value.low, value.high] if value else [None] * 3
      numbers = [
        f'{metric.scale * own:.10g}' if judging.finite(own) else ''
        for own in (*over, *seeds.get(metric.name, missing))
      ]
      if any(numbers):
        numbers.insert(3, bound(metric.name, row, reference))
        writer.writerow([*names, metric.name, metric.unit, *numbers])
  return out.getvalue()


def _spreadsheet(text: str) -> str:
  """On one line, and no formula to a program that would compute it."""
  text = ' '.join(rendering.printable(text).split())
  return f"'{text}" if text[:1] in ('=', '+', '-', '@') else text
