"""Data sets in host memory, their splits, and pixels on the device.

`load` reads any of the kinds that it lists into a `base.Dataset`;
`split_forget` says which of its training examples are to be forgotten.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import hashlib
import math
import os
import pathlib

import numpy as np

from unlearn_jax import base
from unlearn_jax.data.images import augment, pixel_statistics
from unlearn_jax.data.splits import (
  class_matched,
  classes_lost,
  copies,
  forget_set,
  read_ids,
  relabelled,
  split_forget,
)

__all__ = [
  'NAMES',
  'augment',
  'class_matched',
  'classes_lost',
  'copies',
  'forget_set',
  'fingerprint',
  'litter',
  'load',
  'pixel_statistics',
  'read_ids',
  'relabelled',
  'set_aside',
  'split_forget',
  'subset',
]

# Read or prepared with nothing else installed. `load` takes more than these.
NAMES = ('digits', 'cifar10', 'cifar100', 'fashion_mnist', 'mnist')

# Bytes that are hashed at a time, about.
_PIECE = 2**24


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  raw_dir: str | os.PathLike[str] | None = None,
  map_beyond: float = math.inf,
  test_fraction: float | None = None,
  image_size: tuple[int, int] | None = None,
) -> base.Dataset:
  """Reads a data set for image classification.

  | name | what is read |
  |---|---|
  | `digits` | scikit-learn's 8x8 digits, 1,437 for training, 360 for test |
  | `npz:FILE` | arrays x_train, y_train, x_test, y_test, or MedMNIST's |
  | `folder:DIR` | DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE |
  | `cifar10`, `cifar100`, `mnist`, `fashion_mnist` | what TFDS prepared in \
`data_dir`; if nothing is, their archives, downloaded or from `raw_dir` |
  | `NAME[/CONFIG][:VERSION]` | any other data set that TFDS prepared there |

  Args:
    name: see the table.
    data_dir: TFDS's data directory; default $TFDS_DATA_DIR or
      ~/tensorflow_datasets. What was decoded is kept there.
    raw_dir: archives downloaded by hand, see `prepare.read`.
    map_beyond: a split whose images have more bytes than this stays in its
      file, as an `np.memmap`, where it lies there uncompressed: in an npz by
      `np.savez`, and in what was decoded of TFDS. `streaming.limit_bytes()`
      maps what is streamed. The file must not change as long as it is mapped.
    test_fraction: share to hold out of TFDS data that have no test split.
    image_size: (height, width) for `folder:` of images of any size, see
      `local.read_folder`.

  Returns:
    The data set: uint8 images `[N, height, width, channels]`, int32 labels.

  Raises:
    InputError: an unknown name, with the nearest known ones; or the data
      cannot be read, downloaded or used, with the reason.

  Example:
    >>> digits = load('digits')
    >>> digits.train.images.shape, digits.test.size
    ((1437, 8, 8, 1), 360)
  """
  # Each of these is needed by what it reads only.
  from unlearn_jax.data import local, prepare, prepared

  kind, colon, path = name.partition(':')
  if image_size is not None and not (colon and kind == 'folder'):
    raise base.InputError(f'{name}: image_size is for folder:DIR only')
  if name == 'digits':
    parts = local.read_digits()
  elif colon and kind in ('npz', 'folder'):
    if not path:
      raise base.InputError(f'{name}: allowed is {kind}:PATH')
    if kind == 'npz':
      parts = local.read_npz(_expanded(path), map_beyond)
    else:
      parts = local.read_folder(_expanded(path), image_size)
  else:
    root = _expanded(
      prepared.default_data_dir() if data_dir is None else data_dir
    )
    folder = prepared.find(name, root)
    if folder is not None:
      parts = prepared.read(folder, map_beyond)
    elif name in NAMES[1:]:
      raw = None if raw_dir is None else _expanded(raw_dir)
      parts = prepare.read(name, root, raw, map_beyond)
    else:
      raise base.InputError(_nothing_prepared(base.shown(name), root))
  if test_fraction is not None:
    parts = local.held_out(parts, test_fraction)
  elif not len(parts.x_test):
    raise base.InputError(f'{name}: has no test images, allowed: test_fraction')
  train = base.Examples.of(parts.x_train, parts.y_train)
  test = base.Examples.of(parts.x_test, parts.y_test)
  ids = parts.ids
  ids = np.arange(train.size).astype(str) if ids is None else ids
  told = fingerprint(train, test, ids)
  return base.Dataset(name, train, test, parts.class_names, ids, told)


def litter(name: str) -> int:
  """How much of `folder:DIR` is skipped as left there by a system.

  Example:
    >>> litter('digits')
    0
  """
  from unlearn_jax.data import local

  kind, _, path = name.partition(':')
  return local.litter(_expanded(path)) if kind == 'folder' else 0


def subset(dataset: base.Dataset, size: int, seed: int = 0) -> base.Dataset:
  """A data set with fewer training examples, drawn uniformly.

  Args:
    dataset: N training examples.
    size: how many to keep, in 1..N; their order and ids are kept too.
    seed: of the draw, >= 0.

  Returns:
    The smaller data set; its test part is that of `dataset`.

  Raises:
    InputError: `size` is outside 1..N.

  Example:
    >>> subset(load('digits'), 100).train.images.shape
    (100, 8, 8, 1)
  """
  total = dataset.train.size
  if not 1 <= size <= total:
    raise base.InputError(f'size: {size}; allowed is 1..{total}')
  # RandomState's streams, unlike Generator's, never change between versions.
  order = np.random.RandomState(seed).permutation(total)
  rows = np.sort(order[:size])
  part = dataset.train.take(rows)
  images = np.asarray(part.images)[part.indices]
  train = base.Examples.of(images, part.own_labels)
  ids = dataset.ids[rows]
  told = fingerprint(train, dataset.test, ids)
  return dataclasses.replace(dataset, train=train, ids=ids, fingerprint=told)


def set_aside(
  dataset: base.Dataset, share: float
) -> tuple[base.Dataset, base.Examples | None]:
  """Takes test images out of a data set, for methods that need more than D.

  By the same lot for the same arguments; of a larger share are those of a
  smaller one.

  Args:
    dataset: whose training examples stay as they are.
    share: of each class's test images, 0 to 0.9, rounded; but of two or more
      at least one is taken and one left.

  Returns:
    (the data set with the other test images, those taken); with 0 None taken.

  Raises:
    InputError: another share.

  Example:
    >>> rest, heldout = set_aside(load('digits'), 0.25)
    >>> rest.test.size, heldout.size
    (269, 91)
  """
  if not 0 <= share <= 0.9:
    raise base.InputError(f'heldout={share}, allowed: 0 to 0.9')
  if not share:
    return dataset, None
  # RandomState's streams, unlike Generator's, never change between versions.
  lot, labels = np.random.RandomState(0), dataset.test.own_labels
  taken = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    rows = lot.permutation(np.flatnonzero(labels == label))
    wanted = max(1, round(share * len(rows)))
    taken[rows[: min(wanted, len(rows) - 1)]] = True
  rest = dataclasses.replace(dataset, test=dataset.test.take(~taken))
  return rest, dataset.test.take(taken)


def fingerprint(
  train: base.Examples, test: base.Examples, ids: Sequence[str] | np.ndarray
) -> str:
  """Hex SHA-256 over shapes, dtypes and bytes of both splits, and the ids.

  Args:
    train: N training examples.
    test: test examples.
    ids: `[N]` (str).

  Returns:
    64 hexadecimal digits, the same on every machine.

  Example:
    >>> part = base.Examples.of(np.zeros((1, 2, 2, 1)), np.zeros(1, int))
    >>> fingerprint(part, part, ['a'])[:8] == fingerprint(part, part, ['b'])[:8]
    False
  """
  digest = hashlib.sha256()
  for part in (train, test):
    rows = np.asarray(part.indices)
    for array in (part.images, part.labels):
      dtype = np.dtype(array.dtype).newbyteorder('<')
      shape = (len(rows), *array.shape[1:])
      digest.update(f'{dtype.str}{shape}'.encode())
      # By the piece: the images may be more than the memory.
      each = math.prod(shape[1:]) * dtype.itemsize
      count = max(1, _PIECE // max(1, each))
      for start in range(0, len(rows), count):
        piece = np.asarray(array[rows[start : start + count]], dtype)
        digest.update(
          np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        )
  # Each id with its length, so that no two lists of ids look alike.
  for name in ids:
    encoded = str(name).encode('utf-8', 'surrogatepass')
    digest.update(b'%d:%b' % (len(encoded), encoded))
  return digest.hexdigest()


def _expanded(path: str | os.PathLike[str]) -> pathlib.Path:
  """The path without ~, and one that a file system can have."""
  try:
    if '://' in str(path):
      raise ValueError('a URL, allowed: a path of this machine')
    expanded = pathlib.Path(path).expanduser()
    os.lstat(expanded)
  except (FileNotFoundError, NotADirectoryError):
    pass
  except (RuntimeError, OSError, ValueError) as error:  # No such user, a NUL.
    reason = getattr(error, 'strerror', None) or error
    raise base.InputError(f'{base.shown(path)}: {reason}') from None
  return expanded


def _nothing_prepared(name: str, root: pathlib.Path) -> str:
  """One line on what to do about a name of which nothing is prepared."""
  from unlearn_jax.data import prepared

  known = prepared.library().list_builders(with_community_datasets=False)
  plain = name.partition(':')[0].partition('/')[0]
  folders = (root / plain).glob('[!.]*/') if plain.isidentifier() else ()
  if there := sorted(path.name for path in folders):
    return (
      f'{name}: not prepared in {root / plain}; allowed are the configurations'
      f' or versions there, {", ".join(there)}'
    )
  if plain in known:
    # `tfds build` would do it too but needs apache_beam.
    command = (
      f'import tensorflow_datasets as tfds;'
      f' tfds.data_source({name!r}, data_dir={str(root)!r})'
    )
    return (
      f'{name}: not prepared in {root}; preparing it needs TensorFlow once: pip'
      f' install tensorflow-cpu importlib_resources, then python -c "{command}"'
    )
  near = difflib.get_close_matches(plain.lower(), [*NAMES, *known], 3, 0.5)
  hint = f'did you mean {" or ".join(near)}? ' if near else ''
  return (
    f'{ascii(name)}: unknown data set; {hint}allowed are {", ".join(NAMES)},'
    ' npz:FILE, folder:DIR and the names of TensorFlow Datasets'
  )
