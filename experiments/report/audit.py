"""An audit: its numbers as data, and what a page shows of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
import itertools
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
import numpy as np

from unlearn_jax.strategies import REFERENCE
from . import figures
from .figures import LOOKS, STYLE
from .judging import number, plus_minus
from .model import SOURCE, Estimate
from .sections import Line, Picture, Section, Table
from .tables import MISSING
from .wording import WORDS, say

RATES = 0.001, 0.01, 0.05  # False positive rates.


@dataclass(frozen=True)
class Attack:
  """What U-LiRA found on one group of examples."""

  auc: float  # Over all target models.
  targets: list[float | None]  # That of each target model.
  interval: Estimate | None  # Over them.
  minus_null: Estimate | None  # Paired with Retrain's, over them.
  balanced_accuracy: float  # At Λ = 0.
  tpr: dict[str, float]  # By FPR.
  members: int  # Scores: examples, for each request to each target model.
  others: int
  fewest_in: int  # Shadow models of the least covered example.
  fewest_out: int
  roc: list[list[float]]  # [FPR, TPR]


@dataclass(frozen=True)
class Row:
  """One strategy, or the models before anything was forgotten."""

  strategy: str
  label: str
  role: str
  accuracy: dict[str, float]  # Of forget, retain and test.
  # Of 'forget', all that was forgotten; 'slice', its most exposed part; and
  # 'retain', what stays.
  attacks: dict[str, Attack] = field(default_factory=dict)
  # By id and class of an example, φ of the models that forgot it ('inside')
  # and that never saw it ('outside'), and of the targets among them.
  phi: dict[str, dict[str, list[float]]] = field(default_factory=dict)
  # Of an ensemble, against as many Retrains.
  forgetting_score: float = 0.0
  final_score: float = 0.0  # Times what is left of Retrain's accuracies.
  # Of forget, retain and test, the mean and the 95th percentile.
  klom: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
  """Everything that audit.json holds."""

  command: str
  config: dict[str, Any]
  environment: dict[str, Any]
  attack: str  # 'ulira' or 'ensemble'.
  data: str
  model: str
  train: int  # Examples of D.
  request: int  # Of those that are forgotten at a time.
  requests: int
  models: int  # Shadows, or those of each ensemble.
  targets: int
  mislabelled: int
  rows: list[Row]  # As trained, Retrain, and the others.
  slice: int = 0
  mislabelled_slice: int = 0  # Of the slice.
  warnings: list[str] = field(default_factory=list)
  schema: int = 1

  @property
  def null(self) -> Row:
    """Retrain's."""
    return next(row for row in self.rows if row.role == REFERENCE)


def intro(audit: Audit) -> list[str]:
  """The title, and what was done in a few sentences."""
  wrong = say('audit', 'wrong', own=audit) if audit.mislabelled else ''
  names = f'{audit.attack}_title', f'{audit.attack}_done'
  return [say('audit', name, own=audit, wrong=wrong) for name in names]


def summary(audit: Audit) -> list[Section]:
  """What the terminal shows: a line a strategy."""
  say_of = _found if audit.attack == 'ulira' else _likeness
  found = [say_of(row, audit.null) for row in audit.rows]
  made = [Section('What was found', sentences=found, kind='verdicts')]
  if audit.warnings:
    made.append(Section('Warnings', sentences=audit.warnings, kind='warnings'))
  return made


def page(audit: Audit) -> list[Section]:
  """What the page shows below its title."""
  texts = WORDS[f'audit_{audit.attack}']
  claims = [(n, ' '.join(texts[n].split()).format(own=audit)) for n in texts]
  groups = {'Config': audit.config, 'Environment': audit.environment}
  how = [
    (name, [(key, str(value)) for key, value in own.items()])
    for name, own in groups.items()
  ]
  pairs = [('Command', [('', audit.command)]), *how]
  tables, shown = [_alike(audit)], []
  if audit.attack == 'ulira':
    tables = [_attacked(audit, group) for group in audit.null.attacks]
    shown = [Picture('roc', say('audit', 'roc'), say('audit', 'roc_alt'))]
    shown += [
      Picture(f'phi_{n}', say('audit', 'phi', row=row), say('audit', 'phi_alt'))
      for n, row in enumerate(audit.rows)
    ]
  return [
    *summary(audit),
    Section('In numbers', tables=tables),
    *([Section('Pictures', pictures=shown)] if shown else []),
    Section('How to read this', definitions=claims),
    Section('How it was run', pairs=pairs, kind='details'),
  ]


def _found(row: Row, null: Row) -> str:
  """What U-LiRA found of a strategy."""
  numbers = {name: own.auc for name, own in row.attacks.items()}
  if row.role in (SOURCE, REFERENCE):
    return say('audit', row.role, auc=numbers)
  gaps = {n: row.attacks[n].minus_null for n in ('forget', 'slice')}
  known = {n: gap for n, gap in gaps.items() if gap and gap.low is not None}
  found = [
    say('audit', f'in_{name}', by=plus_minus(gap, 1, 3))
    for name, gap in known.items()
    if (gap.low or 0) > 0 or (gap.high or 0) < 0
  ]
  facts = {'row': row, 'auc': numbers, 'where': ' and '.join(found)}
  facts['kept'] = [100 * own.accuracy['retain'] for own in (row, null)]
  facts['null'] = {name: own.auc for name, own in null.attacks.items()}
  kind = 'untold' if len(known) == len(gaps) else 'unknown'
  return say('audit', 'told' if found else kind, **facts)


def _likeness(row: Row, null: Row) -> str:
  name = 'alike' if row.role == REFERENCE else 'unlike'
  return say('audit', name, row=row, null=null)


def _attacked(audit: Audit, group: str) -> Table:
  """All rows of one group of examples."""
  lines = []
  for row in audit.rows:
    own, tpr = row.attacks[group], {}
    # To each request the same images of a target model are OUT.
    often = 1 if row.role == SOURCE else audit.requests
    for rate in RATES:  # Shown where ten false alarms are allowed.
      enough = own.others * rate >= 10 * often
      share = number(100 * own.tpr[f'{rate:g}'], 1)
      tpr[rate] = share if enough else MISSING
    cells = [
      number(own.auc, 3),
      plus_minus(own.interval, 1, 3) if own.interval else MISSING,
      plus_minus(own.minus_null, 1, 3) if own.minus_null else MISSING,
      *tpr.values(),
      number(100 * own.balanced_accuracy, 1),
      *(_accuracies(row) if group == 'forget' else ()),
    ]
    lines.append(Line(row.label, cells, row.role))
  heads = WORDS['audit_heads']['ulira'][: 1 + len(cells)]
  own = audit.null.attacks[group]
  wrong = say('audit', 'wrong_labels', audit=audit) + ' '
  wrong *= audit.mislabelled > 0
  notes = [say('audit', f'{group}_note', own=own, wrong=wrong)]
  notes += [say('audit', 'columns', own=audit)] * (group == 'forget')
  title = say('audit', f'{group}_title', own=audit)
  return Table(heads, lines, title, notes)


def _accuracies(row: Row) -> list[str]:
  return [number(100 * share, 1) for share in row.accuracy.values()]


def _alike(audit: Audit) -> Table:
  """All rows of ensembles."""
  lines = []
  for row in audit.rows:
    cells = [number(row.forgetting_score, 3), number(row.final_score, 3)]
    for mean, most in row.klom.values():
      cells.append(f'{number(mean, 2)} ({number(most, 2)})')
    lines.append(Line(row.label, [*cells, *_accuracies(row)], row.role))
  notes = [say('audit', 'ensemble_note', own=audit)]
  return Table(WORDS['audit_heads']['ensemble'], lines, notes=notes)


def pictures(audit: Audit) -> dict[str, Figure]:
  """The pictures that `page` shows, by name."""
  if audit.attack == 'ensemble':
    return {}
  return {'roc': roc(audit.rows)} | {
    f'phi_{n}': margins(row) for n, row in enumerate(audit.rows)
  }


@style.context(STYLE)
def roc(rows: Sequence[Row]) -> Figure:
  """ROC curves on log axes: of all that was forgotten, and of the slice."""
  figure = Figure((figures.WIDTH, 3.4))
  grid = figure.subplots(1, 2, sharey=True)
  for axes, (group, title) in zip(grid, WORDS['audit_panels'].items()):
    looks = itertools.cycle(WORDS['audit_looks'].values())
    axes.plot([1e-5, 1], [1e-5, 1], **LOOKS['goal'] | {'label': 'a coin'})
    for row in rows:
      look: Any = WORDS['audit_fixed'].get(row.role) or next(looks)
      own = row.attacks[group]
      # To the left of that not even one false alarm is allowed.
      seen = np.array([pair for pair in own.roc if pair[0] * own.others >= 1])
      axes.step(*seen.T, where='post', label=figures.label(row.label), **look)
    least = 1 / max(row.attacks[group].others for row in rows)
    axes.set(xscale='log', yscale='log', xlim=(least, 1), ylim=(1e-3, 1.1))
    axes.set_title(title, loc='left')
    axes.set_xlabel('false positive rate')
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:g} %'))
    axes.grid()
  grid[0].set_ylabel('true positive rate')
  return figures.legend(figure)


@style.context(STYLE)
def margins(row: Row) -> Figure:
  """φ of the most exposed examples, a line each."""
  figure = Figure((figures.WIDTH, 0.34 * len(row.phi) + 1.1))
  axes = figure.subplots()
  for place, own in enumerate(row.phi.values()):
    for name, values in own.items():
      at = place + (0.2 if name.endswith('outside') else -0.2)
      spread = np.linspace(-0.1, 0.1, len(values)) * ('target' not in name)
      axes.plot(values, at + spread, **WORDS['audit_dots'][name])
    axes.axhline(place + 0.5, **LOOKS['row'])
  axes.set_yticks(range(len(row.phi)), [*map(figures.label, row.phi)])
  axes.set_ylim(len(row.phi) - 0.45, -0.55)
  axes.tick_params(axis='y', length=0)
  axes.set_xlabel('φ; right of 0 the label is believed')
  axes.axvline(0, **LOOKS['zero'])
  axes.grid(axis='x')
  return figures.legend(figure)
