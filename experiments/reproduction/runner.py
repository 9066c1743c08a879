"""Carries a plan out: by one worker or by several, until it is done or late."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

from experiments.progress import clock
from experiments.reproduction.bench import Bench
from experiments.reproduction.claims import Claim, Claims
from experiments.reproduction.costs import Calibration, Cost, Estimator
from experiments.reproduction.outlook import LostError, Outlook, OutOfTimeError
from experiments.reproduction.plan import Plan
from experiments.reproduction.tasks import Task
from unlearn_jax.base import InputError

POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Worker:
  """One of those that share a plan.

  Attributes:
    index: from 1 to `count`.
    count: how many there are.
  """

  index: int = 1
  count: int = 1


def pending(plan: Plan, bench: Bench) -> list[Task]:
  """The tasks that are not done, in the order of the plan."""
  done = bench.outcomes.keys()
  return [task for task in plan.tasks if task.key not in done]


def estimate(
  tasks: Sequence[Task], bench: Bench, calibration: Calibration, keep: bool
) -> dict[str, Cost]:
  """What each task costs, by its key, after a short calibration.

  Args:
    tasks: what is to be done.
    bench: gives data and models.
    calibration: gives the rates.
    keep: whether to keep them in the work directory.
  """
  problems = dict.fromkeys(task.problem for task in tasks)
  rates = {
    which: calibration.rates(which, bench.setup(which), keep)
    for which in problems
  }
  estimator = Estimator(rates)
  return {task.key: estimator.cost(task) for task in tasks}


def run(
  plan: Plan,
  bench: Bench,
  claims: Claims,
  outlook: Outlook,
  worker: Worker = Worker(),
  poll: float = POLL_SECONDS,
) -> bool:
  """Does what is not done and not claimed by another, until all is done.

  Args:
    plan: all tasks.
    bench: does one.
    claims: shared by all workers.
    outlook: progress and deadline.
    worker: which of them this is.
    poll: seconds between looks, while others are at all that is left.

  Returns:
    Whether the whole plan is done; False if time ran out before.
  """
  announced = False
  while left := _pending(plan, bench, outlook):
    task = _first(left, bench, claims, worker)
    if task is None:
      if not announced:
        print(f'waiting for {len(left)} stages of other workers', flush=True)
      announced = True
      if not outlook.waits(poll):
        return False
      time.sleep(poll)
      continue
    announced = False
    if not _done_in_time(*task, bench, claims, outlook):
      return False
  return True


def _pending(plan: Plan, bench: Bench, outlook: Outlook) -> list[Task]:
  left = pending(plan, bench)
  keys = {task.key for task in left}
  for task in plan.tasks:
    if task.key not in keys:
      outlook.done_elsewhere(task.key)
  return left


def _first(
  left: Sequence[Task], bench: Bench, claims: Claims, worker: Worker
) -> tuple[Task, Claim] | None:
  """The first task whose parents are done and that nobody else has claimed.

  Each worker prefers a share of the groups (problem, fraction, seed) of its
  own, so that sources, compiled programs and data are seldom needed by two.
  """
  open_keys = {task.key for task in left}
  for task in sorted(left, key=lambda t: not _prefers(worker, t)):
    if not any(p.key in open_keys for p in task.parents.values()):
      claim = claims.take(task.key)
      if claim is None:
        continue
      if not bench.outcomes.done(task.key):  # Done while it was claimed.
        return task, claim
  return None


def _prefers(worker: Worker, task: Task) -> bool:
  order: list[Any] = [*task.preset.problems]
  group = order.index(task.problem) + len(order) * task.seed
  return group % worker.count == worker.index - 1


def _done_in_time(
  task: Task, claim: Claim, bench: Bench, claims: Claims, outlook: Outlook
) -> bool:
  """Does a claimed task; False, and the claim given back, if it cannot end."""
  if not outlook.fits(task.key):
    claim.release()
    print(f'no time is left for {task.title}', flush=True)
    return False
  outlook.start(task.key, task.title, lambda: claim.lost)
  start = time.monotonic()
  try:
    with claims.held(claim):
      found = bench.do(task, outlook)
  except LostError:
    outlook.abandon()
    return True
  except OutOfTimeError:
    print(f'\nno time is left to finish {task.title}', flush=True)
    return False
  except InputError:
    if claim.lost:  # The other worker's checkpoint was in the way.
      outlook.abandon()
      return True
    raise
  if found.get('error'):
    print(f'warning: {task.title}: {found["error"]}', flush=True)
  # What processes before this one put into it is known to its stage.
  seconds = time.monotonic() - start
  bench.outcomes.write(task.key, {'wall_seconds': seconds, **found})
  outlook.finish()
  return True


def describe(plan: Plan, costs: dict[str, Cost], workers: int) -> list[str]:
  """The plan as lines: each stage with its cost, then the sums.

  Args:
    plan: all tasks.
    costs: of those that are not done.
    workers: how many share them.
  """
  lines = []
  for task in plan.tasks:
    names = ','.join(plan.serves[task.key])
    cost = costs.get(task.key)
    shown = 'done' if cost is None else _cost(cost)
    lines.append(f'{task.key}  {shown:>24}  {task.title}  [{names}]')
  for name in plan.only:
    own = [c for key, c in costs.items() if name in plan.serves[key]]
    if own:
      lines.append(f'{name}: {len(own)} stages, {_sum(own)}')
  every = list(costs.values())
  done = len(plan.tasks) - len(every)
  lines.append(
    f'preset {plan.preset.name}: {len(plan.tasks)} stages, {done} done; the'
    f' rest at most {_sum(every)}'
  )
  if workers > 1:
    seconds = sum(cost.seconds for cost in every) / workers
    lines.append(f'shared by {workers} workers: {clock(seconds)} each')
  return lines


def _sum(costs: Sequence[Cost]) -> str:
  total = Cost(*(sum(parts) for parts in zip(*costs, Cost(0.0, 0.0))))
  return _cost(total).strip()


def _cost(cost: Cost) -> str:
  return f'{clock(cost.seconds)}, {cost.flops / 1e12:,.2f} TFLOP'
