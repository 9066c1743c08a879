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

NAMES = ('x_train', 'y_train', 'x_test', 'y_test')
GOOD = {
  'x_train': np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4),
  'y_train': np.array([0, 1, 0, 1, 0, 1]),
  'x_test': np.zeros((2, 4, 4), np.uint8),
  'y_test': np.array([0, 1]),
}
DTYPES = st.sampled_from(
  ['u1', 'i1', '<i4', '>i8', 'u8', 'f2', '>f4', 'c8', '?', 'U3', 'S2', 'M8[s]']
)
SHAPES = st.lists(st.integers(0, 6), max_size=5).map(tuple)
ODD = st.sampled_from(
  [
    np.array([{}], object),
    np.array([(1, 2.0)], [('a', 'i4'), ('b', 'f8')]),
    np.array(7),
    np.array([np.nan, np.inf]),
    np.array(['1']),
    np.array([-1, 0, 1, 0, 1, 0]),
    np.array([2**62, 0, 1, 0, 1, 0]),
    np.array([2**64 - 1, 0, 1, 0, 1, 0], np.uint64),
    np.array([65536, 0, 1, 0, 1, 0]),
    np.zeros((6, 4, 4, 3), np.uint8),
    np.zeros((6, 4, 4, 0), np.uint8),
    np.zeros((6, 2, 2), np.uint8),
    np.zeros(6, [('é\n', 'i4')]),
  ]
)
ARRAYS = st.one_of(
  ODD, st.tuples(SHAPES, DTYPES).map(lambda both: np.zeros(*both))
)
FORM = "{'descr': '|u1', 'fortran_order': False, 'shape': (COUNT, 4, 4), }"
HEADERS = st.sampled_from(
  [
    FORM.replace('COUNT', str(count))
    for count in (7, 10**6, 10**10, 10**15, 10**30, 10**200, -1, -6)
  ]
  + [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 10000000000), }",
    "{'descr': '|V999999999999', 'fortran_order': False, 'shape': (6, ), }",
    "{'descr': '<U999999999', 'fortran_order': False, 'shape': (99, ), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (10000000000, ), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': 6, }",
    "{'descr': [], 'fortran_order': 0, 'shape': (), }",
    '(' * 300,
    '{' * 3000,
    '__import__("os")',
    '',
  ]
)


def saved(array):
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    np.lib.format.write_array(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def headed(text, body=bytes(96)):
  """An npy file with this header."""
  raw = text.encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + len(raw).to_bytes(2, 'little') + raw + body


MEMBERS = st.one_of(
  ARRAYS.map(saved),
  HEADERS.map(headed),
  st.binary(max_size=40),
  st.just(saved(GOOD['x_train'])[:-9]),
  st.just(saved(GOOD['x_train']) + b'more'),
)


def archive(changed, deflate=True, twice=()):
  """The good file with other members; None leaves one out."""
  buffer = io.BytesIO()
  kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
  with zipfile.ZipFile(buffer, 'w', kind) as file, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of names that are there already.
    for name in [*NAMES, *(n for n in changed if n not in NAMES), *twice]:
      content = changed.get(name, b'-')
      if content == b'-':
        content = saved(GOOD[name])
      if content is not None:
        file.writestr(f'{name}.npy', content)
  return buffer.getvalue()


@st.composite
def harmed(draw, whole):
  """The same bytes cut, flipped, or with others among them."""
  content = bytearray(whole)
  for _ in range(draw(st.integers(1, 3))):
    place = draw(st.integers(0, max(0, len(content) - 1)))
    kind = draw(st.sampled_from(['cut', 'flip', 'insert', 'zero']))
    if kind == 'cut':
      del content[place:]
    elif kind == 'insert':
      content[place:place] = draw(st.binary(min_size=1, max_size=9))
    elif content:
      old = content[place]
      content[place] = (
        old ^ 1 << draw(st.integers(0, 7)) if kind == 'flip' else 0
      )
  return bytes(content)


CHANGED = st.dictionaries(
  st.sampled_from([*NAMES, 'more', '../out', 'x_train.npy', 'é']),
  st.one_of(st.none(), MEMBERS),
  min_size=1,
  max_size=3,
).map(lambda d: {n: c for n, c in d.items() if c is not None or n in NAMES})
CONTENT = st.one_of(
  st.tuples(CHANGED, st.booleans()).map(lambda both: archive(*both)),
  st.sampled_from([archive({}), archive({}, False)]).flatmap(harmed),
  st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(
    lambda names: archive({}, twice=tuple(names))
  ),
  MEMBERS,
  st.binary(max_size=80),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('npz')


def load(folder, content):
  path = folder / 'data.npz'
  path.write_bytes(content)
  found = {}

  def read(map_beyond):
    found[map_beyond] = data.load(f'npz:{path}', map_beyond=map_beyond)

  with fuzzing.case('npz', folder):
    why, also = (
      fuzzing.refused(lambda: read(beyond)) for beyond in (math.inf, 0)
    )
  # In memory or mapped, it is the same file.
  assert (why is None) == (also is None)
  if why is None:
    assert found[0].fingerprint == found[math.inf].fingerprint
  else:
    for line in (why, also):
      fuzzing.check_line(line)
      assert str(path) in line
  return why, found.get(math.inf)


@given(CONTENT)
@example(archive({}))
@example(archive({'x_train': None}))
@example(archive({'x_train': saved(np.array([{}], object))}))
@example(archive({}, twice=('x_train',)))
@fuzzing.profile('npz')
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
  def refuse(*_, **__):
    raise AssertionError('it is read')

  for count in (10**6, 10**10, 10**15):
    text = FORM.replace('COUNT', str(count))
    content = archive({'x_train': headed(text)})
    with monkeypatch.context() as patch:
      patch.setattr(np.lib.format, 'read_array', refuse)
      why, _ = load(folder, content)
    assert f'{16 * count} bytes by its header, 96 in the file' in why


def test_an_array_larger_than_the_memory_is_not_unpacked(folder, monkeypatch):
  monkeypatch.setattr(os, 'sysconf', lambda name: 8)
  why, _ = load(folder, archive({}))
  assert 'x_train cannot be read (ValueError: 96 bytes, this machine has' in why
