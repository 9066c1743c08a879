"""How large a reproduction is, and the studies that it consists of.

A preset (`presets.toml`) says everything that a number depends on. Of one
preset more seeds or other artefacts only add stages.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import pathlib
from typing import Any, NamedTuple

import msgspec

from unlearn_jax.strategies import FACTORIES, spelling
from .. import config
from . import paper

# `stop_retain_share` of a training that runs all of its epochs: more than all
# retained images cannot be right.
NEVER = 2.0
# Sweeps choose defaults, so that they must not see the tables' seeds.
FIRST_SWEEP_SEED = 1000
Texts = Iterable[str]
GRANULARITIES = ('scalar', 'leaf')


@dataclasses.dataclass(frozen=True)
class Problem:
  """A data set and a model."""

  dataset: str  # as `--dataset` takes it
  model: str
  k: int  # of Top-K; the paper's for this model
  width: int | None = None  # None is the paper's
  train_subset: int | None = None
  fractions: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20)  # forgotten, of D
  shows: tuple[str, ...] = tuple(paper.ARTEFACTS)  # that it takes part in

  @property
  def name(self) -> str:
    """Of its folder, and in every title."""
    own = pathlib.PurePath(self.dataset).stem  # npz:some/where/FILE.npz
    return ''.join(c if c.isalnum() else '_' for c in own) + f'-{self.model}'

  @property
  def places(self) -> 'list[Place]':
    """One for each share."""
    return [Place(self, fraction) for fraction in self.fractions]

  @property
  def swept(self) -> 'Place':
    """Where the sweeps are: the second share that the tables have."""
    return self.places[:2][-1]


class Name(NamedTuple):
  """Of a study."""

  kind: str  # 'table', 'curve', 'k', 'degree' or 'sweep'
  problem: str
  fraction: float
  part: str = ''  # granularity of K, or name of the sweep


class Place(NamedTuple):
  """A problem, and the share of its D that is forgotten."""

  problem: Problem
  fraction: float

  @property
  def share(self) -> str:
    """As the page shows it, '5 %'."""
    return f'{100 * self.fraction:g} %'

  def __str__(self) -> str:
    return f'{self.problem.name}, {self.share}'

  def name(self, kind: str, part: str = '') -> Name:
    """Of a study."""
    return Name(kind, self.problem.name, self.fraction, part)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """One choice that the paper leaves open."""

  name: str
  row: str  # with which it is tried
  values: dict[str, tuple[Any, ...]]  # by parameter, the default's among them

  @property
  def options(self) -> list[dict[str, Any]]:
    """The parameters of each point: all combinations."""
    every = itertools.product(*self.values.values())
    return [dict(zip(self.values, values)) for values in every]


@dataclasses.dataclass(frozen=True)
class Preset:
  """A size of the reproduction."""

  name: str
  about: str
  comparable: bool  # with the paper's absolute numbers
  problems: tuple[Problem, ...]  # the first is Table II's and the sweeps'
  seeds: int  # of tables and figures, from 0
  sweep_seeds: int
  training: config.Training  # of source and Retrain
  budget: config.Methods  # of a fine-tuning that the stop rule ends
  curve_epochs: int  # of one that a figure shows, without a stop rule
  last_k_learning_rate: float  # of EU-K and CF-K
  dtype: str
  examples: int  # behind each Top-K
  ks: tuple[int, ...]  # of Figure 5, which adds 0 and the problem's own
  epsilon_leaf: float  # where K counts tensors
  sweeps: tuple[Sweep, ...]
  generators: config.Generators
  degree_fractions: tuple[float, ...]  # of Figure 9, as are the rows
  degree_rows: tuple[str, ...]

  def spelled(self, problem: Problem, row: str, **changes: Any) -> str:
    """A row as `--strategies` takes it, with other parameters if given."""
    _, factory, fixed = paper.ROWS[row]
    given = {**fixed, **changes}
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
      most = paper.counts(problem.model)[0]
      wanted = {min(k, most) for k in wanted}
      own = {'granularity': 'leaf', 'epsilon': self.epsilon_leaf}
    return {0: self.spelled(problem, 'finetune')} | {
      k: self.spelled(problem, 'top_k', k=k, **own) for k in sorted(wanted)
    }

  def study(self, problem: Problem, name: Name, texts: Texts) -> config.Study:
    """That of the tables, or without their stop rule that of the curves."""
    methods = dataclasses.replace(self.budget, strategies=', '.join(texts))
    if name.kind in ('curve', 'k'):
      methods = dataclasses.replace(
        methods, epochs=self.curve_epochs, stop_retain_share=NEVER
      )
    return config.Study(
      config.Data(problem.dataset, problem.train_subset),
      config.Network(problem.model, problem.width, dtype=self.dtype),
      self.training,
      config.Forget(f'random({name.fraction})'),
      methods=methods,
      seeds=self.seeds,
      generators=self.generators,
    )


def studies(preset: Preset, only: Iterable[str]) -> dict[Name, config.Study]:
  """What has to be computed for the artefacts that are wanted."""
  found = {}
  for problem in preset.problems:
    shown = set(only).intersection(problem.shows)
    for name, artefacts, texts, changes in _asked(preset, problem, shown):
      if shown.intersection(artefacts):
        study = preset.study(problem, name, texts)
        found[name] = dataclasses.replace(study, **changes)
  return found


def _asked(
  preset: Preset, problem: Problem, shown: set[str]
) -> Iterator[tuple[Name, list[str], Texts, dict[str, Any]]]:
  """(name, artefacts, spellings, other settings than the tables')."""

  def spelled(rows: Iterable[str]) -> list[str]:
    return [preset.spelled(problem, row) for row in rows]

  shares = preset.degree_fractions
  measured = [at for at in problem.places if at.fraction in shares]
  for at in problem.places:
    yield at.name('table'), ['table2', 'fig7'], spelled(paper.ROWS), {}
    # Of the curves, those that a figure draws.
    curves = ['fig1', 'fig8', 'fig6'][: 3 if at == problem.places[-1] else 2]
    drawn = [paper.FIGURES[own]['rows'] for own in shown.intersection(curves)]
    rows = [row for row in paper.ROWS if any(row in own for own in drawn)]
    yield at.name('curve'), curves, spelled(rows), {}
    for part in GRANULARITIES:
      by_k = preset.of_k(problem, part)
      yield at.name('k', part), ['fig5'], by_k.values(), {}
    if at in measured:
      # Figure 4 needs one pair of the first of Figure 9's shares.
      serves = ['fig9', 'fig4'][: 2 if at == measured[0] else 1]
      own: dict[str, Any] = {'degree': True}
      rows = list(preset.degree_rows)
      if 'fig9' not in shown:
        own, rows = {**own, 'seeds': 1}, ['top_k']
      yield at.name('degree'), serves, spelled(rows), own
  own = {'draws': config.Seeds(FIRST_SWEEP_SEED), 'seeds': preset.sweep_seeds}
  for sweep in preset.sweeps:
    texts = [preset.spelled(problem, sweep.row, **o) for o in sweep.options]
    texts = spelled(['retrain', 'finetune']) + texts
    yield problem.swept.name('sweep', sweep.name), ['sweeps'], texts, own


def _changed(whole: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
  """A table with what another says in its place, inner tables likewise."""
  inner = {n: _changed(whole[n], v) for n, v in own.items() if type(v) is dict}
  return {**whole, **own, **inner}


_tables = paper.read('presets.toml', dict[str, dict[str, Any]])
_first = next(iter(_tables.values()))
PRESETS = {
  name: msgspec.convert({**_changed(_first, own), 'name': name}, Preset)
  for name, own in _tables.items()
}
