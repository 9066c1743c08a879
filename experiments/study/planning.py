"""The stages of a study, checked before anything is computed."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import msgspec

from unlearn_jax import parallel
from unlearn_jax.base import InputError, Splits, shown
from unlearn_jax.objectives import heldout_of
from unlearn_jax.recipes import RECIPES
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.strategies import REFERENCE, Chosen, parse
from .. import config
from ..settings import FlagError
from ..workdir import finished
from ..workdir.finished import Manifest, Recipe
from . import setup as setups
from . import stages, training
from .degrees import measure_degree
from .setup import Setup
from .stages import Output, Stage, Work


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One seed."""

  seed: int  # its number
  splits: Splits  # its forget set
  source: Stage  # M
  strategies: dict[str, Stage]  # by spelling
  # More Retrains, by which attacks judge.
  references: list[Stage] = dataclasses.field(default_factory=list)
  # By the place of the bound, and (spelling or 'null', unseen).
  degrees: list[dict[tuple[str, bool], Stage]] = dataclasses.field(
    default_factory=list
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """All that a study computes."""

  study: config.Study  # what was asked for
  setup: Setup  # data and model
  chosen: list[Chosen]  # the strategies, in the order of a report
  runs: list[Run]  # one a seed

  @property
  def drawn(self) -> dict[int, Splits]:
    """The forget set of each seed."""
    return {run.seed: run.splits for run in self.runs}

  @property
  def reference(self) -> str:
    """The spelling of Retrain; '' where it is not among the strategies."""
    every = (c.text for c in self.chosen if c.strategy.role == REFERENCE)
    return next(every, '')

  @property
  def stages(self) -> list[Stage]:
    """Each once and after its parents; none that are given."""
    found: dict[str, Stage] = {}

    def add(stages: Iterable[Stage]) -> None:
      for stage in stages:
        add(stage.parents.values())
        if stage.given is None:
          found.setdefault(stage.key, stage)

    for run in self.runs:
      add([run.source, *run.strategies.values(), *run.references])
    for run in self.runs:
      for pairs in run.degrees:
        add(pairs.values())
    return list(found.values())


def plan(
  study: config.Study,
  root: pathlib.Path,
  chosen: Sequence[Chosen] | None = None,
) -> Plan:
  """The stages of a study; data are loaded, nothing is computed or written."""
  chosen = study.methods.chosen if chosen is None else list(chosen)
  if study.retrained_dir is not None:
    if all(own.strategy.role != REFERENCE for own in chosen):
      chosen = [*parse('retrain'), *chosen]
  planner = Planner(study, setups.set_up(study), root)
  setup, roles = planner.setup, {own.strategy.role for own in chosen}
  retrains = study.retrained_dir is None and REFERENCE in roles
  if study.source_dir is not None and (retrains or study.references):
    source = planner.given('source_dir', 'source')
    study = _as_the_source(study, source.path)
    planner = dataclasses.replace(planner, study=study)
  splits = [setups.draw(setup, study, run) for run in range(study.seeds)]
  size, retained = study.recipe.batch_size, splits[0].retain.size
  _require_devices('batch_size', size)
  if size > retained:
    allowed = f'at most the {retained} retained examples'
    raise FlagError('batch_size', size, allowed)
  _require_strategies(study, setup, splits, chosen)
  runs = [planner.run(run, own, chosen) for run, own in enumerate(splits)]
  seeds = {study.draws.of('split', run) for run in range(study.seeds)}
  found = study.methods.found
  if found and (same := seeds & {*found.seeds}):
    flag = 'seed' if study.draws.split_seed is None else 'split_seed'
    allowed = f'seeds that nothing was tuned on, unlike {min(same)}'
    raise FlagError(flag, min(seeds), allowed)
  if study.degree:
    if study.source_dir is not None:
      allowed = 'only with sources that this command trains;'
      allowed += ' experiments.evaluate --degree measures any checkpoint'
      raise FlagError('degree', 'true', allowed)
    if splits[0].truth is not None:  # Each source learned other labels.
      allowed = "only with labels as they are, such as --forget='random(0.1)'"
      raise FlagError('degree', 'true', allowed)
    require_two_batches(study.generators.degree_batch_size, splits[0])
    twins = [run.source for run in runs[1:] + runs[:1]]
    if len(runs) == 1:  # M′ is the source of the next seed.
      twins = [planner.source(1)]
    for settings in study.generators.settings:
      for number, (run, twin) in enumerate(zip(runs, twins)):
        others = {'null': twin, **run.strategies}
        run.degrees.append(planner.degrees(number, run, others, settings))
  return Plan(study, setup, chosen, runs)


@dataclasses.dataclass(frozen=True)
class Planner:
  """Makes the stages of a study; `run` is a run's number."""

  study: config.Study
  setup: Setup
  root: pathlib.Path

  @property
  def _apart(self) -> dict[str, Any]:
    """What is held out, and thus not judged by, where anything is."""
    share = self.study.heldout
    return {'heldout': share} if share else {}

  def source(self, run: int, labels: Sequence[object] = ()) -> Stage:
    """M of one run; `labels`: what was given wrong ones, and these."""
    draws = self.study.draws
    return self.trained(
      f'seed{draws.of("source", run)}-source',
      f'seed {draws.seed + run} · source',
      functools.partial(training.train_source, run=run),
      kind='source',
      seed=draws.of('source', run),
      **({'labels': labels} if labels else {}),
    )

  def trained(self, name: str, title: str, work: Work, **depends: Any) -> Stage:
    """A model that is trained by the recipe."""
    study, facts = self.study, self.setup.facts
    depends |= {
      'facts': facts.key,
      'recipe': dataclasses.astuple(Recipe.of(study.recipe)),
    }
    if facts.model_sha256:
      depends['code'] = facts.model_sha256
    return Stage(
      *(self.root, name, title, depends, work),
      epochs=study.recipe.epochs,
      required=True,
      study=study,
    )

  def made(
    self,
    whose: str,
    title: str,
    own: Chosen,
    work: Callable[..., Output],
    parents: dict[str, Stage],
    times: int = 1,
    **depends: Any,
  ) -> Stage:
    """What a strategy makes of a model; `work` is told which strategy."""
    return Stage(
      self.root,
      f'{whose}-{own.name.replace(":", ".")}',
      title,
      depends | training.made_by(self.study, own),
      functools.partial(work, chosen=own),
      parents,
      epochs=training.epochs_of(self.study, own) * times,
      required=own.strategy.role == REFERENCE,
      study=self.study,
    )

  def run(self, run: int, splits: Splits, chosen: Iterable[Chosen]) -> Run:
    """A source and what every strategy makes of it."""
    study, labels = self.study, setups.given_labels(splits)
    forget = setups.forget_hash(self.setup, splits)
    source = self.source(run, [forget, *labels] if labels else ())
    if study.source_dir is not None:
      wrong = {'forget_sha256': forget} if labels else {}
      source = self.given('source_dir', 'source', given_labels=labels, **wrong)
      setups.require_known(self.setup, splits, source.path)
    strategies: dict[str, Stage] = {}
    # Retrain first: it may teach the others.
    for own in sorted(chosen, key=lambda c: c.strategy.role != REFERENCE):
      if own.strategy.role == REFERENCE and study.retrained_dir is not None:
        made = self.given('retrained_dir', 'retrain', forget_sha256=forget)
        _require_siblings(study, made, source)
      else:
        parents = {'source': source}
        if own.strategy.needs_retrained:
          parents['retrained'] = strategies['retrain']
        made = self._strategy(run, forget, own, parents)
      strategies[own.text] = made
    ordered = {own.text: strategies[own.text] for own in chosen}
    retrain, parents = parse('retrain')[0], {'source': source}
    references = [
      self._strategy(run, forget, retrain, parents, number)
      for number in range(1, study.references + 1)
    ]
    return Run(study.draws.seed + run, splits, source, ordered, references)

  def given(self, flag: str, strategy: str, **expected: Any) -> Stage:
    """A checkpoint that a flag names, refused if it does not fit."""
    path = pathlib.Path(getattr(self.study, flag))
    try:
      model = setups.load_model(self.setup, path, **expected)
      its = model.manifest.strategy
      if its not in (None, strategy):
        raise InputError(f'holds a {shown(its)} model, allowed: {strategy}')
    except InputError as error:
      raise InputError(f'--{flag}={path}: {error}') from error
    return stages.given(model, strategy)

  def _strategy(
    self,
    run: int,
    forget: str,
    own: Chosen,
    parents: dict[str, Stage],
    reference: int = 0,
  ) -> Stage:
    """What a strategy makes; `reference`: of another seed, from 1."""
    study, seed = self.study, self.study.draws.seed + run
    which = f', reference {reference}' if reference else ''
    work, depends = training.unlearn_source, self._apart
    if reference:
      depends['reference'] = reference
    return self.made(
      f'seed{seed}',
      f'seed {seed} · {own.text}{which}',
      own,
      functools.partial(work, run=run, reference=reference),
      parents,
      kind='strategy',
      forget=forget,
      seed=study.draws.of('unlearn', run),
      **depends,
    )

  def degrees(
    self,
    number: int,
    run: Run,
    others: dict[str, Stage],
    settings: GeneratorSettings,
  ) -> dict[tuple[str, bool], Stage]:
    """A pair for each model, by name, that is held against a run's source."""
    own, found = self.study.generators, {}
    forget = setups.forget_hash(self.setup, run.splits)
    for name, other in others.items():
      both = own.degree_unseen and name != 'null'
      for unseen in (False, True) if both else (False,):
        what = f'{name} on unseen images' if unseen else name
        short = ''.join(c if c.isalnum() else '_' for c in what.split('(')[0])
        found[name, unseen] = Stage(
          self.root,
          f'seed{run.seed}-degree-{short}',
          f'seed {run.seed} · degree of {what}',
          {
            'kind': 'degree',
            'settings': msgspec.to_builtins(settings),
            'generators': [own.degree_seeds, own.degree_limit],
            'unseen': unseen,
            'forget': forget,
            'seed': self.study.draws.of('unlearn', number),
            **self._apart,
          },
          functools.partial(
            measure_degree, run=number, settings=settings, unseen=unseen
          ),
          {'source': run.source, 'other': other},
          epochs=own.degree_seeds * settings.epochs,
          study=self.study,
        )
    return found


def _as_the_source(study: config.Study, path: pathlib.Path) -> config.Study:
  """The same with a Retrain that is trained as the source says it was."""
  recipe = finished.manifest(path).recipe
  given = {n: v for n, v in vars(study.training).items() if v is not None}
  if recipe is None:
    if 'recipe' not in given:
      allowed = f'said: {path} does not tell how it was trained, and Retrain is'
      raise FlagError('recipe', '', f'{allowed} to be trained alike')
    return study
  training = training_as(recipe, str(path))
  wanted = Recipe.of(training.resolved)
  for name, value in given.items():
    own = Recipe.of(dataclasses.replace(training, **{name: value}).resolved)
    if own != wanted:
      allowed = getattr(training, name)
      raise FlagError(name, value, f'{allowed}, as the source was trained')
  return dataclasses.replace(study, training=training)


def training_as(recipe: Recipe, path: str) -> config.Training:
  """What a manifest says of a training, as flags say it."""
  names = {own.optimizer.__name__: n for n, own in reversed(RECIPES.items())}
  if recipe.optimizer not in names:
    raise InputError(
      f'{path} was trained by {shown(recipe.optimizer)}, allowed:'
      f' {", ".join(names)}'
    )
  return config.Training(
    names[recipe.optimizer],
    recipe.epochs,
    recipe.learning_rate,
    recipe.augment,
    recipe.batch_size,
  )


def _require_devices(name: str, size: int) -> None:
  if size % (count := len(parallel.devices())):
    raise FlagError(name, size, f'a positive multiple of the {count} devices')


def _require_strategies(
  study: config.Study,
  setup: Setup,
  splits: Sequence[Splits],
  chosen: Sequence[Chosen],
) -> None:
  """Refuses what does not fit the model, or lacks its teacher or its images."""
  alone = all(own.text != 'retrain' for own in chosen)
  for own in chosen:
    strategy = own.strategy
    try:
      if strategy.check:
        strategy.check(setup.shapes.params, setup.model.order)
    except ValueError as error:
      raise InputError(f'--strategies: {own.text}: {error}') from error
    if strategy.needs_retrained and alone:
      allowed = f'{own.text} beside retrain'
      raise FlagError('strategies', study.methods.strategies, allowed)
    if strategy.needs_heldout and not study.heldout:
      allowed = f'above 0 and at most 0.9, for {own.text} needs held-out images'
      raise FlagError('heldout', study.heldout, allowed)
    for each in splits if strategy.needs_heldout else ():
      try:
        heldout_of(each)
      except InputError as error:
        allowed = f'what {own.text} can learn from: {error}'
        raise FlagError('heldout', study.heldout, allowed) from error


def require_two_batches(size: int, splits: Splits) -> None:
  """Raises a `FlagError` if half of D_UL or of the test images is no batch."""
  _require_devices('degree_batch_size', size)
  for name, examples in (('forget', splits.forget), ('test', splits.test)):
    if 2 * size > examples.size:
      allowed = f'at most {examples.size // 2}, half of the {name} set'
      raise FlagError('degree_batch_size', size, allowed)


def _require_siblings(
  study: config.Study, retrained: Stage, source: Stage
) -> None:
  """Refuses a Retrain that belongs to another source or recipe."""
  its = finished.manifest(retrained.path)
  wanted = Recipe.of(study.recipe)
  flag = f'--retrained_dir={study.retrained_dir}'
  if source.given is not None:
    own = finished.manifest(source.path)
    # When its clock stops depends on the source that it is held against.
    if its.parent_sha256 not in (None, own.state_sha256):
      raise InputError(
        f'{flag} was made with parent_sha256={its.parent_sha256},'
        f' --source_dir={study.source_dir} is {own.state_sha256}; allowed: a'
        ' Retrain held against it'
      )
    wanted = own.recipe or wanted
  require_recipe(its, wanted, flag)


def require_recipe(its: Manifest, wanted: Recipe | None, path: str) -> None:
  """Refuses a model that was not trained as the source was, where both say."""
  if its.recipe is None or wanted is None:
    return
  for field in dataclasses.fields(wanted):
    own, other = (getattr(r, field.name) for r in (its.recipe, wanted))
    if own != other:
      raise InputError(
        f'{path} was trained with {field.name}={shown(own)}, the source with'
        f' {shown(other)}; allowed: one recipe for both'
      )
