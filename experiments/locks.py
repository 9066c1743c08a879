"""One run in a directory at a time, by a lock that ends with its process.

The kernel keeps it (`flock`), so it is free again once the process is gone,
however that died. The file `.lock` stays and blocks nobody; what is written
in it only tells others who was the last to take the lock.
"""

import datetime
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time
import weakref

from unlearn_jax.base import InputError

NAME = '.lock'
# Of a file system that has no locks, or a mount that has them turned off.
_UNSUPPORTED = {
  errno.ENOSYS,
  errno.ENOLCK,
  errno.EOPNOTSUPP,
  errno.ENOTSUP,
  errno.EINVAL,
}
_TRIES, _PAUSE = 3, 0.1


class Lock:
  """Held until it is closed, collected, or the process ends.

  Attributes:
    shared: whether others may hold it too, if theirs is shared as well.
  """

  def __init__(self, descriptor: int, shared: bool):
    """Of a file that is locked already."""
    self.shared = shared
    self.close = weakref.finalize(self, os.close, descriptor)


# Those of this process, by the file's device and inode.
_held: 'weakref.WeakValueDictionary[tuple[int, int], Lock]' = (
  weakref.WeakValueDictionary()
)


def take(root: pathlib.Path, shared: bool = False) -> Lock | None:
  """Locks a directory, which another process then cannot.

  Several calls in one process get the same lock; a child process gets none.

  Args:
    root: the directory; it exists.
    shared: whether others may take it as well, if theirs is shared too.

  Returns:
    What has to be kept as long as the lock; None on a file system that keeps
    no locks, which a warning says.

  Raises:
    InputError: another process has it.
    OSError: the lock's file cannot be made.
  """
  path = root / NAME
  # For writing, without which NFS gives no exclusive lock.
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  status = os.fstat(descriptor)
  key = status.st_dev, status.st_ino
  known = _held.get(key)
  if known is not None and known.close.alive and known.shared <= shared:
    os.close(descriptor)
    return known
  try:
    taken = _lock(descriptor, shared)
  except OSError as error:
    os.close(descriptor)
    if error.errno not in _UNSUPPORTED:
      raise
    if not shared:
      _warn(root, error)
    return None
  if not taken:
    holder = _holder(descriptor)
    os.close(descriptor)
    raise InputError(
      f'--workdir={root} is in use{holder}; allowed: another --workdir, or'
      ' this one once that run has ended'
    )
  _sign(descriptor)
  lock = _held[key] = Lock(descriptor, shared)
  return lock


def _lock(descriptor: int, shared: bool) -> bool:
  """Whether it could be locked; asks again for a moment.

  In that moment a process that has just taken it writes who it is.
  """
  kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  for attempt in range(_TRIES):
    time.sleep(_PAUSE * bool(attempt))
    try:
      fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      pass
  return False


def _sign(descriptor: int) -> None:
  """Writes who has the lock; on a full disk it is held without."""
  now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
  text = f'process {os.getpid()} on {socket.gethostname()} since {now}\n'
  try:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
  except OSError:
    pass


def _holder(descriptor: int) -> str:
  """Who has the lock, in words that begin with a space, or nothing."""
  try:
    text = os.pread(descriptor, 500, 0).decode(errors='replace')
  except OSError:
    return ''
  line = ' '.join(text.split())
  return f' by {line}' if line.startswith('process ') else ''


def _warn(root: pathlib.Path, error: OSError) -> None:
  print(
    f'warning: --workdir={root}: its file system keeps no locks'
    f' ({error.strerror}); see to it that no other run uses it',
    file=sys.stderr,
    flush=True,
  )


def _leave_to_parent() -> None:
  """In a forked child, whose copies would hold what the parent has let go."""
  for lock in list(_held.values()):
    lock.close()
  _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
