"""Measures how far an unlearned model can be told from its source.

  python -m experiments.spd_gan --source=WORKDIR/checkpoints/seed0-source-… \
      --unlearned=WORKDIR/checkpoints/seed0-top_k-…

trains generators (Algorithm 2) on one half of the forget set, scores them on
the other, and holds the degree against models that forgot nothing and, where
there is one, against Retrain. It ends with one sentence that says whether the
degree separates from the null, and writes degree.json, degree.md and three
pictures into --workdir. M′, the source's twin of another seed, is named by
--null_dir, found beside the source, or trained once and kept.
"""

import pathlib
import sys
from typing import Any

from absl import flags as absl_flags
import jax

from experiments import (
  binary,
  degree,
  flags,
  generator_flags,
  kept_pairs,
  pairs,
  problem,
  results,
  stages,
)
from experiments.kept_pairs import Bench, Known, Pair
from experiments.pairs import Case
from experiments.progress import Progress
from unlearn_jax import parallel
from unlearn_jax.base import InputError
from unlearn_jax.pairs import plan_pairs
from unlearn_jax.spd_gan import GeneratorSettings


def define(own: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """The flags of this binary."""
  texts = {
    'source': 'Checkpoint of M.',
    'unlearned': 'Checkpoint of M_UL.',
    'null_dir': 'Checkpoint of M′: as the source, with another seed.',
    'retrained_dir': 'Checkpoint of M_RE, if not beside --unlearned.',
    'forget_ids': 'D_UL, if not beside --unlearned.',
    'data_dir': 'TFDS directory.',
    'raw_dir': 'Archives downloaded by hand.',
    'workdir': 'Where results go; default runs/degree-UNLEARNED.',
  }
  for name, text in texts.items():
    absl_flags.DEFINE_string(name, None, text, flag_values=own)
  absl_flags.DEFINE_integer(
    'seed', 0, 'Of all that is drawn here.', flag_values=own
  )
  flags.define_save_seconds(own)
  generator_flags.define(own=own)


def settings_of(values: Any) -> GeneratorSettings:
  """The `GeneratorSettings` that the flags say, all flags checked.

  Raises:
    FlagError: the first that is out of range.
  """
  if not 0 <= values.seed < 2**31:
    raise flags.FlagError('seed', values.seed, '0 or more')
  flags.check_save_seconds(values)
  (settings,) = generator_flags.settings(values)
  return settings


def prepare(
  case: Case, root: pathlib.Path, save_seconds: float
) -> stages.Workdir:
  """The work directory, refused if it holds another pair's results."""
  workdir = stages.Workdir(root, problem.identity(case.setup), save_seconds)
  taken = [name for name in degree.FILES.values() if (root / name).exists()]
  before = degree.read(root / degree.FILES['json'])
  if taken and (before is None or before.get('pair') != pairs.pair(case)):
    raise InputError(
      f'--workdir={root} holds {taken[0]} of another pair of models; allowed:'
      ' another --workdir'
    )
  return workdir


def measure(values: Any) -> dict[str, Any]:
  """From flags to what degree.json holds; writes all files."""
  settings = settings_of(values)
  case = pairs.read(values)
  default = pathlib.Path('runs') / f'degree-{case.paths["unlearned"].name}'
  root = default if values.workdir is None else pathlib.Path(values.workdir)
  workdir = prepare(case, root, values.save_seconds)
  pairs.require_source(case, settings)
  parallel.by_first(workdir.claim)
  progress = _progress(case, settings, values.seeds)
  null = _null(case, workdir, progress)
  measured = _pairs(case, null, workdir, settings, values, progress)
  return save(case, measured, settings, root)


def _progress(case: Case, settings: GeneratorSettings, seeds: int) -> Progress:
  """Of M′, if there is none yet, and of every pair."""
  fits, pairs_, epochs = 3 * seeds + 1, 4, 0
  if 'retrained' in case.manifests:
    fits, pairs_ = fits + seeds, pairs_ + 1
  if case.null is None:
    epochs = case.manifests['source']['config']['recipe']['epochs']
  return Progress(pairs_ + (case.null is None), fits * settings.epochs + epochs)


def _null(case: Case, workdir: stages.Workdir, progress: Progress) -> Known:
  """M′, trained or restored if there is none among the checkpoints."""
  if case.null is not None:
    return Known(case.null, case.manifests['null']['state_sha256'])
  stage = pairs.train_null(case, workdir, progress)
  case.paths['null'] = stage.path
  return Known(stage.state, stage.manifest['state_sha256'])


def _pairs(
  case: Case,
  null: Known,
  workdir: stages.Workdir,
  settings: GeneratorSettings,
  values: Any,
  progress: Progress,
) -> dict[str, Pair]:
  """Every pair that a degree needs, by the keys of `degree.LABELS`."""
  source, unlearned = (
    Known(getattr(case, name), case.manifests[name]['state_sha256'])
    for name in ('source', 'unlearned')
  )
  bench = Bench(
    workdir,
    progress,
    case.setup.model,
    source,
    problem.forget_hash(case.setup, case.splits),
    plan_pairs(jax.random.key(values.seed), case.splits, values.limit),
    values.limit,
    values.seed,
    settings,
  )
  found = {
    'unlearned': bench.pair('unlearned', unlearned, values.seeds),
    'null': bench.pair('null', null, values.seeds),
    'unseen': bench.pair('unlearned', unlearned, values.seeds, unseen=True),
    'identity': bench.pair('identity', source, 1),
  }
  if case.retrained is case.unlearned:
    found['retrained'] = found['unlearned']
  elif case.retrained is not None:
    digest = case.manifests['retrained']['state_sha256']
    retrained = Known(case.retrained, digest)
    found['retrained'] = bench.pair('retrained', retrained, values.seeds)
  return found


def save(
  case: Case,
  measured: dict[str, Pair],
  settings: GeneratorSettings,
  root: pathlib.Path,
) -> dict[str, Any]:
  """Writes the report and its pictures; what degree.json holds."""
  dataset = case.setup.dataset
  by_name = {
    name: {**pair.found, 'label': degree.LABELS[name]}
    for name, pair in measured.items()
  }
  found = {
    **degree.assemble(by_name, settings),
    'command': ' '.join(['python -m experiments.spd_gan', *sys.argv[1:]]),
    'pair': pairs.pair(case),
    'checkpoints': {name: str(path) for name, path in case.paths.items()},
    'dataset': dataset.name,
    'forget': case.splits.forget.size,
    'environment': results.environment(),
  }
  grid = kept_pairs.grid(measured['unlearned'], dataset.class_names)
  count = len(dataset.class_names)
  parallel.by_first(lambda: bool(degree.write(found, grid, count, root)))
  return found


def main() -> None:
  """Measures, writes, and says it in one sentence."""
  values = absl_flags.FLAGS
  found = measure(values)
  for line in found['warnings']:
    print(f'warning: {line}')
  print(found['sentence'])


if __name__ == '__main__':
  define()
  flags.define_processes()
  binary.run(main)
