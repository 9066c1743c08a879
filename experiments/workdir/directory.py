"""A directory of stages that belong to one problem, one run at a time."""

import contextlib
import datetime
import os
import pathlib
import socket

import filelock
import msgspec

from unlearn_jax import parallel
from unlearn_jax.base import InputError, require_file, shown
from .. import files

_IDENTITY = 'workdir.json'
_LOCK, _HOLDER = '.unlearn_jax.lock', '.unlearn_jax.holder'
# What makes a directory ours, such as its data and its model.
Identity = dict[str, str | int | None]


class Workdir:
  """A work directory; only `claim` writes into it."""

  def __init__(
    self, root: pathlib.Path, identity: Identity, flag: str = 'workdir'
  ):
    """Checks, without writing, that `root`, of this flag, can be used."""
    self.root, self._identity, self._flag = root, identity, f'--{flag}'
    self._lock: filelock.BaseFileLock | None = None
    parallel.by_first(self._check)

  def _check(self) -> None:
    others = False
    try:
      name = self.root.absolute().as_posix()
      if '\\' in name or ':/' in name or not name.encode():
        raise ValueError('a backslash or a URL is in it')
      others = not all(map(_is_beginning, self.root.iterdir()))
    except FileNotFoundError:
      pass
    except (OSError, ValueError) as error:  # Such as too long, or with a NUL.
      raise self._unusable(error) from error
    if others:
      self._check_identity()

  def claim(self) -> None:
    """Makes the directory, keeps other runs out, and marks whose it is.

    Others are kept out as long as this object lives, and no longer than the
    process does.
    """
    path = self.root / _IDENTITY
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      self._take_lock()
      if not path.exists():
        content = msgspec.json.format(msgspec.json.encode(self._identity))
        files.replace(path, content + b'\n')
    except OSError as error:
      raise self._unusable(error) from error
    self._check_identity()

  def _take_lock(self) -> None:
    lock, holder = filelock.FileLock(self.root / _LOCK), self.root / _HOLDER
    try:
      lock.acquire(blocking=False)
    except filelock.Timeout:
      known = ''
      with contextlib.suppress(OSError):
        known = f' by {shown(holder.read_text(errors="replace").strip())}'
      raise InputError(
        f'{self._flag}={self.root} is in use{known}; allowed: another'
        f' {self._flag}, or this one once that run has ended'
      ) from None
    except NotImplementedError:  # A file system that keeps no locks.
      return
    self._lock = lock
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    with contextlib.suppress(OSError):  # On a full disk it is held without.
      who = f'process {os.getpid()} on {socket.gethostname()} since {now}\n'
      files.replace(holder, who.encode())

  def _check_identity(self) -> None:
    root, path = self.root, self.root / _IDENTITY
    try:
      require_file(path)
      found = msgspec.json.decode(path.read_bytes(), type=Identity)
    except (OSError, ValueError, RecursionError):
      raise InputError(
        f'{self._flag}={root}, allowed: an empty directory or one of this'
        f' program ({_IDENTITY} is missing or broken there)'
      ) from None
    for name, value in self._identity.items():
      if found.get(name) != value:
        raise InputError(
          f'{self._flag}={root} belongs to {name}={shown(found.get(name))},'
          f' this run has {name}={value}; allowed: another {self._flag}'
        )

  def _unusable(self, error: Exception) -> InputError:
    reason = getattr(error, 'strerror', None) or error
    return InputError(
      f'{self._flag}={shown(self.root)}, allowed: a directory that can be'
      f' written ({reason})'
    )


def require_claimed(root: pathlib.Path) -> None:
  """Refuses to write where somebody has removed the directory under a run."""
  if not (root / _IDENTITY).exists():
    raise InputError(
      f'--workdir={shown(root)} was removed while it was in use; allowed: the'
      ' same command, which starts anew'
    )


def _is_beginning(path: pathlib.Path) -> bool:
  """Whether it is what a run makes before it has marked the directory."""
  drafts = f'.{_IDENTITY}.tmp', f'.{_HOLDER}.tmp'
  return path.name in (_LOCK, _HOLDER, *drafts) and not path.is_symlink()
