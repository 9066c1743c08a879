"""Sections as Markdown, and as one HTML file that needs nothing else."""

import base64
from collections.abc import Sequence
from html import escape
import pathlib
from typing import NamedTuple

from experiments import figures, tables, webpage
from experiments.reproduction import judgements


class Table(NamedTuple):
  """A table as text.

  Attributes:
    head: one a column.
    body: rows of cells.
  """

  head: list[str]
  body: list[list[str]]


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    lines: sentences.
    tables: after them.
    pictures: PNG files, last.
  """

  title: str
  lines: list[str]
  tables: list[Table] = []
  pictures: list[pathlib.Path] = []


def markdown(
  title: str, sections: Sequence[Section], root: pathlib.Path
) -> str:
  """The page as GitHub Markdown; pictures are linked from `figures/`."""
  text = tables.markdown_text
  parts = [f'# {text(title)}\n']
  for section in sections:
    parts.append(f'## {text(section.title)}\n')
    parts.append(tables.markdown_list(section.lines))
    for table in section.tables:
      rule = ['---'] * len(table.head)
      cells = [[text(cell) for cell in row] for row in table.body]
      lines = [[text(cell) for cell in table.head], rule, *cells]
      parts.append(''.join(f'| {" | ".join(line)} |\n' for line in lines))
    for path in section.pictures:
      link = path.relative_to(root)
      parts.append(f'![{text(section.title)}]({link})\n')
  return '\n'.join(part for part in parts if part)


def html(title: str, sections: Sequence[Section]) -> str:
  """The page as one file that needs no other."""
  parts = [f'<h1>{escape(title)}</h1>']
  for section in sections:
    parts.append(f'<h2>{escape(section.title)}</h2>')
    items = ''.join(f'<li>{escape(line)}</li>\n' for line in section.lines)
    parts.append(f'<ul>\n{items}</ul>' if items else '')
    parts += [_html_table(table) for table in section.tables]
    parts += [_html_picture(section.title, p) for p in section.pictures]
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy"'
    f' content="{webpage.POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n<style>{webpage.STYLE}{_STYLE}</style>\n'
    '</head>\n<body>\n' + '\n'.join(parts) + '\n</body>\n</html>\n'
  )


# Rows of text, unlike the report's rows of numbers; verdicts by colour too.
_STYLE = """
table { margin-bottom: 1.5rem; }
.judged td, .judged th { text-align: left; white-space: normal; }
.judged td:nth-child(2) { white-space: nowrap; font-weight: 600; }
.reproduced { color: #0072b2; }
.not-reproduced { color: #a34700; }
"""


def _html_table(table: Table) -> str:
  head = ''.join(f'<th scope="col">{escape(c)}</th>' for c in table.head)
  lines = []
  for first, *rest in table.body:
    kinds = (judgements.REPRODUCED, judgements.NOT_REPRODUCED)
    cells = ''.join(
      f'<td class="{text.replace(" ", "-")}">{escape(text)}</td>'
      if text in kinds
      else f'<td>{escape(text)}</td>'
      for text in rest
    )
    lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n')
  kind = ' class="judged"' if table.head[1:2] == ['Verdict'] else ''
  return (
    f'<div class="scroll"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
    f'<tbody>\n{"".join(lines)}</tbody></table></div>'
  )


def _html_picture(title: str, path: pathlib.Path) -> str:
  data = path.read_bytes()
  encoded = base64.b64encode(data).decode('ascii')
  pixels = int.from_bytes(data[16:20], 'big')
  width = pixels * webpage.PIXELS_PER_INCH // figures.DPI
  return (
    f'<figure>\n<img width="{width}" alt="{escape(title)}"'
    f' src="data:image/png;base64,{encoded}">\n</figure>'
  )
