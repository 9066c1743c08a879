"""Numbers over seeds, from the results of the studies.

A series is a dictionary from seed to value: what failed is not in it, and
differences are taken over the seeds that both sides have.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from experiments.report.model import DegreeFacts
from experiments.reproduction.presets import ROWS, Name, Preset, Problem, label
from experiments.study import degrees
from experiments.study.degree_results import degree_facts
from experiments.study.results import Outcome, Results
from experiments.study.stages import Stage
from unlearn_jax import metrics
from unlearn_jax.metrics import Interval

Series = dict[int, float]
NULL = 'null'  # Models that learned the same and differ in their seed alone.


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
  """All numbers of a reproduction.

  Attributes:
    preset: how large it is.
    only: the artefacts, in the order of the page.
    found: the results of each study.
  """

  preset: Preset
  only: Sequence[str]
  found: Mapping[Name, Results]

  def problems(self, artefact: str) -> list[Problem]:
    """Those that an artefact is about."""
    return [p for p in self.preset.problems if artefact in p.shows]

  def table(
    self, problem: Problem, fraction: float, row: str, metric: str
  ) -> Series:
    """A column of Table II; shares in [0, 1], seconds, or × Retrain."""
    name = Name('table', problem.name, fraction)
    return self._series(name, self.preset.spelled(problem, row), metric)

  def cut_off(self, problem: Problem, fraction: float, *rows: str) -> bool:
    """Whether a seed of a row never met the stop rule: a bound is all then."""
    name = Name('table', problem.name, fraction)
    return any(
      own.stop_epoch is None
      for row in rows
      for own in self._own(name, self.preset.spelled(problem, row)).values()
    )

  def curve(
    self,
    problem: Problem,
    fraction: float,
    row: str,
    metric: str,
    epoch: int | None = None,
  ) -> Series:
    """Of a training without stop rule: at its end, or after an epoch."""
    name = Name('curve', problem.name, fraction)
    text = row if row == 'source' else self.preset.spelled(problem, row)
    return self._series(name, text, metric, epoch)

  def of_k(
    self, problem: Problem, fraction: float, granularity: str
  ) -> dict[int, Series]:
    """Acc_RE − Acc_UL by K and seed, the quantity of Figure 5."""
    name, found = Name('k', problem.name, fraction, granularity), {}
    for k, text in self.preset.of_k(problem, granularity).items():
      retain = self._series(name, text, 'retain_accuracy')
      forget = self._series(name, text, 'forget_accuracy')
      found[k] = {seed: retain[seed] - forget[seed] for seed in retain}
    return found

  def swept(
    self, sweep: str, text: str, metric: str, epoch: int | None = None
  ) -> Series:
    """A point of a sweep, over the sweeps' seeds."""
    first = self.preset.problems[0]
    name = Name('sweep', first.name, first.sweep_fraction, sweep)
    return self._series(name, text, metric, epoch)

  def pairs(
    self, problem: Problem, fraction: float, row: str
  ) -> dict[int, Stage]:
    """Where the degree of a row or of `NULL` was measured, by seed."""
    own = self.found.get(Name('degree', problem.name, fraction))
    text = row if row == NULL else self.preset.spelled(problem, row)
    return {
      run.seed: stage
      for run in (own.plan.runs if own else ())
      if (stage := run.degrees[0].get((text, False)))
      and own
      and stage.key not in own.errors
    }

  def degree(self, problem: Problem, fraction: float, row: str) -> Series:
    """The unlearning degree of a row or of `NULL`, in [-1, 1]."""
    found = {}
    for seed, stage in self.pairs(problem, fraction, row).items():
      every = degrees.read(stage).generators
      found[seed] = float(np.mean([own.held_out.degree for own in every]))
    return found

  def degree_facts(
    self, problem: Problem, fraction: float
  ) -> list[DegreeFacts]:
    """All degrees of a share, with the rows' own names; none if not whole."""
    own = self.found.get(Name('degree', problem.name, fraction))
    names = {self.preset.spelled(problem, row): label(row) for row in ROWS}
    found = []
    for facts in degree_facts(own.plan, own.errors) if own else ():
      rows = [
        dataclasses.replace(row, label=names[row.strategy])
        for row in facts.rows
      ]
      found.append(dataclasses.replace(facts, rows=rows))
    return found

  def _series(
    self, name: Name, text: str, metric: str, epoch: int | None = None
  ) -> Series:
    """A metric at the end of a training, or a column of its curve."""
    found = {}
    for seed, own in self._own(name, text).items():
      history = own.record.history
      if epoch is None:
        value = own.values.get(metric)
      else:
        value = getattr(history[epoch], metric) if history[epoch:] else None
      if value is not None:
        found[seed] = value
    return found

  def _own(self, name: Name, text: str) -> dict[int, Outcome]:
    """Of each seed that has not failed."""
    own = self.found.get(name)
    pairs = zip(own.plan.runs, own.outcomes.get(text, ())) if own else ()
    return {run.seed: outcome for run, outcome in pairs if outcome}


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


def best_k(series: Mapping[int, Series]) -> tuple[int, Interval] | None:
  """The K with the highest mean, and by how much it is above K = 0.

  The interval is corrected for the number of K's that were tried (Bonferroni),
  because the highest of many is high by chance.
  """
  tried = [k for k in series if k]
  confidence = 1 - 0.05 / max(1, len(tried))
  gains = {
    k: gain
    for k in tried
    if (gain := difference(series[k], series[0], confidence))
  }
  best = max(gains, key=lambda k: gains[k].mean, default=None)
  return None if best is None else (best, gains[best])
