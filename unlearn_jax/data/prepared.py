"""Reads what TensorFlow Datasets prepared, without TensorFlow.

A prepared data set is a directory DATA_DIR/NAME[/CONFIG]/VERSION of ArrayRecord
files, or TFRecord files if an older TFDS made it. Nothing here downloads.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import io
import math
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import Any
import zipfile

import numpy as np

from unlearn_jax import base
from unlearn_jax.data import local, npz
from unlearn_jax.data.extras import optional

# Decoding 60,000 small images takes 10 s, reading them decoded 0.2 s.
CACHE_NAME = 'unlearn_jax_decoded.npz'

_NAME = re.compile(r'\w+(/[\w.+\-]+)?(:\d+\.\d+\.\d+)?', re.ASCII)
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


def default_data_dir() -> pathlib.Path:
  """Where TFDS keeps its data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  folder = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(folder).expanduser()


def library(needed_by: str = 'data sets of TFDS') -> Any:
  """TensorFlow Datasets, which takes a second to load."""
  return optional('tensorflow_datasets', needed_by)


def find(name: str, data_dir: str | os.PathLike[str]) -> pathlib.Path | None:
  """The directory of a prepared data set.

  Args:
    name: `NAME[/CONFIG][:VERSION]`. Without a version the highest one counts;
      without a configuration, TFDS's default one.
    data_dir: where data sets were prepared.

  Returns:
    DATA_DIR/NAME[/CONFIG]/VERSION, or None if there is none.

  Raises:
    InputError: what is there is damaged.
  """
  tfds = library(base.shown(name))
  if not _NAME.fullmatch(name):
    return None
  folder = pathlib.Path(data_dir).expanduser()
  find_builder = tfds.core.read_only_builder.builder_from_files
  try:
    builder = find_builder(name, data_dir=folder)
  except tfds.core.registered.DatasetNotFoundError:
    return None
  except Exception as error:
    raise _damaged(folder / name, error) from error
  return pathlib.Path(builder.data_dir)


def _damaged(folder: pathlib.Path, error: Exception) -> base.InputError:
  return base.InputError(
    f'{folder}: this prepared data set cannot be read ({local.reason(error)});'
    ' remove it and prepare it again'
  )


def read(
  folder: str | os.PathLike[str], map_beyond: float = math.inf
) -> local.Parts:
  """The images and labels of a prepared data set.

  The splits are `train` and `test`, or `validation` where there is no test
  split; without either, there are 0 test images. What was decoded is kept in
  the directory, if it can be written, until the record files change.

  Args:
    folder: as found by `find`.
    map_beyond: see `npz.read`; for the decoded images.

  Returns:
    The parts of the data set, in the order of the files; `ids` are the `id` of
    each training example, if they differ.

  Raises:
    InputError: the directory is damaged, or is no classification of images
      of one size and 8 bits a channel.
  """
  folder = pathlib.Path(folder)
  file = folder / CACHE_NAME
  try:
    tfds = library()
    key = _cache_key(folder)
    if kept := read_cache(file, key, map_beyond):
      return kept
    parts = _decode(tfds.builder_from_directory(folder), folder)
  except base.InputError:
    raise
  except Exception as error:  # Damaged files raise a dozen types.
    raise _damaged(folder, error) from error
  try:
    return keep(file, key, parts, map_beyond)
  except OSError:  # A read-only directory or a full disk.
    return parts


def _decode(builder: Any, folder: pathlib.Path) -> local.Parts:
  """All examples of both splits; see `read`."""
  tfds = library()
  info = builder.info
  image_key, label_key = _feature_keys(info, folder)
  image, label = info.features[image_key], info.features[label_key]
  if np.dtype(image.np_dtype) != np.uint8:
    raise base.InputError(
      f'{folder}: images are {np.dtype(image.np_dtype)}; allowed is uint8'
    )
  if image.shape[-1] not in _MODES:
    raise base.InputError(
      f'{folder}: images have {image.shape[-1]} channels; allowed are 1, 3, 4'
    )
  has_ids = 'id' in info.features and info.features['id'].shape == ()
  keys = [image_key, label_key] + ['id'] * has_ids
  # Parsing the other features would cost time, and some need TensorFlow.
  features = tfds.features.FeaturesDict({k: info.features[k] for k in keys})
  decoders = {image_key: tfds.decode.SkipDecoding()}

  test = 'test' if 'test' in info.splits else 'validation'
  if 'train' not in info.splits:
    raise base.InputError(
      f'{folder}: has the splits {", ".join(info.splits) or "none"}; allowed'
      ' are train, and test or validation'
    )
  parts: list[Any] = []
  ids: list[str] = []
  shape: tuple[int, ...] = ()
  for split in ('train', *(s for s in (test,) if s in info.splits)):
    count = info.splits[split].num_examples
    images = None
    labels = np.empty(count, np.int32)
    done = 0
    for record in _records(builder, split):
      if done == count:
        done += 1  # One too many.
        break
      example = features.deserialize_example_np(record, decoders=decoders)
      pixels = _pixels(example[image_key], image.shape[-1])
      shape = shape or pixels.shape
      if pixels.shape != shape:
        raise base.InputError(
          f'{folder}: image {done} of {split} has shape {pixels.shape}; allowed'
          f' is one size for all, {shape} like the first'
        )
      if images is None:
        images = np.empty((count, *shape), np.uint8)
      if not 0 <= example[label_key] < label.num_classes:
        raise base.InputError(
          f'{folder}: example {done} of {split} has the label'
          f' {example[label_key]}; allowed are 0..{label.num_classes - 1}'
        )
      images[done], labels[done] = pixels, example[label_key]
      if has_ids and split == 'train':
        name = example['id']
        ids.append(name.decode() if isinstance(name, bytes) else str(name))
      done += 1
    if images is None or done != count:
      raise base.InputError(
        f'{folder}: {split} holds {"more" if done > count else done} examples'
        f' where dataset_info.json says {count}; remove it and prepare it again'
      )
    parts += [images, labels]
  parts += [part[:0] for part in parts[: 4 - len(parts)]]  # No test split.
  unique = len(set(ids)) == len(ids) > 0
  own = np.array(ids) if unique else None
  return local.Parts._make((*parts, tuple(label.names), own))


def _feature_keys(info: Any, folder: pathlib.Path) -> tuple[str, str]:
  """The names of the image and of the label among the features."""
  features = library().features

  def only(kind: type, fallback: str) -> str:
    # Not isinstance: an image of labels is an Image too.
    found = [key for key, value in info.features.items() if type(value) is kind]
    for key in (*(info.supervised_keys or ()), fallback):
      if key in found:
        return key
    if len(found) != 1:
      raise base.InputError(
        f'{folder}: has {len(found)} features of type {kind.__name__}'
        f' ({", ".join(found) or "none"}); allowed is one image and one label'
      )
    return found[0]

  return only(features.Image, 'image'), only(features.ClassLabel, 'label')


def _pixels(encoded: bytes, channels: int) -> np.ndarray:
  """uint8 `[height, width, channels]` of an encoded image."""
  pillow = optional('PIL.Image', 'images of files')
  with pillow.open(io.BytesIO(encoded)) as image:
    pixels = np.asarray(image.convert(_MODES[channels]))
  return pixels.reshape(*pixels.shape[:2], channels)


def _records(builder: Any, split: str) -> Iterator[bytes]:
  """The serialised examples of a split, in the order of its files."""
  tfds = library()
  info = builder.info
  file_format = info.file_format.value if info.file_format else 'tfrecord'
  if file_format == 'tfrecord':
    for file in info.splits[split].filepaths:
      yield from _tfrecords(pathlib.Path(file))
    return
  if file_format != 'array_record':
    raise base.InputError(
      f'{info.data_dir}: is in the format {file_format}; allowed are'
      ' array_record and tfrecord'
    )
  source = builder.as_data_source(
    split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
  )
  step = 1000  # One by one is slower; all at once is the data set twice.
  for start in range(0, len(source), step):
    stop = min(start + step, len(source))
    yield from source.__getitems__(list(range(start, stop)))


def _tfrecords(file: pathlib.Path) -> Iterator[bytes]:
  """The records of a TFRecord file.

  Each is framed as: length (uint64), its checksum, the record, its checksum.
  The checksums are not verified: CRC-32C in Python would take minutes, and
  what is cut or shifted is no example.
  """
  with file.open('rb') as stream:
    while header := stream.read(12):
      length = int.from_bytes(header[:8], 'little')
      body = stream.read(min(length, file.stat().st_size) + 4)
      if len(header) < 12 or len(body) != length + 4:
        raise base.InputError(
          f'{file}: damaged or cut short before byte {stream.tell()}; remove'
          ' its directory and prepare the data set again'
        )
      yield body[:length]


def _cache_key(folder: pathlib.Path) -> str:
  """Changes whenever a file of the prepared data set changes."""
  digest = hashlib.sha256(b'1')  # The version of the cache's layout.
  for file in sorted(folder.iterdir()):
    if file.is_file() and not file.name.startswith(('.', CACHE_NAME)):
      status = file.stat()
      # Whoever replaces a file can give it any mtime, but no ctime.
      times = status.st_mtime_ns, status.st_ctime_ns
      line = f'{file.name}\0{status.st_size}\0{times}\n'
      digest.update(line.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def read_cache(
  file: pathlib.Path, key: str, map_beyond: float
) -> local.Parts | None:
  """What `keep` wrote; None where it is missing, broken or of another key."""
  try:
    base.require_file(file)
    with zipfile.ZipFile(file) as archive:
      if str(npz.read(archive, 'key')) != key:
        return None
      *arrays, names, ids = (
        npz.read(archive, n, map_beyond if n.startswith('x_') else math.inf)
        for n in local.Parts._fields
      )
  except Exception:  # Whatever is wrong with it, it can be made again.
    return None
  known = ids if len(ids) else None
  return local.Parts._make((*arrays, tuple(names.tolist()), known))


def sweep(folder: pathlib.Path, prefix: str) -> None:
  """Removes drafts of these names that a killed process left a day ago."""
  for draft in folder.glob(f'{prefix}*'):
    with contextlib.suppress(OSError):  # Another may do the same.
      if time.time() - draft.stat().st_mtime > 86_400:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def keep(
  file: pathlib.Path, key: str, parts: local.Parts, map_beyond: float
) -> local.Parts:
  """Writes decoded arrays in one step, so that others see all or nothing.

  Returns `parts`, with the images mapped where `npz.read` would map them.
  Raises OSError where it cannot be written; then nothing of it is left.
  """
  text = {
    'class_names': np.array(parts.class_names, str),
    'ids': np.array([] if parts.ids is None else parts.ids, str),
  }
  sweep(file.parent, f'.{file.name}-')
  handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f'.{file.name}-')
  try:
    with os.fdopen(handle, 'wb') as stream:
      np.savez(stream, key=key, **{**parts._asdict(), **text})
    # mkstemp lets the owner read only; others share prepared data.
    os.chmod(temporary, file.parent.stat().st_mode & 0o666)
    os.replace(temporary, file)
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)
  if max(parts.x_train.nbytes, parts.x_test.nbytes) > map_beyond:
    return read_cache(file, key, map_beyond) or parts
  return parts
