"""Claims: one worker a stage, however many there are and whoever dies."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from experiments.reproduction.claims import Claims, workdir
from unlearn_jax.base import InputError


def long_ago(claim):
  past = time.time() - 3600
  os.utime(claim.path, (past, past))


def race(folder, key, workers=16):
  """Those of so many workers, all starting at once, that get the claim."""
  barrier, won = threading.Barrier(workers), []

  def take(number):
    claims = Claims(folder, f'worker{number}', expiry=60)
    barrier.wait()
    claim = claims.take(key)
    if claim is not None:
      won.append(claim)

  threads = [threading.Thread(target=take, args=(n,)) for n in range(workers)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return won


def test_two_workers_never_take_one_stage(tmp_path):
  first, second = Claims(tmp_path, 'a'), Claims(tmp_path, 'b')
  assert first.take('stage') is not None
  assert second.take('stage') is None
  assert first.take('stage') is None  # Not even its owner takes it twice.
  assert second.take('another') is not None


@pytest.mark.parametrize('repeat', range(5))
def test_of_many_at_once_one_gets_it(tmp_path, repeat):
  assert len(race(tmp_path, 'stage')) == 1


def test_a_dead_workers_claim_expires_and_the_dead_one_learns_of_it(tmp_path):
  first, second = (Claims(tmp_path, n, expiry=60) for n in 'ab')
  claim = first.take('stage')
  assert second.take('stage') is None
  long_ago(claim)
  assert not claim.lost
  assert second.take('stage') is not None
  assert claim.lost
  assert first.take('stage') is None


def test_an_expired_claim_is_taken_over_once(tmp_path):
  long_ago(Claims(tmp_path, 'dead').take('stage'))
  assert len(race(tmp_path, 'stage')) == 1


def test_a_process_that_is_gone_from_this_machine_is_dead_at_once(tmp_path):
  code = (
    'import os, pathlib, sys\n'
    'from experiments.reproduction.claims import Claims\n'
    'assert Claims(pathlib.Path(sys.argv[1]), "gone").take("stage")\n'
    'os._exit(9)\n'
  )
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path)])
  assert done.returncode == 9
  assert Claims(tmp_path, 'next').take('stage') is not None


def test_a_claim_lives_while_it_is_held(tmp_path):
  first, second = (Claims(tmp_path, n, expiry=0.5) for n in 'ab')
  with first.held(first.take('stage')):
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
      assert second.take('stage') is None
      time.sleep(0.05)
  time.sleep(0.7)  # Nobody touches it any more.
  assert second.take('stage') is not None


def test_what_was_not_finished_is_given_back(tmp_path):
  first, second = Claims(tmp_path, 'a'), Claims(tmp_path, 'b')
  with pytest.raises(KeyboardInterrupt):
    with first.held(first.take('stage')):
      assert second.take('stage') is None
      raise KeyboardInterrupt
  assert second.take('stage') is not None


def test_a_directory_that_another_is_just_making_is_waited_for(tmp_path):
  identity = {'preset': 'smoke'}
  draft = tmp_path / '.workdir.json.draft'
  draft.write_text(json.dumps(identity))

  def finish():
    draft.rename(tmp_path / 'workdir.json')

  threading.Timer(0.3, finish).start()
  workdir(tmp_path, identity, patience=5.0).claim()
  with pytest.raises(InputError, match='belongs to preset=smoke'):
    workdir(tmp_path, {'preset': 'cpu'}, patience=0.1)


def test_one_that_lost_its_claim_does_not_release_the_others(tmp_path):
  first, second, third = (Claims(tmp_path, n, expiry=60) for n in 'abc')
  claim = first.take('stage')
  long_ago(claim)
  assert second.take('stage') is not None
  claim.release()
  assert third.take('stage') is None
