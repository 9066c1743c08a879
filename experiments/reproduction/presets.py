"""How large a reproduction is: data, models, seeds, epochs and sweeps.

A preset says everything that a number depends on. Two presets never share a
work directory; of one preset more seeds or other artefacts only add stages.
"""

import dataclasses
import pathlib
from typing import Any

from experiments.reproduction import paper
from unlearn_jax.spd_gan import GeneratorSettings
from unlearn_jax.strategies import Settings

# `Settings.stop_retain_share` of a training that runs all of its epochs: more
# than all retained images cannot be right.
NEVER = 2.0
# Sweeps choose defaults, so that they must not see the tables' seeds.
FIRST_SWEEP_SEED = 1000
# Table II's problem takes part in everything, the others in these.
SHARED = ('fig1', 'fig5', 'fig6', 'fig7', 'fig8')


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
  shows: tuple[str, ...] = SHARED

  @property
  def name(self) -> str:
    """Of its folder, and in every title."""
    own = pathlib.PurePath(self.dataset).stem  # npz:some/where/FILE.npz
    safe = ''.join(c if c.isalnum() else '_' for c in own)
    return f'{safe}-{self.model}'


@dataclasses.dataclass(frozen=True)
class Sweep:
  """One choice that the paper leaves open.

  Attributes:
    name: what is chosen.
    strategy: with which it is tried.
    options: changes to the settings, one a point; the default among them.
  """

  name: str
  strategy: str
  options: tuple[dict[str, Any], ...]


def _options(name: str, *values: Any, **fixed: Any) -> tuple[dict, ...]:
  return tuple({**fixed, name: value} for value in values)


SWEEPS = (
  Sweep('ε of Top-K', 'top_k', _options('epsilon_top', -1.0, 0.1, 1.0, 10.0)),
  Sweep(
    'ε and rule of Random-k',
    'random_k',
    _options('epsilon_random', 0.1, 0.5, 1.0, rule='scale')
    + _options('epsilon_random', 0.1, 0.5, 1.0, rule='donor'),
  ),
  Sweep('λ', 'top_k', _options('js_weight', 0.0, 0.1, 1.0)),
  Sweep('learning rate', 'top_k', _options('learning_rate', 1e-4, 1e-3)),
  Sweep(
    'sensitivity',
    'top_k',
    tuple(
      option
      for objective in ('loss', 'output_norm')
      for option in _options(
        'reduction', 'mean_abs', 'mean', 'single', objective=objective
      )
    ),
  ),
)
# The default and one more: that the machinery works, not what is best.
NARROW = (
  Sweep('ε of Top-K', 'top_k', _options('epsilon_top', -1.0, 10.0)),
  Sweep(
    'rule of Random-k',
    'random_k',
    _options('rule', 'scale', 'donor', epsilon_random=1.0),
  ),
  Sweep('λ', 'top_k', _options('js_weight', 0.0, 0.1)),
  SWEEPS[3],
  Sweep('sensitivity', 'top_k', _options('objective', 'loss', 'output_norm')),
)


@dataclasses.dataclass(frozen=True)
class Preset:
  """A size of the reproduction.

  Attributes:
    name: as `--preset` takes it.
    about: one line for a reader.
    problems: the first is Table II's.
    seeds: of tables and figures, from 0.
    sweep_seeds: of the sweeps, from `FIRST_SWEEP_SEED`.
    train_epochs: of source and Retrain, by Adam.
    train_learning_rate: theirs.
    batch_size: over all devices, everywhere.
    dtype: of activations.
    learning_rate: of every fine-tuning but the next.
    last_k_learning_rate: of EU-K and CF-K.
    table_epochs: the most of a fine-tuning that the stop rule ends.
    curve_epochs: of one that a figure shows, without a stop rule.
    stop_js_change: of the stop rule, bits an epoch.
    stop_retain_share: of the stop rule.
    sensitivity_examples: behind each Top-K.
    ks: of Figure 5; the problem's own K is added, and K = 0 always there.
    granularities: of Figure 5.
    epsilon_leaf: ε where K counts tensors. Zeroing, which serves for scalars,
      would leave a net of dead tensors that no fine-tuning revives.
    sweeps: what is swept, at the middle one of the first problem's fractions.
    generator: of SPD-GAN.
    generators: how many for each pair of models.
    degree_limit: at most so many images of D_RE and of test a degree scores.
    degree_fractions: of Figure 9.
    degree_rows: of Figure 9, beside the null; Random-TopK is not in the
      paper's.
    comparable: whether the paper's absolute numbers can be compared with.
  """

  name: str
  about: str
  problems: tuple[Problem, ...]
  seeds: int
  sweep_seeds: int
  train_epochs: int
  train_learning_rate: float = 1e-3
  batch_size: int = 128
  dtype: str = 'float32'
  learning_rate: float = 1e-3
  last_k_learning_rate: float = 1e-3
  table_epochs: int = 50
  curve_epochs: int = 100
  stop_js_change: float = 0.01
  stop_retain_share: float = 0.98
  sensitivity_examples: int = 256
  ks: tuple[int, ...] = tuple(range(5, 51, 5))
  granularities: tuple[str, ...] = ('scalar', 'leaf')
  epsilon_leaf: float = 1.0
  sweeps: tuple[Sweep, ...] = SWEEPS
  generator: GeneratorSettings = GeneratorSettings()
  generators: int = 5
  degree_limit: int = 2048
  degree_fractions: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20)
  degree_rows: tuple[str, ...] = (
    *('retrain', 'finetune', 'top_k', 'random_k'),
    *('eu_5', 'eu_10', 'cf_5', 'cf_10'),
  )
  comparable: bool = False

  def settings(self, problem: Problem) -> Settings:
    """What a strategy of a table is told, before its own changes."""
    return Settings(
      k=problem.k,
      learning_rate=self.learning_rate,
      epochs=self.table_epochs,
      batch_size=self.batch_size,
      stop_js_change=self.stop_js_change,
      stop_retain_share=self.stop_retain_share,
      sensitivity_examples=self.sensitivity_examples,
    )


def _full_size(dataset: str) -> tuple[Problem, ...]:
  first, *others = (
    Problem(dataset, model, printed[0])
    for model, printed in paper.TABLE_1.items()
  )
  return (
    dataclasses.replace(first, shows=tuple(paper.ARTEFACTS)),
    *others,
  )


_EVERYTHING = tuple(paper.ARTEFACTS)
_SMOKE = Preset(
  'smoke',
  'scikit-learn’s digits, a small net: minutes, to see that all of it works',
  (Problem('digits', 'cnn', 45, fractions=(0.10, 0.20), shows=_EVERYTHING),),
  seeds=2,
  sweep_seeds=2,
  train_epochs=10,
  train_learning_rate=3e-3,
  batch_size=64,
  table_epochs=4,
  curve_epochs=4,
  sensitivity_examples=64,
  ks=(25,),
  sweeps=NARROW,
  generator=GeneratorSettings(epochs=2, batch_size=16, width=8),
  degree_fractions=(0.20,),
  degree_rows=('retrain', 'finetune', 'top_k', 'random_k', 'eu_5'),
)
# Half of the options, which is what two hours allow.
_FEWER = (
  Sweep('ε of Top-K', 'top_k', _options('epsilon_top', -1.0, 1.0, 10.0)),
  NARROW[1],
  *SWEEPS[2:4],
  NARROW[4],
)
_CPU = Preset(
  'cpu',
  '10,000 images of Fashion-MNIST and CIFAR-10, nets of width 16',
  (
    Problem(
      'fashion_mnist',
      'resnet18',
      45,
      width=16,
      train_subset=10_000,
      fractions=(0.20,),
      shows=_EVERYTHING,
    ),
    Problem(
      'cifar10',
      'resnet18',
      45,
      width=16,
      train_subset=10_000,
      fractions=(0.20,),
      shows=('fig1', 'fig6'),
    ),
  ),
  seeds=3,
  sweep_seeds=2,
  train_epochs=8,
  batch_size=64,
  table_epochs=2,
  curve_epochs=2,
  ks=(5, 25),
  sweeps=_FEWER,
  generator=GeneratorSettings(epochs=2),
  degree_limit=512,
  degree_fractions=(0.20,),
  degree_rows=('retrain', 'finetune', 'top_k', 'random_k', 'eu_5', 'cf_5'),
)
_PAPER = Preset(
  'paper',
  'all of CIFAR-10, the paper’s networks, epochs and learning rates',
  _full_size('cifar10'),
  seeds=3,
  sweep_seeds=3,
  train_epochs=50,
  last_k_learning_rate=1e-4,
  comparable=True,
)
_PAPER_FAST = dataclasses.replace(
  _PAPER,
  name='paper_fast',
  about='all of CIFAR-10, the paper’s networks, short schedules in bfloat16',
  train_epochs=20,
  batch_size=256,
  dtype='bfloat16',
  table_epochs=10,
  curve_epochs=10,
  ks=(5, 15, 25, 35, 45, 50),
)
PRESETS = {p.name: p for p in (_PAPER, _PAPER_FAST, _CPU, _SMOKE)}
