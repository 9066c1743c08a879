"""Stock data sets from tiny archives, and their download."""

import dataclasses
import functools
import gzip
import hashlib
import importlib.resources
import io
import pathlib
import socket
import sys
import tarfile

import data_test
import numpy as np
import pytest
import tensorflow_datasets as tfds

from unlearn_jax import data
from unlearn_jax.data import prepare, prepared

ROWS = {'train': 7, 'test': 3}
LABELS = 'train-labels-idx1-ubyte'
CIFAR = ('cifar10', 'cifar100')
error_of = data_test.error_of


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """The stock data sets with a few examples in each file."""
  small = {}
  for name, stock in prepare.STOCK.items():
    files = {
      split: tuple((file, ROWS[split]) for file, _ in members)
      for split, members in stock.files.items()
    }
    small[name] = dataclasses.replace(stock, files=files)
  monkeypatch.setattr(prepare, 'STOCK', small)


def examples(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels in the order of the archive."""
  stock = prepare.STOCK[name]
  random = np.random.RandomState(len(split))
  rows = ROWS[split] * len(stock.files[split])
  shape = (rows, 32, 32, 3) if stock.folder else (rows, 28, 28, 1)
  classes = int(name.removeprefix('cifar')) if stock.folder else 10
  images = random.randint(0, 256, shape, np.uint8)
  return images, random.randint(0, classes, rows).astype(np.uint8)


def files_of(name: str) -> dict[str, bytes]:
  """What is in CIFAR's archive, or MNIST's four files, not compressed."""
  stock, contents = prepare.STOCK[name], {}
  if stock.folder:
    lines = [f'class{n}\n' for n in range(stock.classes)]
    contents[stock.names] = ''.join(lines).encode() + b'\n'
  for split, members in stock.files.items():
    images, labels = examples(name, split)
    for index, (file, rows) in enumerate(members):
      if stock.folder:
        first = bytes(stock.label_bytes - 1)  # The coarse label.
        contents[file] = b''.join(
          first
          + bytes([labels[row]])
          + images[row].transpose(2, 0, 1).tobytes()
          for row in range(rows * index, rows * (index + 1))
        )
      else:
        for kind, array in zip(prepare._KINDS, (images[..., 0], labels)):
          header = np.array([0x800 + array.ndim, *array.shape], '>u4')
          contents[f'{file}-{kind}'] = header.tobytes() + array.tobytes()
  return contents


def write(name, folder, form='archive', **changes) -> None:
  """Writes the raw files; of `changes`, None leaves a file out."""
  stock = prepare.STOCK[name]
  contents = {**files_of(name), **changes}
  inner = folder / stock.folder if form == 'folder' else folder
  inner.mkdir(parents=True, exist_ok=True)
  if form == 'archive' and stock.folder:
    with tarfile.open(folder / next(iter(stock.archives)), 'w:gz') as archive:
      for file, content in contents.items():
        if content is not None:
          member = tarfile.TarInfo(f'{stock.folder}/{file}')
          member.size = len(content)
          archive.addfile(member, io.BytesIO(content))
    return
  for file, content in contents.items():
    if form == 'archive':
      (inner / f'{file}.gz').write_bytes(gzip.compress(content))
    else:
      (inner / file).write_bytes(content)


def left(root: pathlib.Path) -> list[str]:
  """The files in the data directory, but the raw ones."""
  found = [path.relative_to(root) for path in root.rglob('*') if path.is_file()]
  return sorted(str(path) for path in found if path.parts[0] != 'raw')


@pytest.mark.parametrize('form', ['archive', 'folder', 'files'])
@pytest.mark.parametrize('name', prepare.NAMES)
def test_it_is_what_tfds_would_prepare(tmp_path, name, form, monkeypatch):
  write(name, tmp_path / 'raw', form)
  dataset = data.load(name, data_dir=tmp_path, raw_dir=tmp_path / 'raw')
  assert left(tmp_path) == [f'{name}/{prepared.CACHE_NAME}']
  features = {
    'image': tfds.features.Image(shape=dataset.image_shape),
    'label': tfds.features.ClassLabel(names=dataset.class_names),
  }
  if name in CIFAR:
    features['id'] = tfds.features.Text()

  def example(split, row):
    images, labels = examples(name, split)
    png = data_test.png(images[row] if name in CIFAR else images[row, ..., 0])
    example = {'image': io.BytesIO(png), 'label': labels[row]}
    return example | {'id': f'{split}_{row:05d}'} if name in CIFAR else example

  counts = {split: len(examples(name, split)[1]) for split in ROWS}
  data_test.build(tmp_path / 'tfds', counts, features, example=example)
  expected = data.load('tiny', data_dir=tmp_path / 'tfds')
  assert dataset.ids.tolist() == expected.ids.tolist()
  assert dataset.fingerprint == expected.fingerprint
  assert dataset.train.labels.dtype == np.int32
  assert dataset.class_names[9] == {
    'mnist': '9', 'fashion_mnist': 'Ankle boot'
  }.get(name, 'class9')  # fmt: skip
  # From now on the raw files are not needed.
  monkeypatch.setattr(prepare, '_decode', None)
  again = data.load(name, data_dir=tmp_path, map_beyond=0)
  assert again.fingerprint == dataset.fingerprint
  assert isinstance(again.train.images, np.memmap)
  monkeypatch.undo()
  assert 'tensorflow' not in sys.modules


def test_a_broken_cache_is_made_again(tmp_path):
  write('mnist', tmp_path / 'raw')
  load = functools.partial(
    data.load, 'mnist', data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  expected = load().fingerprint
  file = tmp_path / 'mnist' / prepared.CACHE_NAME
  whole = file.read_bytes()
  file.write_bytes(whole[:-99])
  assert load(map_beyond=0).fingerprint == expected
  assert file.read_bytes() == whole


def changed(content: bytes, place: int, value: int) -> bytes:
  return content[:place] + bytes([value]) + content[place + 1 :]


@pytest.mark.parametrize(
  ('name', 'file', 'change', 'words'),
  [
    ('mnist', LABELS, lambda c: changed(c, 3, 3), "header '0000080300000007'"),
    ('mnist', LABELS, lambda c: c[:-1], 'holds 14 bytes'),
    ('mnist', LABELS, lambda c: c + b'x' * 99, 'holds more than 15 bytes'),
    (
      'mnist',
      LABELS,
      lambda c: changed(c, 9, 10),
      'label 10; allowed are 0..9',
    ),
    ('cifar10', 'data_batch_2.bin', lambda c: c[:-1], 'holds 21510 bytes'),
    (
      'cifar10',
      'data_batch_5.bin',
      lambda c: changed(c, 3073, 10),
      'label 10;',
    ),
    (
      'cifar10',
      'batches.meta.txt',
      lambda c: c[7:],
      'names 9 classes; allowed',
    ),
    ('cifar10', 'test_batch.bin', lambda c: None, 'cannot be read (KeyError'),
  ],
)
def test_defects(tmp_path, name, file, change, words):
  write(name, tmp_path / 'raw', **{file: change(files_of(name)[file])})
  message = error_of(
    data.load, name, data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  assert str(tmp_path / 'raw') in message and words in message
  assert 'has the label' in message or file in message
  assert left(tmp_path) == []


@pytest.mark.parametrize(
  ('name', 'file'),
  [('mnist', f'{LABELS}.gz'), ('cifar10', 'cifar-10-binary.tar.gz')],
)
def test_archives_that_are_missing_or_cut(tmp_path, name, file):
  raw = tmp_path / 'raw'
  message = functools.partial(
    error_of, data.load, name, data_dir=tmp_path, raw_dir=raw
  )
  assert message() == f'{raw}: no such folder (--raw_dir)'
  write(name, raw)
  whole = (raw / file).read_bytes()
  for content in (whole[: len(whole) // 2], b'', b'text'):
    (raw / file).write_bytes(content)
    assert file.removesuffix('.gz') in message()
  (raw / file).unlink()
  assert f'{raw}: neither {file} nor' in message()
  assert left(tmp_path) == []


def test_data_dir_that_cannot_be_written(tmp_path, monkeypatch):
  write('mnist', tmp_path / 'raw')
  file = tmp_path / 'raw/file'
  file.write_text('')
  for raw in (tmp_path / 'raw', None):
    message = error_of(data.load, 'mnist', data_dir=file, raw_dir=raw)
    assert f'mnist: cannot be prepared in {file}' in message
  monkeypatch.setattr(prepared.os, 'replace', data_test.refuse)
  message = error_of(
    data.load, 'mnist', data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  assert message == f'mnist: cannot be prepared in {tmp_path} (read-only)'
  assert left(tmp_path) == []


def come_from(monkeypatch, name, folder, url=None, sums=None) -> str:
  """Sets where a data set is downloaded from: by default from a folder."""
  write(name, folder)
  stock = prepare.STOCK[name]
  files = list(stock.archives)
  hashes = [hashlib.sha256((folder / file).read_bytes()) for file in files]
  url = url or (folder / files[0] if stock.folder else folder).as_uri()
  sums = sums or ' '.join(each.hexdigest() for each in hashes)
  new = dataclasses.replace(stock, url=url, sums=sums)
  monkeypatch.setitem(prepare.STOCK, name, new)
  return url


@pytest.mark.parametrize('name', ['cifar10', 'mnist'])
def test_download(tmp_path, monkeypatch, name):
  raw = tmp_path / 'raw'
  come_from(monkeypatch, name, raw)
  dataset = data.load(name, data_dir=tmp_path)
  by_hand = data.load(name, data_dir=raw, raw_dir=raw)
  assert dataset.fingerprint == by_hand.fingerprint
  # No download is kept.
  assert sorted(path.name for path in tmp_path.iterdir()) == [name, 'raw']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'sums': 'ab' * 32}, f'not {"ab" * 32}'),
    ({'url': 'file:///nowhere/x.tar.gz'}, 'No such file'),
    ({'url': 'http://127.0.0.1:9/x.tar.gz'}, 'refused'),
    ({}, 'timed out'),
  ],
)
def test_download_that_fails(tmp_path, monkeypatch, changes, words):
  monkeypatch.setattr(prepare, 'TIMEOUT', 0.2)
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  with socket.create_server(('127.0.0.1', 0)) as silent:
    silence = {'url': f'http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz'}
    url = come_from(
      monkeypatch, 'cifar10', tmp_path / 'raw', **(changes or silence)
    )
    message = error_of(data.load, 'cifar10', data_dir=tmp_path)
  assert message.startswith(f'{url}: download failed (')
  assert words in message and '--raw_dir' in message
  assert left(tmp_path) == []


@pytest.mark.parametrize('name', prepare.NAMES)
def test_archives_are_those_that_tfds_registers(name):
  folder = importlib.resources.files('tensorflow_datasets') / 'url_checksums'
  lines = (folder / f'{name}.txt').read_text().splitlines()
  registered = {line.split()[0]: line.split()[2] for line in lines}
  stock = prepare.STOCK[name]
  assert dict(zip(stock.archives.values(), stock.sums.split())) == registered
