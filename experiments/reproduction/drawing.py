"""The paper's figures, drawn of our numbers in the style of the report's."""

from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
from typing import Any

from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.report import degree, figures, words
from experiments.report.figures import BLACK, Bar
from experiments.report.model import Estimate
from experiments.reproduction import paper, series, statements
from experiments.reproduction.paper import FIGURES
from experiments.reproduction.presets import GRANULARITIES
from experiments.reproduction.series import Numbers, Series
from experiments.reproduction.statements import GAP
from experiments.study import degrees
from experiments.study.degree_results import degree_facts

LOOKS = {**words.WORDS['curves'], **FIGURES['looks']}


# A title, places, and for each a series, by a name of `LOOKS`.
Panel = tuple[str, Sequence[float], Mapping[str, Sequence[Series]]]


def _figure(
  artefact: str, panels: Sequence[Panel]
) -> tuple[Figure, list[Axes]]:
  """Panels in rows, as figures.toml has them."""
  own, (across, height) = FIGURES[artefact], FIGURES[artefact]['size']
  labels = own['xlabel'], own['ylabel']
  figure, grid = figures.panels(len(panels), across, height, *labels)
  for axes, (title, xs, lines) in zip(grid, panels):
    for name, columns in lines.items():
      figures.line(axes, xs, columns, LOOKS[name])
    axes.set_title(title, loc='left')
    few, many = ticker.FixedLocator(xs), ticker.MaxNLocator(integer=True)
    axes.xaxis.set_major_locator(few if len(xs) < 6 else many)
    axes.grid(axis='y')
  return figure, grid


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
  return figures.legend(_figure('fig1', panels)[0])


def _figure_4(found: Numbers) -> Figure:
  """Images of D_UL before and after the generator of one pair."""
  for at in found.places('fig4'):
    for stage in found.pairs(at, 'top_k').values():
      return degrees.grid(stage, found.classes(at))
  return figures.message('No pair could be measured.')


def _figure_5(found: Numbers) -> Figure:
  """Acc_RE − Acc_UL by K, as the difference to K = 0 of the same seed."""
  panels = []
  for at in found.places('fig5'):
    own = {g: found.of_k(at, g) for g in GRANULARITIES}
    ks = sorted({k for by_k in own.values() for k in by_k})
    lines = {
      granularity: [series.minus(by_k.get(k, {}), by_k[0]) for k in ks]
      for granularity, by_k in own.items()
    }
    panels.append((f'{at}', ks, lines))
  return figures.legend(_figure('fig5', panels)[0])


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
  return figures.legend(_figure(artefact, panels)[0])


def _figure_7(found: Numbers) -> Figure:
  """Acceleration over Retrain by share forgotten, on a logarithmic axis.

  Geometric means, hollow if they are bounds, and lines over the seeds' range:
  an interval may reach below 0, which has no place there.
  """
  problems = found.problems('fig7')
  rows = [row for row in paper.ROWS if row != 'retrain']
  named = dict.fromkeys(rows, ())
  panels = [(own.name, range(len(own.places)), named) for own in problems]
  figure, every = _figure('fig7', panels)
  for axes, problem in zip(every, problems):
    for (x, at), row in itertools.product(enumerate(problem.places), rows):
      own = list(found.of('table', at, row, 'acceleration').values())
      if not own:
        continue
      place = x + 0.085 * (rows.index(row) - (len(rows) - 1) / 2)
      color, marker = LOOKS[row]['color'], LOOKS[row]['marker']
      face = 'white' if found.cut_off(at, row) else color
      look: Any = {'color': color, 'mfc': face, 'ms': 4.5, 'zorder': 4}
      axes.plot(place, np.exp(np.mean(np.log(own))), marker, **look)
      axes.vlines(place, min(own), max(own), color, lw=1.0)
    axes.set_xticklabels([at.share for at in problem.places])
    axes.axhline(1, color=BLACK, lw=0.7, ls=':')
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda y, _: f'{y:g}')
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  return figures.legend(figure)


def _figure_9(found: Numbers) -> dict[str, Figure]:
  """Unlearning degrees, a figure for each share; none if not whole."""
  made = {}
  for at in found.places('fig9'):
    own = found.found.get(at.name('degree'))
    for facts in degree_facts(own.plan, own.errors) if own else ():
      figure = degree.bars(facts, len(found.classes(at)))
      made[f'fig9_{100 * at.fraction:g}'] = figure
  return made


def _sweeps(found: Numbers) -> Figure:
  """The gap to Retrain of every setting that was tried."""
  sweeps = found.preset.sweeps
  text = found.preset.spelled(found.preset.problems[0], 'finetune')
  control = statements.columns(found, sweeps[0], text)[GAP]
  rows = [(paper.ROWS['finetune'].label, control, 'control')]
  for sweep in sweeps:
    for point in statements.points(found, sweep):
      role = 'default' if point.default else 'tried'
      rows.append((f'{sweep.name}: {point.text}', point.columns[GAP], role))
  shown = [
    Bar(name, [*own.values()], role, Estimate.of(mean), role == 'control')
    for name, own, role in rows
    if (mean := series.interval(own))
  ]
  text = 'gap to Retrain, points (0 = same numbers as Retrain)'
  return figures.bars(shown, text)


_DRAWN: dict[str, Callable[[Numbers], Figure]] = {
  'fig1': _figure_1,
  'fig4': _figure_4,
  'fig5': _figure_5,
  'fig6': functools.partial(_by_epoch, artefact='fig6'),
  'fig7': _figure_7,
  'fig8': functools.partial(_by_epoch, artefact='fig8'),
  'sweeps': _sweeps,
}


@style.context(figures.STYLE)
def drawn(found: Numbers, artefact: str) -> dict[str, Figure]:
  """The figures of an artefact, by the names of their files."""
  if artefact == 'fig9':
    return _figure_9(found)
  return {artefact: _DRAWN[artefact](found)} if artefact in _DRAWN else {}
