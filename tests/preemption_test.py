"""Signals, sent to real processes that know no more than `preemption`."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import preemption

ROOT = pathlib.Path(__file__).parent.parent
START = """
import hashlib, sys, time
from experiments import preemption

def deaf(seconds):
  # Nothing in C code interrupts this: Python's handlers wait for its end.
  start = time.monotonic()
  while time.monotonic() - start < seconds:
    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**ROUNDS)

def tell(text):
  print(text, flush=True)

try:
  with preemption.watched():
    BODY
except preemption.Stopped as stopped:
  tell(stopped.note)
  sys.exit(128 + stopped.signum)
tell('unharmed')
"""
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


def start(body, rounds=5):
  lines = '\n    '.join(body.strip().splitlines())
  code = START.replace('BODY', lines).replace('ROUNDS', str(rounds))
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number, status', SIGNALS)
def test_what_is_not_deferred_ends_where_it_stands(number, status):
  process = start("tell('ready')\ntime.sleep(60)")
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert process.returncode == status
  assert (out, err) == (f'{preemption._NOTE}\n', '')


COLLECTOR = """
import gc
def collecting(phase, _):
  if phase == 'start':
    tell('ready')
    deaf(1)
gc.callbacks.append(collecting)
gc.collect()
gc.callbacks.clear()
time.sleep(60)
"""
EVENT_LOOP = """
import asyncio
loop = asyncio.new_event_loop()
def called():
  tell('ready')
  deaf(1)
  loop.stop()
loop.call_soon(called)
loop.run_forever()
time.sleep(60)
"""


@pytest.mark.parametrize('number, status', SIGNALS)
@pytest.mark.parametrize('body', [COLLECTOR, EVENT_LOOP])
def test_where_no_exception_gets_out_it_is_not_lost(number, status, body):
  process = start(body)
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert process.returncode == status
  assert (out, err) == (f'{preemption._NOTE}\n', '')


def test_a_signal_at_the_end_of_a_deferral_is_not_lost():
  def late():
    signal.raise_signal(signal.SIGTERM)

  with pytest.raises(preemption.Stopped), preemption.watched():
    with preemption.deferred(late):
      pass
    time.sleep(0)


@pytest.mark.parametrize('number, status', SIGNALS)
def test_what_is_deferred_is_finished_first(number, status):
  process = start(
    """
with preemption.deferred():
  with preemption.deferred():
    tell('ready')
    deaf(1)
  tell('finished')
tell('never reached')
"""
  )
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert process.returncode == status
  assert out == f'finished\n{preemption._NOTE}\n'
  name = signal.Signals(number).name
  assert err.split('\n') == [
    '',
    f'{name}: saving and stopping; once more stops at once',
    '',
  ]


def test_what_another_process_was_sent_is_no_second_signal():
  process = start(
    """
sent = []
with preemption.told(sent.append), preemption.deferred():
  preemption.relay(15)
  tell('ready')
  deaf(2)
  tell(f'finished {sent}')
"""
  )
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=20)
  assert process.returncode == 143, err
  assert out == f'finished [15]\n{preemption._NOTE}\n'


@pytest.mark.parametrize('number, status', SIGNALS)
def test_the_second_signal_ends_what_hears_nothing(number, status):
  process = start(
    "with preemption.deferred():\n  tell('ready')\n  deaf(60)", rounds=8
  )
  process.send_signal(number)
  assert process.stderr.readline() == '\n'
  assert 'once more stops at once' in process.stderr.readline()
  began = time.monotonic()
  process.send_signal(number)
  process.communicate(timeout=20)
  assert process.returncode == status
  assert time.monotonic() - began < 5


@pytest.mark.parametrize('number, status', SIGNALS)
@pytest.mark.parametrize('deferred', [True, False])
def test_what_hears_nothing_ends_in_time(number, status, deferred):
  """Without a second signal: a scheduler kills after 30 s."""
  assert preemption._PATIENCE < 30
  body = "preemption._PATIENCE = 1.0\ntell('ready')\ndeaf(60)"
  if deferred:
    lines = '\n  '.join(body.splitlines())
    body = f'with preemption.deferred():\n  {lines}'
  process = start(body, rounds=8)
  time.sleep(0.3)  # It is in C code.
  began = time.monotonic()
  process.send_signal(number)
  out, err = process.communicate(timeout=20)
  assert process.returncode == status
  assert 0.9 < time.monotonic() - began < 6
  assert err.strip().splitlines()[-1].startswith('stopped at once; what was ')
  assert out == ''


def test_the_handlers_that_were_there_come_back():
  before = [signal.getsignal(number) for number in preemption.SIGNALS]
  with preemption.watched():
    inside = [signal.getsignal(number) for number in preemption.SIGNALS]
    assert preemption.requested() is None
  assert inside == [preemption._handle] * 2
  assert [signal.getsignal(n) for n in preemption.SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1


def test_a_request_is_seen_and_forgotten_by_the_next_watch():
  with pytest.raises(preemption.Stopped), preemption.watched():
    with preemption.deferred():
      os.kill(os.getpid(), signal.SIGTERM)
      assert preemption.requested() == signal.SIGTERM
  with preemption.watched(), preemption.deferred():
    assert preemption.requested() is None


def test_an_error_in_a_deferred_block_is_not_hidden():
  with pytest.raises(ZeroDivisionError), preemption.watched():
    with preemption.deferred():
      os.kill(os.getpid(), signal.SIGINT)
      raise ZeroDivisionError


def test_other_threads_may_watch_in_vain():
  seen = []

  def work():
    with preemption.watched(), preemption.deferred():
      seen.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [signal.getsignal(signal.SIGTERM)]
