"""A checkpoint and its relatives: source, Retrain, the source's twin."""

import dataclasses
import pathlib
from typing import Any

from experiments import config
from experiments.settings import FlagError
from experiments.study import planning
from experiments.study import setup as setups
from experiments.study.setup import Setup
from experiments.study.stages import Stage
from experiments.workdir import finished
from experiments.workdir.finished import Facts, Finished, Manifest
from unlearn_jax import models
from unlearn_jax.base import InputError, Splits, shown
from unlearn_jax.recipes import RECIPES

_FACTS = [field.name for field in dataclasses.fields(Facts)]


@dataclasses.dataclass(frozen=True, eq=False)
class Lineage:
  """A model with all that it is judged by."""

  # The configuration by which all of it was made, as far as known.
  study: config.Study
  setup: Setup  # data and model, as the manifest says
  splits: Splits  # its forget set
  own: Finished  # the model
  source: Finished  # M
  retrained: Finished | None  # M_RE, or None where there is none


def read(
  path: pathlib.Path,
  *,
  source_dir: str | None,
  retrained_dir: str | None,
  forget_ids: str | None,
  archives: config.Archives,
  generators: config.Generators,
) -> Lineage:
  """Reads a checkpoint and those beside it, or that flags name."""
  own = finished.load(path)
  said = own.manifest
  which = config.Data(said.dataset, said.train_subset)
  dataset = setups.load(which, archives)
  _require_facts(said, dataset, path)
  facts = Facts(**{name: getattr(said, name) for name in _FACTS})
  setup = setups.assemble(dataset, facts)
  setups.require_fits(setup, own.state, path)

  # What was to be forgotten.
  beside = path / finished.FORGET
  if beside.exists() == (forget_ids is not None):
    has = 'has its own' if beside.exists() else 'has none'
    allowed = 'nothing' if beside.exists() else 'a file'
    raise FlagError('forget_ids', forget_ids, f'{allowed}, {path} {has}')
  file = pathlib.Path(forget_ids) if forget_ids else beside
  splits = setups.read_forget(setup, file)
  forgets = setups.forget_hash(setup, splits)

  # Who is related: the source by its digest, Retrain by source and forget set.
  origin = said.parent_sha256 or said.state_sha256
  source = _relative(
    setup, path, source_dir, 'source_dir', 'source', {'state_sha256': origin}
  )
  if source is None:
    raise FlagError(
      'source_dir', '', 'a checkpoint of the source; none is beside this one'
    )
  wanted = {'forget_sha256': forgets}
  if retrained_dir is None:
    wanted['parent_sha256'] = origin
    if said.strategy == 'retrain':
      wanted['state_sha256'] = said.state_sha256
  retrained = _relative(
    setup, path, retrained_dir, 'retrained_dir', 'retrain', wanted
  )
  if retrained is not None and source.manifest.recipe is not None:
    planning.require_recipe(
      retrained.manifest, source.manifest.recipe, str(retrained.path)
    )
  study = config.Study(
    data=which,
    network=config.Network(said.model, said.width, said.dtype),
    training=_training(source.manifest),
    forget=config.Forget(forget_ids=str(file)),
    draws=config.Seeds(
      source_seed=source.manifest.seed or 0, unlearn_seed=said.seed or 0
    ),
    seeds=1,
    generators=generators,
    archives=archives,
  )
  return Lineage(study, setup, splits, own, source, retrained)


def _require_facts(said: Manifest, dataset: Any, path: pathlib.Path) -> None:
  """Refuses a manifest of other data, or of a model that there cannot be."""
  if dataset.fingerprint != said.data_fingerprint:
    raise InputError(
      f'{path} was made with data_fingerprint={shown(said.data_fingerprint)},'
      f' {shown(said.dataset)} now has {dataset.fingerprint}'
    )
  channels = dataset.image_shape[-1]
  numbers = [*said.pixel_mean, *said.pixel_std]
  for name, holds in {
    'model': said.model in models.FAMILIES,
    'width': 1 <= said.width <= 2**20,
    'dtype': said.dtype in models.DTYPES,
    'num_classes': said.num_classes == len(dataset.class_names),
    'image_shape': said.image_shape == list(dataset.image_shape),
    'pixel_mean': len(said.pixel_mean) == channels,
    'pixel_std': len(said.pixel_std) == channels
    and all(abs(x) < 1e30 for x in numbers),
  }.items():
    if not holds:
      raise InputError(
        f'{path}: {name} is {shown(getattr(said, name))}, allowed: that of a'
        f' model of {shown(dataset.name)}'
      )


def _relative(
  setup: Setup,
  path: pathlib.Path,
  directory: str | None,
  flag: str,
  strategy: str,
  wanted: dict[str, str],
) -> Finished | None:
  """A model of this strategy that a flag names, or that is beside `path`."""
  facts = ('model', 'width', 'num_classes', 'data_fingerprint')
  expected: dict[str, Any] = {n: getattr(setup.facts, n) for n in facts}
  expected |= {'strategy': strategy, **wanted}
  if directory is not None:
    found = pathlib.Path(directory)
    finished.require(found, **expected)
  else:
    beside = _beside(path, expected, flag)
    if beside is None:
      return None
    found = beside
  model = finished.load(found)
  setups.require_fits(setup, model.state, found)
  return model


def _beside(
  path: pathlib.Path, expected: dict[str, Any], flag: str
) -> pathlib.Path | None:
  """The one folder next to `path` whose manifest says what is expected."""
  found = [
    folder
    for folder, said in _siblings(path)
    if all(getattr(said, name) == value for name, value in expected.items())
  ]
  # Retrained with several seeds or recipes: the checkpoint's own seed decides.
  if len(found) > 1:
    seed = finished.manifest(path).seed
    found = [f for f in found if finished.manifest(f).seed == seed]
  if len(found) > 1:
    raise FlagError(flag, '', f'one of {", ".join(f.name for f in found)}')
  return found[0] if found else None


def _siblings(path: pathlib.Path) -> list[tuple[pathlib.Path, Manifest]]:
  """The checkpoints in the same folder."""
  found = []
  for folder in sorted(path.absolute().parent.iterdir()):
    try:
      found.append((folder, finished.manifest(folder)))
    except InputError:
      continue
  return found


def _training(said: Manifest) -> config.Training:
  """By which the source was trained."""
  recipe = said.recipe
  if recipe is None:
    return config.Training()
  names = {row.optimizer.__name__: name for name, row in RECIPES.items()}
  if recipe.optimizer not in names:
    raise InputError(
      f'the source was trained by {shown(recipe.optimizer)}, allowed:'
      f' {", ".join(names)}'
    )
  return config.Training(
    names[recipe.optimizer],
    recipe.epochs,
    recipe.learning_rate,
    recipe.augment,
    recipe.batch_size,
  )


def stage_of(model: Finished, name: str) -> Stage:
  """A model that is there, as a parent of stages."""
  depends = {'given': model.manifest.state_sha256}
  return Stage(model.path.parent, name, name, depends, None, given=model.path)


def twin(lineage: Lineage, null_dir: str | None, root: pathlib.Path) -> Stage:
  """M′, which learned the same data with another seed and forgot nothing."""
  source, setup = lineage.source, lineage.setup
  own = source.manifest
  if null_dir is not None:
    found = _relative(setup, source.path, null_dir, 'null_dir', 'source', {})
    assert found is not None
    if found.manifest.state_sha256 == own.state_sha256:
      raise FlagError('null_dir', null_dir, 'not the source itself')
    if own.recipe is not None:
      planning.require_recipe(found.manifest, own.recipe, null_dir)
    return stage_of(found, 'null')
  for folder, said in _siblings(source.path):
    other = said.seed not in (None, own.seed)
    if said.strategy == 'source' and said.recipe == own.recipe and other:
      if said.data_fingerprint == own.data_fingerprint:
        same = (said.model, said.width, said.dtype)
        if same == (own.model, own.width, own.dtype):
          return stage_of(finished.load(folder), 'null')
  if own.recipe is None:
    raise FlagError(
      'null_dir', '', "a checkpoint; the source's manifest names no recipe"
    )
  placed = setups.set_up(lineage.study)
  for name in ('pixel_mean', 'pixel_std'):
    if getattr(placed.facts, name) != getattr(setup.facts, name):
      raise InputError(
        f'{source.path}: {name} is not that of its data, so that M′ cannot be'
        ' trained; allowed: --null_dir'
      )
  return planning.Planner(lineage.study, placed, root).source(1)
