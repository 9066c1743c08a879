"""A disk that is really full: a small tmpfs, where one can be mounted."""

import shutil
import subprocess

import processes
import pytest


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
  (disk / 'filler').write_bytes(bytes(free))


def test_a_run_says_it_in_one_line_each_and_goes_on(
  train, whole, disk, tmp_path
):
  """Orbax logs the same with stack traces, from threads of its own."""
  workdir, log = disk / 'run', tmp_path / 'log'
  for leave in (4096, 100_000):
    fill(disk, leave)
    status, text = train.finish(log, workdir)
    (disk / 'filler').unlink()
    assert status == 1, text
    lines = text.splitlines()
    told = [x for x in lines if x.startswith(('warning: ', 'error: '))]
    *warnings, error = told
    assert 'Traceback' not in text and lines[-1] == error, text
    assert all(x.startswith('warning: ') for x in warnings), text
    assert error.startswith('error: '), text
    assert 'cannot write' in error or 'No space left' in error, text
  assert warnings  # Of the saves, without which training went on.
  status, text = train.finish(log, workdir)
  assert status == 0, text
  assert processes.source(workdir) == processes.source(whole)
  assert not processes.hidden(workdir)
