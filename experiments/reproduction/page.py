"""The page of a reproduction: what was run, found and judged."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import Any

from experiments.report import figures, judging, model, rendering, tables
from experiments.report.model import Estimate, Row
from experiments.report.sections import Picture, Section, Table
from experiments.reproduction import (
  computing,
  drawing,
  paper,
  series,
  statements,
)
from experiments.reproduction.paper import WORDS
from experiments.reproduction.presets import FIRST_SWEEP_SEED, Place, Sweep
from experiments.reproduction.series import Numbers, Series
from experiments.reproduction.statements import Judgement
from experiments.runtime.progress import clock
from experiments.study import provenance
from experiments.study.stages import Stage
from unlearn_jax.evaluation import METRICS


def write(
  found: Numbers, wanted: Mapping[str, Stage], root: pathlib.Path
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
  words = f'Section IV of the paper, preset {found.preset.name}', ''
  return rendering.save(root, 'reproduction', *words, sections, pictures, more)


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
  title, lines, made = paper.ARTEFACTS[artefact], [], []
  if artefact == 'table1':
    made = [paper.table_1()]
  if artefact == 'table2':
    made = [_table_2(found, at) for at in found.places(artefact)]
  for sweep in found.preset.sweeps if artefact == 'sweeps' else ():
    tried = statements.points(found, sweep)
    lines.append(statements.conclusion(sweep, tried))
    made.append(_swept(sweep, tried))
  own = [judgement for judgement in judged if judgement.artefact == artefact]
  if own:
    lines.append(f'Statements of the paper: {statements.summary(own)}.')
    head = ['The paper says', 'Verdict', 'By']
    made.append(Table.of(head, [judgement[1:] for judgement in own]))
  lines += WORDS['notes'].get(artefact, ())
  shown = [Picture(name, '', title) for name in pictures]
  return Section(title, sentences=lines, tables=made, pictures=shown)


def _table_2(found: Numbers, at: Place) -> Table:
  """Table II for one share forgotten; in brackets what the paper prints."""
  columns = WORDS['columns']
  rows = [row_of(found, at, row) for row in paper.ROWS]
  lines = tables.lines(rows, [METRICS[name] for name in columns.values()])
  body = [[line.label, *line.cells] for line in lines]
  for row, printed in paper.TABLE_2.get(at.fraction, {}).items():
    cells = body[[*paper.ROWS].index(row)]
    for place, metric in enumerate(columns.values(), 1):
      if metric in printed._fields:
        cells[place] += f' ({getattr(printed, metric):g})'
  return Table.of([f'{at} forgotten', *columns], body)


def row_of(found: Numbers, at: Place, row: str) -> Row:
  """A row of Table II, as a report has it."""
  label, factory, _ = paper.ROWS[row]
  values = {m: found.of('table', at, row, m) for m in WORDS['columns'].values()}
  means = {metric: series.interval(own) for metric, own in values.items()}
  seeds = range(found.preset.seeds)
  return Row(
    *(row, factory, label, 'reference' if row == 'retrain' else 'method'),
    values={m: [own.get(seed) for seed in seeds] for m, own in values.items()},
    mean={m: Estimate.of(own) for m, own in means.items() if own},
    stop_epoch=found.stop_epochs(at, row),
  )


def cell(own: Series, metric: str) -> str:
  """Mean ± half of the interval."""
  interval, (*_, scale, digits) = series.interval(own), METRICS[metric][:6]
  if interval is None:
    return tables.MISSING
  return judging.plus_minus(Estimate.of(interval), scale, digits)


def _swept(sweep: Sweep, tried: Sequence[statements.Point]) -> Table:
  """Every setting of a sweep."""
  body = []
  for point in tried:
    metrics = [metric for metric, *_ in statements.COLUMNS.values()]
    cells = [cell(*own) for own in zip(point.columns.values(), metrics)]
    change = (
      statements.shown(point.change, '') if point.change else tables.MISSING
    )
    default = ' (default)' if point.default else ''
    body.append([point.text + default, *cells, change])
  head = [sweep.name, *statements.COLUMNS, 'gap − default’s, points']
  return Table.of(head, body)
