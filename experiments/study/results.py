"""From finished stages to numbers, and from numbers to a report."""

from collections.abc import Mapping, Sequence
import dataclasses
import sys
from typing import Any

import msgspec
import numpy as np

from experiments import config, settings
from experiments.report import model as reports
from experiments.report.model import Curve, Estimate, Report, Row
from experiments.study import provenance, stages
from experiments.study import setup as setups
from experiments.study.degree_results import degree_facts
from experiments.study.planning import Plan, Run
from experiments.study.stages import Stage
from experiments.study.training import predictions_of
from experiments.workdir import finished
from experiments.workdir.finished import Record
from unlearn_jax import metrics
from unlearn_jax.evaluation import Cost, Evidence, measure
from unlearn_jax.strategies import REFERENCE, Chosen
from unlearn_jax.training import Epoch
from unlearn_jax.unlearning import NOTHING

Values = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One model of one run."""

  values: Values  # by metric; None where one does not apply
  record: Record  # how the model came about
  stop_epoch: int | None  # when the stop rule held first; None if it never did
  stage: Stage  # it is the result of


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """The numbers of a study."""

  plan: Plan  # what was computed
  # By spelling, and 'source'; one a run, None where it failed.
  outcomes: dict[str, list[Outcome | None]]
  errors: Mapping[str, str]  # by key of a stage, why it failed

  def values(self, strategy: str, metric: str) -> list[float | None]:
    """A metric of a strategy, one a run; None where there is none."""
    return [
      None if own is None else own.values.get(metric)
      for own in self.outcomes[strategy]
    ]


def measured(plan: Plan, errors: Mapping[str, str]) -> Results:
  """Measures every model of a study whose stages are carried out."""
  outcomes: dict[str, list[Outcome | None]] = {'source': []}
  for run in plan.runs:
    for name, own in _measured_run(plan, run, errors).items():
      outcomes.setdefault(name, []).append(own)
  return Results(plan, outcomes, errors)


def _measured_run(
  plan: Plan, run: Run, errors: Mapping[str, str]
) -> dict[str, Outcome | None]:
  """The outcomes of one run, the source's first."""
  roles = {own.text: own.strategy.role for own in plan.chosen}
  every = {'source': run.source, **run.strategies}
  models = {
    name: stages.load(stage)
    for name, stage in every.items()
    if stage.key not in errors
  }
  predictions = {
    name: predictions_of(plan.setup, model, run.splits, name == 'source')
    for name, model in models.items()
  }
  stops = {
    name: _stop_epoch(plan.study, model.record)
    for name, model in models.items()
    if name != 'source'
  }
  costs = {
    name: _cost(models[name].record, stop)
    for name, stop in stops.items()
    if models[name].record.history
  }
  reference = next((n for n, r in roles.items() if r == REFERENCE), '')
  found: dict[str, Outcome | None] = {}
  for name, stage in every.items():
    if name not in models:
      found[name] = None
      continue
    evidence = Evidence(
      predictions[name],
      predictions['source'],
      run.splits,
      predictions.get(reference),
      costs.get(name),
      costs.get(reference),
    )
    record = models[name].record
    found[name] = Outcome(measure(evidence), record, stops.get(name), stage)
  return found


def _stop_epoch(study: config.Study, record: Record) -> int | None:
  """When the study's stop rule held first in a training."""
  if not record.history:
    return None
  history = [
    Epoch(
      row.epoch,
      row.loss,
      row.seconds,
      {
        'js_to_source': row.js_to_source or 0.0,
        'retain_accuracy': row.retain_accuracy or 0.0,
      },
    )
    for row in record.history
  ]
  budget = study.methods.budget(study.training.resolved.batch_size)
  return budget.stop_rule(record.source_retain_accuracy).epoch(history)


def _cost(record: Record, stop: int | None) -> Cost:
  """What a model took until then, or in all where the rule never held."""
  return Cost(
    record.selection_seconds + record.history[stop or -1].seconds,
    record.compile_seconds,
    stop,
    record.by_tensor,
    record.perturbation_js,
  )


def report(results: Results, wall_seconds: float) -> Report:
  """All that report.json holds."""
  plan, study = results.plan, results.plan.study
  setup, splits = plan.setup, plan.runs[0].splits
  methods, facts = study.methods, plan.setup.facts
  control = next((c for c in plan.chosen if c.name == reports.CONTROL), None)
  rows = [_row(results, None, control)]
  rows += [_row(results, own, control) for own in plan.chosen]
  return Report(
    command=command(),
    config=settings.flat(study),
    environment={
      **provenance.environment(),
      'wall_seconds': round(wall_seconds, 1),
      'stage_seconds': round(_stage_seconds(results), 1),
    },
    dataset=reports.DatasetFacts(
      name=setup.dataset.name,
      train=splits.train.size,
      test=splits.test.size,
      forget=splits.forget.size,
      retain=splits.retain.size,
      classes=len(setup.dataset.class_names),
      image_shape=list(setup.dataset.image_shape),
      fingerprint=setup.dataset.fingerprint,
    ),
    model=reports.ModelFacts(
      name=facts.model,
      width=facts.width,
      dtype=facts.dtype,
      parameters=setup.parameters,
      tensor_sizes=setup.tensor_sizes,
    ),
    stop_rule=reports.StopRuleFacts(
      js_change=methods.stop_js_change,
      retain_share=methods.stop_retain_share,
      max_epochs=methods.epochs,
      text=_rule_text(methods),
    ),
    seeds=[run.seed for run in plan.runs],
    rows=rows,
    warnings=[
      warning
      for run in plan.runs
      for warning in setups.lost_classes(setup, run.splits, run.seed)
    ]
    + _mixed_code(results),
    notes=_notes(plan),
    degree=degree_facts(plan, results.errors),
  )


def command() -> str:
  """What was typed, as it can be typed again."""
  name = sys.argv[0].rpartition('/')[2].removesuffix('.py')
  return ' '.join([f'python -m experiments.{name}', *sys.argv[1:]])


def _rule_text(methods: config.Methods) -> str:
  return (
    'The clock stops after the first epoch in which the mean JS divergence to'
    f' the source on D_UL moved by at most {methods.stop_js_change:g} bits and'
    f' the accuracy on D_RE was at least {methods.stop_retain_share:g} of the'
    " source's (both on at most 2,048 evenly spaced examples). It ends every"
    f' fine-tuning, at most {methods.epochs} epochs; Retrain runs its whole'
    ' recipe, and the rule only says when its clock stops.'
  )


def _stage_seconds(results: Results) -> float:
  """Wall seconds behind all stages, those of earlier commands included."""
  return sum(
    finished.manifest(own.stage.path).wall_seconds
    for column in results.outcomes.values()
    for own in column
    if own is not None
  )


def _mixed_code(results: Results) -> list[str]:
  """A warning where stages were made by other code, or on another machine."""
  now = msgspec.to_builtins(provenance.code())
  other: dict[str, list[str]] = {}
  for column in results.outcomes.values():
    for own in column:
      code = own and finished.manifest(own.stage.path).code
      if not own or code is None:
        continue
      for name, value in msgspec.to_builtins(code).items():
        if value != now[name] and name != 'commit':
          other.setdefault(f'{name} {str(value)[:40]}', []).append(
            own.stage.title
          )
  return [
    f'{len(set(titles))} stages were made by other code or elsewhere ({what},'
    f' here {str(now[what.split(" ")[0]])[:40]}): {titles[0]}'
    + (', …' if len(set(titles)) > 1 else '')
    for what, titles in other.items()
  ]


def _notes(plan: Plan) -> list[str]:
  if all(own.parameters.get('moves') != 'scalars' for own in plan.chosen):
    return []
  return [
    "moves='scalars': such a strategy moves the scalars that it perturbed only;"
    ' the K = 0 control perturbs none and moves all.'
  ]


def _row(results: Results, own: Chosen | None, control: Chosen | None) -> Row:
  """One strategy over all runs; the source, where there is none."""
  name = own.text if own else reports.SOURCE
  column = results.outcomes[name]
  known = [outcome for outcome in column if outcome is not None]
  names = known[0].values if known else {}
  values = {
    metric: results.values(name, metric)
    for metric in names
    if any(outcome.values[metric] is not None for outcome in known)
  }
  curved = own is not None and all(o.record.history for o in known)
  curved = curved and len(known) == len(column)
  label = own.label if own else 'Source (untouched)'
  failed = [_error(results, run, name) for run in results.plan.runs]
  failed = [text for text in failed if text]
  if failed:
    # Means over the seeds that came through would flatter it: there are none.
    label += f' (diverged: {len(failed)} of {len(column)} seeds)'
  paired = {}
  if own and control and own.text != control.text:
    paired = _paired(results, name, control.text, values)
  return Row(
    strategy=name,
    name=own.name if own else reports.SOURCE,
    label=label,
    role=own.strategy.role if own else reports.SOURCE,
    parameters=_parameters(results, known),
    values=values,
    mean={
      metric: Estimate.of(metrics.mean_interval(whole))
      for metric, column_ in values.items()
      if (whole := _whole(column_))
    },
    paired=paired,
    curves=[_curve(o.record) for o in known] if curved else [],
    stop_epoch=[o.stop_epoch for o in known] if curved else [],
    by_tensor=_by_tensor(results, known) if curved else {},
    warnings=failed or (_warnings(own, known) if curved and own else []),
    checkpoints=[str(outcome.stage.path) for outcome in known],
  )


def _error(results: Results, run: Run, name: str) -> str:
  stage = run.strategies.get(name)
  return results.errors.get(stage.key, '') if stage else ''


def _parameters(results: Results, known: Sequence[Outcome]) -> dict[str, Any]:
  if not known:
    return {}
  return dict(known[0].stage.depends.get('training', {}))


def _whole(column: Sequence[float | None]) -> list[float]:
  """The column if every run has a value, else nothing."""
  known = [value for value in column if value is not None]
  return known if len(known) == len(column) else []


def _paired(
  results: Results,
  name: str,
  control: str,
  values: Mapping[str, list[float | None]],
) -> dict[str, Estimate]:
  """Differences to the control by seed."""
  found = {}
  for metric, column in values.items():
    own, its = _whole(column), _whole(results.values(control, metric))
    if own and its:
      found[metric] = Estimate.of(metrics.paired_interval(own, its))
  return found


def _curve(record: Record) -> Curve:
  rows = record.history
  return Curve(
    epoch=[row.epoch for row in rows],
    forget_accuracy=[row.forget_accuracy or 0.0 for row in rows],
    retain_accuracy=[row.retain_accuracy or 0.0 for row in rows],
    js_to_source=[row.js_to_source or 0.0 for row in rows],
    seconds=[row.seconds for row in rows],
  )


def _by_tensor(results: Results, known: Sequence[Outcome]) -> dict[str, float]:
  counts = [outcome.record.by_tensor for outcome in known]
  return {
    path: float(np.mean([count.get(path, 0) for count in counts]))
    for path in results.plan.setup.tensor_sizes
  }


def _warnings(own: Chosen, known: Sequence[Outcome]) -> list[str]:
  found = []
  changed = any(sum(o.record.by_tensor.values()) for o in known)
  if changed and own.strategy.role != REFERENCE:
    bits = float(np.mean([o.record.perturbation_js for o in known]))
    if bits < NOTHING:
      found.append(
        f'{own.label}: the perturbation moved held-out outputs by only'
        f' {bits:.2g} bits; what follows is plain fine-tuning'
      )
  missed = sum(outcome.stop_epoch is None for outcome in known)
  if missed:
    found.append(
      f'{own.label}: the stop rule was not met in {missed} of'
      f' {len(known)} run(s); the seconds are a lower bound'
    )
  return found
