"""The page of a reproduction: what was run, found and judged."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import Any

from experiments.report import figures, judging, model, saving
from experiments.report.sections import Picture, Section, Table
from experiments.report.tables import MISSING
from experiments.reproduction import (
  computing,
  counting,
  drawing,
  judgements,
  paper,
  statements,
  sweeping,
  tally,
)
from experiments.reproduction.computing import Job
from experiments.reproduction.judgements import Judgement, percent
from experiments.reproduction.presets import (
  FIRST_SWEEP_SEED,
  ROWS,
  Problem,
  Sweep,
  label,
)
from experiments.reproduction.tally import Series, Tally
from experiments.runtime.progress import clock
from experiments.study import provenance
from unlearn_jax.evaluation import METRICS

_GAP = 'gap_to_retrained'
# Columns of Table II.
_COLUMNS = {
  'Acc_UL, %': 'forget_accuracy',
  'Acc_RE, %': 'retain_accuracy',
  'Test, %': 'test_accuracy',
  'FR, %': 'forgetting_rate',
  'MRR, %': 'memory_retention_rate',
  'Similarity, %': 'similarity',
  'Attack AUC': 'mia_auc',
  'Gap, points': _GAP,
  'Time, s': 'seconds',
  '× Retrain': 'acceleration',
  'Scalars': 'scalars_changed',
  'Tensors': 'tensors_changed',
}
_BANDS = (
  'Thick: mean over seeds; thin: each seed; band: 95 % interval of the mean, '
  'cut off where it leaves the picture.'
)
_NOTES: dict[str, tuple[str, ...]] = {
  'table1': (
    'Counted on the networks at the paper’s widths, whatever the preset; '
    'behind each the paper’s own number.',
  ),
  'table2': (
    'Means over seeds ± half of the 95 % interval; in brackets what the paper '
    'prints. Lower Acc_UL is not better: Retrain’s is the goal. ↓: the lowest '
    'gap to Retrain, (↓): not resolvably above it. Seconds run to the epoch at '
    'which the stop rule held, ≥ where it never did.',
  ),
  **dict.fromkeys(('fig1', 'fig6', 'fig8'), (_BANDS,)),
  'fig5': (
    _BANDS,
    'Each K against K = 0 of the same seed, forget set and source. Where K '
    'counts tensors they are scaled up, since zeroed ones never revive.',
  ),
  'fig7': (
    'Mean over seeds (geometric), and their range. Retrain’s time and the '
    'strategy’s end by the same stop rule; hollow: it was not met in time by '
    'the strategy in some seed, so that this is too fast.',
  ),
  'fig9': (
    'A dot a generator; the interval is over seeds. The band is what two '
    'models that differ in their seed alone, and forgot nothing, score.',
  ),
  'sweeps': (
    'On seeds that no table uses. Perturbed: BatchNorm re-estimated, before '
    'the first step of fine-tuning.',
  ),
}


def write(
  found: Tally, wanted: Mapping[str, Job], root: pathlib.Path
) -> pathlib.Path:
  """Writes `reproduction.md`, `.html`, `.json` and `figures/`.

  Args:
    found: the numbers.
    wanted: the stages behind them.
    root: the work directory.

  Returns:
    The HTML file.
  """
  stages = computing.stage_records(wanted, found.found)
  judged = statements.judge(found)
  drawn = list(drawing.drawn(found))
  sections = [_head(found, judged, stages)]
  for artefact in found.only:
    names = [name for own, name, _ in drawn if own == artefact]
    sections.append(_section(found, artefact, judged, names))
  facts = {
    'preset': found.preset.name,
    'only': found.only,
    'seeds': found.preset.seeds,
    'judgements': [judgement._asdict() for judgement in judged],
    'stages': stages,
    'measured': computing.measured_records(found.found),
    'environment': provenance.environment(),
  }
  more = {f'figures/{name}.pdf': figures.pdf(own) for _, name, own in drawn}
  more['reproduction.json'] = model.to_json(facts)
  title = f'Section IV of the paper, preset {found.preset.name}'
  pictures = {name: figure for _, name, figure in drawn}
  return saving.save(root, 'reproduction', title, '', sections, pictures, more)


def _head(
  found: Tally, judged: Sequence[Judgement], stages: Sequence[dict[str, Any]]
) -> Section:
  preset, budget = found.preset, found.preset.budget
  source = preset.training.resolved
  failed = [own for own in stages if 'error' in own]
  seconds = sum(own.get('wall_seconds', 0.0) for own in stages)
  lines = [
    f'{preset.about}; {preset.seeds} seeds, sweeps on {preset.sweep_seeds} of'
    f' their own (from {FIRST_SWEEP_SEED}).',
    f'{len(stages) - len(failed)} of {len(stages)} stages are done; they took'
    f' {clock(seconds)} of a worker’s time.',
    f'Of {len(judged)} rows: {judgements.summary(judged)}.',
    f'Source and Retrain: Adam at {source.learning_rate:g}, {source.epochs}'
    f' epochs, batch {source.batch_size}, nothing augmented, {preset.dtype}.'
    f' Fine-tuning: Adam at {budget.learning_rate:g}, EU-K and CF-K at'
    f' {preset.last_k_learning_rate:g}; at most {budget.epochs} epochs in'
    f' tables, {preset.curve_epochs} in figures.',
    'Stop rule: the first epoch in which the mean JS divergence to the source'
    f' on D_UL moved by at most {budget.stop_js_change:g} bits and the accuracy'
    f' on D_RE was at least {budget.stop_retain_share:g} of the source’s.',
    'A row is reproduced where the 95 % interval of a difference, paired by'
    ' seed, lies on the paper’s side of 0 (or an interval contains the paper’s'
    ' number); not reproduced where it lies on the other; else not decidable.'
    ' Intervals are not corrected for the number of rows: of twenty, one is'
    ' expected to miss.',
  ]
  if not preset.comparable:
    lines.append(
      'The paper’s absolute numbers are of full CIFAR-10 and its networks.'
      ' Here they cannot be reproduced or refuted; what the paper says of'
      ' their order can.'
    )
  lines += [f'Failed: {own["title"]}: {own["error"]}' for own in failed]
  return Section('What was found', sentences=lines)


def _section(
  found: Tally,
  artefact: str,
  judged: Sequence[Judgement],
  pictures: Iterable[str],
) -> Section:
  title, lines, tables = paper.ARTEFACTS[artefact], [], []
  if artefact == 'table1':
    tables = [counting.table()]
  for problem in found.problems(artefact) if artefact == 'table2' else ():
    tables += [_table_2(found, problem, f) for f in problem.fractions]
  for sweep in found.preset.sweeps if artefact == 'sweeps' else ():
    tried = sweeping.points(found, sweep)
    lines.append(sweeping.conclusion(sweep, tried))
    tables.append(_swept(sweep, tried))
  own = [judgement for judgement in judged if judgement.artefact == artefact]
  if own:
    lines.append(f'Statements of the paper: {judgements.summary(own)}.')
    head = ['The paper says', 'Verdict', 'By']
    tables.append(Table.of(head, [judgement[1:] for judgement in own]))
  lines += _NOTES.get(artefact, ())
  shown = [Picture(name, '', title) for name in pictures]
  return Section(title, sentences=lines, tables=tables, pictures=shown)


def _table_2(found: Tally, problem: Problem, fraction: float) -> Table:
  """Table II for one share forgotten; in brackets what the paper prints."""
  marks, body = gap_marks(found, problem, fraction), []
  for row in ROWS:
    printed = paper.TABLE_2.get(fraction, {}).get(row)
    cells = [label(row)]
    for metric in _COLUMNS.values():
      text = cell(found.table(problem, fraction, row, metric), metric)
      if row == 'retrain' and not METRICS[metric].of_retrained:
        text = MISSING if metric.endswith('_changed') else 'ref.'
      if metric == _GAP and row in marks:
        text += f' {marks[row]}'
      if metric == 'seconds' and found.cut_off(problem, fraction, row):
        text = f'≥ {text}'
      if printed and metric in printed._fields:
        text += f' ({getattr(printed, metric):g})'
      cells.append(text)
    body.append(cells)
  head = f'{problem.name}, {percent(fraction)} forgotten'
  return Table.of([head, *_COLUMNS], body)


def cell(series: Series, metric: str) -> str:
  """Mean ± half of the interval.

  Example:
    >>> cell({0: 0.5}, 'test_accuracy'), cell({}, 'test_accuracy')
    ('50.0', '–')
  """
  interval, own = tally.interval(series), METRICS[metric]
  if interval is None:
    return MISSING
  mean = interval.mean * own.scale
  digits = own.digits or int(mean % 1 > 0)
  text = judging.number(mean, digits)
  half = 0.0 if interval.high is None else interval.high - interval.mean
  return text + (
    f' ± {judging.number(half * own.scale, digits)}' if half else ''
  )


def gap_marks(
  found: Tally, problem: Problem, fraction: float
) -> dict[str, str]:
  """↓ at the lowest gap to Retrain, (↓) where it cannot be told from that."""
  gaps = {
    row: series
    for row in ROWS
    if row != 'retrain'
    and (series := found.table(problem, fraction, row, _GAP))
  }
  means = {row: sum(gap.values()) / len(gap) for row, gap in gaps.items()}
  best = min(means, key=lambda row: means[row], default='')
  marks = {best: judging.LOWEST}
  for row, gap in gaps.items():
    above = tally.difference(gap, gaps[best])
    if row != best and above and above.low is not None and above.low <= 0:
      marks[row] = judging.LEVEL
  return marks


def _swept(sweep: Sweep, tried: Sequence[sweeping.Point]) -> Table:
  """Every setting of a sweep."""
  body = []
  for point in tried:
    change = MISSING
    if point.change is not None:
      change = judgements.shown(point.change, '')
    cells = [
      cell(series, sweeping.COLUMNS[name][0])
      for name, series in point.columns.items()
    ]
    default = ' (default)' if point.default else ''
    body.append([point.text + default, *cells, change])
  head = [sweep.name, *sweeping.COLUMNS, 'gap − default’s, points']
  return Table.of(head, body)
