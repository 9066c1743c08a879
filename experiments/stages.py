"""The work directory: every stage keyed by what it depends on, done once.

    WORKDIR/workdir.json              whose directory this is
    WORKDIR/.lock                     of the run that is at it, see `locks`
    WORKDIR/checkpoints/NAME-KEY/     a finished stage, see `checkpoints`
    WORKDIR/checkpoints/.NAME-KEY.partial/    one in the making, see `partials`
    WORKDIR/report.{json,md,html}     written by `report`

KEY is a hash of the stage's own configuration and of its parent's key, so a
changed flag leads to other folders for just what depends on it, and nothing
is ever overwritten.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from experiments import files, locks, partials, preemption
from unlearn_jax import checkpoints, parallel
from unlearn_jax.base import InputError, ModelState, require_file, shown
from unlearn_jax.evaluation import Predictions

FORGET = 'forget.txt'
RECORD = 'record.json'
PREDICTIONS = 'predictions.npz'
_IDENTITY = 'workdir.json'


@dataclasses.dataclass(frozen=True)
class Stage:
  """A finished stage.

  Attributes:
    path: its checkpoint.
    state: the model.
    manifest: what `checkpoints` keeps beside it.
    record: curve, seconds and selection, JSON-serialisable.
    predictions: of every example of every split.
    restored: whether it had been done before.
  """

  path: pathlib.Path
  state: ModelState
  manifest: dict[str, Any]
  record: dict[str, Any]
  predictions: Predictions
  restored: bool


def key(config: Any) -> str:
  """Twelve hex digits of a JSON-serialisable configuration."""
  text = json.dumps(config, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


class Workdir:
  """A directory of stages that belong to one data set and one model."""

  def __init__(
    self,
    root: pathlib.Path,
    identity: dict[str, Any],
    save_seconds: float = partials.SAVE_SECONDS,
  ):
    """Checks, without writing, that `root` can be used.

    Args:
      root: the directory; it need not exist.
      identity: data set and model; a directory that exists must have the
        same.
      save_seconds: from one save of a training to the next; 0 saves every
        epoch.

    Raises:
      InputError: not writable, not a directory, or another's.
    """
    self.root, self._identity = root, identity
    self.save_seconds = save_seconds
    self._partials: dict[pathlib.Path, partials.Partial] = {}
    self._lock: locks.Lock | None = None
    parallel.by_first(self._check)

  def _check(self) -> None:
    root = self.root
    nearest = root.absolute()
    try:
      while not nearest.exists():
        nearest = nearest.parent
      os.lstat(root.absolute())
    except (FileNotFoundError, NotADirectoryError):
      pass
    except (OSError, ValueError) as error:  # Too long, or with a NUL.
      raise InputError(
        f'--workdir={shown(root)}, allowed: a directory that can be written'
        f' ({getattr(error, "strerror", None) or error})'
      ) from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
      raise InputError(
        f'--workdir={root}, allowed: a directory that can be written'
        f' ({nearest} cannot)'
      )
    if root.exists() and not all(map(_is_beginning, root.iterdir())):
      self._check_identity()

  def claim(self, shared: bool = False) -> None:
    """Makes the directory, keeps others out, and marks whose it is.

    Others are kept out as long as this object lives, and no longer than the
    process does.

    Args:
      shared: whether others may claim it too, if they share it as well.

    Raises:
      InputError: it cannot be made, another process is at it, or it has
        become another's.
    """
    path = self.root / _IDENTITY
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      self._lock = locks.take(self.root, shared)
      if not path.exists():
        text = json.dumps(self._identity, indent=2) + '\n'
        files.replace(path, text.encode())
    except OSError as error:
      raise InputError(
        f'--workdir={self.root}, allowed: a directory that can be written'
        f' ({error.strerror})'
      ) from error
    self._check_identity()
    if not shared:
      for name in ('', 'degrees', 'figures'):
        files.sweep(self.root / name)

  def _check_identity(self) -> None:
    root = self.root
    try:
      require_file(root / _IDENTITY)
      found = json.loads((root / _IDENTITY).read_text())
    except (OSError, ValueError, RecursionError):
      raise InputError(
        f'--workdir={root}, allowed: an empty directory or one of this'
        f' program ({_IDENTITY} is missing or broken there)'
      ) from None
    for name, value in self._identity.items():
      if not isinstance(found, dict) or found.get(name) != value:
        other = found.get(name) if isinstance(found, dict) else None
        raise InputError(
          f'--workdir={root} belongs to {name}={shown(other)}, this run has'
          f' {name}={value}; allowed: another --workdir'
        )

  def folder(self, name: str, config: dict[str, Any]) -> pathlib.Path:
    """Where the stage with this configuration is, or will be."""
    return self.root / 'checkpoints' / f'{name}-{key(config)}'

  def done(self, name: str, config: dict[str, Any]) -> bool:
    """Whether that stage is finished: the same answer in all processes."""
    return parallel.by_first(self.folder(name, config).exists)

  def partial(
    self,
    name: str,
    config: dict[str, Any],
    tell: Callable[[int], None] | None = None,
    advance: Callable[[float], None] | None = None,
  ) -> partials.Partial:
    """Keeps the training of the stage with this configuration.

    Args:
      name: of the stage, as in `run`.
      config: its configuration, as in `run`.
      tell: see `partials.Partial`.
      advance: see `partials.Partial`.

    Returns:
      The same one as before where neither is given.
    """
    path = self.folder(name, config)
    before = self._partials.get(path)
    if before and not (tell or advance):
      return before
    if before:
      before.settle()
    kept = partials.Partial(path, self.save_seconds, tell, advance)
    self._partials[path] = kept
    return kept

  def flush(self) -> None:
    """Saves what the trainings that were broken off here had reached."""
    for partial in self._partials.values():
      partial.flush()

  def run(
    self,
    name: str,
    config: dict[str, Any],
    manifest: dict[str, Any],
    compute: Callable[[], tuple[ModelState, dict[str, Any], Predictions]],
    forget_ids: Sequence[str] = (),
  ) -> Stage:
    """Restores the stage, or computes and saves it.

    Args:
      name: what a person calls it.
      config: everything that its result depends on.
      manifest: what else is written beside it.
      compute: `() -> (state, record, predictions)`.
      forget_ids: identifiers of the forget set that belongs to it.

    Returns:
      The stage.
    """
    path, partial = self.folder(name, config), self.partial(name, config)
    restored = self.done(name, config)
    if not restored:
      # A signal waits: for the next epoch, or for the stage if that was saved.
      with preemption.deferred(partials.asked):
        start = time.monotonic()
        state, record, predictions = compute()
        partial.settle()
        wall = partial.wall_seconds + time.monotonic() - start
        extra = _files({**record, 'wall_seconds': wall}, predictions)
        if len(forget_ids):
          extra[FORGET] = ('\n'.join(map(str, forget_ids)) + '\n').encode()
        manifest = {**manifest, 'config': config}
        checkpoints.save(path, state, manifest, files=extra)
    partial.remove()
    return dataclasses.replace(_load_own(path), restored=restored)


def _is_beginning(path: pathlib.Path) -> bool:
  """Whether it is what a run makes before it has marked the directory."""
  return path.name == locks.NAME or path.match(f'.{_IDENTITY}.*.tmp')


def _files(
  record: dict[str, Any], predictions: Predictions
) -> dict[str, bytes]:
  buffer = io.BytesIO()
  np.savez(buffer, **predictions._asdict())
  text = json.dumps(record, indent=1, allow_nan=False)
  return {RECORD: text.encode(), PREDICTIONS: buffer.getvalue()}


def _load_own(path: pathlib.Path) -> Stage:
  """`load`, with what to do about a stage that is damaged."""
  try:
    return load(path)
  except InputError as error:
    if checkpoints.is_unread(error):
      raise
    raise InputError(
      f'{error}; remove that folder and the same command makes it anew'
    ) from error


def load(path: pathlib.Path) -> Stage:
  """Reads a finished stage.

  Raises:
    InputError: it is not there or damaged.
  """
  state, manifest = checkpoints.restore(path)
  for name in (RECORD, PREDICTIONS):
    require_file(path / name)
  try:
    record = json.loads((path / RECORD).read_text())
    with np.load(path / PREDICTIONS, allow_pickle=False) as arrays:
      predictions = Predictions(*(arrays[n] for n in Predictions._fields))
  # zipfile, JSON and missing-key errors have no common type but this.
  except Exception as error:
    raise checkpoints.refusal(path, error) from error
  return Stage(path, state, manifest, record, predictions, restored=True)
