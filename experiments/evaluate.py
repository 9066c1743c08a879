"""Computes the numbers of a checkpoint again, from the checkpoint alone.

  python -m experiments.evaluate --checkpoint=WORKDIR/checkpoints/seed0-top_k-…

The manifest names the data set, the model and the parents; the source and the
retrained reference are found beside the checkpoint, or named by flags.
"""

import json
import pathlib
from typing import Any

from absl import flags as absl_flags

from experiments import flags, problem, stages
from unlearn_jax import checkpoints, data
from unlearn_jax.base import InputError, Splits
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
  splits = _splits(values, setup, path)
  facts = {name: setup.facts[name] for name in ('model', 'data_fingerprint')}
  own, _ = checkpoints.restore(path, **facts)
  source, reference = (
    checkpoints.restore(folder, **facts)[0] if folder else None
    for folder in parents(values, path, manifest)
  )
  if source is None:
    raise flags.FlagError(
      'source_dir', '', 'a checkpoint of the source; none is beside this one'
    )
  result = evaluate(setup.model, own, source, splits, reference)
  print(json.dumps(result._asdict(), indent=2))


def rebuild(
  values: Any, path: pathlib.Path, manifest: dict[str, Any]
) -> problem.Setup:
  """Data and model as the manifest names them."""
  try:
    dataset = data.load(
      manifest['dataset'], data_dir=values.data_dir, raw_dir=values.raw_dir
    )
    if manifest['train_subset'] is not None:
      dataset = data.subset(dataset, manifest['train_subset'])
    wanted = manifest['data_fingerprint']
    if dataset.fingerprint != wanted:
      raise InputError(
        f'{path} was made with data_fingerprint={wanted},'
        f' {manifest["dataset"]} now has {dataset.fingerprint}'
      )
    return problem.assemble(values, dataset, manifest)
  except KeyError as error:
    raise InputError(f'{path}: the manifest names no {error}') from error


def _splits(values: Any, setup: problem.Setup, path: pathlib.Path) -> Splits:
  file = values.forget_ids or path / stages.FORGET
  if values.forget_ids is None and not file.exists():
    raise flags.FlagError(
      'forget_ids', '', f'a file; no forget set belongs to {path}'
    )
  rows = data.read_ids(file, setup.dataset)
  return data.split_forget(None, setup.dataset, ids=rows)


def parents(
  values: Any, path: pathlib.Path, manifest: dict[str, Any]
) -> tuple[Any, Any]:
  """The folders of source and retrained model, None where there is none."""
  source, retrained = values.source_dir, values.retrained_dir
  for sibling in sorted(path.absolute().parent.iterdir()):
    try:
      other = checkpoints.read_manifest(sibling)
    except InputError:
      continue
    is_parent = other['state_sha256'] == manifest.get('parent_sha256')
    if source is None and (
      is_parent
      or (sibling == path.absolute() and manifest['strategy'] == 'source')
    ):
      source = sibling
    if (
      retrained is None
      and other.get('strategy') == 'retrain'
      and other.get('parent_sha256') == manifest.get('parent_sha256')
      and other.get('forget_sha256') == manifest.get('forget_sha256')
    ):
      retrained = sibling
  return source, retrained


if __name__ == '__main__':
  define()
  flags.run(main)
