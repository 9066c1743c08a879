"""The stages of an experiment: source, Retrain, each strategy, each seed."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import divergence, flags, problem, stages
from experiments.problem import Setup
from experiments.progress import Progress
from unlearn_jax import checkpoints, parallel, training
from unlearn_jax.base import (
  InputError,
  ModelState,
  Splits,
)
from unlearn_jax.data import images
from unlearn_jax.evaluation import Predictions, predict_splits
from unlearn_jax.strategies import (
  REFERENCE,
  STRATEGIES,
  Settings,
  Strategy,
)
from unlearn_jax.unlearning import Unlearning, unlearn


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed: its forget set and its finished stages by strategy.

  `stages` holds 'source' and whichever strategies were asked for, but those
  that diverged: `failed` says of these, in one line each, what happened.
  """

  seed: int
  splits: Splits
  stages: dict[str, stages.Stage]
  failed: dict[str, str] = dataclasses.field(default_factory=dict)


def source_stage(
  setup: Setup,
  workdir: stages.Workdir,
  splits: Splits,
  run: int,
  progress: Progress,
) -> stages.Stage:
  """Trains M on D, or restores it."""
  values = setup.values
  seed = problem.seed_of(values, 'source', run)
  # The fingerprint says which data; names and statistics follow from it.
  names = ('model', 'width', 'dtype', 'num_classes', 'data_fingerprint')
  known = {name: setup.facts[name] for name in names}
  config = {**known, 'recipe': problem.recipe(values), 'source_seed': seed}
  title = f'seed {values.seed + run} · source'
  name = f'seed{values.seed + run}-source'
  partial = workdir.partial(name, config, progress.goes_on, progress.advance)

  def compute() -> tuple[ModelState, dict[str, Any], Predictions]:
    progress.begin(title, values.train_epochs)
    with divergence.named(title, values.train_learning_rate, partial):
      fit = training.train(
        problem.key_of('source', seed),
        setup.model,
        splits.train,
        epochs=values.train_epochs,
        batch_size=values.batch_size,
        optimizer=problem.optimizer(values, splits.train),
        augment=images.augment if values.augment else None,
        on_epoch=progress.epoch,
        keeper=partial,
      )
    predictions = _by_row(setup, fit.state, splits)
    record = {
      'history': [_plain(epoch) for epoch in fit.history],
      'seconds': fit.history[-1].seconds,
      'compile_seconds': fit.compile_seconds,
    }
    divergence.require_finite(title, values.train_learning_rate, record)
    progress.end(f'{fit.history[-1].seconds:.1f} s')
    return fit.state, record, predictions

  if workdir.done(name, config):
    progress.skip(title, values.train_epochs, 'done before')
  manifest = {
    **setup.facts,
    'strategy': 'source',
    'settings': problem.recipe(values),
    'parent_sha256': None,
    'forget_sha256': None,
  }
  return workdir.run(name, config, manifest, compute)


def _by_row(setup: Setup, state: ModelState, splits: Splits) -> Predictions:
  """Predictions of a model that no forget set belongs to.

  A source serves every forget set, so all of D is kept in `retain`, in the
  order of the data set.
  """
  every = splits._replace(retain=splits.train)
  return predict_splits(setup.model, state, every)


def _by_split(setup: Setup, state: ModelState, splits: Splits) -> Predictions:
  return predict_splits(setup.model, state, splits)


def source_predictions(stage: stages.Stage, splits: Splits) -> Predictions:
  """The source's predictions on the parts of these splits."""
  rows = np.asarray(splits.train.indices).argsort()
  every = stage.predictions.retain
  place = {'forget': splits.forget, 'retain': splits.retain}
  return Predictions(
    test=stage.predictions.test,
    **{
      name: every[rows[np.asarray(part.indices)]]
      for name, part in place.items()
    },
  )


def external_stage(
  setup: Setup,
  directory: str,
  flag: str,
  strategy: str,
  splits: Splits,
  **expected: Any,
) -> stages.Stage:
  """A checkpoint that a flag names, refused if it does not fit."""
  names = ('model', 'width', 'num_classes', 'data_fingerprint')
  wanted = {**{name: setup.facts[name] for name in names}, **expected}
  path = pathlib.Path(directory)
  try:
    state, manifest = checkpoints.restore(path, **wanted)
    if manifest.get('strategy', strategy) != strategy:
      raise InputError(
        f'holds a {manifest["strategy"]} model, allowed: {strategy}'
      )
    problem.require_fits(setup, state, path)
    if (path / stages.RECORD).exists():
      stage = stages.load(path)
      _require_whole(stage, strategy, splits)
      return stage
  except InputError as error:
    raise InputError(f'--{flag}={directory}: {error}') from error
  # Made by a program of the user's own: there is nothing but the model.
  predict = _by_row if strategy == 'source' else _by_split
  record = {'history': [], 'seconds': 0.0, 'compile_seconds': 0.0}
  return stages.Stage(
    path, state, manifest, record, predict(setup, state, splits), True
  )


def _require_whole(stage: stages.Stage, strategy: str, splits: Splits) -> None:
  """Refuses predictions and a record that are not of these splits."""
  # See `_by_row`.
  parts = {'retain': splits.train, 'test': splits.test}
  if strategy != 'source':
    parts = splits._asdict()
    del parts['train']
  for name, part in parts.items():
    found = getattr(stage.predictions, name)
    if found.ndim != 2 or len(found) != part.size or found.dtype.kind != 'f':
      raise InputError(
        f'its predictions of {name} are {found.dtype}{list(found.shape)},'
        f' allowed: a row for each of {part.size} images'
      )
  record = stage.record if isinstance(stage.record, dict) else {}
  history = record.get('history')
  names = ['seconds'] if strategy == 'source' else list(_RECORDED)
  rows = history if isinstance(history, list) else [None]
  for name in names if rows else []:
    if not isinstance(record.get(name), int | float):
      raise InputError(f'its {stages.RECORD} has no {name}')
  for row in rows:
    if not isinstance(row, dict) or not {'epoch', 'seconds'} <= set(row):
      raise InputError(f'its {stages.RECORD} has no history')


_RECORDED = ('selection_seconds', 'source_retain_accuracy', 'compile_seconds')


def strategy_stage(
  name: str,
  setup: Setup,
  workdir: stages.Workdir,
  splits: Splits,
  source: stages.Stage,
  retrained: stages.Stage | None,
  settings: Settings,
  run: int,
  progress: Progress,
) -> stages.Stage:
  """Unlearns with one strategy, or restores what it gave."""
  values, row = setup.values, STRATEGIES[name]
  seed = problem.seed_of(values, 'unlearn', run)
  settings = effective(settings, row, values)
  forgets = problem.forget_hash(setup, splits)
  parent = source.manifest['state_sha256']
  relevant = _relevant(settings, row, values)
  teacher = None
  if settings.js_teacher == 'retrained' and row.guided and retrained:
    teacher = retrained.manifest['state_sha256']
  config = {
    'strategy': name,
    'settings': relevant,
    'forget_sha256': forgets,
    'parent_sha256': parent,
    'teacher_sha256': teacher,
    'unlearn_seed': seed,
  }
  title = f'seed {values.seed + run} · {name}'
  folder = f'seed{values.seed + run}-{name}'
  partial = workdir.partial(folder, config, progress.goes_on, progress.advance)

  optimizer = None if row.stops else problem.optimizer(values, splits.retain)

  def compute() -> tuple[ModelState, dict[str, Any], Predictions]:
    progress.begin(title, settings.epochs)
    with divergence.named(title, settings.learning_rate, partial):
      result = unlearn(
        # The same for every strategy: what is compared sees the same batches.
        problem.key_of('unlearn', seed),
        setup.model,
        source.state,
        splits,
        name,
        settings,
        retrained=retrained.state if retrained else None,
        optimizer=optimizer,
        augment=images.augment if values.augment else None,
        on_epoch=progress.epoch,
        keeper=partial,
      )
    record = _record(result)
    divergence.require_finite(title, settings.learning_rate, record)
    progress.end(_summary(record, row))
    predictions = predict_splits(setup.model, result.state, splits)
    return result.state, record, predictions

  if workdir.done(folder, config):
    progress.skip(title, settings.epochs, 'done before')
  return workdir.run(
    folder,
    config,
    {
      **setup.facts,
      'strategy': name,
      'settings': relevant,
      'parent_sha256': parent,
      'forget_sha256': forgets,
    },
    compute,
    problem.forget_ids(setup, splits),
  )


def effective(settings: Settings, row: Strategy, values: Any) -> Settings:
  """Retrain follows the source's recipe, all others the fine-tuning's."""
  if row.stops:
    return settings
  return dataclasses.replace(
    settings,
    epochs=values.train_epochs,
    learning_rate=values.train_learning_rate,
  )


def _relevant(settings: Settings, row: Strategy, values: Any) -> dict[str, Any]:
  """The settings that the strategy's result depends on."""
  names = ['learning_rate', 'epochs', 'batch_size', *row.settings]
  if row.guided:
    names += ['js_weight', 'js_teacher']
  if row.stops:
    names += ['stop_js_change', 'stop_retain_share']
  if row.stops and row.choose is not None:
    names += ['train_mask']
  chosen = {name: getattr(settings, name) for name in names}
  own = {'augment': values.augment, 'dtype': values.dtype}
  if not row.stops:
    own['optimizer'] = problem.recipe(values)['optimizer']
  return {**chosen, **own}


def _record(result: Unlearning) -> dict[str, Any]:
  return {
    'history': [_plain(epoch) for epoch in result.history],
    'selection_seconds': result.selection_seconds,
    'source_retain_accuracy': result.source_retain_accuracy,
    'compile_seconds': result.compile_seconds,
    'stop_epoch': result.stop_epoch,
    'by_tensor': result.by_tensor,
    'perturbation_js': result.perturbation_js,
  }


def _plain(epoch: training.Epoch) -> dict[str, Any]:
  own = {'epoch': epoch.epoch, 'loss': epoch.loss, 'seconds': epoch.seconds}
  return {**own, **epoch.measured}


def _summary(record: dict[str, Any], row: Strategy) -> str:
  last = record['history'][-1]
  parts = [
    f'forget {100 * last["forget_accuracy"]:.1f} %',
    f'retain {100 * last["retain_accuracy"]:.1f} %',
    f'{last["seconds"] + record["selection_seconds"]:.1f} s',
  ]
  if record['stop_epoch'] is None and row.stops:
    parts.append('stop rule not met')
  if row.change is not None and row.stops:
    changed = sum(record['by_tensor'].values())
    bits = record['perturbation_js']
    parts.insert(0, f'{changed:,} scalars changed, outputs by {bits:.4f} bits')
  return ', '.join(parts)


def runs(setup: Setup, workdir: stages.Workdir) -> list[Run]:
  """Every stage of every seed, computed or restored."""
  values, settings = setup.values, flags.settings(setup.values)
  problem.check_against_model(setup, settings)
  drawn = [problem.draw(setup, run) for run in range(values.seeds)]
  problem.check_sizes(setup, drawn[0])
  external = [_external_stages(setup, splits) for splits in drawn]
  parallel.by_first(workdir.claim)
  for line in problem.describe(setup, drawn):
    print(line)
  epochs = values.train_epochs + sum(
    effective(settings, STRATEGIES[name], values).epochs
    for name in values.strategies
  )
  names = {'source', *values.strategies, *external[0]}
  count = values.seeds * len(names)
  progress = Progress(count, values.seeds * epochs)
  return [
    _one_run(setup, workdir, settings, splits, run, progress, external[run])
    for run, splits in enumerate(drawn)
  ]


def _external_stages(setup: Setup, splits: Splits) -> dict[str, stages.Stage]:
  """The checkpoints that flags name, before anything is computed."""
  values, given = setup.values, {}
  if values.source_dir is not None:
    given['source'] = external_stage(
      setup, values.source_dir, 'source_dir', 'source', splits
    )
  if values.retrained_dir is not None:
    given['retrain'] = external_stage(
      setup,
      values.retrained_dir,
      'retrained_dir',
      'retrain',
      splits,
      forget_sha256=problem.forget_hash(setup, splits),
    )
    _require_siblings(values, given)
  return given


def _require_siblings(values: Any, given: dict[str, stages.Stage]) -> None:
  """Refuses a Retrain that belongs to another source or recipe."""
  reference, wanted = given['retrain'], problem.recipe(values)
  if 'source' in given:
    source = given['source'].manifest
    wanted = source.get('settings') or {}
    # When its clock stops depends on the source that it is held against.
    parent = reference.manifest.get('parent_sha256')
    if parent not in (None, source['state_sha256']):
      raise InputError(
        f'--retrained_dir={values.retrained_dir} was made with'
        f' parent_sha256={parent}, --source_dir={values.source_dir} is'
        f' {source["state_sha256"]}; allowed: a Retrain held against it'
      )
  problem.require_recipe(
    reference.manifest.get('settings') or {},
    wanted,
    f'--retrained_dir={values.retrained_dir}',
  )


def _one_run(
  setup: Setup,
  workdir: stages.Workdir,
  settings: Settings,
  splits: Splits,
  run: int,
  progress: Progress,
  external: dict[str, stages.Stage],
) -> Run:
  values, done = setup.values, dict(external)
  failed: dict[str, str] = {}
  for name, stage in external.items():
    progress.skip(name, values.train_epochs, f'from {stage.path}')
  if 'source' not in done:
    done['source'] = source_stage(setup, workdir, splits, run, progress)
  # Retrain first: the others may take it as their teacher.
  ordered = sorted(values.strategies, key=list(STRATEGIES).index)
  for name in dict.fromkeys(ordered):
    if name in done:
      continue
    try:
      done[name] = strategy_stage(
        name,
        setup,
        workdir,
        splits,
        done['source'],
        done.get('retrain'),
        settings,
        run,
        progress,
      )
    except divergence.StageDivergedError as error:
      # Without the reference nothing can be compared.
      if STRATEGIES[name].role == REFERENCE:
        raise
      failed[name] = str(error)
      progress.end(f'warning: {error}')
  return Run(values.seed + run, splits, done, failed)
