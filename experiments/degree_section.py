"""The unlearning degrees of a report: its numbers, and how they are said.

`summary` makes what `report.json` holds under `degree`; `sections` what the
pages show of it. With several seeds an interval is over seeds, each the mean
of its generators; with one seed it is over generators, and speaks of no other
source.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments import degree, degree_figures, degrees, tables
from experiments.degree_figures import Bar
from experiments.degrees import Measured
from experiments.kept_pairs import Pair
from experiments.verdicts import Report
from unlearn_jax import metrics
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.strategies import STRATEGIES

Dict = dict[str, Any]


class Section(NamedTuple):
  """What a page shows of one bound.

  Attributes:
    title: of the section.
    sentences: what was found.
    tables: head and rows of each, text.
    notes: how to read it.
    pictures: caption by figure name.
  """

  title: str
  sentences: list[str]
  tables: list[tuple[list[str], list[list[str]]]]
  notes: list[str]
  pictures: dict[str, str]


def summary(measured: Measured) -> Dict:
  """One entry of `report['degree']`, JSON-serialisable."""
  null = _units(measured.null, _degree)
  target = None
  if 'retrain' in measured.known:
    target = _units(measured.known['retrain'], _degree)
  rows = [
    _row(measured, name, null, target)
    for name in STRATEGIES
    if name in measured.known
  ]
  return {
    'settings': dataclasses.asdict(measured.settings),
    'generators': measured.seeds,
    'seeds': len(measured.null),
    'null': {'degree': _interval(null), 'runs': _runs(measured.null)},
    'identity': {'runs': _runs(measured.identity)},
    'rows': rows,
  }


def _row(
  measured: Measured,
  name: str,
  null: list[float],
  target: list[float] | None,
) -> Dict:
  known, unseen = measured.known[name], measured.unseen[name]
  found = calibrated_degree(
    _units(known, _degree), null, None if name == 'retrain' else target
  )

  def interval(pairs: list[Pair], part: str, metric: str) -> Dict:
    return _interval(_units(pairs, lambda run: run[part][metric]))

  return {
    'strategy': name,
    'label': STRATEGIES[name].label,
    'role': STRATEGIES[name].role,
    **{
      metric: interval(known, 'held_out', metric)
      for metric in ('degree', 'gap', 'excess')
    },
    **{
      part: interval(known, part, 'degree')
      for part in ('fitted', 'retain', 'test')
    },
    'unseen': interval(unseen, 'held_out', 'degree'),
    'calibrated': degree.calibrated(found),
    'took_off': sum(pair.found['took_off'] for pair in known),
    'runs': _runs(known),
    'unseen_runs': _runs(unseen),
  }


def _degree(run: Dict) -> float:
  return run['held_out']['degree']


def _units(
  pairs: Sequence[Pair], value: Callable[[Dict], float]
) -> list[float]:
  """One value a seed, the mean over its generators; of one seed, all."""
  columns = [[value(run) for run in pair.found['runs']] for pair in pairs]
  if len(columns) == 1:
    return columns[0]
  return [float(np.mean(column)) for column in columns]


def _interval(values: Sequence[float]) -> Dict:
  return metrics.mean_interval(values)._asdict()


def _runs(pairs: Sequence[Pair]) -> list[list[Dict]]:
  """For each seed its generators, without their training curves."""
  return [
    [
      {k: v for k, v in run.items() if k != 'curve'}
      for run in pair.found['runs']
    ]
    for pair in pairs
  ]


def name_of(settings: Dict) -> str:
  """Of a bound, in file names."""
  bound = settings['max_perturbation']
  return 'unbounded' if bound is None else f'{255 * bound:g}_255'


def bars(found: Dict, num_classes: int) -> Figure:
  """Fig. 9: a bar a strategy, all generators as dots, the null as a band."""

  def dots(runs: list[list[Dict]]) -> list[float]:
    return [_degree(run) for generators in runs for run in generators]

  shown = []
  for row in found['rows']:
    interval = metrics.Interval(**row['degree'])
    shown.append(Bar(row['label'], dots(row['runs']), row['role'], interval))
  return degree_figures.bars(shown, dots(found['null']['runs']), num_classes)


def pictures(
  measured: Sequence[Measured], class_names: Sequence[str]
) -> dict[str, Figure]:
  """The figures that `sections` names."""
  drawn = {}
  for own in measured:
    found = summary(own)
    name = name_of(found['settings'])
    drawn[f'degree_bars_{name}'] = bars(found, len(class_names))
    drawn[f'degree_images_{name}'] = degrees.grid(own, class_names)
  return drawn


def sections(report: Report) -> list[Section]:
  """What a page shows, a section a bound; none where nothing was measured."""
  return [_section(found) for found in report.get('degree') or []]


def _section(found: Dict) -> Section:
  bound = found['settings']['max_perturbation']
  within = 'without a bound' if bound is None else f'within {255 * bound:g}/255'
  name, rows = name_of(found['settings']), found['rows']
  return Section(
    f'Unlearning degree (SPD-GAN), perturbations {within}',
    [_sentence(row, found) for row in rows],
    [
      (
        _HEAD,
        [_cells(row, found) for row in rows] + [_null_cells(found)],
      ),
      (
        ['Strategy', *degree.ACCURACIES],
        [[r['label'], *degree.accuracies(sum(r['runs'], []))] for r in rows],
      ),
    ],
    [*_NOTES, _units_note(found)],
    {
      f'degree_bars_{name}': 'Unlearning degree on the half of the forget set'
      ' that generators were not fitted on. A longer bar is not better: the'
      ' goal is Retrain’s, and what lies in the band is what two models score'
      ' that differ in their seed alone.',
      f'degree_images_{name}': 'Held-out images, what a generator made of them,'
      ' and the difference.',
    },
  )


_HEAD = [
  *('Strategy', 'Degree, points', 'Minus null', 'p', 'Unseen images'),
  *('Fitted half', 'Plain gap', 'Excess', 'Took off'),
]
_NOTES = (
  'Degree: accuracy of the source minus that of the unlearned model on images'
  ' of the forget set that a generator perturbed to tell the two apart (Eq.'
  ' 14), on the half that it was not fitted on. Null: the same for the source'
  ' and its twin, trained on the same data with another seed, which forgot'
  ' nothing.',
  'Unseen images: generators fitted and scored on test images, which no model'
  ' saw. What is as high there is no sign of what was forgotten.',
  'Plain gap: the difference of accuracies without any generator; excess: what'
  ' the generator adds. Took off: generators whose loss the cap alone held.',
  'The second table: accuracies of the source (M) and of the unlearned model on'
  ' the held-out half as it is and perturbed, and how far its pixels moved.',
)


def _units_note(found: Dict) -> str:
  generators, seeds = found['generators'], found['seeds']
  if seeds == 1:
    return (
      f'One seed, {generators} generators: intervals and p (a permutation test)'
      ' are over generators, and say nothing of another source or twin.'
    )
  return (
    f'{seeds} seeds with {generators} generators each: intervals and p (a'
    ' permutation test) are over seeds.'
  )


def _sentence(row: Dict, found: Dict) -> str:
  own, null = (
    degree.points(row['degree']),
    degree.points(found['null']['degree']),
  )
  calibrated = row['calibrated']
  verb = degree.VERBS[calibrated['verdict']]
  text = (
    f'{row["label"]}: its degree, {own} points, {verb}'
    f' ({null} points, p = {calibrated["p_value"]:.3f})'
  )
  if row['degree']['low'] <= row['unseen']['high']:
    text += (
      ', and not resolvably more than on images that no model saw'
      f' ({degree.points(row["unseen"])})'
    )
  return f'{text}.'


def _cells(row: Dict, found: Dict) -> list[str]:
  total = found['generators'] * found['seeds']
  calibrated = row['calibrated']
  return [
    row['label'],
    degree.points(row['degree']),
    degree.points(calibrated['difference']),
    f'{calibrated["p_value"]:.3f}',
    *(degree.points(row[name]) for name in ('unseen', 'fitted', 'gap')),
    degree.points(row['excess']),
    f'{row["took_off"]} of {total}',
  ]


def _null_cells(found: Dict) -> list[str]:
  cells = ['Null: the source’s twin', degree.points(found['null']['degree'])]
  return cells + [tables.MISSING] * (len(_HEAD) - len(cells))
