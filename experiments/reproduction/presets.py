"""How large a reproduction is, and the studies that it consists of.

A preset says everything that a number depends on. Of one preset more seeds or
other artefacts only add stages.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

from experiments import config
from experiments.reproduction import paper
from unlearn_jax import models
from unlearn_jax.strategies import FACTORIES, spelling

# `stop_retain_share` of a training that runs all of its epochs: more than all
# retained images cannot be right.
NEVER = 2.0
# Sweeps choose defaults, so that they must not see the tables' seeds.
FIRST_SWEEP_SEED = 1000
GRANULARITIES = ('scalar', 'leaf')
# Table II's problem takes part in everything, the others in these.
_SHARED = ('fig1', 'fig5', 'fig6', 'fig7', 'fig8')
_EVERYTHING = tuple(paper.ARTEFACTS)
# Rows of Table II: what a reader sees, the factory, parameters that are fixed.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
  'retrain': ('Retrain', 'retrain', {}),
  'finetune': ('Fine-tune only (K = 0)', 'finetune', {}),
  'top_k': ('Top-K', 'top_k', {}),
  'random_k': ('Random-k', 'random_k', {}),
  'random_top_k': ('Random-TopK', 'random_top_k', {}),
  'eu_5': ('EU-5', 'eu_k', {'k': 5}),
  'eu_10': ('EU-10', 'eu_k', {'k': 10}),
  'cf_5': ('CF-5', 'cf_k', {'k': 5}),
  'cf_10': ('CF-10', 'cf_k', {'k': 10}),
}
# What Figures 1, 6 and 8 draw, and the control.
CURVES = ('finetune', 'top_k', 'random_k', 'random_top_k')


def label(row: str) -> str:
  """What a reader sees of a row."""
  return ROWS[row][0]


@dataclasses.dataclass(frozen=True)
class Problem:
  """A data set and a model.

  Attributes:
    dataset: as `--dataset` takes it.
    model: a name of `models.FAMILIES`.
    k: K of Top-K; the paper's for this model.
    width: channels of the first layer; None is the paper's.
    train_subset: so many training images only; None is all of them.
    fractions: of D that are forgotten, one after the other.
    shows: artefacts that it takes part in.
  """

  dataset: str
  model: str
  k: int
  width: int | None = None
  train_subset: int | None = None
  fractions: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20)
  shows: tuple[str, ...] = _SHARED

  @property
  def name(self) -> str:
    """Of its folder, and in every title."""
    own = pathlib.PurePath(self.dataset).stem  # npz:some/where/FILE.npz
    return ''.join(c if c.isalnum() else '_' for c in own) + f'-{self.model}'

  @property
  def sweep_fraction(self) -> float:
    """The share that the sweeps forget: the second that the tables have."""
    return self.fractions[:2][-1]


class Sweep(NamedTuple):
  """One choice that the paper leaves open.

  Attributes:
    name: what is chosen.
    row: with which it is tried.
    values: of each parameter; all combinations are tried, the default's too.
  """

  name: str
  row: str
  values: dict[str, tuple[Any, ...]]

  @property
  def options(self) -> list[dict[str, Any]]:
    """The parameters of each point."""
    every = itertools.product(*self.values.values())
    return [dict(zip(self.values, values)) for values in every]


_OBJECTIVES = {'objective': ('loss', 'output_norm')}
_REDUCTIONS = {'reduction': ('mean_abs', 'mean', 'single')}
_RULES = ('scale', 'donor')
_RATES = Sweep('learning rate', 'top_k', {'learning_rate': (1e-4, 1e-3)})
_EPSILON, _EITHER = 'ε of Top-K', 'ε and rule of Random-k'
_LAMBDA = Sweep('λ', 'top_k', {'js_weight': (0.0, 0.1, 1.0)})
SWEEPS = (
  Sweep(_EPSILON, 'top_k', {'epsilon': (-1.0, 0.1, 1.0, 10.0)}),
  Sweep(_EITHER, 'random_k', {'rule': _RULES, 'epsilon': (0.1, 0.5, 1.0)}),
  *(_LAMBDA, _RATES),
  Sweep('sensitivity', 'top_k', _OBJECTIVES | _REDUCTIONS),
)
_RULE = {'epsilon': (1.0,), 'rule': _RULES}
# The default and one more: that the machinery works, not what is best.
_NARROW = (
  Sweep(_EPSILON, 'top_k', {'epsilon': (-1.0, 10.0)}),
  Sweep('rule of Random-k', 'random_k', _RULE),
  Sweep('λ', 'top_k', {'js_weight': (0.0, 0.1)}),
  *(_RATES, Sweep('sensitivity', 'top_k', _OBJECTIVES)),
)


@dataclasses.dataclass(frozen=True)
class Preset:
  """A size of the reproduction.

  Attributes:
    name: as `--preset` takes it.
    about: one line for a reader.
    problems: the first is Table II's, and that of the sweeps.
    seeds: of tables and figures, from 0.
    sweep_seeds: of the sweeps, from `FIRST_SWEEP_SEED`.
    training: of source and Retrain.
    budget: of a fine-tuning that the stop rule ends; its strategies are none.
    curve_epochs: of one that a figure shows, without a stop rule.
    last_k_learning_rate: of EU-K and CF-K.
    dtype: of activations.
    examples: behind each Top-K.
    ks: of Figure 5; the problem's own K is added, and K = 0 always there.
    epsilon_leaf: ε where K counts tensors. Zeroing, which serves for scalars,
      would leave a net of dead tensors that no fine-tuning revives.
    sweeps: what is swept.
    generators: of SPD-GAN.
    degree_fractions: of Figure 9.
    degree_rows: of Figure 9; Random-TopK is not in the paper's.
    comparable: whether the paper's absolute numbers can be compared with.
  """

  name: str
  about: str
  problems: tuple[Problem, ...]
  seeds: int
  sweep_seeds: int
  training: config.Training
  budget: config.Methods = config.Methods('', 50, 1e-3, 0.01, 0.98)
  curve_epochs: int = 100
  last_k_learning_rate: float = 1e-3
  dtype: str = 'float32'
  examples: int = 256
  ks: tuple[int, ...] = tuple(range(5, 51, 5))
  epsilon_leaf: float = 1.0
  sweeps: tuple[Sweep, ...] = SWEEPS
  generators: config.Generators = config.Generators(degree_unseen=False)
  degree_fractions: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20)
  degree_rows: tuple[str, ...] = tuple(r for r in ROWS if r != 'random_top_k')
  comparable: bool = False

  def spelled(self, problem: Problem, row: str, **changes: Any) -> str:
    """A row as `--strategies` takes it, with other parameters if given."""
    _, factory, given = ROWS[row]
    given = {**given, **changes}
    if factory in ('top_k', 'random_top_k'):
      given = {'k': problem.k, 'examples': self.examples, **given}
    if factory in ('eu_k', 'cf_k'):
      given = {'learning_rate': self.last_k_learning_rate, **given}
    if given.get('learning_rate') == self.budget.learning_rate:
      del given['learning_rate']
    return spelling.make(factory, FACTORIES[factory], given).text

  def of_k(self, problem: Problem, granularity: str) -> dict[int, str]:
    """The points of Figure 5, by K; of tensors, at most all that there are."""
    wanted, own = {*self.ks, problem.k}, {}
    if granularity == 'leaf':
      wanted = {min(k, _tensors(problem.model)) for k in wanted}
      own = {'granularity': 'leaf', 'epsilon': self.epsilon_leaf}
    return {0: self.spelled(problem, 'finetune')} | {
      k: self.spelled(problem, 'top_k', k=k, **own) for k in sorted(wanted)
    }


@functools.cache
def _tensors(model: str) -> int:
  return len(models.build(model, 10, (32, 32, 3)).order)


class Name(NamedTuple):
  """Of a study.

  Attributes:
    kind: 'table', 'curve', 'k', 'degree' or 'sweep'.
    problem: its name.
    fraction: that is forgotten.
    part: granularity of K, or name of the sweep.
  """

  kind: str
  problem: str
  fraction: float
  part: str = ''


class Part(NamedTuple):
  """A study, and the artefacts that it serves."""

  study: config.Study
  artefacts: tuple[str, ...]


def studies(preset: Preset, only: Iterable[str]) -> dict[Name, Part]:
  """What has to be computed for the artefacts that are wanted."""
  found = {}
  for problem in preset.problems:
    shown = set(only).intersection(problem.shows)
    for name, artefacts, texts, changes in _asked(preset, problem, shown):
      serves = tuple(a for a in artefacts if a in shown)
      if serves:
        own = _study(preset, problem, name, texts, changes)
        found[name] = Part(own, serves)
  return found


def _asked(
  preset: Preset, problem: Problem, shown: set[str]
) -> Iterator[tuple[Name, tuple[str, ...], list[str], dict[str, Any]]]:
  """(name, artefacts, spellings, other settings than the tables')."""

  def spelled(rows: Iterable[str]) -> list[str]:
    return [preset.spelled(problem, row) for row in rows]

  for fraction in problem.fractions:
    name = Name('table', problem.name, fraction)
    yield name, ('table2', 'fig7'), spelled(ROWS), {}
    # Of the curves, those that a figure draws.
    curves = {'fig1': ('finetune', 'random_k'), 'fig8': CURVES}
    if fraction == problem.fractions[-1]:
      curves['fig6'] = CURVES[:3]
    drawn = {row for own in shown.intersection(curves) for row in curves[own]}
    rows = spelled(row for row in CURVES if row in drawn)
    yield name._replace(kind='curve'), tuple(curves), rows, {}
    for part in GRANULARITIES:
      texts = list(preset.of_k(problem, part).values())
      yield name._replace(kind='k', part=part), ('fig5',), texts, {}
    # Figure 4 needs one pair of the first of Figure 9's shares.
    degrees = [f for f in problem.fractions if f in preset.degree_fractions]
    if fraction in degrees:
      artefacts = ('fig9', 'fig4')[: 2 if fraction == degrees[0] else 1]
      own: dict[str, Any] = {'degree': True}
      if 'fig9' not in shown:
        own['seeds'] = 1
      rows = spelled(['top_k'] if 'seeds' in own else preset.degree_rows)
      yield name._replace(kind='degree'), artefacts, rows, own
  for sweep in preset.sweeps:
    name = Name('sweep', problem.name, problem.sweep_fraction, sweep.name)
    texts = [preset.spelled(problem, sweep.row, **own) for own in sweep.options]
    own = {'draws': config.Seeds(FIRST_SWEEP_SEED), 'seeds': preset.sweep_seeds}
    yield name, ('sweeps',), spelled(['retrain', 'finetune']) + texts, own


def _study(
  preset: Preset,
  problem: Problem,
  name: Name,
  texts: list[str],
  changes: dict[str, Any],
) -> config.Study:
  """A study of the tables, or without their stop rule one of the curves."""
  methods = dataclasses.replace(preset.budget, strategies=', '.join(texts))
  if name.kind in ('curve', 'k'):
    methods = dataclasses.replace(
      methods, epochs=preset.curve_epochs, stop_retain_share=NEVER
    )
  own = {
    'data': config.Data(problem.dataset, problem.train_subset),
    'network': config.Network(problem.model, problem.width, preset.dtype),
    'training': preset.training,
    'forget': config.Forget(name.fraction),
    'seeds': preset.seeds,
    'generators': preset.generators,
  }
  return config.Study(methods=methods, **{**own, **changes})


def _trained(epochs: int, batch_size: int, rate: float = 1e-3):
  return config.Training('paper', epochs, rate, False, batch_size)


_SMOKE = Preset(
  'smoke',
  'scikit-learn’s digits, a small net: minutes, to see that all of it works',
  (Problem('digits', 'cnn', 45, fractions=(0.10, 0.20), shows=_EVERYTHING),),
  seeds=2,
  sweep_seeds=2,
  training=_trained(10, 64, 3e-3),
  budget=dataclasses.replace(Preset.budget, epochs=4),
  curve_epochs=4,
  examples=64,
  ks=(25,),
  sweeps=_NARROW,
  generators=dataclasses.replace(
    Preset.generators, degree_epochs=2, degree_batch_size=16, degree_width=8
  ),
  degree_fractions=(0.20,),
  degree_rows=('retrain', 'finetune', 'top_k', 'random_k', 'eu_5'),
)
_SMALL = Problem(
  'fashion_mnist', 'resnet18', 45, 16, 10_000, (0.20,), _EVERYTHING
)
_CPU = Preset(
  'cpu',
  '10,000 images of Fashion-MNIST and CIFAR-10, nets of width 16',
  (
    _SMALL,
    dataclasses.replace(_SMALL, dataset='cifar10', shows=('fig1', 'fig6')),
  ),
  seeds=3,
  sweep_seeds=2,
  training=_trained(8, 64),
  budget=dataclasses.replace(Preset.budget, epochs=2),
  curve_epochs=2,
  ks=(5, 25),
  # Half of the options, which is what two hours allow.
  sweeps=(
    Sweep(_EPSILON, 'top_k', {'epsilon': (-1.0, 1.0, 10.0)}),
    *(_NARROW[1], _LAMBDA, _RATES, _NARROW[4]),
  ),
  generators=dataclasses.replace(
    Preset.generators, degree_epochs=2, degree_limit=512
  ),
  degree_fractions=(0.20,),
  degree_rows=('retrain', 'finetune', 'top_k', 'random_k', 'eu_5', 'cf_5'),
)
_PAPER = Preset(
  'paper',
  'all of CIFAR-10, the paper’s networks, epochs and learning rates',
  tuple(
    Problem('cifar10', model, k, shows=_SHARED if place else _EVERYTHING)
    for place, (model, (k, *_)) in enumerate(paper.TABLE_1.items())
  ),
  seeds=3,
  sweep_seeds=3,
  training=_trained(50, 128),
  last_k_learning_rate=1e-4,
  comparable=True,
)
_PAPER_FAST = dataclasses.replace(
  _PAPER,
  name='paper_fast',
  about='all of CIFAR-10, the paper’s networks, short schedules in bfloat16',
  training=_trained(20, 256),
  budget=dataclasses.replace(Preset.budget, epochs=10),
  curve_epochs=10,
  dtype='bfloat16',
  ks=(5, 15, 25, 35, 45, 50),
)
PRESETS = {p.name: p for p in (_PAPER, _PAPER_FAST, _CPU, _SMOKE)}
