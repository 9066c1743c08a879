"""`experiments.unlearn`, killed at any moment, ends as if it never had been.

The run that is killed cuts its epochs into short calls and saves after each;
the one that nobody disturbs does not. UNLEARN_JAX_KILLS says how many kills
there are; every other one waits for a save to begin.
"""

import contextlib
import os
import random
import shutil
import signal
import time

import processes

KILLS = int(os.environ.get('UNLEARN_JAX_KILLS', '4'))
SHORT = (('unlearn_jax.training', '_CALL_SECONDS', 0.0),)
DEGREE = (
  *('--degree', '--nodegree_unseen', '--degree_epochs=3', '--degree_limit=60'),
  *('--degree_batch_size=6', '--degree_width=2'),
)


def drafts(workdir):
  """Saves that are under way, or were when the process was killed."""
  found = set()
  # What was a draft a moment ago has another name now.
  with contextlib.suppress(OSError):
    found.update(workdir.glob('checkpoints/.*.partial/.epoch-*'))
  with contextlib.suppress(OSError):
    found.update(workdir.glob('checkpoints/.*'))
  return {path for path in found if path.suffix != '.partial'}


def test_killed_at_any_moment_it_ends_with_the_same_numbers(
  unlearn, whole, tmp_path
):
  seed = random.randrange(2**32)
  rng, workdir, log = random.Random(seed), tmp_path / 'run', tmp_path / 'log'
  in_saves = 0
  for number in range(KILLS):
    before = drafts(workdir)
    process = unlearn.start(log, workdir, changed=SHORT)
    time.sleep(rng.uniform(0, 4))
    while number % 2 and process.is_alive() and not drafts(workdir) - before:
      time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (seed, log.read_text())
    in_saves += bool(drafts(workdir) - before)
    if process.exitcode == 0:  # It was finished before.
      workdir = tmp_path / f'run{number}'
  status, text = unlearn.finish(log, workdir)
  assert status == 0, (seed, text)
  assert 'damaged' not in text, (seed, text)
  assert processes.digests(workdir) == processes.digests(whole), seed
  assert processes.numbers(workdir) == processes.numbers(whole), seed
  assert not processes.hidden(workdir), seed
  print(f'{KILLS} kills, {in_saves} in a save, seed {seed}')


def test_ended_while_generators_are_trained_it_goes_on(
  unlearn, whole, tmp_path
):
  undisturbed, workdir, log = (tmp_path / n for n in ('whole', 'run', 'log'))
  for root in (undisturbed, workdir):
    shutil.copytree(whole, root)
  status, text = unlearn.finish(log, undisturbed, *DEGREE)
  assert status == 0, text
  (degree,) = processes.numbers(undisturbed)[1]
  assert degree['rows']
  ends = (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)
  for place, (number, status) in enumerate(ends, 1):
    process = unlearn.start(log, workdir, *DEGREE)
    # When a pair of models has its second generator, or its third.
    saves = f'checkpoints/.*-degree-*.partial/generator{place}/epoch-*'
    processes.wait_for(lambda: any(workdir.glob(saves)), process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status, log.read_text()
  status, text = unlearn.finish(log, workdir, *DEGREE)
  assert status == 0, text
  assert 'goes on after epoch' in text, text
  assert processes.numbers(workdir) == processes.numbers(undisturbed)
  assert not processes.hidden(workdir)
