"""The page of a reproduction: tables, figures, and what was judged."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
import itertools
import pathlib
from typing import Any

from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from unlearn_jax.evaluation import METRICS
from ..report import degree, figures, judging, rendering, tables
from ..report.model import Estimate, Row, to_json
from ..report.sections import Picture, Section, Table
from ..report.tables import MISSING
from ..runtime.progress import clock
from ..study import degrees, provenance
from ..study.results import degree_facts
from ..study.stages import Stage
from . import computing, paper, presets, series, statements
from .paper import FIGURES, WORDS
from .presets import GRANULARITIES, Place, Sweep
from .series import Numbers, Series
from .statements import GAP, Judgement

LOOKS = {**figures.CURVES, **FIGURES['looks']}
# A title, places, and for each a series, by a name of `LOOKS`.
Panel = tuple[str, Sequence[float], Mapping[str, Sequence[Series]]]


def write(
  found: Numbers, wanted: Mapping[str, Stage], root: pathlib.Path
) -> pathlib.Path:
  """Writes `reproduction.*` and `figures/`; returns the HTML file."""
  stages = computing.stage_records(wanted, found.found)
  judged = statements.judge(found)
  drawings = {artefact: drawn(found, artefact) for artefact in found.only}
  sections = [_head(found, judged, stages)]
  sections += [_section(found, a, judged, own) for a, own in drawings.items()]
  facts = {
    'preset': found.preset.name,
    'only': found.only,
    'seeds': found.preset.seeds,
    'judgements': [judgement._asdict() for judgement in judged],
    'stages': stages,
    'measured': computing.measured_records(found.found),
    'environment': provenance.environment(),
  }
  pictures = {n: own for some in drawings.values() for n, own in some.items()}
  more = {'reproduction.json': to_json(facts)}
  for name, figure in pictures.items():
    data = figures.encoded(figure, 'reproduction', f'{name}.pdf')
    more[f'figures/{name}.pdf'] = data
  words = f'Section IV of the paper, preset {found.preset.name}', ''
  return rendering.save(root, 'reproduction', *words, sections, pictures, more)


def _head(
  found: Numbers, judged: Sequence[Judgement], stages: Sequence[dict[str, Any]]
) -> Section:
  failed = [own for own in stages if 'error' in own]
  facts = {
    'preset': found.preset,
    'source': found.preset.training.resolved,
    'first_sweep_seed': presets.FIRST_SWEEP_SEED,
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
  if (mean := series.interval(own)) is None:
    return MISSING
  scale, digits = METRICS[metric].scale, METRICS[metric].digits
  return judging.plus_minus(Estimate.of(mean), scale, digits)


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


# ----------------------------------------------------------------- Figures.


@style.context(figures.STYLE)
def drawn(found: Numbers, artefact: str) -> dict[str, Figure]:
  """The figures of an artefact, by the names of their files."""
  own = {'fig4': _figure_4, 'fig9': _figure_9, 'sweeps': _sweeps}
  if artefact not in FIGURES:
    return own[artefact](found) if artefact in own else {}
  made = {'fig1': _panels_1, 'fig5': _panels_5, 'fig7': _panels_7}
  panels = [*made.get(artefact, _panels_by_epoch)(found, artefact)]
  looks, (across, height) = FIGURES[artefact], FIGURES[artefact]['size']
  labels = looks['xlabel'], looks['ylabel']
  figure, grid = figures.panels(len(panels), across, height, *labels)
  for axes, (title, xs, lines) in zip(grid, panels):
    for name, columns in lines.items():
      figures.line(axes, xs, columns, LOOKS[name])
    axes.set_title(title, loc='left')
    few, many = ticker.FixedLocator(xs), ticker.MaxNLocator(integer=True)
    axes.xaxis.set_major_locator(few if len(xs) < 6 else many)
    axes.grid(axis='y')
  if artefact == 'fig7':
    _accelerations(found, grid)
  return {artefact: figures.legend(figure)}


def _panels_1(found: Numbers, artefact: str) -> Iterator[Panel]:
  """Acc_RE and Acc_UL after Random-k, and the source's test accuracy."""
  for problem in found.problems(artefact):
    lines = {
      metric: [found.of('curve', at, row, metric) for at in problem.places]
      for metric, row in FIGURES[artefact]['lines'].items()
    }
    yield problem.name, [100 * share for share in problem.fractions], lines


def _panels_5(found: Numbers, artefact: str) -> Iterator[Panel]:
  """Acc_RE − Acc_UL by K, as the difference to K = 0 of the same seed."""
  for at in found.places(artefact):
    own = {g: found.of_k(at, g) for g in GRANULARITIES}
    ks = sorted({k for by_k in own.values() for k in by_k})
    lines = {
      granularity: [series.minus(by_k.get(k, {}), by_k[0]) for k in ks]
      for granularity, by_k in own.items()
    }
    yield f'{at}', ks, lines


def _panels_by_epoch(found: Numbers, artefact: str) -> Iterator[Panel]:
  """Accuracies of Top-K, Random-k, Random-TopK, and the control."""
  own, epochs = FIGURES[artefact], range(found.preset.curve_epochs + 1)
  for problem in found.problems(artefact):
    places = problem.places[-1:] if own['last'] else problem.places
    for at, (title, metric) in itertools.product(places, own['panels'].items()):
      lines = {
        row: [found.of('curve', at, row, metric, epoch) for epoch in epochs]
        for row in own['rows']
      }
      yield title.format(place=at), epochs, lines


def _panels_7(found: Numbers, artefact: str) -> Iterator[Panel]:
  """A place for each share, and no lines yet."""
  lines: dict[str, Any] = {r: () for r in paper.ROWS if r != 'retrain'}
  for problem in found.problems(artefact):
    yield problem.name, range(len(problem.places)), lines


def _accelerations(found: Numbers, grid: Sequence[Axes]) -> None:
  """Figure 7: over Retrain, by share forgotten, on a logarithmic axis.

  Geometric means, hollow if they are bounds, and lines over the seeds' range:
  an interval may reach below 0, which has no place there.
  """
  rows = [row for row in paper.ROWS if row != 'retrain']
  for axes, problem in zip(grid, found.problems('fig7')):
    for (x, at), row in itertools.product(enumerate(problem.places), rows):
      own = list(found.of('table', at, row, 'acceleration').values())
      if not own:
        continue
      place = x + 0.085 * (rows.index(row) - (len(rows) - 1) / 2)
      color, marker = LOOKS[row]['color'], LOOKS[row]['marker']
      face = 'white' if found.cut_off(at, row) else color
      look: Any = {'color': color, 'mfc': face, 'ms': 4.5, 'zorder': 4}
      axes.plot(place, np.exp(np.mean(np.log(own))), marker, **look)
      axes.vlines(place, min(own), max(own), color, lw=1.0)
    axes.set_xticklabels([at.share for at in problem.places])
    axes.axhline(1, ls=':', **figures.LOOKS['zero'])
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda y, _: f'{y:g}')
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _figure_4(found: Numbers) -> dict[str, Figure]:
  """Images of D_UL before and after the generator of one pair."""
  for at in found.places('fig4'):
    for stage in found.pairs(at, 'top_k').values():
      names = found.found[at.name('degree')].plan.setup.dataset.class_names
      return {'fig4': degrees.grid(stage, names)}
  return {}


def _figure_9(found: Numbers) -> dict[str, Figure]:
  """Unlearning degrees, a figure for each share; none if not whole."""
  made = {}
  for at in found.places('fig9'):
    if (own := found.found.get(at.name('degree'))) is None:
      continue
    classes = len(own.plan.setup.dataset.class_names)
    names = {found.text(at, r): row.label for r, row in paper.ROWS.items()}
    for facts in degree_facts(own.plan, own.errors):
      rows = [replace(row, label=names[row.strategy]) for row in facts.rows]
      facts = replace(facts, rows=rows)
      made[f'fig9_{100 * at.fraction:g}'] = degree.bars(facts, classes)
  return made


def _sweeps(found: Numbers) -> dict[str, Figure]:
  """The gap to Retrain of every setting that was tried."""
  sweeps = found.preset.sweeps
  text = found.preset.spelled(found.preset.problems[0], 'finetune')
  control = statements.columns(found, sweeps[0], text)[GAP]
  rows = [(paper.ROWS['finetune'].label, 'control', control)]
  for sweep in sweeps:
    for point in statements.points(found, sweep):
      role = 'default' if point.default else 'tried'
      rows.append((f'{sweep.name}: {point.text}', role, point.columns[GAP]))
  shown = [
    figures.Bar(
      name, [*own.values()], role, Estimate.of(mean), role == 'control'
    )
    for name, role, own in rows
    if (mean := series.interval(own))
  ]
  text = 'gap to Retrain, points (0 = same numbers as Retrain)'
  return {'sweeps': figures.bars(shown, text)}
