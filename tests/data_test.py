"""Every kind of data set that `load` takes, on files made here."""

import io
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from unlearn_jax import base, data
from unlearn_jax.data import prepared


def error_of(call, *args, **kwargs) -> str:
  """The message of the InputError, which has to be one line."""
  with pytest.raises(base.InputError) as caught:
    call(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def check(dataset: base.Dataset) -> None:
  """What holds for every data set."""
  for part in (dataset.train, dataset.test):
    images, labels = part.images, part.labels
    assert isinstance(images, np.ndarray) and images.dtype == np.uint8
    assert images.shape[1:] == dataset.image_shape and images.ndim == 4
    assert isinstance(labels, np.ndarray) and labels.dtype == np.int32
    assert labels.shape == (len(images),)
    assert labels.min() >= 0 and labels.max() < len(dataset.class_names)
    assert part.indices.tolist() == list(range(len(labels)))
  assert dataset.ids.shape == (dataset.train.size,)
  assert dataset.ids.dtype.kind == 'U'
  assert len(set(dataset.ids.tolist())) == dataset.train.size
  assert dataset.fingerprint == data.fingerprint(
    dataset.train, dataset.test, dataset.ids
  )


# Digits, subsets, fingerprints.


def test_digits_are_split_once_and_for_all():
  dataset = data.load('digits')
  check(dataset)
  assert dataset.name == 'digits'
  assert dataset.train.images.shape == (1437, 8, 8, 1)
  assert dataset.test.images.shape == (360, 8, 8, 1)
  assert dataset.class_names == tuple('0123456789')
  assert data.load('digits').fingerprint == dataset.fingerprint
  # Each part has every class, about as often as the whole has.
  assert np.bincount(dataset.train.labels).min() > 120
  assert np.bincount(dataset.test.labels).min() > 25

  from sklearn import datasets

  digits = datasets.load_digits()
  rows = np.array([int(name.removeprefix('digits_')) for name in dataset.ids])
  np.testing.assert_array_equal(dataset.train.labels, digits.target[rows])
  expected = digits.images[rows] * 255 / 16
  assert np.abs(dataset.train.images[..., 0] - expected).max() <= 0.5
  rest = np.setdiff1d(np.arange(1797), rows)
  np.testing.assert_array_equal(dataset.test.labels, digits.target[rest])


def test_subset_keeps_order_and_ids():
  whole = data.load('digits')
  part = data.subset(whole, 100, seed=3)
  check(part)
  assert part.train.size == 100
  rows = [whole.ids.tolist().index(name) for name in part.ids]
  assert rows == sorted(rows)
  np.testing.assert_array_equal(part.train.images, whole.train.images[rows])
  np.testing.assert_array_equal(part.train.labels, whole.train.labels[rows])
  np.testing.assert_array_equal(part.test.images, whole.test.images)
  assert part.fingerprint == data.subset(whole, 100, seed=3).fingerprint
  others = {whole.fingerprint, data.subset(whole, 100, seed=4).fingerprint}
  assert part.fingerprint not in others
  assert data.subset(whole, 1437).fingerprint == whole.fingerprint
  for size in (0, -1, 1438):
    assert '1..1437' in error_of(data.subset, whole, size)


def test_subset_is_uniform():
  whole = data.load('digits')
  counts = np.zeros(1437)
  for seed in range(200):
    part = data.subset(whole, 300, seed)
    counts += np.isin(whole.ids, part.ids)
  mean, sigma = 200 * 300 / 1437, np.sqrt(200 * 0.209 * 0.791)
  assert np.abs(counts - mean).max() < 5 * sigma


def test_fingerprint_sees_every_part():
  def examples(images=0, labels=0, shape=(2, 3, 1, 1)):
    return base.Examples.of(
      np.full(shape, images, np.uint8), np.full(2, labels, np.int32)
    )

  ids = ['a', 'b']
  seen = {
    data.fingerprint(examples(), examples(), ids),
    data.fingerprint(examples(1), examples(), ids),
    data.fingerprint(examples(), examples(1), ids),
    data.fingerprint(examples(labels=1), examples(), ids),
    data.fingerprint(examples(), examples(labels=1), ids),
    data.fingerprint(examples(shape=(2, 1, 3, 1)), examples(), ids),
    data.fingerprint(examples(), examples(), ['ab', '']),
    data.fingerprint(examples(), examples(), ['a', 'c']),
  }
  assert len(seen) == 8
  assert all(len(text) == 64 and int(text, 16) >= 0 for text in seen)


def test_fingerprint_is_that_of_the_chosen_rows():
  images = np.arange(8, dtype=np.uint8).reshape(4, 2, 1, 1)
  labels = np.arange(4, dtype=np.int32)
  part = base.Examples.of(images, labels).take(np.array([2, 0]))
  copied = base.Examples.of(images[[2, 0]], labels[[2, 0]])
  assert data.fingerprint(part, part, ['x', 'y']) == data.fingerprint(
    copied, copied, ['x', 'y']
  )


# npz files.


def npz_arrays(**changes) -> dict[str, np.ndarray]:
  random = np.random.RandomState(0)
  arrays = {
    'x_train': random.randint(0, 256, (6, 5, 4, 3), np.uint8),
    'y_train': np.array([0, 1, 2, 0, 1, 2]),
    'x_test': random.randint(0, 256, (2, 5, 4, 3), np.uint8),
    'y_test': np.array([1, 2], np.uint8),
  }
  arrays.update(changes)
  return {name: array for name, array in arrays.items() if array is not None}


def test_npz(tmp_path):
  file = tmp_path / 'faces.npz'
  arrays = npz_arrays()
  np.savez(file, **arrays)
  dataset = data.load(f'npz:{file}')
  check(dataset)
  assert dataset.name == f'npz:{file}'
  np.testing.assert_array_equal(dataset.train.images, arrays['x_train'])
  np.testing.assert_array_equal(dataset.test.labels, [1, 2])
  assert dataset.class_names == ('0', '1', '2')
  assert dataset.ids.tolist() == ['0', '1', '2', '3', '4', '5']


def test_npz_of_gray_images(tmp_path):
  file = tmp_path / 'gray.npz'
  arrays = npz_arrays(
    x_train=np.ones((6, 5, 4), np.uint8), x_test=np.ones((2, 5, 4, 1), np.uint8)
  )
  np.savez_compressed(file, **arrays)
  dataset = data.load(f'npz:{file}')
  check(dataset)
  assert dataset.image_shape == (5, 4, 1)


def test_npz_as_medmnist_has_it(tmp_path):
  file, arrays = tmp_path / 'med.npz', npz_arrays()
  own = {f'val_{name}': np.zeros(1) for name in ('images', 'labels')}
  for part in ('train', 'test'):
    own[f'{part}_images'] = arrays[f'x_{part}']
    own[f'{part}_labels'] = arrays[f'y_{part}'][:, None]
  np.savez_compressed(file, **own)
  dataset = data.load(f'npz:{file}')
  check(dataset)
  np.testing.assert_array_equal(dataset.train.images, arrays['x_train'])
  assert dataset.test.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      {'y_test': None},
      ['y_test cannot', 'missing', 'x_test, x_train, y_train'],
    ),
    ({'x_train': np.ones((6, 5, 4, 3))}, ['x_train is float64', 'uint8']),
    ({'x_test': np.ones((2, 5, 4, 3), bool)}, ['x_test is bool', 'uint8']),
    ({'x_train': np.ones((6, 5), np.uint8)}, ['x_train', '(6, 5)', 'height']),
    ({'x_train': np.ones((0, 5, 4), np.uint8)}, ['x_train', '(0, 5, 4)']),
    ({'x_test': np.ones((2, 4, 4, 3), np.uint8)}, ['4x4x3', '5x4x3']),
    ({'x_test': np.ones((2, 5, 4), np.uint8)}, ['5x4x1', '5x4x3']),
    ({'y_train': np.zeros(5, int)}, ['y_train', 'int64[5]', 'integers [6]']),
    ({'y_train': np.eye(6, dtype=int)}, ['y_train', 'int64[6, 6]', '[6]']),
    ({'y_train': np.zeros(6)}, ['y_train: labels are float64[6]', 'integers']),
    (
      {'y_test': np.array([True, False])},
      ['y_test: labels are bool[2]', 'integers'],
    ),
    ({'y_test': np.array([0, -1])}, ['y_test: labels=-1', '0 to 2147']),
    ({'y_test': np.array([0, 7])}, ['y_test has the label 7', 'y_train']),
    ({'y_train': np.full(6, 2**64 - 1, np.uint64)}, ['18446744073709551615']),
    ({'y_train': np.full(6, None)}, ['y_train', 'Object arrays']),
    ({'x_train': np.array('text')}, ['x_train is <U4', 'uint8']),
  ],
)
def test_npz_defects(tmp_path, changes, words):
  file = tmp_path / 'bad.npz'
  np.savez(file, **npz_arrays(**changes))
  message = error_of(data.load, f'npz:{file}')
  for word in [str(file), *words]:
    assert word in message


def test_npz_that_is_none(tmp_path):
  assert 'no such file' in error_of(data.load, f'npz:{tmp_path / "none.npz"}')
  assert 'Is a directory' in error_of(data.load, f'npz:{tmp_path}')
  assert 'npz:PATH' in error_of(data.load, 'npz:')
  file = tmp_path / 'file.npz'
  for content in (b'', b'text', b'PK\x03\x04text', b'\x80\x04K\x01.'):
    file.write_bytes(content)
    message = error_of(data.load, f'npz:{file}')
    assert str(file) in message and 'allowed is an npz' in message
  with file.open('wb') as stream:
    np.save(stream, np.ones(3))
  assert 'allowed is an npz' in error_of(data.load, f'npz:{file}')


def test_npz_with_a_flipped_or_missing_byte(tmp_path):
  file = tmp_path / 'file.npz'
  np.savez(file, **npz_arrays())
  whole = file.read_bytes()
  file.write_bytes(whole[:-40])
  assert str(file) in error_of(data.load, f'npz:{file}')
  # The pixels of x_train begin 128 bytes after its npy header.
  place = whole.index(b'\x93NUMPY') + 140
  file.write_bytes(
    whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
  )
  message = error_of(data.load, f'npz:{file}')
  assert 'x_train cannot be read' in message


# Folders of images.


def save_image(file, shape=(4, 6), value=0, mode=None) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  image = PIL.Image.fromarray(np.full(shape, value, np.uint8))
  (image.convert(mode) if mode else image).save(file)


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'pets'
  save_image(root / 'train/dog/b.png', value=1)
  save_image(root / 'train/dog/a.png', value=2)
  save_image(root / 'train/cat/c d.png', value=3)
  save_image(root / 'test/cat/e.bmp', value=4)
  return root


def test_folder_of_gray_images(folder):
  (folder / '.hidden').mkdir()
  (folder / 'train/.DS_Store').write_text('x')
  (folder / 'train/cat/.DS_Store').write_text('x')
  dataset = data.load(f'folder:{folder}')
  check(dataset)
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.ids.tolist() == ['cat/c d.png', 'dog/a.png', 'dog/b.png']
  assert dataset.image_shape == (4, 6, 1)
  assert dataset.train.images[:, 0, 0, 0].tolist() == [3, 2, 1]
  assert dataset.train.labels.tolist() == [0, 1, 1]
  assert dataset.test.images[:, 3, 5, 0].tolist() == [4]
  assert dataset.test.labels.tolist() == [0]


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P', 'CMYK'])
def test_folder_with_one_image_in_colour(folder, mode):
  name = 'f.tiff' if mode == 'CMYK' else 'f.png'
  save_image(folder / 'test/dog' / name, (4, 6, 3), 255, mode)
  dataset = data.load(f'folder:{folder}')
  check(dataset)
  assert dataset.image_shape == (4, 6, 3)
  assert dataset.train.images[:, 0, 0].tolist() == [[3] * 3, [2] * 3, [1] * 3]
  assert dataset.test.images[:, 0, 0].tolist() == [[4] * 3, [255] * 3]


@pytest.mark.parametrize('mode', ['1', 'LA'])
def test_folder_of_other_gray_modes(folder, mode):
  save_image(folder / 'test/dog/f.png', value=255, mode=mode)
  dataset = data.load(f'folder:{folder}')
  assert dataset.image_shape == (4, 6, 1)
  assert dataset.test.images[:, 0, 0, 0].tolist() == [4, 255]


def test_folder_of_any_sizes(folder):
  ramp = np.tile(np.arange(0, 240, 20, np.uint8), (6, 1))
  (folder / 'test/dog').mkdir()
  PIL.Image.fromarray(ramp).save(folder / 'test/dog/f.png')
  save_image(folder / 'train/dog/tall.jpg', (40, 9), 200)
  plain = error_of(data.load, f'folder:{folder}')
  assert plain.endswith('or --image_size=H,W for all')
  dataset = data.load(f'folder:{folder}', image_size=(3, 4))
  check(dataset)
  assert dataset.image_shape == (3, 4, 1)
  assert dataset.train.images[:, 1, 1, 0].tolist() == [3, 2, 1, 200]
  # A row of 12 pixels covers 3×4 as one of 6, of which the middle 4 are kept.
  row = dataset.test.images[dataset.test.labels == 1][0, 1, :, 0].astype(int)
  np.testing.assert_allclose(row, [50, 90, 130, 170], atol=2)
  other = data.load(f'folder:{folder}', image_size=(4, 4))
  assert other.fingerprint != dataset.fingerprint
  only = error_of(data.load, 'digits', image_size=(4, 4))
  assert only == 'digits: image_size is for folder:DIR only'


def test_what_systems_leave_in_folders_is_skipped_and_counted(folder):
  assert data.litter(f'folder:{folder}') == 0
  before = data.load(f'folder:{folder}')
  (folder / '__MACOSX/train').mkdir(parents=True)
  (folder / 'train/__MACOSX').mkdir()
  (folder / 'train/dog/Thumbs.db').write_bytes(b'x')
  (folder / 'test/cat/desktop.ini').write_bytes(b'x')
  (folder / 'test/.DS_Store').write_bytes(b'x')
  assert data.load(f'folder:{folder}').fingerprint == before.fingerprint
  assert data.litter(f'folder:{folder}') == 5


def test_folder_defects(folder):
  def message():
    return error_of(data.load, f'folder:{folder}')

  odd = folder / 'train/dog/z.png'
  save_image(odd, (5, 6))
  first = folder / 'train/cat/c d.png'
  assert message() == (
    f'{odd}: is 5x6 (height x width); allowed is 4x6 like {first}, or '
    '--image_size=H,W for all'
  )
  odd.write_text('no image')
  assert f'{odd}: cannot be read as an image' in message()
  whole = first.read_bytes()
  odd.write_bytes(whole[: len(whole) // 2])
  assert f'{odd}: cannot be read as an image' in message()
  odd.unlink()
  odd.mkdir()
  assert f'{odd}: cannot be read: Is a directory' in message()
  odd.rmdir()
  PIL.Image.fromarray(np.full((4, 6), 999, np.uint16)).save(odd)
  assert f'{odd}: has pixels of mode I' in message()
  odd.unlink()

  loose = folder / 'train/labels.csv'
  loose.write_text('x')
  assert f'{loose}: not a folder' in message()
  loose.unlink()

  save_image(folder / 'test/bird/g.png')
  assert f'{folder / "test/bird"}: a class without training' in message()
  (folder / 'test/bird/g.png').unlink()
  (folder / 'test/bird').rmdir()

  (folder / 'train/ant').mkdir()
  assert f'{folder / "train/ant"}: holds no image' in message()
  (folder / 'train/ant').rmdir()

  (folder / 'test/cat/e.bmp').unlink()
  assert f'{folder / "test"}: holds no image' in message()
  (folder / 'test/cat').rmdir()
  assert f'{folder / "test"}: holds no class' in message()
  (folder / 'test').rmdir()
  assert f'{folder / "test"}: no such folder' in message()
  assert 'nowhere' in error_of(data.load, 'folder:nowhere')
  assert 'folder:PATH' in error_of(data.load, 'folder:')


# Directories that TFDS prepared.

COUNTS = {'train': 7, 'test': 3}


def png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def pixels_of(split: str, index: int) -> np.ndarray:
  seed = index + 100 * (split == 'test')
  return np.random.RandomState(seed).randint(0, 256, (6, 5, 3), np.uint8)


def label_of(index: int) -> int:
  return index % 3


def build(
  root: pathlib.Path,
  counts=None,
  features=None,
  supervised=('image', 'label'),
  example=None,
  configs=(),
) -> pathlib.Path:
  """Prepares a data set `tiny` with TFDS's own writer, as ArrayRecord."""
  features = features or {
    'id': tfds.features.Text(),
    'image': tfds.features.Image(shape=(6, 5, 3)),
    'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
  }

  def plain(split, index):
    return {
      'id': f'{split}_{index:03d}',
      'image': io.BytesIO(png(pixels_of(split, index))),
      'label': label_of(index),
    }

  def examples(split, count):
    for index in range(count):
      yield index, (example or plain)(split, index)

  with registered.skip_registration():

    class Tiny(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in configs]

      def _info(self):
        result = tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(features),
          supervised_keys=supervised,
        )
        result.initialize_from_bucket = lambda: None
        return result

      def _split_generators(self, dl_manager):
        chosen = counts or COUNTS
        return {split: examples(split, n) for split, n in chosen.items()}

      def _generate_examples(self):
        raise NotImplementedError

  for config in configs or (None,):
    builder = Tiny(data_dir=str(root), config=config)
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  return pathlib.Path(builder.data_path)


def crc32c(content: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in content:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
  return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
  crc = crc32c(content)
  rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
  return struct.pack('<I', (rotated + 0xA282EAD8) % 2**32)


def make_tfrecord(folder: pathlib.Path) -> None:
  """Turns a prepared directory into what an older TFDS would have written."""
  assert crc32c(b'123456789') == 0xE3069283  # The algorithm's check value.
  builder = tfds.builder_from_directory(folder)
  for split in builder.info.splits:
    records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    (old,) = builder.info.splits[split].filepaths
    new = pathlib.Path(str(old).replace('array_record', 'tfrecord'))
    with new.open('wb') as stream:
      for index in range(len(records)):
        record = records[index]
        length = struct.pack('<Q', len(record))
        stream.write(length + masked(length) + record + masked(record))
    pathlib.Path(old).unlink()
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def check_tiny(dataset: base.Dataset) -> None:
  check(dataset)
  assert dataset.train.size == 7 and dataset.test.size == 3
  assert dataset.class_names == ('ant', 'bee', 'cow')
  for row, name in enumerate(dataset.ids):
    index = int(name.removeprefix('train_'))
    np.testing.assert_array_equal(
      dataset.train.images[row], pixels_of('train', index)
    )
    assert dataset.train.labels[row] == label_of(index)


def test_array_record_directory(tmp_path):
  folder = build(tmp_path)
  dataset = data.load('tiny', data_dir=tmp_path)
  check_tiny(dataset)
  assert data.load('tiny:1.0.0', data_dir=tmp_path).ids.tolist() == (
    dataset.ids.tolist()
  )
  assert [file.name for file in folder.glob('*.npz')] == [prepared.CACHE_NAME]
  assert not list(folder.glob('.*'))
  # The data set stays one that TFDS itself reads.
  source = tfds.builder_from_directory(folder).as_data_source('train')
  for row in range(7):
    np.testing.assert_array_equal(
      source[row]['image'], dataset.train.images[row]
    )


def test_default_data_dir_is_that_of_tfds(tmp_path, monkeypatch):
  build(tmp_path)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  check_tiny(data.load('tiny'))
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert prepared.default_data_dir() == tmp_path / 'tensorflow_datasets'


@pytest.mark.parametrize('named', [True, False])
def test_older_tfrecord_directory(tmp_path, named):
  folder = build(tmp_path)
  expected = data.load('tiny', data_dir=tmp_path).fingerprint
  make_tfrecord(folder)
  if not named:  # Before 4.3 the format was not noted down.
    info = json.loads((folder / 'dataset_info.json').read_text())
    del info['fileFormat']
    (folder / 'dataset_info.json').write_text(json.dumps(info))
  (folder / prepared.CACHE_NAME).unlink()
  dataset = data.load('tiny', data_dir=tmp_path)
  check_tiny(dataset)
  assert dataset.fingerprint == expected


def test_damaged_tfrecord(tmp_path):
  folder = build(tmp_path)
  make_tfrecord(folder)
  (file,) = folder.glob('*train.tfrecord*')
  whole = file.read_bytes()
  flipped = bytes([whole[0] ^ 1])
  for content in (whole[:-1], whole[:5], whole + b'x'):
    file.write_bytes(content)
    message = error_of(data.load, 'tiny', data_dir=tmp_path)
    assert f'{file}: damaged or cut short' in message
  file.write_bytes(flipped + whole[1:])
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert str(folder) in message and 'cannot be read' in message
  (length,) = struct.unpack('<Q', whole[:8])
  file.write_bytes(whole[length + 16 :])
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert 'train holds 6 examples where dataset_info.json says 7' in message
  file.write_bytes(whole + whole[: length + 16])
  assert 'train holds more' in error_of(data.load, 'tiny', data_dir=tmp_path)
  file.unlink()
  assert 'cannot be read' in error_of(data.load, 'tiny', data_dir=tmp_path)


def test_damaged_directory(tmp_path):
  folder = build(tmp_path)
  (file,) = folder.glob('*train.array_record*')
  whole = file.read_bytes()
  file.unlink()
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert str(folder) in message and 'cannot be read' in message
  file.write_bytes(whole[: len(whole) // 2])
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert str(folder) in message
  file.write_bytes(whole)
  check_tiny(data.load('tiny', data_dir=tmp_path))
  info = folder / 'dataset_info.json'
  for content in ('{', '{}', '\0'):
    info.write_text(content)
    message = error_of(data.load, 'tiny', data_dir=tmp_path)
    assert str(folder.parent) in message and 'prepare it again' in message


def test_cache_is_used_until_the_records_change(tmp_path, monkeypatch):
  folder = build(tmp_path)
  decoded = []
  decode = prepared._decode
  monkeypatch.setattr(
    prepared, '_decode', lambda *args: decoded.append(1) or decode(*args)
  )
  first = data.load('tiny', data_dir=tmp_path)
  second = data.load('tiny', data_dir=tmp_path)
  assert len(decoded) == 1
  assert first.fingerprint == second.fingerprint
  check_tiny(second)

  (file,) = folder.glob('*train.array_record*')
  status = file.stat()
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
  check_tiny(data.load('tiny', data_dir=tmp_path))
  assert len(decoded) == 2
  # Another of the same size and mtime.
  status, other = file.stat(), tmp_path / 'other'
  shutil.copyfile(file, other)
  os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
  other.replace(file)
  check_tiny(data.load('tiny', data_dir=tmp_path))
  assert len(decoded) == 3


def test_drafts_of_killed_processes_are_swept_after_a_day(tmp_path):
  folder = build(tmp_path)
  old, new = (folder / f'.{prepared.CACHE_NAME}-{n}' for n in ('old', 'new'))
  for path in (old, new):
    path.write_bytes(b'half')
  day = time.time() - 90_000
  os.utime(old, (day, day))
  check_tiny(data.load('tiny', data_dir=tmp_path))
  assert not old.exists() and new.exists()


def refuse(*args, **kwargs):
  # As root every directory can be written, so the refusal is made here.
  raise PermissionError('read-only')


def test_decoded_images_are_mapped_on_demand(tmp_path, monkeypatch):
  folder = build(tmp_path)
  # Once as they are decoded, once as the cache holds them.
  for _ in range(2):
    dataset = data.load('tiny', data_dir=tmp_path, map_beyond=0)
    check_tiny(dataset)
    for part in (dataset.train, dataset.test):
      assert isinstance(part.images, np.memmap)
      assert not part.images.flags.writeable
  (folder / prepared.CACHE_NAME).unlink()
  plain = data.load('tiny', data_dir=tmp_path)
  assert not isinstance(plain.train.images, np.memmap)
  assert plain.fingerprint == dataset.fingerprint
  # Where nothing can be written, they stay in memory.
  (folder / prepared.CACHE_NAME).unlink()
  monkeypatch.setattr(prepared.tempfile, 'mkstemp', refuse)
  check_tiny(data.load('tiny', data_dir=tmp_path, map_beyond=0))


@pytest.mark.parametrize('map_beyond', [math.inf, 0])
@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'pickle', 'other'])
def test_broken_cache_is_made_again(tmp_path, damage, map_beyond):
  folder = build(tmp_path)
  expected = data.load('tiny', data_dir=tmp_path).fingerprint
  file = folder / prepared.CACHE_NAME
  whole = file.read_bytes()
  if damage == 'cut':
    file.write_bytes(whole[: len(whole) // 2])
  elif damage == 'flip':
    place = whole.index(pixels_of('train', 0).tobytes()) + 50
    file.write_bytes(
      whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    )
  elif damage == 'empty':
    file.write_bytes(b'')
  elif damage == 'pickle':
    np.savez(file, key=np.array(None))
  else:
    np.savez(file, key=prepared._cache_key(folder))
  broken = file.read_bytes()
  dataset = data.load('tiny', data_dir=tmp_path, map_beyond=map_beyond)
  check_tiny(dataset)
  assert dataset.fingerprint == expected
  assert file.read_bytes() != broken
  with np.load(file) as arrays:
    assert arrays['x_train'].shape == (7, 6, 5, 3)


def test_unwritable_directory_is_read_without_a_cache(tmp_path, monkeypatch):
  folder = build(tmp_path)
  monkeypatch.setattr(prepared.tempfile, 'mkstemp', refuse)
  check_tiny(data.load('tiny', data_dir=tmp_path))
  assert not list(folder.glob('*.npz'))


def test_full_disk_leaves_no_cache(tmp_path, monkeypatch):
  folder = build(tmp_path)

  def refuse(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(prepared.np, 'savez', refuse)
  before = sorted(folder.iterdir())
  check_tiny(data.load('tiny', data_dir=tmp_path))
  assert sorted(folder.iterdir()) == before


def test_validation_stands_in_for_test(tmp_path):
  build(tmp_path, counts={'train': 4, 'validation': 2})
  dataset = data.load('tiny', data_dir=tmp_path)
  assert (dataset.train.size, dataset.test.size) == (4, 2)


def test_missing_split(tmp_path):
  build(tmp_path, counts={'extra': 2})
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert 'has the splits extra; allowed are train, and' in message


def test_coarse_labels_and_repeated_ids(tmp_path):
  build(
    tmp_path,
    features={
      'id': tfds.features.Text(),
      'image': tfds.features.Image(shape=(6, 5, 1)),
      'coarse_label': tfds.features.ClassLabel(num_classes=2),
      'fine': tfds.features.ClassLabel(num_classes=4),
    },
    supervised=('image', 'fine'),
    example=lambda split, index: {
      'id': 'same',
      'image': io.BytesIO(png(pixels_of(split, index)[..., 0])),
      'coarse_label': 0,
      'fine': 3,
    },
  )
  dataset = data.load('tiny', data_dir=tmp_path)
  check(dataset)
  assert dataset.image_shape == (6, 5, 1)
  assert dataset.train.labels.tolist() == [3] * 7
  assert dataset.class_names == ('0', '1', '2', '3')
  # Ids that do not tell examples apart are none.
  assert dataset.ids.tolist() == [str(row) for row in range(7)]


def image_features(**changes):
  return {
    'image': tfds.features.Image(shape=(6, 5, 3)),
    'label': tfds.features.ClassLabel(num_classes=3),
    **changes,
  }


@pytest.mark.parametrize(
  ('features', 'example', 'words'),
  [
    (
      {'number': tfds.features.Scalar(dtype=np.int64)},
      lambda split, index: {'number': index},
      '0 features of type Image (none)',
    ),
    (
      image_features(label=tfds.features.Scalar(dtype=np.int64)),
      lambda split, index: {
        'image': io.BytesIO(png(pixels_of(split, index))),
        'label': 0,
      },
      '0 features of type ClassLabel (none)',
    ),
    (
      image_features(image=tfds.features.Image(shape=(None, None, 3))),
      lambda split, index: {
        'image': io.BytesIO(png(pixels_of(split, index)[: 6 - index])),
        'label': 0,
      },
      'one size for all',
    ),
    (
      image_features(
        image=tfds.features.Image(shape=(6, 5, 1), dtype=np.uint16)
      ),
      lambda split, index: {
        'image': io.BytesIO(png(np.zeros((6, 5), np.uint16))),
        'label': 0,
      },
      'images are uint16; allowed is uint8',
    ),
    (
      image_features(),
      lambda split, index: {
        'image': io.BytesIO(png(pixels_of(split, index))),
        'label': -1,
      },
      'the label -1; allowed are 0..2',
    ),
    (
      image_features(),
      lambda split, index: {'image': io.BytesIO(b'no image'), 'label': 0},
      'cannot be read (UnidentifiedImageError',
    ),
  ],
)
def test_prepared_data_that_is_no_image_classification(
  tmp_path, features, example, words
):
  folder = build(
    tmp_path,
    counts={'train': 2, 'test': 2},
    features=features,
    supervised=None,
    example=example,
  )
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert str(folder) in message and words in message


def test_configurations(tmp_path):
  build(tmp_path, configs=('large', 'small'))
  check_tiny(data.load('tiny/small', data_dir=tmp_path))
  # TFDS notes its default configuration, the first one.
  assert prepared.find('tiny', tmp_path) == tmp_path / 'tiny/large/1.0.0'
  (tmp_path / 'tiny/.config/metadata.json').unlink()
  message = error_of(data.load, 'tiny', data_dir=tmp_path)
  assert message.endswith('configurations or versions there, large, small')
  assert prepared.find('tiny/none', tmp_path) is None


def test_the_highest_version_counts(tmp_path):
  folder = build(tmp_path)
  for version in ('1.9.0', '1.10.0'):
    shutil.copytree(folder, tmp_path / 'tiny' / version)
  (tmp_path / 'tiny' / 'incomplete.X_3.0.0').mkdir()
  assert prepared.find('tiny', tmp_path) == tmp_path / 'tiny/1.10.0'
  assert prepared.find('tiny:1.9.0', tmp_path) == tmp_path / 'tiny/1.9.0'
  assert prepared.find('tiny:2.0.0', tmp_path) is None
  assert prepared.find('../tiny', tmp_path / 'tiny') is None


# Names.


def test_known_names_with_nothing_prepared(tmp_path):
  message = error_of(data.load, 'kmnist', data_dir=tmp_path)
  assert 'pip install tensorflow-cpu' in message
  assert f"tfds.data_source('kmnist', data_dir='{tmp_path}')" in message
  message = error_of(data.load, 'emnist/letters', data_dir=tmp_path)
  assert "tfds.data_source('emnist/letters'" in message
  message = error_of(data.load, 'cifar10:1.0.0', data_dir=tmp_path)
  assert "tfds.data_source('cifar10:1.0.0'" in message
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('cifr10', 'cifar10'),
    ('CIFAR10', 'cifar10'),
    ('digit', 'digits'),
    ('fashion-mnist', 'fashion_mnist'),
    ('svhn', 'svhn_cropped'),
  ],
)
def test_unknown_names_get_the_nearest(tmp_path, name, near):
  message = error_of(data.load, name, data_dir=tmp_path)
  assert f"'{name}': unknown data set; did you mean" in message
  assert near in message.partition('allowed')[0]


@pytest.mark.parametrize(
  'name', ['', 'qqqqqqqq', 'a b\nc', '/etc', '../x', ':']
)
def test_unknown_names_without_a_near_one(tmp_path, name):
  message = error_of(data.load, name, data_dir=tmp_path)
  assert 'unknown data set; allowed are digits, cifar10' in message
  assert 'npz:FILE' in message


def test_importing_is_light():
  """scikit-learn and TFDS take seconds and are not always needed."""
  script = 'import sys, unlearn_jax.data; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True, text=True, check=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )  # fmt: skip
  modules = set(done.stdout.split())
  assert 'unlearn_jax.data' in modules
  assert not modules & {'sklearn', 'tensorflow_datasets', 'tensorflow'}


# Images that are not what they seem.


def image_folder(root, write):
  """Two classes of 4×6 pixels; `write(file)` makes one of the images anew."""
  for split in ('train', 'test'):
    for name in ('a', 'b'):
      (root / split / name).mkdir(parents=True)
      file = root / split / name / 'x.png'
      PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file)
  (root / 'train/a/x.png').unlink()
  write(root / 'train/a/x')
  return f'folder:{root}'


def test_images_are_turned_as_exif_says(tmp_path):
  pixels = np.arange(24, dtype=np.uint8).reshape(6, 4)

  def write(file):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # It was taken with the camera turned.
    PIL.Image.fromarray(pixels).save(f'{file}.png', exif=exif)

  dataset = data.load(image_folder(tmp_path, write))
  np.testing.assert_array_equal(
    dataset.train.images[0, :, :, 0], np.rot90(pixels, -1)
  )


def animated(file):
  frames = [PIL.Image.fromarray(np.full((4, 6), v, np.uint8)) for v in (9, 99)]
  frames[0].save(f'{file}.gif', save_all=True, append_images=frames[1:])


def deep(file):
  rows = b''.join(b'\0' + bytes(36) for _ in range(4))
  header = struct.pack('>IIBBBBB', 6, 4, 16, 2, 0, 0, 0)

  def chunk(kind, content):
    whole = kind + content
    length, crc = len(content), zlib.crc32(whole)
    return struct.pack('>I', length) + whole + struct.pack('>I', crc)

  parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows))
  signature = b'\x89PNG\r\n\x1a\n'
  pathlib.Path(f'{file}.png').write_bytes(
    b''.join([signature, *parts, chunk(b'IEND', b'')])
  )


def postscript(file):
  text = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n'
  pathlib.Path(f'{file}.eps').write_text(text)


@pytest.mark.parametrize(
  'write, words',
  [
    (animated, '2 frames, allowed is one'),
    (deep, 'has pixels of mode I;16; allowed are 8 bits a channel'),
    (postscript, 'cannot be read as an image'),
  ],
)
def test_images_that_would_be_misread_are_refused(
  tmp_path, monkeypatch, write, words
):
  ran = []
  monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: ran.append(a))
  assert words in error_of(data.load, image_folder(tmp_path, write))
  assert not ran


def test_channels_come_last(tmp_path):
  file = tmp_path / 'first.npz'
  first = {
    name: np.zeros((6, 3, 8, 8), np.uint8) for name in ('x_train', 'x_test')
  }
  np.savez(file, **npz_arrays(**first, y_test=np.arange(6) % 3))
  message = error_of(data.load, f'npz:{file}')
  assert 'x_train has shape (6, 3, 8, 8)' in message
  assert message.endswith('allowed is channels last')


@pytest.mark.parametrize('column', [False, True])
def test_classes_are_the_labels_that_there_are(tmp_path, column):
  """Keras's labels are [N, 1], others begin at 1 or have gaps."""
  file = tmp_path / 'gaps.npz'
  y_train, y_test = np.array([10, 1, 5000] * 2), np.array([5000, 1])
  if column:
    y_train, y_test = y_train[:, None], y_test[:, None]
  np.savez(file, **npz_arrays(y_train=y_train, y_test=y_test))
  dataset = data.load(f'npz:{file}')
  assert dataset.class_names == ('1', '10', '5000')
  assert dataset.train.labels.tolist() == [1, 0, 2] * 2
  assert dataset.test.labels.tolist() == [2, 0]


def test_a_prepared_set_of_one_split_gives_a_share_for_testing(tmp_path):
  build(tmp_path, {'train': 10})
  with pytest.raises(base.InputError, match='no test images, allowed: test_f'):
    data.load('tiny', data_dir=tmp_path)
  one, again = (
    data.load('tiny', data_dir=tmp_path, test_fraction=0.3) for _ in range(2)
  )
  assert (one.train.size, one.test.size) == (7, 3)
  assert one.fingerprint == again.fingerprint
  numbers = sorted(int(name.removeprefix('train_')) for name in one.ids)
  assert len(numbers) == 7 and numbers != list(range(7))
  for row, name in enumerate(one.ids):
    number = int(name.removeprefix('train_'))
    pixels = one.train.images[row]
    np.testing.assert_array_equal(pixels, pixels_of('train', number))
    assert one.train.own_labels[row] == label_of(number)
  for fraction in (0.01, 0.99):
    with pytest.raises(base.InputError, match='of the 10 images, and not all'):
      data.load('tiny', data_dir=tmp_path, test_fraction=fraction)
  with pytest.raises(base.InputError, match='where there are test images'):
    data.load('digits', test_fraction=0.3)


@pytest.mark.parametrize('place', ['data_dir', 'raw_dir'])
def test_a_url_is_no_folder(place, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  options = {'data_dir': tmp_path, place: 'gs://bucket/data'}
  with pytest.raises(base.InputError, match='a URL, allowed: a path of this'):
    data.load('mnist', **options)
  assert not list(tmp_path.iterdir())
