"""What the sweeps say: the defaults confirmed or changed, and why."""

import dataclasses
from typing import Any, NamedTuple

from experiments.reproduction import judgements, tally
from experiments.reproduction.presets import Problem, Sweep
from experiments.reproduction.tally import Series, Tally, at_epoch, measured
from unlearn_jax.metrics import Interval

GAP = 'gap_to_retrained'


class Point(NamedTuple):
  """One setting that was tried.

  Attributes:
    text: the setting.
    default: whether it is the one that the tables use.
    columns: by name: accuracies right after the perturbation (BatchNorm
      re-estimated) and after the fine-tuning, and the gap to Retrain.
    change: of the gap, from the default's, paired by seed and corrected for
      the number of settings; None for the default.
  """

  text: str
  default: bool
  columns: dict[str, Series]
  change: Interval | None


# Columns of the page's tables: header, and what is read.
COLUMNS = {
  'D_UL perturbed, %': at_epoch(0, 'forget_accuracy'),
  'D_RE perturbed, %': at_epoch(0, 'retain_accuracy'),
  'D_UL tuned, %': measured('forget_accuracy'),
  'D_RE tuned, %': measured('retain_accuracy'),
  'test tuned, %': measured('test_accuracy'),
  'gap to Retrain, points': measured(GAP),
}
GAP_COLUMN = 'gap to Retrain, points'


def points(results: Tally, sweep: Sweep) -> list[Point]:
  """All settings of a sweep, in its order."""
  problem = results.preset.problems[0]
  columns = [
    {
      name: results.swept(sweep.strategy, option, read)
      for name, read in COLUMNS.items()
    }
    for option in sweep.options
  ]
  defaults = [is_default(results, problem, o) for o in sweep.options]
  others = max(1, len(sweep.options) - 1)
  reference = None
  if any(defaults):
    reference = columns[defaults.index(True)][GAP_COLUMN]
  found = []
  for option, own, default in zip(sweep.options, columns, defaults):
    change = None
    if reference is not None and not default:
      confidence = 1 - 0.05 / others
      change = tally.difference(own[GAP_COLUMN], reference, confidence)
    found.append(Point(describe(option), default, own, change))
  return found


def is_default(
  results: Tally, problem: Problem, option: dict[str, Any]
) -> bool:
  """Whether the tables use this setting."""
  settings = dataclasses.asdict(results.preset.settings(problem))
  return all(settings[name] == value for name, value in option.items())


def describe(option: dict[str, Any]) -> str:
  """A setting as text.

  Example:
    >>> describe({'rule': 'scale', 'epsilon_random': -1.0})
    'rule scale, ε −1'
  """
  names = {
    'epsilon_top': 'ε',
    'epsilon_random': 'ε',
    'js_weight': 'λ',
    'learning_rate': 'rate',
  }
  return ', '.join(
    f'{names.get(n, n)} {v if isinstance(v, str) else f"{v:g}"}'
    for n, v in option.items()
  ).replace('-', '−')


def conclusion(sweep: Sweep, found: list[Point]) -> str:
  """Whether the default stays, and why, in one sentence."""
  default = next((p for p in found if p.default), None)
  if default is None:
    return f'{sweep.name}: the default is not among the settings tried.'
  changes = [(p.change, p.text) for p in found if p.change is not None]
  seeds = [c.size for c, _ in changes]
  if not changes or min(seeds) < 2:
    return f'{sweep.name}: {default.text} is not decidable, too few seeds.'
  better = [(c, t) for c, t in changes if judgements.sign(c) < 0]
  if better:
    change, text = min(better, key=lambda pair: pair[0].mean)
    return (
      f'{sweep.name}: {text} is closer to Retrain than the default'
      f' {default.text}, by {judgements.shown(change)}; the default should'
      ' change.'
    )
  change, text = min(changes, key=lambda pair: pair[0].mean)
  if all(judgements.sign(c) > 0 for c, _ in changes):
    verdict = 'is confirmed, all others are resolvably farther from Retrain'
  else:
    verdict = 'stays, nothing is resolvably closer to Retrain'
  return (
    f'{sweep.name}: {default.text} {verdict}; the best of the others, {text},'
    f' is at {judgements.shown(change)} from it ({min(seeds)} seeds, corrected'
    ' for the number of settings).'
  )
