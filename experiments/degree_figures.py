"""The pictures of an unlearning degree, in the manner of `figures`."""

from collections.abc import Sequence
import textwrap
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
import numpy as np

from experiments import figures
from unlearn_jax import metrics


class Bar(NamedTuple):
  """One bar of the picture.

  Attributes:
    label: what stands beside it.
    values: the degree of each generator, in [-1, 1].
    role: a key of `figures.LOOKS`, or 'reference'.
    interval: of the mean; None for the one over generators.
  """

  label: str
  values: Sequence[float]
  role: str
  interval: metrics.Interval | None = None


def bars(
  shown: Sequence[Bar], null: Sequence[float], num_classes: int
) -> Figure:
  """Degrees as bars (the paper's Fig. 9), generators as dots, null as a band.

  Args:
    shown: from top to bottom; of one model, or of several strategies.
    null: the degrees of (M, M'), one a generator.
    num_classes: C; the axis ends at 1 − 1/C unless a degree is beyond.
  """
  with matplotlib.rc_context(figures.STYLE):
    figure = _figure(figures.WIDTH, 0.36 * len(shown) + 1.25)
    axes = figure.subplots()
    low, high = 100 * min(null), 100 * max(null)
    axes.axvspan(low, high, color=figures.ORANGE, alpha=0.35, lw=0, zorder=0.5)
    middle = 100 * float(np.mean(null))
    axes.axvline(middle, color=figures.ORANGE, ls='--', lw=1.2, zorder=3)
    for place, bar in enumerate(shown):
      _draw_bar(axes, place, bar)
    axes.axvline(0, color=figures.BLACK, lw=0.7)
    axes.set_yticks(range(len(shown)), [bar.label for bar in shown])
    axes.tick_params(axis='y', length=0, labelsize=8)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    every = [100 * v for bar in shown for v in bar.values] + [low, high]
    most = 100 * (1 - 1 / num_classes)
    axes.set_xlim(min(0.0, *every) - 2, max(most, *every) + 2)
    axes.grid(axis='x')
    axes.set_xlabel(
      f'unlearning degree on the held-out half, points (at most {most:.0f})'
    )
    figure.legend(handles=_legend(), loc='outside upper center', ncols=4)
  return figure


def _draw_bar(axes: Any, place: int, bar: Bar) -> None:
  face, hatch = 'white', '\\\\\\\\'
  if bar.role in figures.LOOKS:
    _, face, hatch = figures.LOOKS[bar.role]
  interval = bar.interval or metrics.mean_interval(bar.values)
  mean = 100 * interval.mean
  axes.barh(
    place, mean, 0.6, color=face, hatch=hatch, edgecolor=figures.BLACK, lw=0.6
  )
  if interval.low is not None and interval.high is not None:
    sides = [[mean - 100 * interval.low], [100 * interval.high - mean]]
    look: dict[str, Any] = {
      'color': figures.BLACK,
      'capsize': 3,
      'linewidth': 1.1,
    }
    axes.errorbar(mean, place, xerr=sides, zorder=4, **look)
  spread = np.linspace(-0.2, 0.2, len(bar.values))
  dots = [100 * value for value in bar.values]
  axes.plot(dots, place + spread, linestyle='', zorder=5, **figures.DOT)


def _legend() -> list[Line2D | Patch]:
  band = Patch(
    facecolor=figures.ORANGE, alpha=0.35, label='null (M, M′), range'
  )
  mean: dict[str, Any] = {'color': figures.ORANGE, 'linestyle': '--'}
  return [
    band,
    Line2D([], [], label='its mean', **mean),
    Line2D([], [], linestyle='', label='generator', **figures.DOT),
    Line2D([], [], color=figures.BLACK, label='95 % interval of the mean'),
  ]


def image_grid(
  images: np.ndarray, perturbed: np.ndarray, titles: Sequence[str]
) -> Figure:
  """Original, perturbed and difference × 10 (the paper's Fig. 4).

  Args:
    images: `[N, height, width, channels]`, in [0, 255].
    perturbed: the same shape.
    titles: `[N]`, above the columns.
  """
  images, perturbed = (np.asarray(x, np.float32) for x in (images, perturbed))
  rows = {
    'original': images,
    'perturbed': perturbed,
    'difference × 10,\ngrey = none': 127.5 + 10 * (perturbed - images),
  }
  count, (height, width) = len(images), images.shape[1:3]
  with matplotlib.rc_context(figures.STYLE):
    cell = (figures.WIDTH - 0.9) / max(count, 4)
    high = 3 * cell * height / width + 0.45
    figure = _figure(0.9 + cell * count, high)
    grid = figure.subplots(3, count, squeeze=False)
    for line, (name, row) in zip(grid, rows.items()):
      line[0].set_ylabel(name, rotation=0, ha='right', va='center')
      for axes, image in zip(line, row):
        axes.imshow(_shown(image), cmap='gray', vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], titles):
      axes.set_title(title, fontsize=7)
  return figure


def _shown(image: np.ndarray) -> np.ndarray:
  """`[H, W, 3]` or, of any other number of channels, `[H, W]`, in [0, 1]."""
  image = (image / 255).clip(0, 1)
  return image if image.shape[-1] == 3 else image.mean(-1)


def curves(found: dict[str, Any]) -> Figure:
  """Both cross-entropies on D_p by epoch, a thin line a generator."""
  pairs = [p for name, p in found['pairs'].items() if name != 'identity']
  looks: tuple[tuple[str, str, str, Any], ...] = (
    ('source_loss', 'M', figures.BLUE, '-'),
    ('unlearned_loss', 'the other model', figures.VERMILLION, '--'),
  )
  with matplotlib.rc_context(figures.STYLE):
    figure = _figure(figures.WIDTH, 2.4)
    grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, pair in zip(grid, pairs):
      for run in pair['runs']:
        for key, _, color, line in looks:
          known = [epoch for epoch in run['curve'] if key in epoch]
          x, y = ([epoch[k] for epoch in known] for k in ('epoch', key))
          axes.plot(x, y, color=color, linestyle=line, lw=0.8)
      axes.set_title(textwrap.fill(pair['label'], 22), loc='left')
      axes.set_yscale('symlog', linthresh=0.1)
      axes.grid(axis='y')
    figure.supxlabel('epoch of the generator', fontsize=8.5)
    grid[0].set_ylabel('cross-entropy on D_p, nats')
    handles = [
      Line2D([], [], color=color, linestyle=line, label=label)
      for _, label, color, line in looks
    ]
    figure.legend(handles=handles, loc='outside upper center', ncols=2)
  return figure


def _figure(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure
