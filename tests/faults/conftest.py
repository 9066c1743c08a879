"""One compilation cache, and one run that nobody disturbed, for all files."""

import processes
import pytest


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def unlearn(cache):
  return processes.Processes('experiments.unlearn', processes.UNLEARN, cache)


@pytest.fixture(scope='session')
def train(cache):
  return processes.Processes('experiments.train', processes.TRAIN, cache)


@pytest.fixture(scope='session')
def whole(unlearn, tmp_path_factory):
  """Where that run wrote."""
  root = tmp_path_factory.mktemp('whole')
  status, text = unlearn.finish(root / 'log', root / 'run')
  assert status == 0, text
  return root / 'run'
