"""Which images a request names."""

from collections.abc import Iterator, Sequence
import csv
import io
import os
import pathlib
from typing import NamedTuple

from unlearn_jax.base import InputError, shown
from unlearn_jax.data import splits
from ..settings import FlagError


class Asked(NamedTuple):
  """What a file asks for."""

  ids: list[str]  # in the order of the data set, none twice, none earlier
  repeated: int  # entries that name an image again
  earlier: int  # images that an earlier request has named


def read(
  path: pathlib.Path,
  column: str | None,
  dataset: str,
  known: Sequence[str],
  trained: set[str],
  earlier: set[str],
) -> Asked:
  """The images that a file names, one a line, or one a row of a CSV.

  An image is named by its id; by its file's name alone where that is the only
  one; by a path under the data set; or by its row, `#287`. A bare number is an
  id and nothing else.

  Args:
    path: UTF-8 text.
    column: of a CSV with a head; None: a name a line.
    dataset: what the user calls it; `folder:DIR` gives paths a meaning.
    known: every id of the data set, in its order.
    trained: those that the model was trained on.
    earlier: those of earlier requests, which may be in the data no more.

  Raises:
    InputError: entries that name none of `trained` or `earlier`, all of them
      with their lines; or a file that is none.
  """
  every, wrong, found = {*known, *earlier}, [], []
  short: dict[str, list[str]] = {}  # Ids by the name of their file.
  for name in sorted(every):
    short.setdefault(name.rpartition('/')[2], []).append(name)

  def find(entry: str) -> str:
    """The id that an entry means."""
    if entry in every:
      return entry
    if splits.ROW.fullmatch(entry):
      if (row := int(entry[1:])) < len(known):
        return known[row]
      raise InputError('there is no such row')
    slashed = entry.replace('\\', '/')
    if '/' in slashed:
      several = [name for name in _paths(slashed, dataset) if name in every][:1]
    else:
      several = short.get(entry, [])
    if len(several) > 1:
      few = ', '.join(map(shown, several[:3])) + ', …' * (len(several) > 3)
      raise InputError(f'one of {few}?')
    if not several:
      is_row = splits.ROW.fullmatch(f'#{entry}')
      hint = f'; row {entry} is #{entry}' if is_row else ''
      raise InputError(f'no such training image{hint}')
    return several[0]

  text = splits.text_of(path)
  lines = splits.entries(text, every) if column is None else _rows(text, column)
  try:
    for line, entry in lines:
      try:
        name = find(entry)
        if name not in trained and name not in earlier:
          raise InputError('the model was not trained on it')
        found.append(name)
      except InputError as error:
        wrong.append(f'line {line}: {shown(ascii(entry), 80)}, {error}')
  except csv.Error as error:
    raise InputError(f'{path}: not a text file ({shown(error)})') from None
  if wrong:
    raise InputError(
      f'{path}: {len(wrong)} of {len(wrong) + len(found)} entries name no image'
      f' that can be forgotten: {"; ".join(wrong)}; allowed: an id such as'
      f' {known[0]!r}, a name or path of a file, or #0 to #{len(known) - 1}'
    )
  if not found:
    raise InputError(f'{path}: names no image; allowed: one or more')
  new = {*found} - earlier
  return Asked(
    [name for name in known if name in new],
    len(found) - len({*found}),
    len({*found} & earlier),
  )


def _paths(entry: str, dataset: str) -> Iterator[str]:
  """Ids that a path may mean: as it is, or under DIR/train."""
  yield os.path.normpath(entry)
  kind, _, folder = dataset.partition(':')
  root = os.path.abspath(os.path.expanduser(folder))
  for start in (os.getcwd(), root) if kind == 'folder' else ():
    whole = os.path.normpath(os.path.join(start, entry))
    yield os.path.relpath(whole, os.path.join(root, 'train'))


def _rows(text: str, column: str) -> Iterator[tuple[int, str]]:
  """(line, entry) of a column; lines are those on which a row ends."""
  head = text.partition('\n')[0]
  mark = max(',;\t', key=head.count)
  reader = csv.DictReader(io.StringIO(text, newline=''), delimiter=mark)
  names = [name.strip() for name in reader.fieldnames or ()]
  reader.fieldnames = names
  if column not in names:
    allowed = ', '.join(map(shown, names)) or 'none, the file is empty'
    raise FlagError('id_column', column, f'one of the columns {allowed}')
  for row in reader:
    yield reader.line_num, (row[column] or '').strip()
