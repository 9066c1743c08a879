"""`experiments.unlearn`, ended again and again, ends as if it never had been.

The runs that are ended cut their epochs into calls of a step and save after
each; the one that nobody disturbs does not.
"""

import re
import shutil
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


def test_killed_in_the_midst_of_a_generator_it_ends_with_the_same_degrees(
  unlearn, whole, tmp_path
):
  """Source and Top-K are there; of each pair five generators are fitted."""
  degree = (
    *('--degree', '--nodegree_unseen', '--degree_epochs=2'),
    *('--degree_batch_size=5', '--degree_width=2', '--max_perturbation=none'),
  )
  calm, workdir, log = tmp_path / 'calm', tmp_path / 'run', tmp_path / 'log'
  shutil.copytree(whole, calm)
  status, text = unlearn.finish(log, calm, *degree)
  assert status == 0 and 'done before' in text, text
  shutil.copytree(calm, workdir)
  measured = list(workdir.glob('checkpoints/*-degree-*'))
  assert len(measured) == 2
  for path in measured:
    shutil.rmtree(path)
  # An epoch is 3 steps: in the second generator, while step 5 is being saved.
  kill = End(signal.SIGKILL, 'degree-null', 6 + 5, inside=True, short=True)
  status, text = unlearn.finish(log, workdir, *degree, end=kill)
  assert status == -signal.SIGKILL, text
  (left,) = workdir.glob('checkpoints/.*-degree-null-*.partial')
  names = [path.name for path in sorted(left.glob('generator1/[!.]*'))]
  assert names[-1] == 'epoch-000001-step-000000001', names
  status, text = unlearn.finish(log, workdir, *degree)
  assert status == 0 and 'goes on after epoch 3/10' in text, text
  assert processes.digests(workdir) == processes.digests(calm)
  # Of each generator how far it moved pixels, to the last bit.
  assert processes.numbers(workdir) == processes.numbers(calm)
  assert not processes.hidden(workdir)
