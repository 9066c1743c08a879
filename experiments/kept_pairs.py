"""Pairs of models, each measured once, and gone on with where that stopped.

    WORKDIR/degrees/NAME-KEY.npz    what was measured of a pair of models
    WORKDIR/checkpoints/.NAME-generatorN-KEY.partial/    see `partials`

KEY is a hash of both models, of the forget set and of all settings. The
generators of a pair are kept until it is measured.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import io
import json
import pathlib
import time
from typing import Any, NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments import degree, degree_figures, files, preemption, stages
from experiments.progress import Progress
from unlearn_jax import parallel, spd_gan
from unlearn_jax.base import InputError, Model, ModelState, require_file, shown
from unlearn_jax.pairs import Degree, Plan, Sets, pair_degree
from unlearn_jax.snapshots import Keeper
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
    config = {
      'source': self.source.sha256,
      'other': other.sha256,
      'forget_sha256': self.forget_sha256,
      'unseen': unseen,
      'settings': dataclasses.asdict(self.settings),
      'seeds': seeds,
      'seed': self.seed,
      'limit': self.limit,
    }
    what = f'{name}-unseen' if unseen else name
    title = ' · '.join(filter(None, (self.run, f'degree of {what}')))
    stem = '-'.join(filter(None, (self.run.replace(' ', ''), what)))
    path = self.workdir.root / 'degrees' / f'{stem}-{stages.key(config)}.npz'
    epochs = seeds * self.settings.epochs
    if parallel.by_first(path.exists):
      self.progress.skip(title, epochs, 'done before')
      return read(path)
    self.progress.begin(title, epochs)
    label = name if name in degree.LABELS else 'unlearned'
    sets = self.plan.unseen if unseen else self.plan.known
    with generators(
      self.workdir, stem, config, self.settings.epochs, seeds, self.progress
    ) as hooks:
      measured = pair_degree(
        self.plan.key,
        self.model,
        self.source.state,
        other.state,
        sets,
        self.settings,
        seeds=seeds,
        on_epoch=hooks.on_epoch,
        keeper=hooks.keeper,
      )
      label = 'unseen' if unseen else label
      kept = keep(label, measured, sets, self.settings)
      content = written(kept)
      parallel.by_first(lambda: str(files.replace(path, content)))
    mean = 100 * kept.found['degree']['mean']
    self.progress.end(f'{mean:.1f} points on the held-out half')
    return read(path)


class Hooks(NamedTuple):
  """What `pair_degree` takes by these names."""

  on_epoch: Callable[[int, Epoch], None]
  keeper: Callable[[int], Keeper]


@contextlib.contextmanager
def generators(
  workdir: stages.Workdir,
  name: str,
  config: dict[str, Any],
  epochs: int,
  seeds: int,
  progress: Progress,
) -> Iterator[Hooks]:
  """Keeps the generators of a pair until the end of a `with` block.

  Args:
    workdir: where.
    name: of the pair.
    config: everything that its result depends on.
    epochs: of each generator.
    seeds: how many generators.
    progress: told of all their epochs as of one stage's.

  Raises:
    Stopped: the program was asked to end; generators are saved.
  """

  def partial(seed: int):
    def goes_on(epoch: int) -> None:
      # One line, of the last generator that there is something of.
      if seed + 1 == seeds or not every[seed + 1].folder.exists():
        progress.goes_on(seed * epochs + epoch)

    return workdir.partial(
      f'{name}-generator{seed}',
      config,
      goes_on,
      lambda done: progress.advance(seed * epochs + done),
    )

  every = [partial(seed) for seed in range(seeds)]
  saved_at = time.monotonic()

  def flush() -> None:
    for kept in every:
      kept.flush()

  def tell(seed: int, epoch: Epoch) -> None:
    nonlocal saved_at
    # Each saves itself if it takes long; here those that were quick.
    if epoch.epoch == epochs and parallel.by_first(
      lambda: time.monotonic() - saved_at >= workdir.save_seconds
    ):
      flush()
      saved_at = time.monotonic()
    progress.epoch(epoch._replace(epoch=seed * epochs + epoch.epoch))

  # A signal waits for the next call that trains, which raises.
  with preemption.deferred():
    try:
      yield Hooks(tell, every.__getitem__)
    except preemption.Stopped:
      flush()
      raise
    for kept in every:
      kept.remove()


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


def grid(pair: Pair, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images that were not fitted on, and what became of them."""
  return degree_figures.image_grid(
    pair.images,
    pair.perturbed,
    [shown(class_names[label], 24) for label in pair.labels],
  )
