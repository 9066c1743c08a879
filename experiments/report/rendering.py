"""Sections as HTML, as Markdown, as LaTeX, and for a terminal.

The templates escape whatever is put into them, so nothing can be forgotten.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import html as html_text
import itertools
import re
import textwrap
from typing import Any

import jinja2
from markupsafe import Markup
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from experiments.report.latex import escape
from experiments.report.sections import Section, Table

DPI = 180  # of the pictures
_PIXELS_PER_INCH = 128  # At which a figure's smallest print is still legible.


def _template(
  name: str, finalize: Callable[[Any], Any], filters: Any = (), **options: Any
) -> jinja2.Template:
  """A template into which nothing is put but through `finalize`."""
  made = jinja2.Environment(
    loader=jinja2.PackageLoader('experiments.report'),
    autoescape=name.endswith('.html.jinja'),
    undefined=jinja2.StrictUndefined,
    finalize=finalize,
    **options,
  )
  made.filters.update(filters)
  return made.get_template(name)


def latex(title: str, tables: Sequence[Table]) -> str:
  """Tables with their notes, one after the other, as pdflatex compiles them."""
  # Braces and per cent signs are LaTeX's own.
  marks = {'block_start_string': '<%', 'block_end_string': '%>'}
  marks |= {'variable_start_string': '<<', 'variable_end_string': '>>'}
  page = _template('report.tex.jinja', escape, trim_blocks=True, **marks)
  return page.render(title=title, tables=tables) + '\n'


# ------------------------------------------------------------------- HTML.


def html(
  title: str,
  intro: str,
  sections: Sequence[Section],
  pictures: Mapping[str, bytes] | None = None,
) -> str:
  """One file that needs nothing else; `pictures`: PNG bytes by their names."""
  filters = {'width': _width, 'base64': base64.b64encode}
  page = _template('page.html.jinja', _glued, filters)
  facts = {'title': title, 'intro': intro, 'sections': sections}
  return page.render(facts, pictures=pictures or {})


def _width(data: bytes, inches: float | None) -> int:
  """Of a PNG on the page, in pixels."""
  inches = inches or int.from_bytes(data[16:20], 'big') / DPI
  return round(_PIXELS_PER_INCH * inches)


def _glued(value: Any) -> Any:
  """Prose in which no line breaks inside a quantity."""
  if not isinstance(value, str) or isinstance(value, Markup):
    return value
  text = re.sub(r'\b([Kp]) = (?=\d)', '\\1\xa0=\xa0', value)
  text = text.replace(' ± ', '\xa0±\xa0')
  text = re.sub(r'(?<=\d,) (?=[−\d])', '\xa0', text)
  return re.sub(r'(?<=\d) (?=%|points|seeds)', '\xa0', text)


# --------------------------------------------------------------- Markdown.


def markdown(title: str, intro: str, sections: Sequence[Section]) -> str:
  """The page as GitHub Markdown; its pictures lie in `figures`."""
  filters = {'preformatted': _preformatted, 'in_html': _in_html}
  page = _template('page.md.jinja', markdown_text, filters)
  text = page.render(title=title, intro=intro, sections=sections)
  return text.rstrip() + '\n'


def _preformatted(text: str) -> str:
  """As HTML; controls, which a terminal would obey, are spelled out."""
  text = re.sub(
    r'[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]',
    lambda found: found[0].encode('unicode_escape').decode(),
    text,
  )
  return html_text.escape(text, quote=False)


def _in_html(text: str) -> str:
  """In an element of HTML, which a blank line would end."""
  return _preformatted(' '.join(text.split())).replace('$', '&#36;')


def markdown_text(text: Any) -> str:
  r"""Outside text as Markdown that shows it literally, on one line: a\|b."""
  if isinstance(text, Markup):
    return text
  text = _preformatted(' '.join(str(text).split()))
  text = re.sub(r'([\\`*_\[\]|#~])', r'\\\1', text)
  # GitHub typesets what stands between dollars; the others begin a list, or
  # rule off, where they begin a line.
  return re.sub(
    r'\$|^[-+=](?![0-9.])|^[0-9]+(?=[.)]( |$))',
    lambda found: ''.join(f'&#{ord(character)};' for character in found[0]),
    text,
  )


# --------------------------------------------------------------- Terminal.

_LISTS = {'verdicts': ('• ', ''), 'warnings': ('warning: ', 'yellow')}
_STYLES = {'source': 'dim', 'reference': 'bold', 'control': 'magenta'}
_NARROW = 120  # Below, labels are broken into more lines.
_LONGEST = 32  # What is longer without a space is no number.

Column = list[list[str]]  # Its head and then its cells, each as lines.


def show(sections: Sequence[Section]) -> None:
  """Prints them to standard output, whatever that is."""
  terminal(sections, Console())


def terminal(sections: Sequence[Section], console: Console) -> None:
  """Prints all but the pictures; a number is never cut, nor is it folded."""
  # Where the output is no terminal nothing is fitted to anything.
  width = console.width if console.is_terminal else None
  for section in sections:
    for line in _lines(section, width):
      console.print(line, soft_wrap=True, highlight=False)


def _lines(section: Section, width: int | None) -> Iterator[Text]:
  prefix, style = _LISTS.get(section.kind, ('', ''))
  yield from wrapped(filter(None, [section.title]), width, 'bold')
  yield from wrapped(section.paragraphs, width)
  yield from wrapped((prefix + own for own in section.sentences), width, style)
  for place, table in enumerate(section.tables):
    yield from [Text()] if place else []
    yield from wrapped(filter(None, [table.title]), width, 'bold')
    yield from table_lines(table, width)
    yield from wrapped(table.notes, width, 'dim')
  yield from [Text()] if section.tables and section.notes else []
  yield from wrapped(section.notes, width, 'dim')
  yield from wrapped(map(' '.join, section.definitions), width)
  for heading, pairs in section.pairs:
    yield from wrapped([heading], width, 'bold')
    texts = (f'{key}: {own}' if key else own for key, own in pairs)
    yield from wrapped(texts, width)
  yield Text()


def printable(text: str) -> str:
  """Without control characters, which a terminal would obey."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


def wrapped(
  texts: Iterable[str], width: int | None, style: str = ''
) -> list[Text]:
  """Broken between words only; a longer word is left to the terminal."""
  lines = (line for own in texts for line in _words(printable(own), width))
  return [Text(line, style) for line in lines]


def _words(text: str, room: int | None) -> list[str]:
  """Broken between words only, unless a word is too long for a number."""
  if room is None:
    return [text]
  breaks = room == _LONGEST
  return textwrap.wrap(
    text, room, break_long_words=breaks, break_on_hyphens=False
  )


def table_lines(table: Table, width: int | None) -> list[Text]:
  """A table fitted into so many characters; None: as wide as it is."""
  names = [printable(column.text) for column in table.columns]
  rows = [[*map(printable, (own.label, *own.cells))] for own in table.lines]
  styles = ['bold', *(_STYLES.get(own.kind, '') for own in table.lines)]
  if width is None:
    plain = [[[text] for text in column] for column in zip(names, *rows)]
    return _grid(plain, styles, 2, None)
  if table.judged:
    return _turned(names, rows, styles, width)
  heads = [
    [*_words(printable(c.header), 10), *filter(None, [printable(c.unit)])]
    for c in table.columns
  ]
  longest = max((cell_len(w) for r in rows for w in r[0].split()), default=1)
  room = max(24 if width >= _NARROW else 12, min(longest, _LONGEST))
  broken = [
    [_words(label, room) or [''], *([text] for text in cells)]
    for label, *cells in rows
  ]
  label, *others = [list(column) for column in zip(heads, *broken)]
  tight = [
    [head, *([re.sub(' ?± ?', '±', text)] for (text,) in cells)]
    for head, *cells in others
  ]
  for columns, gap in ((others, 2), (tight, 1)):
    if lines := _grid([label, *columns], styles, gap, width):
      return lines
  split = _split(label, others, styles, width)
  return split or _turned(names, rows, styles, width)


def _split(
  label: Column, rest: list[Column], styles: list[str], width: int
) -> list[Text]:
  """Several tables, as many columns in each as fit; none if one does not."""
  found: list[Text] = []
  while rest:
    for count in range(len(rest), 0, -1):
      if lines := _grid([label, *rest[:count]], styles, 2, width):
        break
    else:
      return []
    found += [Text(), *lines] if found else lines
    rest = rest[count:]
  return found


def _grid(
  columns: list[Column], styles: list[str], gap: int, room: int | None
) -> list[Text]:
  """Labels to the left, other columns to the right; none if they do not fit."""
  widths = [max(cell_len(text) for own in c for text in own) for c in columns]
  rule = (' ' * gap).join('─' * width for width in widths)
  if room is not None and len(rule) > room:
    return []
  found = []
  for row, cells in enumerate(map(list, zip(*columns))):
    tall = max(map(len, cells))
    if row == 0:  # Heads stand on the rule.
      cells = [[''] * (tall - len(own)) + own for own in cells]
    for texts in itertools.zip_longest(*cells, fillvalue=''):
      pads = [' ' * (width - cell_len(t)) for t, width in zip(texts, widths)]
      right = [pad + text for pad, text in zip(pads[1:], texts[1:])]
      line = (' ' * gap).join([texts[0] + pads[0], *right])
      found.append(Text(line.rstrip(), styles[row]))
    if row == 0:
      found.append(Text(rule))
  return found


def _turned(
  names: list[str], rows: list[list[str]], styles: list[str], width: int
) -> list[Text]:
  """A line a cell, below the label of its line."""
  found = []
  for row, style in zip(rows, styles[1:]):
    found += wrapped([row[0]], width, style)
    for name, text in zip(names[1:], row[1:]):
      line = f'  {name}: {text}'
      if cell_len(line) <= width:
        found.append(Text(line, style))
        continue
      found += wrapped([f'  {name}:'], width, style)
      if cell_len(text) > width:
        found += wrapped([text], width, style)
      else:
        indent = '    ' if cell_len(text) + 4 <= width else ''
        found.append(Text(indent + text, style))
  return found
