"""`experiments.train`, asked to stop in the midst of a training."""

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
  '--train_epochs=40',
  '--save_seconds=0',
)


@pytest.fixture(scope='module')
def binary(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  return processes.Binary('experiments.train', cache)


@pytest.fixture(scope='module')
def whole(binary, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  log = workdir.with_suffix('.log')
  status, text = binary.finish(log, *ARGUMENTS, f'--workdir={workdir}')
  assert status == 0, text
  return workdir


@pytest.mark.parametrize(
  'number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_it_saves_says_so_and_goes_on(binary, whole, tmp_path, number, status):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  arguments = (*ARGUMENTS, f'--workdir={workdir}')
  process = binary.start(log, *arguments)
  saves = 'checkpoints/.*.partial/epoch-*'
  processes.wait_for(lambda: any(workdir.glob(saves)), process)
  os.kill(process.pid, number)
  began = time.monotonic()
  process.join(60)
  assert process.exitcode == status, log.read_text()
  assert time.monotonic() - began < 30
  line = log.read_text().splitlines()[-1]
  name = signal.Signals(number).name
  found = re.fullmatch(
    rf'stopped by {name}: seed0-source-\w+ is saved after epoch (\d+) in (\S+);'
    r' the same command goes on from there',
    line,
  )
  assert found, line
  folder = workdir / 'checkpoints' / found[2].split('/')[-1]
  assert (folder / f'epoch-{int(found[1]):06}').is_dir()
  got, text = binary.finish(log, *arguments)
  assert got == 0, text
  assert f'goes on after epoch {found[1]}/40' in text
  assert processes.digests(workdir) == processes.digests(whole)
  assert not list(workdir.glob('checkpoints/.*'))
