"""npz files: any arrays, and any bytes."""

import io
import math
import os
import warnings
import zipfile

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pytest

from unlearn_jax import data

GOOD = {
  'x_train': np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4),
  'y_train': np.array([0, 1, 0, 1, 0, 1]),
  'x_test': np.zeros((2, 4, 4), np.uint8),
  'y_test': np.array([0, 1]),
}
ODD = (
  np.array([{}], object),
  np.array([(1, 2.0)], [('a', 'i4'), ('b', 'f8')]),
  np.array(7),
  np.array([np.nan, np.inf]),
  np.array([-1, 0, 1, 0, 1, 0]),
  np.array([2**64 - 1, 0, 1, 0, 1, 0], np.uint64),
  np.array([65536, 0, 1, 0, 1, 0]),
  np.zeros((6, 4, 4, 0), np.uint8),
  np.zeros(6, [('é\n', 'i4')]),
)
DTYPES = ('u1', 'i1', '>i8', 'u8', 'f2', 'c8', '?', 'U3', 'S2', 'M8[s]')
SHAPES = st.lists(st.integers(0, 6), max_size=5).map(tuple)
FORM = "{'descr': 'KIND', 'fortran_order': False, 'shape': (COUNT), }"
IMAGES = FORM.replace('KIND', '|u1').replace('COUNT', 'COUNT, 4, 4')
HEADERS = (
  *(IMAGES.replace('COUNT', str(n)) for n in (7, 10**10, 10**200, -1, -6)),
  FORM.replace('KIND', '|u1').replace('COUNT', '0, 10000000000'),
  FORM.replace('KIND', '|V999999999999').replace('COUNT', '6,'),
  FORM.replace('KIND', '|O').replace('COUNT', '10000000000,'),
  "{'descr': [], 'fortran_order': 0, 'shape': (), }",
  *('(' * 300, '{' * 3000, '__import__("os")', ''),
)


def saved(array):
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    np.lib.format.write_array(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def headed(text):
  """An npy file with this header, and 96 bytes."""
  raw = text.encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + len(raw).to_bytes(2, 'little') + raw + bytes(96)


def archive(changed, deflate=True, twice=()):
  """The good file with other members; None leaves one out."""
  buffer = io.BytesIO()
  kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
  members = {name: saved(array) for name, array in GOOD.items()} | changed
  with zipfile.ZipFile(buffer, 'w', kind) as file, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of names that are there already.
    for name in [*members, *twice]:
      if members[name] is not None:
        file.writestr(f'{name}.npy', members[name])
  return buffer.getvalue()


def harmed(deflate, place, bit, cut):
  """The good file with a bit flipped, and perhaps cut after that."""
  content = bytearray(archive({}, deflate))
  content[place % len(content)] ^= 1 << bit
  return bytes(content[: place % len(content) + 1 if cut else None])


HARMED = st.builds(
  harmed, st.booleans(), st.integers(0), st.integers(0, 7), st.booleans()
)
MEMBERS = st.one_of(
  st.sampled_from(ODD).map(saved),
  st.tuples(SHAPES, st.sampled_from(DTYPES)).map(
    lambda both: saved(np.zeros(*both))
  ),
  st.sampled_from(HEADERS).map(headed),
  st.binary(max_size=40),
  st.sampled_from([saved(GOOD['x_train'])[:-9], saved(GOOD['x_train']) + b'.']),
)
CHANGED = st.dictionaries(
  st.sampled_from([*GOOD, 'more', '../out', 'x_train.npy', 'é']),
  MEMBERS,
  min_size=1,
  max_size=3,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('npz')


def load(folder, content):
  path, found = folder / 'data.npz', {}
  path.write_bytes(content)

  def read(map_beyond):
    found[map_beyond] = data.load(f'npz:{path}', map_beyond=map_beyond)

  with fuzzing.case(folder):
    why, also = (fuzzing.refused(read, beyond) for beyond in (math.inf, 0))
  # In memory or mapped, it is the same file.
  assert (why is None) == (also is None)
  if why is None:
    assert found[0].fingerprint == found[math.inf].fingerprint
  for line in (why, also) if why else ():
    fuzzing.check_line(line)
    assert str(path) in line
  return why, found.get(math.inf)


@given(st.one_of(st.builds(archive, CHANGED, st.booleans()), HARMED, MEMBERS))
@example(archive({}))
@example(archive({'x_train': None}))
@example(archive({'x_train': saved(ODD[0])}))
@example(archive({}, twice=('x_train',)))
@fuzzing.cases(120)
def test_any_content(folder, content):
  why, found = load(folder, content)
  if why is None:
    for part in (found.train, found.test):
      assert part.images.dtype == np.uint8 and part.images.ndim == 4
      assert 0 not in part.images.shape
      assert len(part.images) == len(part.labels) == part.size
      assert 0 <= part.labels.min()
      assert part.labels.max() < len(found.class_names)


def test_no_memory_is_taken_for_what_is_only_declared(folder, monkeypatch):
  for count in (10**6, 10**15):
    content = archive({'x_train': headed(IMAGES.replace('COUNT', str(count)))})
    with monkeypatch.context() as patch:
      patch.setattr(np.lib.format, 'read_array', None)
      why, _ = load(folder, content)
    assert f'{16 * count} bytes by its header, 96 in the file' in why
  monkeypatch.setattr(os, 'sysconf', lambda name: 8)
  why, _ = load(folder, archive({}))
  assert 'x_train cannot be read (ValueError: 96 bytes, this machine has' in why
