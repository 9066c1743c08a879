"""The stages of a reproduction, each keyed by its configuration and inputs.

A `Task` is a description; nothing is computed here. Whoever asks for the same
numbers, the plan that has them computed or the page that shows them, makes the
same task and so finds the same key.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from experiments import stages
from experiments.reproduction.presets import (
  FIRST_SWEEP_SEED,
  NEVER,
  Preset,
  Problem,
)
from unlearn_jax.strategies import STRATEGIES, Settings

TRAIN, UNLEARN, DEGREE = 'train', 'unlearn', 'degree'
# The row of a degree whose other model learned the same data with another seed
# and so forgot nothing.
NULL = 'null'


class Row(NamedTuple):
  """A row of Table II: a strategy, with some of its settings fixed."""

  label: str
  strategy: str
  changes: dict[str, Any]


ROWS = {
  'retrain': Row('Retrain', 'retrain', {}),
  'finetune': Row('Fine-tune only (K = 0)', 'finetune', {}),
  'top_k': Row('Top-K', 'top_k', {}),
  'random_k': Row('Random-k', 'random_k', {}),
  'random_top_k': Row('Random-TopK', 'random_top_k', {}),
  **{
    f'{kind}_{k}': Row(f'{kind.upper()}-{k}', f'{kind}_k', {'last_k': k})
    for kind in ('eu', 'cf')
    for k in (5, 10)
  },
}
# What Figures 1, 6 and 8 draw, and the control.
CURVES = ('finetune', 'top_k', 'random_k', 'random_top_k')


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A stage: what it computes, and what it needs before.

  Attributes:
    kind: TRAIN (a source), UNLEARN (sensitivity, perturbation, fine-tuning
      and evaluation, or Retrain) or DEGREE.
    preset: whose recipe it follows.
    problem: data and model.
    seed: of source, forget set and unlearning.
    title: what a person calls it.
    fraction: of D that is forgotten; 0 for a source, which serves them all.
    row: a key of `ROWS`, 'source' for a source.
    settings: of the strategy.
    parents: the tasks that come first, by role: source, retrain, other (the
      model whose degree it is).
  """

  kind: str
  preset: Preset
  problem: Problem
  seed: int
  title: str
  fraction: float = 0.0
  row: str = 'source'
  settings: Settings = Settings()
  parents: dict[str, 'Task'] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def key(self) -> str:
    """A hash of all that the result depends on, its inputs' keys included."""
    problem, preset = self.problem, self.preset
    config: dict[str, Any] = {
      'kind': self.kind,
      'problem': [
        *(problem.dataset, problem.train_subset),
        *(problem.model, problem.width, preset.dtype),
      ],
      'seed': self.seed,
      'parents': {role: task.key for role, task in self.parents.items()},
    }
    if self.kind == TRAIN or self.row == 'retrain':
      config['recipe'] = [
        *(preset.train_epochs, preset.train_learning_rate, preset.batch_size)
      ]
    if self.kind != TRAIN:
      config |= {'fraction': self.fraction, 'row': self.row}
    if self.kind == UNLEARN:
      config['settings'] = dataclasses.asdict(self.settings)
    if self.kind == DEGREE:
      generator = dataclasses.asdict(preset.generator)
      config['generator'] = [
        *(generator, preset.generators, preset.degree_limit)
      ]
    return stages.key(config)

  @property
  def epochs(self) -> int:
    """The most that it trains for; of a degree, those of all generators."""
    if self.kind == DEGREE:
      return self.preset.generators * self.preset.generator.epochs
    trains = self.kind == TRAIN or self.row == 'retrain'
    return self.preset.train_epochs if trains else self.settings.epochs


class Tasks:
  """Makes the tasks of a preset, one object for the same arguments."""

  def __init__(self, preset: Preset):
    """Remembers the preset; `made` is filled as tasks are asked for."""
    self.preset = preset
    self._made: dict[Any, Task] = {}

  def source(self, problem: Problem, seed: int) -> Task:
    """M."""
    return self._task(TRAIN, problem, seed, 'source')

  def table(
    self, problem: Problem, fraction: float, row: str, seed: int
  ) -> Task:
    """A row of Table II, ended by the stop rule."""
    return self._unlearn(problem, fraction, row, seed)

  def curve(
    self,
    problem: Problem,
    fraction: float,
    row: str,
    seed: int,
    **changes: Any,
  ) -> Task:
    """A fine-tuning that runs all of its epochs, for a figure."""
    own = {
      'epochs': self.preset.curve_epochs,
      'stop_retain_share': NEVER,
      **changes,
    }
    return self._unlearn(problem, fraction, row, seed, judged=False, **own)

  def k(
    self,
    problem: Problem,
    fraction: float,
    seed: int,
    k: int,
    granularity: str,
  ) -> Task:
    """A point of Figure 5; K = 0 is plain fine-tuning."""
    if k == 0:
      return self.curve(problem, fraction, 'finetune', seed)
    own: dict[str, Any] = {'k': k}
    if granularity == 'leaf':
      own |= {'granularity': 'leaf', 'epsilon_top': self.preset.epsilon_leaf}
    return self.curve(problem, fraction, 'top_k', seed, **own)

  def sweep(
    self, problem: Problem, strategy: str, option: dict[str, Any], run: int
  ) -> Task:
    """A point of a sweep, on seeds of its own."""
    seed, fraction = FIRST_SWEEP_SEED + run, sweep_fraction(problem)
    return self._unlearn(problem, fraction, strategy, seed, **option)

  def degree(
    self, problem: Problem, fraction: float, row: str, seed: int
  ) -> Task:
    """The unlearning degree of a row of Table II, or of `NULL`."""
    if row == NULL:
      # Of a neighbour that is there however many seeds there are.
      other = self.source(problem, seed - 1 if seed else 1)
    else:
      other = self.table(problem, fraction, row, seed)
    parents = {'source': self.source(problem, seed), 'other': other}
    return self._task(DEGREE, problem, seed, row, fraction, parents=parents)

  def _unlearn(
    self,
    problem: Problem,
    fraction: float,
    row: str,
    seed: int,
    judged: bool = True,
    **changes: Any,
  ) -> Task:
    """Any strategy; with `judged` it is compared with Retrain."""
    own = {**ROWS[row].changes, **changes}
    if ROWS[row].strategy in ('eu_k', 'cf_k'):
      own.setdefault('learning_rate', self.preset.last_k_learning_rate)
    settings = dataclasses.replace(self.preset.settings(problem), **own)
    parents = {'source': self.source(problem, seed)}
    if judged and row != 'retrain':
      parents['retrain'] = self.table(problem, fraction, 'retrain', seed)
    return self._task(UNLEARN, problem, seed, row, fraction, settings, parents)

  def _task(
    self,
    kind: str,
    problem: Problem,
    seed: int,
    row: str,
    fraction: float = 0.0,
    settings: Settings | None = None,
    parents: dict[str, Task] | None = None,
  ) -> Task:
    settings = settings or self.preset.settings(problem)
    known = (kind, problem, seed, row, fraction, settings, *(parents or {}))
    if known not in self._made:
      title = self._title(kind, problem, seed, row, fraction, settings)
      self._made[known] = Task(
        kind,
        self.preset,
        problem,
        seed,
        title,
        fraction,
        row,
        settings,
        parents or {},
      )
    return self._made[known]

  def _title(
    self,
    kind: str,
    problem: Problem,
    seed: int,
    row: str,
    fraction: float,
    settings: Settings,
  ) -> str:
    """Problem, share, seed, strategy, and where it differs from the table."""
    words = [problem.name]
    words += [f'{100 * fraction:g} %'] if fraction else []
    words.append(f'seed {seed}')
    words.append(f'degree of {row}' if kind == DEGREE else row)
    words += differences(settings, self.preset.settings(problem), row)
    return ' · '.join(words)


def differences(settings: Settings, base: Settings, row: str) -> list[str]:
  """'name=value' of each setting that is not as `base` and the row have it."""
  expected = ROWS[row].changes if row in ROWS else {}
  found = []
  for field in dataclasses.fields(Settings):
    value = getattr(settings, field.name)
    if field.name in expected or value == getattr(base, field.name):
      continue
    never = field.name == 'stop_retain_share' and value == NEVER
    found.append('no stop' if never else f'{field.name}={value}')
  return found


def sweep_fraction(problem: Problem) -> float:
  """The share that the sweeps forget: the second that the tables have."""
  return problem.fractions[min(1, len(problem.fractions) - 1)]


def label(row: str) -> str:
  """What a reader sees of a row."""
  return ROWS[row].label if row in ROWS else 'Source (untouched)'


def is_frozen(row: str) -> bool:
  """Whether the row trains its last tensors only."""
  return row in ROWS and STRATEGIES[ROWS[row].strategy].freezes


def is_guided(row: str) -> bool:
  """Whether the row's fine-tuning has the JS term."""
  return row in ROWS and STRATEGIES[ROWS[row].strategy].guided
