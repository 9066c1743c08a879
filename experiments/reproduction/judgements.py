"""Row by row: reproduced, not reproduced, or not decidable, and why.

A statement of the paper that can be put as "this difference is above 0" is
judged by the 95 % interval of that difference, paired by seed:

- reproduced: the interval lies above 0; of several, all of them do;
- not reproduced: an interval lies below 0;
- not decidable: otherwise, or with fewer than two seeds, or where all seeds
  differ by exactly the same: accuracies are counts, and two small counts are
  easily alike, which says nothing of how far a third would be off.

A number of the paper is judged by whether our interval contains it, if the
preset has the paper's data and networks, and if the interval is narrow enough
that it could have missed it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.report import judging
from experiments.report.sections import NOT_REPRODUCED, REPRODUCED
from experiments.reproduction import tally
from experiments.reproduction.tally import Series
from unlearn_jax.metrics import Interval

UNDECIDED = 'not decidable'
# Half-widths beyond which an interval says too little of a number: percentage
# points, and of an acceleration, a share of the paper's.
WIDEST_POINTS = 5.0
WIDEST_SHARE = 0.5
_NO_SPREAD = 1e-12
_PRINTED = 0.005  # the paper's last digit, halved
# Of a difference as shown: scale and decimals.
_UNITS = {'points': (100, 1), '': (100, 2), 's': (1, 2), '×': (1, 2)}


class Judgement(NamedTuple):
  """A row of the page.

  Attributes:
    artefact: a key of `paper.ARTEFACTS`.
    statement: what the paper says.
    verdict: one of the three.
    evidence: the interval, or why there is none.
  """

  artefact: str
  statement: str
  verdict: str
  evidence: str


def percent(fraction: float) -> str:
  """A share as the page shows it.

  Example:
    >>> percent(0.05)
    '5 %'
  """
  return f'{100 * fraction:g} %'


def shown(interval: Interval, unit: str = 'points') -> str:
  """An interval as text.

  Example:
    >>> shown(Interval(0.5, 0.25, 0.75, 3))
    '50.0 points [25.0, 75.0]'
  """
  scale, digits = _UNITS.get(unit, (1, 1))
  mean, low, high = (
    '' if value is None else judging.number(value * scale, digits)
    for value in interval[:3]
  )
  tail = f' [{low}, {high}]' if low else ', one seed'
  return f'{mean} {unit}'.rstrip() + tail


def sign(interval: Interval) -> int:
  """1 where an interval lies above 0, −1 below, 0 where it resolves nothing.

  Example:
    >>> sign(Interval(0.5, 0.25, 0.75, 3)), sign(Interval(0.5, 0.5, 0.5, 2))
    (1, 0)
  """
  if interval.low is None or interval.high is None:
    return 0
  if interval.high - interval.low < _NO_SPREAD:
    return 0
  return int(interval.low > 0) - int(interval.high < 0)


def verdict(interval: Interval) -> str:
  """Of a difference that the paper says is above 0."""
  verdicts = {1: REPRODUCED, 0: UNDECIDED, -1: NOT_REPRODUCED}
  return verdicts[sign(interval)]


def ordering(
  artefact: str,
  statement: str,
  comparisons: Mapping[str, tuple[Series, Series]],
  unit: str = 'points',
) -> Judgement:
  """Whether the first of each pair is above the second, over seeds.

  Args:
    artefact: where the paper says so.
    statement: what it says.
    comparisons: by a name of the difference, its two sides.
    unit: of the difference as shown.

  Returns:
    The judgement; its evidence is the interval that decides: one below 0, or
    one that resolves nothing, or else the lowest.
  """
  found = {n: tally.difference(*sides) for n, sides in comparisons.items()}
  known = {name: i for name, i in found.items() if i is not None}
  if not known:
    return Judgement(artefact, statement, UNDECIDED, 'nothing was measured')
  short = [n for n, i in found.items() if i is None or i.low is None]
  if short:
    reason = f'fewer than two seeds of {short[0]}'
    return Judgement(artefact, statement, UNDECIDED, reason)
  # The one that decides: refuted by any, borne out by all.
  worst = min(known, key=lambda n: (sign(known[n]), known[n].low or 0.0))
  text = shown(known[worst], unit)
  more = f', the least clear of {len(known)}' if len(known) > 1 else ''
  evidence = f'{worst}: {text}, {known[worst].size} seeds{more}'
  return Judgement(artefact, statement, verdict(known[worst]), evidence)


def of_times(judgement: Judgement, own_cut: bool, other_cut: bool) -> Judgement:
  """An order of times, of which some may be bounds only.

  A time that was cut off before the stop rule held is too short.

  Args:
    judgement: of "this strategy takes less time than the others".
    own_cut: whether the strategy's was cut off; it may in truth be slower.
    other_cut: whether one of the others' was.
  """
  doubtful = {REPRODUCED: own_cut, NOT_REPRODUCED: other_cut}
  if not doubtful.get(judgement.verdict):
    return judgement
  evidence = f'{judgement.evidence}, but a time was cut off: no stop in time'
  return judgement._replace(verdict=UNDECIDED, evidence=evidence)


def number(
  artefact: str,
  statement: str,
  printed: float,
  series: Series,
  widest: float,
  unit: str,
  why_not: str = '',
) -> Judgement:
  """Whether our interval contains a number that the paper prints.

  Args:
    artefact: where it is printed.
    statement: what it is the number of.
    printed: the number.
    series: ours, in the same unit.
    widest: a half-width beyond which the interval decides nothing, although
      it contains the number.
    unit: of all of them.
    why_not: why the two cannot be compared; empty if they can.
  """
  interval, verdict_, reason = tally.interval(series), UNDECIDED, why_not
  text = 'not measured'
  if interval is not None:
    text = f'ours {shown(interval, unit)}, {interval.size} seeds'
    if interval.low is not None and interval.high is not None and not why_not:
      width = interval.high - interval.low
      if width < _NO_SPREAD:
        # All alike: a count that is off by the same, or the very number.
        same = abs(interval.mean - printed) < _PRINTED
        verdict_ = REPRODUCED if same else UNDECIDED
      elif not interval.low <= printed <= interval.high:
        verdict_ = NOT_REPRODUCED
      elif width / 2 > widest:
        reason = f'wider than ± {widest:g} {unit}'
      else:
        verdict_ = REPRODUCED
  evidence = '; '.join(filter(None, (text, reason)))
  said = f'{statement}: {printed:g} {unit}'
  return Judgement(artefact, said, verdict_, evidence)


def summary(judgements: Sequence[Judgement]) -> str:
  """How many of each."""
  verdicts = [judgement.verdict for judgement in judgements]
  return ', '.join(
    f'{verdicts.count(verdict)} {verdict}'
    for verdict in (REPRODUCED, NOT_REPRODUCED, UNDECIDED)
  )
