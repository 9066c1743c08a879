"""From finished stages to numbers, and from numbers to a report."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import sys

from matplotlib.figure import Figure
import msgspec
import numpy as np

from experiments import config, settings
from experiments.report import degree
from experiments.report import model as reports
from experiments.report.model import DegreeFacts, Estimate
from experiments.study import degrees, provenance, stages
from experiments.study import setup as setups
from experiments.study.planning import Plan, Run
from experiments.study.stages import Stage
from experiments.study.training import predictions_of
from experiments.workdir import finished
from experiments.workdir.finished import Manifest, Record
from unlearn_jax import metrics
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.degree import Run as Generator
from unlearn_jax.evaluation import Cost, Evidence, measure
from unlearn_jax.strategies import METHOD, REFERENCE, Chosen
from unlearn_jax.training import Epoch
from unlearn_jax.unlearning import NOTHING

# For each seed, its generators.
Generators = list[list[Generator]]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One model of one run."""

  values: dict[str, float | None]  # by metric; None where one does not apply
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

  def whole(self, strategy: str, metric: str) -> list[float]:
    """The same if every run has a value, else nothing."""
    column = self.values(strategy, metric)
    known = [value for value in column if value is not None]
    return known if len(known) == len(column) else []


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
  costs = {
    name: _cost(plan.study, model.record)
    for name, model in models.items()
    if name != 'source' and model.record.history
  }
  roles = {own.text: own.strategy.role for own in plan.chosen}
  reference = next((n for n, r in roles.items() if r == REFERENCE), '')
  found: dict[str, Outcome | None] = dict.fromkeys(every)
  for name, model in models.items():
    cost = costs.get(name)
    evidence = Evidence(
      predictions[name],
      predictions['source'],
      run.splits,
      predictions.get(reference),
      cost,
      costs.get(reference),
    )
    stop = cost.stop_epoch if cost else None
    found[name] = Outcome(measure(evidence), model.record, stop, every[name])
  return found


def _cost(study: config.Study, record: Record) -> Cost:
  """What a model took until the stop rule held first, or in all if never."""
  rows = record.history
  names = 'js_to_source', 'retain_accuracy'
  history = [
    Epoch(
      row.epoch,
      row.loss,
      row.seconds,
      # Of None NaN, by which no rule holds.
      {name: float(np.array(getattr(row, name), float)) for name in names},
    )
    for row in rows
  ]
  budget = study.methods.budget(study.training.resolved.batch_size)
  stop = budget.stop_rule(record.source_retain_accuracy).epoch(history)
  return Cost(
    record.selection_seconds + rows[stop or -1].seconds,
    record.compile_seconds,
    stop,
    record.by_tensor,
    record.perturbation_js,
  )


def report(results: Results, wall_seconds: float) -> reports.Report:
  """All that report.json holds."""
  plan, study = results.plan, results.plan.study
  setup, splits = plan.setup, plan.runs[0].splits
  methods, facts = study.methods, plan.setup.facts
  control = next((c for c in plan.chosen if c.name == reports.CONTROL), None)
  titles = {
    own.stage.path: own.stage.title
    for column in results.outcomes.values()
    for own in column
    if own is not None
  }
  made = {title: finished.manifest(path) for path, title in titles.items()}
  return reports.Report(
    command=command(),
    config=settings.flat(study),
    environment={
      **provenance.environment(),
      'wall_seconds': round(wall_seconds, 1),
      'stage_seconds': round(sum(own.wall_seconds for own in made.values()), 1),
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
      parameters=sum(setup.tensor_sizes.values()),
      tensor_sizes=setup.tensor_sizes,
    ),
    stop_rule=reports.StopRuleFacts(
      js_change=methods.stop_js_change,
      retain_share=methods.stop_retain_share,
      max_epochs=methods.epochs,
      text=_rule_text(methods),
    ),
    seeds=[run.seed for run in plan.runs],
    rows=[_row(results, own, control) for own in (None, *plan.chosen)],
    tuned=str(methods.found or ''),
    warnings=[
      warning
      for run in plan.runs
      for warning in setups.lost_classes(setup, run.splits, run.seed)
    ]
    + _stage_warnings(made),
    degree=degree_facts(plan, results.errors),
  )


def command() -> str:
  """What was typed, as it can be typed again."""
  name = sys.argv[0].rpartition('/')[2].removesuffix('.py')
  return ' '.join([f'python -m experiments.{name}', *sys.argv[1:]])


def _rule_text(methods: config.Methods) -> str:
  if methods.stop_retain_share > 1:
    return f'There is none: every fine-tuning runs all {methods.epochs} epochs.'
  return (
    'The clock stops after the first epoch in which the mean JS divergence to'
    f' the source on D_UL moved by at most {methods.stop_js_change:g} bits and'
    f' the accuracy on D_RE was at least {methods.stop_retain_share:g} of the'
    " source's (both on at most 2,048 evenly spaced examples). It ends every"
    f' fine-tuning, at most {methods.epochs} epochs; Retrain runs its whole'
    ' recipe, and the rule only says when its clock stops.'
  )


def _stage_warnings(made: Mapping[str, Manifest]) -> list[str]:
  """What was made by other code, on another machine, or with a pause."""
  now = dataclasses.asdict(provenance.code())
  other: dict[tuple[str, str], list[str]] = {}
  for title, said in made.items():
    code = dataclasses.asdict(said.code) if said.code else {}
    for name, value in code.items():
      if value not in (now[name], '') and name != 'commit':
        other.setdefault((name, str(value)[:40]), []).append(title)
  return [
    f'{len(titles)} stages were made by other code or elsewhere ({name}'
    f' {value}, here {str(now[name])[:40]}), such as {titles[0]}'
    for (name, value), titles in other.items()
  ] + [
    f'{title}: its process was stopped meanwhile, and its seconds count that'
    for title, said in made.items()
    if said.stopped
  ]


def _row(
  results: Results, own: Chosen | None, control: Chosen | None
) -> reports.Row:
  """One strategy over all runs; the source, where there is none."""
  name = own.text if own else reports.SOURCE
  column = results.outcomes[name]
  known = [outcome for outcome in column if outcome is not None]
  values = {
    metric: results.values(name, metric)
    for metric in (known[0].values if known else ())
    if any(outcome.values[metric] is not None for outcome in known)
  }
  curved = own is not None and all(o.record.history for o in known)
  curved = curved and len(known) == len(column)
  label = own.label if own else 'Source (untouched)'
  errors = [
    results.errors.get(stage.key)
    for run in results.plan.runs
    if (stage := run.strategies.get(name))
  ]
  failed = [error for error in errors if error]
  if failed:
    # Means over the seeds that came through would flatter it: there are none.
    label += f' (diverged: {len(failed)} of {len(column)} seeds)'
  paired = {}
  if own and control and own.text != control.text:
    for metric in values:
      mine, its = (results.whole(n, metric) for n in (name, control.text))
      if mine and its:
        paired[metric] = Estimate.of(metrics.paired_interval(mine, its))
  # Above 1 there is no rule: seconds are those of all epochs.
  ruled = results.plan.study.methods.stop_retain_share <= 1
  stops = [o.stop_epoch for o in known] if ruled else []
  return reports.Row(
    strategy=name,
    name=own.name if own else reports.SOURCE,
    label=label,
    role=own.strategy.role if own else reports.SOURCE,
    parameters=known[0].stage.depends.get('training', {}) if known else {},
    values=values,
    mean={
      metric: Estimate.of(metrics.mean_interval(whole))
      for metric in values
      if (whole := results.whole(name, metric))
    },
    paired=paired,
    curves=[_curve(o.record) for o in known] if curved else [],
    stop_epoch=stops if curved else [],
    by_tensor={
      path: float(np.mean([o.record.by_tensor.get(path, 0) for o in known]))
      for path in (results.plan.setup.tensor_sizes if curved else ())
    },
    warnings=failed or (_warnings(own, known, stops) if curved and own else []),
    checkpoints=[str(outcome.stage.path) for outcome in known],
  )


def _curve(record: Record) -> reports.Curve:
  names, rows = reports.Curve.__dataclass_fields__, record.history
  return reports.Curve(**{n: [getattr(row, n) for row in rows] for n in names})


def _warnings(
  own: Chosen, known: Sequence[Outcome], stops: Sequence[int | None]
) -> list[str]:
  found = []
  changed = any(sum(o.record.by_tensor.values()) for o in known)
  if changed and own.strategy.role != REFERENCE:
    bits = float(np.mean([o.record.perturbation_js for o in known]))
    if bits < NOTHING:
      found.append(
        f'{own.label}: the perturbation moved held-out outputs by only'
        f' {bits:.2g} bits; what follows is plain fine-tuning'
      )
  if missed := sum(stop is None for stop in stops):
    found.append(
      f'{own.label}: the stop rule was not met in {missed} of'
      f' {len(known)} run(s); the seconds are a lower bound'
    )
  return found


def degree_facts(plan: Plan, errors: Mapping[str, str]) -> list[DegreeFacts]:
  """The degrees of a study, one entry a bound; none where none were asked."""
  places = range(len(plan.runs[0].degrees))
  found = [_within(plan, place, errors) for place in places]
  return [facts for facts in found if facts is not None]


def _within(
  plan: Plan, place: int, errors: Mapping[str, str]
) -> DegreeFacts | None:
  """The degrees of one bound; None where the null could not be measured."""

  def read(name: str, unseen: bool = False) -> Generators:
    """Of each run; nothing unless there is one of every run."""
    own = [run.degrees[place].get((name, unseen)) for run in plan.runs]
    if any(stage is None or stage.key in errors for stage in own):
      return []
    return [degrees.read(stage).generators for stage in own if stage]

  null = read('null')
  if not null:
    return None
  roles = {own.text: own.strategy.role for own in plan.chosen if read(own.text)}
  target = next((name for name in roles if roles[name] == REFERENCE), '')
  rows = []
  for own in plan.chosen:
    known, unseen = read(own.text), read(own.text, True)
    if not known:
      continue
    goal = read(target) if target != own.text else None
    calibrated = calibrated_degree(
      _units(known, _degree),
      _units(null, _degree),
      _units(goal, _degree) if goal else None,
    )
    rows.append(
      reports.DegreeRow(
        strategy=own.text,
        label=own.label,
        role=own.strategy.role,
        generators=known,
        unseen=unseen,
        degree=_estimate(known, _degree),
        gap=_estimate(known, lambda own: own.held_out.gap),
        excess=_estimate(known, lambda own: own.held_out.excess),
        unseen_degree=_estimate(unseen, _degree) if unseen else None,
        difference=Estimate.of(calibrated.difference),
        p_value=calibrated.p_value,
        verdict=calibrated.verdict,
      )
    )
  bound = plan.study.generators.settings[place]
  return DegreeFacts(
    max_perturbation=bound.max_perturbation,
    settings=msgspec.to_builtins(bound),
    generators=len(null[0]),
    seeds=len(null),
    null=null,
    null_degree=_estimate(null, _degree),
    rows=rows,
  )


def grids(plan: Plan, every: Sequence[DegreeFacts]) -> dict[str, Figure]:
  """Images of the first run, a picture a bound; see `degrees.grid`."""
  found = {}
  bounds = [own.max_perturbation for own in plan.study.generators.settings]
  for facts in every:
    # Of the first method, or whatever there is.
    rows = sorted(facts.rows, key=lambda row: row.role != METHOD)
    pairs = plan.runs[0].degrees[bounds.index(facts.max_perturbation)]
    for row in rows[:1]:
      found[degree.name_of(facts, 'images')] = degrees.grid(
        pairs[row.strategy, False], plan.setup.dataset.class_names
      )
  return found


def _degree(generator: Generator) -> float:
  return generator.held_out.degree


def _units(
  runs: Generators, value: Callable[[Generator], float]
) -> list[float]:
  """One value a seed, the mean over its generators; of one seed, all."""
  columns = [[value(generator) for generator in own] for own in runs]
  if len(columns) == 1:
    return columns[0]
  return [float(np.mean(column)) for column in columns]


def _estimate(
  runs: Generators, value: Callable[[Generator], float]
) -> Estimate:
  return Estimate.of(metrics.mean_interval(_units(runs, value)))
