"""Binaries as two processes with two devices each, on loopback.

What of it does not need a whole run is in runtime_test.py.
"""

import re
import signal

import processes
from processes import End
import pytest


def test_killed_and_told_to_end_they_end_with_the_numbers_of_one_process(
  train, unlearn, whole, tmp_path
):
  workdir = tmp_path / 'run'
  killed, told = (
    train.pair(tmp_path, workdir, end=End(number, 'source', 2))
    for number in (signal.SIGKILL, signal.SIGTERM)
  )
  statuses, texts = killed
  assert statuses[1] == -signal.SIGKILL
  assert statuses[0] not in (0, None), texts
  statuses, texts = told
  assert statuses == [143, 143], texts
  assert 'goes on after epoch 2/10' in texts[0]
  assert re.search(
    r'stopped by SIGTERM: seed0-source-\w+ is saved after epoch 5 in \S+;'
    ' the same command goes on from there\n$',
    texts[0],
  ), texts
  # They go on, and process 0 speaks and writes.
  statuses, texts = unlearn.pair(tmp_path, workdir)
  assert statuses == [0, 0], texts
  assert 'goes on after epoch 5/10' in texts[0] and 'Report: ' in texts[0]
  assert not texts[1]
  assert not processes.hidden(workdir)
  assert processes.digests(workdir).keys() == processes.digests(whole).keys()
  rows, others = (processes.numbers(root)[0] for root in (workdir, whole))
  assert len(rows) == len(others) == 2
  # The same gradients are summed in another order: one or two of the thirty
  # forgotten images fall to another side. processes_test compares parameters.
  for several, single in zip(rows, others):
    for own in (several, single):  # A threshold takes many or none.
      assert own['values'].pop('svc_efficacy')
    assert several['values'] == {
      name: pytest.approx(values, abs=0.07)
      for name, values in single['values'].items()
    }
    for its, mine in zip(several['curves'], single['curves']):
      for name, values in mine.items():
        assert its[name] == pytest.approx(values, abs=0.07), name
