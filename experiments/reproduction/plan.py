"""The plan: the stages behind the artefacts that were asked for, in order."""

from collections.abc import Iterator, Sequence
import functools
from typing import NamedTuple

from experiments.reproduction import tasks
from experiments.reproduction.presets import Preset, Problem
from experiments.reproduction.tasks import CURVES, ROWS, Task, Tasks
from unlearn_jax import models


class Plan(NamedTuple):
  """What is to be done.

  Attributes:
    preset: how large.
    only: the artefacts, keys of `paper.ARTEFACTS`.
    tasks: in an order in which each comes after its parents.
    serves: of each task's key, the artefacts that need it.
  """

  preset: Preset
  only: tuple[str, ...]
  tasks: tuple[Task, ...]
  serves: dict[str, tuple[str, ...]]


def make(preset: Preset, only: Sequence[str]) -> Plan:
  """The plan of a preset.

  Args:
    preset: how large.
    only: the artefacts that are wanted.

  Returns:
    Each task once, whatever number of artefacts it serves.
  """
  order: dict[str, Task] = {}
  serves: dict[str, list[str]] = {}

  def add(artefact: str, task: Task) -> None:
    for parent in task.parents.values():
      add(artefact, parent)
    order.setdefault(task.key, task)
    names = serves.setdefault(task.key, [])
    if artefact not in names:
      names.append(artefact)

  made = Tasks(preset)
  for problem in preset.problems:
    for artefact, task in _wanted(made, problem):
      if artefact in only and artefact in problem.shows:
        add(artefact, task)
  done = {key: tuple(names) for key, names in serves.items()}
  return Plan(preset, tuple(only), tuple(order.values()), done)


def _wanted(made: Tasks, problem: Problem) -> Iterator[tuple[str, Task]]:
  """(artefact, task) of a problem; one forget fraction after the other.

  The fraction is the outer loop because it decides which compiled programs
  can be shared.
  """
  preset = made.preset
  for fraction in problem.fractions:
    for seed in range(preset.seeds):
      for row in ROWS:
        task = made.table(problem, fraction, row, seed)
        yield 'table2', task
        yield 'fig7', task
      for row in CURVES:
        task = made.curve(problem, fraction, row, seed)
        if row in ('finetune', 'random_k'):
          yield 'fig1', task
        if fraction == problem.fractions[-1] and row != 'random_top_k':
          yield 'fig6', task
        yield 'fig8', task
      for granularity in preset.granularities:
        for k in ks(preset, problem, granularity):
          yield 'fig5', made.k(problem, fraction, seed, k, granularity)
    if fraction in preset.degree_fractions:
      if fraction == first_degree_fraction(preset, problem):
        yield 'fig4', made.degree(problem, fraction, 'top_k', 0)
      for seed in range(preset.seeds):
        for row in (tasks.NULL, *preset.degree_rows):
          yield 'fig9', made.degree(problem, fraction, row, seed)
  yield from _swept(made, problem)


def _swept(made: Tasks, problem: Problem) -> Iterator[tuple[str, Task]]:
  fraction = tasks.sweep_fraction(problem)
  for run in range(made.preset.sweep_seeds):
    for row in ('finetune', 'retrain'):
      seed = tasks.FIRST_SWEEP_SEED + run
      yield 'sweeps', made.table(problem, fraction, row, seed)
    for sweep in made.preset.sweeps:
      for option in sweep.options:
        yield 'sweeps', made.sweep(problem, sweep.strategy, option, run)


def ks(preset: Preset, problem: Problem, granularity: str) -> tuple[int, ...]:
  """The points of Figure 5: 0, the preset's, and the problem's own K.

  Of tensors there are at most as many as the model has.
  """
  wanted = {0, *preset.ks, problem.k}
  if granularity == 'leaf':
    wanted = {min(k, _tensors(problem.model)) for k in wanted}
  return tuple(sorted(wanted))


@functools.cache
def _tensors(model: str) -> int:
  return len(models.build(model, 10, (32, 32, 3)).order)


def first_degree_fraction(preset: Preset, problem: Problem) -> float | None:
  """Whose images Figure 4 shows."""
  shared = [f for f in problem.fractions if f in preset.degree_fractions]
  return shared[0] if shared else None
