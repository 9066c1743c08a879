"""Numbers over seeds, from the outcomes of finished stages.

A series is a dictionary from seed to value: what is not done, or diverged, is
not in it, and differences are taken over the seeds that both sides have.
"""

from collections.abc import Callable, Iterable
from typing import Any

from experiments.reproduction import tasks
from experiments.reproduction.outcomes import Outcome, Outcomes
from experiments.reproduction.plan import Plan
from experiments.reproduction.presets import Preset, Problem
from experiments.reproduction.tasks import Task, Tasks
from unlearn_jax import metrics
from unlearn_jax.finetuning import StopRule
from unlearn_jax.metrics import Interval
from unlearn_jax.training import Epoch

Series = dict[int, float]
# What says of a stage which it is, beside its problem.
_OF_TASK = ('key', 'kind', 'row', 'fraction', 'seed')

# What is read of the outcome of a stage, by its kind.
NEEDS = {
  tasks.UNLEARN: (
    *('history', 'selection_seconds', 'source_retain_accuracy', 'source'),
  ),
  tasks.DEGREE: ('generators', 'titles', 'classes'),
}


class Tally:
  """Reads outcomes, each once."""

  def __init__(self, plan: Plan, outcomes: Outcomes):
    """Of a plan that need not be done."""
    self.plan, self.preset = plan, plan.preset
    self.tasks = Tasks(plan.preset)
    self._outcomes = outcomes
    self._read: dict[str, Outcome | None] = {}

  def outcome(self, task: Task) -> Outcome | None:
    """Of a task; None where it is not done, or failed."""
    if task.key not in self._read:
      needs = NEEDS.get(task.kind, ())
      self._read[task.key] = self._outcomes.read(task.key, needs)
    found = self._read[task.key]
    return None if found is None or found.get('error') else found

  def failures(self) -> list[str]:
    """'title: why' of each stage that diverged or cannot be measured."""
    found = []
    for task in self.plan.tasks:
      self.outcome(task)
      outcome = self._read[task.key]
      if outcome is not None and outcome.get('error'):
        found.append(f'{task.title}: {outcome["error"]}')
    return found

  def done(self) -> int:
    """How many stages of the plan are finished."""
    return sum(self._outcomes.done(task.key) for task in self.plan.tasks)

  def wall_seconds(self) -> float:
    """Of all finished stages, whichever worker did them."""
    return sum(record.get('wall_seconds', 0.0) for record in self.records())

  def records(self) -> list[dict[str, Any]]:
    """Each finished stage of the plan with its numbers or its error."""
    found = []
    for task in self.plan.tasks:
      self.outcome(task)
      outcome = self._read[task.key]
      if outcome is not None:
        own = {name: getattr(task, name) for name in _OF_TASK}
        found.append({**own, 'problem': task.problem.name, **outcome})
    return found

  def series(
    self, make: Callable[[int], Task], read: Callable[[Outcome], Any]
  ) -> Series:
    """A number of each seed's outcome, where there is one.

    Args:
      make: the task of a seed.
      read: the number in its outcome; None where it has none.
    """
    return self._series(range(self.preset.seeds), make, read)

  def swept(
    self, strategy: str, option: dict[str, Any], read: Callable[[Outcome], Any]
  ) -> Series:
    """The same for a point of a sweep, over the sweeps' seeds."""
    problem = self.preset.problems[0]
    return self._series(
      range(self.preset.sweep_seeds),
      lambda run: self.tasks.sweep(problem, strategy, option, run),
      read,
    )

  def control(self, read: Callable[[Outcome], Any], row: str) -> Series:
    """Plain fine-tuning, or Retrain, on the sweeps' seeds and forget sets."""
    return self.swept(row, {}, read)

  def table(
    self, problem: Problem, fraction: float, row: str, metric: str
  ) -> Series:
    """A column of Table II; shares in [0, 1], seconds, or × Retrain."""

    def make(name: str) -> Callable[[int], Task]:
      return lambda seed: self.tasks.table(problem, fraction, name, seed)

    if metric == 'acceleration':
      own = self.series(make(row), self.seconds)
      retrained = self.series(make('retrain'), self.seconds)
      return {
        seed: metrics.acceleration(retrained[seed], value)
        for seed, value in own.items()
        if seed in retrained
      }
    if metric == 'seconds':
      return self.series(make(row), self.seconds)
    return self.series(make(row), measured(metric))

  def degree(self, problem: Problem, fraction: float, row: str) -> Series:
    """The unlearning degree of a row or of `tasks.NULL`, in [-1, 1]."""
    return self.series(
      lambda seed: self.tasks.degree(problem, fraction, row, seed),
      measured('degree'),
    )

  def stop(self, outcome: Outcome) -> int | None:
    """The epoch at which the preset's stop rule held first."""
    return stop_epoch(outcome, self.preset)

  def seconds(self, outcome: Outcome) -> float:
    """Up to then, or of all epochs; selection and perturbation included."""
    last = outcome['history'][self.stop(outcome) or -1]
    return outcome['selection_seconds'] + last['seconds']

  def is_cut_off(self, problem: Problem, fraction: float, row: str) -> bool:
    """Whether some seed never met the stop rule: a bound is all there is."""
    stops = self.series(
      lambda seed: self.tasks.table(problem, fraction, row, seed),
      lambda outcome: self.stop(outcome) is None,
    )
    return any(stops.values())

  def _series(
    self,
    seeds: Iterable[int],
    make: Callable[[int], Task],
    read: Callable[[Outcome], Any],
  ) -> Series:
    found = {}
    for seed in seeds:
      outcome = self.outcome(make(seed))
      value = None if outcome is None else read(outcome)
      if value is not None:
        found[seed] = value
    return found


def measured(metric: str) -> Callable[[Outcome], float | None]:
  """Reads one of the evaluation's numbers."""
  return lambda outcome: outcome['measured'].get(metric)


def of_source(metric: str) -> Callable[[Outcome], float | None]:
  """The same of the source, on the same forget set."""
  return lambda outcome: outcome['source'].get(metric)


def at_epoch(epoch: int, metric: str) -> Callable[[Outcome], float | None]:
  """A number of the curve; None where it ended before."""

  def read(outcome: Outcome) -> float | None:
    history = outcome['history']
    return history[epoch][metric] if epoch < len(history) else None

  return read


def stop_epoch(outcome: Outcome, preset: Preset) -> int | None:
  """The epoch at which the preset's stop rule held first, if it did."""
  share = preset.stop_retain_share
  rule = StopRule(
    preset.stop_js_change, share * outcome['source_retain_accuracy']
  )
  return rule.epoch(
    [
      Epoch(row['epoch'], row['loss'], row['seconds'], row)
      for row in outcome['history']
    ]
  )


def interval(series: Series, confidence: float = 0.95) -> Interval | None:
  """Mean and interval over seeds; None without a value.

  Example:
    >>> interval({0: 1.0, 1: 3.0}).mean
    2.0
  """
  if not series:
    return None
  return metrics.mean_interval(list(series.values()), confidence)


def difference(
  series: Series, other: Series, confidence: float = 0.95
) -> Interval | None:
  """Of `series - other`, paired by the seeds that both have.

  Example:
    >>> difference({0: 1.0, 1: 3.0}, {1: 1.0, 2: 9.0}).mean
    2.0
  """
  both = [seed for seed in series if seed in other]
  return interval({s: series[s] - other[s] for s in both}, confidence)
