"""Saves of a running stage: when they are made, and what harm they survive."""

import errno
import json
import shutil
import signal
import threading

import helpers
import jax
import numpy as np
import pytest

from experiments import partials, preemption, stages
from unlearn_jax import checkpoints, snapshots, training
from unlearn_jax.base import InputError

MODEL, SPLITS = helpers.model(), helpers.splits()


def train(keeper=None, epochs=4):
  """A training whose last save has ended, too."""
  fit = training.train(
    jax.random.key(3),
    MODEL,
    SPLITS.train,
    epochs=epochs,
    batch_size=16,
    keeper=keeper,
  )
  if keeper:
    keeper.settle()
  return fit


def partial(tmp_path, save_seconds=0.0, told=None):
  tell = None if told is None else told.append
  return partials.Partial(tmp_path / 'seed0-source-abc', save_seconds, tell)


def saved(tmp_path):
  return sorted(path.name for path in tmp_path.glob('.*.partial/*'))


def assert_same(one, other):
  leaves, others = jax.tree.leaves(one.state), jax.tree.leaves(other.state)
  for a, b in zip(leaves, others, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def whole():
  return train()


def test_another_process_goes_on_from_the_last_save(tmp_path, whole):
  train(partial(tmp_path), epochs=3)
  assert saved(tmp_path) == ['epoch-000002', 'epoch-000003']
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [3]


def test_removal_leaves_nothing(tmp_path):
  kept = partial(tmp_path)
  train(kept, epochs=1)
  (tmp_path / '.seed0-source-abc-x1y2').mkdir()
  (tmp_path / '.seed0-source-other-x1y2').mkdir()
  kept.remove()
  names = [path.name for path in tmp_path.iterdir()]
  assert names == ['.seed0-source-other-x1y2']


@pytest.mark.parametrize(
  'error', [MemoryError(), OSError(errno.EMFILE, 'Too many open files')]
)
def test_a_save_that_cannot_be_read_now_is_kept(
  error, tmp_path, whole, monkeypatch
):
  train(partial(tmp_path), epochs=3)

  def refuse(path):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, '_sha256', refuse)
    with pytest.raises(InputError, match='epoch-000003 cannot be read: '):
      train(partial(tmp_path))
  assert saved(tmp_path) == ['epoch-000002', 'epoch-000003']
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [3]


@pytest.mark.parametrize(
  'error, says',
  [
    (MemoryError(), 'cannot be read: MemoryError: $'),
    (ValueError('cut'), 'is damaged: .*; remove that folder and the same'),
  ],
)
def test_only_a_damaged_stage_is_to_be_removed(
  error, says, tmp_path, whole, monkeypatch
):
  def refuse(path):
    raise error

  checkpoints.save(tmp_path / 'stage', whole.state, {}, {'note': b''})
  monkeypatch.setattr(checkpoints, '_sha256', refuse)
  with pytest.raises(InputError, match=says):
    stages._load_own(tmp_path / 'stage')


@pytest.mark.parametrize('harm', helpers.HARMS)
def test_a_damaged_save_falls_back_to_the_one_before(
  harm, tmp_path, whole, capsys
):
  kept = partial(tmp_path)
  train(kept, epochs=3)
  newest, pristine = kept.folder / 'epoch-000003', tmp_path / 'pristine'
  names = [path.relative_to(newest) for path in helpers.files(newest)]
  kept.folder.rename(pristine)
  for name in names:
    shutil.rmtree(kept.folder, ignore_errors=True)
    shutil.copytree(pristine, kept.folder)
    helpers.HARMS[harm](newest / name)
    capsys.readouterr()
    told = []
    again = train(partial(tmp_path, told=told), epochs=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('warning: ') and str(newest) in line, line
    assert name.name in line, line
    assert told == [2]
    assert again.history[-1].loss == whole.history[3].loss


def test_without_a_whole_save_the_stage_starts_anew(tmp_path, whole, capsys):
  train(partial(tmp_path), epochs=3)
  for file in helpers.files(tmp_path):
    helpers.flip(file)
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == []
  assert len(capsys.readouterr().err.splitlines()) == 2


def test_another_stages_save_is_not_taken(tmp_path, capsys):
  train(partial(tmp_path), epochs=1)
  (tmp_path / '.seed0-source-abc.partial').rename(tmp_path / '.other.partial')
  other = partials.Partial(tmp_path / 'other', 0.0)
  train(other, epochs=1)
  assert 'made with stage=' in capsys.readouterr().err


def test_what_a_killed_save_left_is_swept(tmp_path):
  train(partial(tmp_path), epochs=1)
  folder = tmp_path / '.seed0-source-abc.partial'
  (folder / '.epoch-000002-x1y2').mkdir()
  (folder / '.epoch-000002-x1y2' / 'half').write_bytes(b'1')
  (tmp_path / '.seed0-source-abc-x1y2').mkdir()
  train(partial(tmp_path), epochs=1)
  assert saved(tmp_path) == ['epoch-000001']
  assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.fixture
def clock(monkeypatch):
  own = helpers.Clock()
  monkeypatch.setattr(partials, 'time', own)
  return own


def epochs_saved(clock, monkeypatch, kept, cost):
  """The epochs, 10 s each, after which there is a save of `cost` seconds."""
  found, real = [], snapshots.save

  def slow(path, packed, facts):
    found.append(packed.course.epoch)
    clock.now += cost
    return real(path, packed, facts)

  class Ten:
    def load(self, like):
      return kept.load(like)

    def save(self, snapshot):
      clock.now += 10
      kept.save(snapshot)
      kept.settle()

    def settle(self):
      pass

  monkeypatch.setattr(snapshots, 'save', slow)
  train(Ten(), epochs=12)
  return found


def test_saves_are_as_far_apart_as_was_asked_for(tmp_path, clock, monkeypatch):
  kept = partial(tmp_path, 30.0)
  assert epochs_saved(clock, monkeypatch, kept, 0.1) == [3, 6, 9, 12]


def test_a_dear_save_is_made_less_often(tmp_path, clock, monkeypatch):
  """Two seconds in each 50 are four per cent."""
  kept = partial(tmp_path, 30.0)
  assert epochs_saved(clock, monkeypatch, kept, 2.0) == [3, 8]


def test_zero_seconds_save_every_epoch(tmp_path, clock, monkeypatch):
  kept = partial(tmp_path, 0.0)
  found = epochs_saved(clock, monkeypatch, kept, 2.0)
  assert found == list(range(1, 13))


def test_who_is_asked_to_stop_saves_first(tmp_path, monkeypatch, whole):
  monkeypatch.setattr(
    preemption, 'requested', lambda: signal.SIGTERM, raising=True
  )
  with pytest.raises(preemption.Stopped) as stopped:
    train(partial(tmp_path, 1e9))
  assert stopped.value.signum == signal.SIGTERM
  assert 'saved after epoch 1 in' in stopped.value.note
  assert saved(tmp_path) == ['epoch-000001']
  monkeypatch.undo()
  assert_same(train(partial(tmp_path)), whole)


def test_who_is_asked_to_stop_in_an_epoch_saves_its_step(
  tmp_path, monkeypatch, whole
):
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  answers = iter([None] * 9 + [signal.SIGINT])
  monkeypatch.setattr(preemption, 'requested', lambda: next(answers))
  with pytest.raises(preemption.Stopped) as stopped:
    train(partial(tmp_path, 1e9))
  # Of six steps in each epoch, the tenth.
  assert 'is saved after step 4 of epoch 2 in' in stopped.value.note
  assert saved(tmp_path) == ['epoch-000001-step-000000004']
  manifest = json.loads(next(tmp_path.rglob('manifest.json')).read_text())
  assert (manifest['epoch'], manifest['step']) == (1, 4)
  monkeypatch.undo()
  told, done = [], []
  kept = partials.Partial(
    tmp_path / 'seed0-source-abc', 0.0, told.append, done.append
  )
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  assert_same(train(kept), whole)
  assert told == [1]
  assert done[0] == 1 + 5 / 6 and all(epochs % 1 for epochs in done)


def test_saves_of_one_epoch_are_in_order(tmp_path, monkeypatch, whole):
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  train(partial(tmp_path), epochs=1)
  assert saved(tmp_path) == ['epoch-000000-step-000000005', 'epoch-000001']
  monkeypatch.undo()
  assert_same(train(partial(tmp_path)), whole)


def test_training_goes_on_while_a_save_is_written(tmp_path, monkeypatch, whole):
  disk, seen, real = threading.Event(), [], checkpoints._digests

  def slow(folder):
    assert disk.wait(60)
    return real(folder)

  class Watched(partials.Partial):
    def save(self, snapshot):
      super().save(snapshot)
      seen.append([n for n in saved(tmp_path) if not n.startswith('.')])
      if snapshot.course.epoch == 3:
        disk.set()

  monkeypatch.setattr(checkpoints, '_digests', slow)
  # Due after each epoch, but the first one is under way until the third.
  kept = Watched(tmp_path / 'seed0-source-abc', 1e-9)
  monkeypatch.setattr(partials, '_RARITY', 0)
  assert_same(train(kept), whole)
  assert seen[:2] == [[], []] and seen[2] in ([], ['epoch-000001'])
  assert saved(tmp_path)[0] == 'epoch-000001'
  monkeypatch.undo()
  assert_same(train(partial(tmp_path)), whole)


def test_a_full_disk_ends_nothing_and_harms_nothing(
  tmp_path, monkeypatch, whole, capsys
):
  train(partial(tmp_path), epochs=2)

  class Full(checkpoints.ocp.StandardCheckpointer):
    def save(self, directory, *_, **__):
      directory.mkdir()
      (directory / 'half').write_bytes(b'half')
      raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.ocp, 'StandardCheckpointer', Full)
    assert_same(train(partial(tmp_path)), whole)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert all('No space left on device' in line for line in lines)
  assert saved(tmp_path) == ['epoch-000001', 'epoch-000002']
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [2]


def test_the_last_finite_state_is_kept(tmp_path):
  kept = partial(tmp_path, 1e9)
  assert kept.last_finite() == ''
  train(kept, epochs=2)
  assert saved(tmp_path) == []
  assert f'after epoch 2, is kept in {kept.folder}' in kept.last_finite()
  assert saved(tmp_path) == ['epoch-000002']


def test_wall_seconds_go_on(tmp_path, clock, monkeypatch):
  epochs_saved(clock, monkeypatch, partial(tmp_path, 0.0), 1.0)
  kept = partial(tmp_path, 0.0)
  train(kept, epochs=12)
  # Twelve epochs of ten seconds, and the eleven saves between them.
  assert kept.wall_seconds == 131
