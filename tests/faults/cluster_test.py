"""Binaries of two real processes, with two devices each, on loopback."""

import os
import re
import signal
import time

import numpy as np
import processes
import pytest

DATA = (
  '--dataset=digits',
  '--train_subset=200',
  '--width=4',
  '--batch_size=60',
)
TRAIN = (*DATA, '--train_epochs=20', '--save_seconds=0')
AGAIN = 'the same command, given again in all processes, goes on'
UNLEARN = (
  *DATA,
  '--train_epochs=2',
  '--epochs=2',
  '--seeds=1',
  '--strategies=retrain,top_k',
  '--sensitivity_examples=20',
)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def test_a_report_has_the_numbers_of_one_process(cache, tmp_path):
  binary = processes.Binary('experiments.unlearn', cache)
  one, two = tmp_path / 'one', tmp_path / 'two'
  status, text = binary.finish(
    tmp_path / 'log', *UNLEARN, f'--workdir={one}', **processes.devices(4)
  )
  assert status == 0, text
  pair = processes.Pair(binary, tmp_path, *UNLEARN, f'--workdir={two}')
  assert pair.wait() == [0, 0], pair.texts()
  first, second = pair.texts()
  assert 'Report: ' in first
  # Process 0 speaks, and writes.
  assert not second
  places = [
    {str(path.relative_to(root)) for path in root.glob('*')}
    for root in (one, two)
  ]
  assert places[0] == places[1]
  rows = [processes.numbers(root) for root in (one, two)]
  assert len(rows[0]) == len(rows[1]) == 3
  # The same gradients are summed in another order: float32 differs in its last
  # bits, after these few steps by some 1e-7, which no share shows yet.
  for single, several in zip(*rows):
    for name, (value,) in single['values'].items():
      (other,) = several['values'][name]
      if value is None or isinstance(value, str):
        assert other == value, name
      else:
        assert other == pytest.approx(value, abs=1e-5, nan_ok=True), name
    for mine, its in zip(single['curves'], several['curves']):
      np.testing.assert_allclose(
        its['js_to_source'], mine['js_to_source'], rtol=1e-5, atol=1e-7
      )


def test_killed_stopped_or_told_to_end_they_end_together_and_go_on(
  cache, tmp_path
):
  binary = processes.Binary('experiments.train', cache)
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  pair = processes.Pair(
    binary, tmp_path, *TRAIN, f'--workdir={whole}', slurm=True
  )
  assert pair.wait() == [0, 0], pair.texts()
  again = (*TRAIN, f'--workdir={workdir}')
  for victim, epoch in ((1, 2), (0, 5)):
    pair = processes.Pair(binary, tmp_path, *again)
    pair.wait_for_epoch(workdir, epoch)
    pair.processes[victim].kill()
    began = time.monotonic()
    statuses = pair.wait(60)
    took = time.monotonic() - began
    other = 1 - victim
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[other] == 1, (statuses, pair.texts())
    # That line and nothing else, but for the progress of process 0.
    *before, line = pair.texts()[other].splitlines()
    assert line == (
      f'error: process {other}: process {victim} of 2 was killed, or its'
      f' machine is gone; {AGAIN}'
    ), pair.texts()
    assert other == 0 or not [text for text in before if text], pair.texts()
    print(f'process {other} ended {took:.2f} s after process {victim}')
  impatient = processes.Binary('impatient_train', cache)
  pair = processes.Pair(impatient, tmp_path, *again)
  pair.wait_for_epoch(workdir, 8)
  first, second = pair.processes
  try:
    os.kill(first.pid, signal.SIGSTOP)
    second.join(60)
    assert second.exitcode == 1, pair.texts()
    line = f'process 0 of 2 was not heard of for 6 s; {AGAIN}'
    assert pair.texts()[1] == f'error: process 1: {line}\n'
  finally:
    os.kill(first.pid, signal.SIGCONT)
  first.join(60)  # It finds itself alone.
  assert first.exitcode == 1, pair.texts()
  assert (
    pair.texts()[0]
    .splitlines()[-1]
    .startswith('error: process 0: process 1 of 2 was killed')
  ), pair.texts()
  pair = processes.Pair(binary, tmp_path, *again)
  pair.wait_for_epoch(workdir, 12)
  os.kill(pair.processes[1].pid, signal.SIGTERM)
  assert pair.wait(60) == [143, 143], pair.texts()
  first, second = (text.strip().splitlines() for text in pair.texts())
  found = re.fullmatch(
    r'stopped by SIGTERM: seed0-source-\w+ is saved after epoch (\d+) in \S+;'
    ' the same command goes on from there',
    first[-1],
  )
  assert found, first
  assert second == ['SIGTERM: saving and stopping; once more stops at once']
  pair = processes.Pair(binary, tmp_path, *again)
  assert pair.wait() == [0, 0], pair.texts()
  assert f'goes on after epoch {found[1]}/20' in pair.texts()[0]
  assert processes.digests(workdir) == processes.digests(whole)
  assert not list(workdir.glob('checkpoints/.*'))


KILLED = f'process 1 of 2 was killed, or its machine is gone; {AGAIN}'
DOOMS = {
  # What process 1 does to itself: (both statuses, the last line of process 0).
  'loading': (143, 143, 'stopped by SIGTERM: finished stages are kept'),
  'saving': (1, -signal.SIGKILL, f'error: process 0: {KILLED}'),
  # All was written, and said.
  'leaving': (0, -signal.SIGKILL, 'Checkpoint: '),
}


@pytest.mark.parametrize('doom', DOOMS)
def test_one_that_ends_at_a_bad_moment_is_told_as_that(cache, tmp_path, doom):
  binary = processes.Binary('doomed_train', cache)
  pair = processes.Pair(
    binary, tmp_path, *TRAIN, f'--doom={doom}', f'--workdir={tmp_path}/run'
  )
  *statuses, line = DOOMS[doom]
  assert pair.wait(120) == statuses, pair.texts()
  assert pair.texts()[0].splitlines()[-1].startswith(line), pair.texts()


BAD = {
  '--process_id=2': (2, '--process_id=2, allowed: 0 to 1'),
  '--process_id=-1': (2, '--process_id=-1, allowed: 0 to 1'),
  '--num_processes=0': (2, '--num_processes=0, allowed: 1 to 65535'),
  '--coordinator=localhost': (2, '--coordinator=localhost, allowed: host:port'),
  '--coordinator=localhost:x': (2, '--coordinator=localhost:x, allowed:'),
  '--join_seconds=0': (2, '--join_seconds=0.0, allowed: above 0'),
  '--join_seconds=0.5': (1, 'process 0 does not answer at 127.0.0'),
  '--process_id=0': (1, 'of 2 processes 1 did not come to 127.0.0'),
}


@pytest.mark.parametrize('flag', BAD)
def test_a_bad_place_is_one_line(cache, tmp_path, flag):
  binary = processes.Binary('experiments.train', cache)
  given = (*processes.flags(1, processes.free_port()), '--join_seconds=1', flag)
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  status, text = binary.finish(log, *TRAIN, f'--workdir={workdir}', *given)
  wanted, line = BAD[flag]
  assert status == wanted, text
  assert text.startswith(f'error: {line}') and text.count('\n') == 1, text
  assert not workdir.exists()


@pytest.mark.parametrize('given', range(3))
def test_all_three_flags_or_none(cache, tmp_path, given):
  binary = processes.Binary('experiments.train', cache)
  flag = processes.flags(1, 1)[given]
  status, text = binary.finish(tmp_path / 'log', *TRAIN, flag)
  assert status == 2
  assert re.fullmatch(r'error: --\w+=, allowed: a value, .* is given\n', text)


def test_processes_of_different_commands_do_not_start(cache, tmp_path):
  binary = processes.Binary('experiments.train', cache)
  port, started = processes.free_port(), []
  for index in range(2):
    arguments = (*TRAIN, f'--seed={index}', *processes.flags(index, port))
    log = tmp_path / f'log{index}'
    started.append((binary.start(log, *arguments), log))
  for process, log in started:
    process.join(60)
    assert process.exitcode == 1, log.read_text()
    text = log.read_text()
    assert text.startswith('error: process '), text
    assert 'process 1 has other flags than process 0' in text
    assert text.count('\n') == 1, text
