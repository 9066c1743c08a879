"""Decodes the stock archives of CIFAR and (Fashion-)MNIST, once.

They become what is read of a directory that TFDS prepared of them: the same
images, labels, ids and class names in the same order, so the same fingerprint.
TFDS orders a split by the MD5 of its name and the row in the archive, which
takes a line here and nothing of TFDS.
"""

import dataclasses
import gzip
import hashlib
import http.client
import math
import pathlib
import tarfile
import tempfile
from typing import Any
import urllib.request

import numpy as np

from unlearn_jax import base
from unlearn_jax.data import local, prepared

# Seconds without an answer after which a download has failed.
TIMEOUT = 30

# No archive has as many bytes.
_MOST = 1 << 28
_Files = dict[str, tuple[tuple[str, int], ...]]
_KINDS = ('images-idx3-ubyte', 'labels-idx1-ubyte')


@dataclasses.dataclass(frozen=True)
class Stock:
  """Where a data set comes from, and what is in it."""

  url: str  # of CIFAR's archive, or of the folder of MNIST's
  sums: str  # SHA-256 of each archive, one a line, as TFDS registers them
  # Of each split, (file, number of examples) of CIFAR's .bin files, or of what
  # the names of MNIST's two files begin with.
  files: _Files
  # The names of the classes; of CIFAR, how many there are.
  classes: tuple[str, ...] | int
  folder: str = ''  # the directory in CIFAR's archive
  names: str = ''  # its file of class names
  label_bytes: int = 1  # what precedes the pixels in CIFAR; the last one counts

  @property
  def archives(self) -> dict[str, str]:
    """The files to download, and their URLs."""
    urls = [self.url]
    if not self.folder:
      prefixes = [prefix for ((prefix, _),) in self.files.values()]
      urls = [
        f'{self.url}/{each}-{kind}.gz' for each in prefixes for kind in _KINDS
      ]
    return {url.rpartition('/')[2]: url for url in urls}


_IDX: _Files = {'train': (('train', 60000),), 'test': (('t10k', 10000),)}
_FASHION = 'T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag'
STOCK = {
  'cifar10': Stock(
    'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
    'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    {
      'train': tuple((f'data_batch_{n}.bin', 10000) for n in range(1, 6)),
      'test': (('test_batch.bin', 10000),),
    },
    10,
    'cifar-10-batches-bin',
    'batches.meta.txt',
  ),
  'cifar100': Stock(
    'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
    '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    {'train': (('train.bin', 50000),), 'test': (('test.bin', 10000),)},
    100,
    'cifar-100-binary',
    'fine_label_names.txt',
    label_bytes=2,
  ),
  'fashion_mnist': Stock(
    'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com',
    """3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
    a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
    346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
    67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5""",
    _IDX,
    (*_FASHION.split(), 'Ankle boot'),
  ),
  'mnist': Stock(
    'https://storage.googleapis.com/cvdf-datasets/mnist',
    """440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6""",
    _IDX,
    tuple('0123456789'),
  ),
}
NAMES = tuple(STOCK)


def read(
  name: str,
  data_dir: pathlib.Path,
  source_dir: pathlib.Path | None = None,
  map_beyond: float = math.inf,
) -> local.Parts:
  """A stock data set, decoded from its archives unless it was before.

  What was decoded is kept in DATA_DIR/NAME. Downloads are compared with their
  SHA-256; files in `source_dir` are checked for structure, sizes and labels
  instead, since distributions compress them anew.

  Args:
    name: one of `NAMES`.
    data_dir: TFDS's data directory; made if need be.
    source_dir: where files that were downloaded by hand lie: CIFAR's tar.gz
      or what is in it, MNIST's four idx files with or without .gz.
    map_beyond: see `npz.read`; for the images.

  Returns:
    The parts of the data set, see `local`.

  Raises:
    InputError: a failed download, files that are missing or not what they
      should be, or a `data_dir` that cannot be written.
  """
  stock = STOCK[name]
  cache = data_dir / name / prepared.CACHE_NAME, f'{name} of archives, 1'
  if kept := prepared.read_cache(*cache, map_beyond):
    return kept
  try:
    if source_dir is None:
      data_dir.mkdir(parents=True, exist_ok=True)
      prepared.sweep(data_dir, prefix := '.unlearn_jax_download-')
      with tempfile.TemporaryDirectory(None, prefix, data_dir) as temporary:
        _download(stock, pathlib.Path(temporary))
        parts = _decode(stock, pathlib.Path(temporary))
    elif source_dir.is_dir():
      parts = _decode(stock, source_dir)
    else:
      raise base.InputError(f'{source_dir}: no such folder (--raw_dir)')
    cache[0].parent.mkdir(parents=True, exist_ok=True)
    return prepared.keep(*cache, parts, map_beyond)
  except OSError as error:
    raise base.InputError(
      f'{name}: cannot be prepared in {data_dir} ({error})'
    ) from error


def _download(stock: Stock, folder: pathlib.Path) -> None:
  """Fetches the archives into `folder` and checks them."""
  for (file, url), checksum in zip(stock.archives.items(), stock.sums.split()):
    reason = ''
    try:
      with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content = answer.read(_MOST)
      found = hashlib.sha256(content).hexdigest()
      if found != checksum:
        reason = f'{len(content)} bytes of SHA-256 {found}, not {checksum}'
    except (OSError, http.client.HTTPException) as error:
      reason = str(error) or type(error).__name__
    if reason:
      raise base.InputError(
        f'{url}: download failed ({" ".join(reason.split())}); download it by'
        ' hand into a folder and name that with --raw_dir'
      )
    (folder / file).write_bytes(content)


def _decode(stock: Stock, folder: pathlib.Path) -> local.Parts:
  """The data set of the archives or files in `folder`."""
  classes = stock.classes
  if isinstance(classes, int):
    lines = _content(stock, folder, stock.names).decode('utf-8', 'replace')
    names = tuple(line.strip() for line in lines.split('\n') if line.strip())
    if not len(names) == len(set(names)) == classes:
      raise base.InputError(
        f'{folder}: {stock.names} names {len(set(names))} classes; allowed are'
        f' {classes}'
      )
    classes = names
  parts: list[Any] = []
  for split, files in stock.files.items():
    if stock.folder:
      columns = stock.label_bytes + 3 * 32 * 32
      table = np.concatenate(
        [_array(stock, folder, file, (rows, columns)) for file, rows in files]
      )
      labels, pixels = np.split(table, [stock.label_bytes], axis=1)
      labels = labels[:, -1]
      images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    else:
      ((prefix, rows),) = files
      first, second = (f'{prefix}-{kind}' for kind in _KINDS)
      images = _array(stock, folder, first, (rows, 28, 28))[..., None]
      labels = _array(stock, folder, second, (rows,))
    if labels.max() >= len(classes):
      raise base.InputError(
        f'{folder}: {split} has the label {labels.max()}; allowed are'
        f' 0..{len(classes) - 1}'
      )
    keys = [f'{split}{row}'.encode() for row in range(len(labels))]
    order = sorted(
      range(len(keys)), key=lambda row: hashlib.md5(keys[row]).digest()
    )
    parts += [np.ascontiguousarray(images[order]), labels[order].astype('i4')]
    if split == 'train':
      ids = np.array([f'train_{row:05d}' for row in order])
  return local.Parts._make((*parts, classes, ids if stock.folder else None))


def _array(
  stock: Stock, folder: pathlib.Path, file: str, shape: tuple[int, ...]
) -> np.ndarray:
  """The uint8 array that is all of a file, but for the header of idx files."""
  header = np.array([0x800 + len(shape), *shape], '>u4').tobytes()
  header = b'' if stock.folder else header
  size = len(header) + math.prod(shape)
  content = _content(stock, folder, file, size + 1)
  found = content[: len(header)]
  if len(content) != size or found != header:
    more = 'more than ' * (len(content) > size)
    raise base.InputError(
      f'{folder}: {file} holds {more}{min(len(content), size)} bytes (header'
      f' {found.hex()!r}); allowed are {size} (header {header.hex()!r})'
    )
  return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _content(
  stock: Stock, folder: pathlib.Path, file: str, most: int = _MOST
) -> bytes:
  """The first bytes of a file: of the archive, or as it lies there."""
  archive = next(iter(stock.archives)) if stock.folder else f'{file}.gz'
  for place in (folder / stock.folder / file, folder / file, folder / archive):
    if place.exists():
      break
  else:
    raise base.InputError(f'{folder}: neither {archive} nor {file} is in it')
  base.require_file(place)
  try:
    if stock.folder and place.name == archive:
      with tarfile.open(place, 'r:gz') as opened:
        stream: Any = opened.extractfile(f'{stock.folder}/{file}')
        return stream.read(most)
    with (gzip.open if place.name == archive else open)(place, 'rb') as stream:
      return stream.read(most)
  except Exception as error:  # tarfile, gzip and zlib raise their own.
    raise base.InputError(
      f'{place}: {file} cannot be read ({local.reason(error)}); download it'
      ' again'
    ) from None
