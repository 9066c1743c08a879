"""Progress over the whole plan: what is left, and whether time allows it."""

from collections.abc import Callable
import time

from experiments.progress import Progress, clock
from experiments.reproduction.costs import Cost
from unlearn_jax.training import Epoch


class OutOfTimeError(Exception):
  """The next epoch would end after the deadline."""


class LostError(Exception):
  """Another worker has taken the stage over."""


class Outlook(Progress):
  """One line a stage, with the time that the rest of the plan takes.

  The time is the sum of the estimates of all that is not done, corrected by
  how the estimates of this worker's own stages turned out.
  """

  def __init__(
    self,
    costs: dict[str, Cost],
    tasks: int,
    workers: int = 1,
    deadline: float | None = None,
    now: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      costs: of each stage that is not done, by its key.
      tasks: how many stages the plan has.
      workers: how many share them.
      deadline: of `now`; None for none.
      now: the clock.
    """
    super().__init__(tasks, 0)
    self._costs, self._workers = dict(costs), workers
    self._stage = tasks - len(costs)
    self._deadline, self._now = deadline, now
    self._own, self._name, self._began = '', '', now()
    self._estimated = self._spent = 0.0
    self._lost: Callable[[], bool] = lambda: False
    self._latest = now()

  @property
  def scale(self) -> float:
    """How long stages took here, over what was estimated."""
    return self._spent / self._estimated if self._estimated else 1.0

  def fits(self, key: str) -> bool:
    """Whether the stage is likely over before the deadline."""
    if self._deadline is None:
      return True
    expected = self.scale * self._costs[key].seconds
    return self._now() + expected <= self._deadline

  def start(self, key: str, title: str, lost: Callable[[], bool]) -> None:
    """A stage begins; `lost` says whether another has taken it over."""
    self._own, self._name, self._lost = key, title, lost
    self._began = self._latest = self._now()

  def finish(self) -> None:
    """The stage is done."""
    self._spent += self._now() - self._began
    self._estimated += self._costs.pop(self._own).seconds
    self._own = ''

  def abandon(self) -> None:
    """The stage is another's now."""
    self._own = ''

  def waits(self, seconds: float) -> bool:
    """Whether so much waiting ends before the deadline."""
    return self._deadline is None or self._now() + seconds <= self._deadline

  def done_elsewhere(self, key: str) -> None:
    """Another worker has done it."""
    if self._costs.pop(key, None):
      self._stage += 1

  def remaining(self) -> float:
    """Seconds until the plan is done."""
    rest = sum(c.seconds for key, c in self._costs.items() if key != self._own)
    seconds = self.scale * rest / self._workers
    if self._own:
      own = self.scale * self._costs[self._own].seconds
      seconds += max(0.0, own - (self._now() - self._began))
    return seconds

  def begin(self, title: str, epochs: int) -> None:
    """As `Progress`, under the plan's own title."""
    del title
    super().begin(self._name, epochs)

  def skip(self, title: str, epochs: int, note: str) -> None:
    """As `Progress`, under the plan's own title."""
    del title
    super().skip(self._name, epochs, note)

  def epoch(self, epoch: Epoch) -> None:
    """As `Progress`; ends the stage where it must not go on.

    Raises:
      OutOfTimeError: another such epoch would end after the deadline.
      LostError: the stage is another worker's now.
    """
    now = self._now()
    if self._lost():
      raise LostError(self._name)
    if self._deadline is not None:
      if now + (now - self._latest) > self._deadline:
        raise OutOfTimeError(self._name)
    self._latest = now
    super().epoch(epoch)

  def left(self, seconds: float, epochs: float) -> str:
    """The time left of the plan, whatever the stage."""
    del seconds, epochs
    return f'  plan: about {clock(self.remaining())} left'
