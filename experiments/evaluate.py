"""Computes the numbers of a checkpoint again, from the checkpoint alone.

  python -m experiments.evaluate --checkpoint=WORKDIR/checkpoints/seed0-top_k-…

prints JSON, `{"forget_accuracy": …, "gap_to_retrained": …}`, after one pass
over the data. The manifest names data set, model and parents; the source and
the retrained reference are found beside the checkpoint, or named by flags.
"""

import json
import pathlib
from typing import Any

from absl import flags as absl_flags

from experiments import binary, flags, problem, stages
from unlearn_jax import checkpoints, data, models
from unlearn_jax.base import (
  Dataset,
  InputError,
  ModelState,
  Splits,
  shown,
)
from unlearn_jax.evaluation import evaluate


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_string('checkpoint', None, 'The model to evaluate.')
  absl_flags.DEFINE_string('source_dir', None, 'M, if not beside it.')
  absl_flags.DEFINE_string('retrained_dir', None, 'M_RE, if not beside it.')
  absl_flags.DEFINE_string('forget_ids', None, 'D_UL, if not beside it.')
  absl_flags.DEFINE_string('data_dir', None, 'TFDS directory.')
  absl_flags.DEFINE_string('raw_dir', None, 'Archives downloaded by hand.')


def main() -> None:
  """From a checkpoint to its numbers, as JSON on stdout."""
  values = absl_flags.FLAGS
  if values.checkpoint is None:
    raise flags.FlagError('checkpoint', '', 'a folder with a manifest.json')
  path = pathlib.Path(values.checkpoint)
  manifest = checkpoints.read_manifest(path)
  setup = rebuild(values, path, manifest)
  splits = splits_of(values, setup, path)
  own, _ = checkpoints.restore(path, **_facts(manifest))
  problem.require_fits(setup, own, path)
  forgets = problem.forget_hash(setup, splits)
  source, reference = parents(values, setup, path, forgets)
  result = evaluate(setup.model, own, source, splits, reference)
  print(json.dumps(result._asdict(), indent=2))


def rebuild(
  values: Any, path: pathlib.Path, manifest: dict[str, Any]
) -> problem.Setup:
  """Data and model as the manifest names them."""
  try:
    dataset = problem.load(manifest['dataset'], values)
    if manifest['train_subset'] is not None:
      dataset = problem.subset(dataset, manifest['train_subset'])
    wanted = manifest['data_fingerprint']
    if dataset.fingerprint != wanted:
      raise InputError(
        f'{path} was made with data_fingerprint={wanted},'
        f' {manifest["dataset"]} now has {dataset.fingerprint}'
      )
    _require_model(manifest, dataset, path)
    return problem.assemble(values, dataset, manifest)
  except KeyError as error:
    raise InputError(f'{path}: the manifest names no {error}') from error


def _require_model(
  manifest: dict[str, Any], dataset: Dataset, path: pathlib.Path
) -> None:
  """Refuses a manifest that names a model that there cannot be."""
  channels = dataset.image_shape[-1]
  numbers = [*manifest['pixel_mean'], *manifest['pixel_std']]
  for name, holds in {
    'model': manifest['model'] in models.FAMILIES,
    'width': 1 <= manifest['width'] <= 2**20,
    'dtype': manifest.get('dtype', 'float32') in models.DTYPES,
    'num_classes': manifest['num_classes'] == len(dataset.class_names),
    'image_shape': manifest['image_shape'] == list(dataset.image_shape),
    'pixel_mean': len(manifest['pixel_mean']) == channels,
    'pixel_std': len(manifest['pixel_std']) == channels
    and all(isinstance(x, int | float) and abs(x) < 1e30 for x in numbers),
  }.items():
    if not holds:
      raise InputError(
        f'{path}: {name} is {shown(manifest.get(name))}, allowed: that of a'
        f' model of {dataset.name}'
      )


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
  names = ('model', 'width', 'num_classes', 'data_fingerprint')
  return {name: manifest[name] for name in names}


def splits_of(values: Any, setup: problem.Setup, path: pathlib.Path) -> Splits:
  """D and its parts, by the forget set beside the checkpoint or named."""
  file = path / stages.FORGET
  if file.exists() == (values.forget_ids is not None):
    has = 'has its own' if file.exists() else 'has none'
    allowed = 'nothing' if file.exists() else 'a file'
    raise flags.FlagError(
      'forget_ids', values.forget_ids, f'{allowed}, {path} {has}'
    )
  rows = data.read_ids(values.forget_ids or file, setup.dataset)
  return data.split_forget(None, setup.dataset, ids=rows)


def parents(
  values: Any, setup: problem.Setup, path: pathlib.Path, forgets: str
) -> tuple[ModelState, ModelState | None]:
  """Source and retrained model: named by flags, or beside the checkpoint."""
  manifest = checkpoints.read_manifest(path)
  origin = manifest.get('parent_sha256') or manifest['state_sha256']
  facts = _facts(manifest)
  source = {**facts, 'strategy': 'source', 'state_sha256': origin}
  retrain = {**facts, 'strategy': 'retrain', 'forget_sha256': forgets}
  source_dir = values.source_dir or find_beside(path, source, 'source_dir')
  if source_dir is None:
    raise flags.FlagError(
      'source_dir', '', 'a checkpoint of the source; none is beside this one'
    )
  beside = {**retrain, 'parent_sha256': origin}
  if manifest.get('strategy') == 'retrain':
    beside['state_sha256'] = manifest['state_sha256']
  retrained_dir = values.retrained_dir or find_beside(
    path, beside, 'retrained_dir'
  )
  state, own = checkpoints.restore(source_dir, **source)
  problem.require_fits(setup, state, source_dir)
  if retrained_dir is None:
    return state, None
  reference, its = checkpoints.restore(retrained_dir, **retrain)
  problem.require_fits(setup, reference, retrained_dir)
  problem.require_recipe(
    its.get('settings') or {}, own.get('settings') or {}, retrained_dir
  )
  return state, reference


def find_beside(
  path: pathlib.Path, expected: dict[str, Any], flag: str
) -> pathlib.Path | None:
  """The one folder next to `path` whose manifest says what is expected."""
  found = []
  for sibling in sorted(path.absolute().parent.iterdir()):
    try:
      manifest = checkpoints.read_manifest(sibling)
    except InputError:
      continue
    if all(manifest.get(name) == value for name, value in expected.items()):
      found.append(sibling)
  # Retrained with several seeds or recipes: the checkpoint's own seed decides.
  if len(found) > 1:
    seed = _unlearn_seed(path)
    found = [folder for folder in found if _unlearn_seed(folder) == seed]
  if len(found) > 1:
    names = ', '.join(folder.name for folder in found)
    raise flags.FlagError(flag, '', f'one of {names}')
  return found[0] if found else None


def _unlearn_seed(path: pathlib.Path) -> int | None:
  config = checkpoints.read_manifest(path).get('config') or {}
  return config.get('unlearn_seed')


if __name__ == '__main__':
  define()
  flags.define_processes()
  binary.run(main)
