"""Unlearning degrees over seeds, held against models that forgot nothing."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from experiments.report.model import DegreeFacts, DegreeRow, Estimate
from experiments.study import degrees
from experiments.study.planning import Plan
from experiments.study.stages import Stage
from unlearn_jax import metrics
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.degree import Run
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.strategies import REFERENCE

# For each seed, its generators.
Generators = Sequence[Sequence[Run]]


def degree_facts(plan: Plan, errors: Mapping[str, str]) -> list[DegreeFacts]:
  """The degrees of a study, one entry a bound; none where none were asked."""
  if not plan.study.degree:
    return []
  labels = {own.text: (own.label, own.strategy.role) for own in plan.chosen}
  found = []
  for place, settings in enumerate(plan.study.generators.settings):
    by_run = [run.degrees[place] for run in plan.runs]
    found.append(degrees_within(settings, by_run, labels, errors))
  return [facts for facts in found if facts is not None]


def degrees_within(
  settings: GeneratorSettings,
  by_run: Sequence[Mapping[tuple[str, bool], Stage]],
  labels: Mapping[str, tuple[str, str]],
  errors: Mapping[str, str],
) -> DegreeFacts | None:
  """The degrees of one bound; None where the null could not be measured.

  Args:
    settings: of the generators.
    by_run: for each run its pairs, by name of the other model and unseen.
    labels: by name, label and role of each strategy.
    errors: by key, why stages failed.
  """

  def read(name: str, unseen: bool = False) -> Generators:
    """Of each run; nothing unless there is one of every run."""
    own = [pairs.get((name, unseen)) for pairs in by_run]
    if any(stage is None or stage.key in errors for stage in own):
      return []
    return [degrees.read(stage).generators for stage in own if stage]

  null = read('null')
  if not null:
    return None
  names = [name for name in labels if read(name)]
  target = next((n for n in names if labels[n][1] == REFERENCE), None)
  rows = []
  for name in names:
    known, unseen = read(name), read(name, True)
    goal = read(target) if target and target != name else None
    calibrated = calibrated_degree(
      units(known, _degree),
      units(null, _degree),
      units(goal, _degree) if goal else None,
    )
    rows.append(
      DegreeRow(
        strategy=name,
        label=labels[name][0],
        role=labels[name][1],
        generators=[list(own) for own in known],
        unseen=[list(own) for own in unseen],
        degree=_estimate(known, _degree),
        gap=_estimate(known, lambda run: run.held_out.gap),
        excess=_estimate(known, lambda run: run.held_out.excess),
        unseen_degree=_estimate(unseen, _degree) if unseen else None,
        difference=Estimate.of(calibrated.difference),
        p_value=calibrated.p_value,
        verdict=calibrated.verdict,
      )
    )
  return DegreeFacts(
    max_perturbation=settings.max_perturbation,
    settings=msgspec.to_builtins(settings),
    generators=len(null[0]),
    seeds=len(null),
    null=[list(own) for own in null],
    null_degree=_estimate(null, _degree),
    rows=rows,
  )


def _degree(run: Run) -> float:
  return run.held_out.degree


def units(runs: Generators, value: Callable[[Run], float]) -> list[float]:
  """One value a seed, the mean over its generators; of one seed, all."""
  columns = [[value(generator) for generator in own] for own in runs]
  if len(columns) == 1:
    return columns[0]
  return [float(np.mean(column)) for column in columns]


def _estimate(runs: Generators, value: Callable[[Run], float]) -> Estimate:
  return Estimate.of(metrics.mean_interval(units(runs, value)))
