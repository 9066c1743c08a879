"""The paper's figures, drawn of our numbers in the style of the report's."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
import numpy as np

from experiments.report import degree, figures
from experiments.report.figures import BLACK, GREY, Bar
from experiments.reproduction import paper, series, statements
from experiments.reproduction.paper import FIGURES
from experiments.reproduction.presets import GRANULARITIES
from experiments.reproduction.series import Numbers, Series
from experiments.reproduction.statements import GAP
from experiments.study import degrees
from experiments.study.results import degree_facts

LOOKS = FIGURES['looks']


# A title, places, and for each a series, by a name of `LOOKS`.
Panel = tuple[str, Sequence[float], Mapping[str, Sequence[Series]]]


def _figure(
  artefact: str, panels: Sequence[Panel], *more: Any
) -> tuple[Figure, list[Axes]]:
  """Panels in rows below one legend."""
  own = FIGURES[artefact]
  across = max(1, min(own['size'][0], len(panels)))
  down = math.ceil(len(panels) / across)
  figure = figures.blank(figures.WIDTH, own['size'][1] * down + 0.7)
  grid = figure.subplots(down, across, sharey=True, squeeze=False).flat
  for axes, (title, xs, lines) in zip(grid, panels):
    for name, columns in lines.items():
      _line(axes, xs, columns, LOOKS[name])
    small = 7.5 if title.count('\n') > 1 else 8.5
    axes.set_title(title, loc='left', fontsize=small)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(axis='y')
  for axes in grid[len(panels) :]:
    axes.remove()
  for axes in grid[: len(panels) : across]:
    axes.set_ylabel(own['ylabel'])
  figure.supxlabel(own['xlabel'], fontsize=8.5)
  names = dict.fromkeys(name for *_, lines in panels for name in lines)
  handles = [Line2D([], [], **LOOKS[name]) for name in names] + [*more]
  where: Any = {'loc': 'outside upper center', 'handlelength': 2.8}
  figure.legend(handles=handles, ncols=min(4, len(handles)), **where)
  return figure, list(grid[: len(panels)])


def _line(
  axes: Axes, xs: Sequence[float], columns: Sequence[Series], look: Any
):
  """Means as a line, seeds as thin ones, 95 % intervals as a band.

  The axis fits the seeds; of two, an interval is easily ten times as wide.
  At a single x these are a marker, dots and a bar.
  """
  known = [(x, i) for x, c in zip(xs, columns) if (i := series.interval(c))]
  if not known:
    return
  thin: Any = {'color': look['color'], 'lw': 0.5, 'alpha': 0.6}
  dots = thin
  if len(known) == 1:
    look = {**look, 'marker': look['marker'] or '_'}
    dots = {**thin, 'marker': '.', 'markersize': 3}
  means = [(x, 100 * i.mean) for x, i in known]
  axes.plot(*zip(*means), markevery=max(1, len(xs) // 8), **look)
  for seed in sorted({seed for column in columns for seed in column}):
    own = [(x, 100 * c[seed]) for x, c in zip(xs, columns) if seed in c]
    axes.plot(*zip(*own), **dots)
  low = [(x, 100 * i.low) for x, i in known if i.low is not None]
  high = [(x, 100 * i.high) for x, i in known if i.high is not None]
  # Unlike a patch or a line of `plot`, an artist leaves the axis alone.
  if len(low) == 1:
    axes.add_artist(Line2D(*zip(*low, *high), **{**thin, 'lw': 1.0}))
  elif low:
    band = {**thin, 'alpha': 0.15, 'lw': 0}
    axes.add_artist(Polygon([*low, *reversed(high)], **band))


def _figure_1(found: Numbers) -> Figure:
  """Acc_RE and Acc_UL after Random-k, and the source's test accuracy."""
  panels = []
  for problem in found.problems('fig1'):
    lines = {
      metric: [found.of('curve', at, row, metric) for at in problem.places]
      for metric, row in FIGURES['fig1']['lines'].items()
    }
    xs = [100 * fraction for fraction in problem.fractions]
    panels.append((problem.name, xs, lines))
  figure, every = _figure('fig1', panels)
  for axes, (_, xs, _) in zip(every, panels):
    axes.set_xticks(xs)
  return figure


def _figure_4(found: Numbers) -> Figure:
  """Images of D_UL before and after the generator of one pair."""
  for at in found.places('fig4'):
    for stage in found.pairs(at, 'top_k').values():
      return degrees.grid(stage, found.classes(at))
  return figures.message('No pair could be measured.')


def _figure_5(found: Numbers) -> Figure:
  """Acc_RE − Acc_UL by K, as the difference to K = 0 of the same seed."""
  panels, spreads = [], []
  for at in found.places('fig5'):
    own = {g: found.of_k(at, g) for g in GRANULARITIES}
    ks = sorted({k for by_k in own.values() for k in by_k})
    lines = {
      granularity: [series.minus(by_k.get(k, {}), by_k[0]) for k in ks]
      for granularity, by_k in own.items()
    }
    best = [f'{LOOKS[g]["label"]}: {_best(by_k)}' for g, by_k in own.items()]
    panels.append(('\n'.join([f'{at}', *best]), ks, lines))
    zero = list(own['leaf'][0].values())
    spreads.append(100 * float(np.std(zero, ddof=1)) if zero[1:] else 0.0)
  text = 'seed to seed: ± 1 SD of K = 0'
  band = figures.key(text, color=GREY, alpha=0.3, linewidth=6)
  figure, every = _figure('fig5', panels, band)
  for axes, spread in zip(every, spreads):
    axes.axhspan(-spread, spread, color=GREY, alpha=0.18, lw=0, zorder=0)
    axes.axhline(0, color=BLACK, linewidth=0.7)
  return figure


def _best(by_k: Mapping[int, Series]) -> str:
  best = series.best_k(by_k)
  if best is None or best[1].low is None:
    return 'too few seeds'
  above = statements.sign(best[1]) > 0
  return f'best K = {best[0]}' if above else 'no optimum resolved'


def _by_epoch(found: Numbers, artefact: str) -> Figure:
  """Accuracies of Top-K, Random-k, Random-TopK, and the control."""
  own, epochs = FIGURES[artefact], range(found.preset.curve_epochs + 1)
  panels = []
  for problem in found.problems(artefact):
    places = problem.places[-1:] if own['last'] else problem.places
    for at, (title, metric) in itertools.product(places, own['panels'].items()):
      lines = {
        row: [found.of('curve', at, row, metric, epoch) for epoch in epochs]
        for row in own['rows']
      }
      panels.append((title.format(place=at), epochs, lines))
  return _figure(artefact, panels)[0]


def _figure_7(found: Numbers) -> Figure:
  """Acceleration over Retrain by share forgotten, on a logarithmic axis.

  Geometric means, hollow if they are bounds, and lines over the seeds' range:
  an interval may reach below 0, which has no place there.
  """
  problems = found.problems('fig7')
  rows = [row for row in paper.ROWS if row != 'retrain']
  panels = [(own.name, (), dict.fromkeys(rows, ())) for own in problems]
  figure, every = _figure('fig7', panels)
  for axes, problem in zip(every, problems):
    for (x, at), row in itertools.product(enumerate(problem.places), rows):
      own = list(found.of('table', at, row, 'acceleration').values())
      if not own:
        continue
      place = x + 0.085 * (rows.index(row) - (len(rows) - 1) / 2)
      color, marker = LOOKS[row]['color'], LOOKS[row]['marker']
      face = 'white' if found.cut_off(at, row) else color
      axes.plot([place, place], [min(own), max(own)], color=color, lw=1.0)
      look: Any = {'color': color, 'mfc': face, 'markersize': 4.5, 'zorder': 4}
      axes.plot(place, np.exp(np.mean(np.log(own))), marker, **look)
    names = [f'{100 * fraction:g}' for fraction in problem.fractions]
    axes.set_xticks(range(len(names)), names)
    axes.axhline(1, color=BLACK, linewidth=0.7, linestyle=':')
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda y, _: f'{y:g}')
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  return figure


def _figure_9(found: Numbers) -> dict[str, Figure]:
  """Unlearning degrees, a figure for each share; none if not whole."""
  made = {}
  for at in found.places('fig9'):
    own = found.found.get(at.name('degree'))
    names = {found.text(at, r): row.label for r, row in paper.ROWS.items()}
    for facts in degree_facts(own.plan, own.errors) if own else ():
      rows = [
        dataclasses.replace(row, label=names[row.strategy])
        for row in facts.rows
      ]
      facts = dataclasses.replace(facts, rows=rows)
      figure = degree.bars(facts, len(found.classes(at)))
      made[f'fig9_{100 * at.fraction:g}'] = figure
  return made


def _sweeps(found: Numbers) -> Figure:
  """The gap to Retrain of every setting that was tried."""
  sweeps = found.preset.sweeps
  text = found.preset.spelled(found.preset.problems[0], 'finetune')
  control = list(statements.columns(found, sweeps[0], text)[GAP].values())
  shown = [Bar(paper.ROWS['finetune'].label, control, 'control', marked=True)]
  for sweep in sweeps:
    shown.append(Bar(f'{sweep.name}:'))
    for point in statements.points(found, sweep):
      values = list(point.columns[GAP].values())
      role = 'default' if point.default else 'tried'
      shown.append(Bar(point.text, values, role))
  text = 'gap to Retrain, points (0 = same numbers as Retrain)'
  return figures.bars(shown, text, fitted=True)


_DRAWN: dict[str, Callable[[Numbers], Figure]] = {
  'fig1': _figure_1,
  'fig4': _figure_4,
  'fig5': _figure_5,
  'fig6': functools.partial(_by_epoch, artefact='fig6'),
  'fig7': _figure_7,
  'fig8': functools.partial(_by_epoch, artefact='fig8'),
  'sweeps': _sweeps,
}


@matplotlib.rc_context(figures.STYLE)
def drawn(found: Numbers, artefact: str) -> dict[str, Figure]:
  """The figures of an artefact, by the names of their files."""
  if artefact == 'fig9':
    return _figure_9(found)
  return {artefact: _DRAWN[artefact](found)} if artefact in _DRAWN else {}
