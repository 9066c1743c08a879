"""What the paper says, put to our numbers; what sweeps say of our defaults.

That a difference is above 0 is reproduced where its 95 % interval, paired by
seed, lies above 0 (of several, all of them), and not where one lies below. It
is not decidable otherwise, with one seed, or where all seeds differ by exactly
the same: two small counts are easily alike, which says nothing of a third.

A number is judged by whether our interval contains it, if the preset has the
paper's data and networks, and if the interval is narrow enough to have missed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

from unlearn_jax.evaluation import METRICS
from unlearn_jax.metrics import Interval
from ..report import judging
from . import paper, presets, series
from .paper import WORDS
from .presets import Place, Problem, Sweep
from .series import NULL, Numbers, Series

# A page colours the first two.
REPRODUCED, NOT_REPRODUCED = 'reproduced', 'not reproduced'
UNDECIDED = 'not decidable'
# Of a difference that the paper says is above 0, by its sign.
VERDICTS = (UNDECIDED, REPRODUCED, NOT_REPRODUCED)
# Half-widths beyond which an interval says too little of a number: percentage
# points, and of an acceleration, a share of the paper's.
WIDEST_POINTS = 5.0
WIDEST_SHARE = 0.5
_NO_SPREAD = 1e-12
_PRINTED = 0.005  # the paper's last digit, halved
# Of a difference as shown: scale and decimals.
_UNITS = {'points': (100, 1), '': (100, 2), 's': (1, 2), '×': (1, 2)}
# Metric, and epoch of the curve, by header.
COLUMNS: dict[str, list[Any]] = WORDS['sweep_columns']
GAP = list(COLUMNS)[-1]
_SHORT = {'epsilon': 'ε', 'js_weight': 'λ', 'learning_rate': 'rate'}
# A verdict; the interval, or why there is none.
Finding = tuple[str, str]
# What the paper says, and what we find.
Said = tuple[str, Finding]


class Judgement(NamedTuple):
  """A row of the page: what the paper says, and what we find."""

  artefact: str
  statement: str
  verdict: str
  evidence: str


def shown(interval: Interval, unit: str = 'points') -> str:
  """An interval as text."""
  scale, digits = _UNITS.get(unit, (1, 1))
  mean, low, high = (
    '' if value is None else judging.number(value * scale, digits)
    for value in interval[:3]
  )
  tail = f' [{low}, {high}]' if low else ', one seed'
  return f'{mean} {unit}'.rstrip() + tail


def sign(interval: Interval) -> int:
  """1 where an interval lies above 0, −1 below, 0 where it resolves nothing."""
  low, high = interval.low, interval.high
  if low is None or high is None or high - low < _NO_SPREAD:
    return 0
  return int(low > 0) - int(high < 0)


def ordering(
  sides: Mapping[str, tuple[Series, Series]], unit: str = 'points'
) -> Finding:
  """Whether the first of each pair is above the second, over seeds."""
  found = {name: series.difference(*pair) for name, pair in sides.items()}
  known = {name: own for name, own in found.items() if own is not None}
  if not known:
    return UNDECIDED, 'nothing was measured'
  for name, own in found.items():
    if own is None or own.low is None:
      return UNDECIDED, f'fewer than two seeds of {name}'
  # The one that decides: refuted by any, borne out by all.
  worst = min(known, key=lambda n: (sign(known[n]), known[n].low or 0.0))
  more = f', the least clear of {len(known)}' if len(known) > 1 else ''
  text = f'{worst}: {shown(known[worst], unit)}, {known[worst].size} seeds'
  return VERDICTS[sign(known[worst])], text + more


def number(
  ours: Series, printed: float, widest: float, unit: str, why_not: str = ''
) -> Finding:
  """Whether our interval, if not too wide, contains a number of the paper."""
  found = series.interval(ours)
  if found is None:
    return UNDECIDED, 'not measured'
  text = f'ours {shown(found, unit)}, {found.size} seeds'
  if why_not:
    return UNDECIDED, f'{text}; {why_not}'
  if found.low is None or found.high is None:
    return UNDECIDED, text
  width = found.high - found.low
  if width < _NO_SPREAD:
    # All alike: a count that is off by the same, or the very number.
    return VERDICTS[abs(found.mean - printed) < _PRINTED], text
  if not found.low <= printed <= found.high:
    return NOT_REPRODUCED, text
  if width / 2 > widest:
    return UNDECIDED, f'{text}; wider than ± {widest:g} {unit}'
  return REPRODUCED, text


def summary(judged: Sequence[Judgement]) -> str:
  """How many of each."""
  verdicts = [judgement.verdict for judgement in judged]
  wanted = REPRODUCED, NOT_REPRODUCED, UNDECIDED
  return ', '.join(f'{verdicts.count(own)} {own}' for own in wanted)


@dataclasses.dataclass(frozen=True)
class Order:
  """A statement of `statements.toml`, where the fields are explained."""

  says: str
  shares: str
  metric: str
  pairs: dict[str, tuple[str, str | float]]
  second_metric: str = ''
  of: str = 'table'
  epoch: int | None = None
  unit: str = 'points'
  faster: tuple[str, ...] = ()
  slower: tuple[str, ...] = ()


ORDERS = paper.read('statements.toml', dict[str, list[Order]])


def judge(found: Numbers) -> list[Judgement]:
  """Every statement, in the order of the artefacts."""
  made: list[Judgement] = []
  for artefact in found.only:
    for problem in found.problems(artefact):
      said = [
        _order(found, own, first, last)
        for own in ORDERS.get(artefact, ())
        for first, last in _ends(found, problem, own)
      ]
      if artefact in _OTHERS:
        said += _OTHERS[artefact](found, problem)
      made += [Judgement(artefact, words, *own) for words, own in said]
  return made


def _ends(
  found: Numbers, problem: Problem, own: Order
) -> list[tuple[Place, Place]]:
  """For each time that something is said, where its two sides are."""
  every = problem.places
  if own.of == 'degree':
    every = [a for a in every if a.fraction in found.preset.degree_fractions]
  if own.shares == 'trend':
    return [(every[0], every[-1])] if every[1:] else []
  ends = every[:1] + every[1:][-1:]
  places = {'each': every, 'last': every[-1:], 'ends': ends}
  return [(at, at) for at in places[own.shares]]


def _order(found: Numbers, own: Order, first: Place, last: Place) -> Said:
  sides = {}
  for name, (row, second) in own.pairs.items():
    if own.of == 'degree' and {row, second} - {*found.preset.degree_rows, NULL}:
      continue
    above = found.of(own.of, first, row, own.metric, own.epoch)
    if isinstance(second, str):
      metric = own.second_metric or own.metric
      below = found.of(own.of, last, second, metric, own.epoch)
    else:
      below = dict.fromkeys(above, second)
    sides[name] = above, below
  verdict, evidence = ordering(sides, own.unit)
  # What won by too short a time may in truth be slower; what lost, faster.
  doubtful = {REPRODUCED: own.faster, NOT_REPRODUCED: own.slower}
  if found.cut_off(first, *doubtful.get(verdict, ())):
    verdict = UNDECIDED
    evidence += ', but a time was cut off: no stop in time'
  ends = {'share': first.share, 'first': first.share, 'last': last.share}
  said = own.says.format(problem=first.problem.name, **ends)
  return said, (verdict, evidence)


def table_1(found: Numbers, problem: Problem) -> Iterator[Said]:
  """Table I: the counts, of the paper's networks whatever the preset."""
  names = ('Random-k', 'EU-5/CF-5', 'EU-10/CF-10')
  for model, (_, *printed) in paper.TABLE_1.items():
    for name, text, own in zip(names, printed, paper.counts(model)[2:]):
      verdict = REPRODUCED if says(text, own) else NOT_REPRODUCED
      yield f'{model}, {name}: {text}', (verdict, f'{own:,}')


def says(printed: str, count: int) -> bool:
  """Whether a count is what the paper prints, to its last digit.

  It rounds some (0.265M for 264,970) and cuts others off (0.558M for 558,698).
  """
  if not printed.endswith('M'):
    return int(printed) == count
  millions = printed.removesuffix('M')
  unit = 10.0 ** -len(millions.partition('.')[2])
  return abs(count / 1e6 - float(millions)) < unit


def table_2(found: Numbers, problem: Problem) -> Iterator[Said]:
  """Table II: the cells; FR and MRR follow from the accuracies."""
  for at in problem.places:
    if not found.preset.comparable:
      reason = 'other data and another network than the paper’s'
      yield f'{at.share}: the numbers of its rows', (UNDECIDED, reason)
      continue
    for row, cells in paper.TABLE_2.get(at.fraction, {}).items():
      for metric, name in WORDS['cells'].items():
        if row == 'retrain' and not METRICS[metric].of_retrained:
          continue
        ours, why_not = found.of('table', at, row, metric), ''
        if metric == 'acceleration':
          times = paper.acceleration(at.fraction, row)
          wanted = round(times, 2), WIDEST_SHARE * times, '× Retrain'
          if found.cut_off(at, row, 'retrain'):
            why_not = 'the stop rule was not met: a bound is all there is'
        else:
          ours = {seed: 100 * share for seed, share in ours.items()}
          wanted = getattr(cells, metric), WIDEST_POINTS, '%'
        said = f'{at.share}, {paper.ROWS[row].label}, {name}: {wanted[0]:g}'
        yield f'{said} {wanted[2]}', number(ours, *wanted, why_not)


def figure_5(found: Numbers, problem: Problem) -> Iterator[Said]:
  """Figure 5: there is a best K."""
  units = zip(presets.GRANULARITIES, ('scalars', 'tensors'))
  for (granularity, unit), at in itertools.product(units, problem.places):
    said = f'{at}: some K up to 50 ({unit}) is optimal, with a larger'
    best = series.best_k(found.of_k(at, granularity))
    finding = UNDECIDED, 'nothing was measured'
    if best is not None:
      text = f'best K = {best[0]}: {shown(best[1])} above K = 0'
      if best[1].low is not None:
        text += f', {best[1].size} seeds, corrected for the number of K’s'
      finding = VERDICTS[sign(best[1])], text
    yield f'{said} Acc_RE − Acc_UL than K = 0', finding


_OTHERS: dict[str, Callable[[Numbers, Problem], Iterator[Said]]] = {
  'table1': table_1,
  'table2': table_2,
  'fig5': figure_5,
}


class Point(NamedTuple):
  """One setting that was tried."""

  text: str
  default: bool  # whether it is the one that the tables use
  columns: dict[str, Series]
  # Of the gap, from the default's, corrected for the number of settings.
  change: Interval | None


def points(found: Numbers, sweep: Sweep) -> list[Point]:
  """All settings of a sweep, in its order."""
  problem, made = found.preset.problems[0], []
  default = found.preset.spelled(problem, sweep.row)
  reference = columns(found, sweep, default)[GAP]
  confidence = 1 - 0.05 / max(1, len(sweep.options) - 1)
  for option in sweep.options:
    text = found.preset.spelled(problem, sweep.row, **option)
    own, change = columns(found, sweep, text), None
    if text != default:
      change = series.difference(own[GAP], reference, confidence)
    made.append(Point(describe(option), text == default, own, change))
  return made


def columns(found: Numbers, sweep: Sweep, text: str) -> dict[str, Series]:
  """Of one setting, over the sweeps' seeds."""
  name = found.preset.problems[0].swept.name('sweep', sweep.name)
  return {n: found.series(name, text, *what) for n, what in COLUMNS.items()}


def describe(option: dict[str, Any]) -> str:
  """A setting as text, 'change scale, ε −1'."""
  return ', '.join(
    f'{_SHORT.get(n, n)} {v if isinstance(v, str) else f"{v:g}"}'
    for n, v in option.items()
  ).replace('-', '−')


def conclusion(sweep: Sweep, tried: Sequence[Point]) -> str:
  """Whether the default stays, and why, in one sentence."""
  default = next(point.text for point in tried if point.default)
  changes = [(p.change, p.text) for p in tried if p.change is not None]
  seeds = min((change.size for change, _ in changes), default=0)
  facts: dict[str, Any] = {'name': sweep.name, 'default': default}
  if seeds < 2:
    return WORDS['sweeps']['few'].format(**facts)
  better = [own for own in changes if sign(own[0]) < 0]
  worse = [own for own in changes if sign(own[0]) > 0]
  change, best = min(better or changes, key=lambda own: own[0].mean)
  said = 'confirmed' if len(worse) == len(changes) else 'stays'
  facts |= {'best': best, 'shown': shown(change), 'seeds': seeds}
  return WORDS['sweeps']['change' if better else said].format(**facts)
