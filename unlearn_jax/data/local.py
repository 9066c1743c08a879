"""Data sets from what is at hand: scikit-learn's digits, an npz, a folder.

Each function returns `Parts`, which `unlearn_jax.data.load` makes a `Dataset`
of.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple
import warnings
import zipfile

import numpy as np

from unlearn_jax import base
from unlearn_jax.data import npz
from unlearn_jax.data.extras import optional

_DIGITS_TEST = 360
_FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP')
# What systems leave in folders, beside hidden files.
_LITTER = ('thumbs.db', 'ehthumbs.db', 'desktop.ini', '__macosx', '.ds_store')
_NPZ_ARRAYS = ('x_train', 'y_train', 'x_test', 'y_test')
_MEDMNIST = {'x': 'images', 'y': 'labels'}  # 'train_images' for 'x_train'.


class Parts(NamedTuple):
  """Images uint8 `[N, height, width, channels]`, labels int32 `[N]`."""

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray
  class_names: tuple[str, ...]
  # Of the training examples; None: their row numbers.
  ids: np.ndarray | None = None


def read_digits() -> Parts:
  """scikit-learn's 1,797 digits of 8x8 pixels, 1,437 of them for training.

  The split is one fixed permutation of scikit-learn's order (whose end is by
  other writers than its beginning), each part sorted again. The id of row 42
  of that order is `digits_0042`.

  Returns:
    The parts of the data set; pixels 0..16 become 0..255.
  """
  datasets = optional('sklearn.datasets', 'digits')  # Takes seconds.
  digits = datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  names = tuple(str(name) for name in digits.target_names)
  ids = np.array([f'digits_{row:04d}' for row in range(len(labels))])
  whole = Parts(images, labels, images[:0], labels[:0], names, ids)
  return held_out(whole, _DIGITS_TEST / len(labels))


def held_out(parts: Parts, fraction: float) -> Parts:
  """The parts with a share of the training images, by lot, as the test set."""
  images, labels, test, _, names, ids = parts
  count, size = round(fraction * len(labels)), len(labels)
  if len(test) or not 0 < count < size:
    raise base.InputError(
      f'test_fraction={fraction}, allowed: nothing where there are test images'
      f' (here {len(test)}), else some of the {size} images, and not all'
    )
  # RandomState's streams, unlike Generator's, never change between versions.
  order = np.random.RandomState(0).permutation(size)
  own, rest = np.sort(order[:count]), np.sort(order[count:])
  ids = np.arange(size).astype(str) if ids is None else ids
  return Parts(
    *(images[rest], labels[rest], images[own], labels[own], names, ids[rest])
  )


def read_npz(
  file: str | os.PathLike[str], map_beyond: float = math.inf
) -> Parts:
  """An npz of four arrays: x_train, y_train, x_test, y_test.

  MedMNIST's names are taken too, train_images and so on; its val_ is not used.

  Args:
    file: images are uint8 `[N, height, width]` or `[N, height, width,
      channels]`, labels integers `[N]` or `[N, 1]`, 0 or more. The classes are
      the labels of y_train, in order, named by them.
    map_beyond: see `npz.read`; for the images.

  Returns:
    The parts of the data set.

  Raises:
    InputError: the file is missing or no npz, or an array is missing, of the
      wrong type or shape, or does not fit the others.
  """
  arrays = _npz_arrays(file, map_beyond)
  parts = {}
  for name in ('x_train', 'x_test'):
    images = arrays[name]
    if images.dtype != np.uint8:
      raise base.InputError(
        f'{file}: {name} is {images.dtype}; allowed is uint8, pixels 0..255'
      )
    if images.ndim not in (3, 4) or 0 in images.shape:
      raise base.InputError(
        f'{file}: {name} has shape {images.shape}; allowed is [N, height,'
        ' width] or [N, height, width, channels], none of them 0'
      )
    parts[name] = images[..., None] if images.ndim == 3 else images
    shape = parts[name].shape
    if shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
      raise base.InputError(
        f'{file}: {name} has shape {shape}, which looks like [N, channels,'
        ' height, width]; allowed is channels last'
      )
  size, test_size = parts['x_train'].shape[1:], parts['x_test'].shape[1:]
  if size != test_size:
    raise base.InputError(
      f'{file}: x_test has images of {_size(test_size)}; allowed is that of'
      f' x_train, {_size(size)}'
    )
  for x, y in (('x_train', 'y_train'), ('x_test', 'y_test')):
    try:
      parts[y] = base.Examples.of(parts[x], arrays[y]).own_labels
    except ValueError as error:
      raise base.InputError(f'{file}: {y}: {error}') from None
  known = np.unique(parts['y_train']).tolist()
  unseen = np.setdiff1d(parts['y_test'], known).tolist()
  if unseen:
    raise base.InputError(
      f'{file}: y_test has the label {unseen[0]}; allowed are those of y_train'
    )
  # Classes are the labels that there are, whatever lies between them.
  for y in ('y_train', 'y_test'):
    parts[y] = np.searchsorted(known, parts[y]).astype(np.int32)
  return Parts(**parts, class_names=tuple(map(str, known)))


def read_folder(
  folder: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> Parts:
  """Image files in train/CLASS/ and test/CLASS/.

  PNG, JPEG, BMP, GIF, PPM, TIFF or WebP, all of one size, one frame and 8 bits
  a channel, turned as EXIF says; transparency is dropped. All are grayscale or,
  if one is not, all become RGB. The classes are the folders in train/, sorted
  by name. Hidden files, and what `litter` counts, are skipped. The id of an
  example is its path relative to train/.

  Args:
    folder: holds `train` and `test`.
    size: (height, width) that images of any size are brought to: resized
      (bicubic) until the shorter side fits, and cropped at the centre.

  Returns:
    The parts of the data set.

  Raises:
    InputError: a folder is missing or empty, a class is in test/ only, or a
      file cannot be read or has another size than the first.
  """
  root = pathlib.Path(folder)
  files = {split: _class_files(root / split) for split in ('train', 'test')}
  names = tuple(files['train'])
  for name, members in files['train'].items():
    if not members:
      raise base.InputError(
        f'{root / "train" / name}: holds no image; allowed is one or more in'
        ' each class'
      )
  for name in files['test']:
    if name not in files['train']:
      raise base.InputError(
        f'{root / "test" / name}: a class without training images; allowed are'
        f' the folders of {root / "train"}'
      )
  images: list[np.ndarray] = []
  found = [
    (label, file)
    for classes in files.values()
    for label, name in enumerate(names)
    for file in classes.get(name, ())
  ]
  for _, file in found:
    images.append(_read_image(file, size))
    first, shape = images[0].shape[:2], images[-1].shape[:2]
    if shape != first:
      raise base.InputError(
        f'{file}: is {_size(shape)} (height x width); allowed is'
        f' {_size(first)} like {found[0][1]}, or --image_size=H,W for all'
      )
  cut = sum(map(len, files['train'].values()))
  if cut == len(found):
    raise base.InputError(
      f'{root / "test"}: holds no image; allowed is test/CLASS/IMAGE'
    )
  channels = max(image.shape[2] for image in images)
  x = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
  for place, image in enumerate(images):
    x[place] = image  # Gray is broadcast over the channels.
  y = np.array([label for label, _ in found], np.int32)
  ids = [f.relative_to(root / 'train').as_posix() for _, f in found[:cut]]
  return Parts(x[:cut], y[:cut], x[cut:], y[cut:], names, np.array(ids))


def _npz_arrays(
  file: str | os.PathLike[str], map_beyond: float
) -> dict[str, np.ndarray]:
  """The four arrays as they are in the file."""
  base.require_file(file)
  arrays, name, allowed = {}, 'the file', ', '.join(_NPZ_ARRAYS)
  try:
    with zipfile.ZipFile(file) as archive:
      found = sorted(path.removesuffix('.npy') for path in archive.namelist())
      for name in _NPZ_ARRAYS:
        other = f'{name[2:]}_{_MEDMNIST[name[0]]}'
        own = name if name in found else other
        if own not in found:
          raise ValueError(f'missing; found: {", ".join(found) or "nothing"}')
        # Labels are read to be verified, and are small.
        beyond = map_beyond if name.startswith('x_') else math.inf
        arrays[name] = npz.read(archive, own, beyond)
  except Exception as error:  # Broken files raise a dozen types.
    raise base.InputError(
      f'{file}: {name} cannot be read ({reason(error)}); allowed is an npz of'
      f' the plain arrays {allowed}'
    ) from None
  return arrays


def _class_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The files of each class in a folder of class folders, sorted by name."""
  classes = {}
  for entry in _visible(folder):
    if not entry.is_dir():
      raise base.InputError(
        f'{entry}: not a folder; allowed is {folder.name}/CLASS/IMAGE'
      )
    classes[entry.name] = _visible(entry)
  if not classes:
    raise base.InputError(
      f'{folder}: holds no class; allowed is {folder.name}/CLASS/IMAGE'
    )
  return classes


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
  """What is in a folder, without hidden files, sorted by name."""
  try:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
  except (FileNotFoundError, NotADirectoryError):
    raise base.InputError(
      f'{folder}: no such folder; allowed is a folder of train/CLASS/IMAGE and'
      ' test/CLASS/IMAGE'
    ) from None
  except OSError as error:
    raise base.InputError(
      f'{base.shown(folder)}: cannot be read: {error.strerror}'
    ) from None
  found = [
    entry
    for entry in entries
    if not entry.name.startswith('.') and entry.name.lower() not in _LITTER
  ]
  for entry in found:
    # Names become ids, which stand one a line in text files.
    text = entry.name.encode(errors='ignore').decode()
    if text.splitlines() != [entry.name]:
      raise base.InputError(
        f'{folder}: the name {base.shown(entry.name)}; allowed are names in'
        ' UTF-8 without line breaks'
      )
  return found


def litter(folder: str | os.PathLike[str]) -> int:
  """How many entries of a folder are skipped as left there by a system."""
  inside = pathlib.Path(folder).rglob('*')
  return sum(entry.name.lower() in _LITTER for entry in inside)


def _read_image(file: pathlib.Path, size: tuple[int, int] | None) -> np.ndarray:
  """uint8 `[height, width, channels]`, 1 channel for gray or 3 for RGB."""
  pillow = optional('PIL.Image', 'images of files')
  ops = optional('PIL.ImageOps', 'images of files')
  base.require_file(file)
  try:
    # Others, such as EPS, have Pillow start programs.
    with (
      warnings.catch_warnings(),
      pillow.open(file, formats=_FORMATS) as opened,
    ):
      image: Any = opened
      # Millions of pixels, declared in a few bytes.
      warnings.simplefilter('error', pillow.DecompressionBombWarning)
      mode = image.mode
      if getattr(image, 'n_frames', 1) > 1:
        raise ValueError(f'{image.n_frames} frames, allowed is one')
      if ';16' in str(image.tile):
        mode = 'I;16'
      else:
        image = ops.exif_transpose(image)
      if not mode.startswith(('I', 'F')):
        gray = mode in ('1', 'L', 'LA', 'La')
        image = image.convert('L' if gray else 'RGB')
        if size is not None:
          image = ops.fit(image, size[::-1])
        pixels = np.asarray(image)
        return pixels[..., None] if gray else pixels
  except Exception as error:  # Broken files raise a dozen types.
    raise base.InputError(
      f'{file}: cannot be read as an image ({reason(error)})'
    ) from None
  raise base.InputError(
    f'{file}: has pixels of mode {mode}; allowed are 8 bits a channel'
  )


def _size(shape: tuple[int, ...]) -> str:
  return 'x'.join(str(number) for number in shape)


def reason(error: BaseException) -> str:
  """The type and first line of an error, of bounded length."""
  first = next(iter(str(error).strip().splitlines()), '')
  return f'{type(error).__name__}: {base.shown(first, 120)}'.rstrip(': ')
