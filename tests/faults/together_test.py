"""A second run in a work directory is refused, and the first not disturbed."""

import os
import re
import signal
import time

import processes


def test_the_second_is_refused_and_the_first_not_disturbed(
  train, whole, tmp_path
):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  first = train.start(log, workdir)
  processes.wait_for(lambda: processes.saved(workdir), first)
  os.kill(first.pid, signal.SIGSTOP)
  try:
    time.sleep(0.2)  # A system call that has begun is finished.
    before = written(workdir)
    status, text = train.finish(tmp_path / 'other', workdir)
    assert written(workdir) == before
  finally:
    os.kill(first.pid, signal.SIGCONT)
  assert status == 1, text
  assert re.fullmatch(
    rf'error: --workdir={re.escape(str(workdir))} is in use by process'
    rf' {first.pid} on \S+ since \d{{4}}-\d\d-\d\dT[\d:]+[+-][\d:]+; allowed:'
    r' another --workdir, or this one once that run has ended\n',
    text,
  ), text
  first.join(120)
  assert first.exitcode == 0, log.read_text()
  assert processes.source(workdir) == processes.source(whole)
  assert not processes.hidden(workdir)


def written(workdir):
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
