"""The unlearning degrees of a report: what a page shows of one bound."""

from collections.abc import Sequence
import operator

from matplotlib.figure import Figure
import numpy as np

from unlearn_jax.degree import Run as Generator
from unlearn_jax.metrics import mean_interval
from . import figures, judging
from .model import DegreeFacts, DegreeRow, Estimate
from .sections import Picture, Section, Table
from .tables import MISSING
from .wording import WORDS, say

Seeds = Sequence[Sequence[Generator]]  # For each seed, its generators.


def name_of(facts: DegreeFacts, kind: str) -> str:
  """Of a picture: `degree_bars_8_255`; `kind` is 'bars' or 'images'."""
  bound = facts.max_perturbation
  name = 'unbounded' if bound is None else f'{255 * bound:g}_255'
  return f'degree_{kind}_{name}'


def pictures(every: Sequence[DegreeFacts], classes: int) -> dict[str, Figure]:
  """The bars of each bound, by name."""
  return {name_of(own, 'bars'): bars(own, classes) for own in every}


def bars(facts: DegreeFacts, classes: int) -> Figure:
  """Fig. 9: a bar a strategy, all generators as dots, the null as a band."""
  most = 1 - 1 / classes
  shown = [
    figures.Bar(row.label, _degrees(row.generators), row.role, row.degree)
    for row in facts.rows
  ]
  label, null = say('degree', 'axis', most=100 * most), _degrees(facts.null)
  return figures.bars(shown, label, dot='generator', null=null, most=most)


def _degrees(seeds: Seeds) -> list[float]:
  return [own.held_out.degree for seed in seeds for own in seed]


def units(seeds: Seeds, name: str = 'held_out.degree') -> list[float]:
  """One value a seed, the mean over its generators; of one seed, all."""
  value = operator.attrgetter(name)
  columns = [[value(own) for own in seed] for seed in seeds]
  if len(columns) == 1:
    return columns[0]
  return [float(np.mean(column)) for column in columns]


def estimate(seeds: Seeds, name: str = 'held_out.degree') -> Estimate:
  """Over `units`."""
  return Estimate.of(mean_interval(units(seeds, name)))


def section(facts: DegreeFacts) -> Section:
  """What a page shows of one bound."""
  bound = facts.max_perturbation
  within = 'without a bound' if bound is None else f'within {255 * bound:g}/255'
  heads, null = WORDS['degree_heads'], points(facts.null_degree)
  body = [_cells(row, facts) for row in facts.rows]
  empty = [MISSING] * (len(heads['first']) - 2)
  body.append(['Null: the source’s twin', null, *empty])
  # A column of nothing but its head is left out.
  columns = [c for c in zip(heads['first'], *body) if {*c[1:]} != {MISSING}]
  head, *cells = zip(*columns)
  notes = ['degree', 'unseen', 'columns', 'second_table']
  if not any(row.unseen_degree for row in facts.rows):
    notes.remove('unseen')
  notes.append('one_seed' if facts.seeds == 1 else 'seeds')
  second = ['Strategy', *heads['second']]
  moved = Table.of(second, [_moved(row) for row in facts.rows])
  return Section(
    f'Unlearning degree (SPD-GAN), perturbations {within}',
    sentences=[_sentence(row, facts) for row in facts.rows],
    tables=[Table.of(head, cells), moved],
    notes=[say('degree', note, facts=facts) for note in notes],
    pictures=[
      Picture(name_of(facts, kind), say('degree', kind), say('alt', kind))
      for kind in ('bars', *(['images'] if facts.rows else []))
    ],
    kind='verdicts',
  )


def _sentence(row: DegreeRow, facts: DegreeFacts) -> str:
  more, unseen, low = '', row.unseen_degree, row.degree.low
  high = unseen.high if unseen else None
  if unseen and low is not None and high is not None and low <= high:
    more = say('degree', 'no_more', unseen=points(unseen))
  known = {'degree': points(row.degree), 'null': points(facts.null_degree)}
  verb = say('degree', row.verdict)
  return say('degree', 'found', row=row, verb=verb, more=more, **known)


def _cells(row: DegreeRow, facts: DegreeFacts) -> list[str]:
  took_off = sum(own.took_off for seed in row.generators for own in seed)
  return [
    *(row.label, points(row.degree), points(row.difference)),
    f'{row.p_value:.3f}',
    points(row.unseen_degree) if row.unseen_degree else MISSING,
    points(estimate(row.generators, 'fitted.degree')),
    *(points(row.gap), points(row.excess)),
    f'{took_off} of {facts.generators * facts.seeds}',
  ]


def _moved(row: DegreeRow) -> list[str]:
  """Of both models, and how far pixels moved; over all generators."""
  every, cells = [own for seed in row.generators for own in seed], [row.label]
  for name, scale, digits in WORDS['degree_heads']['second'].values():
    values = judging.known([operator.attrgetter(name)(own) for own in every])
    found = Estimate.of(mean_interval(values)) if values else None
    cells += [judging.plus_minus(found, scale, digits) if found else MISSING]
  return cells


def points(value: Estimate) -> str:
  """'61.2 ± 3.4', of an interval of shares."""
  return judging.plus_minus(value, 100, 1)
