"""Generators of a pair: when they are saved, and what is gone on with."""

from concurrent import futures
import functools
import signal

import helpers
import jax
import numpy as np
import pytest

from experiments import files, kept_pairs, partials, preemption, stages
from experiments.progress import Progress
from unlearn_jax import parallel, training
from unlearn_jax.base import InputError

MODEL, SPLITS = helpers.model(), helpers.splits()
SEEDS, EPOCHS = 3, 2


@pytest.fixture(autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@pytest.fixture
def clock(monkeypatch):
  own = helpers.Clock()
  for room in (kept_pairs, partials):
    monkeypatch.setattr(room, 'time', own)
  return own


def generators(root, save_seconds=30.0):
  """Those of a pair, in a work directory that is claimed anew."""
  workdir = stages.Workdir(root, {'dataset': 'stripes'}, save_seconds)
  workdir.claim()
  progress = Progress(1, SEEDS * EPOCHS)
  progress.begin('pair', SEEDS * EPOCHS)
  kept = kept_pairs.Generators(
    workdir, 'pair', {'of': 'tests'}, EPOCHS, SEEDS, progress
  )
  return workdir, kept, progress


def train(kept, seed, then=None):
  """In place of a generator: what is kept of one does not matter here.

  Tells `then` of each epoch, after it was kept.
  """

  def on_epoch(epoch):
    kept.on_epoch(seed, epoch)
    if then and epoch.epoch:
      then(epoch.epoch)

  return training.train(
    jax.random.key(seed),
    MODEL,
    SPLITS.train,
    epochs=EPOCHS,
    batch_size=16,
    on_epoch=on_epoch,
    keeper=kept.keeper(seed),
  )


def names(root):
  """The saves of each generator."""
  found = {}
  for seed in range(SEEDS):
    for path in root.glob(f'checkpoints/.pair-generator{seed}-*.partial'):
      found[seed] = sorted(own.name for own in path.iterdir())
  return found


def written(root, kept):
  """Waits for the saves that are under way."""
  for seed in range(SEEDS):
    kept._workdir.partial(f'pair-generator{seed}', {'of': 'tests'}).settle()
  return names(root)


def test_when_one_is_saved_those_before_it_are_too(tmp_path, clock):
  _, kept, _ = generators(tmp_path)
  seen = []

  def look(epoch):
    seen.append(written(tmp_path, kept))
    clock.now += 12.0

  for seed in range(SEEDS):
    train(kept, seed, look)
  # Epochs of 12 s: after 36 s the fourth of all six is saved.
  both = {0: ['epoch-000002'], 1: ['epoch-000002']}
  assert seen == [{}, {}, {}, both, both, both]
  kept.remove()
  assert names(tmp_path) == {}


def test_a_new_one_is_not_saved_before_it_is_time(tmp_path, clock):
  _, kept, _ = generators(tmp_path)
  train(kept, 0, lambda epoch: setattr(clock, 'now', 20.0 * epoch))
  assert written(tmp_path, kept) == {}
  clock.now = 60.0
  train(kept, 1)
  assert written(tmp_path, kept) == {0: ['epoch-000002'], 1: ['epoch-000001']}
  train(kept, 2)
  assert list(written(tmp_path, kept)) == [0, 1]


def test_they_are_removed_when_their_saves_have_ended(tmp_path, monkeypatch):
  begun, save = [], partials.snapshots.save
  monkeypatch.setattr(
    partials.snapshots, 'save', lambda *a: begun.append(save(*a)) or begun[-1]
  )
  _, kept, _ = generators(tmp_path, 0.0)
  for seed in range(SEEDS):
    train(kept, seed)
  kept.remove()
  assert len(begun) == SEEDS * EPOCHS and all(b.done() for b in begun)
  assert all(b.exception() is None for b in begun)
  assert names(tmp_path) == {}


def refuse(*_):
  raise InputError('no room')


def refuse_later(*_):
  saving = futures.Future()
  saving.set_exception(InputError('no room'))
  return saving


@pytest.mark.parametrize('save', [refuse, refuse_later])
def test_a_full_disk_is_said_once_of_each(
  tmp_path, clock, capsys, monkeypatch, save
):
  _, kept, _ = generators(tmp_path)
  monkeypatch.setattr(partials.snapshots, 'save', save)
  for seed in range(SEEDS):
    train(kept, seed, lambda _: setattr(clock, 'now', clock.now + 12.0))
  kept.remove()
  # The fourth epoch is the first that is due; the first generator is flushed.
  assert capsys.readouterr().err.count('goes on without this save') == 2


def test_what_a_full_disk_refused_is_saved_when_there_is_room_at_the_end(
  tmp_path, clock, monkeypatch
):
  _, kept, _ = generators(tmp_path)
  with monkeypatch.context() as full:
    full.setattr(partials.snapshots, 'save', refuse)
    for seed in (0, 1):
      train(kept, seed, lambda _: setattr(clock, 'now', clock.now + 12.0))
  assert written(tmp_path, kept) == {}
  monkeypatch.setattr(preemption, 'requested', lambda: signal.SIGTERM)
  with pytest.raises(preemption.Stopped):
    train(kept, 2)
  two = ['epoch-000002']
  assert names(tmp_path) == {0: two, 1: two, 2: ['epoch-000001']}


class OutOfTimeError(Exception):
  """Whoever gave the time has no more of it."""


def test_what_was_broken_off_is_saved_if_that_is_asked_for(tmp_path, capsys):
  workdir, kept, _ = generators(tmp_path)

  def measure():
    train(kept, 0)
    train(kept, 1)
    raise OutOfTimeError

  with pytest.raises(OutOfTimeError):
    kept_pairs.once(tmp_path / 'pair.npz', kept, measure)
  assert names(tmp_path) == {}
  workdir.flush()
  assert list(names(tmp_path)) == [0, 1]


def save(root, *lasts):
  """Saves generators of which so many epochs are done; None leaves one out."""
  workdir, kept, _ = generators(root, 0.0)

  def stop(last, epoch):
    if epoch == last:
      raise OutOfTimeError

  for seed, last in enumerate(lasts):
    if last is not None:
      with pytest.raises(OutOfTimeError):
        train(kept, seed, functools.partial(stop, last))
  workdir.flush()
  for held in workdir._partials.values():
    held.settle()


@pytest.mark.parametrize(
  'lasts, line',
  [
    ((1,), 'epoch 1/6'),
    ((2,), 'epoch 2/6'),
    ((2, 1), 'epoch 3/6'),
    ((2, 2, 1), 'epoch 5/6'),
    ((2, 2, 2), 'epoch 6/6'),
    ((None, 1), 'epoch 3/6'),
  ],
)
def test_it_says_once_where_it_goes_on(tmp_path, capsys, lasts, line):
  save(tmp_path, *lasts)
  capsys.readouterr()
  _, kept, progress = generators(tmp_path)
  for seed in range(SEEDS):
    train(kept, seed)
  out = capsys.readouterr().out
  assert out.count('goes on') == 1 and f'goes on after {line}' in out
  before = sum(last or 0 for last in lasts)
  assert (progress._before, progress._epochs) == (before, 6 - before)


def test_seconds_of_an_earlier_process_are_known(tmp_path):
  _, kept, _ = generators(tmp_path, 0.0)
  fits = [train(kept, seed) for seed in range(2)]
  took = sum(fit.history[-1].seconds + fit.compile_seconds for fit in fits)
  kept.flush()
  assert kept.earlier_seconds == 0
  _, again, _ = generators(tmp_path)
  for seed in range(SEEDS):
    train(again, seed)
  assert took > 0 and again.earlier_seconds == pytest.approx(took)


def test_a_draft_of_a_first_save_is_no_save(tmp_path, capsys):
  save(tmp_path, 2)
  (first,) = tmp_path.glob('checkpoints/.pair-generator0*')
  folder = first.with_name(first.name.replace('generator0', 'generator1'))
  (folder / '.epoch-000001-abc').mkdir(parents=True)
  capsys.readouterr()
  _, kept, _ = generators(tmp_path)
  for seed in range(SEEDS):
    train(kept, seed)
  assert capsys.readouterr().out.count('goes on after epoch 2/6') == 1


def test_what_is_left_of_a_pair_that_is_measured_goes(tmp_path):
  save(tmp_path, 2, 1)
  draft = tmp_path / f'.pair.npz.{"0" * 12}.tmp'
  draft.write_bytes(b'half')
  pair = kept_pairs.Pair({'runs': []}, *(np.zeros(1),) * 3)
  files.replace(tmp_path / 'pair.npz', kept_pairs.written(pair))
  _, kept, _ = generators(tmp_path)
  found = kept_pairs.once(tmp_path / 'pair.npz', kept, None)
  assert found.found == {'runs': []}
  assert names(tmp_path) == {} and not draft.exists()


def test_a_damaged_pair_leaves_its_generators(tmp_path):
  save(tmp_path, 2, 1)
  files.replace(tmp_path / 'pair.npz', b'')
  _, kept, _ = generators(tmp_path)
  with pytest.raises(InputError, match='damaged'):
    kept_pairs.once(tmp_path / 'pair.npz', kept, None)
  assert list(names(tmp_path)) == [0, 1]


def test_only_what_a_killed_process_left_is_swept(tmp_path):
  workdir, *_ = generators(tmp_path)
  ending = f'{"0" * 12}.tmp'
  own, folder = tmp_path / f'.report.md.{ending}', tmp_path / f'.x.{ending}'
  others = [
    tmp_path / '.mine.tmp',
    tmp_path / f'report.md.{ending}',
    tmp_path / 'another_run' / f'.report.md.{ending}',
  ]
  for path in (folder, tmp_path / 'another_run'):
    path.mkdir()
  for path in (own, *others):
    path.write_bytes(b'half')
  del workdir
  generators(tmp_path)
  assert not own.exists()
  assert folder.is_dir() and all(path.exists() for path in others)
