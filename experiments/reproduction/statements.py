"""What the paper says of its tables and figures, put to our numbers."""

from collections.abc import Callable, Iterator

from experiments.reproduction import counting, judgements, paper, tally
from experiments.reproduction.judgements import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
  WIDEST_POINTS,
  WIDEST_SHARE,
  Judgement,
  ordering,
  percent,
)
from experiments.reproduction.presets import (
  CURVES,
  GRANULARITIES,
  Problem,
  label,
)
from experiments.reproduction.tally import NULL, Series, Tally

_LAST_K = ('eu_5', 'eu_10', 'cf_5', 'cf_10')
_IMPLIED = ' (not in the paper, but implied)'


def judge(found: Tally) -> list[Judgement]:
  """Every statement, in the order of the artefacts."""
  return [
    judgement
    for artefact in found.only
    if artefact in _JUDGES
    for problem in found.problems(artefact)
    for judgement in _JUDGES[artefact](found, problem)
  ]


def table_1(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Table I: the counts, of the paper's networks whatever the preset."""
  names = ('Random-k', 'EU-5/CF-5', 'EU-10/CF-10')
  for model, (_, *printed) in paper.TABLE_1.items():
    for name, text, own in zip(names, printed, counting.counts(model)[2:]):
      verdict = REPRODUCED if says(text, own) else NOT_REPRODUCED
      yield Judgement('table1', f'{model}, {name}: {text}', verdict, f'{own:,}')


def says(printed: str, count: int) -> bool:
  """Whether a count is what the paper prints, to its last digit.

  The paper rounds some (0.265M for 264,970) and cuts others off (0.558M for
  558,698), so both count.

  Example:
    >>> says('2.37M', 2365450), says('6666', 6666), says('6666', 6667)
    (True, True, False)
  """
  if not printed.endswith('M'):
    return int(printed) == count
  millions = printed.removesuffix('M')
  unit = 10.0 ** -len(millions.partition('.')[2])
  return abs(count / 1e6 - float(millions)) < unit


def table_2(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Table II: orders, trends, and the cells themselves."""
  for fraction in problem.fractions:
    yield from _orders(found, problem, fraction)
  few, many = problem.fractions[0], problem.fractions[-1]
  for row, metric, name in (
    ('top_k', 'forget_accuracy', 'Top-K’s Acc_UL'),
    ('eu_5', 'forget_accuracy', 'EU-5’s Acc_UL'),
    ('cf_5', 'forget_accuracy', 'CF-5’s Acc_UL'),
    ('cf_5', 'retain_accuracy', 'CF-5’s Acc_RE'),
  ):
    if few != many:
      first, last = (
        found.table(problem, fraction, row, metric) for fraction in (few, many)
      )
      said = f'{name} falls from {percent(few)} to {percent(many)} forgotten'
      yield ordering('table2', said, {'fall': (first, last)})
  for fraction in problem.fractions:
    if found.preset.comparable:
      yield from _cells(found, problem, fraction)
    else:
      said = f'{percent(fraction)}: the numbers of its rows'
      reason = 'other data and another network than the paper’s'
      yield Judgement('table2', said, UNDECIDED, reason)


def _orders(
  found: Tally, problem: Problem, fraction: float
) -> Iterator[Judgement]:
  """Who forgets most and who is fastest, for one share."""

  def column(row: str, metric: str = 'forget_accuracy') -> Series:
    return found.table(problem, fraction, row, metric)

  share, top = percent(fraction), column('top_k')
  yield ordering(
    'table2',
    f'{share}: Top-K has the lowest Acc_UL of all strategies',
    {
      f'{label(row)} − Top-K': (column(row), top)
      for row in ('random_k', *_LAST_K, 'retrain')
    },
  )
  for row in ('top_k', 'random_k'):
    own = column(row, 'seconds')
    for others, name in ((_LAST_K, 'EU-K and CF-K'), (('retrain',), 'Retrain')):
      sides = {
        f'{label(o)} − {label(row)}': (column(o, 'seconds'), own)
        for o in others
      }
      said = f'{share}: {label(row)} takes less time than {name}'
      yield judgements.of_times(
        ordering('table2', said, sides, 's'),
        found.cut_off(problem, fraction, row),
        found.cut_off(problem, fraction, *others),
      )
  for row in ('top_k', 'random_k'):
    yield ordering(
      'table2',
      f'{share}: {label(row)} has a lower Acc_UL than the same fine-tuning'
      f' without any perturbation{_IMPLIED}',
      {'K = 0 − its own': (column('finetune'), column(row))},
    )


def _cells(
  found: Tally, problem: Problem, fraction: float
) -> Iterator[Judgement]:
  """The cells of Table II; FR and MRR follow from the accuracies."""
  for row, cells in paper.TABLE_2.get(fraction, {}).items():
    of = f'{percent(fraction)}, {label(row)}'
    for metric, name in (
      ('forget_accuracy', 'Acc_UL'),
      ('retain_accuracy', 'Acc_RE'),
      ('similarity', 'similarity'),
    )[: 2 if row == 'retrain' else 3]:  # Retrain is similar to itself.
      series = found.table(problem, fraction, row, metric)
      series = {seed: 100 * value for seed, value in series.items()}
      printed = getattr(cells, metric)
      yield judgements.number(
        'table2', f'{of}, {name}', printed, series, WIDEST_POINTS, '%'
      )
    times = paper.acceleration(fraction, row)
    if times is not None and row != 'retrain':
      cut = found.cut_off(problem, fraction, row, 'retrain')
      yield judgements.number(
        'table2',
        f'{of}, acceleration',
        round(times, 2),
        found.table(problem, fraction, row, 'acceleration'),
        WIDEST_SHARE * times,
        '× Retrain',
        'the stop rule was not met: a bound is all there is' if cut else '',
      )


def figure_1(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 1: the two accuracies differ after Random-k."""
  for fraction in problem.fractions:
    retain, forget = (
      found.curve(problem, fraction, 'random_k', f'{part}_accuracy')
      for part in ('retain', 'forget')
    )
    yield ordering(
      'fig1',
      f'{problem.name}, {percent(fraction)}: after Random-k, Acc_RE is'
      ' significantly higher than Acc_UL',
      {'Acc_RE − Acc_UL': (retain, forget)},
    )


def figure_5(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 5: there is a best K."""
  for granularity in GRANULARITIES:
    for fraction in problem.fractions:
      unit = 'tensors' if granularity == 'leaf' else 'scalars'
      said = (
        f'{problem.name}, {percent(fraction)}: some K up to 50 ({unit}) is'
        ' optimal, with a larger Acc_RE − Acc_UL than K = 0'
      )
      best = tally.best_k(found.of_k(problem, fraction, granularity))
      if best is None:
        yield Judgement('fig5', said, UNDECIDED, 'nothing was measured')
        continue
      k, gain = best
      text = f'best K = {k}: {judgements.shown(gain)} above K = 0'
      if gain.low is not None:
        text += f', {gain.size} seeds, corrected for the number of K’s'
      yield Judgement('fig5', said, judgements.verdict(gain), text)


def figure_6(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 6: who starts where, and where Top-K ends."""
  fraction = problem.fractions[-1]
  head = f'{problem.name}, {percent(fraction)}'
  for metric, said in (
    ('retain_accuracy', 'Top-K’s Acc_RE is above Random-k’s'),
    ('forget_accuracy', 'Random-k’s Acc_UL is below Top-K’s'),
  ):
    top, random = (
      found.curve(problem, fraction, row, metric, 0)
      for row in ('top_k', 'random_k')
    )
    yield ordering(
      'fig6',
      f'{head}: at the beginning of fine-tuning, {said}',
      {'Top-K − Random-k, as perturbed': (top, random)},
    )
  last = found.curve(problem, fraction, 'top_k', 'retain_accuracy')
  yield ordering(
    'fig6',
    f'{head}: Top-K’s Acc_RE reaches about 95 % (here: 95 % or more)',
    {'Acc_RE − 95 %': (last, dict.fromkeys(last, 0.95))},
  )


def figure_7(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 7: faster than Retrain, the less so the more is forgotten."""
  few, many = problem.fractions[0], problem.fractions[-1]
  for row in ('top_k', 'random_k'):
    head = f'{problem.name}: {label(row)}'
    times = {}
    for fraction in dict.fromkeys((few, many)):
      own = found.table(problem, fraction, row, 'acceleration')
      times[fraction] = own
      said = f'{head} is faster than Retrain at {percent(fraction)}'
      sides = {'acceleration − 1': (own, dict.fromkeys(own, 1.0))}
      yield judgements.of_times(
        ordering('fig7', said, sides, '×'),
        found.cut_off(problem, fraction, row),
        found.cut_off(problem, fraction, 'retrain'),
      )
    if few != many:
      said = (
        f'{head} accelerates less at {percent(many)} than at {percent(few)}'
      )
      sides = {'fall': (times[few], times[many])}
      yield ordering('fig7', said, sides, '×')


def figure_8(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 8: Top-K starts highest, Random-TopK ends lowest."""
  for fraction in problem.fractions:
    start, end = (
      {
        row: found.curve(problem, fraction, row, 'retain_accuracy', epoch)
        for row in CURVES
      }
      for epoch in (0, found.preset.curve_epochs)
    )
    head = f'{problem.name}, {percent(fraction)}'
    yield ordering(
      'fig8',
      f'{head}: at the beginning, Acc_RE is highest for Top-K',
      {
        f'Top-K − {label(row)}': (start['top_k'], start[row])
        for row in ('random_k', 'random_top_k')
      },
    )
    yield ordering(
      'fig8',
      f'{head}: Random-TopK’s Acc_RE ends below Top-K’s and Random-k’s',
      {
        f'{label(row)} − Random-TopK': (end[row], end['random_top_k'])
        for row in ('top_k', 'random_k')
      },
    )


def figure_9(found: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 9: the order of the degrees, and whether they mean anything."""
  last_k = [row for row in found.preset.degree_rows if row in _LAST_K]
  for fraction in problem.fractions:
    if fraction not in found.preset.degree_fractions:
      continue
    own = {
      row: found.degree(problem, fraction, row)
      for row in ('top_k', 'random_k', 'finetune', NULL, *last_k)
    }
    yield ordering(
      'fig9',
      f'{percent(fraction)}: Top-K has the highest unlearning degree, then'
      ' Random-k, then EU-K and CF-K',
      {'Top-K − Random-k': (own['top_k'], own['random_k'])}
      | {
        f'Random-k − {label(row)}': (own['random_k'], own[row])
        for row in last_k
      },
    )
    for other, name in (
      (NULL, 'that of models that differ in their seed alone'),
      ('finetune', 'plain fine-tuning’s'),
    ):
      yield ordering(
        'fig9',
        f'{percent(fraction)}: Top-K’s unlearning degree is higher than {name}'
        f'{_IMPLIED}',
        {'difference': (own['top_k'], own[other])},
      )


_JUDGES: dict[str, Callable[[Tally, Problem], Iterator[Judgement]]] = {
  'table1': table_1,
  'table2': table_2,
  'fig1': figure_1,
  'fig5': figure_5,
  'fig6': figure_6,
  'fig7': figure_7,
  'fig8': figure_8,
  'fig9': figure_9,
}
