"""Prepares CIFAR and (Fashion-)MNIST for TFDS, without TensorFlow.

What stands in the prepared directory afterwards is what TFDS itself would
write: same name, version, features, ids and order, as ArrayRecord files, so
that `tfds.data_source(name, data_dir=..., download=False)` reads it too.
"""

from collections.abc import Callable, Iterator
import dataclasses
import gzip
import hashlib
import http.client
import io
import os
import pathlib
import tarfile
import tempfile
from typing import Any
import urllib.error
import urllib.request

import numpy as np

from unlearn_jax import base

# Seconds without an answer after which a download has failed.
TIMEOUT = 30

_CHUNK = 1 << 20
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801


@dataclasses.dataclass(frozen=True)
class Cifar:
  """What is in a CIFAR archive.

  Attributes:
    archive: file name of the tar.gz.
    folder: the directory in it.
    files: of each split, (file name, number of examples).
    labels: of each label byte before the pixels, (feature name, file of the
      class names, number of classes).
  """

  archive: str
  folder: str
  files: dict[str, tuple[tuple[str, int], ...]]
  labels: tuple[tuple[str, str, int], ...]
  side: int = 32

  @property
  def needed(self) -> tuple[str, ...]:
    """The files to download."""
    return (self.archive,)


@dataclasses.dataclass(frozen=True)
class Idx:
  """What is in MNIST's four files.

  Attributes:
    files: of each split, the prefix of its two files, and its size.
    classes: the number of classes.
    side: pixels along an image's edge.
  """

  files: dict[str, tuple[str, int]]
  classes: int = 10
  side: int = 28

  @property
  def needed(self) -> tuple[str, ...]:
    """The files to download."""
    return tuple(
      f'{prefix}-{kind}-ubyte.gz'
      for prefix, _ in self.files.values()
      for kind in ('images-idx3', 'labels-idx1')
    )


_MNIST = Idx({'train': ('train', 60000), 'test': ('t10k', 10000)})
STOCK: dict[str, Cifar | Idx] = {
  'cifar10': Cifar(
    'cifar-10-binary.tar.gz',
    'cifar-10-batches-bin',
    {
      'train': tuple((f'data_batch_{n}.bin', 10000) for n in range(1, 6)),
      'test': (('test_batch.bin', 10000),),
    },
    (('label', 'batches.meta.txt', 10),),
  ),
  'cifar100': Cifar(
    'cifar-100-binary.tar.gz',
    'cifar-100-binary',
    {'train': (('train.bin', 50000),), 'test': (('test.bin', 10000),)},
    (
      ('coarse_label', 'coarse_label_names.txt', 20),
      ('label', 'fine_label_names.txt', 100),
    ),
  ),
  'fashion_mnist': _MNIST,
  'mnist': _MNIST,
}
NAMES = tuple(STOCK)

# A file of the data set by name -> its content, at most so many bytes of it.
_Reader = Callable[[str, int], bytes]


def prepare(
  name: str,
  data_dir: str | os.PathLike[str],
  *,
  source_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Writes DATA_DIR/NAME/VERSION as TFDS would, from the stock archives.

  They are downloaded from where TFDS gets them and checked against the sizes
  and SHA-256 sums that TFDS registers. Files in `source_dir` are checked for
  structure, sizes and label values instead, since distributions compress them
  anew. Either the directory is complete afterwards or it is not there.

  Args:
    name: one of `NAMES`.
    data_dir: TFDS's data directory; made if need be.
    source_dir: where files that were downloaded by hand lie: CIFAR's tar.gz
      or what is in it, MNIST's four idx files with or without .gz.

  Returns:
    The prepared directory; if it was there before, it is left as it is.

  Raises:
    InputError: an unknown name, a failed download, files that are missing or
      not what they should be, or a `data_dir` that cannot be written.
  """
  if name not in STOCK:
    raise base.InputError(
      f'{name}: cannot be prepared here; allowed are {", ".join(NAMES)}'
    )
  stock = STOCK[name]
  root = pathlib.Path(data_dir).expanduser()
  builder = _builder(name, root)
  target = pathlib.Path(builder.data_path)
  if (target / 'dataset_info.json').is_file():
    return target
  try:
    if source_dir is not None:
      folder = pathlib.Path(source_dir).expanduser()
      if not folder.is_dir():
        raise base.InputError(f'{folder}: no such folder (--raw_dir)')
      _write(builder, stock, folder)
      return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=root, prefix='.unlearn_jax_download-'
    ) as downloads:
      folder = pathlib.Path(downloads)
      for file, (url, size, checksum) in _sources(name).items():
        _download(url, size, checksum, folder / file)
      _write(builder, stock, folder)
    return target
  except OSError as error:
    if (target / 'dataset_info.json').is_file():
      return target  # Another process was quicker.
    raise base.InputError(
      f'{name}: cannot be prepared in {root} ({error})'
    ) from error


def _sources(name: str) -> dict[str, tuple[str, int, str]]:
  """(URL, bytes, SHA-256) of each file, as the installed TFDS registers them.

  `builder_cls(name).url_infos` would say the same, but needs a package that
  TFDS does not install.
  """
  from tensorflow_datasets.core import utils
  from tensorflow_datasets.core.download import checksums

  known = checksums.load_url_infos(utils.tfds_path(f'url_checksums/{name}.txt'))
  by_file = {url.rsplit('/', 1)[-1]: (url, info) for url, info in known.items()}
  sources = {}
  for file in STOCK[name].needed:
    url, info = by_file[file]
    sources[file] = (url, int(info.size), info.checksum)
  return sources


def _download(url: str, size: int, checksum: str, file: pathlib.Path) -> None:
  """Fetches `url` into `file` and checks it."""
  digest, received = hashlib.sha256(), 0
  reason = ''
  try:
    with (
      urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
      file.open('wb') as stream,
    ):
      while received <= size and (chunk := answer.read(_CHUNK)):
        received += len(chunk)
        digest.update(chunk)
        stream.write(chunk)
  except urllib.error.HTTPError as error:
    reason = f'HTTP status {error.code}'
  except urllib.error.URLError as error:
    reason = str(error.reason)
  except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
    reason = str(error) or type(error).__name__
  if not reason and received != size:
    more = 'more than ' if received > size else ''
    reason = f'{more}{min(received, size)} bytes came, not {size}'
  if not reason and digest.hexdigest() != checksum:
    reason = f'its SHA-256 is {digest.hexdigest()}, not {checksum}'
  if reason:
    raise base.InputError(
      f'{url}: download failed ({" ".join(reason.split())}); download it by'
      ' hand into a folder and name that with --raw_dir'
    )


def _builder(name: str, data_dir: pathlib.Path) -> Any:
  """TFDS's own builder of `name`, quiet and without any way to the network."""
  import types

  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  stock = tfds.builder_cls(name)

  def info(self: Any) -> Any:
    result = stock._info(self)
    # TFDS would look for the description in its cloud bucket.
    result.initialize_from_bucket = lambda: None
    return result

  def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return self.examples

  members = {
    '__module__': stock.__module__,
    '_info': info,
    '_split_generators': split_generators,
    '_make_download_manager': lambda self, **_: types.SimpleNamespace(
      downloaded_size=0
    ),
    # These two print.
    '_log_download_bytes': lambda self: None,
    '_log_download_done': lambda self: None,
  }
  with registered.skip_registration():
    builder = type(stock.__name__, (stock,), members)
  return builder(data_dir=str(data_dir))


def _write(builder: Any, stock: Cifar | Idx, folder: pathlib.Path) -> None:
  """Reads the raw files in `folder` and writes the prepared directory."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.utils import tqdm_utils

  if isinstance(stock, Cifar):
    read = _cifar_reader(stock, folder)
    for feature, file, classes in stock.labels:
      names = _class_names(read(file, _CHUNK), folder / file, classes)
      builder.info.features[feature].names = names
    contents = {
      split: [
        _cifar_content(stock, file, rows, read, folder) for file, rows in files
      ]
      for split, files in stock.files.items()
    }
    builder.examples = {
      split: _cifar_examples(stock, split, content)
      for split, content in contents.items()
    }
  else:
    builder.examples = {
      split: _idx_examples(*_idx_content(stock, prefix, rows, folder))
      for split, (prefix, rows) in stock.files.items()
    }
  was_active = tqdm_utils._active
  tqdm_utils.display_progress_bar(False)
  try:
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  finally:
    tqdm_utils.display_progress_bar(was_active)


def _cifar_reader(stock: Cifar, folder: pathlib.Path) -> _Reader:
  """Reads from the extracted files if they are there, else the archive."""
  for place in (folder / stock.folder, folder):
    if (place / stock.labels[0][1]).is_file():

      def from_file(file: str, limit: int, place: Any = place) -> bytes:
        try:
          base.require_file(place / file)
          with (place / file).open('rb') as stream:
            return stream.read(limit)
        except FileNotFoundError:
          raise base.InputError(f'{place / file}: no such file') from None

      return from_file

  archive = folder / stock.archive
  if not archive.is_file():
    raise base.InputError(
      f'{folder}: neither {stock.archive} nor {stock.labels[0][1]} and the .bin'
      ' files are in it; allowed is a folder of the binary version'
    )

  def from_archive(file: str, limit: int) -> bytes:
    member = f'{stock.folder}/{file}'
    try:
      with tarfile.open(archive, 'r:gz') as opened:
        stream = opened.extractfile(member)
        if stream is None:
          raise KeyError
        return stream.read(limit)
    except KeyError:
      raise base.InputError(
        f'{archive}: has no file {member}; allowed is the binary version'
      ) from None
    except Exception as error:  # tarfile, gzip and zlib raise their own.
      raise base.InputError(
        f'{archive}: no intact tar.gz ({type(error).__name__}); download it'
        ' again'
      ) from None

  return from_archive


def _class_names(content: bytes, file: pathlib.Path, classes: int) -> list[str]:
  lines = content.decode('utf-8', 'replace').split('\n')
  names = [line.strip() for line in lines if line.strip()]
  if len(names) != classes or len(set(names)) != classes:
    raise base.InputError(
      f'{file}: names {len(set(names))} classes; allowed are {classes}'
    )
  return names


def _cifar_content(
  stock: Cifar, file: str, rows: int, read: _Reader, folder: pathlib.Path
) -> np.ndarray:
  """uint8 `[rows, labels + 3 · side²]` of a .bin file."""
  columns = len(stock.labels) + 3 * stock.side**2
  content = read(file, rows * columns + 1)
  if len(content) != rows * columns:
    more = 'more than ' * (len(content) > rows * columns)
    raise base.InputError(
      f'{folder}: {file} has {more}{min(len(content), rows * columns)} bytes;'
      f' allowed are {rows * columns}'
    )
  table = np.frombuffer(content, np.uint8).reshape(rows, columns)
  for column, (feature, _, classes) in enumerate(stock.labels):
    highest = int(table[:, column].max())
    if highest >= classes:
      raise base.InputError(
        f'{folder}: {file} has the {feature} {highest}; allowed are'
        f' 0..{classes - 1}'
      )
  return table


def _cifar_examples(
  stock: Cifar, split: str, tables: list[np.ndarray]
) -> Iterator[tuple[int, dict[str, Any]]]:
  """(key, example) as TFDS numbers and names them, over all files."""
  index = 0
  for table in tables:
    for row in table:
      example: dict[str, Any] = {
        feature: int(row[column])
        for column, (feature, _, _) in enumerate(stock.labels)
      }
      pixels = row[len(stock.labels) :].reshape(3, stock.side, stock.side)
      example['image'] = _png(pixels.transpose(1, 2, 0))
      example['id'] = f'{split}_{index:05d}'
      yield index, example
      index += 1


def _idx_content(
  stock: Idx, prefix: str, rows: int, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 `[rows, side, side, 1]` and labels uint8 `[rows]`."""
  shape = (rows, stock.side, stock.side)
  images = _read_idx(folder, f'{prefix}-images-idx3-ubyte', _IDX_IMAGES, shape)
  labels = _read_idx(
    folder, f'{prefix}-labels-idx1-ubyte', _IDX_LABELS, (rows,)
  )
  if labels.max() >= stock.classes:
    raise base.InputError(
      f'{folder}: {prefix}-labels-idx1-ubyte has the label {labels.max()};'
      f' allowed are 0..{stock.classes - 1}'
    )
  return images[..., None], labels


def _idx_examples(
  images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
  """(key, example) as TFDS numbers them."""
  for index, (image, label) in enumerate(zip(images, labels)):
    yield index, {'image': _png(image[..., 0]), 'label': int(label)}


def _png(pixels: np.ndarray) -> io.BytesIO:
  """An image as TFDS stores it; to encode an array it needs TensorFlow."""
  import PIL.Image

  file = io.BytesIO()
  PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'PNG')
  file.seek(0)
  return file


def _read_idx(
  folder: pathlib.Path, name: str, magic: int, shape: tuple[int, ...]
) -> np.ndarray:
  """A uint8 array of known shape from NAME.gz or NAME."""
  header = np.array([magic, *shape], '>u4').tobytes()
  size = len(header) + int(np.prod(shape))
  file = folder / f'{name}.gz'
  try:
    if file.is_file():
      with gzip.open(file) as stream:
        content = stream.read(size + 1)
    else:
      file = folder / name
      if file.exists():
        base.require_file(file)
      with file.open('rb') as stream:
        content = stream.read(size + 1)
  except FileNotFoundError:
    raise base.InputError(
      f'{folder}: neither {name}.gz nor {name} is in it'
    ) from None
  except base.InputError:
    raise
  except Exception as error:  # gzip raises OSError, EOFError and zlib.error.
    raise base.InputError(
      f'{file}: cannot be read ({type(error).__name__}); download it again'
    ) from None
  if not content.startswith(header):
    found = np.frombuffer(
      content[: len(header)].ljust(len(header), b'\0'), '>u4'
    )
    raise base.InputError(
      f'{file}: its header says {found.tolist()}; allowed is'
      f' {[magic, *shape]} (idx magic number and shape)'
    )
  if len(content) != size:
    more = 'more than ' * (len(content) > size)
    raise base.InputError(
      f'{file}: holds {more}{min(len(content), size)} bytes; allowed are {size}'
    )
  return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
