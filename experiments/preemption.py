"""SIGTERM and SIGINT: what is in flight is finished and saved, then it ends.

The first signal is a request. Where work would be lost (`deferred`) it waits
until whoever does the work asks for `requested`; elsewhere it ends the program
where it stands. The second signal ends the process at once, even while the
main thread is inside a compiled program, and so does a first one that was not
followed within `_PATIENCE` seconds: a thread of its own reads the signals.

Where no exception gets out, in an event loop of asyncio (Orbax has one) or a
callback of the garbage collector, a signal is given once more a moment later.

In a run of several processes the first signal is handed on (`told`, `relay`).
What another process was sent does not count as a second signal.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import select
import signal
import sys
import threading
import time
import types
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):  # noqa: N818 - it is no error
  """The program was asked to end.

  Not an `Exception`, so that nothing on its way mistakes it for a failure.

  Attributes:
    signum: which signal asked for it.
    note: how far the work got, and what goes on from there.
  """

  def __init__(self, signum: int, note: str):
    super().__init__(note)
    self.signum, self.note = signum, note


@dataclasses.dataclass
class _Requests:
  """What has been asked for, and how many deferrals are open.

  `relayed` counts the signals that come from other processes or are given once
  more by a timer of `again`, and `tell` is told of the first that does not.
  """

  signum: int | None = None
  depth: int = 0
  relayed: int = 0
  tell: Callable[[int], None] | None = None
  again: list[threading.Timer] = dataclasses.field(default_factory=list)


_requests = _Requests()
# Schedulers give 30 s, and then kill.
_PATIENCE = 25.0
_NOTE = 'finished stages are kept, the same command goes on'


def requested() -> int | None:
  """The signal by which the program was asked to end, or None."""
  return _requests.signum


def agree(signum: int) -> None:
  """Takes over a request that other processes know of already."""
  _requests.signum = _requests.signum or signum


def relay(signum: int) -> None:
  """Gives this process a signal that another process of its run was sent."""
  _requests.relayed += 1
  os.kill(os.getpid(), signum)


@contextlib.contextmanager
def told(tell: Callable[[int], None]) -> Iterator[None]:
  """Tells of the first signal that is this process's own, in a `with` block."""
  _requests.tell = tell
  try:
    yield
  finally:
    _requests.tell = None


@contextlib.contextmanager
def deferred(asked: Callable[[], int | None] = requested) -> Iterator[None]:
  """Lets a signal wait for the end of a `with` block.

  Args:
    asked: called at the end of the block; the signal by which to end, if any.

  Raises:
    Stopped: at the end of the block, where a signal has come in it.
  """
  _requests.depth += 1
  try:
    yield
    signum = asked()
  finally:
    _requests.depth -= 1
  signum = signum or _requests.signum  # It may have come after `asked`.
  if signum and not _requests.depth:
    raise Stopped(signum, _NOTE)


def stopped() -> Stopped | None:
  """What to raise where work failed because the run was asked to end."""
  return Stopped(_requests.signum, _NOTE) if _requests.signum else None


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Handles the signals inside a `with` block, in the main thread only."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _requests.signum, _requests.depth, _requests.relayed = None, 0, 0
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = {number: signal.signal(number, _handle) for number in SIGNALS}
  woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  hook = sys.unraisablehook
  sys.unraisablehook = lambda what: _is_swallowed(what) or hook(what)
  thread = threading.Thread(target=_listen, args=(reader,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    for timer in _requests.again:
      timer.cancel()
      timer.join()
    _requests.again.clear()
    sys.unraisablehook = hook
    signal.set_wakeup_fd(woken)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    thread.join()
    os.close(reader)
    # Whoever watches no more is not asked to end either.
    _requests.signum = None


def _handle(signum: int, frame: Any) -> None:
  """Runs in the main thread, as soon as that is in Python code."""
  if _requests.signum is not None:
    return  # It is on its way out already.
  if not _requests.depth and _is_in_event_loop(frame):
    _give_again(signum)
    return
  _requests.signum = signum
  if not _requests.depth:
    raise Stopped(_requests.signum, _NOTE)


def _is_in_event_loop(frame: types.FrameType | None) -> bool:
  while frame is not None:
    if str(frame.f_globals.get('__name__')).startswith('asyncio.'):
      return True
    frame = frame.f_back
  return False


def _is_swallowed(what: Any) -> bool:
  """Told what Python lets nobody see: whether that is a `Stopped`."""
  if not isinstance(what.exc_value, Stopped):
    return False
  _requests.signum = None
  _give_again(what.exc_value.signum)
  return True


def _give_again(signum: int) -> None:
  timer = threading.Timer(0.05, relay, (signum,))
  _requests.again.append(timer)
  timer.start()


def _listen(reader: int) -> None:
  """Runs in a thread: it hears a signal whatever the main thread does."""
  heard, own, signum, until = 0, 0, 0, None
  while True:
    left = None if until is None else max(0.0, until - time.monotonic())
    if not select.select([reader], [], [], left)[0]:
      _leave(signum)
    numbers = os.read(reader, 1)
    if not numbers:
      return
    if numbers[0] not in SIGNALS:
      continue
    signum, heard = numbers[0], heard + 1
    until = until or time.monotonic() + _PATIENCE
    before, own = own, heard - _requests.relayed
    if own > 1:
      _leave(signum)
    if own == before:  # It is another process's, or one that is given again.
      continue
    tell = _requests.tell  # It may be taken away meanwhile.
    if own == 1 and tell:
      tell(signum)
    if own == 1 and _requests.depth:
      name = signal.Signals(signum).name
      _say(f'{name}: saving and stopping; once more stops at once')


def _leave(signum: int) -> NoReturn:
  _say('stopped at once; what was saved is kept, the same command goes on')
  os._exit(128 + signum)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):
    os.write(2, f'\n{text}\n'.encode())
