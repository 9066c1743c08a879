"""Which training examples are to be forgotten: D into D_UL and D_RE.

An example has a *row*, its place in `dataset.train`, and an *id*, its text in
`dataset.ids`. Integers always mean rows. A text means the example with that
id; where no id of the data set is itself a number, a text may also be a row in
decimal. (Where ids are numbers, as in a subset of data that came without ids,
reading a number as a row would silently forget another example.)
"""

from collections.abc import Iterator, Sequence
import os
import pathlib
import re
from typing import TypeGuard

import jax
import numpy as np

from unlearn_jax import base

# Digits that no row number needs; int() refuses thousands of them.
_MAX_DIGITS = 18


def split_forget(
  key: base.Key | None,
  dataset: base.Dataset,
  fraction: float | None = None,
  *,
  ids: Sequence[str] | Sequence[int] | np.ndarray | None = None,
) -> base.Splits:
  """Splits the training part into what to forget and what to retain.

  Exactly one of `fraction` and `ids` is given.

  Args:
    key: typed PRNG key, consumed; draws round(fraction · N) examples
      uniformly without replacement. Not used with `ids`, may be None then.
    dataset: N training examples.
    fraction: of D to forget, in (0, 1).
    ids: the examples to forget: ids (str), or rows (integers, or decimal
      text where the ids of `dataset` are not numbers themselves).

  Returns:
    The splits; `indices` of `forget` and `retain` are sorted int32.

  Raises:
    ValueError: the fraction is outside (0, 1), no example or every example
      would be forgotten, or an id is unknown, out of range or repeated (an
      `InputError`); or `fraction` and `ids` are both given or both missing.

  Example:
    >>> from unlearn_jax import data
    >>> digits = data.load('digits')
    >>> splits = split_forget(jax.random.key(0), digits, 0.1)
    >>> splits.forget.size, splits.retain.size
    (144, 1293)
  """
  total = dataset.train.size
  if ids is None and fraction is not None:
    rows = _drawn(key, total, fraction)
  elif ids is not None and fraction is None:
    rows = _rows_of(ids, dataset)
  else:
    raise ValueError('split_forget: give either fraction or ids')
  if not 0 < len(rows) < total:
    raise base.InputError(
      f'ids: {len(rows)} of {total} training examples; allowed is a forget set'
      f' of 1..{total - 1}'
    )
  forget = np.zeros(total, bool)
  forget[rows] = True
  train = dataset.train
  return base.Splits(
    train=train,
    forget=train.take(np.flatnonzero(forget).astype(np.int32)),
    retain=train.take(np.flatnonzero(~forget).astype(np.int32)),
    test=dataset.test,
  )


def read_ids(path: str | os.PathLike[str], dataset: base.Dataset) -> np.ndarray:
  r"""The rows that a text file names, one id or row number a line.

  Blank lines are skipped, and so is everything from a `#` that begins a line
  or follows a space. A number means what the module's docstring says.

  Args:
    path: UTF-8 text.
    dataset: its N training examples and their ids.

  Returns:
    int32 `[M]`, sorted, without repeats; for `split_forget(..., ids=rows)`.

  Raises:
    InputError: the file cannot be read, is no text or names no example; or a
      line is out of range, no id, or repeats an earlier line.

  Example:
    >>> import tempfile
    >>> from unlearn_jax import data
    >>> with tempfile.NamedTemporaryFile('w', delete=False) as file:
    ...   _ = file.write('# two of them\n17\n3\n')
    >>> read_ids(file.name, data.load('digits')).tolist()
    [3, 17]
  """
  path = pathlib.Path(path)
  base.require_file(path)
  try:
    text = path.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise base.InputError(
      f'{path}: not a text file (byte {error.start} is not UTF-8)'
    ) from None
  except OSError as error:
    raise base.InputError(
      f'{path}: cannot be read: {error.strerror or error}'
    ) from None
  if '\0' in text:
    raise base.InputError(f'{path}: not a text file (it holds a NUL byte)')

  find = _Finder(dataset)
  lines_of: dict[int, int] = {}
  for number, entry in _entries(text, find):
    try:
      row = find(entry)
    except base.InputError as error:
      raise base.InputError(f'{path}:{number}: {error}') from None
    if row in lines_of:
      raise base.InputError(
        f'{path}:{number}: {_shown(entry)} repeats line {lines_of[row]};'
        ' allowed is each example once'
      )
    lines_of[row] = number
  if not lines_of:
    raise base.InputError(
      f'{path}: names no example; allowed is one a line: {find.allowed}'
    )
  return np.array(sorted(lines_of), np.int32)


def classes_lost(splits: base.Splits, num_classes: int) -> list[int]:
  """The classes of which no example is retained though D has some.

  Args:
    splits: of a data set with labels in `[0, num_classes)`.
    num_classes: C.

  Returns:
    Class numbers, ascending.

  Example:
    >>> whole = base.Examples.of(np.zeros((3, 1)), np.array([0, 1, 1]))
    >>> part = base.Splits(whole, whole.take([0]), whole.take([1, 2]), whole)
    >>> classes_lost(part, 2)
    [0]
  """

  def counts(examples: base.Examples) -> np.ndarray:
    labels = np.asarray(examples.labels)[np.asarray(examples.indices)]
    return np.bincount(labels, minlength=num_classes)

  lost = (counts(splits.train) > 0) & (counts(splits.retain) == 0)
  return np.flatnonzero(lost).tolist()


class _Finder:
  """The row that a text means."""

  def __init__(self, dataset: base.Dataset):
    ids = dataset.ids.tolist()
    self.total = len(ids)
    self.row_of = {name: row for row, name in enumerate(ids)}
    self.numeric = any(_is_number(name) for name in ids)
    # Ids that merely count the rows need no explanation.
    counting = ids == [str(row) for row in range(len(ids))]
    sample = _shown(ids[0])
    if counting:
      self.allowed = f'0..{self.total - 1}'
    elif self.numeric:
      self.allowed = f"the data set's {self.total} ids, such as {sample}"
    else:
      self.allowed = f'0..{self.total - 1} or an id such as {sample}'

  def __call__(self, text: str) -> int:
    if text in self.row_of:
      return self.row_of[text]
    if not _is_number(text):
      raise base.InputError(
        f'{_shown(text)} is neither a number nor a known id; allowed is'
        f' {self.allowed}'
      )
    number = text.lstrip('-').lstrip('0') or '0'
    if text.startswith('-') and number != '0':
      number = '-' + number
    if self.numeric:
      # '007' is 7, unless an id is spelt '007'.
      if number in self.row_of:
        return self.row_of[number]
    elif len(number) <= _MAX_DIGITS and 0 <= int(number) < self.total:
      return int(number)
    raise base.InputError(
      f'{_shown(text)} is out of range; allowed is {self.allowed}'
    )


def _entries(text: str, find: _Finder) -> Iterator[tuple[int, str]]:
  """(line number from 1, entry) of each line that names an example."""
  for number, line in enumerate(text.split('\n'), start=1):
    line = line.removesuffix('\r')
    # An id may have spaces and a '#' in it: files are named by people.
    if line not in find.row_of:
      line = line.strip()
    if line not in find.row_of:
      line = re.split(r'(?:^|\s)#', line, maxsplit=1)[0].strip()
    if line:
      yield number, line


def _drawn(key: base.Key | None, total: int, fraction: float) -> np.ndarray:
  """round(fraction · total) rows, drawn uniformly without replacement."""
  if not 0 < fraction < 1:
    raise base.InputError(
      f'fraction: {fraction}; allowed is a number between 0 and 1, exclusive'
    )
  count = round(fraction * total)
  if not 0 < count < total:
    raise base.InputError(
      f'fraction: {fraction} of {total} training examples is {count};'
      f' allowed is a forget set of 1..{total - 1}'
    )
  if not _is_typed_key(key):
    raise ValueError('key: allowed is a typed PRNG key, as jax.random.key(0)')
  return np.asarray(jax.random.permutation(key, total)[:count])


def _rows_of(
  ids: Sequence[str] | Sequence[int] | np.ndarray, dataset: base.Dataset
) -> np.ndarray:
  """Rows of ids given in a program, in their order."""
  total = dataset.train.size
  find = _Finder(dataset)
  place_of: dict[int, int] = {}
  entries = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
  for place, entry in enumerate(entries):
    if isinstance(entry, str):
      try:
        row = find(entry)
      except base.InputError as error:
        raise base.InputError(f'ids[{place}]: {error}') from None
    else:
      try:
        row = entry.__index__()
      except (AttributeError, TypeError):
        raise ValueError(
          f'ids[{place}]: {_shown(entry)}; allowed are str and int'
        ) from None
      if not 0 <= row < total:
        raise base.InputError(
          f'ids[{place}]: {row} is out of range; allowed is 0..{total - 1}'
        )
    if row in place_of:
      raise base.InputError(
        f'ids[{place}]: {_shown(entry)} repeats ids[{place_of[row]}]; allowed'
        ' is each example once'
      )
    place_of[row] = place
  return np.array(list(place_of), np.int64)


def _is_typed_key(key: object) -> TypeGuard[jax.Array]:
  return isinstance(key, jax.Array) and jax.dtypes.issubdtype(
    key.dtype, jax.dtypes.prng_key
  )


def _is_number(text: str) -> bool:
  return re.fullmatch(r'-?[0-9]+', text) is not None


def _shown(value: object) -> str:
  """`value` on one line of bounded length, whatever is in it."""
  text = ascii(value)
  return text if len(text) <= 60 else f'{text[:40]}... ({len(text)} characters)'
