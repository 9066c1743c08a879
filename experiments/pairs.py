"""Two checkpoints to be told apart, and all that belongs to them."""

import dataclasses
import pathlib
import types
from typing import Any

from experiments import (
  evaluate,
  flags,
  generator_flags,
  pipeline,
  problem,
  stages,
)
from experiments.progress import Progress
from unlearn_jax import checkpoints, parallel
from unlearn_jax.base import InputError, ModelState, Splits, shown
from unlearn_jax.degree import require_measurable
from unlearn_jax.recipes import RECIPES
from unlearn_jax.spd_gan import GeneratorSettings

# What two checkpoints must have in common to be compared.
_COMMON = (
  *('dataset', 'data_fingerprint', 'num_classes', 'image_shape'),
  *('model', 'width', 'dtype'),
)


@dataclasses.dataclass(frozen=True)
class Case:
  """What is to be measured, read and checked, nothing written yet.

  Attributes:
    setup: data and model.
    splits: D_UL, D_RE and test.
    source: M.
    unlearned: M_UL.
    retrained: M_RE; `unlearned` itself if that is what it is; or None.
    null: M', or None where it is to be trained.
    manifests: of these, by name.
    paths: where each was found, by name.
  """

  setup: problem.Setup
  splits: Splits
  source: ModelState
  unlearned: ModelState
  retrained: ModelState | None
  null: ModelState | None
  manifests: dict[str, dict[str, Any]]
  paths: dict[str, pathlib.Path]


def read(values: Any) -> Case:
  """Reads and checks all that the flags name.

  Raises:
    FlagError: a flag that is missing or does not fit.
    InputError: checkpoints that do not fit each other, or data that cannot
      be measured.
  """
  paths = {}
  for name in ('source', 'unlearned'):
    if getattr(values, name) is None:
      raise flags.FlagError(name, '', 'a folder with a manifest.json')
    paths[name] = pathlib.Path(getattr(values, name))
  manifests = {n: checkpoints.read_manifest(p) for n, p in paths.items()}
  _require_common(manifests, paths)
  _require_parent(manifests, paths)
  setup = evaluate.rebuild(values, paths['source'], manifests['source'])
  facts = {
    name: manifests['source'][name]
    for name in (*_COMMON, 'pixel_mean', 'pixel_std', 'train_subset')
    if name in manifests['source']
  }
  facts.setdefault('dtype', 'float32')
  setup = dataclasses.replace(setup, facts=facts)
  splits = evaluate.splits_of(values, setup, paths['unlearned'])
  generator_flags.require_two_batches(values, generator_flags.NAMES, splits)
  source, _ = checkpoints.restore(paths['source'])
  unlearned, _ = checkpoints.restore(paths['unlearned'])
  problem.require_fits(setup, source, paths['source'])
  problem.require_fits(setup, unlearned, paths['unlearned'])
  paths |= _others(values, setup, splits, paths, manifests)
  states: dict[str, Any] = {}
  for name in ('retrained', 'null'):
    states[name] = unlearned if name in paths else None
    if name in paths and paths[name] != paths['unlearned']:
      states[name], manifests[name] = checkpoints.restore(paths[name])
      _require_common(manifests, paths)
      problem.require_fits(setup, states[name], paths[name])
      own, its = (manifests[n].get('settings') or {} for n in (name, 'source'))
      problem.require_recipe(own, its, paths[name])
  return Case(
    setup, splits, source, unlearned, **states, manifests=manifests, paths=paths
  )


def require_source(case: Case, settings: GeneratorSettings) -> None:
  """Computes whether there is anything to be measured.

  Raises:
    InputError: the source is no better than chance, say.
  """
  try:
    require_measurable(case.setup.model, case.source, case.splits, settings)
  except InputError as error:
    raise InputError(f'--source={case.paths["source"]}: {error}') from error


def _require_common(
  manifests: dict[str, dict[str, Any]], paths: dict[str, pathlib.Path]
) -> None:
  first = manifests['source']
  for other, manifest in manifests.items():
    for name in _COMMON:
      default = 'float32' if name == 'dtype' else None
      own, its = (m.get(name, default) for m in (first, manifest))
      if own != its:
        raise InputError(
          f'{paths["source"]} was made with {name}={own}, {paths[other]} with'
          f' {its}; allowed: checkpoints of one data set and one model'
        )


def _require_parent(
  manifests: dict[str, dict[str, Any]], paths: dict[str, pathlib.Path]
) -> None:
  """Refuses a model that was unlearned from another source.

  Retrain is nobody's child: it owes nothing to the source's parameters.
  """
  own = manifests['unlearned']
  parent, digest = own.get('parent_sha256'), manifests['source']['state_sha256']
  if own.get('strategy') != 'retrain' and parent not in (None, digest):
    raise InputError(
      f'--unlearned={paths["unlearned"]} was made with parent_sha256={parent},'
      f' --source={paths["source"]} is {digest}; allowed: its own source'
    )


def _others(
  values: Any,
  setup: problem.Setup,
  splits: Splits,
  paths: dict[str, pathlib.Path],
  manifests: dict[str, dict[str, Any]],
) -> dict[str, pathlib.Path]:
  """Where M_RE and M' are, as far as there are any."""
  found, digest = {}, manifests['source']['state_sha256']
  forgets = problem.forget_hash(setup, splits)
  wanted: dict[str, Any] = {'strategy': 'retrain', 'forget_sha256': forgets}
  if values.retrained_dir is not None:
    found['retrained'] = pathlib.Path(values.retrained_dir)
    checkpoints.restore(found['retrained'], **wanted)
  elif manifests['unlearned'].get('strategy') == 'retrain':
    found['retrained'] = paths['unlearned']
  else:
    wanted |= {'parent_sha256': digest}
    beside = evaluate.find_beside(paths['unlearned'], wanted, 'retrained_dir')
    found |= {'retrained': beside} if beside else {}
  if values.null_dir is not None:
    found['null'] = pathlib.Path(values.null_dir)
    null = checkpoints.read_manifest(found['null'])
    if null['state_sha256'] == digest:
      raise flags.FlagError(
        'null_dir', values.null_dir, 'not the source itself'
      )
    if null.get('strategy', 'source') != 'source':
      allowed = f'a source model; this is {null["strategy"]}'
      raise flags.FlagError('null_dir', values.null_dir, allowed)
  elif twin := _twin(paths['source'], manifests['source']):
    found['null'] = twin
  elif 'source_seed' not in (manifests['source'].get('config') or {}):
    raise flags.FlagError(
      'null_dir', '', "a checkpoint; the source's manifest names no recipe"
    )
  else:
    _require_trainable(manifests['source']['config'], splits, paths['source'])
  return found


def _require_trainable(
  config: dict[str, Any], splits: Splits, path: pathlib.Path
) -> None:
  """Refuses a recipe by which nothing can be trained."""
  recipe, seed = config.get('recipe'), config['source_seed']
  recipe = recipe if isinstance(recipe, dict) else {}
  names = [row.optimizer.__name__ for row in RECIPES.values()]
  count = len(parallel.devices())

  def whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and 1 <= value <= most

  rate, size = recipe.get('learning_rate'), recipe.get('batch_size')
  for name, value, holds in (
    ('source_seed', seed, isinstance(seed, int) and 0 <= seed < 2**31),
    ('optimizer', recipe.get('optimizer'), recipe.get('optimizer') in names),
    ('epochs', recipe.get('epochs'), whole(recipe.get('epochs'), 10**6)),
    ('learning_rate', rate, isinstance(rate, int | float) and 0 < rate < 1),
    ('batch_size', size, size in range(count, splits.train.size + 1, count)),
    ('augment', recipe.get('augment'), recipe.get('augment') in (True, False)),
  ):
    if not holds:
      raise InputError(
        f'--source={path}: its recipe has {name}={shown(value)}, with which M′'
        ' cannot be trained on the devices here; allowed: --null_dir'
      )


def _twin(path: pathlib.Path, manifest: dict[str, Any]) -> pathlib.Path | None:
  """The first source beside M that differs from it in its seed alone."""
  if 'source_seed' not in (manifest.get('config') or {}):
    return None
  for sibling in sorted(path.absolute().parent.iterdir()):
    try:
      own = checkpoints.read_manifest(sibling)
    except InputError:
      continue
    seed = (own.get('config') or {}).get('source_seed')
    config = {**(own.get('config') or {}), 'source_seed': None}
    if (
      own.get('strategy') == 'source'
      and config == {**manifest['config'], 'source_seed': None}
      and seed not in (None, manifest['config']['source_seed'])
    ):
      return sibling
  return None


def train_null(
  case: Case, workdir: stages.Workdir, progress: Progress
) -> stages.Stage:
  """M', trained as the source's manifest says, with the next seed; or kept."""
  config = case.manifests['source']['config']
  recipe, seed = config['recipe'], config['source_seed'] + 1
  names = {row.optimizer.__name__: name for name, row in RECIPES.items()}
  values = types.SimpleNamespace(
    seed=seed,
    source_seed=seed,
    recipe=names[recipe['optimizer']],
    train_epochs=recipe['epochs'],
    train_learning_rate=recipe['learning_rate'],
    batch_size=recipe['batch_size'],
    augment=recipe['augment'],
  )
  setup = dataclasses.replace(case.setup, values=values)
  return pipeline.source_stage(setup, workdir, case.splits, 0, progress)


def pair(case: Case) -> dict[str, str]:
  """The digests of M and M_UL."""
  names = ('source', 'unlearned')
  return {name: case.manifests[name]['state_sha256'] for name in names}
