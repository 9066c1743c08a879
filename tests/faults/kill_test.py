"""`experiments.unlearn`, killed at any moment, ends as if it never had been.

Half of the kills come at a random moment, half in the midst of a save. The run
that is killed cuts its epochs into short calls and saves after each; the one
that nobody disturbs does not. UNLEARN_JAX_KILLS says how many kills there are.
"""

import os
import random
import signal
import time

import processes
import pytest

KILLS = int(os.environ.get('UNLEARN_JAX_KILLS', '30'))
ARGUMENTS = (
  '--dataset=digits',
  '--train_subset=600',
  '--width=8',
  '--batch_size=60',
  '--train_epochs=4',
  '--epochs=3',
  '--stop_retain_share=1',
  '--stop_js_change=0',
  '--seeds=1',
  '--strategies=retrain,finetune,top_k',
  '--augment',
  '--save_seconds=0',
)


@pytest.fixture(scope='module')
def binary(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  return processes.Binary('experiments.unlearn', cache)


@pytest.fixture(scope='module')
def whole(binary, tmp_path_factory):
  """Where a run that nobody disturbed wrote, and its seconds."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  log, start = workdir.with_suffix('.log'), time.monotonic()
  status, text = binary.finish(log, *ARGUMENTS, f'--workdir={workdir}')
  assert status == 0, text
  return workdir, time.monotonic() - start


def drafts(workdir):
  """Saves that are under way, or were when the process was killed."""
  top, found = workdir / 'checkpoints', set()
  for folder in [top, *(top / name for name in names(top))]:
    if folder == top or folder.suffix == '.partial':
      found |= {folder / n for n in names(folder) if n.startswith('.')}
  return {path for path in found if path.suffix != '.partial'}


def names(folder):
  try:
    return os.listdir(folder)
  except OSError:  # What was a draft a moment ago has another name now.
    return []


def kill_later(process, workdir, rng, seconds, in_save):
  """Kills the process: (whether it still ran, whether it was in a save)."""
  end = time.monotonic() + rng.uniform(0, seconds)
  before = known = drafts(workdir)
  saves = rng.randint(1, 3)
  while process.is_alive() and (in_save or time.monotonic() < end):
    now = drafts(workdir)
    saves -= bool(now - known)
    known = known | now
    if in_save and not saves:
      time.sleep(rng.uniform(0, 0.05))
      break
    time.sleep(0.002)
  process.kill()
  process.join()
  ran = process.exitcode == -signal.SIGKILL
  return ran, ran and bool(drafts(workdir) - before)


def test_killed_at_any_moment_it_ends_with_the_same_numbers(
  binary, whole, tmp_path
):
  binary = processes.Binary('hasty_unlearn', binary.cache)
  seed = random.randrange(2**32)
  rng, (undisturbed, seconds) = random.Random(seed), whole
  # Where one is killed early, the next has the more left to be killed in.
  moment = min(10, seconds / 4)
  kills = in_saves = finished = 0
  while kills < KILLS:
    workdir, status = tmp_path / f'run{finished}', None
    log = workdir.with_suffix('.log')
    while status is None:
      process = binary.start(log, *ARGUMENTS, f'--workdir={workdir}')
      if kills < KILLS:
        wait = bool(kills % 2)
        ran, in_save = kill_later(process, workdir, rng, moment, wait)
        kills, in_saves = kills + ran, in_saves + in_save
        # Too late: this machine is faster than it was.
        moment = moment if ran or wait else moment / 2
      else:
        process.join(300)
      if process.exitcode != -signal.SIGKILL:
        status = process.exitcode
    text = log.read_text()
    assert status == 0, (seed, text)
    assert 'damaged' not in text, (seed, text)
    finished += 1
    assert processes.digests(workdir) == processes.digests(undisturbed), seed
    assert processes.numbers(workdir) == processes.numbers(undisturbed), seed
    hidden = [path.name for path in workdir.glob('checkpoints/.*')]
    assert not hidden, (seed, hidden)
  print(f'{kills} kills, {in_saves} in a save, {finished} runs, seed {seed}')
  # Not luck: every other one waits for a save to begin.
  assert in_saves >= KILLS // 8
