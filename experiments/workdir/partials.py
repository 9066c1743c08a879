"""A stage that is not finished: its training, saved now and then.

    WORKDIR/checkpoints/.NAME-KEY.partial/epoch-000007/

lies beside where the finished stage will be, and goes when that is there. The
two last saves are kept, so that one can be damaged.
"""

from collections.abc import Callable
import pathlib
import shutil
import sys
import time

from unlearn_jax import checkpoints, parallel, snapshots
from unlearn_jax.base import InputError, TrainState, shown
from ..runtime import signals

# A save of t seconds is not repeated before this many times t, so that saving
# costs a few per cent at most.
_RARITY = 25
_KEPT = 2


class Partial:
  """Keeps the training of one stage; a `snapshots.Keeper`."""

  def __init__(
    self,
    finished: pathlib.Path,
    save_seconds: float,
    tell: Callable[..., None] = lambda *epochs: None,
    advance: Callable[[float], None] = lambda epochs: None,
    last: int | None = None,
  ):
    """Writes and reads nothing yet."""
    self.folder = finished.with_name(f'.{finished.name}.partial')
    self.wall_seconds = 0.0
    self._finished, self._tell, self._advance = finished, tell, advance
    self._last = last  # An epoch that is saved in any case.
    self._save_seconds, self._pause = save_seconds, save_seconds
    self._start = self.saved_at = time.monotonic()
    self._held: snapshots.Packed | None = None
    self._saved: snapshots.Course | None = None

  def part(self, number: int, epochs: int) -> 'Partial':
    """Keeps one of several generators, in a folder of its own.

    One that is trained is saved before the next begins, so that what is gone on
    with is never trained twice.
    """

    def goes_on(epoch: int) -> None:
      self.wall_seconds += part.wall_seconds
      self._tell(number * epochs + epoch, epoch)

    part = Partial(self._finished, self._save_seconds, goes_on, last=epochs)
    part.folder = self.folder / f'generator{number}'
    return part

  def load(self, like: TrainState) -> snapshots.Snapshot | None:
    """The newest save that is whole; what is damaged is named and passed."""
    newest = parallel.by_first(lambda: self._newest(like))
    if newest is None:
      return None
    # With several processes the others read what process 0 has found whole.
    snapshot = self._read(self.folder / newest, like)
    self._tell(snapshot.course.epoch)
    return snapshot

  def _newest(self, like: TrainState) -> str | None:
    """The name of that save."""
    self._sweep()
    every = self.folder.glob('*epoch-*')  # With those that did not fit before.
    for path in sorted(every, key=_time, reverse=True):
      try:
        self._read(path, like)
      except (InputError, KeyError, TypeError, ValueError) as error:
        if checkpoints.is_unread(error):
          raise
        # It may be whole, and of another version of the code or of JAX.
        if path.name == _time(path):
          path.rename(path.with_name(f'unfit-{time.time_ns()}-{path.name}'))
          _warn(f'{error}; it is kept, and an earlier save or the start taken')
        continue
      return path.name
    return None

  def _read(self, path: pathlib.Path, like: TrainState) -> snapshots.Snapshot:
    packed, manifest = snapshots.restore(path, stage=self._finished.name)
    snapshot = snapshots.unpack(packed, like)
    self.wall_seconds = float(manifest['wall_seconds'])
    self._held, self._saved = packed, packed.course
    self.saved_at = time.monotonic()
    return snapshot

  def save(self, snapshot: snapshots.Snapshot) -> None:
    """Holds the snapshot, and writes it if it is time or the end is near."""
    self._held, course = snapshots.pack(snapshot), snapshot.course
    if course.step:
      self._advance(course.epoch + course.step / course.steps)
    due = time.monotonic() - self.saved_at >= self._pause
    due = due or course.epoch == self._last
    # Several processes save and stop together: process 0 has the clock, and a
    # signal to any of them counts.
    told = parallel.gathered((signals.requested() or 0, due))
    signum = max(signum for signum, _ in told)
    if told[0][1] or signum:
      self.flush()
    if signum:
      raise signals.Stopped(signum, self.note())

  def flush(self) -> None:
    """Writes the last snapshot, unless that has been done."""
    if self._held is None or self._held.course == self._saved:
      return
    start, course = time.monotonic(), self._held.course
    name = f'epoch-{course.epoch:06}'
    if course.step:
      name += f'-step-{course.step:09}'
    facts = {
      'stage': self._finished.name,
      'epoch': course.epoch,
      'step': course.step,
      'wall_seconds': self.wall_seconds + start - self._start,
    }
    try:
      snapshots.save(self.folder / name, self._held, facts)
      self._saved = course
    except InputError as error:
      # The saves before are still there. Only several processes end, because
      # one alone may have failed.
      if parallel.processes() > 1:
        raise
      _warn(f'{error}; training goes on without this save')
    if parallel.is_first():
      for old in sorted(self.folder.glob('epoch-*'))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    self.saved_at = time.monotonic()
    if self._save_seconds:
      cost = self.saved_at - start
      self._pause = max(self._save_seconds, _RARITY * cost)

  def note(self) -> str:
    """What is saved of the stage, in words."""
    name, course = self._finished.name, self._saved
    if course is None:
      return f'nothing of {name} is saved; the same command starts it anew'
    where = f'after epoch {course.epoch}'
    if course.step:
      where = f'after step {course.step} of epoch {course.epoch + 1}'
    return (
      f'{name} is saved {where} in {self.folder}; the same command goes on from'
      ' there'
    )

  def remove(self) -> None:
    """Forgets it all, because the stage is finished."""
    if parallel.is_first():
      self._sweep()
      shutil.rmtree(self.folder, ignore_errors=True)

  def _sweep(self) -> None:
    """Removes what a process that was killed in a save left half written."""
    prefix = checkpoints.draft_prefix(self._finished)
    drafts = self._finished.parent.glob(f'{prefix}*')
    for path in [*drafts, *self.folder.glob('.epoch-*')]:
      shutil.rmtree(path, ignore_errors=True)


def _time(path: pathlib.Path) -> str:
  """Of a save, the end of its name."""
  return path.name[path.name.index('epoch-') :]


def _warn(text: str) -> None:
  line = shown(' '.join(text.split()), 4000)
  print(f'warning: {line}', file=sys.stderr, flush=True)
