"""The page of a reproduction: what was run, found and judged."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import Any

from experiments.report import figures, judging, model, saving
from experiments.report.sections import Picture, Section, Table
from experiments.report.tables import MISSING
from experiments.reproduction import (
  computing,
  drawing,
  paper,
  series,
  statements,
)
from experiments.reproduction.computing import Job
from experiments.reproduction.paper import WORDS
from experiments.reproduction.presets import FIRST_SWEEP_SEED, Place, Sweep
from experiments.reproduction.series import Numbers, Series
from experiments.reproduction.statements import Judgement
from experiments.runtime.progress import clock
from experiments.study import provenance
from unlearn_jax.evaluation import METRICS


def write(
  found: Numbers, wanted: Mapping[str, Job], root: pathlib.Path
) -> pathlib.Path:
  """Writes `reproduction.*` and `figures/`; returns the HTML file."""
  stages = computing.stage_records(wanted, found.found)
  judged = statements.judge(found)
  drawn = {artefact: drawing.drawn(found, artefact) for artefact in found.only}
  sections = [_head(found, judged, stages)]
  sections += [_section(found, a, judged, own) for a, own in drawn.items()]
  facts = {
    'preset': found.preset.name,
    'only': found.only,
    'seeds': found.preset.seeds,
    'judgements': [judgement._asdict() for judgement in judged],
    'stages': stages,
    'measured': computing.measured_records(found.found),
    'environment': provenance.environment(),
  }
  pictures = {n: figure for own in drawn.values() for n, figure in own.items()}
  more = {f'figures/{n}.pdf': figures.pdf(own) for n, own in pictures.items()}
  more['reproduction.json'] = model.to_json(facts)
  title = f'Section IV of the paper, preset {found.preset.name}'
  return saving.save(root, 'reproduction', title, '', sections, pictures, more)


def _head(
  found: Numbers, judged: Sequence[Judgement], stages: Sequence[dict[str, Any]]
) -> Section:
  failed = [own for own in stages if 'error' in own]
  facts = {
    'preset': found.preset,
    'source': found.preset.training.resolved,
    'first_sweep_seed': FIRST_SWEEP_SEED,
    'done': len(stages) - len(failed),
    'stages': len(stages),
    'time': clock(sum(own.get('wall_seconds', 0.0) for own in stages)),
    'rows': len(judged),
    'summary': statements.summary(judged),
  }
  lines = [line.format(**facts) for line in WORDS['head']['always']]
  if not found.preset.comparable:
    lines += WORDS['head']['elsewhere']
  lines += [f'Failed: {own["title"]}: {own["error"]}' for own in failed]
  return Section('What was found', sentences=lines)


def _section(
  found: Numbers,
  artefact: str,
  judged: Sequence[Judgement],
  pictures: Iterable[str],
) -> Section:
  title, lines, tables = paper.ARTEFACTS[artefact], [], []
  if artefact == 'table1':
    tables = [paper.table_1()]
  if artefact == 'table2':
    tables = [_table_2(found, at) for at in found.places(artefact)]
  for sweep in found.preset.sweeps if artefact == 'sweeps' else ():
    tried = statements.points(found, sweep)
    lines.append(statements.conclusion(sweep, tried))
    tables.append(_swept(sweep, tried))
  own = [judgement for judgement in judged if judgement.artefact == artefact]
  if own:
    lines.append(f'Statements of the paper: {statements.summary(own)}.')
    head = ['The paper says', 'Verdict', 'By']
    tables.append(Table.of(head, [judgement[1:] for judgement in own]))
  lines += WORDS['notes'].get(artefact, ())
  shown = [Picture(name, '', title) for name in pictures]
  return Section(title, sentences=lines, tables=tables, pictures=shown)


def _table_2(found: Numbers, at: Place) -> Table:
  """Table II for one share forgotten; in brackets what the paper prints."""
  columns, marks, body = WORDS['columns'], gap_marks(found, at), []
  for row, (label, *_) in paper.ROWS.items():
    printed = paper.TABLE_2.get(at.fraction, {}).get(row)
    cells = [label]
    for metric in columns.values():
      text = cell(found.of('table', at, row, metric), metric)
      if row == 'retrain' and not METRICS[metric].of_retrained:
        text = MISSING if metric.endswith('_changed') else 'ref.'
      if metric == judging.GAP and row in marks:
        text += f' {marks[row]}'
      if metric == 'seconds' and found.cut_off(at, row):
        text = f'≥ {text}'
      if printed and metric in printed._fields:
        text += f' ({getattr(printed, metric):g})'
      cells.append(text)
    body.append(cells)
  return Table.of([f'{at} forgotten', *columns], body)


def cell(own: Series, metric: str) -> str:
  """Mean ± half of the interval."""
  interval, scale = series.interval(own), METRICS[metric].scale
  if interval is None:
    return MISSING
  mean = interval.mean * scale
  digits = METRICS[metric].digits or int(mean % 1 > 0)
  text = judging.number(mean, digits)
  half = 0.0 if interval.high is None else interval.high - interval.mean
  return f'{text} ± {judging.number(half * scale, digits)}' if half else text


def gap_marks(found: Numbers, at: Place) -> dict[str, str]:
  """↓ at the lowest gap to Retrain, (↓) where it cannot be told from that."""
  gaps = {
    row: gap
    for row in paper.ROWS
    if row != 'retrain' and (gap := found.of('table', at, row, judging.GAP))
  }
  means = {row: sum(gap.values()) / len(gap) for row, gap in gaps.items()}
  best = min(means, key=means.__getitem__, default='')
  marks = {best: judging.LOWEST}
  for row, gap in gaps.items():
    above = series.difference(gap, gaps[best])
    if row != best and above and above.low is not None and above.low <= 0:
      marks[row] = judging.LEVEL
  return marks


def _swept(sweep: Sweep, tried: Sequence[statements.Point]) -> Table:
  """Every setting of a sweep."""
  body = []
  for point in tried:
    metrics = [metric for metric, *_ in statements.COLUMNS.values()]
    cells = [cell(*own) for own in zip(point.columns.values(), metrics)]
    change = statements.shown(point.change, '') if point.change else MISSING
    default = ' (default)' if point.default else ''
    body.append([point.text + default, *cells, change])
  head = [sweep.name, *statements.COLUMNS, 'gap − default’s, points']
  return Table.of(head, body)
