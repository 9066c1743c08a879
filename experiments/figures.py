"""The report's three pictures, as Matplotlib figures without global state.

Colours are Okabe and Ito's, told apart by colour-blind readers; line style,
marker and hatch say the same once more for print in grey.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import math
import os
import pathlib
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
import numpy as np

from experiments import files, verdicts
from experiments.verdicts import CONTROL, GAP, Report, Row
from unlearn_jax.metrics import Interval

BLACK, GREY, PALE = '#000000', '#6E6E6E', '#FFF3D6'
ORANGE, SKY, GREEN = '#E69F00', '#56B4E9', '#009E73'
BLUE, VERMILLION, PURPLE = '#0072B2', '#D55E00', '#CC79A7'

STYLE: Any = {
  'font.family': 'DejaVu Sans',
  'font.size': 8.0,
  'axes.titlesize': 8.5,
  'axes.labelsize': 8.5,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.7,
  'axes.axisbelow': True,
  'xtick.labelsize': 7.5,
  'ytick.labelsize': 7.5,
  'legend.fontsize': 8.0,
  'legend.frameon': False,
  'lines.linewidth': 1.4,
  'lines.markersize': 3.2,
  'grid.color': '#DDDDDD',
  'grid.linewidth': 0.5,
  'hatch.linewidth': 0.6,
  'figure.facecolor': 'white',
  'savefig.facecolor': 'white',
  'text.parse_math': False,
}
WIDTH = 7.2  # Inches: a text width; a third of it is still legible.
DPI = 180
LABELLED = 12  # So many dots of a panel can have their counts beside them.

# Series of the curves: metric, name, colour, line style, marker.
SERIES: tuple[tuple[str, str, str, Any, str], ...] = (
  ('retain_accuracy', 'retained images', BLUE, '--', 's'),
  ('forget_accuracy', 'forget set', VERMILLION, '-', 'o'),
)
# Looks of a bar by role: name, face, hatch.
LOOKS = {
  'source': ('untouched source', '#BBBBBB', ''),
  'control': ('control', ORANGE, '////'),
  'method': ('perturbation', SKY, ''),
  'baseline': ('last-K baseline', GREEN, '....'),
}
# A single seed.
DOT: dict[str, Any] = {
  'marker': 'o',
  'markerfacecolor': 'white',
  'markeredgecolor': BLACK,
  'markeredgewidth': 0.8,
  'markersize': 4,
}
# Strategies that perturb scalars: colour and marker of their dots.
PERTURBING = {
  'top_k': (VERMILLION, 'o'),
  'random_k': (BLUE, 's'),
  'random_top_k': (PURPLE, 'D'),
  'random_scalars': (BLACK, '^'),
}


def accuracy_curves(report: Report) -> Figure:
  """Accuracy per epoch of the forget and the retained images, by strategy.

  Epoch 0 is right after the perturbation, BatchNorm re-estimated. A band spans
  the seeds; where not all seeds got that far, each of them is a thin line.
  """
  rows = [row for row in report['rows'] if _epochs(row)]
  if not rows:
    return _message('No accuracy per epoch was recorded.')
  across = min(3, len(rows))
  down = math.ceil(len(rows) / across)
  with matplotlib.rc_context(STYLE):
    figure = blank(WIDTH, 1.85 * down + 0.75)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    floor = _floor(rows)
    last = max(
      (e for row in rows if _stops(row) for e in _epochs(row)), default=0
    )
    for axes, row in zip(grid.flat, rows):
      _curve_panel(axes, row, verdicts.find(report, 'retrain'), floor)
      end = max(1, last if _stops(row) else max(_epochs(row)))
      axes.set_xlim(-0.04 * end, 1.04 * end)
    for axes in grid.flat[len(rows) :]:
      axes.remove()
    figure.supxlabel('epoch of unlearning', fontsize=8.5)
    for axes in grid[:, 0]:
      axes.set_ylabel('accuracy, %')
    figure.legend(
      handles=_curve_legend(report), loc='outside upper center', ncols=4
    )
  return figure


def _curve_legend(report: Report) -> list[Line2D]:
  handles = [
    Line2D([], [], color=color, linestyle=line, marker=marker, label=name)
    for _, name, color, line, marker in reversed(SERIES)
  ]
  if verdicts.find(report, 'retrain'):
    label = 'Retrain on the forget set'
    handles.append(Line2D([], [], color=BLACK, linestyle=':', label=label))
  mark: dict[str, Any] = {
    'color': GREY,
    'linestyle': '',
    'marker': 'v',
    'markersize': 5,
  }
  return handles + [Line2D([], [], label='stop rule met', **mark)]


def _curve_panel(
  axes: Axes, row: Row, reference: Row | None, floor: float
) -> None:
  retrained = reference and verdicts.estimate(reference, 'forget_accuracy')
  if isinstance(retrained, Interval):
    axes.axhline(100 * retrained.mean, color=BLACK, linestyle=':', zorder=1.5)
  for metric, _, color, line, marker in SERIES:
    values = _stack(row, metric)
    whole = np.isfinite(values).all(0)
    epochs = np.arange(values.shape[1])
    shared = np.flatnonzero(whole)[-1:].sum()
    for seed in values[:, shared:] if not whole.all() else []:
      axes.plot(epochs[shared:], seed, color=color, linestyle=line, lw=0.7)
      end = np.flatnonzero(np.isfinite(seed))[-1:]
      axes.plot(end + shared, seed[end], marker, color=color, markersize=2.4)
    if whole.any():
      known = values[:, whole]
      low, high = known.min(0), known.max(0)
      axes.fill_between(epochs[whole], low, high, color=color, alpha=0.22, lw=0)
      style: dict[str, Any] = {
        'color': color,
        'linestyle': line,
        'marker': marker,
      }
      axes.plot(epochs[whole], known.mean(0), **style)
  axes.text(
    0.98,
    0.04,
    _curve_remarks(row, floor),
    transform=axes.transAxes,
    ha='right',
    fontsize=7,
    bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1},
  )
  for epoch in {
    stop for stop in row.get('stop_epoch') or [] if stop is not None
  }:
    axes.axvline(epoch, color=GREY, linewidth=0.5, zorder=1)
    top = axes.get_xaxis_transform()
    axes.plot(epoch, 0.985, 'v', color=GREY, transform=top, markersize=5)
  axes.set_title(textwrap.fill(row['label'], 34), loc='left')
  axes.set_ylim(floor, 103)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
  axes.grid(axis='y')
  if row['strategy'] == CONTROL:
    axes.set_facecolor(PALE)


def _curve_remarks(row: Row, floor: float) -> str:
  """What the panel cannot show: a start below its axis, a rule never met."""
  starts = set()
  for metric, *_ in SERIES:
    first = _stack(row, metric)[:, 0]
    if np.isfinite(first).any() and np.nanmean(first) < floor:
      starts.add(f'{np.nanmean(first):.0f}')
  remarks = [f'epoch 0: {" and ".join(sorted(starts))} %'] if starts else []
  stops = row.get('stop_epoch') or []
  missed = sum(stop is None for stop in stops)
  if missed:
    remarks.append(f'rule not met: {missed} of {len(stops)} seeds')
  return '\n'.join(remarks)


def _epochs(row: Row) -> list[int]:
  """The last epoch of each seed's curve."""
  return [
    max(map(int, curve['epoch']))
    for curve in row.get('curves') or []
    if curve.get('epoch')
  ]


def _stops(row: Row) -> bool:
  """Whether this is unlearning: Retrain may run much longer."""
  return row['role'] != 'reference'


def _stack(row: Row, metric: str) -> np.ndarray:
  """Curves in percent, `[seeds, epochs]`, NaN behind the end of the short."""
  longest = 1 + max(_epochs(row))
  stack = np.full((len(row['curves']), longest), np.nan)
  for seed, curve in enumerate(row['curves']):
    for epoch, value in zip(curve.get('epoch') or [], curve.get(metric) or []):
      if verdicts.finite(value):
        stack[seed, int(epoch)] = 100 * value
  return stack


def _floor(rows: Sequence[Row]) -> float:
  """Where the accuracy axis begins, in percent.

  Below the last value of every row and below all that a row that does not
  start afresh ever shows from epoch 1 on; what lies deeper is said in words.
  """
  lowest = [100.0]
  for row in rows:
    for metric, *_ in SERIES:
      values = _stack(row, metric)
      for seed in values:
        lowest += list(seed[np.isfinite(seed)][-1:])
      if _stops(row):
        lowest += list(values[:, 1:][np.isfinite(values[:, 1:])])
  return max(0.0, 10 * math.floor((min(lowest) - 2) / 10))


def gap_bars(report: Report) -> Figure:
  """Gap to Retrain per strategy: bar of the mean, interval, a dot a seed."""
  gaps = [
    (row, gap)
    for row in sorted(report['rows'], key=lambda row: row['role'] != 'source')
    if row['role'] != 'reference' and (gap := verdicts.estimate(row, GAP))
  ]
  if not gaps:
    return _message(
      'No gap to Retrain: a retrained model was not among the strategies.'
    )
  with matplotlib.rc_context(STYLE):
    figure = blank(WIDTH, 0.34 * len(gaps) + 1.15)
    axes = figure.subplots()
    for place, (row, gap) in enumerate(gaps):
      _bar(axes, place, row, gap)
      if row['strategy'] == CONTROL:
        line: dict[str, Any] = {'linestyle': '--', 'linewidth': 0.9}
        axes.axvline(100 * gap.mean, color=BLACK, zorder=3, **line)
        axes.axhspan(place - 0.5, place + 0.5, color=PALE, zorder=0)
    axes.set_yticks(range(len(gaps)), [row['label'] for row, _ in gaps])
    axes.tick_params(axis='y', length=0, labelsize=8)
    axes.set_ylim(len(gaps) - 0.45, -0.55)
    axes.set_xlim(left=0)
    axes.grid(axis='x')
    axes.set_xlabel('gap to Retrain, points (0 = same numbers as Retrain)')
    figure.legend(
      handles=_bar_legend(gaps),
      loc='outside upper center',
      ncols=4 if len(gaps) > 3 else 2,
    )
  return figure


def _bar(axes: Axes, place: int, row: Row, gap: Interval) -> None:
  _, face, hatch = LOOKS.get(row['role'], LOOKS['method'])
  look: dict[str, Any] = {'color': face, 'hatch': hatch, 'edgecolor': BLACK}
  axes.barh(place, 100 * gap.mean, 0.66, lw=0.6, **look)
  if gap.low is not None and gap.high is not None:
    sides = 100 * np.array([[gap.mean - gap.low], [gap.high - gap.mean]])
    whisker: dict[str, Any] = {'color': BLACK, 'capsize': 3, 'linewidth': 1.1}
    axes.errorbar(100 * gap.mean, place, xerr=sides, zorder=4, **whisker)
  seeds = [100 * v for v in row['values'].get(GAP, []) if verdicts.finite(v)]
  spread = np.linspace(-0.2, 0.2, len(seeds)) if len(seeds) > 1 else 0
  places = np.broadcast_to(place + spread, len(seeds))
  axes.plot(seeds, places, linestyle='', zorder=5, **DOT)


def _bar_legend(
  gaps: Sequence[tuple[Row, Interval]],
) -> list[Line2D | Patch]:
  handles: list[Line2D | Patch] = []
  for role in dict.fromkeys(row['role'] for row, _ in gaps):
    name, face, hatch = LOOKS.get(role, LOOKS['method'])
    handles.append(
      Patch(facecolor=face, hatch=hatch, edgecolor=BLACK, lw=0.6, label=name)
    )
  handles.append(Line2D([], [], linestyle='', label='seed', **DOT))
  if any(gap.low is not None for _, gap in gaps):
    label = '95 % interval of the mean'
    handles.append(Line2D([], [], color=BLACK, label=label))
  if any(row['strategy'] == CONTROL for row, _ in gaps):
    label = 'mean of plain fine-tuning (K = 0)'
    handles.append(Line2D([], [], color=BLACK, linestyle='--', label=label))
  return handles


def perturbed_by_layer(report: Report) -> Figure:
  """Share of each tensor's scalars that was perturbed, in definition order."""
  rows = [
    row
    for strategy in PERTURBING
    if (row := verdicts.find(report, strategy)) and row.get('selection')
  ]
  if not rows:
    return _message('No strategy that perturbs chosen parameters was run.')
  order = rows[0]['selection']['order']
  row_height = min(0.135, 12.0 / len(order))
  with matplotlib.rc_context(STYLE):
    width = max(4.0, WIDTH - 1.35 * (4 - len(rows)))
    figure = blank(width, max(2.4, row_height * len(order) + 1.1))
    grid = figure.subplots(
      1, len(rows), sharex=True, sharey=True, squeeze=False
    )
    for axes, row in zip(grid[0], rows):
      _layer_panel(axes, row, order)
    first = grid[0, 0]
    step = math.ceil(0.125 / row_height) if row_height < 0.125 else 1
    first.set_yticks(range(0, len(order), step), order[::step])
    first.tick_params(axis='y', labelsize=6.5, length=0)
    first.set_ylim(len(order) - 0.4, -0.6)
    low = min(min(_shares(row).values(), default=1.0) for row in rows)
    room = 2500 if len(order) <= LABELLED else 250  # Right of 100 %.
    first.set_xlim(100 * 10 ** math.floor(math.log10(low / 1.5)), room)
    label = (
      'share of the tensor’s scalars that was perturbed, % (log scale; no '
      'dot: none)'
    )
    figure.supxlabel(textwrap.fill(label, int(14 * width)), fontsize=8.5)
  return figure


def _shares(row: Row) -> dict[str, float]:
  """Perturbed share of each tensor that was touched, mean over seeds."""
  selection = row['selection']
  return {
    path: count / selection['tensor_sizes'][path]
    for path, count in selection['by_tensor'].items()
    if verdicts.finite(count) and count > 0
  }


def _layer_panel(axes: Axes, row: Row, order: Sequence[str]) -> None:
  color, marker = PERTURBING[row['strategy']]
  shares = _shares(row)
  places = [place for place, path in enumerate(order) if path in shares]
  if len(order) <= 100:
    axes.grid(axis='y', color='#EDEDED')
  percent = [100 * shares[order[place]] for place in places]
  axes.plot(
    percent,
    places,
    linestyle='',
    marker=marker,
    color=color,
    markersize=3.6,
  )
  counts = row['selection']['by_tensor']
  for share, place in zip(percent, places) if len(places) <= LABELLED else []:
    count = counts[order[place]]
    text = verdicts.number(count, 1 if count < 10 and count % 1 else 0)
    axes.text(share * 1.7, place, text, va='center', fontsize=6.5)
  axes.tick_params(axis='y', length=0)
  axes.set_xscale('log')
  axes.xaxis.set_major_locator(LogLocator(numticks=5))
  # Beyond 100 % there is only room for the counts.
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda x, _: f'{x:g}' if x <= 100 else '')
  )
  axes.xaxis.set_minor_locator(LogLocator(subs=(), numticks=5))
  axes.grid(axis='x')
  total = verdicts.number(sum(filter(verdicts.finite, counts.values())), 0)
  title = textwrap.fill(row['label'], 20)
  axes.set_title(f'{title}\n{total} scalars', loc='left')


def blank(width: float, height: float) -> Figure:
  """An empty figure, in inches, that no global state knows."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def _message(text: str) -> Figure:
  """A small picture that says why there is no picture."""
  with matplotlib.rc_context(STYLE):
    figure = blank(WIDTH, 0.7)
    figure.text(0.5, 0.5, text, ha='center', va='center')
  return figure


FIGURES: dict[str, Callable[[Report], Figure]] = {
  'gap_to_retrain': gap_bars,
  'accuracy_curves': accuracy_curves,
  'perturbed_by_layer': perturbed_by_layer,
}


def png(figure: Figure) -> bytes:
  """A figure as PNG at 180 dots an inch."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=DPI)
  return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
  """A figure as PDF, the same bytes for the same figure."""
  buffer = io.BytesIO()
  # Type 42: text that can be searched, and that journals accept.
  with matplotlib.rc_context({'pdf.fonttype': 42}):
    figure.savefig(buffer, format='pdf', metadata={'CreationDate': None})
  return buffer.getvalue()


def save_all(
  report: Report,
  directory: str | os.PathLike,
  more: Mapping[str, Figure] | None = None,
) -> dict[str, pathlib.Path]:
  """Draws every figure into `directory/NAME.png`, each replaced at once.

  Args:
    report: what `FIGURES` show.
    directory: where to.
    more: further figures by name.

  Returns:
    Path by name, in the order in which the report shows them.
  """
  directory = pathlib.Path(directory)
  drawn = {name: draw(report) for name, draw in FIGURES.items()}
  return {
    name: files.replace(directory / f'{name}.png', png(figure))
    for name, figure in {**drawn, **(more or {})}.items()
  }
