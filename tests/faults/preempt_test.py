"""`experiments.train`, asked to stop in the midst of a training."""

import os
import re
import signal
import time

import processes

from experiments.runtime import signals


def test_it_saves_says_so_and_goes_on(train, whole, tmp_path):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  for number, status, epoch in (
    (signal.SIGTERM, 143, 1),
    (signal.SIGHUP, 129, 5),
  ):
    process = train.start(log, workdir)
    processes.wait_for(lambda: processes.saved(workdir, epoch), process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == status, log.read_text()
    name = signal.Signals(number).name
    found = re.fullmatch(
      rf'stopped by {name}: seed0-source-\w+ is saved after epoch (\d+) in'
      r' (\S+); the same command goes on from there',
      log.read_text().splitlines()[-1],
    )
    assert found, log.read_text()
    folder = workdir / 'checkpoints' / found[2].split('/')[-1]
    assert (folder / f'epoch-{int(found[1]):06}').is_dir()
  status, text = train.finish(log, workdir)
  assert status == 0, text
  assert f'goes on after epoch {found[1]}/10' in text
  assert processes.source(workdir) == processes.source(whole)
  assert not processes.hidden(workdir)


def test_a_second_signal_does_not_wait_for_what_is_compiled(train, tmp_path):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  nothing = {'JAX_COMPILATION_CACHE_DIR': tmp_path / 'cache'}
  process = train.start(log, workdir, '--width=64', **nothing)
  processes.wait_for((workdir / 'workdir.json').exists, process)
  time.sleep(0.5)  # The source's training begins.
  for _ in range(2):
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(signals._ECHO + 0.2)
  process.join(5)
  assert process.exitcode == 143, log.read_text()
  assert log.read_text().splitlines()[-2:] == [
    'SIGTERM: saving and stopping; once more stops at once',
    'stopped by SIGTERM: at once; what was saved is kept, the same command'
    ' goes on',
  ]
