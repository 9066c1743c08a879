"""Generators of a pair: when they are saved, and what is gone on with."""

import functools

import helpers
import jax
import pytest

from experiments import kept_pairs, stages
from experiments.progress import Progress
from unlearn_jax import parallel, training

MODEL, SPLITS = helpers.model(), helpers.splits()
SEEDS, EPOCHS = 3, 2


@pytest.fixture(autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


def generators(root):
  """Those of a pair, in a work directory that is claimed anew."""
  workdir = stages.Workdir(root, {'dataset': 'stripes'}, save_seconds=30.0)
  workdir.claim()
  progress = Progress(1, SEEDS * EPOCHS)
  progress.begin('pair', SEEDS * EPOCHS)
  return workdir, kept_pairs.generators(
    workdir, 'pair', {'of': 'tests'}, EPOCHS, SEEDS, progress
  )


def train(hooks, seed):
  """In place of a generator: what is kept of one does not matter here."""
  return training.train(
    jax.random.key(seed),
    MODEL,
    SPLITS.train,
    epochs=EPOCHS,
    batch_size=16,
    on_epoch=functools.partial(hooks.on_epoch, seed),
    keeper=hooks.keeper(seed),
  )


def names(root):
  """The saves of each generator."""
  found = {}
  for seed in range(SEEDS):
    for path in root.glob(f'checkpoints/.pair-generator{seed}-*.partial'):
      found[seed] = sorted(own.name for own in path.iterdir())
  return found


class Clock:
  now = 0.0

  def monotonic(self):
    return self.now


def test_quick_ones_are_saved_together_when_it_is_time(tmp_path, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(kept_pairs, 'time', clock)
  _, kept = generators(tmp_path)
  with kept as hooks:
    train(hooks, 0)
    assert names(tmp_path) == {}
    clock.now = 30.0
    train(hooks, 1)
    assert names(tmp_path) == {0: ['epoch-000002'], 1: ['epoch-000002']}
    train(hooks, 2)
    assert list(names(tmp_path)) == [0, 1]
  assert names(tmp_path) == {}


class OutOfTimeError(Exception):
  """Whoever gave the time has no more of it."""


def test_what_was_broken_off_is_saved_if_that_is_asked_for(tmp_path, capsys):
  workdir, kept = generators(tmp_path)
  with pytest.raises(OutOfTimeError):
    with kept as hooks:
      first = train(hooks, 0)
      train(hooks, 1)
      raise OutOfTimeError
  assert names(tmp_path) == {}
  workdir.flush()
  assert list(names(tmp_path)) == [0, 1]
  del workdir
  capsys.readouterr()
  _, kept = generators(tmp_path)
  with kept as hooks:
    again = train(hooks, 0)
    assert again.history == first.history
    train(hooks, 1)
    train(hooks, 2)
  assert capsys.readouterr().out.count('goes on after epoch 4/6') == 1
  assert names(tmp_path) == {}
