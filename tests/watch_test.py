"""What is heard over a link, and JAX's way through a tunnel."""

import os
import signal
import socket
import threading
import time

import pytest

from experiments import preemption, tunnel, watch
from experiments.rendezvous import Link, Place

AGAIN = 'the same command, given again in all processes, goes on'


@pytest.fixture
def ends(monkeypatch):
  """Where processes would end: (line, status)."""
  found = []

  def end(status):
    found.append(status)
    threading.Event().wait()  # The thread goes no further.

  monkeypatch.setattr(os, '_exit', end)
  return found


@pytest.fixture
def linked(ends):
  """Process 0 of three, and the other sides of its links."""
  (own, first), (other, second) = (
    map(Link, socket.socketpair()) for _ in range(2)
  )
  watching = watch.Watch(Place('localhost:1', 3, 0), {1: own, 2: other})
  yield watching, first, second
  watching.end(0)
  for link in (first, second):
    link.close()


def wait(holds):
  end = time.monotonic() + 5
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.01)


def heard(link):
  """The lines until the next, beats left out."""
  lines = []
  while not lines:
    link.receive()
    lines = [line for line in link.lines if line != 'beat']
    link.lines.clear()
  return lines


def test_a_signal_goes_round_once(linked, monkeypatch):
  relayed = []
  monkeypatch.setattr(preemption, 'relay', relayed.append)
  own, first, second = linked
  first.say('signal 15')
  assert heard(second) == ['signal 15']
  wait(lambda: relayed)
  second.say('signal 15')
  first.say('signal 2')
  own.signalled(signal.SIGTERM)
  own.end(143)
  assert heard(first) == heard(second) == ['end 0 143']
  assert relayed == [15]


def test_one_that_stopped_at_once_was_not_killed(
  linked, ends, capfd, monkeypatch
):
  # The main thread does not get to know of it, in a compiled program, say.
  monkeypatch.setattr(preemption, 'relay', lambda signum: None)
  _, first, second = linked
  first.say('signal 15')
  assert heard(second) == ['signal 15']
  first.close()
  wait(lambda: ends)
  assert ends == [143]
  assert capfd.readouterr().err == (
    f'error: process 0: process 1 has stopped at once; {AGAIN}\n'
  )


def test_what_is_not_understood_is_passed_over(
  linked, ends, capfd, monkeypatch
):
  relayed = []
  monkeypatch.setattr(preemption, 'relay', relayed.append)
  own, first, second = linked
  for line in (
    *('', ' ', 'signal', 'signal 9', 'signal x', 'signal 15 15', 'signal -15'),
    *('end', 'end 1', 'end 1 x', 'end 1 0 0', 'killed', 'killed one', '\x00'),
    *('beat 1', 'silent', f'signal {"9" * 350}', 'signal ¹⁵'),
  ):
    first.say(line)
  first.say('killed 2')
  assert heard(first) == ['killed 2']
  wait(lambda: ends)
  assert ends == [1] and not relayed
  assert capfd.readouterr().err == (
    'error: process 0: process 2 of 3 was killed, or its machine is gone;'
    f' {AGAIN}\n'
  )


@pytest.mark.parametrize('last', [b'\xff\xfe', b'x' * 1000, b''])
def test_one_that_ends_without_a_word_was_killed(ends, capfd, last):
  one, other = socket.socketpair()
  watch.Watch(Place('localhost:1', 2, 1), {0: Link(one)})
  other.sendall(last)
  other.close()
  wait(lambda: ends)
  assert ends == [1]
  assert 'process 1: process 0 of 2 was killed' in capfd.readouterr().err


def test_one_that_says_so_has_ended(linked, ends):
  own, first, second = linked
  first.say('end 1 0')
  first.close()
  second.say('end 2 0')
  second.close()
  own.await_others(5)
  time.sleep(0.1)
  assert not ends


def test_others_end_with_the_status_of_the_first(
  linked, ends, capfd, monkeypatch
):
  monkeypatch.setattr(watch, 'GRACE', 0.1)
  own, first, second = linked
  first.say('end 1 143')
  assert heard(second) == ['end 1 143']
  wait(lambda: ends)
  assert ends == [143]
  assert capfd.readouterr().err.startswith(
    'error: process 0: process 1 of 3 has ended with status 143'
  )


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(watch, '_BEAT', 0.1)
  monkeypatch.setattr(watch, '_SILENCE', 1.0)


def test_one_that_says_nothing_is_missed(impatient, linked, ends, capfd):
  _, first, second = linked
  end = time.monotonic() + 5
  while not ends and time.monotonic() < end:
    second.say('beat')
    time.sleep(0.05)
  assert ends == [1]
  assert 'process 1 of 3 was not heard of for 1 s' in capfd.readouterr().err
  first.receive()  # What was said before it ended.
  assert set(first.lines) == {'beat'}
  assert heard(second) == ['silent 1']


def test_a_way_stays_open_at_its_end():
  with socket.create_server(('127.0.0.1', 0)) as listener:
    host, _, port = tunnel.through(*listener.getsockname()).rpartition(':')
    near = socket.create_connection((host, int(port)), 5)
    there, _ = listener.accept()
  near.sendall(b'here')
  assert there.recv(10) == b'here'
  there.sendall(b'x' * 10**6)
  there.close()
  left = 10**6
  while left:
    left -= len(near.recv(2**16))
  near.settimeout(0.3)
  for _ in range(3):
    with pytest.raises(TimeoutError):
      near.recv(1)
    near.sendall(b'are you there?')
  # Where nobody is, JAX is told, and tries again.
  other = socket.create_connection((host, int(port)), 5)
  assert other.recv(1) == b''


def test_what_jax_ends_is_ended():
  with socket.create_server(('127.0.0.1', 0)) as listener:
    host, _, port = tunnel.through(*listener.getsockname()).rpartition(':')
    near = socket.create_connection((host, int(port)), 5)
    there, _ = listener.accept()
  near.sendall(b'last')
  near.close()
  there.settimeout(5)
  assert there.recv(10) == b'last'
  assert there.recv(10) == b''
