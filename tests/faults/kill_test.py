"""`experiments.unlearn`, ended again and again, ends as if it never had been.

The runs that are ended cut their epochs into calls of a step and save after
each; the one that nobody disturbs does not.
"""

import re
import signal

import processes
from processes import End


def test_killed_and_stopped_it_ends_with_the_same_numbers(
  unlearn, whole, tmp_path
):
  workdir, log = tmp_path / 'run', tmp_path / 'log'

  def ended(*end):
    return unlearn.finish(log, workdir, end=End(*end))

  # In the midst of a save.
  status, text = ended(signal.SIGKILL, 'source', 7, True, True)
  assert status == -signal.SIGKILL, text
  assert list(workdir.glob('checkpoints/.*.partial/.epoch-*')), text
  # Asked to stop: the step after that is finished, and saved.
  status, text = ended(signal.SIGTERM, 'source', 2, False, True)
  assert status == 143 and 'goes on after epoch 1/10' in text, text
  found = re.fullmatch(
    r'stopped by SIGTERM: (seed0-source-\w+) is saved after step 4 of epoch 2'
    r' in (\S+); the same command goes on from there',
    text.splitlines()[-1],
  )
  assert found, text
  assert found[2] == str(workdir / 'checkpoints' / f'.{found[1]}.partial')
  # Between two epochs of what comes after the source.
  status, text = ended(signal.SIGKILL, 'top_k', 2)
  assert status == -signal.SIGKILL, text
  status, text = unlearn.finish(log, workdir)
  assert status == 0 and 'goes on after epoch 2/3' in text, text
  assert 'damaged' not in text, text
  assert processes.digests(workdir) == processes.digests(whole)
  assert processes.numbers(workdir) == processes.numbers(whole)
  assert not processes.hidden(workdir)
