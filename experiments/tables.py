"""The report's numbers as tables, for the terminal, Markdown and the web page.

Input is the `report` dictionary that `experiments.unlearn` makes; no metric is
computed here.
"""

from collections.abc import Iterable, Sequence
import html
import re
import textwrap
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from experiments import prose, verdicts
from experiments.verdicts import CONTROL, GAP, Report, Row

MISSING = '–'


class Column(NamedTuple):
  """One measured column.

  Attributes:
    metric: key into a row's `mean` (or other table).
    header: what the reader sees.
    unit: second line of the header; empty for plain numbers.
    scale: what a value is multiplied with to be in that unit.
    digits: decimals shown.
    table: which of the row's tables of estimates, `mean` or `paired`.
  """

  metric: str
  header: str
  unit: str = ''
  scale: float = 1.0
  digits: int = 0
  table: str = 'mean'


# The parts of the table: title and columns. Each fits into 80 characters.
PARTS = {
  'main': (
    'Closeness to Retrain',
    (
      Column('forget_accuracy', 'Forget accuracy', '%', 100, 1),
      Column('retain_accuracy', 'Retain accuracy', '%', 100, 1),
      Column('test_accuracy', 'Test accuracy', '%', 100, 1),
      Column('mia_auc', 'Attack AUC', '0.5 = chance', 1, 3),
      Column(GAP, 'Gap to Retrain', 'points', 100, 2),
      Column(GAP, 'Gap minus K=0’s', 'points', 100, 2, 'paired'),
    ),
  ),
  'paper': (
    'The paper’s own measures',
    (
      Column('forget_accuracy', 'Forget accuracy', '%', 100, 1),
      Column('forgetting_rate', 'FR', '%', 100, 1),
      Column('memory_retention_rate', 'MRR', '%', 100, 1),
      Column('similarity', 'Similarity to Retrain', '%', 100, 1),
      Column(GAP, 'Gap to Retrain', 'points', 100, 2),
    ),
  ),
  'cost': (
    'What was changed, and time',
    (
      Column('scalars_changed', 'Scalars changed'),
      Column('tensors_changed', 'Tensors touched'),
      Column('perturbation_js', 'Effect left', 'bits', 1, 4),
      Column('stop_epoch', 'Rule met', 'epoch'),
      Column('seconds', 'Unlearn time', 's', 1, 1),
      Column('compile_seconds', 'Compile time', 's', 1, 1),
      Column('acceleration', 'Speed-up', '× Retrain', 1, 1),
    ),
  ),
}
# What Retrain scores against itself says nothing.
OF_REFERENCE = (GAP, 'similarity', 'acceleration')


def columns(report: Report, part: str = 'main') -> tuple[Column, ...]:
  """The columns of one of `PARTS` that any row can fill."""

  def filled(column: Column) -> bool:
    if column.metric == 'stop_epoch':
      return any(row.get('stop_epoch') for row in report['rows'])
    return any(
      verdicts.estimate(row, column.metric, column.table)
      for row in report['rows']
    )

  return tuple(c for c in PARTS[part][1] if filled(c))


def cell(column: Column, row: Row, reference: Row | None = None) -> str:
  """What stands in one cell: '91.2 ± 0.4', '≥ 12.0 ± 1.5', or '–'.

  Behind ± stands the half-width of the 95 % interval over seeds.

  Args:
    column: what to show.
    row: of which strategy.
    reference: Retrain's row, to tell on which side a speed-up is bounded.
  """
  if column.metric == 'stop_epoch':
    return _stop_epochs(row)
  if row['role'] == 'reference' and column.metric in OF_REFERENCE:
    return 'ref.' if column.table == 'mean' else MISSING
  value = verdicts.estimate(row, column.metric, column.table)
  if value is None:
    return MISSING
  mean, digits = value.mean * column.scale, column.digits
  if mean == 0 and value.low in (None, 0):
    return '0'
  smallest = 10.0**-digits
  if digits >= 4 and 0 < mean < smallest:
    return f'< {verdicts.number(smallest, digits)}'
  if column.metric == 'tensors_changed' and mean % 1:
    digits = 1
  text = verdicts.number(mean, digits)
  half = verdicts.half_width(value)
  if half is not None:
    width = verdicts.number(half * column.scale, digits)
    if column.digits or width != '0':  # A count that never varies needs no ±.
      text += f' ± {width}'
  return _bound(column, row, reference) + text


def is_cut_off(row: Row) -> bool:
  """Whether some seed of a strategy ran out of epochs before the stop rule."""
  return any(epoch is None for epoch in row.get('stop_epoch') or [])


def _bound(column: Column, row: Row, reference: Row | None) -> str:
  """The sign before a time that was cut off before the stop rule held."""
  own, its = is_cut_off(row), reference is not None and is_cut_off(reference)
  if column.metric == 'seconds':
    return '≥ ' if own else ''
  if column.metric == 'acceleration':
    return (('', '≥ '), ('≤ ', '~ '))[own][its]
  return ''


def _stop_epochs(row: Row) -> str:
  epochs = row.get('stop_epoch') or []
  if not epochs or row['role'] == 'source':
    return MISSING
  met = [epoch for epoch in epochs if epoch is not None]
  if not met:
    return 'never'
  text = f'{min(met)}' if min(met) == max(met) else f'{min(met)}–{max(met)}'
  missed = len(epochs) - len(met)
  return f'{text} ({missed}/{len(epochs)} never)' if missed else text


def cells(report: Report, part: str = 'main') -> list[list[str]]:
  """The body of a table as text: per row its label, then one cell a column.

  The gap's cell carries ↓ where it is the lowest of all rows but Retrain, and
  (↓) where its difference to the lowest is within the noise of the seeds.
  """
  marks = verdicts.gap_marks(report)
  reference = verdicts.find(report, 'retrain')
  body = []
  for row in report['rows']:
    line = [row['label']]
    for column in columns(report, part):
      text = cell(column, row, reference)
      if (column.metric, column.table) == (GAP, 'mean'):
        text = ' '.join((text, marks.get(row['strategy'], ''))).rstrip()
      line.append(text)
    body.append(line)
  return body


def interval_note(report: Report) -> str:
  """What stands behind ±, and what it does not cover."""
  seeds = len(report['seeds'])
  if seeds < 2:
    return (
      'One seed: no intervals, so no difference between two rows can be told '
      'from chance.'
    )
  return (
    f'±: half-width of the 95 % interval of the mean over {seeds} seeds. '
    'Intervals are 95 % each, not corrected for the number of comparisons: of '
    'twenty, one is expected to miss.'
  )


def footnotes(report: Report, *parts: str) -> list[str]:
  """What the signs in these of `PARTS` mean, as far as they occur there."""
  body = [line for part in parts for line in cells(report, part)]
  words = ' '.join(text for line in body for text in line[1:]).split()
  legend = {
    verdicts.LOWEST: 'lowest gap of all rows but Retrain, the untouched source '
    'and the controls included',
    verdicts.LEVEL: 'not resolvably above the lowest (the 95 % interval of the '
    'difference, paired by seed, contains 0)',
    'ref.': 'Retrain is the reference: gap 0, similarity 100 %, speed-up 1 by '
    'definition',
    '≥': 'at least this, because the stop rule was not met in the epochs '
    'allowed (for a speed-up: by Retrain)',
    '≤': 'at most this, because the strategy’s own time was cut off so',
    '~': 'both times of the speed-up were cut off so: a bound on neither side',
    MISSING: 'not applicable or not measured',
  }
  return [f'{sign}: {text}.' for sign, text in legend.items() if sign in words]


def rich_table(report: Report, part: str = 'main', width: int = 120) -> Table:
  """One of `PARTS` for a terminal of `width` columns, 80 at least."""
  label_width = 24 if width >= 120 else 12
  table = Table(
    title=PARTS[part][0],
    title_justify='left',
    title_style='bold',
    box=box.SIMPLE_HEAD,
    show_edge=False,
    padding=(0, 1 if width >= 120 else 0, 0, 0),
  )
  table.add_column('Strategy', no_wrap=True)
  for column in columns(report, part):
    lines = (*textwrap.wrap(column.header, 10), column.unit)
    header = '\n'.join(filter(None, lines))
    table.add_column(header, justify='right')
  for row, line in zip(report['rows'], cells(report, part)):
    # In a narrow terminal a cell breaks before its ±, never after.
    label = textwrap.fill(_printable(line[0]), label_width)
    glued = [Text(text.replace('± ', '±')) for text in line[1:]]
    table.add_row(Text(label), *glued, style=_style(row))
  return table


def _style(row: Row) -> str | None:
  if row['strategy'] == CONTROL:
    return 'magenta'
  return {'source': 'dim', 'reference': 'bold'}.get(row['role'])


def _printable(text: str) -> str:
  """Without control characters, which a terminal would obey."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


class Summary(NamedTuple):
  """What `rich.print` shows of a report, fitted to the terminal's width."""

  report: Report

  def __rich_console__(
    self, console: Console, options: ConsoleOptions
  ) -> RenderResult:
    """The tables, their signs, the verdicts, the warnings."""
    for part in PARTS:
      yield rich_table(self.report, part, options.max_width)
      yield Text()
    for note in (interval_note(self.report), *footnotes(self.report, *PARTS)):
      yield Text(_printable(note), style='dim')
    yield Text()
    found = verdicts.verdicts(self.report) + verdicts.yardsticks(self.report)
    for sentence in found:
      yield Text(f'• {_printable(sentence)}')
    for warning in prose.warnings(self.report):
      yield Text(f'warning: {_printable(warning)}', style='yellow')


def rich_summary(report: Report) -> Summary:
  """All that the terminal shows, for `rich.print`."""
  return Summary(report)


def markdown_table(report: Report, part: str = 'main') -> str:
  """One of `PARTS` as GitHub Markdown, the K = 0 row in bold."""
  shown = columns(report, part)
  header = ['Strategy'] + [
    ', '.join(filter(None, (c.header, c.unit))) for c in shown
  ]
  lines = [header, ['---'] + ['---:'] * len(shown)]
  for row, line in zip(report['rows'], cells(report, part)):
    line = [markdown_text(text) for text in line]
    if row['strategy'] == CONTROL:
      line = [f'**{text}**' for text in line]
    lines.append(line)
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Cells of text as a GitHub Markdown table, the first column to the left."""
  lines = [head, ['---'] + ['---:'] * (len(head) - 1)]
  lines += [[markdown_text(cell) for cell in row] for row in rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def markdown_text(text: str) -> str:
  r"""Outside text as Markdown that shows it literally, on one line.

  Example:
    >>> print(markdown_text('a|b <i>'))
    a\|b &lt;i&gt;
  """
  text = html.escape(' '.join(str(text).split()), quote=False)
  text = re.sub(r'([\\`*_\[\]|#~])', r'\\\1', text)
  # GitHub typesets what stands between dollars; the others begin a list, or
  # rule off, where they begin a line.
  return re.sub(r'\$|^[-+=](?![0-9.])|^[0-9]+(?=[.)]( |$))', _entities, text)


def _entities(found: re.Match[str]) -> str:
  return ''.join(f'&#{ord(character)};' for character in found[0])


def markdown_list(lines: Iterable[str]) -> str:
  """Sentences as a Markdown list."""
  return ''.join(f'- {markdown_text(line)}\n' for line in lines)
