"""A stage: what it depends on, where its result lies, how it is carried out."""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple, Protocol

import jax
import msgspec

from experiments import config, settings
from experiments.runtime import signals
from experiments.runtime.progress import Progress
from experiments.study import provenance
from experiments.workdir import finished
from experiments.workdir.partials import Partial
from unlearn_jax import checkpoints, parallel, training
from unlearn_jax.base import InputError

_ADVICE = 'allowed: smaller learning rates and ε'


class Output(NamedTuple):
  """What a stage has computed."""

  tree: dict[str, Any]  # nested dictionary of arrays: a model, or images
  manifest: Any  # what is said of it, a dataclass
  files: Mapping[str, bytes]  # beside it, by name
  note: str  # a few words for whoever watches


class Work(Protocol):
  """How a stage is computed: pure data, so that any process can do it."""

  @property
  def study(self) -> config.Study:
    """What it is a part of."""

  def compute(
    self, stage: 'Stage', partial: Partial, progress: Progress
  ) -> Output:
    """Computes it, going on with what `partial` has kept."""


class StageFailedError(InputError):
  """A stage without a result: it diverged, or there is nothing to measure."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """One result and what it takes."""

  root: pathlib.Path  # the work directory
  name: str  # what its folder's name begins with, 'seed0-top_k'
  title: str  # what a person calls it
  depends: Mapping[str, Any]  # all that its result depends on, in JSON's types
  work: Work | None  # how it is computed; None for a checkpoint that is given
  # Stages that come first, by role.
  parents: Mapping[str, 'Stage'] = dataclasses.field(default_factory=dict)
  # The most that it trains for, for whoever tells the time left.
  epochs: int = 0
  required: bool = False  # whether nothing can be said without it
  given: pathlib.Path | None = None  # folder of a checkpoint from elsewhere

  @functools.cached_property
  def key(self) -> str:
    """A hash of what the result depends on, its parents' keys included."""
    parents = {role: parent.key for role, parent in self.parents.items()}
    return settings.key({'depends': self.depends, 'parents': parents})

  @property
  def path(self) -> pathlib.Path:
    """Where the finished stage is, or will be."""
    if self.given is not None:
      return self.given
    return self.root / 'checkpoints' / f'{self.name}-{self.key}'

  def done(self) -> bool:
    """Whether it is finished: the same answer in all processes."""
    return parallel.by_first(self.path.exists)

  def partial(self, save_seconds: float, progress: Progress) -> Partial:
    """Keeps its training while it is under way."""
    return Partial(self.path, save_seconds, progress.goes_on, progress.advance)


def carry_out(stage: Stage, save_seconds: float, progress: Progress) -> str:
  """Computes a stage whose parents are done, unless it is done itself."""
  if stage.done():
    progress.skip(stage.title, stage.epochs, 'done before')
    return ''
  assert stage.work is not None
  _forget_programs(stage.work.study.group)
  partial, start = stage.partial(save_seconds, progress), time.monotonic()
  progress.begin(stage.title, stage.epochs)
  # A signal waits: for the next epoch, or for the stage if that was saved.
  with signals.working():
    try:
      output = stage.work.compute(stage, partial, progress)
    except training.DivergedError as error:
      note = '; '.join(filter(None, (_ADVICE, partial.last_finite())))
      raise diverged(stage, error.epoch, note) from error
    partial.settle()
    wall = partial.wall_seconds + time.monotonic() - start
    _save(stage, output, wall)
  partial.remove()
  progress.end(output.note)
  return output.note


# Of whose stages compiled programs are kept, if there was any.
_groups: list[Any] = []


def _forget_programs(group: Any) -> None:
  """Those of other shapes are not needed again soon, and each maps memory."""
  if _groups and _groups[-1] != group:
    jax.clear_caches()
  _groups[:] = [group]


def diverged(stage: Stage, epoch: int, note: str = _ADVICE) -> StageFailedError:
  """What to raise where numbers of a stage are not finite."""
  return StageFailedError(
    f'{stage.title} diverged in epoch {epoch}: a loss, a parameter or an output'
    f' is not finite; {note}'
  )


def _save(stage: Stage, output: Output, wall_seconds: float) -> None:
  manifest = msgspec.to_builtins(output.manifest)
  manifest |= {
    'code': msgspec.to_builtins(provenance.code()),
    'depends': msgspec.to_builtins(dict(stage.depends)),
    'wall_seconds': wall_seconds,
  }
  try:
    checkpoints.save_tree(stage.path, output.tree, manifest, files=output.files)
  except InputError:
    if not stage.path.exists():  # Else another process was faster.
      raise


def load(stage: Stage) -> finished.Finished:
  """The model of a finished stage."""
  try:
    model = finished.load(stage.path)
  except InputError as error:
    raise _with_advice(stage, error) from error
  source = stage.parents.get('source')
  if source is not None and stage.given is None:
    parent = finished.manifest(source.path).state_sha256
    if model.manifest.parent_sha256 != parent:
      raise InputError(
        f'{stage.path} was made from another source than {source.path};'
        ' remove that folder and the same command makes it anew'
      )
  return model


def _with_advice(stage: Stage, error: InputError) -> InputError:
  if checkpoints.is_unread(error) or stage.given is not None:
    return error
  return InputError(
    f'{error}; remove that folder and the same command makes it anew'
  )
