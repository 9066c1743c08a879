"""A stage: what it depends on, where its result lies, how it is carried out."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import msgspec

from unlearn_jax import checkpoints, parallel, training
from unlearn_jax.base import InputError, Splits
from .. import config, settings
from ..runtime import signals
from ..runtime.progress import Progress
from ..workdir import directory, finished
from ..workdir.partials import Partial
from . import provenance
from . import setup as setups
from .setup import Setup


class Output(NamedTuple):
  """What a stage has computed."""

  tree: dict[str, Any]  # nested dictionary of arrays: a model, or images
  manifest: Any  # what is said of it, a dataclass or a dictionary
  files: Mapping[str, bytes]  # beside it, by name
  note: str  # a few words for whoever watches


# Computes a stage, going on with what the `Partial` has kept: a function of a
# module and data, so that any process can do it.
Work = Callable[['Stage', Partial, Progress], Output]


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
  study: config.Study | None = None  # that it is a part of; None if given
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
    if self.path.is_symlink() and not self.path.exists():
      raise InputError(f'{self.path} is a link to nothing, allowed: no link')
    return parallel.by_first(self.path.exists)


def given(model: finished.Finished, name: str) -> Stage:
  """A model that is there, as a parent of stages."""
  depends = {'given': model.manifest.state_sha256}
  return Stage(model.path.parent, name, name, depends, None, given=model.path)


def problem(stage: Stage, run: int) -> tuple[config.Study, Setup, Splits]:
  """A stage's study, with data and model, and the forget set of a run."""
  assert stage.study is not None
  setup = setups.set_up(stage.study)
  return stage.study, setup, setups.draw(setup, stage.study, run)


def carry_out(stage: Stage, progress: Progress) -> str:
  """Computes a stage whose parents are done; '' if it is done itself."""
  if stage.done():
    return ''
  assert stage.work is not None and (study := stage.study) is not None
  _forget_programs(study.data, study.network, study.forget, study.training)
  seconds, start = study.execution.save_seconds, time.monotonic()
  stops = signals.continued()
  partial = Partial(stage.path, seconds, progress.goes_on, progress.advance)
  progress.begin(stage.title, stage.epochs)
  # A signal waits: for the next epoch, or for the stage if that was saved.
  with signals.working():
    try:
      output = stage.work(stage, partial, progress)
    except training.DivergedError as error:
      raise StageFailedError(
        f'{stage.title} diverged in epoch {error.epoch}: a loss, a parameter or'
        ' an output is not finite; allowed: smaller learning rates and ε'
      ) from error
    facts = {
      'wall_seconds': partial.wall_seconds + time.monotonic() - start,
      'stopped': signals.continued() > stops,
      'code': provenance.code(),
      'depends': dict(stage.depends),
    }
    manifest = msgspec.to_builtins(output.manifest) | msgspec.to_builtins(facts)
    directory.require_claimed(stage.root)
    try:
      how = stage.path, output.tree, manifest
      checkpoints.save(*how, files=output.files)
    except InputError:
      if not stage.path.exists():  # Else another process was faster.
        raise
  partial.remove()
  return output.note


@functools.lru_cache(maxsize=1)
def _forget_programs(*shapes: Any) -> None:
  """Those of other shapes are not needed soon, and each maps memory."""
  jax.clear_caches()


def load(stage: Stage) -> finished.Finished:
  """The model of a finished stage."""
  source = stage.parents.get('source')
  try:
    model = finished.load(stage.path)
    if source is not None:
      parent = finished.manifest(source.path).state_sha256
      if model.manifest.parent_sha256 != parent:
        raise InputError(
          f'{stage.path} was made from another source than {source.path}'
        )
  except InputError as error:
    if checkpoints.is_unread(error) or stage.given is not None:
      raise
    raise InputError(
      f'{error}; remove that folder and the same command makes it anew'
    ) from error
  return model
