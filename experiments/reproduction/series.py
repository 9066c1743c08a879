"""Numbers over seeds, from the results of the studies.

A series is a dictionary from seed to value: what failed is not in it, and
differences are taken over the seeds that both sides have.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from unlearn_jax import metrics
from unlearn_jax.metrics import Interval
from ..study import degrees
from ..study.results import Outcome, Results
from ..study.stages import Stage
from .paper import ROWS
from .presets import Name, Place, Preset, Problem

Series = dict[int, float]
NULL = 'null'  # Models that learned the same and differ in their seed alone.


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
  """All numbers of a reproduction."""

  preset: Preset
  only: Sequence[str]  # the artefacts, in the order of the page
  found: Mapping[Name, Results]

  def problems(self, artefact: str) -> list[Problem]:
    """Those that an artefact is about."""
    return [p for p in self.preset.problems if artefact in p.shows]

  def places(self, artefact: str) -> list[Place]:
    """The shares of all of them."""
    return [at for own in self.problems(artefact) for at in own.places]

  def text(self, at: Place, row: str) -> str:
    """A row, the source or `NULL` as the studies name it."""
    return self.preset.spelled(at.problem, row) if row in ROWS else row

  def of(
    self, kind: str, at: Place, row: str, metric: str, epoch: int | None = None
  ) -> Series:
    """Of a row of tables or curves, or the degree of one or of `NULL`."""
    if kind == 'degree':
      pairs = self.pairs(at, row).items()
      runs = {seed: degrees.read(stage).generators for seed, stage in pairs}
      return {
        seed: float(np.mean([own.held_out.degree for own in every]))
        for seed, every in runs.items()
      }
    return self.series(at.name(kind), self.text(at, row), metric, epoch)

  def series(
    self, name: Name, text: str, metric: str, epoch: int | None = None
  ) -> Series:
    """A metric at the end of a training, or a column of its curve."""
    found = {}
    for seed, own in self._outcomes(name, text).items():
      history = own.record.history
      if epoch is None:
        value = own.values.get(metric)
      else:
        value = getattr(history[epoch], metric) if history[epoch:] else None
      if value is not None:
        found[seed] = value
    return found

  def stop_epochs(self, at: Place, row: str) -> list[int | None]:
    """When the stop rule held in each seed of a row of tables; None: never."""
    found = self._outcomes(at.name('table'), self.text(at, row))
    return [own.values['stop_epoch'] for own in found.values()]

  def cut_off(self, at: Place, *rows: str) -> bool:
    """Whether a seed of a row never met the stop rule: a bound is all then."""
    return any(None in self.stop_epochs(at, row) for row in rows)

  def _outcomes(self, name: Name, text: str) -> dict[int, Outcome]:
    """Of each seed that has not failed."""
    own = self.found.get(name)
    pairs = zip(own.plan.runs, own.outcomes.get(text, ())) if own else ()
    return {run.seed: outcome for run, outcome in pairs if outcome}

  def of_k(self, at: Place, granularity: str) -> dict[int, Series]:
    """Acc_RE − Acc_UL by K, the quantity of Figure 5."""
    name, found = at.name('k', granularity), {}
    for k, text in self.preset.of_k(at.problem, granularity).items():
      retain = self.series(name, text, 'retain_accuracy')
      found[k] = minus(retain, self.series(name, text, 'forget_accuracy'))
    return found

  def pairs(self, at: Place, row: str) -> dict[int, Stage]:
    """Where the degree of a row or of `NULL` was measured, by seed."""
    own, found = self.found.get(at.name('degree')), {}
    for run in own.plan.runs if own else ():
      stage = run.degrees[0].get((self.text(at, row), False))
      if own and stage and stage.key not in own.errors:
        found[run.seed] = stage
    return found


def interval(series: Series, confidence: float = 0.95) -> Interval | None:
  """Mean and interval over seeds; None without a value."""
  if not series:
    return None
  return metrics.mean_interval(list(series.values()), confidence)


def minus(series: Series, other: Series) -> Series:
  """The difference of each seed that both have."""
  return {s: v - other[s] for s, v in series.items() if s in other}


def difference(
  series: Series, other: Series, confidence: float = 0.95
) -> Interval | None:
  """Of `series - other`, paired by seed."""
  return interval(minus(series, other), confidence)


def best_k(by_k: Mapping[int, Series]) -> tuple[int, Interval] | None:
  """The K with the highest mean, and by how much it is above K = 0."""
  tried = [k for k in by_k if k]
  # Bonferroni, because the highest of many is high by chance.
  confidence = 1 - 0.05 / max(1, len(tried))
  gains = {k: difference(by_k[k], by_k[0], confidence) for k in tried}
  known = [(k, gain) for k, gain in gains.items() if gain]
  return max(known, key=lambda own: own[1].mean, default=None)
