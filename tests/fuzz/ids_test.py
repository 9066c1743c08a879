"""Files of ids of what is to be forgotten."""

import os

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pytest

from unlearn_jax import data

LINES = st.one_of(
  st.integers(-3, 70).map(str),
  st.integers().map(str),
  st.sampled_from(
    [
      *('', '#', '# all', '7 # seven', '7#', '-0', '+7', '007', '1.0', '1e1'),
      *('9' * 5000, '-' + '9' * 5000, '７', '²', '0x7', 'x' * 20000, '\t8 '),
      *('\ufeff3', '3\u2028', '\x1b[31m', '\x0b5', '5\x85', '\u202e5', '5\r'),
    ]
  ),
  st.text(max_size=8),
)
ENDS = st.sampled_from(['\n', '\r\n', '\n\n', '\r', ''])
TEXT = st.tuples(st.lists(LINES, max_size=8), ENDS).map(
  lambda both: both[1].join(both[0])
)
CONTENT = st.one_of(
  TEXT.map(lambda text: text.encode('utf-8', 'surrogatepass')),
  TEXT.map(lambda text: text.encode('utf-16', 'surrogatepass')),
  TEXT.map(lambda text: text.encode('utf-8-sig', 'surrogatepass')),
  st.binary(max_size=60),
  st.lists(st.integers(0, 59), min_size=1, max_size=9, unique=True).map(
    lambda rows: '\n'.join(map(str, rows)).encode()
  ),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('ids')


@given(CONTENT)
@example(b'')
@example(b'1\n' * 2)
@example(b'1\r\n2\r\n')
@example(b'1\x002')
@fuzzing.profile('forget ids')
def test_a_file(folder, dataset, content):
  path = folder / 'forget.txt'
  path.write_bytes(content)
  rows = None

  def read():
    nonlocal rows
    rows = data.read_ids(path, dataset)

  with fuzzing.case('forget ids', folder):
    why = fuzzing.refused(read)
  if why is None:
    assert len(rows) and 0 <= rows.min() and rows.max() < dataset.train.size
    assert (np.diff(rows) > 0).all()
  else:
    fuzzing.check_line(why)
    assert str(path) in why


def test_what_is_no_file(folder, dataset, tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero', tmp_path, tmp_path / 'none'):
    with fuzzing.case('forget ids', tmp_path):
      assert str(path) in fuzzing.refused(data.read_ids, path, dataset)
