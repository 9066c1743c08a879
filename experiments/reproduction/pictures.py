"""The paper's figures, drawn of our numbers in the style of `figures`."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
)
import numpy as np

from experiments import figures
from experiments.figures import (
  BLACK,
  GREY,
  SKY,
  VERMILLION,
)
from experiments.reproduction import (
  drawing,
  figure_statements,
  judgements,
  tally,
  tasks,
)
from experiments.reproduction.presets import Problem
from experiments.reproduction.tally import Series, Tally, measured, of_source

GRANULARITIES: dict[str, tuple[str, str, str, Any]] = {
  'scalar': ('K scalars', VERMILLION, 'o', '-'),
  'leaf': ('K tensors', SKY, 's', '--'),
}
_ACROSS = 4


def _shown(results: Tally, artefact: str) -> list[Problem]:
  return [p for p in results.preset.problems if artefact in p.shows]


def _pairs(results: Tally, artefact: str) -> list[tuple[Problem, float]]:
  return [(p, f) for p in _shown(results, artefact) for f in p.fractions]


def figure1(results: Tally) -> Figure:
  """Acc_RE and Acc_UL after Random-k, and the source's test accuracy."""
  shown = _shown(results, 'fig1')
  figure, panels = drawing.panels(len(shown), _ACROSS, 2.1)
  for axes, problem in zip(panels, shown):
    xs = [100 * f for f in problem.fractions]

    def columns(read: Callable[..., Any]) -> list[Series]:
      return [
        results.series(
          lambda seed: results.tasks.curve(problem, f, 'random_k', seed), read
        )
        for f in problem.fractions
      ]

    for metric, name, color, line, marker in figures.SERIES:
      del name
      look = {'color': color, 'linestyle': line, 'marker': marker}
      drawing.line(axes, xs, columns(measured(metric)), **look)
    look = {'color': BLACK, 'linestyle': ':', 'marker': ''}
    drawing.line(axes, xs, columns(of_source('test_accuracy')), **look)
    axes.set_xticks(xs)
    axes.set_title(problem.name, loc='left')
    axes.grid(axis='y')
  panels[0].set_ylabel('accuracy, %')
  figure.supxlabel('share of D that is forgotten, %', fontsize=8.5)
  handles = [
    Line2D([], [], color=color, linestyle=line, marker=marker, label=name)
    for _, name, color, line, marker in figures.SERIES
  ]
  label = 'source on test'
  handles.append(Line2D([], [], color=BLACK, linestyle=':', label=label))
  figure.legend(handles=handles, loc='outside upper center', ncols=3)
  return figure


def figure5(results: Tally) -> Figure:
  """Acc_RE − Acc_UL by K, as the difference to K = 0 of the same seed."""
  shown = _pairs(results, 'fig5')
  figure, panels = drawing.panels(len(shown), 2, 2.0)
  for axes, (problem, fraction) in zip(panels, shown):
    remarks = []
    for granularity in results.preset.granularities:
      name, color, marker, line = GRANULARITIES[granularity]
      series = figure_statements.k_series(
        results, problem, fraction, granularity
      )
      zero = series[0]
      gains = [
        {s: v - zero[s] for s, v in column.items() if s in zero}
        for column in series.values()
      ]
      look = {'color': color, 'marker': marker, 'linestyle': line}
      drawing.line(axes, list(series), gains, **look)
      remarks.append(f'{name}: {_optimum(series)}')
      if granularity == 'scalar' and len(zero) > 1:
        spread = 100 * float(np.std(list(zero.values()), ddof=1))
        axes.axhspan(-spread, spread, color=GREY, alpha=0.18, lw=0, zorder=0)
    axes.axhline(0, color=BLACK, linewidth=0.7)
    title = f'{problem.name}, {100 * fraction:g} %\n' + '\n'.join(remarks)
    axes.set_title(title, loc='left', fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y')
  figure.supxlabel('K', fontsize=8.5)
  label = '(Acc_RE − Acc_UL) −\nthat of K = 0, points'
  figure.supylabel(label, fontsize=8.5, multialignment='center')
  handles: list[Any] = [
    Line2D([], [], color=color, marker=marker, linestyle=line, label=name)
    for name, color, marker, line in GRANULARITIES.values()
  ]
  band: dict[str, Any] = {'color': GREY, 'alpha': 0.3, 'linewidth': 6}
  label = 'seed to seed: ± 1 SD of K = 0'
  handles.append(Line2D([], [], label=label, **band))
  figure.legend(handles=handles, loc='outside upper center', ncols=3)
  return figure


def _optimum(series: dict[int, Series]) -> str:
  found = figure_statements.best_k(series)
  if found is None or found[1].low is None:
    return 'too few seeds'
  k, gain = found
  above = judgements.sign(gain) > 0
  return f'best K = {k}' if above else 'no optimum resolved'


def _by_epoch(
  axes: Axes,
  results: Tally,
  problem: Problem,
  fraction: float,
  row: str,
  metric: str,
  **look: Any,
) -> None:
  epochs = range(results.preset.curve_epochs + 1)
  columns = [
    results.series(
      lambda seed: results.tasks.curve(problem, fraction, row, seed),
      tally.at_epoch(epoch, metric),
    )
    for epoch in epochs
  ]
  every = max(1, len(epochs) // 8)
  drawing.line(axes, list(epochs), columns, markevery=every, **look)


def figure6(results: Tally) -> Figure:
  """Acc_RE and Acc_UL by epoch, Top-K and Random-k, and the control."""
  shown = _shown(results, 'fig6')
  rows = ('finetune', 'top_k', 'random_k')
  figure, panels = drawing.panels(2 * len(shown), 2, 1.9)
  for place, problem in enumerate(shown):
    fraction = problem.fractions[-1]
    for axes, metric, name in (
      (panels[2 * place], 'retain_accuracy', 'D_RE'),
      (panels[2 * place + 1], 'forget_accuracy', 'D_UL'),
    ):
      for row in rows:
        _by_epoch(
          axes, results, problem, fraction, row, metric, **drawing.look(row)
        )
      head = f'{name}: {problem.name}, {100 * fraction:g} %'
      axes.set_title(head, loc='left')
      axes.xaxis.set_major_locator(MaxNLocator(integer=True))
      axes.grid(axis='y')
    panels[2 * place].set_ylabel('accuracy, %')
  figure.supxlabel('epoch of fine-tuning (0: perturbed)', fontsize=8.5)
  drawing.legend(figure, rows)
  return figure


def figure7(results: Tally) -> Figure:
  """Acceleration over Retrain by share forgotten, on a logarithmic axis."""
  shown = _shown(results, 'fig7')
  rows = [row for row in tasks.ROWS if row != 'retrain']
  figure, panels = drawing.panels(len(shown), 2, 2.6)
  for axes, problem in zip(panels, shown):
    for place, row in enumerate(rows):
      for number, fraction in enumerate(problem.fractions):
        series = results.table(problem, fraction, row, 'acceleration')
        if series:
          x = number + 0.085 * (place - (len(rows) - 1) / 2)
          cut = results.is_cut_off(problem, fraction, row)
          _whisker(axes, x, series, row, cut)
    names = [f'{100 * f:g}' for f in problem.fractions]
    axes.set_xticks(range(len(names)), names)
    axes.axhline(1, color=BLACK, linewidth=0.7, linestyle=':')
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:g}'))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(problem.name, loc='left')
    axes.grid(axis='y')
  panels[0].set_ylabel('speed, × Retrain (log scale)')
  figure.supxlabel('share of D that is forgotten, %', fontsize=8.5)
  drawing.legend(figure, rows)
  return figure


def _whisker(axes: Axes, x: float, series: Series, row: str, cut: bool) -> None:
  """The mean, hollow if it is a bound, and a line over the seeds' range.

  An interval may reach below 0, which has no place on this axis.
  """
  color, marker, _ = drawing.LOOKS[row]
  values = list(series.values())
  axes.plot([x, x], [min(values), max(values)], color=color, linewidth=1.0)
  mean = float(np.exp(np.mean(np.log(values))))
  look: dict[str, Any] = {'color': color, 'marker': marker, 'linestyle': ''}
  if cut:
    look['markerfacecolor'] = 'white'
  axes.plot([x], [mean], markersize=4.5, zorder=4, **look)


def figure8(results: Tally) -> Figure:
  """Acc_RE by epoch: Top-K, Random-k, Random-TopK, and the control."""
  shown = _pairs(results, 'fig8')
  figure, panels = drawing.panels(len(shown), _ACROSS, 1.8)
  for axes, (problem, fraction) in zip(panels, shown):
    for row in tasks.CURVES:
      _by_epoch(
        axes,
        results,
        problem,
        fraction,
        row,
        'retain_accuracy',
        **drawing.look(row),
      )
    axes.set_title(f'{problem.name}\n{100 * fraction:g} %', loc='left')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y')
  panels[0].set_ylabel('Acc_RE, %')
  figure.supxlabel('epoch of fine-tuning (0: perturbed)', fontsize=8.5)
  drawing.legend(figure, tasks.CURVES)
  return figure


DRAWN: dict[str, Callable[[Tally], Figure]] = {
  'fig1': figure1,
  'fig5': figure5,
  'fig6': figure6,
  'fig7': figure7,
  'fig8': figure8,
}
