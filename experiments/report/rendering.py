"""Sections as HTML, Markdown and LaTeX, on disk, and for a terminal.

The templates escape whatever is put into them, so nothing can be forgotten.
"""

import base64
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
import contextlib
import html as html_text
import pathlib
import re
import textwrap
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.align import Align
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from .. import files
from . import figures
from .sections import Section, Table
from .wording import WORDS


def _template(
  name: str, finalize: Any, filters: Any = (), **options: Any
) -> jinja2.Template:
  """A template into which nothing is put but through `finalize`."""
  made = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
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
  page = _template('report.tex.jinja', latex_text, trim_blocks=True, **marks)
  return page.render(title=title, tables=tables) + '\n'


def latex_text(text: str) -> str:
  r"""Outside text as LaTeX sets it literally, on one line: '5 \% of $k$'."""
  return ''.join(map(_latex_character, ' '.join(text.split())))


def _latex_character(character: str) -> str:
  # Besides ASCII the letters that fonts in the encoding T1 have.
  known = ' ' <= character <= '~' or 'À' <= character <= 'ſ'
  known = known and character not in '÷ĿŀŉſĦħŦŧĸ'
  # What pdflatex cannot set, as [U+0416].
  spelled = character if known else f'{{[}}U+{ord(character):04X}{{]}}'
  return WORDS['latex'].get(character, spelled)


def save(
  root: pathlib.Path,
  stem: str,
  title: str,
  intro: str,
  sections: Sequence[Section],
  drawn: Mapping[str, Figure],
  more: Mapping[str, bytes | str],
) -> pathlib.Path:
  """Writes `figures/*.png`, `more`, `STEM.md` and `STEM.html`; returns that.

  Once they are there, what only an earlier page of this stem showed goes.
  """
  png = {n: figures.encoded(own, stem, f'{n}.png') for n, own in drawn.items()}
  contents: dict[str, bytes | str] = {
    **{f'figures/{name}.png': data for name, data in png.items()},
    **more,
    f'{stem}.md': markdown(title, intro, sections),
    f'{stem}.html': html(title, intro, sections, png),
  }
  for name, content in contents.items():
    if isinstance(content, str):
      content = content.encode('utf-8', 'backslashreplace')
    files.replace(root / name, content)
  _sweep(root.resolve(), stem, contents)
  return root / f'{stem}.html'


def _sweep(root: pathlib.Path, stem: str, kept: Container[str]) -> None:
  """Removes pictures of earlier pages of this stem but for those `kept`.

  Each is a file, no link nor behind one, that says itself that it is such a
  picture of this very name: what others have put there stays, copies too.
  """
  for path in sorted(root.glob('figures/*.p[nd][gf]')):
    title = figures.title(stem, path.name).encode('utf-8', 'replace')
    with contextlib.suppress(OSError):  # What cannot be read stays, too.
      old = f'figures/{path.name}' not in kept and path.is_file()
      if old and path.resolve() == path and title in path.read_bytes():
        path.unlink()


# ------------------------------------------------------------------- HTML.


def html(
  title: str,
  intro: str,
  sections: Sequence[Section],
  pictures: Mapping[str, bytes] | None = None,
) -> str:
  """One file that needs nothing else; `pictures`: PNG bytes by their names."""
  page = _template('page.html.jinja', None, {'base64': base64.b64encode})
  facts = {'title': title, 'intro': intro, 'sections': sections}
  return page.render(facts, pictures=pictures or {})


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
_NARROW = 120  # Below, nothing stands around a ±.
_LONGEST = 32  # What is longer without a space is no number.
_ENDLESS = 100_000  # Where the output is no terminal.
_RULED = Box('    \n' * 2 + ' ─  \n' + '    \n' * 5)  # Below the heads only.


def terminal(
  sections: Sequence[Section], console: Console | None = None
) -> None:
  """Prints what was found, and tables; no number is cut, nor is it folded.

  Definitions, pictures and pairs are for pages alone.
  """
  console = console or Console()
  if not console.is_terminal:
    console.width = _ENDLESS
  for section in sections:
    for part in _parts(section, console.width):
      console.print(part, highlight=False)


def _parts(section: Section, width: int) -> Iterator[Text | Grid]:
  prefix, style = _LISTS.get(section.kind, ('', ''))
  yield from _texts([section.title], 'bold')
  yield from _texts(section.paragraphs)
  yield from _texts((prefix + own for own in section.sentences), style)
  for place, table in enumerate(section.tables):
    yield from [Text()] if place else []
    yield from _texts([table.title], 'bold')
    yield from _grids(table, width)
    yield from _texts(table.notes, 'dim')
  yield from [Text()] if section.tables and section.notes else []
  yield from _texts(section.notes, 'dim')
  yield Text()


def printable(text: str) -> str:
  """Without control characters, which a terminal would obey."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


def _texts(texts: Iterable[str], style: str = '') -> list[Text]:
  return [Text(printable(own), style) for own in texts if own]


def _grids(table: Table, width: int) -> Iterator[Text | Grid]:
  """As few tables as fit: labels may be folded, numbers may not."""
  labels = [printable(own.label) for own in table.lines]
  words = map(cell_len, ' '.join([table.columns[0], *labels]).split())
  room = width - min(_LONGEST, max(words, default=0))
  columns: list[tuple[list[str], list[str]]] = []  # Heads and cells.
  for name, *texts in zip(table.columns[1:], *(o.cells for o in table.lines)):
    if width < _NARROW:
      texts = [text.replace(' ± ', '±') for text in texts]
    head = textwrap.wrap(printable(name), 10, break_long_words=False)
    columns.append((head, [*map(printable, texts)]))
  while columns:
    grid = Grid(
      box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    title = Align(Text(printable(table.columns[0])), vertical='bottom')
    grid.add_column(title, overflow='fold')
    shown, left = [labels], room
    for head, texts in columns:
      wide = max(map(cell_len, [*head, *texts]))
      left -= wide + 2
      if left < 0 and shown[1:]:
        break
      title = Align.right(Text('\n'.join(head)), vertical='bottom')
      grid.add_column(title, justify='right', width=wide)
      shown.append(texts)
    for line, cells in zip(table.lines, zip(*shown)):
      grid.add_row(*map(Text, cells), style=_STYLES.get(line.kind))
    yield grid
    columns = columns[len(shown) - 1 :]
    yield from [Text()] if columns else []
