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

from experiments import degree, flags, pairs, problem, results, stages
from experiments.pairs import Case
from experiments.progress import Progress
from unlearn_jax import parallel
from unlearn_jax.base import InputError
from unlearn_jax.degree import MIN_SEEDS, UnlearningDegree, unlearning_degree
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.training import Epoch

_DEFAULTS = GeneratorSettings()


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
  absl_flags.DEFINE_string(
    'max_perturbation',
    '8/255',
    "L∞ bound in the pixel range's unit: above 0 and at most 1, or none.",
    flag_values=own,
  )
  absl_flags.DEFINE_string(
    'cap',
    'default',
    'Nats up to which M_UL’s loss counts; default: 2·log C; or none.',
    flag_values=own,
  )
  for name, text in {'eta': 'η of Eq. 13.', 'learning_rate': "Adam's."}.items():
    default = getattr(_DEFAULTS, name)
    absl_flags.DEFINE_float(name, default, text, flag_values=own)
  numbers = {
    'epochs': (_DEFAULTS.epochs, 'Passes over half of the forget set.'),
    'batch_size': (_DEFAULTS.batch_size, 'Images a step, all devices.'),
    'generator_width': (_DEFAULTS.width, "Channels of G's first layer."),
    'seeds': (MIN_SEEDS, f'Generators a pair of models, {MIN_SEEDS} or more.'),
    'seed': (0, 'Of all that is drawn here.'),
    'limit': (2048, 'At most so many retained and test images are scored.'),
  }
  for name, (default, text) in numbers.items():
    absl_flags.DEFINE_integer(name, default, text, flag_values=own)


def settings_of(values: Any) -> GeneratorSettings:
  """The `GeneratorSettings` that the flags say, all flags checked.

  Raises:
    FlagError: the first that is out of range.
  """
  for name, least in (('seeds', MIN_SEEDS), ('limit', 1), ('seed', 0)):
    if not least <= getattr(values, name) < 2**31:
      raise flags.FlagError(name, getattr(values, name), f'{least} or more')
  try:
    parallel.per_device(values.batch_size)
    return GeneratorSettings(
      eta=values.eta,
      cap=_number('cap', values.cap, ('default', 'none')),
      max_perturbation=_number(
        'max_perturbation', values.max_perturbation, ('none',)
      ),
      epochs=values.epochs,
      batch_size=values.batch_size,
      learning_rate=values.learning_rate,
      width=values.generator_width,
    )
  except ValueError as error:
    # 'name=value, allowed: …', as a FlagError says it.
    name, _, rest = str(error).partition('=')
    value, _, allowed = rest.partition(', allowed: ')
    name = {'width': 'generator_width'}.get(name, name)
    allowed = allowed.replace('None', 'none')
    raise flags.FlagError(name, value, allowed) from None


def _number(name: str, text: str, words: tuple[str, ...]) -> Any:
  """A number, a quotient such as 8/255, or one of the words."""
  if text in words:
    return None if text == 'none' else text
  try:
    above, _, below = text.partition('/')
    return float(above) / float(below or 1)
  except (ValueError, ZeroDivisionError):
    allowed = f'a number, a quotient such as 8/255, or {" or ".join(words)}'
    raise flags.FlagError(name, text, allowed) from None


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
  case = pairs.read(values, settings)
  default = pathlib.Path('runs') / f'degree-{case.paths["unlearned"].name}'
  root = default if values.workdir is None else pathlib.Path(values.workdir)
  workdir = prepare(case, root)
  workdir.claim()
  own_target = 'retrained' in case.manifests
  fits, trains = values.seeds * (3 + own_target) + 1, case.null is None
  recipe = case.manifests['source'].get('config', {}).get('recipe', {})
  progress = Progress(
    fits + trains, fits * settings.epochs + trains * recipe.get('epochs', 0)
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
  flags.run(main)
