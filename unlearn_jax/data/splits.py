"""Which training examples are to be forgotten: D into D_UL and D_RE.

An example has a *row*, its place in `dataset.train`, and an *id*, its text in
`dataset.ids`. Integers always mean rows. A text means the example with that
id, or a row as `#287`. (A bare 287 is an id and nothing else: where photos are
named by numbers, to read it as a row would silently forget another one.)
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from unlearn_jax import base

# A row as text; int() refuses thousands of digits.
ROW = re.compile('#[0-9]{1,18}')


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
    ids: the examples to forget: ids (str), rows (integers, or text such as
      `#287`), or a boolean mask of all.

  Returns:
    The splits; `indices` of `forget` and `retain` are sorted int32; with `ids`
    `unseen` is `class_matched`.

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
    told = f'fraction: {fraction} of {total} training examples is {len(rows)}'
  elif ids is not None and fraction is None:
    rows = _rows_of(ids, dataset)
    told = f'ids: {len(rows)} of {total} training examples'
  else:
    raise ValueError('split_forget: give either fraction or ids')
  if not 0 < len(rows) < total:
    raise base.InputError(f'{told}; allowed is a forget set of 1..{total - 1}')
  splits = base.Splits.of(dataset.train, np.sort(rows), dataset.test)
  if ids is None:
    return splits
  return splits._replace(unseen=class_matched(splits.forget, splits.test))


def class_matched(
  examples: base.Examples, others: base.Examples
) -> base.Examples:
  """Those of `others` whose classes are as frequent as in `examples`.

  Membership inference compares like with like: a model may know one class
  better than the next, whoever was trained on. As many as there are: floor(s
  · n_c) of class c, which `examples` has n_c times, for the largest s that
  every class allows; by the same lot for the same arguments.

  Args:
    examples: M of them.
    others: to be drawn from, without replacement.

  Returns:
    Some of `others`, in their order; none where a class has none there.

  Example:
    >>> every = base.Examples.of(np.zeros((5, 1)), np.array([0, 1, 0, 1, 1]))
    >>> class_matched(every.take([0, 1]), every.take([2, 3, 4])).size
    2
  """
  classes, counts = np.unique(examples.own_labels, return_counts=True)
  lot, labels = np.random.default_rng(0), others.own_labels
  found = [lot.permutation(np.flatnonzero(labels == c)) for c in classes]
  share = min(len(rows) / n for rows, n in zip(found, counts))
  # Of a product that should be whole, rounding must not cost one.
  drawn = [r[: int(share * n + 1e-9)] for r, n in zip(found, counts)]
  return others.take(np.sort(np.concatenate(drawn)))


_KINDS = 'random(SHARE), class(NAME[, SHARE]), mislabelled(SHARE), ids(FILE)'


def forget_set(
  key: base.Key,
  dataset: base.Dataset,
  text: str,
  heldout: base.Examples | None = None,
) -> base.Splits:
  """The splits that a text asks for.

  | text | what is forgotten |
  |---|---|
  | random(0.1) | this share of D |
  | class(dog), class(dog, 0.5) | a class, or this share of it |
  | mislabelled(0.05) | this share of D, which gets wrong labels before the
    source is trained; Retrain never sees them |
  | ids(FILE) | what the lines of a file name, see `read_ids` |

  Args:
    key: typed PRNG key, consumed; shares are drawn by it, and wrong labels,
      uniformly among the other classes.
    dataset: N training examples.
    text: one of the table.
    heldout: what `data.set_aside` took out of the data set, if anything.

  Returns:
    The splits; for `mislabelled` with the `truth`.

  Raises:
    InputError: another text, an unknown class, a share that is none, a forget
      set of nothing or of all; or as `read_ids`.

  Example:
    >>> from unlearn_jax import data
    >>> digits = data.load('digits')
    >>> forget_set(jax.random.key(0), digits, 'class(7, 0.5)').forget.size
    70
  """
  found = re.fullmatch(r'(random|class|mislabelled|ids)\((.+)\)', text, re.S)
  if not found:
    raise base.InputError(f'{base.shown(text)}, allowed: {_KINDS}')
  kind, inner = found.groups()
  if kind == 'ids':
    splits = split_forget(None, dataset, ids=read_ids(inner, dataset))
  elif kind == 'class':
    splits = split_forget(None, dataset, ids=_of_class(key, dataset, inner))
  else:
    splits = split_forget(key, dataset, _share(inner))
  splits = splits._replace(heldout=heldout)
  if kind != 'mislabelled':
    return splits
  truth, count = splits.forget.own_labels, len(dataset.class_names)
  lot = jax.random.fold_in(key, 1)
  shift = jax.random.randint(lot, truth.shape, 1, count)
  return relabelled(splits, (truth + np.asarray(shift)) % count)


def relabelled(splits: base.Splits, labels: Any) -> base.Splits:
  """D in which D_UL has these labels; `truth` keeps those that it had.

  `unseen` and `heldout` are mislabelled likewise: an image of class c has the
  label of an example of D_UL that is of class c in truth, by the same lot for
  the same arguments.

  Example:
    >>> whole = base.Examples.of(np.zeros((3, 1)), np.array([0, 1, 1]))
    >>> splits = relabelled(base.Splits.of(whole, [1], whole.take([0])), [5])
    >>> splits.train.own_labels.tolist(), splits.truth.tolist()
    ([0, 5, 1], [1])
  """
  every = np.array(splits.train.labels)
  every[np.asarray(splits.forget.indices)] = labels
  parts = splits.train, splits.forget, splits.retain
  train, forget, retain = (part._replace(labels=every) for part in parts)
  truth, given = splits.forget.own_labels, forget.own_labels
  unseen, heldout = _alike(splits.test, truth, given), splits.heldout
  if heldout is not None:
    heldout = _alike(heldout, truth, given)
  return base.Splits(
    *(train, forget, retain, splits.test, heldout, truth, unseen)
  )


def _alike(
  part: base.Examples, truth: np.ndarray, given: np.ndarray
) -> base.Examples:
  """Those of the classes of `truth`, with labels that were given to these."""
  lot, own = np.random.default_rng(0), part.own_labels
  rows = np.flatnonzero(np.isin(own, truth))
  wrong = np.array(part.labels)
  places = np.asarray(part.indices)[rows]
  wrong[places] = [lot.choice(given[truth == label]) for label in own[rows]]
  return part.take(rows)._replace(labels=wrong)


def _of_class(key: base.Key, dataset: base.Dataset, text: str) -> np.ndarray:
  """Sorted rows of a class, or of a share of it that is drawn."""
  name, share = text.strip(), 1.0
  if name not in dataset.class_names and ',' in name:
    name, _, tail = (part.strip() for part in text.rpartition(','))
    share = _share(tail)
  if name not in dataset.class_names:
    few = ', '.join(map(base.shown, dataset.class_names[:20]))
    few += ', …' if len(dataset.class_names) > 20 else ''
    raise base.InputError(
      f'{base.shown(name)} is no class, allowed: one of {few}'
    )
  label = dataset.class_names.index(name)
  rows = np.flatnonzero(dataset.train.own_labels == label)
  drawn = jax.random.permutation(key, rows)[: round(share * len(rows))]
  return np.sort(np.asarray(drawn))


def _share(text: str) -> float:
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if not 0 < share < 1:
    raise base.InputError(
      f'{base.shown(text)} is no share, allowed: between 0 and 1'
    )
  return share


def read_ids(path: str | os.PathLike[str], dataset: base.Dataset) -> np.ndarray:
  r"""The rows that a text file names, one id or `#row` a line.

  Blank lines are skipped, and so is everything from a `#` that begins a line
  or follows a space, but for a line that is a row, such as `#287`.

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
    ...   _ = file.write('# two of them\n#17\ndigits_0003\n')
    >>> read_ids(file.name, data.load('digits')).tolist()
    [3, 17]
  """
  find = _Finder(dataset)
  rows = find.rows(
    entries(text_of(path), find.row_of),
    lambda line: f'{path}:{line}',
    'line {}'.format,
  )
  if not rows:
    raise base.InputError(
      f'{path}: names no example; allowed is one a line: {find.allowed}'
    )
  return np.array(sorted(rows), np.int32)


def text_of(path: str | os.PathLike[str]) -> str:
  """The text of a file; raises an `InputError` where it is none."""
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
  return text


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
  every, retained = (
    np.bincount(part.own_labels, minlength=num_classes)
    for part in (splits.train, splits.retain)
  )
  return np.flatnonzero((every > 0) & (retained == 0)).tolist()


def copies(splits: base.Splits) -> tuple[int, int]:
  """How many retained and test images equal one that is to be forgotten.

  Byte by byte: what such a copy says of it, no unlearning of D_UL takes away.

  Example:
    >>> every = base.Examples.of(np.array([[0], [1], [0]]), np.zeros(3, int))
    >>> copies(base.Splits.of(every, [0], every))
    (1, 2)
  """

  def digests(part: base.Examples) -> list[bytes]:
    images = np.asarray(part.images)
    return [images[row].tobytes() for row in np.asarray(part.indices)]

  lost = {*digests(splits.forget)}
  found = (digests(part) for part in (splits.retain, splits.test))
  retain, test = (sum(image in lost for image in part) for part in found)
  return retain, test


class _Finder:
  """The rows that entries mean."""

  def __init__(self, dataset: base.Dataset):
    ids = dataset.ids.tolist()
    self.total, self.row_of = len(ids), {name: i for i, name in enumerate(ids)}
    # Ids that merely count the rows need no explanation.
    counting = ids == [str(row) for row in range(len(ids))]
    self.allowed = f'0..{self.total - 1}'
    if not counting:
      self.allowed = f'an id such as {_shown(ids[0])} or #0..#{self.total - 1}'

  def rows(
    self,
    entries: Iterable[tuple[int, Any]],
    place: Callable[[int], str],
    named: Callable[[int], str],
  ) -> list[int]:
    """Of numbered entries, in their order, each of them once."""
    number_of: dict[int, int] = {}
    for number, entry in entries:
      row: Any = self.row_of.get(entry) if isinstance(entry, str) else entry
      if row is None and ROW.fullmatch(entry):
        row = int(entry[1:])
      whole, wrong = isinstance(row, int | np.integer), ''
      if not whole or isinstance(row, bool) or not 0 <= row < self.total:
        wrong = f'is no training example; allowed is {self.allowed}'
      elif row in number_of:
        wrong = f'repeats {named(number_of[row])}; allowed is each example once'
      if wrong:
        raise base.InputError(f'{place(number)}: {_shown(entry)} {wrong}')
      number_of[int(row)] = number
    return list(number_of)


def entries(text: str, known: Container[str]) -> Iterator[tuple[int, str]]:
  """(line number from 1, entry) of each line that is no comment."""
  for number, line in enumerate(text.split('\n'), start=1):
    line = line.removesuffix('\r')
    # An id may have spaces and a '#' in it: files are named by people.
    if line not in known:
      line = line.strip()
    if line not in known and not ROW.fullmatch(line):
      line = re.split(r'(?:^|\s)#', line, maxsplit=1)[0].strip()
    if line:
      yield number, line


def _drawn(key: base.Key | None, total: int, fraction: float) -> np.ndarray:
  """round(fraction · total) rows, drawn uniformly without replacement."""
  if key is None:
    raise ValueError('key=None, allowed: a typed PRNG key, jax.random.key(0)')
  count = round(fraction * total) if 0 < fraction < 1 else 0
  return np.asarray(jax.random.permutation(key, total)[:count])


def _rows_of(
  ids: Sequence[str] | Sequence[int] | np.ndarray, dataset: base.Dataset
) -> np.ndarray:
  """Rows of ids given in a program, in their order."""
  find = _Finder(dataset)
  found = np.asarray(ids)
  if found.dtype == bool and found.shape == (find.total,):
    return np.flatnonzero(found)
  entries = ids.tolist() if isinstance(ids, np.ndarray) else ids
  place = 'ids[{}]'.format
  return np.array(find.rows(enumerate(entries), place, place), np.int64)


def _shown(entry: object) -> str:
  return base.shown(ascii(entry), 60)
