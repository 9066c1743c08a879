"""The paper's figures, drawn of our numbers in the style of the report's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import Any, NamedTuple

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
import numpy as np

from experiments.report import degree, figures
from experiments.report.figures import BLACK, GREY, Bar
from experiments.reproduction import judgements, sweeping, tally
from experiments.reproduction.presets import CURVES, ROWS, Problem, label
from experiments.reproduction.sweeping import GAP
from experiments.reproduction.tally import Series, Tally
from experiments.study import degrees

# Colour, marker, line style and name, the same in every figure.
_LOOKS: dict[str, tuple[str, str, Any, str]] = {
  'retrain': (BLACK, 'x', ':', label('retrain')),
  'finetune': (GREY, 'v', (0, (4, 1)), label('finetune')),
  'top_k': (figures.VERMILLION, 'o', '-', label('top_k')),
  'random_k': (figures.BLUE, 's', '--', label('random_k')),
  'random_top_k': (figures.PURPLE, 'D', '-.', label('random_top_k')),
  'eu_5': (figures.GREEN, '<', '-', label('eu_5')),
  'eu_10': (figures.GREEN, '>', '--', label('eu_10')),
  'cf_5': (figures.ORANGE, '^', '-', label('cf_5')),
  'cf_10': (figures.ORANGE, 'P', '--', label('cf_10')),
  'scalar': (figures.VERMILLION, 'o', '-', 'K scalars'),
  'leaf': (figures.SKY, 's', '--', 'K tensors'),
  'retain_accuracy': (figures.BLUE, 's', '--', 'retained images'),
  'forget_accuracy': (figures.VERMILLION, 'o', '-', 'forget set'),
  'source': (BLACK, '', ':', 'source on test'),
}
_SHARE = 'share of D that is forgotten, %'
_EPOCH = 'epoch of fine-tuning (0: perturbed)'


def _look(name: str) -> dict[str, Any]:
  return dict(zip(('color', 'marker', 'linestyle'), _LOOKS[name]))


class Panel(NamedTuple):
  """A part of a figure.

  Attributes:
    title: above it.
    xs: places of the columns; empty where something else is drawn.
    lines: a series for each place, by a name of `_LOOKS`.
  """

  title: str
  xs: Sequence[float] = ()
  lines: Mapping[str, Sequence[Series]] = {}


def _figure(
  panels: Sequence[Panel],
  size: tuple[int, float],
  xlabel: str,
  ylabel: str,
  names: Sequence[str],
  more: Sequence[Line2D] = (),
) -> tuple[Figure, list[Axes]]:
  """Panels in rows of `size[0]`, `size[1]` inches high, below one legend."""
  across = max(1, min(size[0], len(panels)))
  down = math.ceil(len(panels) / across)
  figure = figures.blank(figures.WIDTH, size[1] * down + 0.7)
  grid = figure.subplots(down, across, sharey=True, squeeze=False).flat
  for axes, panel in zip(grid, panels):
    for name, columns in panel.lines.items():
      _line(axes, panel.xs, columns, **_look(name))
    small = 7.5 if panel.title.count('\n') > 1 else 8.5
    axes.set_title(panel.title, loc='left', fontsize=small)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(axis='y')
  for axes in grid[len(panels) :]:
    axes.remove()
  for axes in grid[: len(panels) : across]:
    axes.set_ylabel(ylabel)
  figure.supxlabel(xlabel, fontsize=8.5)
  handles = [Line2D([], [], label=_LOOKS[n][3], **_look(n)) for n in names]
  handles += more
  where: dict[str, Any] = {'loc': 'outside upper center', 'handlelength': 2.8}
  figure.legend(handles=handles, ncols=min(4, len(handles)), **where)
  return figure, list(grid[: len(panels)])


def _line(
  axes: Axes, xs: Sequence[float], columns: Sequence[Series], **look: Any
) -> None:
  """Means as a line, seeds as thin ones, 95 % intervals as a band.

  The axis fits the seeds; of two, an interval is easily ten times as wide.
  At a single x these are a marker, dots and a bar.
  """
  known = [(x, i) for x, c in zip(xs, columns) if (i := tally.interval(c))]
  if not known:
    return
  alone, color = len(known) == 1, look['color']
  if alone:
    look['marker'] = look.get('marker') or '_'
  every = max(1, len(xs) // 8)
  means = [100 * i.mean for _, i in known]
  axes.plot([x for x, _ in known], means, markevery=every, **look)
  thin: dict[str, Any] = {'color': color, 'linewidth': 0.5, 'alpha': 0.6}
  for seed in sorted({seed for column in columns for seed in column}):
    own = [(x, 100 * c[seed]) for x, c in zip(xs, columns) if seed in c]
    look_ = {**thin, 'marker': '.', 'markersize': 3} if alone else thin
    axes.plot([x for x, _ in own], [y for _, y in own], **look_)
  low = [(x, 100 * i.low) for x, i in known if i.low is not None]
  high = [(x, 100 * i.high) for x, i in known if i.high is not None]
  # Unlike a patch or a line of `plot`, an artist leaves the axis alone.
  if len(low) == 1:
    axes.add_artist(Line2D(*zip(*low, *high), **{**thin, 'linewidth': 1.0}))
  elif low:
    band: dict[str, Any] = {'color': color, 'alpha': 0.15, 'linewidth': 0}
    axes.add_artist(Polygon([*low, *reversed(high)], **band))


def _pairs(found: Tally, artefact: str) -> list[tuple[Problem, float]]:
  problems = found.problems(artefact)
  return [(p, fraction) for p in problems for fraction in p.fractions]


def _figure_1(found: Tally) -> Figure:
  """Acc_RE and Acc_UL after Random-k, and the source's test accuracy."""
  drawn = {
    'retain_accuracy': ('random_k', 'retain_accuracy'),
    'forget_accuracy': ('random_k', 'forget_accuracy'),
    'source': ('source', 'test_accuracy'),
  }
  panels = []
  for problem in found.problems('fig1'):
    xs = [100 * fraction for fraction in problem.fractions]
    lines = {
      name: [found.curve(problem, f, *what) for f in problem.fractions]
      for name, what in drawn.items()
    }
    panels.append(Panel(problem.name, xs, lines))
  figure, every = _figure(panels, (4, 2.1), _SHARE, 'accuracy, %', [*drawn])
  for axes, panel in zip(every, panels):
    axes.set_xticks(panel.xs)
  return figure


def _figure_5(found: Tally) -> Figure:
  """Acc_RE − Acc_UL by K, as the difference to K = 0 of the same seed."""
  panels, spreads = [], []
  for problem, fraction in _pairs(found, 'fig5'):
    title, lines, ks = f'{problem.name}, {100 * fraction:g} %', {}, []
    for name in ('scalar', 'leaf'):
      series = found.of_k(problem, fraction, name)
      zero = series[0]
      lines[name] = {
        k: {s: v - zero[s] for s, v in column.items() if s in zero}
        for k, column in series.items()
      }
      ks += [k for k in series if k not in ks]
      title += f'\n{_LOOKS[name][3]}: {_optimum(series)}'
    values = list(zero.values())
    spreads.append(100 * float(np.std(values, ddof=1)) if values[1:] else 0.0)
    columns = {
      n: [own.get(k, {}) for k in sorted(ks)] for n, own in lines.items()
    }
    panels.append(Panel(title, sorted(ks), columns))
  gray: dict[str, Any] = {'color': GREY, 'alpha': 0.3, 'linewidth': 6}
  band = Line2D([], [], label='seed to seed: ± 1 SD of K = 0', **gray)
  text = '(Acc_RE − Acc_UL) −\nthat of K = 0, points'
  figure, every = _figure(
    panels, (2, 2.0), 'K', text, ['scalar', 'leaf'], [band]
  )
  for axes, spread in zip(every, spreads):
    axes.axhspan(-spread, spread, color=GREY, alpha=0.18, lw=0, zorder=0)
    axes.axhline(0, color=BLACK, linewidth=0.7)
  return figure


def _optimum(series: Mapping[int, Series]) -> str:
  best = tally.best_k(series)
  if best is None or best[1].low is None:
    return 'too few seeds'
  above = judgements.sign(best[1]) > 0
  return f'best K = {best[0]}' if above else 'no optimum resolved'


def _by_epoch(
  found: Tally,
  title: str,
  problem: Problem,
  fraction: float,
  part: str,
  rows: Sequence[str],
) -> Panel:
  epochs = range(found.preset.curve_epochs + 1)
  lines = {
    row: [
      found.curve(problem, fraction, row, f'{part}_accuracy', epoch)
      for epoch in epochs
    ]
    for row in rows
  }
  return Panel(title, epochs, lines)


def _figure_6(found: Tally) -> Figure:
  """Acc_RE and Acc_UL by epoch, Top-K and Random-k, and the control."""
  panels = []
  for problem in found.problems('fig6'):
    last = problem.fractions[-1]
    for part, name in (('retain', 'D_RE'), ('forget', 'D_UL')):
      title = f'{name}: {problem.name}, {100 * last:g} %'
      panel = _by_epoch(found, title, problem, last, part, CURVES[:3])
      panels.append(panel)
  return _figure(panels, (2, 1.9), _EPOCH, 'accuracy, %', CURVES[:3])[0]


def _figure_7(found: Tally) -> Figure:
  """Acceleration over Retrain by share forgotten, on a logarithmic axis."""
  problems = found.problems('fig7')
  rows = [row for row in ROWS if row != 'retrain']
  panels = [Panel(problem.name) for problem in problems]
  text = 'speed, × Retrain (log scale)'
  figure, every = _figure(panels, (2, 2.6), _SHARE, text, rows)
  for axes, problem in zip(every, problems):
    for place, row in enumerate(rows):
      for number, fraction in enumerate(problem.fractions):
        series = found.table(problem, fraction, row, 'acceleration')
        x = number + 0.085 * (place - (len(rows) - 1) / 2)
        _whisker(axes, x, series, row, found.cut_off(problem, fraction, row))
    names = [f'{100 * fraction:g}' for fraction in problem.fractions]
    axes.set_xticks(range(len(names)), names)
    axes.axhline(1, color=BLACK, linewidth=0.7, linestyle=':')
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g}'))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  return figure


def _whisker(axes: Axes, x: float, series: Series, row: str, cut: bool) -> None:
  """The mean, hollow if it is a bound, and a line over the seeds' range.

  An interval may reach below 0, which has no place on this axis.
  """
  if not series:
    return
  values, look = list(series.values()), {**_look(row), 'linestyle': ''}
  axes.plot([x, x], [min(values), max(values)], color=look['color'], lw=1.0)
  if cut:
    look['markerfacecolor'] = 'white'
  mean = float(np.exp(np.mean(np.log(values))))
  axes.plot([x], [mean], markersize=4.5, zorder=4, **look)


def _figure_8(found: Tally) -> Figure:
  """Acc_RE by epoch: Top-K, Random-k, Random-TopK, and the control."""
  panels = []
  for problem, fraction in _pairs(found, 'fig8'):
    title = f'{problem.name}\n{100 * fraction:g} %'
    panel = _by_epoch(found, title, problem, fraction, 'retain', CURVES)
    panels.append(panel)
  return _figure(panels, (4, 1.8), _EPOCH, 'Acc_RE, %', CURVES)[0]


def _figure_4(found: Tally, problem: Problem, classes: Sequence[str]) -> Figure:
  """Images of D_UL before and after the generator of one pair."""
  for fraction in problem.fractions:
    for stage in found.pairs(problem, fraction, 'top_k').values():
      return degrees.grid(stage, classes)
  return figures.message('No pair could be measured.')


def _sweeps(found: Tally) -> Figure:
  """The gap to Retrain of every setting that was tried."""
  control = list(sweeping.control(found).values())
  shown = [Bar(label('finetune'), control, 'control', marked=True)]
  for sweep in found.preset.sweeps:
    shown.append(Bar(f'{sweep.name}:'))
    for point in sweeping.points(found, sweep):
      values = list(point.columns[GAP].values())
      role = 'default' if point.default else 'tried'
      shown.append(Bar(point.text, values, role))
  text = 'gap to Retrain, points (0 = same numbers as Retrain)'
  return figures.bars(shown, text, fitted=True)


_DRAWN: dict[str, Callable[[Tally], Figure]] = {
  'fig1': _figure_1,
  'fig5': _figure_5,
  'fig6': _figure_6,
  'fig7': _figure_7,
  'fig8': _figure_8,
  'sweeps': _sweeps,
}


def drawn(found: Tally) -> Iterator[tuple[str, str, Figure]]:
  """(artefact, file name, figure), of the artefacts that were asked for."""
  classes = {
    name.problem: own.plan.setup.dataset.class_names
    for name, own in found.found.items()
  }
  with matplotlib.rc_context(figures.STYLE):
    for artefact in found.only:
      if artefact in _DRAWN:
        yield artefact, artefact, _DRAWN[artefact](found)
      for problem in found.problems(artefact):
        if artefact == 'fig4':
          own = classes[problem.name]
          yield artefact, artefact, _figure_4(found, problem, own)
        if artefact == 'fig9':
          for fraction in problem.fractions:
            for facts in found.degree_facts(problem, fraction):
              figure = degree.bars(facts, len(classes[problem.name]))
              yield artefact, f'fig9_{100 * fraction:g}', figure
