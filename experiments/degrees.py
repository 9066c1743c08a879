"""The unlearning degree of every strategy of a run, each pair measured once.

    WORKDIR/degrees/NAME-KEY.npz    what was measured of a pair of models

KEY is a hash of both models, of the forget set and of all settings. M′, the
twin of a source that forgot nothing, is the source of the next seed: all
sources learn the same data. With one seed it is trained for this.
"""

from collections.abc import Sequence
import dataclasses
import io
import json
import pathlib
from typing import NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments import (
  degree,
  degree_figures,
  files,
  flags,
  generator_flags,
  pipeline,
  problem,
  stages,
)
from experiments.degree import Dict
from experiments.progress import Progress
from unlearn_jax import parallel, spd_gan
from unlearn_jax.base import InputError, require_file, shown
from unlearn_jax.degree import require_measurable
from unlearn_jax.pairs import Degree, Plan, Sets, pair_degree, plan_pairs
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.training import Epoch

SHOWN = 8  # Images of a grid.


class Pair(NamedTuple):
  """What is kept of a pair of models.

  Attributes:
    found: `degree.pair`.
    images: uint8 `[n, height, width, channels]`, of the held-out half.
    perturbed: float32, the same by the first generator.
    labels: int32 `[n]`.
  """

  found: Dict
  images: np.ndarray
  perturbed: np.ndarray
  labels: np.ndarray


class Measured(NamedTuple):
  """All pairs of a report.

  Attributes:
    settings: of the generators.
    seeds: generators a pair.
    null: (M, M′) of each run.
    identity: (M, M) of each run.
    known: of each strategy, on halves of D_UL, of each run.
    unseen: of each strategy, on halves of test images, of each run.
  """

  settings: GeneratorSettings
  seeds: int
  null: list[Pair]
  identity: list[Pair]
  known: dict[str, list[Pair]]
  unseen: dict[str, list[Pair]]


def check(setup: problem.Setup) -> list[GeneratorSettings]:
  """What the flags ask for, refused before anything is computed.

  Raises:
    FlagError: a flag out of range, or one that leaves nothing to measure.
  """
  values, names = setup.values, generator_flags.BESIDE_UNLEARNING
  found = generator_flags.settings(values, names)
  if values.source_dir is not None:
    raise flags.FlagError(
      'degree',
      'true',
      'only with sources that this command trains; experiments.spd_gan'
      ' measures any two checkpoints',
    )
  flag, size = names['batch_size'], getattr(values, names['batch_size'])
  splits = problem.draw(setup, 0)
  for name, examples in (('forget', splits.forget), ('test', splits.test)):
    if 2 * size > examples.size:
      raise flags.FlagError(
        flag, size, f'at most {examples.size // 2}, half of the {name} set'
      )
  return found


def measure(
  setup: problem.Setup,
  runs: Sequence[pipeline.Run],
  workdir: stages.Workdir,
  every: Sequence[GeneratorSettings],
) -> list[Measured]:
  """Measures every strategy of every run, or reads what was kept of it.

  Args:
    setup: data and model.
    runs: with finished stages.
    workdir: where results are kept.
    every: the settings to measure with.

  Returns:
    One `Measured` for each of the settings.

  Raises:
    InputError: a source no better than chance, or a training that diverged.
  """
  values = setup.values
  seeds = getattr(values, generator_flags.BESIDE_UNLEARNING['seeds'])
  for run in runs:
    require_measurable(
      setup.model, run.stages['source'].state, run.splits, every[0]
    )
  nulls = _nulls(setup, runs, workdir)
  pairs = 2 * len(_names(runs)) + 2
  epochs = sum(s.epochs for s in every) * (seeds * (pairs - 1) + 1)
  progress = Progress(len(every) * len(runs) * pairs, len(runs) * epochs)
  return [
    _measured(setup, runs, nulls, workdir, settings, seeds, progress)
    for settings in every
  ]


def _names(runs: Sequence[pipeline.Run]) -> list[str]:
  """The strategies that every run has."""
  first, *others = (run.stages for run in runs)
  shared = [name for name in first if all(name in own for own in others)]
  return [name for name in shared if name != 'source']


def _nulls(
  setup: problem.Setup, runs: Sequence[pipeline.Run], workdir: stages.Workdir
) -> list[stages.Stage]:
  """M′ of each run."""
  sources = [run.stages['source'] for run in runs]
  if len(sources) > 1:
    return sources[1:] + sources[:1]
  # With a clock of its own: its epochs are far longer than a generator's.
  progress = Progress(1, setup.values.train_epochs)
  return [pipeline.source_stage(setup, workdir, runs[0].splits, 1, progress)]


def _measured(
  setup: problem.Setup,
  runs: Sequence[pipeline.Run],
  nulls: Sequence[stages.Stage],
  workdir: stages.Workdir,
  settings: GeneratorSettings,
  seeds: int,
  progress: Progress,
) -> Measured:
  names = _names(runs)
  found = Measured(
    settings, seeds, [], [], {n: [] for n in names}, {n: [] for n in names}
  )
  for place, (run, null) in enumerate(zip(runs, nulls)):
    bench = _Bench(setup, run, place, workdir, settings, progress)
    source = run.stages['source']
    found.null.append(bench.pair('null', null, seeds))
    found.identity.append(bench.pair('identity', source, 1))
    for name in names:
      stage = run.stages[name]
      found.known[name].append(bench.pair(name, stage, seeds))
      found.unseen[name].append(bench.pair(name, stage, seeds, unseen=True))
  return found


class _Bench:
  """One source, against which other models are held."""

  def __init__(
    self,
    setup: problem.Setup,
    run: pipeline.Run,
    place: int,
    workdir: stages.Workdir,
    settings: GeneratorSettings,
    progress: Progress,
  ):
    self._setup, self._run, self._settings = setup, run, settings
    self._root, self._progress = workdir.root / 'degrees', progress
    self._limit = getattr(
      setup.values, generator_flags.BESIDE_UNLEARNING['limit']
    )
    self._seed = problem.seed_of(setup.values, 'unlearn', place)
    self._plan: Plan = plan_pairs(
      problem.key_of('degree', self._seed), run.splits, self._limit
    )

  def pair(
    self, name: str, other: stages.Stage, seeds: int, unseen: bool = False
  ) -> Pair:
    """The degree of the source and another model; measured once."""
    source, settings = self._run.stages['source'], self._settings
    config = {
      'source': source.manifest['state_sha256'],
      'other': other.manifest['state_sha256'],
      'forget_sha256': problem.forget_hash(self._setup, self._run.splits),
      'unseen': unseen,
      'settings': dataclasses.asdict(settings),
      'seeds': seeds,
      'seed': self._seed,
      'limit': self._limit,
    }
    what = f'{name}-unseen' if unseen else name
    title = f'seed {self._run.seed} · degree of {what}'
    file = f'seed{self._run.seed}-{what}-{stages.key(config)}.npz'
    epochs = seeds * settings.epochs
    if parallel.by_first((self._root / file).exists):
      self._progress.skip(title, epochs, 'done before')
      return read(self._root / file)
    self._progress.begin(title, epochs)
    sets = self._plan.unseen if unseen else self._plan.known
    measured = pair_degree(
      self._plan.key,
      self._setup.model,
      source.state,
      other.state,
      sets,
      settings,
      seeds=seeds,
      on_epoch=self._tell,
    )
    label = {'null': 'null', 'identity': 'identity'}.get(name, 'unlearned')
    kept = keep('unseen' if unseen else label, measured, sets, settings)
    content = written(kept)
    parallel.by_first(lambda: str(files.replace(self._root / file, content)))
    mean = 100 * kept.found['degree']['mean']
    self._progress.end(f'{mean:.1f} points on the held-out half')
    return read(self._root / file)

  def _tell(self, seed: int, epoch: Epoch) -> None:
    total = seed * self._settings.epochs + epoch.epoch
    self._progress.epoch(epoch._replace(epoch=total))


def keep(
  name: str, measured: Degree, sets: Sets, settings: GeneratorSettings
) -> Pair:
  """What is worth keeping of a pair.

  Args:
    name: a key of `degree.LABELS`.
    measured: by `pair_degree`.
    sets: the images that it was measured on.
    settings: of the generators.
  """
  few = sets.held_out.take(np.arange(min(SHOWN, sets.held_out.size)))
  rows = np.asarray(few.indices)
  return Pair(
    degree.pair(name, measured),
    np.asarray(few.images)[rows],
    spd_gan.perturb_images(measured.runs[0].generator, few, settings),
    np.asarray(few.labels)[rows],
  )


def written(pair: Pair) -> bytes:
  """The content of an npz file, as `read` reads it."""
  buffer = io.BytesIO()
  text = json.dumps(files.plain(pair.found), allow_nan=False)
  arrays = {name: getattr(pair, name) for name in Pair._fields[1:]}
  np.savez_compressed(buffer, found=np.array(text), **arrays)
  return buffer.getvalue()


def read(path: pathlib.Path) -> Pair:
  """A pair that was kept.

  Raises:
    InputError: the file is damaged.
  """
  require_file(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found = json.loads(str(arrays['found']))
      return Pair(found, *(arrays[name] for name in Pair._fields[1:]))
  except Exception as error:  # Broken files raise a dozen types.
    raise InputError(
      f'{path} is damaged: {type(error).__name__}; remove it and run again'
    ) from error


def grid(measured: Measured, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images of the first method's generator, or of whatever there is."""
  known = measured.known
  name = 'top_k' if 'top_k' in known else next(iter(known))
  pair = known[name][0]
  return degree_figures.image_grid(
    pair.images,
    pair.perturbed,
    [shown(class_names[label], 24) for label in pair.labels],
  )
