"""What the paper says of its tables, each statement put to our numbers."""

from collections.abc import Iterator

from experiments import table1
from experiments.reproduction import judgements, paper, tasks
from experiments.reproduction.judgements import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
  WIDEST_POINTS,
  WIDEST_SHARE,
  Judgement,
  percent,
)
from experiments.reproduction.presets import Problem
from experiments.reproduction.tally import Series, Tally

LAST_K = ('eu_5', 'eu_10', 'cf_5', 'cf_10')
OTHERS = ('random_k', *LAST_K)
_TIMES = '× Retrain'


def table_1(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Table I: the counts, of the paper's networks whatever the preset."""
  del results, problem
  names = ('Random-k', 'EU-5/CF-5', 'EU-10/CF-10')
  for model, (_, *printed) in paper.TABLE_1.items():
    for name, text, own in zip(names, printed, table1.counts(model)[2:]):
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


def table_2(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Table II: orders, trends, and the cells themselves."""
  for fraction in problem.fractions:
    yield from _orders(results, problem, fraction)
  few, many = problem.fractions[0], problem.fractions[-1]

  def column(fraction: float, row: str, metric: str) -> Series:
    return results.table(problem, fraction, row, metric)

  if few != many:
    for row, metric, name in (
      ('top_k', 'forget_accuracy', 'Top-K’s Acc_UL'),
      ('eu_5', 'forget_accuracy', 'EU-5’s Acc_UL'),
      ('cf_5', 'forget_accuracy', 'CF-5’s Acc_UL'),
      ('cf_5', 'retain_accuracy', 'CF-5’s Acc_RE'),
    ):
      yield judgements.ordering(
        'table2',
        f'{name} falls from {percent(few)} to {percent(many)} forgotten',
        {'fall': (column(few, row, metric), column(many, row, metric))},
      )
  yield from _numbers(results, problem)


def _orders(
  results: Tally, problem: Problem, fraction: float
) -> Iterator[Judgement]:
  """Who forgets most and who is fastest, for one share."""

  def column(row: str, metric: str) -> Series:
    return results.table(problem, fraction, row, metric)

  share = percent(fraction)
  top = column('top_k', 'forget_accuracy')
  yield judgements.ordering(
    'table2',
    f'{share}: Top-K has the lowest Acc_UL of all strategies',
    {
      f'{tasks.label(row)} − Top-K': (column(row, 'forget_accuracy'), top)
      for row in (*OTHERS, 'retrain')
    },
  )
  for row in ('top_k', 'random_k'):
    label, own = tasks.label(row), column(row, 'seconds')
    for others, name in ((LAST_K, 'EU-K and CF-K'), (('retrain',), 'Retrain')):
      judged = judgements.ordering(
        'table2',
        f'{share}: {label} takes less time than {name}',
        {
          f'{tasks.label(o)} − {label}': (column(o, 'seconds'), own)
          for o in others
        },
        scale=1.0,
        unit='s',
        digits=2,
      )
      yield judgements.of_times(
        judged,
        results.is_cut_off(problem, fraction, row),
        any(results.is_cut_off(problem, fraction, o) for o in others),
      )
  control = column('finetune', 'forget_accuracy')
  for row in ('top_k', 'random_k'):
    yield judgements.ordering(
      'table2',
      f'{share}: {tasks.label(row)} has a lower Acc_UL than the same'
      ' fine-tuning without any perturbation (not in the paper, but implied)',
      {'K = 0 − its own': (control, column(row, 'forget_accuracy'))},
    )


def _numbers(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """The cells of Table II; FR and MRR follow from the accuracies."""
  for fraction in problem.fractions:
    if not results.preset.comparable:
      statement = f'{percent(fraction)}: the numbers of its rows'
      reason = 'other data and another network than the paper’s'
      yield Judgement('table2', statement, UNDECIDED, reason)
      continue
    for row, cells in paper.TABLE_2.get(fraction, {}).items():
      of = f'{percent(fraction)}, {tasks.label(row)}'
      for metric, name in (
        ('forget_accuracy', 'Acc_UL'),
        ('retain_accuracy', 'Acc_RE'),
        ('similarity', 'similarity'),
      ):
        if row == 'retrain' and metric == 'similarity':
          continue  # To itself.
        series = results.table(problem, fraction, row, metric)
        yield judgements.number(
          'table2',
          f'{of}, {name}',
          getattr(cells, metric),
          {seed: 100 * value for seed, value in series.items()},
          WIDEST_POINTS,
          '%',
        )
      times = paper.acceleration(fraction, row)
      if times is None or row == 'retrain':
        continue
      series = results.table(problem, fraction, row, 'acceleration')
      cut = any(
        results.is_cut_off(problem, fraction, r) for r in (row, 'retrain')
      )
      bound = (
        'the stop rule was not met: a bound is all there is' if cut else ''
      )
      yield judgements.number(
        'table2',
        f'{of}, acceleration',
        round(times, 2),
        series,
        WIDEST_SHARE * times,
        _TIMES,
        bound,
      )
