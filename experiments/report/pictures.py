"""The report's three pictures: gaps, accuracy by epoch, perturbed tensors."""

from collections.abc import Callable, Sequence
import itertools
import math
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
import numpy as np

from experiments.report import figures
from experiments.report.figures import BLACK, GREY, PALE, STYLE, WIDTH, key
from experiments.report.judging import GAP, estimate, finite, known, number
from experiments.report.model import REFERENCE, Report, Row
from experiments.report.words import say
from unlearn_jax.base import shown as printable

LABELLED = 12  # So many dots of a panel can have their counts beside them.

# Series of the curves: metric, name, colour, line style, marker.
SERIES = (
  ('retain_accuracy', 'retained images', figures.BLUE, '--', 's'),
  ('forget_accuracy', 'forget set', figures.VERMILLION, '-', 'o'),
)


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


@matplotlib.rc_context(STYLE)
def accuracy_curves(report: Report) -> Figure:
  """Accuracy per epoch of forget and retain set; 0: after the perturbation."""
  rows = [row for row in report.rows if any(own.epoch for own in row.curves)]
  if not rows:
    return figures.message(say('pictures', 'no_curves'))
  across = min(3, len(rows))
  down = math.ceil(len(rows) / across)
  figure = figures.blank(WIDTH, 1.85 * down + 0.75)
  grid = figure.subplots(down, across, sharey=True, squeeze=False)
  floor = _floor(rows)
  others = [row for row in rows if row.role != 'reference']
  for axes, row in zip(grid.flat, rows):
    _curve_panel(axes, row, report, floor)
    # Retrain, which may run much longer, has an axis of its own.
    alike = [row] if row.role == 'reference' else others
    end = max(1, *(_stack(own).shape[-1] - 1 for own in alike))
    axes.set_xlim(-0.04 * end, 1.04 * end)
  for axes in grid.flat[len(rows) :]:
    axes.remove()
  for axes in grid[:, 0]:
    axes.set_ylabel('accuracy, %')
  figure.supxlabel('epoch of unlearning', fontsize=8.5)
  handles = [
    key(name, color=color, ls=line, marker=marker)
    for _, name, color, line, marker in reversed(SERIES)
  ]
  if report.row(REFERENCE):
    handles.append(key('Retrain on the forget set', color=BLACK, ls=':'))
  stop: Any = {'color': GREY, 'ls': '', 'marker': 'v', 'markersize': 5}
  handles.append(key('stop rule met', **stop))
  figure.legend(handles=handles, loc='outside upper center', ncols=4)
  return figure


def _curve_panel(axes: Axes, row: Row, report: Report, floor: float) -> None:
  retrained = estimate(report.row(REFERENCE), 'forget_accuracy')
  if retrained:
    axes.axhline(100 * retrained.mean, color=BLACK, ls=':', zorder=1.5)
  for values, (_, _, color, line, marker) in zip(_stack(row), SERIES):
    whole = np.isfinite(values).all(0)
    epochs = np.arange(values.shape[1])
    shared = np.flatnonzero(whole)[-1:].sum()
    for seed in values[:, shared:] if not whole.all() else []:
      axes.plot(epochs[shared:], seed, line, color=color, lw=0.7)
      end = np.flatnonzero(np.isfinite(seed))[-1:]
      axes.plot(end + shared, seed[end], marker, color=color, ms=2.4)
    if whole.any():
      every = values[:, whole]
      low, high = every.min(0), every.max(0)
      axes.fill_between(epochs[whole], low, high, color=color, alpha=0.22, lw=0)
      axes.plot(epochs[whole], every.mean(0), line + marker, color=color)
  style: Any = {'ha': 'right', 'fontsize': 7, 'transform': axes.transAxes}
  box = {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1}
  axes.text(0.98, 0.04, _curve_remarks(row, floor), bbox=box, **style)
  top = axes.get_xaxis_transform()
  for epoch in {stop for stop in row.stop_epoch if stop is not None}:
    axes.axvline(epoch, color=GREY, lw=0.5, zorder=1)
    axes.plot(epoch, 0.985, 'v', color=GREY, transform=top, markersize=5)
  axes.set_title(figures.label(row.label), loc='left')
  axes.set_ylim(floor, 103)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
  axes.grid(axis='y')
  if row is report.control:
    axes.set_facecolor(PALE)


def _curve_remarks(row: Row, floor: float) -> str:
  """What the panel cannot show: a start below its axis, a rule never met."""
  firsts = _stack(row)[:, :, 0]
  means = [np.nanmean(own) for own in firsts if np.isfinite(own).any()]
  starts = sorted({f'{mean:.0f}' for mean in means if mean < floor})
  remarks = [f'epoch 0: {" and ".join(starts)} %'] if starts else []
  missed = row.stop_epoch.count(None)
  if missed:
    remarks.append(f'rule not met: {missed} of {len(row.stop_epoch)} seeds')
  return '\n'.join(remarks)


def _stack(row: Row) -> np.ndarray:
  """`SERIES` in percent, `[2, seeds, epochs]`; NaN where there is no number."""
  epochs = 1 + max(epoch for curve in row.curves for epoch in curve.epoch)
  stack = np.full((len(SERIES), len(row.curves), epochs), np.nan)
  for values, (metric, *_) in zip(stack, SERIES):
    for seed, curve in zip(values, row.curves):
      seed[curve.epoch] = np.array(getattr(curve, metric), float)
  return 100 * np.where(np.isfinite(stack), stack, np.nan)


def _floor(rows: Sequence[Row]) -> float:
  """Where the accuracy axis begins, in percent; the rest is said in words."""
  # Below the last value of every row and below all that a row that does not
  # start afresh ever shows from epoch 1 on.
  lowest = [100.0]
  for row in rows:
    stack = _stack(row)
    for seed in stack.reshape(-1, stack.shape[-1]):
      lowest += list(seed[np.isfinite(seed)][-1:])
    if row.role != 'reference':
      lowest.append(np.nanmin(stack[:, :, 1:], initial=100.0))
  return max(0.0, 10 * math.floor((min(lowest) - 2) / 10))


@matplotlib.rc_context(STYLE)
def perturbed_by_layer(report: Report) -> Figure:
  """Share of each tensor's scalars that was perturbed, in definition order."""
  sizes = report.model.tensor_sizes
  rows = [row for row in report.rows if row.role not in ('source', 'reference')]
  shares = [(row, own) for row in rows if (own := _shares(row, sizes))]
  if not shares:
    return figures.message(say('pictures', 'no_layers'))
  across = len(shares) if len(shares) < 6 else 4
  down = math.ceil(len(shares) / across)
  row_height = min(0.135, 12.0 / len(sizes))
  width = max(4.0, WIDTH - 1.35 * max(0, 4 - across))
  height = max(2.4, row_height * len(sizes) + 1.1)
  figure = figures.blank(width, height * down)
  grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
  for axes, look, (row, own) in zip(
    grid.flat, itertools.cycle(figures.DOTS), shares
  ):
    _layer_panel(axes, row, own, list(sizes), look)
  for axes in grid.flat[len(shares) :]:
    axes.remove()
  for axes in grid.flat[max(0, len(shares) - across) : len(shares)]:
    axes.tick_params(labelbottom=True)  # Below some there is no panel.
  for axes in grid[:, 0]:
    axes.tick_params(axis='y', labelsize=6.5, length=0)
  step = math.ceil(0.125 / row_height) if row_height < 0.125 else 1
  names = [printable(path, 60) for path in list(sizes)[::step]]
  grid[0, 0].set_yticks(range(0, len(sizes), step), names)
  grid[0, 0].set_ylim(len(sizes) - 0.4, -0.6)
  low = min(share for _, own in shares for share in own.values())
  room = 2500 if len(sizes) <= LABELLED else 250  # Right of 100 %.
  grid[0, 0].set_xlim(100 * 10 ** math.floor(math.log10(low / 1.5)), room)
  text = textwrap.fill(say('pictures', 'layers_axis'), int(14 * width))
  figure.supxlabel(text, fontsize=8.5)
  return figure


def _shares(row: Row, sizes: dict[str, int]) -> dict[str, float]:
  """Perturbed share of each tensor that was touched, mean over seeds."""
  return {
    path: row.by_tensor[path] / size
    for path, size in sizes.items()
    if size and finite(row.by_tensor.get(path)) and row.by_tensor[path] > 0
  }


def _layer_panel(
  axes: Axes, row: Row, shares: dict[str, float], order: list[str], look: Any
) -> None:
  places = [order.index(path) for path in shares]
  percent = [100 * share for share in shares.values()]
  if len(order) <= 100:
    axes.grid(axis='y', color='#EDEDED')
  axes.plot(percent, places, ls='', markersize=3.6, **look)
  for share, place in zip(percent, places) if len(places) <= LABELLED else []:
    count = row.by_tensor[order[place]]
    text = number(count, 1 if count < 10 and count % 1 else 0)
    axes.text(share * 1.7, place, text, va='center', fontsize=6.5)
  axes.tick_params(axis='y', length=0)
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(LogLocator(numticks=5))
  axes.xaxis.set_minor_locator(LogLocator(subs=(), numticks=5))
  # Beyond 100 % there is only room for the counts.
  axes.xaxis.set_major_formatter(lambda x, _: f'{x:g}' if x <= 100 else '')
  axes.grid(axis='x')
  total = number(sum(known(list(row.by_tensor.values()))), 0)
  axes.set_title(f'{figures.label(row.label, 20)}\n{total} scalars', loc='left')


PICTURES: dict[str, Callable[[Report], Figure]] = {
  'gap_to_retrain': gap_bars,
  'accuracy_curves': accuracy_curves,
  'perturbed_by_layer': perturbed_by_layer,
}
