"""The stages that measure the unlearning degree of pairs of models."""

from collections.abc import Sequence
import dataclasses

from matplotlib.figure import Figure
import numpy as np

from experiments import config
from experiments.report import figures
from experiments.runtime.progress import Progress
from experiments.study import setup as setups
from experiments.study import stages
from experiments.study.stages import Output, Stage, StageFailedError
from experiments.workdir import finished
from experiments.workdir.partials import Partial
from unlearn_jax import checkpoints, degree, spd_gan
from unlearn_jax.base import InputError, TrainState, shown
from unlearn_jax.degree import Run, Sets
from unlearn_jax.snapshots import Epoch, Keeper, Snapshot
from unlearn_jax.spd_gan import GeneratorSettings

SHOWN = 8  # Images of a grid.


@dataclasses.dataclass(frozen=True)
class Measured:
  """What is kept of a pair of models."""

  generators: list[Run]  # one each, without itself and its training curve
  labels: list[int]  # of the images that are shown


@dataclasses.dataclass(frozen=True)
class PairManifest:
  """What the manifest of a pair says."""

  source_sha256: str  # of M's tensors
  other_sha256: str  # of those of the model in M_UL's place
  settings: GeneratorSettings  # of the generators


@dataclasses.dataclass(frozen=True)
class MeasureDegree:
  """How far several generators tell a model from its source."""

  study: config.Study
  run: int
  settings: GeneratorSettings
  unseen: bool

  def compute(
    self, stage: Stage, partial: Partial, progress: Progress
  ) -> Output:
    """See `stages.Work`."""
    study, setup = self.study, setups.set_up(self.study)
    splits = setups.draw(setup, study, self.run)
    source, other = (
      stages.load(stage.parents[role]) for role in ('source', 'other')
    )
    seed = study.draws.of('unlearn', self.run)
    key = setups.key_of('degree', seed)
    keepers = _Keepers(partial, progress, self.settings.epochs)
    try:
      degree.require_measurable(
        setup.model, source.state, splits, self.settings
      )
      plan = degree.plan_pairs(key, splits, study.generators.degree_limit)
      sets = plan.unseen if self.unseen else plan.known
      found = degree.pair_degree(
        plan.key,
        setup.model,
        source.state,
        other.state,
        sets,
        self.settings,
        seeds=study.generators.degree_seeds,
        on_epoch=keepers.on_epoch,
        keeper=keepers.keeper,
      )
    except InputError as error:
      raise StageFailedError(f'{stage.title}: {error}') from error
    measured, tree = _kept(found.runs, sets, self.settings)
    manifest = PairManifest(
      source.manifest.state_sha256, other.manifest.state_sha256, self.settings
    )
    mean = 100 * float(np.mean(found.values))
    note = f'{mean:.1f} points on the held-out half'
    return Output(tree, manifest, finished.contents(measured), note)


def _kept(
  runs: tuple[Run, ...], sets: Sets, settings: GeneratorSettings
) -> tuple[Measured, dict]:
  """Numbers, and images before and after the first generator."""
  held_out = sets.part('held_out')
  few = held_out.take(np.arange(min(SHOWN, held_out.size)))
  tree = {
    'images': np.asarray(few.images)[np.asarray(few.indices)],
    'perturbed': spd_gan.perturb_images(runs[0].generator, few, settings),
  }
  generators = [
    dataclasses.replace(run, history=(), generator=None) for run in runs
  ]
  return Measured(generators, few.own_labels.tolist()), tree


class _Keepers:
  """Keeps the generators of a pair, each in a folder of the pair's own.

  One that is trained is saved before the next begins, so that what is gone on
  with is never trained twice.
  """

  def __init__(self, partial: Partial, progress: Progress, epochs: int):
    self.partial, self.progress, self.epochs = partial, progress, epochs

  def keeper(self, seed: int) -> Keeper:
    """Of the generator with this number."""
    return _Keeper(self, seed)

  def on_epoch(self, seed: int, epoch: Epoch) -> None:
    """Tells of an epoch of one of them as of one of all."""
    total = seed * self.epochs + epoch.epoch
    self.progress.epoch(epoch._replace(epoch=total))


class _Keeper:
  """Saves in any case what is trained to its end."""

  def __init__(self, every: _Keepers, seed: int):
    self._all, self._seed = every, seed
    self._own = every.partial.part(f'generator{seed}')

  def load(self, like: TrainState) -> Snapshot | None:
    found, every = self._own.load(like), self._all
    if found is not None:
      every.partial.wall_seconds += self._own.wall_seconds
      done = self._seed * every.epochs + found.course.epoch
      every.progress.goes_on(done, found.course.epoch)
    return found

  def save(self, snapshot: Snapshot) -> None:
    self._own.save(snapshot)
    if snapshot.course.epoch == self._all.epochs:
      self._own.flush()


def read(stage: Stage) -> Measured:
  """The numbers of a pair that is measured."""
  return finished.read_record(stage.path, Measured)


def grid(stage: Stage, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images that were not fitted on, and what became of them."""
  tree, _ = checkpoints.restore_tree(stage.path)
  labels = [class_names[label] for label in read(stage).labels]
  images, perturbed = (np.asarray(tree[n]) for n in ('images', 'perturbed'))
  return figures.image_grid(
    images, perturbed, [shown(label, 24) for label in labels]
  )
