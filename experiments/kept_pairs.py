"""Pairs of models, each measured once, and gone on with where that stopped.

    WORKDIR/degrees/NAME-KEY.npz    what was measured of a pair of models
    WORKDIR/checkpoints/.NAME-generatorN-KEY.partial/    see `partials`

KEY is a hash of both models, of the forget set and of all settings. The
generators of a pair are kept until it is measured.
"""

from collections.abc import Callable, Sequence
import dataclasses
import io
import json
import pathlib
import time
from typing import Any, NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments import (
  degree,
  degree_figures,
  files,
  partials,
  preemption,
  stages,
)
from experiments.progress import Progress
from unlearn_jax import parallel, spd_gan
from unlearn_jax.base import (
  InputError,
  Key,
  Model,
  ModelState,
  TrainState,
  require_file,
  shown,
)
from unlearn_jax.pairs import Plan, Sets, pair_degree
from unlearn_jax.snapshots import Keeper, Snapshot
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

  found: dict[str, Any]
  images: np.ndarray
  perturbed: np.ndarray
  labels: np.ndarray


class Known(NamedTuple):
  """A model and the digest of its tensors."""

  state: ModelState
  sha256: str


@dataclasses.dataclass(frozen=True)
class Bench:
  """One source, against which other models are held.

  Attributes:
    workdir: where results are kept.
    progress: told of every pair as of a stage.
    model: the classifier.
    source: M.
    forget_sha256: of D_UL.
    plan: what generators are fitted on and scored on.
    limit: what it was drawn with.
    seed: likewise.
    settings: of the generators.
    run: what tells this source from others of the directory, or nothing.
  """

  workdir: stages.Workdir
  progress: Progress
  model: Model
  source: Known
  forget_sha256: str
  plan: Plan
  limit: int
  seed: int
  settings: GeneratorSettings
  run: str = ''

  def pair(
    self, name: str, other: Known, seeds: int, unseen: bool = False
  ) -> Pair:
    """The degree of the source and another model; measured once.

    Args:
      name: of the pair.
      other: the model in M_UL's place.
      seeds: how many generators.
      unseen: whether they see images that no model ever saw.

    Raises:
      InputError: a training that diverged, or a kept result that is damaged.
      Stopped: the program was asked to end; generators are saved.
    """
    config = self._config(other, seeds, unseen)
    what = f'{name}-unseen' if unseen else name
    title = ' · '.join(filter(None, (self.run, f'degree of {what}')))
    stem = '-'.join(filter(None, (self.run.replace(' ', ''), what)))
    path = self.workdir.root / 'degrees' / f'{stem}-{stages.key(config)}.npz'
    epochs = self.settings.epochs
    generators = Generators(
      self.workdir, stem, config, epochs, seeds, self.progress
    )
    sets = self.plan.unseen if unseen else self.plan.known

    label = name if name in degree.LABELS else 'unlearned'

    def measure() -> Pair:
      return measured(
        'unseen' if unseen else label,
        self.plan.key,
        self.model,
        self.source.state,
        other.state,
        sets,
        self.settings,
        generators,
      )

    before = parallel.by_first(path.exists)
    if before:
      self.progress.skip(title, seeds * epochs, 'done before')
    else:
      self.progress.begin(title, seeds * epochs)
    pair = once(path, generators, measure)
    if not before:
      mean = 100 * pair.found['degree']['mean']
      self.progress.end(f'{mean:.1f} points on the held-out half')
    return pair

  def _config(self, other: Known, seeds: int, unseen: bool) -> dict[str, Any]:
    """All that a pair's result depends on."""
    return {
      'source': self.source.sha256,
      'other': other.sha256,
      'forget_sha256': self.forget_sha256,
      'unseen': unseen,
      'settings': dataclasses.asdict(self.settings),
      'seeds': seeds,
      'seed': self.seed,
      'limit': self.limit,
    }


def once(
  path: pathlib.Path, generators: 'Generators', measure: Callable[[], Pair]
) -> Pair:
  """What was kept of a pair; measured and kept if there is nothing.

  Args:
    path: its file.
    generators: what `measure` trains; kept until the file is there.
    measure: computes it.

  Raises:
    InputError: a training that diverged, or the file is damaged.
    Stopped: the program was asked to end; generators are saved.
  """
  if not parallel.by_first(path.exists):
    # A signal waits for the next call that trains, or for the end.
    with preemption.deferred(partials.asked):
      content = written(measure())
      parallel.by_first(lambda: str(files.replace(path, content)))
  pair = read(path)
  generators.remove()
  return pair


class Generators:
  """Keeps the generators of a pair while they are trained.

  `on_epoch` and `keeper` are what `pair_degree` takes by these names.

  Attributes:
    earlier_seconds: that processes before this one trained what is gone on
      with.
  """

  def __init__(
    self,
    workdir: stages.Workdir,
    name: str,
    config: dict[str, Any],
    epochs: int,
    seeds: int,
    progress: Progress,
  ):
    """Reads and writes nothing yet.

    Args:
      workdir: where.
      name: of the pair.
      config: everything that a generator depends on beside its number.
      epochs: of each generator.
      seeds: how many generators.
      progress: told of all their epochs as of one stage's.
    """
    self._workdir, self._name, self._config = workdir, name, config
    self.epochs, self.seeds, self._progress = epochs, seeds, progress
    self._partials: dict[int, partials.Partial] = {}
    self.saved_at = time.monotonic()  # When one of them was saved last.
    self.earlier_seconds = 0.0
    self._restored = 0  # Epochs that the progress has not been told of.

  def partial(self, seed: int) -> partials.Partial:
    """What keeps one of them: the same each time."""
    if seed not in self._partials:
      progress, before = self._progress, seed * self.epochs
      self._partials[seed] = self._workdir.partial(
        f'{self._name}-generator{seed}',
        self._config,
        advance=lambda epochs: progress.advance(before + epochs),
      )
    return self._partials[seed]

  def keeper(self, seed: int) -> Keeper:
    """Keeps the one that is trained now."""
    return _Keeper(self, self.partial(seed), seed)

  def on_epoch(self, seed: int, epoch: Epoch) -> None:
    """Tells of an epoch that is over."""
    total = seed * self.epochs + epoch.epoch
    self._progress.epoch(epoch._replace(epoch=total))

  def restored(self, seed: int, epoch: int) -> None:
    """Told after which epoch one of them goes on, 0 for a new one."""
    self._restored += epoch
    trains = epoch < self.epochs
    # One line, of the first that there is something left to be done of.
    if self._restored and (trains or seed + 1 == self.seeds):
      self._progress.goes_on(seed * self.epochs + epoch, self._restored)
      self._restored = 0

  def saved(self, partial: partials.Partial) -> None:
    """Told of one that is saved; those before it are too, each tried once."""
    for before in self._partials.values():
      if before.is_unsaved():
        before.flush()
    self.saved_at = partial.saved_at

  def flush(self) -> None:
    """Saves all that is not saved, also what was tried before."""
    for partial in self._partials.values():
      partial.flush()

  def remove(self) -> None:
    """Forgets them all, because the pair is measured."""
    for seed in range(self.seeds):
      self.partial(seed).remove()


class _Keeper:
  """Keeps one generator; when it is saved, those before it are too."""

  def __init__(
    self, generators: Generators, partial: partials.Partial, seed: int
  ):
    self._all, self._partial, self._seed = generators, partial, seed
    partial.saved_at = generators.saved_at

  def load(self, like: TrainState) -> Snapshot | None:
    found = self._partial.load(like)
    if found:
      self._all.saved_at = self._partial.saved_at
      self._all.earlier_seconds += found.course.total_seconds
    self._all.restored(self._seed, found.course.epoch if found else 0)
    return found

  def save(self, snapshot: Snapshot) -> None:
    try:
      self._partial.save(snapshot)
    except preemption.Stopped:
      self._all.flush()
      raise
    if not self._partial.is_unsaved():
      self._all.saved(self._partial)


def measured(
  name: str,
  key: Key,
  model: Model,
  source: ModelState,
  other: ModelState,
  sets: Sets,
  settings: GeneratorSettings,
  generators: Generators,
) -> Pair:
  """`pair_degree`, and what is worth keeping of it.

  Args:
    name: a key of `degree.LABELS`.
    key: as there, and so are the five that follow.
    model: the classifier of both.
    source: M.
    other: the model in M_UL's place.
    sets: the images.
    settings: of the generators.
    generators: keeps them while they are trained.
  """
  found = pair_degree(
    key,
    model,
    source,
    other,
    sets,
    settings,
    seeds=generators.seeds,
    on_epoch=generators.on_epoch,
    keeper=generators.keeper,
  )
  few = sets.held_out.take(np.arange(min(SHOWN, sets.held_out.size)))
  rows = np.asarray(few.indices)
  return Pair(
    degree.pair(name, found),
    np.asarray(few.images)[rows],
    spd_gan.perturb_images(found.runs[0].generator, few, settings),
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


def grid(pair: Pair, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images that were not fitted on, and what became of them."""
  return degree_figures.image_grid(
    pair.images,
    pair.perturbed,
    [shown(class_names[label], 24) for label in pair.labels],
  )
