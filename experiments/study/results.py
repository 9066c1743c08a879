"""From finished stages to numbers, and from numbers to a report."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import sys
from typing import Any

from matplotlib.figure import Figure
import msgspec
import numpy as np

from unlearn_jax import metrics
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.degree import Run as Generator
from unlearn_jax.evaluation import Cost, Evidence, measure
from unlearn_jax.strategies import METHOD, REFERENCE, Chosen, Strategy
from unlearn_jax.training import Epoch
from unlearn_jax.unlearning import NOTHING
from .. import COMMAND, config, settings
from ..report import degree
from ..report import model as reports
from ..report.model import DegreeFacts, Estimate
from ..report.wording import say
from ..workdir import finished
from ..workdir.finished import Manifest, Record
from . import degrees, provenance, stages
from . import setup as setups
from .planning import Plan, Run
from .stages import Stage
from .training import epochs_of, predictions_of

_SOURCE = Chosen(
  reports.SOURCE, {}, Strategy('Source (untouched)', reports.SOURCE), {}
)
# The first of the other Retrains: as near as one that forgot can be.
_NULL = Chosen(
  reports.NULL, {}, Strategy('Retrain, another seed', reports.NULL), {}
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One model of one run."""

  values: dict[str, Any]  # by metric, numbers; None where one does not apply
  record: Record  # how the model came about
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
  every = [_measured_run(plan, run, errors) for run in plan.runs]
  outcomes = {name: [own[name] for own in every] for name in every[0]}
  return Results(plan, outcomes, errors)


def _measured_run(
  plan: Plan, run: Run, errors: Mapping[str, str]
) -> dict[str, Outcome | None]:
  """The outcomes of one run, the source's first."""
  every = {'source': run.source, **run.strategies}
  every |= zip((reports.NULL,), run.references)  # The first, if there is one.
  models = {
    name: stages.load(stage)
    for name, stage in every.items()
    if stage.key not in errors
  }
  predictions = {
    name: predictions_of(plan.setup, model, run.splits)
    for name, model in models.items()
  }
  costs = {
    name: _cost(plan.study, model.record)
    for name, model in models.items()
    if name != 'source' and model.record.history
  }
  references = [
    predictions_of(plan.setup, stages.load(stage), run.splits)
    for stage in run.references
    if stage.key not in errors
  ]
  found: dict[str, Outcome | None] = dict.fromkeys(every)
  for name, model in models.items():
    evidence = Evidence(
      predictions[name],
      predictions['source'],
      run.splits,
      predictions.get(plan.reference),
      # None is judged by itself.
      references[1:] if name == reports.NULL else references,
      costs.get(name),
      costs.get(plan.reference),
    )
    found[name] = Outcome(measure(evidence), model.record, every[name])
  return found


def _cost(study: config.Study, record: Record) -> Cost:
  """What a model took until the stop rule held first, or in all if never."""
  rows = record.history
  history = []
  for row in rows:
    # Of None NaN, by which no rule holds.
    known = {n: np.nan if v is None else v for n, v in vars(row).items()}
    history.append(Epoch(row.epoch, row.loss, row.seconds, known))
  budget = study.methods.budget(study.recipe.batch_size)
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
  name, *parts = study.forgotten.split(',')  # As it is drawn, or as it is said.
  fixed = name.startswith('ids(') or name.startswith('class(') and not parts
  made = {
    own.stage.title: finished.manifest(own.stage.path)
    for column in results.outcomes.values()
    for own in column
    if own is not None
  }
  return reports.Report(
    command=command(),
    config=settings.flat(study),
    environment={
      **provenance.environment(),
      'wall_seconds': round(wall_seconds, 1),
      'stage_seconds': round(sum(own.wall_seconds for own in made.values()), 1),
    },
    dataset=reports.DatasetFacts(
      name=setups.titled(setup),
      train=splits.train.size,
      test=splits.test.size,
      forget=splits.forget.size,
      retain=splits.retain.size,
      classes=len(setup.dataset.class_names),
      image_shape=list(setup.dataset.image_shape),
      fingerprint=setup.dataset.fingerprint,
      heldout=setup.dataset.test.size - splits.test.size,
    ),
    model=reports.ModelFacts(
      name=facts.model,
      width=facts.width,
      patch_size=facts.patch_size,
      dtype=facts.dtype,
      parameters=sum(setup.tensor_sizes.values()),
      tensor_sizes=setup.tensor_sizes,
    ),
    stop_rule=reports.StopRuleFacts(
      js_change=methods.stop_js_change,
      retain_share=methods.stop_retain_share,
      max_epochs=methods.epochs,
      text=say('stop_rule', 'held' if methods.ruled else 'none', own=methods),
    ),
    seeds=[run.seed for run in plan.runs],
    rows=[
      _row(results, own)
      for own in _in_order(plan)
      if own.text in results.outcomes
    ],
    tuned=str(methods.found or ''),
    warnings=[
      *setups.cautions(setup, plan.drawn),
      *_stage_warnings(made),
      *([say('warnings', 'tuned')] if methods.found and fixed else []),
      *tuned_elsewhere(study),
    ],
    degree=degree_facts(plan, results.errors),
  )


def problem(study: config.Study) -> dict[str, Any]:
  """What the best rate may depend on, by name, in JSON's types."""
  trained = vars(finished.Recipe.of(study.recipe)).items()
  methods = study.methods
  names = 'optimizer', 'schedule', 'epochs', 'stop_retain_share'
  own = {name: getattr(methods, name) for name in names}
  own |= {f'train_{name}': value for name, value in trained}
  own |= settings.flat(study.data) | settings.flat(study.network)
  return own | {'forget': study.forgotten}


def tuned_elsewhere(study: config.Study) -> list[str]:
  """Where rates were tuned on another problem, what differs."""
  tuned, own = study.methods.found, problem(study)
  differ = '; '.join(
    f'{name} {was} there, {own[name]} here'
    for name, was in (tuned.problem if tuned else {}).items()
    if own.get(name, was) != was
  )
  return [say('warnings', 'elsewhere', differ=differ)] if differ else []


def _in_order(plan: Plan) -> Iterator[Chosen]:
  """All that may have a row; another Retrain stands below Retrain."""
  yield _SOURCE
  for own in plan.chosen:
    yield own
    if own.text == plan.reference:
      yield _NULL


def command() -> str:
  """What was typed, as it can be typed again."""
  name = sys.argv[0].rpartition('/')[2].removesuffix('.py')
  return ' '.join([f'{COMMAND}{name}', *sys.argv[1:]])


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
    say('warnings', 'stopped', title=title)
    for title, said in made.items()
    if said.stopped
  ]


def _control(plan: Plan, own: Chosen) -> Chosen | None:
  """Fine-tuning, of as many epochs and guided alike where there is such."""

  def how(c: Chosen) -> tuple[int, str | bool]:
    teacher = bool(c.parameters.get('js_weight')) and c.parameters['js_teacher']
    return epochs_of(plan.study, c), teacher

  def unlike(one: Chosen) -> list[bool]:
    differs = [a != b for a, b in zip(how(one), how(own))]
    return [*differs, one.text != reports.CONTROL]

  controls = (one for one in plan.chosen if one.name == reports.CONTROL)
  return min(controls, key=unlike, default=None)


def _row(results: Results, own: Chosen) -> reports.Row:
  """One strategy over all runs, or the source."""
  name, label, role = own.text, own.label, own.strategy.role
  column = results.outcomes[name]
  known = [outcome for outcome in column if outcome is not None]
  values = {
    metric: results.values(name, metric)
    for metric in (known[0].values if known else ())
    if any(outcome.values[metric] is not None for outcome in known)
  }
  # How it came about: of all seeds, or of none.
  alone = role in (reports.SOURCE, reports.NULL)
  made = known if not alone and None not in column else []
  made = made if all(o.record.history for o in made) else []
  ruled = results.plan.study.methods.ruled
  stops = [o.values['stop_epoch'] for o in made if ruled]
  failed = [
    results.errors[stage.key]
    for run in results.plan.runs
    if (stage := run.strategies.get(name)) and stage.key in results.errors
  ]
  if failed:
    # Means over the seeds that came through would flatter it: there are none.
    label += f' (diverged: {len(failed)} of {len(column)} seeds)'
  paired, control = {}, None if alone else _control(results.plan, own)
  if control and name != control.text:
    for metric in values:
      mine, its = (results.whole(n, metric) for n in (name, control.text))
      if mine and its:
        paired[metric] = Estimate.of(metrics.paired_interval(mine, its))
  return reports.Row(
    strategy=name,
    name=own.name,
    label=label,
    role=role,
    parameters=known[0].stage.depends.get('training', {}) if known else {},
    values=values,
    mean={
      metric: Estimate.of(metrics.mean_interval(whole))
      for metric in values
      if (whole := results.whole(name, metric))
    },
    paired=paired,
    control=control.text if control else '',
    epochs=epochs_of(results.plan.study, own) if own.strategy.terms else None,
    curves=[_curve(o.record) for o in made],
    stop_epoch=stops,
    by_tensor={
      path: float(np.mean([o.record.by_tensor.get(path, 0) for o in made]))
      for path in (results.plan.setup.tensor_sizes if made else ())
    },
    warnings=failed or _warnings(own, made, stops),
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
      found.append(say('warnings', 'nothing', label=own.label, bits=bits))
  if missed := stops.count(None):
    facts = {'label': own.label, 'missed': missed, 'runs': len(known)}
    found.append(say('warnings', 'cut_off', **facts))
  return found


def degree_facts(plan: Plan, errors: Mapping[str, str]) -> list[DegreeFacts]:
  """The degrees of a study, one entry a bound; none where none were asked."""
  places = range(len(plan.runs[0].degrees))
  return [own for place in places if (own := _within(plan, place, errors))]


def _within(
  plan: Plan, place: int, errors: Mapping[str, str]
) -> DegreeFacts | None:
  """The degrees of one bound; None where the null could not be measured."""

  def read(name: str, unseen: bool = False) -> list[list[Generator]]:
    """Of each run; nothing unless there is one of every run."""
    own = [run.degrees[place].get((name, unseen)) for run in plan.runs]
    if any(stage is None or stage.key in errors for stage in own):
      return []
    return [degrees.read(stage).generators for stage in own if stage]

  null = read('null')
  if not null:
    return None
  rows = []
  for own in plan.chosen:
    known, unseen = read(own.text), read(own.text, True)
    if not known:
      continue
    goal = read(plan.reference) if plan.reference != own.text else None
    calibrated = calibrated_degree(
      degree.units(known),
      degree.units(null),
      degree.units(goal) if goal else None,
    )
    rows.append(
      reports.DegreeRow(
        strategy=own.text,
        label=own.label,
        role=own.strategy.role,
        generators=known,
        unseen=unseen,
        degree=degree.estimate(known),
        gap=degree.estimate(known, 'held_out.gap'),
        excess=degree.estimate(known, 'held_out.excess'),
        unseen_degree=degree.estimate(unseen) if unseen else None,
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
    null_degree=degree.estimate(null),
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
