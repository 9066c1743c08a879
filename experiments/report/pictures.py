"""The report's two pictures: gaps, and accuracy by epoch."""

from collections.abc import Callable
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report import figures
from experiments.report.figures import BLACK, CURVES, STYLE
from experiments.report.judging import GAP, estimate, finite, known
from experiments.report.model import REFERENCE, Report, Row
from experiments.report.wording import say


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


PICTURES: dict[str, Callable[[Report], Figure]] = {
  'gap_to_retrain': gap_bars,
  'accuracy_curves': accuracy_curves,
}
