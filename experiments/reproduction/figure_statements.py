"""What the paper says of its figures, each statement put to our numbers."""

from collections.abc import Callable, Iterator

from experiments.reproduction import judgements, tally, tasks
from experiments.reproduction.judgements import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
  Judgement,
  percent,
)
from experiments.reproduction.plan import ks
from experiments.reproduction.presets import Problem
from experiments.reproduction.tally import Series, Tally, measured
from unlearn_jax.metrics import Interval


def figure1(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 1: the two accuracies differ after Random-k."""
  for fraction in problem.fractions:

    def column(metric: str) -> Series:
      return results.series(
        lambda seed: results.tasks.curve(problem, fraction, 'random_k', seed),
        measured(metric),
      )

    sides = (column('retain_accuracy'), column('forget_accuracy'))
    yield judgements.ordering(
      'fig1',
      f'{problem.name}, {percent(fraction)}: after Random-k, Acc_RE is'
      ' significantly higher than Acc_UL',
      {'Acc_RE − Acc_UL': sides},
    )


def figure5(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 5: there is a best K."""
  for granularity in results.preset.granularities:
    for fraction in problem.fractions:
      yield _optimum(results, problem, fraction, granularity)


def k_series(
  results: Tally, problem: Problem, fraction: float, granularity: str
) -> dict[int, Series]:
  """Acc_RE − Acc_UL by K and seed, the quantity of Figure 5."""

  def difference(outcome: tally.Outcome) -> float:
    own = outcome['measured']
    return own['retain_accuracy'] - own['forget_accuracy']

  return {
    k: results.series(
      lambda seed: results.tasks.k(problem, fraction, seed, k, granularity),
      difference,
    )
    for k in ks(results.preset, problem, granularity)
  }


def best_k(series: dict[int, Series]) -> tuple[int, Interval] | None:
  """The K with the highest mean, and by how much it is above K = 0.

  The interval is corrected for the number of K's that were tried (Bonferroni),
  because the highest of many is high by chance.
  """
  tried = [k for k in series if k]
  confidence = 1 - 0.05 / max(1, len(tried))
  gains = {
    k: gain
    for k in tried
    if (gain := tally.difference(series[k], series[0], confidence))
  }
  if not gains:
    return None
  best = max(gains, key=lambda k: gains[k].mean)
  return best, gains[best]


def _optimum(
  results: Tally, problem: Problem, fraction: float, granularity: str
) -> Judgement:
  unit = 'tensors' if granularity == 'leaf' else 'scalars'
  statement = (
    f'{problem.name}, {percent(fraction)}: some K up to 50 ({unit}) is'
    ' optimal, with a larger Acc_RE − Acc_UL than K = 0'
  )
  found = best_k(k_series(results, problem, fraction, granularity))
  if found is None:
    return Judgement('fig5', statement, UNDECIDED, 'nothing was measured')
  k, gain = found
  text = f'best K = {k}: {judgements.shown(gain)} above K = 0'
  if gain.low is None or gain.high is None:
    return Judgement('fig5', statement, UNDECIDED, text)
  text += f', {gain.size} seeds, corrected for the number of K’s'
  verdicts = {1: REPRODUCED, 0: UNDECIDED, -1: NOT_REPRODUCED}
  verdict = verdicts[judgements.sign(gain)]
  return Judgement('fig5', statement, verdict, text)


def _curves(
  results: Tally, problem: Problem, fraction: float
) -> Callable[[str, int, str], Series]:
  """`(row, epoch, metric) -> series` of the curves."""

  def column(row: str, epoch: int, metric: str) -> Series:
    return results.series(
      lambda seed: results.tasks.curve(problem, fraction, row, seed),
      tally.at_epoch(epoch, metric),
    )

  return column


def figure6(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 6: who starts where, and where Top-K ends."""
  fraction = problem.fractions[-1]
  column = _curves(results, problem, fraction)
  head = f'{problem.name}, {percent(fraction)}'
  for metric, statement in (
    ('retain_accuracy', 'Top-K’s Acc_RE is above Random-k’s'),
    ('forget_accuracy', 'Random-k’s Acc_UL is below Top-K’s'),
  ):
    sides = (column('top_k', 0, metric), column('random_k', 0, metric))
    yield judgements.ordering(
      'fig6',
      f'{head}: at the beginning of fine-tuning, {statement}',
      {'Top-K − Random-k, as perturbed': sides},
    )
  last = results.series(
    lambda seed: results.tasks.curve(problem, fraction, 'top_k', seed),
    measured('retain_accuracy'),
  )
  yield judgements.ordering(
    'fig6',
    f'{head}: Top-K’s Acc_RE reaches about 95 % (here: 95 % or more)',
    {'Acc_RE − 95 %': (last, dict.fromkeys(last, 0.95))},
  )


def figure7(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 7: faster than Retrain, the less so the more is forgotten."""
  few, many = problem.fractions[0], problem.fractions[-1]
  for row in ('top_k', 'random_k'):
    times = {
      fraction: results.table(problem, fraction, row, 'acceleration')
      for fraction in (few, many)
    }
    head = f'{problem.name}: {tasks.label(row)}'
    for fraction, series in times.items():
      judged = judgements.ordering(
        'fig7',
        f'{head} is faster than Retrain at {percent(fraction)}',
        {'acceleration − 1': (series, dict.fromkeys(series, 1.0))},
        scale=1.0,
        unit='×',
        digits=2,
      )
      own, other = (
        results.is_cut_off(problem, fraction, r) for r in (row, 'retrain')
      )
      yield judgements.of_times(judged, own, other)
    if few != many:
      yield judgements.ordering(
        'fig7',
        f'{head} accelerates less at {percent(many)} than at {percent(few)}',
        {'fall': (times[few], times[many])},
        scale=1.0,
        unit='×',
        digits=2,
      )


def figure8(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 8: Top-K starts highest, Random-TopK ends lowest."""
  metric, last = 'retain_accuracy', results.preset.curve_epochs
  for fraction in problem.fractions:
    column = _curves(results, problem, fraction)
    head = f'{problem.name}, {percent(fraction)}'
    start = {row: column(row, 0, metric) for row in tasks.CURVES}
    end = {row: column(row, last, metric) for row in tasks.CURVES}
    yield judgements.ordering(
      'fig8',
      f'{head}: at the beginning, Acc_RE is highest for Top-K',
      {
        f'Top-K − {tasks.label(row)}': (start['top_k'], start[row])
        for row in ('random_k', 'random_top_k')
      },
    )
    yield judgements.ordering(
      'fig8',
      f'{head}: Random-TopK’s Acc_RE ends below Top-K’s and Random-k’s',
      {
        f'{tasks.label(row)} − Random-TopK': (end[row], end['random_top_k'])
        for row in ('top_k', 'random_k')
      },
    )


def figure9(results: Tally, problem: Problem) -> Iterator[Judgement]:
  """Figure 9: the order of the degrees, and whether they mean anything."""
  rows = [row for row in results.preset.degree_rows if row[:2] in ('eu', 'cf')]
  for fraction in problem.fractions:
    if fraction not in results.preset.degree_fractions:
      continue
    own = {
      row: results.degree(problem, fraction, row)
      for row in ('top_k', 'random_k', 'finetune', tasks.NULL, *rows)
    }
    yield judgements.ordering(
      'fig9',
      f'{percent(fraction)}: Top-K has the highest unlearning degree, then'
      ' Random-k, then EU-K and CF-K',
      {'Top-K − Random-k': (own['top_k'], own['random_k'])}
      | {
        f'Random-k − {tasks.label(row)}': (own['random_k'], own[row])
        for row in rows
      },
    )
    for other, name in (
      (tasks.NULL, 'that of models that differ in their seed alone'),
      ('finetune', 'plain fine-tuning’s'),
    ):
      yield judgements.ordering(
        'fig9',
        f'{percent(fraction)}: Top-K’s unlearning degree is higher than {name}'
        ' (not in the paper, but implied)',
        {'difference': (own['top_k'], own[other])},
      )
