"""Nothing that is read is ever unpickled."""

import ast
import io
import os
import pathlib

import helpers
import jax
import numpy as np
import pytest

from experiments.workdir import finished
from unlearn_jax import checkpoints, data, training
from unlearn_jax.base import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent


class Payload:
  """Makes a folder where it is unpickled."""

  def __init__(self, place):
    self.place = str(place)

  def __reduce__(self):
    return os.mkdir, (self.place,)


def test_no_array_is_unpickled(tmp_path):
  """Whoever plants a file can plant its digest as well."""
  mark, buffer = tmp_path / 'executed', io.BytesIO()
  array = np.array([Payload(mark)], dtype=object)
  parts = 'forget', 'retain', 'test', 'x_train', 'y_train', 'x_test', 'y_test'
  np.savez(buffer, **dict.fromkeys(parts, array))
  (tmp_path / 'bad.npz').write_bytes(buffer.getvalue())
  state = training.initialize(jax.random.key(0), helpers.model())
  files = {
    'record.json': b'{"history": []}',
    finished.PREDICTIONS: buffer.getvalue(),
  }
  checkpoints.save(tmp_path / 'stage', state, {}, files)
  with pytest.raises(InputError, match='allow_pickle'):
    finished.load(tmp_path / 'stage')
  with pytest.raises(InputError):
    data.load(f'npz:{tmp_path / "bad.npz"}')
  assert not mark.exists()
  np.load(tmp_path / 'bad.npz', allow_pickle=True)['forget']
  assert mark.exists()


def test_no_line_of_ours_could_unpickle():
  for room in ('unlearn_jax', 'experiments', 'benchmarks'):
    for path in (ROOT / room).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
          names = [alias.name for alias in node.names]
          assert not {'pickle', 'dill', 'joblib', 'shelve'} & set(names), path
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'np.load':
          allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
          assert allowed.get('allow_pickle') == 'False', (path, node.lineno)
