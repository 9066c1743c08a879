"""SIGTERM, SIGINT and SIGHUP: what is in flight is saved, then it ends.

A thread of its own hears the signals, because the main one can be inside a
compiled program for long. No handler raises anything, so nothing swallows it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import select
import signal
import sys
import threading
import time
from typing import NoReturn

from unlearn_jax import parallel

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NOTE = 'finished stages are kept, the same command goes on'
# Schedulers give 30 s, and then kill.
_PATIENCE = 25.0
# `timeout`, a terminal that is closed and others send a signal twice.
_ECHO = 0.5


class Stopped(BaseException):  # noqa: N818 - it is no error
  """The run was asked to end, by `signum`; `note` says how far it got."""

  def __init__(self, signum: int, note: str):
    super().__init__(note)
    self.signum, self.note = signum, note


@dataclasses.dataclass
class _State:
  """What has been asked for, and how many `working` blocks are open."""

  signum: int | None = None
  depth: int = 0
  continued: int = 0  # how often it was stopped (Ctrl-Z) and goes on


_state, _lock = _State(), threading.Lock()


def requested() -> int | None:
  """The signal by which the run was asked to end, as far as is known here."""
  return _state.signum


def continued() -> int:
  """How often the process was stopped and went on."""
  return _state.continued


def asked() -> int | None:
  """The same of any process of the run; all processes have to call this."""
  signum = max(parallel.gathered(_state.signum or 0)) or None
  if signum:
    _state.signum = signum
  return signum


@contextlib.contextmanager
def working() -> Iterator[None]:
  """A `with` block in which a signal waits until somebody calls `asked`.

  At the end of the outermost block that is done here, and `Stopped` raised. A
  signal in the moment after that is left to the next block, or to `_PATIENCE`.
  """
  with _lock:
    _state.depth += 1
  try:
    yield
    signum = asked() if _state.depth == 1 else None
  finally:
    with _lock:
      _state.depth -= 1
  if signum:
    raise Stopped(signum, _NOTE)


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Hears the signals inside a `with` block, in the main thread."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  heard = *SIGNALS, signal.SIGCONT
  before = {number: signal.getsignal(number) for number in heard}
  if before[signal.SIGHUP] == signal.SIG_IGN:  # `nohup` wants it so.
    del before[signal.SIGHUP]
  woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in before:
    signal.signal(number, lambda *_: None)
  thread = threading.Thread(target=_listen, args=(reader,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(woken)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    thread.join()
    os.close(reader)
    _state.signum = None


def _listen(reader: int) -> None:
  """Runs in the thread, until the pipe is closed."""
  number, began, left = 0, 0.0, None
  while select.select([reader], [], [], left)[0]:
    heard = os.read(reader, 1)
    if not heard:
      return
    if heard[0] == signal.SIGCONT:
      _state.continued += 1
    if number and heard[0] in SIGNALS and time.monotonic() > began + _ECHO:
      break
    if not number and heard[0] in SIGNALS:
      number, began = heard[0], time.monotonic()
      with _lock:  # Meanwhile no work begins.
        if not _state.depth:
          _leave(number, _NOTE)
        _state.signum = number
      name = signal.Signals(number).name
      _say(f'{name}: saving and stopping; once more stops at once')
    if number:
      left = max(0.0, began + _PATIENCE - time.monotonic())
  _leave(number, 'at once; what was saved is kept, the same command goes on')


def _leave(signum: int, note: str) -> NoReturn:
  _say(f'stopped by {signal.Signals(signum).name}: {note}')
  # In a thread: whoever prints may be stuck in a full pipe.
  flush = threading.Thread(target=sys.stdout.flush, daemon=True)
  flush.start()
  flush.join(1.0)
  os._exit(128 + signum)


def _say(text: str) -> None:
  start = '\n' if os.isatty(2) else ''  # Beside a progress bar.
  with contextlib.suppress(OSError):
    os.write(2, f'{start}{text}\n'.encode())
