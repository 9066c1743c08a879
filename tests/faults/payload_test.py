"""Nothing that is read is ever unpickled."""

import ast
import io
import os
import pathlib
import pickle
import shutil

import helpers
import jax
import numpy as np
import pytest

from experiments import stages
from unlearn_jax import checkpoints, data, snapshots, training
from unlearn_jax.base import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent


class Payload:
  """Makes a folder where it is unpickled."""

  def __init__(self, place):
    self.place = str(place)

  def __reduce__(self):
    return os.mkdir, (self.place,)


@pytest.fixture
def mark(tmp_path):
  return tmp_path / 'executed'


@pytest.fixture
def state():
  return training.initialize(jax.random.key(0), helpers.model())


def packed_array(mark, *names):
  """An npz file whose arrays hold the payload."""
  buffer = io.BytesIO()
  array = np.array([Payload(mark)], dtype=object)
  np.savez(buffer, **dict.fromkeys(names, array))
  return buffer.getvalue()


def test_the_payload_works(mark):
  with np.load(
    io.BytesIO(packed_array(mark, 'forget')), allow_pickle=True
  ) as arrays:
    arrays['forget']
  assert mark.exists()


def test_a_stage_with_a_payload_and_fitting_digests(tmp_path, mark, state):
  files = {
    stages.RECORD: b'{}',
    stages.PREDICTIONS: packed_array(mark, 'forget', 'retain', 'test'),
  }
  checkpoints.save(tmp_path / 'a', state, {}, files)
  with pytest.raises(InputError, match='allow_pickle') as error:
    stages.load(tmp_path / 'a')
  assert '\n' not in str(error.value)
  assert not mark.exists()


def test_every_file_replaced_by_a_payload(tmp_path, mark, state):
  files = {stages.RECORD: b'{}', stages.PREDICTIONS: b''}
  checkpoints.save(tmp_path / 'a', state, {}, files)
  harmful = pickle.dumps(Payload(mark))
  for number, file in enumerate(helpers.files(tmp_path / 'a')):
    folder = tmp_path / str(number)
    shutil.copytree(tmp_path / 'a', folder)
    (folder / file.relative_to(tmp_path / 'a')).write_bytes(harmful)
    for read in (stages.load, snapshots.restore, checkpoints.read_manifest):
      try:
        read(folder)
      except InputError as error:
        assert '\n' not in str(error)
  assert not mark.exists()


def test_a_payload_whose_digest_the_manifest_names(tmp_path, mark, state):
  """Whoever plants a file can plant its digest as well."""
  harmful = pickle.dumps(Payload(mark))
  names = [stages.RECORD, snapshots.COURSE]
  checkpoints.save(tmp_path / 'a', state, {}, dict.fromkeys(names, harmful))
  for read in (stages.load, snapshots.restore):
    with pytest.raises(InputError):
      read(tmp_path / 'a')
  assert not mark.exists()


def test_a_data_set_with_a_payload(tmp_path, mark):
  names = ('x_train', 'y_train', 'x_test', 'y_test')
  (tmp_path / 'bad.npz').write_bytes(packed_array(mark, *names))
  with pytest.raises(InputError):
    data.load(f'npz:{tmp_path / "bad.npz"}')
  assert not mark.exists()


def test_no_line_of_ours_could_unpickle():
  calls = 0
  for room in ('unlearn_jax', 'experiments', 'benchmarks'):
    for path in (ROOT / room).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
          names = [alias.name for alias in node.names]
          assert not {'pickle', 'dill', 'joblib', 'shelve'} & set(names), path
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'np.load':
          calls += 1
          allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
          assert allowed.get('allow_pickle') == 'False', (path, node.lineno)
  assert calls >= 3
