"""A checkpoint and its relatives: source, Retrain, the source's twin."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from unlearn_jax.base import InputError, Splits
from .. import config
from ..settings import FlagError
from ..workdir import finished
from ..workdir.finished import Finished, Manifest
from . import planning, stages
from . import setup as setups
from .setup import Setup
from .stages import Stage


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
  references: list[Finished]  # more like it, beside the model


def read(
  path: pathlib.Path,
  asked: config.Study,
  ids: str | None,
  code: str | None = None,
) -> Lineage:
  """Reads a checkpoint and those beside it, or that flags name.

  Args:
    path: of the checkpoint, whose manifest says data and model.
    asked: all else, such as the folders of the source and of Retrain.
    ids: file of the forget set, where none lies beside the checkpoint.
    code: of a model of one's own, as `--model` spells it.
  """
  said = finished.manifest(path)
  which = setups.data_of(said)
  dataset = setups.load(which, asked.archives)
  finished.require(path, data_fingerprint=dataset.fingerprint)
  setup = setups.of_manifest(path, dataset, code)
  own = setups.load_model(setup, path)
  file, splits = _forgotten(setup, path, said, ids)
  # M, by the digest that the model names; a source is its own.
  its = {'state_sha256': said.parent_sha256 or said.state_sha256}
  # A second request's source is the model of the first, whatever made it.
  if said.parent_sha256 is None or not (path / finished.TRAINED).exists():
    its['strategy'] = 'source'
  source = _relative(setup, path, asked, 'source_dir', **its)
  if source is None:
    allowed = 'a checkpoint of the source; none is beside this one'
    raise FlagError('source_dir', '', allowed)
  setups.require_known(setup, splits, source.path)
  alike: dict[str, Any] = {
    'parent_sha256': source.manifest.state_sha256,
    'heldout': said.heldout,
    'forget_sha256': setups.forget_hash(setup, splits),
  }
  # M_RE: of this forget set where a flag names it, else alike in all.
  wanted = {**alike, 'strategy': 'retrain'}
  if asked.retrained_dir is not None:
    del wanted['parent_sha256'], wanted['heldout']
  elif said.strategy == 'retrain':  # It is its own.
    wanted['state_sha256'] = said.state_sha256
  retrained = _relative(setup, path, asked, 'retrained_dir', **wanted)
  if retrained is not None:
    both = retrained.manifest, source.manifest.recipe
    planning.require_recipe(*both, str(retrained.path))
  references = [
    setups.load_model(setup, folder)
    for folder, its in _beside(
      setup, path, strategy=finished.REFERENCE, **alike
    ).items()
    if its.state_sha256 != said.state_sha256  # None is judged by itself.
  ]
  first, second = source.manifest.seed or 0, said.seed or 0
  study = dataclasses.replace(
    asked,
    data=which,
    network=setups.network_of(said, code),
    forget=config.Forget(f'ids({file})'),
    draws=config.Seeds(source_seed=first, unlearn_seed=second),
    seeds=1,
    heldout=said.heldout,
  )
  return Lineage(study, setup, splits, own, source, retrained, references)


def _forgotten(
  setup: Setup, path: pathlib.Path, said: Manifest, ids: str | None
) -> tuple[pathlib.Path, Splits]:
  """What was to be forgotten: the file that lists it, and the splits."""
  beside = path / finished.FORGET
  if beside.exists() == (ids is not None):
    has = 'has its own' if beside.exists() else 'has none'
    allowed = 'nothing' if beside.exists() else 'a file'
    raise FlagError('forget_ids', ids, f'{allowed}, {path} {has}')
  file = pathlib.Path(ids) if ids else beside
  # Without one beside it, nothing says how the forget set came about.
  matched = said.class_matched or ids is not None
  how = said.given_labels, matched, said.heldout
  return file, _known(setup, setups.read_forget(setup, file, *how), path)


def _known(setup: Setup, splits: Splits, path: pathlib.Path) -> Splits:
  """The same without what a model, where it says so, never knew.

  What an earlier request forgot is not retained by the model of a later one.
  """
  if not (file := path / finished.TRAINED).exists():
    return splits
  names = file.read_bytes().decode().split('\n')
  rows = np.flatnonzero(np.isin(setup.dataset.ids.astype(str), names))
  every = np.union1d(rows, splits.forget.indices)
  parts = (splits.train, every), (splits.retain, rows)
  train, retain = (
    part.take(np.flatnonzero(np.isin(part.indices, own))) for part, own in parts
  )
  return splits._replace(train=train, retain=retain)


def _relative(
  setup: Setup,
  path: pathlib.Path,
  asked: config.Study,
  flag: str,
  **expected: Any,
) -> Finished | None:
  """A model that a flag names, or the one beside `path` that is as expected."""
  named = getattr(asked, flag)
  if named is not None:
    return setups.load_model(setup, pathlib.Path(named), **expected)
  found = _beside(setup, path, **expected)
  # Retrained with several seeds or recipes: the checkpoint's own seed decides.
  if len(found) > 1:
    seed = finished.manifest(path).seed
    found = {own: said for own, said in found.items() if said.seed == seed}
  if len(found) > 1:
    raise FlagError(flag, '', f'one of {", ".join(own.name for own in found)}')
  return next((setups.load_model(setup, own) for own in found), None)


def _beside(
  setup: Setup, path: pathlib.Path, **expected: Any
) -> dict[pathlib.Path, Manifest]:
  """The checkpoints in the same folder whose manifests say what is expected."""
  expected |= {name: getattr(setup.facts, name) for name in setups.COMMON}
  found = {}
  for folder in sorted(path.absolute().parent.iterdir()):
    try:
      said = finished.manifest(folder)
    except InputError:
      continue
    if all(getattr(said, name) == value for name, value in expected.items()):
      found[folder] = said
  return found


def twin(lineage: Lineage, null_dir: str | None) -> Stage:
  """M′, which learned the same data with another seed and forgot nothing."""
  source, setup = lineage.source, lineage.setup
  own = source.manifest
  if null_dir is not None:
    path = pathlib.Path(null_dir)
    model = setups.load_model(setup, path, strategy='source')
    if model.manifest.state_sha256 == own.state_sha256:
      raise FlagError('null_dir', null_dir, 'not the source itself')
    planning.require_recipe(model.manifest, own.recipe, null_dir)
    return stages.given(model, 'null')
  alike = {'strategy': 'source', 'recipe': own.recipe, 'dtype': own.dtype}
  for path, said in _beside(setup, source.path, **alike).items():
    if said.seed not in (None, own.seed):
      return stages.given(setups.load_model(setup, path), 'null')
  allowed = 'a source of another seed, as experiments.train makes them'
  raise FlagError('null_dir', '', allowed)
