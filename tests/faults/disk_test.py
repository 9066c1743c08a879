"""A disk that is really full: a small tmpfs, where one can be mounted."""

import shutil
import subprocess

import helpers
import jax
import numpy as np
import processes
import pytest

from experiments import partials
from unlearn_jax import checkpoints, training
from unlearn_jax.base import InputError

MODEL, SPLITS = helpers.model(), helpers.splits()


@pytest.fixture
def disk(tmp_path):
  place = tmp_path / 'disk'
  place.mkdir()
  options = ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(place)]
  try:
    subprocess.run(['mount', *options], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    # The same with writes that raise: checkpoints_test and partials_test.
    pytest.skip(f'no tmpfs can be mounted here: {error}')
  yield place
  subprocess.run(['umount', str(place)], check=True)


def fill(disk, leave):
  """A file that takes all but `leave` bytes."""
  free = shutil.disk_usage(disk).free - leave
  (disk / 'filler').write_bytes(bytes(max(0, free)))


def training_binary(cache, log, workdir):
  """Runs `experiments.train`, saving every epoch: (status, what it wrote)."""
  return processes.Binary('experiments.train', cache).finish(
    log,
    *('--dataset=digits', '--train_subset=600', '--width=8'),
    *('--batch_size=60', '--train_epochs=6', '--save_seconds=0'),
    f'--workdir={workdir}',
  )


def train(keeper=None, epochs=4):
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


@pytest.mark.parametrize('leave', [0, 4096, 20_000])
def test_training_goes_on_and_the_last_save_is_whole(disk, leave, capsys):
  stage = disk / 'seed0-source-abc'
  train(partials.Partial(stage, 0.0), epochs=2)
  fill(disk, leave)
  whole = train(partials.Partial(stage, 0.0))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert all('cannot write' in line for line in lines), lines
  (disk / 'filler').unlink()
  told = []
  again = train(partials.Partial(stage, 0.0, told.append))
  assert told == [2]
  for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state)):
    np.testing.assert_array_equal(a, b)
  # With room again, the saves are made.
  assert len(list(disk.glob('.*/epoch-000004'))) == 1


def test_a_checkpoint_is_written_whole_or_not_at_all(disk):
  rng = np.random.default_rng(0)
  big = {'w': rng.normal(size=200_000).astype(np.float32)}
  checkpoints.save_tree(disk / 'first', big, {})
  for leave in (0, 10_000, 100_000, 500_000):
    (disk / 'filler').unlink(missing_ok=True)
    fill(disk, leave)
    with pytest.raises(InputError, match='cannot write') as error:
      checkpoints.save_tree(disk / 'second', big, {})
    assert '\n' not in str(error.value)
    assert sorted(p.name for p in disk.iterdir()) == ['filler', 'first']
  tree, _ = checkpoints.restore_tree(disk / 'first')
  np.testing.assert_array_equal(tree['w'], big['w'])


def test_a_binary_says_it_in_one_line_each_and_goes_on(disk, tmp_path):
  """Orbax logs the same with stack traces, from threads of its own."""
  cache, log = tmp_path / 'cache', tmp_path / 'log'
  whole, workdir = tmp_path / 'whole', disk / 'run'
  status, text = training_binary(cache, log, whole)
  assert status == 0, text
  fill(disk, 200_000)
  status, text = training_binary(cache, log, workdir)
  told = [line for line in text.splitlines() if not line.startswith('[')]
  assert status == 1, text
  assert all(': cannot write ' in line for line in told), text
  *warnings, error = (line.split(':')[0] for line in told)
  assert error == 'error' and warnings and set(warnings) == {'warning'}, text
  (disk / 'filler').unlink()
  status, text = training_binary(cache, log, workdir)
  assert status == 0 and 'goes on after epoch' in text, text
  assert processes.digests(workdir) == processes.digests(whole)
