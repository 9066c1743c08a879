"""The unlearning degree of every strategy of a run.

M′, the twin of a source that forgot nothing, is the source of the next seed:
all sources learn the same data. With one seed it is trained for this.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments import (
  flags,
  generator_flags,
  kept_pairs,
  pipeline,
  problem,
  stages,
)
from experiments.kept_pairs import Bench, Known, Pair
from experiments.progress import Progress
from unlearn_jax.degree import require_measurable
from unlearn_jax.pairs import plan_pairs
from unlearn_jax.spd_gan import GeneratorSettings


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
  splits = problem.draw(setup, 0)
  generator_flags.require_two_batches(values, names, splits)
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
  names, values = _names(runs), setup.values
  limit = getattr(values, generator_flags.BESIDE_UNLEARNING['limit'])
  found = Measured(
    settings, seeds, [], [], {n: [] for n in names}, {n: [] for n in names}
  )
  for place, (run, null) in enumerate(zip(runs, nulls)):
    seed = problem.seed_of(values, 'unlearn', place)
    source = _known(run.stages['source'])
    bench = Bench(
      workdir,
      progress,
      setup.model,
      source,
      problem.forget_hash(setup, run.splits),
      plan_pairs(problem.key_of('degree', seed), run.splits, limit),
      limit,
      seed,
      settings,
      run=f'seed {run.seed}',
    )
    found.null.append(bench.pair('null', _known(null), seeds))
    found.identity.append(bench.pair('identity', source, 1))
    for name in names:
      other = _known(run.stages[name])
      found.known[name].append(bench.pair(name, other, seeds))
      found.unseen[name].append(bench.pair(name, other, seeds, unseen=True))
  return found


def _known(stage: stages.Stage) -> Known:
  return Known(stage.state, stage.manifest['state_sha256'])


def grid(measured: Measured, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images of the first method's generator, or of whatever there is."""
  known = measured.known
  name = 'top_k' if 'top_k' in known else next(iter(known))
  return kept_pairs.grid(known[name][0], class_names)
