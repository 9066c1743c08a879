"""Preparing stock data sets from tiny archives, and their download."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import socket
import sys
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from unlearn_jax import base, data
from unlearn_jax.data import prepare

TRAIN, TEST = 3, 2


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """The stock data sets with a few examples in each file."""
  small = {}
  for name, stock in prepare.STOCK.items():
    if isinstance(stock, prepare.Cifar):
      files = {
        split: tuple(
          (file, TRAIN if split == 'train' else TEST) for file, _ in members
        )
        for split, members in stock.files.items()
      }
    else:
      files = {'train': ('train', TRAIN), 'test': ('t10k', TEST)}
    small[name] = dataclasses.replace(stock, files=files)
  monkeypatch.setattr(prepare, 'STOCK', small)


def error_of(call, *args, **kwargs) -> str:
  with pytest.raises(base.InputError) as caught:
    call(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def cifar_rows(name: str, file: str) -> tuple[np.ndarray, np.ndarray]:
  """Labels `[rows, columns]` and pixels `[rows, 32, 32, 3]`, all different."""
  seed = int(hashlib.sha256(file.encode()).hexdigest()[:6], 16)
  random = np.random.RandomState(seed)
  rows = TEST if 'test' in file else TRAIN
  limits = [10] if name == 'cifar10' else [20, 100]
  labels = np.stack([random.randint(0, limit, rows) for limit in limits], 1)
  return labels, random.randint(0, 256, (rows, 32, 32, 3), np.uint8)


CLASSES = {
  'batches.meta.txt': 10,
  'coarse_label_names.txt': 20,
  'fine_label_names.txt': 100,
}


def cifar_files(name: str) -> dict[str, bytes]:
  """What is in the archive of the binary version, by file name."""
  stock = prepare.STOCK[name]
  contents = {
    file: ''.join(f'class{n}\n' for n in range(count)).encode() + b'\n'
    for _, file, count in stock.labels
  }
  for members in stock.files.values():
    for file, _ in members:
      labels, pixels = cifar_rows(name, file)
      contents[file] = b''.join(
        bytes(label.tolist()) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, pixels)
      )
  return contents


def write_archive(name: str, folder: pathlib.Path, contents=None) -> None:
  stock = prepare.STOCK[name]
  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(folder / stock.archive, 'w:gz') as archive:
    for file, content in (contents or cifar_files(name)).items():
      member = tarfile.TarInfo(f'{stock.folder}/{file}')
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def check_cifar(name: str, dataset: base.Dataset) -> None:
  stock = prepare.STOCK[name]
  classes = 10 if name == 'cifar10' else 100
  assert dataset.class_names == tuple(f'class{n}' for n in range(classes))
  parts = [cifar_rows(name, file) for file, _ in stock.files['train']]
  labels = np.concatenate([labels for labels, _ in parts])[:, -1]
  pixels = np.concatenate([pixels for _, pixels in parts])
  assert sorted(dataset.ids) == [f'train_{n:05d}' for n in range(len(labels))]
  rows = [int(name.removeprefix('train_')) for name in dataset.ids]
  np.testing.assert_array_equal(dataset.train.images, pixels[rows])
  np.testing.assert_array_equal(dataset.train.labels, labels[rows])
  assert dataset.test.size == TEST


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
@pytest.mark.parametrize('form', ['archive', 'folder', 'files'])
def test_cifar_from_what_was_downloaded(tmp_path, name, form):
  raw, root = tmp_path / 'raw', tmp_path / 'tfds'
  if form == 'archive':
    write_archive(name, raw)
  else:
    inner = raw / prepare.STOCK[name].folder if form == 'folder' else raw
    inner.mkdir(parents=True)
    for file, content in cifar_files(name).items():
      (inner / file).write_bytes(content)
  dataset = data.load(name, data_dir=root, raw_dir=raw)
  check_cifar(name, dataset)
  assert [path.name for path in root.iterdir()] == [name]
  assert [path.name for path in (root / name).iterdir()] == ['3.0.2']
  # From now on the raw files are not needed.
  again = data.load(name, data_dir=root)
  assert again.fingerprint == dataset.fingerprint


def test_tfds_itself_reads_what_was_prepared(tmp_path, capfd):
  write_archive('cifar100', tmp_path / 'raw')
  root = tmp_path / 'tfds'
  folder = prepare.prepare('cifar100', root, source_dir=tmp_path / 'raw')
  assert folder == root / 'cifar100/3.0.2'
  # The library prints nothing, though TFDS would.
  assert capfd.readouterr() == ('', '')
  source = tfds.data_source(
    'cifar100', split='train', data_dir=root, download=False
  )
  dataset = data.load('cifar100', data_dir=root)
  labels, _ = cifar_rows('cifar100', 'train.bin')
  assert len(source) == TRAIN
  for row in range(TRAIN):
    example = source[row]
    index = int(example['id'].decode().removeprefix('train_'))
    assert [example['coarse_label'], example['label']] == labels[index].tolist()
    np.testing.assert_array_equal(example['image'], dataset.train.images[row])
    assert example['id'].decode() == dataset.ids[row]
  assert prepare.prepare('cifar100', root) == folder
  assert 'tensorflow' not in sys.modules


def idx(array: np.ndarray) -> bytes:
  magic = 0x800 + array.ndim
  return np.array([magic, *array.shape], '>u4').tobytes() + array.tobytes()


def idx_files() -> dict[str, bytes]:
  random = np.random.RandomState(5)
  files = {}
  for prefix, rows in (('train', TRAIN), ('t10k', TEST)):
    images = random.randint(0, 256, (rows, 28, 28), np.uint8)
    files[f'{prefix}-images-idx3-ubyte'] = idx(images)
    labels = np.array([9, *range(rows - 1)], np.uint8)
    files[f'{prefix}-labels-idx1-ubyte'] = idx(labels)
  return files


def write_idx(folder: pathlib.Path, compress=True, **changes) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in {**idx_files(), **changes}.items():
    if compress:
      (folder / f'{name}.gz').write_bytes(gzip.compress(content))
    else:
      (folder / name).write_bytes(content)


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
@pytest.mark.parametrize('compress', [True, False])
def test_idx_files(tmp_path, name, compress):
  write_idx(tmp_path / 'raw', compress)
  dataset = data.load(name, data_dir=tmp_path, raw_dir=tmp_path / 'raw')
  assert dataset.class_names[9] == ('9' if name == 'mnist' else 'Ankle boot')
  assert (tmp_path / name / '3.0.1/dataset_info.json').is_file()
  content = idx_files()['train-images-idx3-ubyte'][16:]
  images = np.frombuffer(content, np.uint8).reshape(TRAIN, 28, 28, 1)
  found = {image.tobytes(): label for image, label in zip(images, [9, 0, 1])}
  assert dataset.train.images.shape == images.shape
  for image, label in zip(dataset.train.images, dataset.train.labels):
    assert found.pop(image.tobytes()) == label
  assert not found
  assert dataset.ids.tolist() == ['0', '1', '2']


def changed(content: bytes, place: int, value: int) -> bytes:
  return content[:place] + bytes([value]) + content[place + 1 :]


LABELS = 'train-labels-idx1-ubyte'


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda c: changed(c, 3, 3), 'its header says [2051, 3]; allowed is [2049'),
    (lambda c: changed(c, 7, 4), 'its header says [2049, 4]; allowed is [2049'),
    (lambda c: c[:-1], 'holds 10 bytes; allowed are 11'),
    (lambda c: c + b'x' * 99, 'holds more than 11 bytes; allowed are 11'),
    (lambda c: c[:2], 'its header says'),
    (lambda c: changed(c, 9, 10), 'has the label 10; allowed are 0..9'),
  ],
)
def test_idx_defects(tmp_path, change, words):
  write_idx(tmp_path / 'raw', **{LABELS: change(idx_files()[LABELS])})
  message = error_of(
    data.load, 'mnist', data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  assert LABELS in message and words in message
  assert prepared_files(tmp_path) == []


def prepared_files(root: pathlib.Path) -> list[pathlib.Path]:
  """Whatever a failure left in the data directory, but the raw files."""
  return [
    path
    for path in root.rglob('*')
    if path.is_file() and 'raw' not in path.relative_to(root).parts
  ]


def test_idx_files_that_are_missing_or_cut(tmp_path):
  raw = tmp_path / 'raw'

  def message():
    return error_of(data.load, 'mnist', data_dir=tmp_path, raw_dir=raw)

  assert message() == f'{raw}: no such folder (--raw_dir)'
  write_idx(raw)
  file = raw / f'{LABELS}.gz'
  whole = file.read_bytes()
  for content in (whole[:-9], b'', b'text', changed(whole, 12, 0)):
    file.write_bytes(content)
    assert str(file) in message()
  file.unlink()
  assert message() == f'{raw}: neither {LABELS}.gz nor {LABELS} is in it'
  assert prepared_files(tmp_path) == []


@pytest.mark.parametrize(
  ('file', 'change', 'words'),
  [
    ('data_batch_2.bin', lambda c: c[:-1], 'has 9218 bytes; allowed are 9219'),
    ('test_batch.bin', lambda c: c + c, 'has more than 6146 bytes'),
    ('data_batch_5.bin', lambda c: changed(c, 3073, 10), 'label 10; allowed'),
    ('batches.meta.txt', lambda c: c[7:], 'names 9 classes; allowed are 10'),
    ('batches.meta.txt', lambda c: c + b'more', 'names 11 classes'),
    ('test_batch.bin', None, 'has no file cifar-10-batches-bin/test_batch.bin'),
  ],
)
def test_cifar_defects(tmp_path, file, change, words):
  contents = cifar_files('cifar10')
  if change:
    contents[file] = change(contents[file])
  else:
    del contents[file]
  write_archive('cifar10', tmp_path / 'raw', contents)
  message = error_of(
    data.load, 'cifar10', data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  assert file in message and words in message
  assert prepared_files(tmp_path) == []


def test_cifar_archive_that_is_none(tmp_path):
  raw = tmp_path / 'raw'
  raw.mkdir()

  def message():
    return error_of(data.load, 'cifar10', data_dir=tmp_path, raw_dir=raw)

  assert 'neither cifar-10-binary.tar.gz nor batches.meta.txt' in message()
  write_archive('cifar10', raw)
  archive = raw / 'cifar-10-binary.tar.gz'
  whole = archive.read_bytes()
  for content in (b'', b'text', whole[: len(whole) // 2]):
    archive.write_bytes(content)
    assert f'{archive}: no intact tar.gz' in message()
  (raw / 'batches.meta.txt').write_bytes(
    cifar_files('cifar10')['batches.meta.txt']
  )
  assert message() == f'{raw / "data_batch_1.bin"}: no such file'
  assert prepared_files(tmp_path) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
  write_archive('cifar10', tmp_path / 'raw')
  png, calls = prepare._png, []

  def fail_late(pixels):
    calls.append(1)
    if len(calls) > 5 * TRAIN:  # In the test split.
      raise OSError(28, 'No space left on device')
    return png(pixels)

  monkeypatch.setattr(prepare, '_png', fail_late)
  message = error_of(
    data.load, 'cifar10', data_dir=tmp_path, raw_dir=tmp_path / 'raw'
  )
  assert 'No space left on device' in message and str(tmp_path) in message
  assert prepared_files(tmp_path) == []
  monkeypatch.setattr(prepare, '_png', png)
  data.load('cifar10', data_dir=tmp_path, raw_dir=tmp_path / 'raw')


def test_data_dir_that_is_a_file(tmp_path):
  write_idx(tmp_path / 'raw')
  file = tmp_path / 'file'
  file.write_text('')
  message = error_of(
    data.load, 'mnist', data_dir=file, raw_dir=tmp_path / 'raw'
  )
  assert f'mnist: cannot be prepared in {file}' in message
  assert 'cannot be prepared in' in error_of(data.load, 'mnist', data_dir=file)


def test_only_stock_names_can_be_prepared(tmp_path):
  message = error_of(prepare.prepare, 'digits', tmp_path)
  assert 'allowed are cifar10, cifar100, fashion_mnist, mnist' in message


# Downloads, from a server on this machine.


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves a folder; under /short it promises more than it sends."""

  def log_message(self, *args):
    pass

  def do_GET(self):  # noqa: N802
    if self.path.startswith('/short/'):
      self.send_response(200)
      self.send_header('Content-Length', '1000000')
      self.end_headers()
      self.wfile.write(b'only this')
    else:
      super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
  for variable in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(variable, raising=False)
  folder = tmp_path / 'raw' / 'www'
  folder.mkdir(parents=True)
  handler = functools.partial(Handler, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{running.server_port}', folder
    running.shutdown()
    thread.join()


def serve(monkeypatch, root: str, folder: pathlib.Path, **changes) -> None:
  """Points the table of URLs to `root`; `changes` go to each entry."""

  def sources(name):
    table = {}
    for file in prepare.STOCK[name].needed:
      content = (folder / file).read_bytes()
      entry = {
        'url': f'{root}/{file}',
        'size': len(content),
        'checksum': hashlib.sha256(content).hexdigest(),
        **changes,
      }
      table[file] = (entry['url'], entry['size'], entry['checksum'])
    return table

  monkeypatch.setattr(prepare, '_sources', sources)


def test_download(tmp_path, server, monkeypatch):
  url, folder = server
  serve(monkeypatch, url, folder)
  write_archive('cifar10', folder)
  check_cifar('cifar10', data.load('cifar10', data_dir=tmp_path))
  write_idx(folder)
  assert data.load('mnist', data_dir=tmp_path).train.size == TRAIN
  # No download is kept.
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'cifar10', 'mnist', 'raw',
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'checksum': 'ab' * 32}, f'not {"ab" * 32}'),
    ({'size': 7}, 'more than 7 bytes came, not 7'),
    ({'size': 10**6}, 'bytes came, not 1000000'),
  ],
)
def test_download_of_something_else(
  tmp_path, server, monkeypatch, changes, words
):
  url, folder = server
  write_archive('cifar10', folder)
  serve(monkeypatch, url, folder, **changes)
  message = error_of(data.load, 'cifar10', data_dir=tmp_path)
  assert message.startswith(f'{url}/cifar-10-binary.tar.gz: download failed (')
  assert words in message and '--raw_dir' in message
  assert prepared_files(tmp_path) == []


def test_download_that_fails(tmp_path, server, monkeypatch):
  url, folder = server
  write_archive('cifar10', folder)

  def message(target):
    serve(monkeypatch, url, folder, url=target)
    text = error_of(data.load, 'cifar10', data_dir=tmp_path)
    assert text.startswith(f'{target}: download failed (')
    assert '--raw_dir' in text
    assert prepared_files(tmp_path) == []
    return text

  assert 'HTTP status 404' in message(f'{url}/nowhere.tar.gz')
  assert 'bytes came, not' in message(f'{url}/short/x.tar.gz')
  assert 'refused' in message('http://127.0.0.1:9/x.tar.gz')


def test_download_that_hangs(tmp_path, server, monkeypatch):
  _, folder = server
  write_archive('cifar10', folder)
  monkeypatch.setattr(prepare, 'TIMEOUT', 0.2)
  with socket.create_server(('127.0.0.1', 0)) as silent:
    url = f'http://127.0.0.1:{silent.getsockname()[1]}'
    serve(monkeypatch, url, folder)
    message = error_of(data.load, 'cifar10', data_dir=tmp_path)
  assert 'timed out' in message
  assert prepared_files(tmp_path) == []


def test_the_installed_tfds_knows_every_archive():
  for name, stock in prepare.STOCK.items():
    sources = prepare._sources(name)
    assert tuple(sources) == stock.needed
    for file, (url, size, checksum) in sources.items():
      assert url.startswith('http') and url.endswith(f'/{file}')
      assert size > 1000 and len(checksum) == 64
