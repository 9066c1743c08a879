"""What a page consists of: plain text, whoever renders and escapes it."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a table: its first cell, and the others."""

  label: str
  cells: Sequence[str]
  kind: str = ''  # Or 'source', 'reference' or 'control'.


@dataclasses.dataclass(frozen=True)
class Table:
  """A table as text; the column of the labels comes first."""

  columns: Sequence[str]  # Their heads.
  lines: Sequence[Line]
  title: str = ''  # Where the section's does not say enough.
  notes: Sequence[str] = ()

  @classmethod
  def of(cls, head: Sequence[str], body: Sequence[Sequence[str]]) -> 'Table':
    """A table of rows of cells, labels first."""
    return cls(head, [Line(label, cells) for label, *cells in body])


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG, whose bytes are handed over by name."""

  name: str  # Of the file without its ending.
  caption: str  # May be empty.
  alt: str  # What it shows, for who does not see it.


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page, shown in the order of the attributes."""

  title: str
  paragraphs: Sequence[str] = ()
  sentences: Sequence[str] = ()  # What was found, as a list.
  tables: Sequence[Table] = ()
  notes: Sequence[str] = ()  # Below the tables, small.
  # A claim in a few words and its explanation, each.
  definitions: Sequence[tuple[str, str]] = ()
  pictures: Sequence[Picture] = ()
  # Names and values below headings; a value without a name is as it is typed.
  pairs: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
  kind: str = ''  # Or 'verdicts', 'warnings', or 'details': folded away.
