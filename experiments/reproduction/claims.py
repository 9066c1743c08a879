"""Who does what, among workers that see nothing of each other but one folder.

A claim on a stage is a file, `KEY.GENERATION`, whose creation is atomic: of
several workers one succeeds. Its owner touches it while it works. One that was
not touched for long belongs to a dead worker; then the next generation can be
created, again by one worker only. A worker whose process is gone from this
very machine is known to be dead at once. Claims are never deleted, so that a
worker whose view of the folder is late (NFS) cannot take what another has
finished.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
import socket
import threading
import time
from typing import Any

from experiments import stages
from unlearn_jax.base import InputError, require_file

EXPIRY_SECONDS = 600.0
_BEATS = 10  # touches in the time of an expiry


class Claim:
  """A stage that this worker, and no other, is at.

  Attributes:
    path: its file.
  """

  def __init__(self, path: pathlib.Path):
    """Of a file that was created just now."""
    self.path = path
    self._stem, generation = path.name.rsplit('.', 1)
    self._generation = int(generation)

  @property
  def lost(self) -> bool:
    """Whether another took over, having thought this worker dead."""
    later = self.path.with_name(f'{self._stem}.{self._generation + 1}')
    return later.exists()

  def touch(self) -> None:
    """Says that this worker lives."""
    with contextlib.suppress(OSError):  # A full or slow disk is no death.
      os.utime(self.path)

  def release(self) -> None:
    """Lets others take the stage at once: it was not finished."""
    if not self.lost:
      with contextlib.suppress(OSError):
        os.utime(self.path, (0, 0))


class Claims:
  """The claims of all workers on one folder."""

  def __init__(
    self,
    folder: pathlib.Path,
    owner: str,
    expiry: float = EXPIRY_SECONDS,
  ):
    """Nothing is written yet.

    Args:
      folder: the same for all workers; made where missing.
      owner: of this worker; no other has the same.
      expiry: seconds without a touch after which a worker counts as dead.
    """
    self._folder, self._owner, self._expiry = folder, owner, expiry

  def take(self, key: str) -> Claim | None:
    """Claims a stage; None if another worker has it."""
    self._folder.mkdir(parents=True, exist_ok=True)
    suffixes = [p.suffix[1:] for p in self._folder.glob(f'{key}.*')]
    taken = [int(text) for text in suffixes if re.fullmatch('[0-9]{1,9}', text)]
    latest = max(taken, default=-1)
    if latest >= 0 and not self._expired(f'{key}.{latest}'):
      return None
    path = self._folder / f'{key}.{latest + 1}'
    try:
      descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
      return None
    with os.fdopen(descriptor, 'w') as file:
      json.dump([self._owner, _machine(), os.getpid()], file)
    return Claim(path)

  @contextlib.contextmanager
  def held(self, claim: Claim) -> Iterator[Claim]:
    """Keeps a claim alive while the body runs; released if that raises."""
    over = threading.Event()

    def beat() -> None:
      while not over.wait(self._expiry / _BEATS):
        claim.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield claim
    except BaseException:
      over.set()
      thread.join()
      claim.release()
      raise
    finally:
      over.set()
      thread.join()

  def _expired(self, name: str) -> bool:
    """By the clock of the file system, which all workers share."""
    path = self._folder / name
    # Just created, not yet written; or damaged.
    with contextlib.suppress(ValueError, TypeError, RecursionError):
      require_file(path)
      _, machine, process = json.loads(path.read_text())
      if machine == _machine() and not _runs(process):
        return True
    probe = self._folder / f'.now-{self._owner}'
    probe.touch()
    return probe.stat().st_mtime - path.stat().st_mtime > self._expiry


def workdir(
  root: pathlib.Path, identity: dict[str, Any], patience: float = 1.0
) -> stages.Workdir:
  """A work directory that another worker may be making at this moment.

  Args:
    root: the directory.
    identity: see `stages.Workdir`.
    patience: seconds after which what looks like another program's directory
      is one.

  Raises:
    InputError: it is.
  """
  end = time.monotonic() + patience
  while True:
    try:
      return stages.Workdir(root, identity)
    except InputError:
      if time.monotonic() > end:
        raise
    time.sleep(patience / 5)


def _machine() -> list[str]:
  """What tells apart the machines, and containers, that have process ids."""
  names = [socket.gethostname()]
  for read in (
    lambda: pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(),
    lambda: os.readlink('/proc/self/ns/pid'),
  ):
    with contextlib.suppress(OSError):
      names.append(read().strip())
  return names


def _runs(process: Any) -> bool:
  if not isinstance(process, int) or process < 1:
    return True  # Nothing is known of it: its time has to run out.
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    pass
  return True
