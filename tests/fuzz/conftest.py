"""One device, as a newcomer has, and no network."""

import itertools
from unittest import mock

import fuzzing
import helpers
import jax
import pytest

from unlearn_jax import data, parallel
from unlearn_jax.base import InputError
from unlearn_jax.data import prepare


@pytest.fixture(scope='module', autouse=True)
def one_device(tmp_path_factory):
  def refuse(*_):
    raise InputError('no network here')

  with (
    parallel.use(jax.devices()[:1]),
    mock.patch.object(prepare, '_download', refuse),
    mock.patch.dict(
      'os.environ', TFDS_DATA_DIR=str(tmp_path_factory.mktemp('tfds'))
    ),
    pytest.MonkeyPatch.context() as patch,
  ):
    # A path that is not absolute leads to nothing of ours.
    patch.chdir(tmp_path_factory.mktemp('here'))
    yield


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """Data and a work directory in which source, Retrain and Top-K are done."""
  root = tmp_path_factory.mktemp('finished')
  helpers.stripes_file(root, train=120, test=40)
  with parallel.use(jax.devices()[:1]):
    status, text = fuzzing.run_binary('unlearn', fuzzing.quick(root), True)
  assert status == 0, text
  return root


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
  """Folders that no case has used yet."""
  root = tmp_path_factory.mktemp('folders')
  return (_made(root / str(number)) for number in itertools.count())


def _made(path):
  path.mkdir()
  return path


@pytest.fixture(scope='session')
def dataset(finished):
  return data.load(f'npz:{finished / "stripes.npz"}')
