"""From flags to finished stages: what `unlearn` and `train` have in common."""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import flags, stages
from experiments.progress import Progress
from unlearn_jax import checkpoints, data, models, training
from unlearn_jax.base import (
  Dataset,
  InputError,
  Model,
  ModelState,
  Splits,
  tensor_paths,
)
from unlearn_jax.data import images
from unlearn_jax.evaluation import Predictions, predict_splits
from unlearn_jax.strategies import STRATEGIES, Settings, Strategy
from unlearn_jax.unlearning import Unlearning, unlearn


@dataclasses.dataclass(frozen=True)
class Setup:
  """Data and model, the same for every run of one command.

  Attributes:
    values: the parsed flags.
    dataset: on the host.
    model: the classifier, with the data set's pixel statistics inside.
    facts: what every manifest says of the two.
    parameters: how many scalars the model has.
    tensor_sizes: scalars per tensor, in definition order.
  """

  values: Any
  dataset: Dataset
  model: Model
  facts: dict[str, Any]
  parameters: int
  tensor_sizes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Run:
  """One seed: its forget set and its finished stages by strategy.

  `stages` holds 'source' and whichever strategies were asked for.
  """

  seed: int
  splits: Splits
  stages: dict[str, stages.Stage]


def set_up(values: Any) -> Setup:
  """Loads the data and builds the model that the flags name."""
  try:
    dataset = data.load(
      values.dataset, data_dir=values.data_dir, raw_dir=values.raw_dir
    )
  except InputError as error:
    raise InputError(f'--dataset={values.dataset}: {error}') from error
  if values.train_subset is not None:
    if values.train_subset > dataset.train.size:
      raise flags.FlagError(
        'train_subset', values.train_subset, f'1 to {dataset.train.size}'
      )
    dataset = data.subset(dataset, values.train_subset)
  mean, std = images.pixel_statistics(dataset.train)
  return assemble(
    values,
    dataset,
    {
      'model': values.model,
      'width': values.width or models.FAMILIES[values.model].width,
      'num_classes': len(dataset.class_names),
      'image_shape': list(dataset.image_shape),
      'pixel_mean': [float(x) for x in mean],
      'pixel_std': [float(x) for x in std],
      'dataset': values.dataset,
      'train_subset': values.train_subset,
      'data_fingerprint': dataset.fingerprint,
    },
  )


def assemble(values: Any, dataset: Dataset, facts: dict[str, Any]) -> Setup:
  """The `Setup` of a model that `facts` describe."""
  try:
    model = models.build(
      facts['model'],
      facts['num_classes'],
      facts['image_shape'],
      width=facts['width'],
      mean=facts['pixel_mean'],
      std=facts['pixel_std'],
    )
  except ValueError as error:
    raise InputError(f'{facts["dataset"]}: {error}') from error
  assert model.init is not None
  shapes = jax.eval_shape(model.init, jax.random.key(0)).params
  leaves = dict(zip(tensor_paths(shapes), jax.tree.leaves(shapes)))
  sizes = {path: int(leaves[path].size) for path in model.order}
  return Setup(values, dataset, model, facts, sum(sizes.values()), sizes)


def identity(setup: Setup) -> dict[str, Any]:
  """What a work directory belongs to."""
  names = ('dataset', 'train_subset', 'data_fingerprint', 'model', 'width')
  return {name: setup.facts[name] for name in names}


def seed_of(values: Any, what: str, run: int) -> int:
  """The seed of one purpose (split, source, unlearn) in run number `run`."""
  own = getattr(values, f'{what}_seed')
  return (values.seed if own is None else own) + run


def draw(setup: Setup, run: int) -> Splits:
  """The forget set of run number `run`."""
  values, dataset = setup.values, setup.dataset
  if values.forget_ids is not None:
    try:
      rows = data.read_ids(values.forget_ids, dataset)
      return data.split_forget(None, dataset, ids=rows)
    except InputError as error:
      raise InputError(f'--forget_ids={values.forget_ids}: {error}') from error
  total = dataset.train.size
  if not 0 < round(values.forget_fraction * total) < total:
    raise flags.FlagError(
      'forget_fraction',
      values.forget_fraction,
      f'a share that comes to 1 to {total - 1} of {total} training images',
    )
  split_key = jax.random.key(seed_of(values, 'split', run))
  return data.split_forget(split_key, dataset, values.forget_fraction)


def check_sizes(setup: Setup, splits: Splits) -> None:
  """What can only be checked once data and model are known."""
  values = setup.values
  if values.batch_size > splits.retain.size:
    raise flags.FlagError(
      'batch_size',
      values.batch_size,
      f'at most the {splits.retain.size} retained examples',
    )


def check_against_model(setup: Setup, settings: Settings) -> None:
  """K against the parameters that the model really has."""
  tensors = len(setup.tensor_sizes)
  most = tensors if settings.granularity == 'leaf' else setup.parameters
  unit = 'tensors' if settings.granularity == 'leaf' else 'parameters'
  if isinstance(settings.k, int) and settings.k > most:
    raise flags.FlagError('k', settings.k, f'1 to {most}, the {unit}')
  if settings.last_k > tensors:
    raise flags.FlagError(
      'last_k', settings.last_k, f'1 to {tensors}, the tensors'
    )
  chosen = settings.k if isinstance(settings.k, int) else 0
  random = round(settings.ratio * setup.parameters)
  if 'random_top_k' in setup.values.strategies and (
    settings.granularity == 'scalar' and chosen > random
  ):
    raise flags.FlagError(
      'ratio',
      settings.ratio,
      f'shares of at least K = {chosen} of {setup.parameters} parameters',
    )


def forget_ids(setup: Setup, splits: Splits) -> list[str]:
  """Identifiers of the forget set, in the order of its indices."""
  return [str(i) for i in setup.dataset.ids[np.asarray(splits.forget.indices)]]


def forget_hash(setup: Setup, splits: Splits) -> str:
  """Hex SHA-256 of the identifiers of the forget set."""
  text = '\n'.join(forget_ids(setup, splits))
  return hashlib.sha256(text.encode()).hexdigest()


def recipe(values: Any) -> dict[str, Any]:
  """How source and Retrain are trained."""
  return {
    'optimizer': 'adam',
    'epochs': values.train_epochs,
    'learning_rate': values.train_learning_rate,
    'batch_size': values.batch_size,
    'augment': values.augment,
  }


def source_stage(
  setup: Setup,
  workdir: stages.Workdir,
  splits: Splits,
  run: int,
  progress: Progress,
) -> stages.Stage:
  """Trains M on D, or restores it."""
  values = setup.values
  seed = seed_of(values, 'source', run)
  # The pixel statistics follow from the data; their last bit may not.
  known = {k: v for k, v in setup.facts.items() if 'pixel_' not in k}
  config = {**known, 'recipe': recipe(values), 'source_seed': seed}
  title = f'seed {values.seed + run} · source'

  def compute() -> tuple[ModelState, dict[str, Any], Predictions]:
    progress.begin(title, values.train_epochs)
    fit = training.train(
      jax.random.key(seed),
      setup.model,
      splits.train,
      epochs=values.train_epochs,
      batch_size=values.batch_size,
      optimizer=training.adam(values.train_learning_rate),
      augment=images.augment if values.augment else None,
      on_epoch=progress.epoch,
    )
    predictions = _by_row(setup, fit.state, splits)
    record = {
      'history': [_plain(epoch) for epoch in fit.history],
      'seconds': fit.history[-1].seconds,
      'compile_seconds': fit.compile_seconds,
    }
    progress.end(f'{fit.history[-1].seconds:.1f} s')
    return fit.state, record, predictions

  name = f'seed{values.seed + run}-source'
  if workdir.folder(name, config).exists():
    progress.skip(title, values.train_epochs, 'done before')
  manifest = {
    **setup.facts,
    'strategy': 'source',
    'settings': recipe(values),
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
  setup: Setup, directory: str, flag: str, splits: Splits, **expected: Any
) -> stages.Stage:
  """A checkpoint that a flag names, refused if it does not fit."""
  names = ('model', 'width', 'num_classes', 'data_fingerprint')
  wanted = {**{name: setup.facts[name] for name in names}, **expected}
  path = pathlib.Path(directory)
  try:
    state, manifest = checkpoints.restore(path, **wanted)
    if (path / stages.RECORD).exists():
      return stages.load(path)
  except InputError as error:
    raise InputError(f'--{flag}={directory}: {error}') from error
  # Made by a program of the user's own: there is nothing but the model.
  of_source = manifest.get('forget_sha256') is None
  predict = _by_row if of_source else _by_split
  record = {'history': [], 'seconds': 0.0, 'compile_seconds': 0.0}
  return stages.Stage(
    path, state, manifest, record, predict(setup, state, splits), True
  )


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
  seed = seed_of(values, 'unlearn', run)
  settings = effective(settings, row, values)
  forgets = forget_hash(setup, splits)
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

  def compute() -> tuple[ModelState, dict[str, Any], Predictions]:
    progress.begin(title, settings.epochs)
    result = unlearn(
      jax.random.fold_in(jax.random.key(seed), list(STRATEGIES).index(name)),
      setup.model,
      source.state,
      splits,
      name,
      settings,
      retrained=retrained.state if retrained else None,
      augment=images.augment if values.augment else None,
      on_epoch=progress.epoch,
    )
    record = _record(result)
    progress.end(_summary(record, row))
    predictions = predict_splits(setup.model, result.state, splits)
    return result.state, record, predictions

  folder = f'seed{values.seed + run}-{name}'
  if workdir.folder(folder, config).exists():
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
    forget_ids(setup, splits),
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
  names += ['stop_js_change', 'stop_retain_share']
  if row.guided:
    names += ['js_weight', 'js_teacher']
  if row.choose is not None:
    names += ['train_mask']
  chosen = {name: getattr(settings, name) for name in names}
  return {**chosen, 'augment': values.augment}


def _record(result: Unlearning) -> dict[str, Any]:
  return {
    'history': [_plain(epoch) for epoch in result.history],
    'seconds': result.seconds,
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
    f'{record["seconds"]:.1f} s',
  ]
  if record['stop_epoch'] is None:
    parts.append('stop rule not met')
  if row.change is not None and row.stops:
    changed = sum(record['by_tensor'].values())
    bits = record['perturbation_js']
    parts.insert(0, f'{changed:,} scalars changed, outputs by {bits:.4f} bits')
  return ', '.join(parts)


def runs(setup: Setup, workdir: stages.Workdir) -> list[Run]:
  """Every stage of every seed, computed or restored."""
  values, settings = setup.values, flags.settings(setup.values)
  check_against_model(setup, settings)
  drawn = [draw(setup, run) for run in range(values.seeds)]
  check_sizes(setup, drawn[0])
  external = [_external_stages(setup, splits) for splits in drawn]
  workdir.claim()
  for line in describe(setup, drawn):
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
      setup, values.source_dir, 'source_dir', splits
    )
  if values.retrained_dir is not None:
    given['retrain'] = external_stage(
      setup,
      values.retrained_dir,
      'retrained_dir',
      splits,
      forget_sha256=forget_hash(setup, splits),
    )
  return given


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
  for name, stage in external.items():
    progress.skip(name, values.train_epochs, f'from {stage.path}')
  if 'source' not in done:
    done['source'] = source_stage(setup, workdir, splits, run, progress)
  # Retrain first: the others may take it as their teacher.
  ordered = sorted(values.strategies, key=list(STRATEGIES).index)
  for name in dict.fromkeys(ordered):
    if name in done:
      continue
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
  return Run(values.seed + run, splits, done)


def describe(setup: Setup, drawn: Sequence[Splits]) -> list[str]:
  """What was loaded and drawn, and a warning where a class is forgotten."""
  dataset, splits = setup.dataset, drawn[0]
  height, width, channels = dataset.image_shape
  lines = [
    f'{dataset.name}: {dataset.train.size:,} training and'
    f' {dataset.test.size:,} test images of {height}×{width}×{channels},'
    f' {len(dataset.class_names)} classes',
    f'{setup.facts["model"]}, width {setup.facts["width"]}:'
    f' {setup.parameters:,} parameters in {len(setup.tensor_sizes)} tensors',
    f'forgetting {splits.forget.size:,} of {splits.train.size:,} images in'
    f' each of {len(drawn)} run(s)',
  ]
  for lost in data.classes_lost(splits, len(dataset.class_names)):
    lines.append(
      f'warning: class {dataset.class_names[lost]!r} has no retained example'
    )
  return lines
