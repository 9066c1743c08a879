"""The report's three pictures: gaps, accuracy by epoch, perturbed tensors."""

from collections.abc import Callable
import math
import textwrap
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments.report import figures
from experiments.report.figures import BLACK, CURVES, STYLE, VERMILLION
from experiments.report.judging import GAP, estimate, finite, known
from experiments.report.model import REFERENCE, Report, Row
from experiments.report.wording import say
from unlearn_jax.base import shown as printable


def gap_bars(report: Report) -> Figure:
  """Gap to Retrain per strategy: bar of the mean, interval, a dot a seed."""
  shown = [
    figures.Bar(
      *(row.label, known(row.values.get(GAP)), row.role, gap),
      marked=row is report.control,
    )
    for row in sorted(report.rows, key=lambda row: row.role != 'source')
    if row.role != 'reference' and (gap := estimate(row, GAP))
  ]
  if not shown:
    return figures.message(say('pictures', 'no_gap'))
  return figures.bars(shown, say('pictures', 'gap_axis'))


@style.context(STYLE)
def accuracy_curves(report: Report) -> Figure:
  """Accuracy per epoch of forget and retain set; 0: after the perturbation."""
  rows = [row for row in report.rows if any(own.epoch for own in row.curves)]
  if not rows:
    return figures.message(say('pictures', 'no_curves'))
  labels = 'epoch of unlearning', 'accuracy, %'
  figure, grid = figures.panels(len(rows), 3, 1.85, *labels)
  retrained = estimate(report.row(REFERENCE), 'forget_accuracy')
  for axes, row in zip(grid, rows):
    for metric, look in CURVES.items():
      columns = _columns(row, metric)
      figures.line(axes, range(len(columns)), columns, look)
    if retrained:
      dotted: Any = {'color': BLACK, 'ls': ':', 'zorder': 1.5}
      name = 'Retrain on the forget set'
      axes.axhline(100 * retrained.mean, label=name, **dotted)
    axes.set_title(figures.label(row.label), loc='left')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis='y')
  ends = [v for row in rows for m in CURVES for v in known(row.values.get(m))]
  grid[0].set_ylim(max(0, 100 * min(ends, default=0) - 5), 103)
  return figures.legend(figure)


def _columns(row: Row, metric: str) -> list[dict[int, float]]:
  """By epoch, the shares of those seeds that came so far."""
  last = max(epoch for curve in row.curves for epoch in curve.epoch)
  found: list[dict[int, float]] = [{} for _ in range(last + 1)]
  for seed, curve in enumerate(row.curves):
    for epoch, value in zip(curve.epoch, getattr(curve, metric)):
      if finite(value):
        found[epoch][seed] = value
  return found


@style.context(STYLE)
def perturbed_by_layer(report: Report) -> Figure:
  """Share of each tensor's scalars that was perturbed, in definition order."""
  sizes = report.model.tensor_sizes
  shares = []
  for row in report.rows:
    own = {
      p: n / sizes[p] for p, n in row.by_tensor.items() if n and p in sizes
    }
    if own and row.role not in ('source', 'reference'):
      shares.append((row, own))
  if not shares:
    return figures.message(say('pictures', 'no_layers'))
  across = len(shares) if len(shares) < 6 else 4
  height = min(12.0, max(1.3, 0.135 * len(sizes)))
  text = textwrap.fill(say('pictures', 'layers_axis'), 100)
  figure, grid = figures.panels(
    len(shares), across, height + 0.4, text, '', sharex=True
  )
  for axes, (row, own) in zip(grid, shares):
    places = [list(sizes).index(path) for path in own]
    percent = [100 * share for share in own.values()]
    axes.plot(percent, places, 'o', color=VERMILLION)
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axes.minorticks_off()
    axes.set_title(figures.label(row.label, 20), loc='left')
    axes.grid()
    axes.tick_params(axis='y', length=0, labelsize=6.5)
    axes.tick_params(labelbottom=True)  # Below some there is no panel.
  step = math.ceil(0.125 * len(sizes) / height)  # So that names do not touch.
  names = [printable(path, 60) for path in list(sizes)[::step]]
  grid[0].set_yticks(range(0, len(sizes), step), names)
  grid[0].set_ylim(len(sizes) - 0.4, -0.6)
  low = min(share for _, own in shares for share in own.values())
  grid[0].set_xlim(100 * 10 ** math.floor(math.log10(low / 1.5)), 150)
  return figure


PICTURES: dict[str, Callable[[Report], Figure]] = {
  'gap_to_retrain': gap_bars,
  'accuracy_curves': accuracy_curves,
  'perturbed_by_layer': perturbed_by_layer,
}
