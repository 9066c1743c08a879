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


def test_a_run_says_it_in_one_line_each_and_goes_on(
  train, whole, disk, tmp_path
):
  """Orbax logs the same with stack traces, from threads of its own."""
  workdir, log = disk / 'run', tmp_path / 'log'
  free = shutil.disk_usage(disk).free
  (disk / 'filler').write_bytes(bytes(free - 100_000))
  status, text = train.finish(log, workdir)
  (disk / 'filler').unlink()
  assert status == 1 and 'Traceback' not in text, text
  lines = text.splitlines()
  told = [x for x in lines if x.startswith(('warning: ', 'error: '))]
  *warnings, error = told
  assert error == lines[-1] and error.startswith('error: '), text
  assert 'cannot write' in error or 'No space left' in error, text
  # Of the saves, without which training went on.
  assert warnings and all(x.startswith('warning: ') for x in warnings), text
  status, text = train.finish(log, workdir)
  assert status == 0, text
  assert processes.source(workdir) == processes.source(whole)
  assert not processes.hidden(workdir)
