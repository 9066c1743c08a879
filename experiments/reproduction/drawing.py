"""What the figures of a reproduction have in common: looks, panels, bands."""

from collections.abc import Sequence
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from experiments import figures
from experiments.figures import (
  BLACK,
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  VERMILLION,
)
from experiments.reproduction import tally, tasks
from experiments.reproduction.tally import Series

# Colour, marker and line style of a row, the same in every figure.
LOOKS: dict[str, tuple[str, str, Any]] = {
  'retrain': (BLACK, 'x', ':'),
  'finetune': (GREY, 'v', (0, (4, 1))),
  'top_k': (VERMILLION, 'o', '-'),
  'random_k': (BLUE, 's', '--'),
  'random_top_k': (PURPLE, 'D', '-.'),
  'eu_5': (GREEN, '<', '-'),
  'eu_10': (GREEN, '>', '--'),
  'cf_5': (ORANGE, '^', '-'),
  'cf_10': (ORANGE, 'P', '--'),
}


def panels(
  count: int, across: int, height: float = 1.9, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
  """A figure of so many panels, the unused ones removed."""
  across = max(1, min(across, count))
  down = math.ceil(count / across)
  figure = figures.blank(figures.WIDTH, height * down + 0.7)
  grid = figure.subplots(down, across, sharey=sharey, squeeze=False)
  for axes in grid.flat[count:]:
    axes.remove()
  return figure, list(grid.flat[:count])


def line(
  axes: Axes, xs: Sequence[float], columns: Sequence[Series], **style: Any
) -> None:
  """Means as a line, seeds as thin ones, 95 % intervals as a band.

  The axis fits the seeds; of two, an interval is easily ten times as wide.
  At a single x these are a marker, dots and a bar.
  """
  known = [(x, tally.interval(c)) for x, c in zip(xs, columns)]
  points = [(x, i) for x, i in known if i is not None]
  if not points:
    return
  alone = len(points) == 1
  if alone:
    style['marker'] = style.get('marker') or '_'
  axes.plot([x for x, _ in points], [100 * i.mean for _, i in points], **style)
  for seed in sorted({seed for column in columns for seed in column}):
    own = [(x, 100 * c[seed]) for x, c in zip(xs, columns) if seed in c]
    thin = {'color': style['color'], 'linewidth': 0.5, 'alpha': 0.6}
    if alone:
      thin |= {'marker': '.', 'markersize': 3}
    axes.plot([x for x, _ in own], [y for _, y in own], **thin)
  ends = [
    (x, i.low, i.high)
    for x, i in points
    if i.low is not None and i.high is not None
  ]
  # Unlike a patch or a line of `plot`, an artist leaves the axis alone.
  if alone and ends:
    x, low, high = ends[0]
    bar = {'color': style['color'], 'linewidth': 1.0, 'alpha': 0.6}
    axes.add_artist(Line2D([x, x], [100 * low, 100 * high], **bar))
  if len(ends) > 1:
    edge = [(x, 100 * low) for x, low, _ in ends]
    edge += [(x, 100 * high) for x, _, high in reversed(ends)]
    band = Polygon(edge, color=style['color'], alpha=0.15, linewidth=0)
    axes.add_artist(band)


def look(row: str) -> dict[str, Any]:
  """Of a row's line."""
  color, marker, style = LOOKS[row]
  return {'color': color, 'marker': marker, 'linestyle': style}


def legend(figure: Figure, rows: Sequence[str]) -> None:
  """Above the panels, each row as its line looks."""
  handles = [
    Line2D([], [], label=tasks.label(row), **look(row)) for row in rows
  ]
  columns = 4 if len(handles) > 3 else len(handles)
  figure.legend(
    handles=handles, loc='outside upper center', ncols=columns, handlelength=2.8
  )
