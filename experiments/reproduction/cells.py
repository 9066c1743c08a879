"""The page's tables of numbers: Tables I and II, and the sweeps."""

from experiments import table1, tables, verdicts
from experiments.reproduction import (
  judgements,
  paper,
  sweeping,
  tally,
  tasks,
)
from experiments.reproduction.layout import Table
from experiments.reproduction.presets import Problem, Sweep
from experiments.reproduction.tally import Tally


def table_1() -> Table:
  """Table I, ours and in brackets the paper's."""
  head = ['Model', 'Tensors', 'Parameters', 'Top-K', 'Random-k, 5 %']
  body = []
  for name, (k, *printed) in paper.TABLE_1.items():
    tensors, total, *ours = table1.counts(name)
    cells = [f'{own:,} ({its})' for own, its in zip(ours, printed)]
    body.append([name, f'{tensors}', f'{total:,}', f'{k} ({k})', *cells])
  return Table([*head, 'EU-5, CF-5', 'EU-10, CF-10'], body)


# Columns of Table II: header, metric, scale, decimals, field of `paper.Cells`.
_COLUMNS = (
  ('Acc_UL, %', 'forget_accuracy', 100, 1, 'forget_accuracy'),
  ('Acc_RE, %', 'retain_accuracy', 100, 1, 'retain_accuracy'),
  ('Test, %', 'test_accuracy', 100, 1, None),
  ('FR, %', 'forgetting_rate', 100, 1, None),
  ('MRR, %', 'memory_retention_rate', 100, 1, None),
  ('Similarity, %', 'similarity', 100, 1, 'similarity'),
  ('Attack AUC', 'mia_auc', 1, 3, None),
  ('Gap, points', sweeping.GAP, 100, 2, None),
  ('Time, s', 'seconds', 1, 1, 'seconds'),
  ('× Retrain', 'acceleration', 1, 1, None),
  ('Scalars', 'scalars_changed', 1, 0, None),
  ('Tensors', 'tensors_changed', 1, 1, None),
)


def table_2(found: Tally, problem: Problem, fraction: float) -> Table:
  """Table II for one share forgotten; in brackets what the paper prints."""
  marks = gap_marks(found, problem, fraction)
  body = []
  for row in tasks.ROWS:
    printed = paper.TABLE_2.get(fraction, {}).get(row)
    cells = [tasks.label(row)]
    for _, metric, scale, digits, field in _COLUMNS:
      series = found.table(problem, fraction, row, metric)
      if row == 'retrain' and metric in tables.OF_REFERENCE:
        text = 'ref.'
      elif row == 'retrain' and metric.endswith('_changed'):
        text = tables.MISSING
      else:
        text = shown(series, scale, digits)
      if metric == sweeping.GAP and row in marks:
        text += f' {marks[row]}'
      if metric == 'seconds' and found.is_cut_off(problem, fraction, row):
        text = f'≥ {text}'
      if field and printed:
        text += f' ({getattr(printed, field):g})'
      cells.append(text)
    body.append(cells)
  head = f'{problem.name}, {100 * fraction:g} % forgotten'
  return Table([head, *(name for name, *_ in _COLUMNS)], body)


def shown(series: tally.Series, scale: float, digits: int) -> str:
  """Mean ± half of the interval.

  Example:
    >>> shown({0: 0.5}, 100, 1), shown({}, 100, 1)
    ('50.0', '–')
  """
  interval = tally.interval(series)
  if interval is None:
    return tables.MISSING
  text = verdicts.number(interval.mean * scale, digits)
  half = verdicts.half_width(interval)
  if half is None or not half:
    whole = scale == 1 and interval.mean.is_integer()
    return verdicts.number(interval.mean, 0) if whole else text
  return f'{text} ± {verdicts.number(half * scale, digits)}'


def gap_marks(
  found: Tally, problem: Problem, fraction: float
) -> dict[str, str]:
  """↓ at the lowest gap to Retrain, (↓) where it cannot be told from that."""
  gaps = {
    row: found.table(problem, fraction, row, sweeping.GAP)
    for row in tasks.ROWS
    if row != 'retrain'
  }
  means = {row: i.mean for row in gaps if (i := tally.interval(gaps[row]))}
  if not means:
    return {}
  best = min(means, key=lambda row: means[row])
  marks = {best: verdicts.LOWEST}
  for row in means:
    above = tally.difference(gaps[row], gaps[best])
    if row != best and above and above.low is not None and above.low <= 0:
      marks[row] = verdicts.LEVEL
  return marks


def swept(found: Tally, sweep: Sweep) -> Table:
  """Every setting of a sweep."""
  head = [sweep.name, *sweeping.COLUMNS, 'gap − default’s, points']
  body = []
  for point in sweeping.points(found, sweep):
    text = f'{point.text} (default)' if point.default else point.text
    cells = [shown(c, 100, 1) for c in point.columns.values()]
    change = tables.MISSING
    if point.change is not None:
      change = judgements.shown(point.change, unit='', digits=2)
    body.append([text, *cells, ' '.join(change.split())])
  return Table(head, body)
