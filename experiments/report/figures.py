"""Pictures: bars with dots, curves, grids of images; the report's two.

Colours are Okabe and Ito's, told apart by colour-blind readers; line style,
marker and hatch say the same once more for print in grey.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import itertools
import math
import pathlib
import re
import textwrap
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
import numpy as np

from unlearn_jax.base import shown as printable
from unlearn_jax.evaluation import METRICS, Metric
from unlearn_jax.metrics import mean_interval
from .judging import GAP, damaged, estimate, finite, known
from .model import NULL, REFERENCE, UNJUDGED, Estimate, Report, Row
from .wording import WORDS

STYLE = pathlib.Path(__file__).parent / 'templates' / 'pictures.mplstyle'
DPI = 240  # Two pixels of a picture for each that a page gives it.
WIDTH = 7.2  # Inches: a text width; a third of it is still legible.
_LEGEND = 0.45  # Inches: two lines, for which all have room.

CURVES = WORDS['curves']  # Looks by metric.
LOOKS: dict[str, Any] = WORDS['looks']


def label(text: str) -> str:
  """Outside text for a picture: printable, and broken into lines."""
  return textwrap.fill(printable(text, 200), 34)


class Bar(NamedTuple):
  """One bar."""

  label: str
  values: Sequence[float]  # Its dots, in shares of one.
  role: str  # Says its look, `bars` of words.toml.
  mean: Estimate  # Bar and whisker.
  marked: bool = False  # It is shaded, and a dashed line continues it.


@style.context(STYLE)
def bars(
  shown: Sequence[Bar],
  xlabel: str,
  *,
  dot: str = 'seed',
  null: Sequence[float] = (),
  most: float = 0.01,
) -> Figure:
  """Bars of means from top to bottom, their intervals, a dot for each value."""
  # Of `null` the range is a band and the mean a line. The axis ends at `most`
  # unless something is beyond: dots in any case, and intervals, but of those
  # of two seeds, easily ten times as wide, no more than as much again.
  names = [label(bar.label) for bar in shown]
  lines = max((name.count('\n') for name in names), default=0) + 1
  figure = Figure((WIDTH, max(0.34, 0.15 * lines) * len(shown) + 1.15))
  axes = figure.subplots()
  for place, bar in enumerate(shown):
    _bar(axes, place, bar, dot)
  if null:
    axes.axvspan(100 * min(null), 100 * max(null), **LOOKS['null'])
    axes.axvline(100 * float(np.mean(null)), **LOOKS['null_mean'])
  axes.axvline(0, **LOOKS['zero'])
  axes.set_yticks(range(len(shown)), names)
  axes.tick_params(axis='y', length=0, labelsize=8)
  axes.set_ylim(len(shown) - 0.45, -0.55)
  every = [0.0, *null, *(value for bar in shown for value in bar.values)]
  every += [bar.mean.mean for bar in shown]
  low, high = 100 * min(every), 100 * max(most, *every)
  reach = [100 * e for b in shown for e in (b.mean.low, b.mean.high) if e]
  room = 0.03 * (high - low)  # A dot at an end is whole.
  left = max(min([low, *reach]), 2 * low - high)
  right = max([high, *reach])
  axes.set_xlim(left - room, min(right, 2 * high - low) + room)
  axes.grid(axis='x')
  axes.set_xlabel(xlabel)
  return legend(figure)


def _bar(axes: Axes, place: int, bar: Bar, dot: str) -> None:
  own, mean, looks = bar.mean, 100 * bar.mean.mean, WORDS['bars']
  look = looks.get(bar.role, looks['method'])
  axes.barh(place, mean, 0.66, **LOOKS['bar'], **look)
  if own.low is not None and own.high is not None:
    sides = [[mean - 100 * own.low], [100 * own.high - mean]]
    axes.errorbar(mean, place, xerr=sides, **LOOKS['interval'])
  if bar.marked:
    axes.axvline(mean, **LOOKS['control'])
    axes.axhspan(place - 0.5, place + 0.5, **LOOKS['shade'])
  dots = 100 * np.array(bar.values)
  spread = np.linspace(-0.2, 0.2, len(dots)) if len(dots) > 1 else 0 * dots
  axes.plot(dots, place + spread, label=dot, **LOOKS['dot'])


@style.context(STYLE)
def panels(
  count: int, across: int, height: float, xlabel: str, ylabel: str
) -> tuple[Figure, list[Axes]]:
  """So many axes in rows of `across`, each so high, with one scale of y."""
  across = max(1, min(across, count))
  down = math.ceil(count / across)
  figure = Figure((WIDTH, height * down + 0.7))
  grid = figure.subplots(down, across, sharey=True, squeeze=False)
  for axes in grid.flat[count:]:
    axes.remove()
  for axes in grid[:, 0]:
    axes.set_ylabel(ylabel)
  figure.supxlabel(xlabel, fontsize=8.5)
  return figure, list(grid.flat[:count])


def line(
  axes: Axes, xs: Sequence[float], columns: Sequence[Mapping], look: Any
) -> None:
  """A thin line a seed; where all have come, means and their 95 % intervals.

  Args:
    axes: where to draw; its scale fits the seeds, whose intervals may be wider.
    xs: places.
    columns: for each place, shares by seed.
    look: of the line of the means, as Matplotlib takes it.
  """
  thin = {'color': look['color'], 'lw': 0.5, 'alpha': 0.6, 'ms': 2}
  seeds = sorted(set().union(*columns))
  for seed in seeds:
    own = [(x, 100 * c[seed]) for x, c in zip(xs, columns) if seed in c]
    axes.plot(*zip(*own), marker='.' if len(xs) == 1 else '', **thin)
  whole = [(x, c) for x, c in zip(xs, columns) if len(c) == len(seeds) > 0]
  means = [(x, mean_interval([*c.values()])) for x, c in whole]
  middle = np.reshape([(x, 100 * own.mean) for x, own in means], (-1, 2))
  axes.plot(*middle.T, markevery=max(1, len(xs) // 8), **look)
  low = [(x, 100 * own.low) for x, own in means if own.low is not None]
  high = [(x, 100 * own.high) for x, own in means if own.high is not None]
  if low:
    # Unlike a patch or a line of `plot`, an artist leaves the axis alone.
    area = Polygon([*low, *reversed(high)], color=look['color'], alpha=0.15)
    axes.add_artist(area)


def legend(figure: Figure) -> Figure:
  """Says above all axes what is labelled in any of them, once.

  In as many columns as there is room for; more than two lines make it higher.
  """
  found: dict[str, Any] = {}
  for axes in figure.axes:
    handles, labels = axes.get_legend_handles_labels()
    found |= zip(labels, handles)
  where: Any = {'loc': 'outside upper center', 'handlelength': 2.8}
  renderer = FigureCanvasAgg(figure).get_renderer()
  for columns in range(min(4, len(found)), 0, -1):
    made = figure.legend(found.values(), found, ncols=columns, **where)
    size = made.get_window_extent(renderer)
    if size.width <= figure.bbox.width:
      break
    if columns > 1:
      made.remove()
  high = size.height / figure.dpi if found else 0
  figure.set_figheight(figure.get_figheight() + max(0.0, high - _LEGEND))
  return figure


@style.context(STYLE)
def image_grid(
  images: np.ndarray, perturbed: np.ndarray, titles: Sequence[str]
) -> Figure:
  """Original, perturbed and difference × 10 (Fig. 4), `[N, H, W, C]` each."""
  images, perturbed = (np.asarray(x, np.float32) for x in (images, perturbed))
  rows = {'original': images, 'perturbed': perturbed}
  rows['difference × 10,\ngrey = none'] = 127.5 + 10 * (perturbed - images)
  count, (height, width) = len(images), images.shape[1:3]
  cell = (WIDTH - 0.9) / max(count, 4)
  figure = Figure((0.9 + cell * count, 3 * cell * height / width + 0.45))
  grid = figure.subplots(3, count, squeeze=False)
  for line, (name, row) in zip(grid, rows.items()):
    line[0].set_ylabel(name, rotation=0, ha='right', va='center')
    for axes, image in zip(line, (row / 255).clip(0, 1)):
      # Of any other number of channels than three, grey.
      image = image if image.shape[-1] == 3 else image.mean(-1)
      axes.imshow(image, cmap='gray', vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
      axes.spines[:].set_visible(False)
  for axes, title in zip(grid[0], titles):
    axes.set_title(printable(title, 24), fontsize=7)
  return figure


def title(page: str, file: str) -> str:
  """What a picture says of itself, so that its page knows it again."""
  return f'unlearn_jax {page}: {file}'


@style.context(STYLE)
def encoded(figure: Figure, page: str, file: str) -> bytes:
  """A page's PNG or PDF of this name, the same bytes for the same figure."""
  buffer, form = io.BytesIO(), file.rpartition('.')[2]
  metadata = {'Title': title(page, file), 'CreationDate': None}
  figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
  return buffer.getvalue()


@style.context(STYLE)
def rulers(report: Report) -> Figure:
  """Every row on two rulers, forget accuracy and attack, beside Retrain."""
  rows = sorted(report.rows, key=lambda row: row.role not in UNJUDGED)
  shown = [
    METRICS[name]
    for name in ('forget_accuracy', 'mia_auc')
    if any(estimate(row, name) for row in rows)
  ]
  names = [label(row.label) for row in rows]
  # Inches; a row is as high as its label.
  high = np.array([max(0.26, 0.15 * name.count('\n') + 0.2) for name in names])
  places = high.cumsum() - high / 2
  figure = Figure((WIDTH, high.sum() + 1.1))
  grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
  for axes, metric in zip(grid, shown):
    if goal := estimate(report.row(REFERENCE), metric.name):
      axes.axvline(metric.scale * goal.mean, **LOOKS['goal'])
    for place, row in zip(places, rows):
      _point(axes, place, row, metric)
    axes.set_xlim(-0.03 * metric.scale, 1.03 * metric.scale)
    axes.set_xlabel(f'{metric.label}, {metric.unit}')
    axes.grid(axis='x')
    axes.tick_params(axis='y', length=0, labelsize=8)
  grid[0].set_yticks(places, names)
  grid[0].set_ylim(high.sum(), 0)
  return legend(figure)


def _point(axes: Axes, place: int, row: Row, metric: Metric) -> None:
  """A mean with its interval, and a dot a seed."""
  mean, scale = estimate(row, metric.name), metric.scale
  seeds = [scale * value for value in known(row.values.get(metric.name))]
  axes.plot(seeds, [place] * len(seeds), **LOOKS['seed'])
  if mean is None:
    return
  if mean.low is not None and mean.high is not None:
    ends = scale * mean.low, scale * mean.high
    axes.plot(ends, [place] * 2, **LOOKS['whisker'])
  look = WORDS['bars'].get(row.role, WORDS['bars']['method'])
  own = {'color': look['facecolor'], 'label': look['label']}
  axes.plot(scale * mean.mean, place, **LOOKS['mean'], **own)


def _trained(report: Report) -> list[Row]:
  return [row for row in report.rows if any(c.epoch[1:] for c in row.curves)]


@style.context(STYLE)
def accuracy_curves(report: Report) -> Figure:
  """Accuracy per epoch of forget and retain set; 0: after the perturbation."""
  rows = _trained(report)
  titles = [label(row.label) for row in rows]
  more = max((own.count('\n') for own in titles), default=0)  # Lines of them.
  labels = 'epoch of unlearning', 'accuracy, %'
  figure, grid = panels(len(rows), 3, 1.85 + 0.16 * more, *labels)
  retrained = estimate(report.row(REFERENCE), 'forget_accuracy')
  for axes, row, name in zip(grid, rows, titles):
    for metric, look in CURVES.items():
      every = [getattr(curve, metric) for curve in row.curves]
      columns = [  # By epoch, the shares of those seeds that came so far.
        {seed: share for seed, share in enumerate(shares) if finite(share)}
        for shares in itertools.zip_longest(*every)
      ]
      line(axes, range(len(columns)), columns, look)
    if retrained:
      axes.axhline(100 * retrained.mean, **LOOKS['retrain'])
    axes.set_title(name, loc='left')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis='y')
  ends = [v for row in rows for m in CURVES for v in known(row.values.get(m))]
  grid[0].set_ylim(max(0, 100 * min(ends, default=0) - 5), 103)
  return legend(figure)


def budgets(report: Report) -> dict[str, list[tuple[int, Row]]]:
  """By label, what was run for several numbers of epochs.

  Of rows that differ in nothing but their epochs and learning rate, each with
  its epochs, the shortest first; of several rates the nearest to Retrain.
  """
  found: dict[str, dict[int, Row]] = {}
  for row in report.rows:
    epochs = row.epochs
    if row.role in UNJUDGED or not epochs or not estimate(row, GAP):
      continue
    tuned = re.sub(r',? ?(epochs|learning_rate)=[^,)]*', '', row.label)
    own = found.setdefault(tuned.replace('(, ', '(').replace(' ()', ''), {})
    if epochs not in own or row.mean[GAP].mean < own[epochs].mean[GAP].mean:
      own[epochs] = row
  return {n: sorted(own.items()) for n, own in found.items() if len(own) > 1}


@style.context(STYLE)
def gap_by_budget(report: Report) -> Figure:
  """Gap to Retrain against epochs, a line a method; below, a second Retrain.

  Whiskers are 95 % intervals; hollow is what is `damaged`.
  """
  every, reference = budgets(report), report.row(REFERENCE)
  figure = Figure((WIDTH, 4.4))
  axes = figure.subplots()
  looks = {name: itertools.cycle(own) for name, own in WORDS['lines'].items()}
  most = 0.0
  for i, (name, own) in enumerate(every.items()):
    look = next(looks['controls' if own[0][1].role == 'control' else 'each'])
    places, rows = zip(*own)
    gaps = [row.mean[GAP] for row in rows]
    means = [100 * gap.mean for gap in gaps]
    axes.plot(places, means, label=label(name), **look)
    lost = [damaged(row, reference) for row in rows]
    if any(lost):
      at = [(x, y) for x, y, bad in zip(places, means, lost) if bad]
      axes.plot(*zip(*at), **look | LOOKS['hollow'])
    # Beside each other, or none could be read.
    for x, gap in zip(places, gaps):
      if gap.low is not None and gap.high is not None:
        span = 100 * max(0, gap.low), 100 * gap.high
        aside = x * 1.012 ** (i - (len(every) - 1) / 2)
        axes.vlines(aside, *span, look['color'], **LOOKS['thin'])
    most = max(most, *means)
  if null := estimate(report.row(NULL), GAP):
    ends = [
      100 * (null.mean if e is None else e) for e in (null.low, null.high)
    ]
    axes.axhspan(max(0, ends[0]), ends[1], **LOOKS['retrains'])
  axes.set(xscale='log', ylim=(0, 1.2 * most), ylabel='gap to Retrain, points')
  axes.set_xlabel('epochs of unlearning, passes over the retained images')
  ticks = sorted({epochs for own in every.values() for epochs, _ in own})
  axes.set_xticks(ticks, map(str, ticks))
  axes.minorticks_off()
  axes.grid(axis='y')
  return legend(figure)


PICTURES: dict[str, Callable[[Report], Figure]] = {
  'rulers': rulers,
  'gap_by_budget': gap_by_budget,
  'accuracy_curves': accuracy_curves,
}


def names(report: Report) -> list[str]:
  """Those of `PICTURES` that there is something to draw for."""
  own = {'gap_by_budget': budgets(report), 'accuracy_curves': _trained(report)}
  return [name for name in PICTURES if own.get(name, True)]
