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

from collections.abc import Callable
import pathlib
import sys
from typing import Any

from absl import flags as absl_flags
import jax

from experiments import (
  degree,
  flags,
  generator_flags,
  pairs,
  problem,
  results,
  stages,
)
from experiments.pairs import Case
from experiments.progress import Progress
from unlearn_jax.base import InputError
from unlearn_jax.degree import UnlearningDegree, unlearning_degree
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.training import Epoch


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
  generator_flags.define(own=own)


def settings_of(values: Any) -> GeneratorSettings:
  """The `GeneratorSettings` that the flags say, all flags checked.

  Raises:
    FlagError: the first that is out of range.
  """
  if not 0 <= values.seed < 2**31:
    raise flags.FlagError('seed', values.seed, '0 or more')
  (settings,) = generator_flags.settings(values)
  return settings


def teller(
  progress: Progress, epochs: int
) -> Callable[[str, int, Epoch], None]:
  """Tells `progress` of each generator as of a stage."""

  def tell(name: str, seed: int, epoch: Epoch) -> None:
    if epoch.epoch == 0:
      progress.begin(f'{name} · generator {seed}', epochs)
    progress.epoch(epoch)
    if epoch.epoch == epochs:
      own = epoch.measured
      progress.end(
        f'cross-entropy {own["source_loss"]:.2f} of M,'
        f' {own["unlearned_loss"]:.2f} of the other'
      )

  return tell


def prepare(case: Case, root: pathlib.Path) -> stages.Workdir:
  """The work directory, refused if it holds another pair's results."""
  workdir = stages.Workdir(root, problem.identity(case.setup))
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
  workdir = prepare(case, root)
  pairs.require_source(case, settings)
  workdir.claim()
  own_target = 'retrained' in case.manifests
  fits, epochs = values.seeds * (3 + own_target) + 1, 0
  if case.null is None:
    epochs = case.manifests['source']['config']['recipe']['epochs']
  progress = Progress(
    fits + (case.null is None), fits * settings.epochs + epochs
  )
  null = case.null
  if null is None:
    stage = pairs.train_null(case, workdir, progress)
    null, case.paths['null'] = stage.state, stage.path
  result = unlearning_degree(
    jax.random.key(values.seed),
    case.setup.model,
    case.source,
    case.unlearned,
    case.splits,
    null=null,
    retrained=case.retrained,
    settings=settings,
    seeds=values.seeds,
    limit=values.limit,
    on_epoch=teller(progress, settings.epochs),
  )
  return save(case, result, settings, root)


def save(
  case: Case,
  result: UnlearningDegree,
  settings: GeneratorSettings,
  root: pathlib.Path,
) -> dict[str, Any]:
  """Writes the report and its pictures; what degree.json holds."""
  dataset = case.setup.dataset
  found = {
    **degree.as_dict(result, settings),
    'command': ' '.join(['python -m experiments.spd_gan', *sys.argv[1:]]),
    'pair': pairs.pair(case),
    'checkpoints': {name: str(path) for name, path in case.paths.items()},
    'dataset': dataset.name,
    'forget': case.splits.forget.size,
    'environment': results.environment(),
  }
  grid = degree.grid_of(
    result.held_out,
    result.unlearned.runs[0].generator,
    settings,
    dataset.class_names,
  )
  degree.write(found, grid, len(dataset.class_names), root)
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
  flags.run(main, several=False)
