"""Images that stay in their file, and processes that read their part of it."""

import errno
import io
import json
import mmap
import os
import socket
import zipfile

import numpy as np
import PIL.Image
import processes_test
import pytest

from experiments import config
from experiments.study import setup as setups
from unlearn_jax import base, data, parallel
from unlearn_jax.data import images, npz, streaming


def arrays(**changes):
  random = np.random.RandomState(0)
  return {
    'x_train': random.randint(0, 256, (200, 5, 4, 3), np.uint8),
    'y_train': np.arange(200) % 3,
    'x_test': random.randint(0, 256, (4, 5, 4, 3), np.uint8),
    'y_test': np.arange(4) % 3,
    **changes,
  }


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'data.npz'
  np.savez(path, **arrays())
  return path


def mapped(dataset):
  parts = (dataset.train.images, dataset.test.images)
  return [isinstance(part, np.memmap) for part in parts]


def test_mapped_images_are_the_plainly_read_ones(file):
  plain = data.load(f'npz:{file}')
  got = data.load(f'npz:{file}', map_beyond=0)
  assert mapped(plain) == [False, False] and mapped(got) == [True, True]
  for part, other in ((got.train, plain.train), (got.test, plain.test)):
    assert not part.images.flags.writeable
    assert part.images.dtype == np.uint8
    np.testing.assert_array_equal(part.images, other.images)
    np.testing.assert_array_equal(part.labels, other.labels)
    assert not isinstance(part.labels, np.memmap)
  assert got.fingerprint == plain.fingerprint
  # It stays what it is when another file takes the name.
  black = file.with_name('black.npz')
  np.savez(black, **arrays(x_train=np.zeros((200, 5, 4, 3), np.uint8)))
  black.replace(file)
  np.testing.assert_array_equal(got.train.images, plain.train.images)


def test_only_what_is_larger_is_mapped(file):
  nbytes = 200 * 5 * 4 * 3
  for beyond, wanted in ((nbytes, False), (nbytes - 1, True)):
    dataset = data.load(f'npz:{file}', map_beyond=beyond)
    assert mapped(dataset) == [wanted, False]


def rewritten(file, change=lambda name, content: content, **options):
  """Writes the members anew."""
  with zipfile.ZipFile(file) as old:
    members = {name: old.read(name) for name in old.namelist()}
  with zipfile.ZipFile(file, 'w', **options) as new:
    for name, content in members.items():
      info = zipfile.ZipInfo(name)
      info.compress_type = new.compression
      # In the local header alone: it moves the data, unlike the directory's.
      with new.open(info, 'w', force_zip64=True) as stream:
        stream.write(change(name, content))


def by_column(name, content):
  if not name.startswith('x_'):
    return content
  stream = io.BytesIO()
  np.save(stream, np.asfortranarray(np.load(io.BytesIO(content))))
  return stream.getvalue()


@pytest.mark.parametrize(
  'how, wanted',
  [
    ({'compression': zipfile.ZIP_STORED}, True),
    ({'compression': zipfile.ZIP_DEFLATED}, False),
    ({'change': by_column}, False),
  ],
)
def test_of_other_files_what_can_be_mapped_is(file, how, wanted):
  plain = data.load(f'npz:{file}')
  rewritten(file, **how)
  got = data.load(f'npz:{file}', map_beyond=0)
  assert mapped(got) == [wanted, wanted]
  assert got.fingerprint == plain.fingerprint
  np.testing.assert_array_equal(got.train.images, plain.train.images)


def test_bytes_before_the_archive(file):
  plain = data.load(f'npz:{file}')
  file.write_bytes(b'#!/bin/sh\n' + file.read_bytes())
  # NumPy wants an npz to begin with one; zipfile does not.
  with zipfile.ZipFile(file) as archive:
    got = npz.read(archive, 'x_train', map_beyond=0)
  assert isinstance(got, np.memmap)
  np.testing.assert_array_equal(got, plain.train.images)


def test_on_a_file_system_that_cannot_map_they_are_read(file, monkeypatch):
  def refuse(*_, **__):
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

  monkeypatch.setattr(mmap, 'mmap', refuse)
  dataset = data.load(f'npz:{file}', map_beyond=0)
  assert mapped(dataset) == [False, False]
  assert dataset.fingerprint == data.load(f'npz:{file}').fingerprint


def harm(file, how):
  whole = file.read_bytes()
  place = whole.index(arrays()['x_train'].tobytes()) + 50
  flipped = bytes([whole[place] ^ 1])
  file.write_bytes(
    whole[: len(whole) // 2]
    if how == 'cut'
    else whole[:place] + flipped + whole[place + 1 :]
  )


@pytest.mark.parametrize('how', ['flip', 'cut'])
def test_a_damaged_file_is_refused_in_one_line(file, how):
  harm(file, how)
  with pytest.raises(base.InputError, match='(x_train|npz file)') as caught:
    data.load(f'npz:{file}', map_beyond=0)
  assert '\n' not in str(caught.value) and str(file) in str(caught.value)


def test_a_told_fingerprint_is_taken_and_no_image_read(file):
  harm(file, 'flip')
  told = 'f' * 64
  dataset = data.load(f'npz:{file}', map_beyond=0, known_fingerprint=told)
  assert dataset.fingerprint == told
  # What is read is verified all the same.
  with pytest.raises(base.InputError, match='x_train cannot be read'):
    data.load(f'npz:{file}', known_fingerprint=told)


# What process 0 tells the others.


def set_up(dataset, train_subset=None):
  """As a process of its own does, which remembers nothing."""
  setups._set_up.cache_clear()
  setups._placed.cache_clear()
  which = config.Data(str(dataset), train_subset)
  return setups.set_up(config.Study(which, config.Network(width=4)))


@pytest.fixture
def other_process(monkeypatch):
  """Runs a function as process 0, and again as one that is told by it."""
  told = []

  def tell(function):
    # The way through JSON is part of it.
    told.append(json.dumps(function()))
    return json.loads(told[-1])

  def run(function, meanwhile=lambda: None):
    with monkeypatch.context() as patch:
      patch.setattr(parallel, 'by_first', tell)
      first = function()
      meanwhile()
      patch.setattr(parallel, 'by_first', lambda _: json.loads(told.pop(0)))
      for room, name in (
        (data, 'fingerprint'),
        (images, 'pixel_statistics'),
      ):
        patch.setattr(room, name, lambda *_, name=name: pytest.fail(name))
      return first, function()

  return run


@pytest.mark.parametrize('limit, train_subset', [(None, 9), (0, None)])
def test_one_process_hashes_for_all(file, other_process, limit, train_subset):
  with streaming.limit(limit):
    first, second = other_process(lambda: set_up(f'npz:{file}', train_subset))
  assert first.facts == second.facts
  assert first.dataset.fingerprint == second.dataset.fingerprint
  assert len(first.facts.data_fingerprint) == 64
  mean, std = images.pixel_statistics(first.dataset.train)
  assert first.facts.pixel_mean == [float(x) for x in mean]
  assert first.facts.pixel_std == [float(x) for x in std]
  np.testing.assert_array_equal(
    first.dataset.train.images, second.dataset.train.images
  )


DIFFER = 'sizes, names, ids, labels or images differ'
OTHERS = {
  'sizes': {'x_test': np.zeros((3, 5, 4, 3), np.uint8), 'y_test': [0, 1, 2]},
  'class names': {'y_test': np.array([0, 1, 2, 3])},
  'labels': {'y_train': np.arange(200)[::-1] % 3},
  'images': {'x_train': arrays()['x_train'] ^ 1},
}


@pytest.mark.parametrize('what', OTHERS)
def test_another_data_set_than_that_of_process_0(file, other_process, what):
  def change():
    file.unlink()
    np.savez(file, **arrays(**OTHERS[what]))

  with streaming.limit(0), pytest.raises(base.InputError) as caught:
    other_process(lambda: set_up(f'npz:{file}'), change)
  assert str(caught.value) == (
    f'--dataset=npz:{file}: {DIFFER} from those of process 0; allowed is'
    ' the same data set in all processes'
  )


def test_other_ids(tmp_path, other_process):
  for split in ('train', 'test'):
    for name in ('a', 'b'):
      (tmp_path / split / name).mkdir(parents=True)
      image = PIL.Image.fromarray(np.zeros((4, 4), np.uint8))
      image.save(tmp_path / split / name / 'x.png')

  def rename():
    (tmp_path / 'train/a/x.png').rename(tmp_path / 'train/a/y.png')

  with pytest.raises(base.InputError, match=f'{DIFFER} from those of'):
    other_process(lambda: set_up(f'folder:{tmp_path}'), rename)


# Two real processes.

ROWS, SIDE = 1600, 64

READING = """
import json, re, types
import jax.numpy as jnp
from experiments import config
from experiments.study import setup as setups
from streaming_test import OnHost
from unlearn_jax import base, training
from unlearn_jax.data import streaming

class Counting(OnHost):
  ndim, maps, real = 4, [], np.memmap

  def __init__(self, *arguments):
    super().__init__(self.real(*arguments))
    self.maps.append(self)

  def __len__(self):
    return self.shape[0]

np.memmap = Counting

def read_so_far():
  plain = re.search('rchar: ([0-9]+)', open('/proc/self/io').read())
  train, _ = Counting.maps or [None, None]
  return [int(plain[1]), train.taken if train else 0]

def note():
  found.append([now - then for now, then in zip(read_so_far(), before)])

model = base.stateless(
  lambda params, x: x.astype(jnp.float32).mean((1, 2)) * params['w']
)
found, before = [], read_so_far()
with streaming.limit(0):
  which = config.Data(f'npz:{out}/data.npz')
  train = setups.load(which, config.Archives()).train
  note()
  training.fit(
    jax.random.key(0),
    model,
    base.ModelState({'w': jnp.ones(2)}),
    [train],
    epochs=1,
    batch_sizes=[16],
    optimizer=training.adam(1e-3),
  )
  note()
with open(f'{out}/{process}.json', 'w') as stream:
  json.dump(found, stream)
"""


def test_a_process_reads_what_its_devices_take(tmp_path, monkeypatch):
  """Bytes of plain reads, as Linux counts them, and rows of the map."""
  images = np.zeros((ROWS + 2, SIDE, SIDE, 1), np.uint8)
  labels = np.arange(ROWS + 2) % 2
  train, test = slice(ROWS), slice(ROWS, None)
  np.savez(
    tmp_path / 'data.npz',
    x_train=images[train],
    y_train=labels[train],
    x_test=images[test],
    y_test=labels[test],
  )
  body, _ = processes_test.WORKER.split('import helpers')
  monkeypatch.setattr(processes_test, 'WORKER', body + READING)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  started = [processes_test.start(i, 2, port, tmp_path) for i in range(2)]
  for process in started:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
  (first, _), (second, trained) = (
    json.loads((tmp_path / f'{number}.json').read_text()) for number in range(2)
  )
  # The first verifies the file, and hashes and looks at its images.
  assert first[0] > images.nbytes and first[1] == ROWS + setups._LOOKED_AT
  # The other one has the labels, and looks at a few images.
  assert second[0] < images.nbytes / 10 and second[1] == setups._LOOKED_AT
  # An epoch is half of the images for each.
  assert trained[0] < images.nbytes / 2, trained
  assert trained[1] == ROWS // 2 + setups._LOOKED_AT
