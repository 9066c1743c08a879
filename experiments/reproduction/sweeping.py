"""What the sweeps say: the defaults confirmed or changed, and why."""

from typing import Any, NamedTuple

from experiments.reproduction import judgements, tally
from experiments.reproduction.presets import Sweep
from experiments.reproduction.tally import Series, Tally
from unlearn_jax.metrics import Interval

GAP = 'gap to Retrain, points'
# Columns of the page's tables: metric, and epoch of the curve.
COLUMNS = {
  'D_UL perturbed, %': ('forget_accuracy', 0),
  'D_RE perturbed, %': ('retain_accuracy', 0),
  'D_UL tuned, %': ('forget_accuracy', None),
  'D_RE tuned, %': ('retain_accuracy', None),
  'test tuned, %': ('test_accuracy', None),
  GAP: ('gap_to_retrained', None),
}
_SHORT = {'epsilon': 'ε', 'js_weight': 'λ', 'learning_rate': 'rate'}


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


def points(found: Tally, sweep: Sweep) -> list[Point]:
  """All settings of a sweep, in its order."""
  preset, problem = found.preset, found.preset.problems[0]
  default = preset.spelled(problem, sweep.row)
  reference = found.swept(sweep.name, default, *COLUMNS[GAP])
  confidence = 1 - 0.05 / max(1, len(sweep.options) - 1)
  made = []
  for option in sweep.options:
    text = preset.spelled(problem, sweep.row, **option)
    own = {n: found.swept(sweep.name, text, *c) for n, c in COLUMNS.items()}
    change = None
    if text != default:
      change = tally.difference(own[GAP], reference, confidence)
    made.append(Point(describe(option), text == default, own, change))
  return made


def control(found: Tally) -> Series:
  """The gap of plain fine-tuning, on the sweeps' seeds and forget sets."""
  text = found.preset.spelled(found.preset.problems[0], 'finetune')
  return found.swept(found.preset.sweeps[0].name, text, *COLUMNS[GAP])


def describe(option: dict[str, Any]) -> str:
  """A setting as text.

  Example:
    >>> describe({'rule': 'scale', 'epsilon': -1.0})
    'rule scale, ε −1'
  """
  return ', '.join(
    f'{_SHORT.get(n, n)} {v if isinstance(v, str) else f"{v:g}"}'
    for n, v in option.items()
  ).replace('-', '−')


def conclusion(sweep: Sweep, tried: list[Point]) -> str:
  """Whether the default stays, and why, in one sentence."""
  default = next((p for p in tried if p.default), None)
  if default is None:
    return f'{sweep.name}: the default is not among the settings tried.'
  changes = [(p.change, p.text) for p in tried if p.change is not None]
  seeds = min((c.size for c, _ in changes), default=0)
  if seeds < 2:
    return f'{sweep.name}: {default.text} is not decidable, too few seeds.'
  change, text = min(changes, key=lambda pair: pair[0].mean)
  better = [(c, t) for c, t in changes if judgements.sign(c) < 0]
  if better:
    change, text = min(better, key=lambda pair: pair[0].mean)
    return (
      f'{sweep.name}: {text} is closer to Retrain than the default'
      f' {default.text}, by {judgements.shown(change)}; the default should'
      ' change.'
    )
  verdict = 'stays, nothing is resolvably closer to Retrain'
  if all(judgements.sign(c) > 0 for c, _ in changes):
    verdict = 'is confirmed, all others are resolvably farther from Retrain'
  return (
    f'{sweep.name}: {default.text} {verdict}; the best of the others, {text},'
    f' is at {judgements.shown(change)} from it ({seeds} seeds, corrected for'
    ' the number of settings).'
  )
