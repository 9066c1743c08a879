"""Binaries as two processes with two devices each, on loopback.

What of it does not need a whole run is in runtime_test.py.
"""

import os
import re
import signal

import devices
import processes
import pytest

FEW = ('--strategies=finetune',)


def ended(started, logs, seconds=60):
  """The exit statuses, and what was written, after so long at most."""
  for process in started:
    process.join(seconds)
  return [process.exitcode for process in started], [
    x.read_text() for x in logs
  ]


def test_killed_and_told_to_end_they_end_with_the_numbers_of_one_process(
  train, unlearn, tmp_path
):
  one, workdir = tmp_path / 'one', tmp_path / 'run'
  status, text = unlearn.finish(
    tmp_path / 'log', one, *FEW, XLA_FLAGS=devices.flags(4)
  )
  assert status == 0, text
  # One is killed.
  pair, logs = train.pair(tmp_path, workdir)
  processes.wait_for(lambda: processes.saved(workdir), *pair)
  pair[1].kill()
  statuses, texts = ended(pair, logs)
  assert statuses[1] == -signal.SIGKILL
  assert statuses[0] not in (0, None), texts
  # One is told to end.
  pair, logs = train.pair(tmp_path, workdir)
  processes.wait_for(lambda: processes.saved(workdir, 4), *pair)
  os.kill(pair[1].pid, signal.SIGTERM)
  statuses, texts = ended(pair, logs)
  assert statuses == [143, 143], texts
  assert re.search(
    r'stopped by SIGTERM: seed0-source-\w+ is saved after epoch \d+ in \S+;'
    ' the same command goes on from there\n$',
    texts[0],
  ), texts
  # They go on, and process 0 speaks and writes.
  statuses, texts = ended(*unlearn.pair(tmp_path, workdir, *FEW), 300)
  assert statuses == [0, 0], texts
  assert 'goes on after epoch' in texts[0] and 'Report: ' in texts[0]
  assert not texts[1]
  assert not processes.hidden(workdir)
  assert processes.digests(workdir).keys() == processes.digests(one).keys()
  rows, others = (processes.numbers(root)[0] for root in (workdir, one))
  assert len(rows) == len(others) == 2
  # The same gradients are summed in another order: one or two of the thirty
  # forgotten images fall to another side. processes_test compares parameters.
  for several, single in zip(rows, others):
    assert several['values'] == {
      name: pytest.approx(values, abs=0.07)
      for name, values in single['values'].items()
    }
    for its, mine in zip(several['curves'], single['curves']):
      for name, values in mine.items():
        assert its[name] == pytest.approx(values, abs=0.07), name
