"""One line a stage, with the time that is left."""

from collections.abc import Callable
import shutil
import sys
import time

from unlearn_jax.base import shown
from unlearn_jax.training import Epoch


def say(*lines: str) -> None:
  """Prints lines with anybody's names in them, and no escapes."""
  for line in lines:
    print(shown(line, 4000), flush=True)


class Progress:
  """Counts stages and epochs, and says how long the rest will take.

  On a terminal the line of the running stage is rewritten after each epoch;
  in a log there is one line for each finished stage, and one a minute.
  """

  def __init__(self, stages: int = 0, epochs: int = 0):
    """Starts the clock."""
    self._stages, self._epochs = stages, epochs
    self._stage = self._done = self._before = 0
    self._worked = self._planned_here = 0.0
    self._title, self._start = '', time.monotonic()
    self._shown = self._start

  def begin(self, title: str, epochs: int) -> None:
    """A stage of at most `epochs` epochs starts."""
    self._stage += 1
    self._title, self._planned_here, self._before = title, epochs, 0
    self._start = time.monotonic()

  def goes_on(self, epoch: int, restored: int | None = None) -> None:
    """The stage had been stopped."""
    restored = epoch if restored is None else restored
    self._before += restored
    self._epochs -= restored
    planned = f'{epoch}/{int(self._planned_here)}'
    self._say(f'{self._head()}  goes on after epoch {planned}')

  def epoch(self, epoch: Epoch) -> None:
    """An epoch of the stage is over."""
    numbers = ''.join(
      f'  {name.split("_")[0]} {100 * epoch.measured[name]:.1f} %'
      for name in ('forget_accuracy', 'retain_accuracy')
      if name in epoch.measured
    )
    self.advance(epoch.epoch, numbers)

  def after(self, before: int) -> Callable[[Epoch], None]:
    """`epoch`, of a part of the stage before which so many were over."""
    return lambda own: self.epoch(own._replace(epoch=before + own.epoch))

  def advance(self, epochs: float, numbers: str = '') -> None:
    """So many epochs of the stage are done, and a part of one among them."""
    now, rewrites = time.monotonic(), sys.stdout.isatty()
    if not rewrites and now - self._shown < 60:
      return
    self._shown = now
    # '3', or '3.25' in the midst of the fourth epoch.
    short = f'{epochs:.2f}' if epochs % 1 else f'{epochs:.0f}'
    planned = f'epoch {short}/{int(self._planned_here)}'
    worked = self._worked + now - self._start
    left = self._left(worked, self._done + epochs - self._before)
    head, tail = self._head(), f'  {planned}{numbers}{left}'
    if rewrites:  # What is wrapped cannot be rewritten.
      room = shutil.get_terminal_size().columns - 1
      tail = tail if len(tail) < room else f'  {planned}'[:room]
      if len(head) > room - len(tail):
        head = head[: max(0, room - len(tail) - 1)] + '…'
    self._say(head + tail, end='' if rewrites else '\n')

  def elsewhere(self, title: str, epochs: int, note: str) -> None:
    """A worker has ended a stage: it took what passed since the one before."""
    last = self._shown
    self.begin(title, epochs)
    self._start = last
    self.end(note)

  def end(self, note: str) -> None:
    """The stage is over; `note` says what came out."""
    self._worked += time.monotonic() - self._start
    self._done += int(self._planned_here) - self._before
    self._shown = time.monotonic()
    left = self._left(self._worked, self._done)
    self._say(f'{self._head()}  {note}{left}')

  def skip(self, title: str, epochs: int, note: str) -> None:
    """A stage that was done before."""
    self._stage += 1
    self._epochs -= epochs
    self._title = title
    self._say(f'{self._head()}  {note}')

  def _say(self, line: str, end: str = '\n') -> None:
    clear = '\r\x1b[K' if sys.stdout.isatty() else ''
    print(f'{clear}{shown(line, 4000)}', end=end, flush=True)

  def _head(self) -> str:
    width = len(str(self._stages))
    return f'[{self._stage:{width}}/{self._stages}] {self._title:24}'

  def _left(self, seconds: float, epochs: float) -> str:
    """The time that is left, as words to end a line with."""
    remaining = max(0, self._epochs - epochs)
    if not epochs or not remaining:
      return ''
    return f'  at most {clock(seconds / epochs * remaining)} left'


class Silent(Progress):
  """Says nothing: in a worker, whose stages somebody else counts."""

  def _say(self, line: str, end: str = '\n') -> None:
    pass


def clock(seconds: float) -> str:
  """Seconds as '4:05' or '1:00:00'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
