"""The page of a reproduction: what was run, found and judged."""

from collections.abc import Iterable, Sequence
import pathlib

from experiments import files, results
from experiments.progress import clock
from experiments.reproduction import (
  album,
  cells,
  judgements,
  layout,
  paper,
  statements,
  sweeping,
)
from experiments.reproduction.layout import Section, Table
from experiments.reproduction.outcomes import Outcomes
from experiments.reproduction.plan import Plan
from experiments.reproduction.presets import FIRST_SWEEP_SEED
from experiments.reproduction.tally import Tally


def write(plan: Plan, outcomes: Outcomes, root: pathlib.Path) -> pathlib.Path:
  """Writes `reproduction.md`, `.html`, `.json` and `figures/`.

  Args:
    plan: what was asked for; it need not be done.
    outcomes: what is there of it.
    root: the work directory.

  Returns:
    The HTML file.
  """
  found = Tally(plan, outcomes)
  judged = statements.judge(found)
  drawn = album.save_all(found, root)
  sections = list(_sections(found, judged, drawn))
  title = f'Section IV of the paper, preset {plan.preset.name}'
  facts = {
    'preset': plan.preset.name,
    'only': plan.only,
    'seeds': plan.preset.seeds,
    'planned': len(plan.tasks),
    'done': found.done(),
    'judgements': [judgement._asdict() for judgement in judged],
    'stages': found.records(),
    'environment': results.environment(),
  }
  files.replace(root / 'reproduction.json', files.to_json(facts).encode())
  text = layout.markdown(title, sections, root)
  files.replace(root / 'reproduction.md', _bytes(text))
  web = layout.html(title, sections)
  return files.replace(root / 'reproduction.html', _bytes(web))


def _bytes(text: str) -> bytes:
  return text.encode('utf-8', 'backslashreplace')


def _sections(
  found: Tally,
  judged: Sequence[judgements.Judgement],
  drawn: dict[str, list[pathlib.Path]],
) -> Iterable[Section]:
  yield _head(found, judged)
  for artefact in found.plan.only:
    own = [j for j in judged if j.artefact == artefact]
    section = Section(
      paper.ARTEFACTS[artefact],
      list(_NOTES.get(artefact, ())),
      _tables(found, artefact),
      drawn.get(artefact, []),
    )
    if artefact == 'sweeps':
      section = section._replace(lines=[*_conclusions(found), *section.lines])
    if own:
      counts = f'Statements of the paper: {judgements.summary(own)}.'
      section = section._replace(lines=[counts, *section.lines])
      section.tables.append(_judged(own))
    if not section.tables and not section.pictures:
      section = section._replace(lines=['Nothing of this is computed yet.'])
    yield section


_BANDS = (
  'Thick: mean over seeds; thin: each seed; band: 95 % interval of the mean, '
  'cut off where it leaves the picture.'
)
_NOTES = {
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
  'fig1': (_BANDS,),
  'fig6': (_BANDS,),
  'fig8': (_BANDS,),
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


def _head(found: Tally, judged: Sequence[judgements.Judgement]) -> Section:
  preset, plan = found.preset, found.plan
  lines = [
    f'{preset.about}; {preset.seeds} seeds, sweeps on {preset.sweep_seeds} of'
    f' their own (from {FIRST_SWEEP_SEED}).',
    f'{found.done()} of {len(plan.tasks)} stages are done; they took'
    f' {clock(found.wall_seconds())} of a worker’s time.',
    f'Of {len(judged)} rows: {judgements.summary(judged)}.',
    f'Source and Retrain: Adam at {preset.train_learning_rate:g},'
    f' {preset.train_epochs} epochs, batch {preset.batch_size}, nothing'
    f' augmented, {preset.dtype}. Fine-tuning: Adam at'
    f' {preset.learning_rate:g}, EU-K and CF-K at'
    f' {preset.last_k_learning_rate:g}; at most {preset.table_epochs} epochs in'
    f' tables, {preset.curve_epochs} in figures.',
    'Stop rule: the first epoch in which the mean JS divergence to the source'
    f' on D_UL moved by at most {preset.stop_js_change:g} bits and the accuracy'
    f' on D_RE was at least {preset.stop_retain_share:g} of the source’s.',
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
  lines += [f'Failed: {line}' for line in found.failures()]
  return Section('What was found', lines)


def _judged(rows: Sequence[judgements.Judgement]) -> Table:
  return Table(
    ['The paper says', 'Verdict', 'By'],
    [[row.statement, row.verdict, row.evidence] for row in rows],
  )


def _tables(found: Tally, artefact: str) -> list[Table]:
  problems = [p for p in found.preset.problems if artefact in p.shows]
  if artefact == 'table1':
    return [cells.table_1()]
  if artefact == 'table2':
    return [cells.table_2(found, p, f) for p in problems for f in p.fractions]
  if artefact == 'sweeps':
    return [cells.swept(found, sweep) for sweep in found.preset.sweeps]
  return []


def _conclusions(found: Tally) -> list[str]:
  return [
    sweeping.conclusion(sweep, sweeping.points(found, sweep))
    for sweep in found.preset.sweeps
  ]
