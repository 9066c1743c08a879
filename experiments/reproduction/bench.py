"""Where a task is carried out: data, models, and the stages done before.

Everything is computed by `pipeline` and `unlearn_jax.pairs`; here is only
what they are told, and what is kept of what they return.
"""

import dataclasses
import functools
import pathlib
import time
import types
from typing import Any

import jax

from experiments import (
  divergence,
  kept_pairs,
  pipeline,
  preemption,
  problem,
  stages,
)
from experiments.progress import Progress
from experiments.reproduction import tasks
from experiments.reproduction.claims import workdir
from experiments.reproduction.outcomes import Outcome, Outcomes
from experiments.reproduction.outlook import OutOfTimeError
from experiments.reproduction.presets import Preset, Problem
from experiments.reproduction.tasks import Task
from unlearn_jax import models
from unlearn_jax.base import InputError, Splits, shown
from unlearn_jax.degree import require_measurable
from unlearn_jax.evaluation import compare
from unlearn_jax.pairs import plan_pairs

PAIR = 'pair.npz'  # of a degree, in its folder


class Bench:
  """Does tasks in one work directory."""

  def __init__(
    self,
    root: pathlib.Path,
    preset: Preset,
    data_dir: str | None = None,
    raw_dir: str | None = None,
  ):
    """Nothing is read or written yet.

    Args:
      root: the work directory; each problem has a folder of its own there.
      preset: of all tasks.
      data_dir: as `--data_dir`.
      raw_dir: as `--raw_dir`.
    """
    self._root, self._preset = root, preset
    self._places = {'data_dir': data_dir, 'raw_dir': raw_dir}
    self._setups: dict[Problem, problem.Setup] = {}
    self._workdirs: dict[Problem, stages.Workdir] = {}
    self._compiled_for: Any = None
    self.outcomes = Outcomes(root)
    self._load = functools.lru_cache(maxsize=4)(stages.load)

  def setup(self, which: Problem) -> problem.Setup:
    """Data and model, read once; those of one data set share its images."""
    if which not in self._setups:
      values = self._values(which)
      for other, known in self._setups.items():
        if (other.dataset, other.train_subset) == (
          which.dataset,
          which.train_subset,
        ):
          facts = {**known.facts, 'model': which.model, 'width': values.width}
          made = problem.assemble(values, known.dataset, facts)
          break
      else:
        made = problem.set_up(values)
      self._setups[which] = made
    return self._setups[which]

  def workdir(self, which: Problem) -> stages.Workdir:
    """The problem's own, claimed; refused if it holds other data."""
    if which not in self._workdirs:
      identity = problem.identity(self.setup(which))
      made = workdir(self._root / which.name, identity)
      made.claim(shared=True)
      self._workdirs[which] = made
    return self._workdirs[which]

  def do(self, task: Task, progress: Progress) -> Outcome:
    """Computes a task whose parents are done.

    Returns:
      The outcome, also where the training diverged or nothing can be
      measured: `error` says why then, and will again.
    """
    parents = {
      role: self.outcomes.read(parent.key)
      for role, parent in task.parents.items()
    }
    for role, outcome in parents.items():
      if outcome is None or outcome.get('error'):
        return {'title': task.title, 'error': f'its {role} failed'}
    # Programs of another size are not needed again soon, and each maps memory.
    group = (task.problem, task.fraction)
    if self._compiled_for not in (None, group) and task.fraction:
      jax.clear_caches()
    self._compiled_for = group if task.fraction else self._compiled_for
    compute = {
      tasks.TRAIN: self._train,
      tasks.UNLEARN: self._unlearn,
      tasks.DEGREE: self._degree,
    }[task.kind]
    try:
      found = compute(task, progress)
    except divergence.StageDivergedError as error:
      found = {'error': str(error)}
    except OutOfTimeError:
      with preemption.deferred():
        self.workdir(task.problem).flush()
      raise
    return {'title': task.title, **found}

  def _values(self, which: Problem, task: Task | None = None) -> Any:
    """The flags that `pipeline` and `problem` would have been given."""
    preset = self._preset
    return types.SimpleNamespace(
      **self._places,
      dataset=which.dataset,
      train_subset=which.train_subset,
      model=which.model,
      width=which.width or models.FAMILIES[which.model].width,
      dtype=preset.dtype,
      recipe='paper',
      train_epochs=preset.train_epochs,
      train_learning_rate=preset.train_learning_rate,
      batch_size=preset.batch_size,
      augment=False,
      forget_ids=None,
      forget_fraction=(task and task.fraction) or which.fractions[0],
      seed=task.seed if task else 0,
      split_seed=None,
      source_seed=None,
      unlearn_seed=None,
      strategies=('random_top_k',),
    )

  def posed(self, task: Task) -> tuple[problem.Setup, Splits]:
    """The problem as the task poses it: its seed, its forget set."""
    values = self._values(task.problem, task)
    setup = dataclasses.replace(self.setup(task.problem), values=values)
    return setup, problem.draw(setup, 0)

  def _parent(self, task: Task, role: str) -> stages.Stage:
    outcome = self.outcomes.read(task.parents[role].key)
    assert outcome is not None
    return self._load(self._root / outcome['folder'])

  def _train(self, task: Task, progress: Progress) -> Outcome:
    setup, splits = self.posed(task)
    stage = pipeline.source_stage(
      setup, self.workdir(task.problem), splits, 0, progress
    )
    own = pipeline.source_predictions(stage, splits)
    measured = compare(own, own, splits)._asdict()
    return {**self._kept(stage), 'measured': measured}

  def _unlearn(self, task: Task, progress: Progress) -> Outcome:
    setup, splits = self.posed(task)
    problem.check_against_model(setup, task.settings)
    source, retrained = self._parent(task, 'source'), None
    if 'retrain' in task.parents:
      retrained = self._parent(task, 'retrain')
    stage = pipeline.strategy_stage(
      tasks.ROWS[task.row].strategy,
      setup,
      self.workdir(task.problem),
      splits,
      source,
      retrained,
      task.settings,
      0,
      progress,
    )
    before = pipeline.source_predictions(source, splits)
    reference = retrained.predictions if retrained else None
    if task.row == 'retrain':
      reference = stage.predictions
    found = compare(stage.predictions, before, splits, reference)
    record = stage.record
    counts = record['by_tensor'].values()
    measured = {
      **found._asdict(),
      'perturbation_js': record['perturbation_js'],
      'scalars_changed': sum(counts),
      'tensors_changed': sum(count > 0 for count in counts),
    }
    # The source's own standing on this forget set, for the figures.
    own = compare(before, before, splits, reference)._asdict()
    return {**self._kept(stage), 'measured': measured, 'source': own}

  def _kept(self, stage: stages.Stage) -> Outcome:
    names = (
      'history',
      'selection_seconds',
      'source_retain_accuracy',
      'wall_seconds',
    )
    kept = {n: stage.record[n] for n in names if n in stage.record}
    folder = stage.path.relative_to(self._root)
    return {'folder': str(folder), **kept}

  def _degree(self, task: Task, progress: Progress) -> Outcome:
    setup, splits = self.posed(task)
    preset, settings = self._preset, self._preset.generator
    source, other = (
      self._parent(task, role).state for role in ('source', 'other')
    )
    start = time.monotonic()
    progress.begin(task.title, task.epochs)
    own = self.workdir(task.problem)
    folder = own.root / 'degrees' / f'{task.row}-{task.key}'
    generators = kept_pairs.Generators(
      own,
      f'{task.row}-degree',
      {'task': task.key},
      settings.epochs,
      preset.generators,
      progress,
    )

    def measure() -> kept_pairs.Pair:
      require_measurable(setup.model, source, splits, settings)
      plan = plan_pairs(
        problem.key_of('degree', task.seed), splits, preset.degree_limit
      )
      return kept_pairs.measured(
        'null' if task.row == tasks.NULL else 'unlearned',
        plan.key,
        setup.model,
        source,
        other,
        plan.known,
        settings,
        generators,
      )

    try:
      pair = kept_pairs.once(folder / PAIR, generators, measure)
    except InputError as error:
      if (folder / PAIR).exists():  # It is damaged.
        raise
      generators.remove()  # A source no better than chance, say.
      return {'error': str(error)}
    mean = pair.found['degree']['mean']
    progress.end(f'{100 * mean:.1f} points')
    return {
      'folder': str(folder.relative_to(self._root)),
      'measured': {'degree': mean},
      'generators': [run['held_out']['degree'] for run in pair.found['runs']],
      'titles': [
        shown(setup.dataset.class_names[label], 24) for label in pair.labels
      ],
      'classes': len(setup.dataset.class_names),
      'wall_seconds': generators.earlier_seconds + time.monotonic() - start,
    }
