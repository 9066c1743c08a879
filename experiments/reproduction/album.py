"""All figures of a reproduction on disk, as PNG and as PDF."""

from collections.abc import Iterator
import pathlib
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import degree_figures, figures, files, kept_pairs
from experiments.degree_figures import Bar
from experiments.figures import BLACK, BLUE, GREY, VERMILLION
from experiments.reproduction import bench, pictures, sweeping, tally, tasks
from experiments.reproduction.plan import first_degree_fraction
from experiments.reproduction.presets import Problem
from experiments.reproduction.tally import Tally
from unlearn_jax.strategies import STRATEGIES


def save_all(
  results: Tally, root: pathlib.Path
) -> dict[str, list[pathlib.Path]]:
  """Draws what can be drawn of the artefacts that were asked for.

  Args:
    results: the numbers.
    root: the work directory; the files go to `figures/` there.

  Returns:
    The PNG files by artefact; beside each lies the same as PDF.
  """
  saved: dict[str, list[pathlib.Path]] = {}
  with matplotlib.rc_context(figures.STYLE):
    for artefact, name, figure in _drawn(results, root):
      path = root / 'figures' / f'{name}.png'
      files.replace(path, figures.png(figure))
      files.replace(path.with_suffix('.pdf'), figures.pdf(figure))
      saved.setdefault(artefact, []).append(path)
  return saved


def _drawn(
  results: Tally, root: pathlib.Path
) -> Iterator[tuple[str, str, Figure]]:
  """(artefact, file name, figure), of what has any numbers."""
  for artefact in results.plan.only:
    if not _has_numbers(results, artefact):
      continue
    if artefact in pictures.DRAWN:
      yield artefact, artefact, pictures.DRAWN[artefact](results)
    if artefact == 'sweeps':
      yield artefact, artefact, sweeps(results)
    for problem in results.preset.problems:
      if artefact == 'fig4' and artefact in problem.shows:
        figure = images(results, problem, root)
        if figure is not None:
          yield artefact, 'fig4', figure
      if artefact == 'fig9' and artefact in problem.shows:
        for fraction in problem.fractions:
          bars = degree_bars(results, problem, fraction)
          if bars is not None:
            yield artefact, f'fig9_{100 * fraction:g}', bars


def _has_numbers(results: Tally, artefact: str) -> bool:
  return any(
    results.outcome(task) is not None
    for task in results.plan.tasks
    if artefact in results.plan.serves[task.key] and task.kind != tasks.TRAIN
  )


def images(
  results: Tally, problem: Problem, root: pathlib.Path
) -> Figure | None:
  """Figure 4: images of D_UL before and after the generator."""
  fraction = first_degree_fraction(results.preset, problem)
  if fraction is None:
    return None
  task = results.tasks.degree(problem, fraction, 'top_k', 0)
  outcome = results.outcome(task)
  if outcome is None:
    return None
  pair = kept_pairs.read(root / outcome['folder'] / bench.PAIR)
  return degree_figures.image_grid(
    pair.images, pair.perturbed, outcome['titles']
  )


def degree_bars(
  results: Tally, problem: Problem, fraction: float
) -> Figure | None:
  """Figure 9: the degree of each strategy, above the band of the null."""

  def generators(row: str) -> list[float]:
    """Of all seeds."""
    found = [
      results.outcome(results.tasks.degree(problem, fraction, row, seed))
      for seed in range(results.preset.seeds)
    ]
    return [v for own in found if own for v in own['generators']]

  def bar(row: str) -> Bar:
    series = results.degree(problem, fraction, row)
    over_seeds = tally.interval(series) if len(series) > 1 else None
    role = STRATEGIES[tasks.ROWS[row].strategy].role
    return Bar(tasks.label(row), generators(row), role, over_seeds)

  shown = [b for row in results.preset.degree_rows if (b := bar(row)).values]
  null = generators(tasks.NULL)
  if not shown or not null:
    return None
  first = results.outcome(
    results.tasks.degree(problem, fraction, tasks.NULL, 0)
  )
  return degree_figures.bars(shown, null, first['classes']) if first else None


def sweeps(results: Tally) -> Figure:
  """The gap to Retrain of every setting that was tried."""
  lines: list[tuple[str, sweeping.Point | None]] = []
  for sweep in results.preset.sweeps:
    lines.append((sweep.name, None))
    lines += [(p.text, p) for p in sweeping.points(results, sweep)]
  figure = figures.blank(figures.WIDTH, 0.21 * len(lines) + 1.1)
  axes = figure.subplots()
  control = tally.interval(
    results.control(tally.measured(sweeping.GAP), 'finetune')
  )
  if control is not None:
    axes.axvline(100 * control.mean, color=BLACK, linestyle='--', lw=0.9)
    if control.low is not None and control.high is not None:
      low, high = 100 * control.low, 100 * control.high
      axes.axvspan(low, high, color=GREY, alpha=0.15, lw=0, zorder=0)
  highest = [1.0]
  for place, (_, point) in enumerate(lines):
    if point is not None:
      highest += _dots(axes, place, point)
  names = [t if p else f'{t}:' for t, p in lines]
  axes.set_yticks(range(len(lines)), names)
  for text, (_, point) in zip(axes.get_yticklabels(), lines):
    text.set_fontweight('normal' if point else 'bold')
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(len(lines) - 0.4, -0.6)
  axes.set_xlim(0, 1.1 * max(highest))  # Of two seeds, intervals burst.
  axes.grid(axis='x')
  axes.set_xlabel('gap to Retrain, points (0 = same numbers as Retrain)')
  figure.legend(handles=_handles(), loc='outside upper center', ncols=4)
  return figure


def _dots(axes: Axes, place: int, point: sweeping.Point) -> list[float]:
  """A dot a seed, their mean and its interval; the seeds' values."""
  series = point.columns[sweeping.GAP_COLUMN]
  interval = tally.interval(series)
  if interval is None:
    return []
  look: dict[str, Any] = {
    'color': VERMILLION if point.default else BLUE,
    'marker': 's' if point.default else 'o',
  }
  values = [100 * v for v in series.values()]
  places = [place] * len(values)
  axes.plot(values, places, linestyle='', zorder=4, **figures.DOT)
  if interval.low is not None and interval.high is not None:
    ends = [100 * interval.low, 100 * interval.high]
    axes.plot(ends, [place, place], color=look['color'], linewidth=1.1)
  axes.plot([100 * interval.mean], [place], zorder=5, markersize=5, **look)
  return values


def _handles() -> list[Line2D]:
  return [
    Line2D(
      [], [], color=VERMILLION, marker='s', label='default, 95 % interval'
    ),
    Line2D([], [], color=BLUE, marker='o', label='other setting'),
    Line2D([], [], linestyle='', label='seed', **figures.DOT),
    Line2D([], [], color=BLACK, linestyle='--', label='K = 0, its interval'),
  ]
