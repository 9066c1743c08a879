"""Two runs in one work directory: the second is refused, or takes its share."""

import json
import os
import re
import signal
import time

import processes
import pytest

ARGUMENTS = (
  '--dataset=digits',
  '--train_subset=600',
  '--width=8',
  '--batch_size=60',
  '--train_epochs=20',
  '--save_seconds=0',
)
SHARED = ('--preset=toy', '--only=fig1')


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  return processes.Binary('experiments.train', cache)


@pytest.fixture(scope='module')
def reproduce(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  return processes.Binary('toy_reproduce', cache)


@pytest.fixture(scope='module')
def whole(train, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  log = workdir.with_suffix('.log')
  status, text = train.finish(log, *ARGUMENTS, f'--workdir={workdir}')
  assert status == 0, text
  return workdir


def started(binary, log, workdir):
  """A run that has saved something, and stands still."""
  process = binary.start(log, *ARGUMENTS, f'--workdir={workdir}')
  end = time.monotonic() + 120
  while not any(workdir.glob('checkpoints/.*.partial/epoch-*')):
    assert process.is_alive() and time.monotonic() < end
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGSTOP)
  time.sleep(0.2)  # A system call that has begun is finished.
  return process


def written(workdir):
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}


def test_the_second_is_refused_and_the_first_not_disturbed(
  train, whole, tmp_path
):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  arguments = (*ARGUMENTS, f'--workdir={workdir}')
  first = started(train, log, workdir)
  try:
    before = written(workdir)
    status, text = train.finish(tmp_path / 'other', *arguments)
    assert written(workdir) == before
  finally:
    os.kill(first.pid, signal.SIGCONT)
  assert status == 1, text
  (line,) = [x for x in text.splitlines() if x.startswith('error: ')]
  assert re.fullmatch(
    rf'error: --workdir={re.escape(str(workdir))} is in use by process'
    rf' {first.pid} on \S+ since \d{{4}}-\d\d-\d\dT[\d:]+[+-][\d:]+; allowed:'
    r' another --workdir, or this one once that run has ended',
    line,
  ), text
  first.join(120)
  assert first.exitcode == 0, log.read_text()
  assert processes.digests(workdir) == processes.digests(whole)
  assert not list(workdir.glob('checkpoints/.*'))


def test_after_a_kill_the_next_begins_at_once(train, whole, tmp_path):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  first = started(train, log, workdir)
  first.kill()  # Also a process that stands still.
  first.join()
  status, text = train.finish(log, *ARGUMENTS, f'--workdir={workdir}')
  assert status == 0, text
  assert 'goes on after epoch' in text
  assert processes.digests(workdir) == processes.digests(whole)


def outcomes(root):
  """The numbers of every stage, without its seconds."""
  found = {}
  for path in (root / 'outcomes').glob('*.json'):
    outcome = json.loads(path.read_text())
    for epoch in outcome['history']:
      epoch.pop('seconds')
    found[path.name] = outcome['measured'], outcome['history']
  return found


def test_reproductions_that_know_nothing_of_each_other_share_the_stages(
  reproduce, tmp_path
):
  alone, root = tmp_path / 'alone', tmp_path / 'root'
  status, text = reproduce.finish(
    tmp_path / 'log', *SHARED, f'--workdir={alone}'
  )
  assert status == 0, text
  logs = [tmp_path / 'one', tmp_path / 'two']
  pair = [reproduce.start(log, *SHARED, f'--workdir={root}') for log in logs]
  for process in pair:
    process.join(300)
  texts = [log.read_text() for log in logs]
  assert [process.exitcode for process in pair] == [0, 0], texts
  assert outcomes(root) == outcomes(alone) and outcomes(root)
  # Each stage was claimed once, so that it was computed once.
  claims = sorted(path.name for path in (root / 'claims').glob('[!.]*'))
  assert claims == sorted(f'{name[:-5]}.0' for name in outcomes(root))
  assert not list(root.glob('*/checkpoints/.*'))
