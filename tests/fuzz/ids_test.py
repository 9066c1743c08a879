"""Files of ids of what is to be forgotten."""

import os

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np

from unlearn_jax import data

ODD = (
  *('', '#', '# all', '7 # seven', '7#', '-0', '+7', '007', '1.0', '1e1'),
  *('#7', '#007', '#-1', '#' + '9' * 5000, '#7 # seven'),
  *('9' * 5000, '-' + '9' * 5000, '７', '²', '0x7', 'x' * 20000, '\t8 '),
  *('\ufeff3', '3\u2028', '\x1b[31m', '\x0b5', '5\x85', '\u202e5', '5\r'),
)
LINE = st.one_of(
  st.integers(-3, 130).map(str), st.sampled_from(ODD), st.text(max_size=8)
)
TEXT = st.tuples(
  st.lists(LINE, max_size=8), st.sampled_from(['\n', '\r\n', '\n\n', '\r', ''])
).map(lambda both: both[1].join(both[0]))
CODES = st.sampled_from(['utf-8', 'utf-8', 'utf-16', 'utf-8-sig'])


@given(
  st.one_of(
    st.builds(lambda t, c: t.encode(c, 'surrogatepass'), TEXT, CODES),
    st.binary(max_size=60),
  )
)
@example(b'#3\n59\n#7\n')
@example(b'')
@example(b'1\n' * 2)
@example(b'1\r\n2\r\n')
@example(b'1\x002')
@fuzzing.cases(120)
def test_a_file(folders, dataset, content):
  path, rows = next(folders) / 'forget.txt', []
  path.write_bytes(content)
  with fuzzing.case(path.parent):
    why = fuzzing.refused(lambda: rows.extend(data.read_ids(path, dataset)))
  if why is None:
    assert len(rows) and 0 <= min(rows) and max(rows) < dataset.train.size
    assert (np.diff(rows) > 0).all()
  else:
    fuzzing.check_line(why)
    assert str(path) in why


def test_what_is_no_file(dataset, tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero', tmp_path, tmp_path / 'none'):
    with fuzzing.case(tmp_path):
      assert str(path) in fuzzing.refused(data.read_ids, path, dataset)
