"""Processes that meet, and whoever else comes to where they do."""

import concurrent.futures
import contextlib
import socket
import time

import pytest

from experiments import rendezvous
from experiments.rendezvous import Link, Place
from unlearn_jax.base import InputError

# Whole lines, and what never becomes one.
STRANGE = (
  b'',
  b'GET / HTTP/1.1\r\n\r\n',
  b'\xff\xfe\n',
  b'unlearn_jax 1\n',
  b'unlearn_jax 1 x word\n',
  b'unlearn_jax -1 2 word\n',
  b'unlearn_jax ' + b'9' * 5000 + b' 2 word\n',
  b'unlearn_jax 1 2 word and more\n',
  b'unlearn_jax 1 2',
  b'a' * 100_000,
)


@pytest.fixture
def pool():
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    yield threads


@pytest.fixture
def port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def place(port, index, count=2, flags='word', seconds=20.0, host='127.0.0.1'):
  return Place(f'{host}:{port}', count, index, None, flags, seconds)


def come(port, text=b''):
  """Connects as soon as process 0 listens, and says something."""
  end = time.monotonic() + 10
  while True:
    try:
      connection = socket.create_connection(('127.0.0.1', port), 10)
    except OSError:
      assert time.monotonic() < end
      time.sleep(0.01)
      continue
    with contextlib.suppress(OSError):  # It may be sent away before the end.
      connection.sendall(text)
    return connection


def speak(links):
  """Each end hears what the other says."""
  for number, (one, other) in enumerate((links, links[::-1])):
    one.say(f'beat {number}')
    while not other.lines:
      other.receive()
    assert other.lines.popleft() == f'beat {number}'


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '[::1]'])
def test_they_meet_and_are_told_a_port(pool, port, host):
  if host == '[::1]':
    try:
      socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError:
      pytest.skip('no IPv6 here')
  every = [place(port, index, count=3, host=host) for index in (0, 1, 2)]
  found = list(pool.map(rendezvous.meet, every))
  (own, *others), hosts, ports = zip(*found)
  assert set(hosts) == {host.strip('[]')} and len(set(ports)) == 1
  assert ports[0] != port
  for index, links in enumerate(others, 1):
    speak([own[index], links[0]])


def test_strangers_hold_up_nobody_and_break_nothing(pool, port):
  first = pool.submit(rendezvous.meet, place(port, 0))
  strangers = [come(port, text) for text in STRANGE for _ in range(5)]
  start = time.monotonic()
  links, _, _ = rendezvous.meet(place(port, 1))
  assert set(first.result()[0]) == {1}
  assert time.monotonic() - start < 3
  speak([first.result()[0][1], links[0]])
  for stranger in strangers:  # All of them are sent away, without a word.
    with contextlib.suppress(ConnectionError):
      assert stranger.recv(10) == b''
    stranger.close()


def test_one_that_is_gone_may_come_again(pool, port):
  first = pool.submit(rendezvous.meet, place(port, 0, count=3))
  for _ in range(3):
    come(port, b'unlearn_jax 1 3 word\n').close()
    time.sleep(0.05)
  others = [pool.submit(rendezvous.meet, place(port, i, 3)) for i in (1, 2)]
  assert {len(other.result()[0]) for other in others} == {1}
  assert set(first.result()[0]) == {1, 2}


def test_one_that_is_gone_is_missed(pool, port):
  first = pool.submit(rendezvous.meet, place(port, 0, 3, seconds=1.0))
  come(port, b'unlearn_jax 1 3 word\n').close()
  last = come(port, b'unlearn_jax 2 3 word\n')
  with pytest.raises(InputError, match='of 3 processes 1 did not come'):
    first.result()
  assert last.recv(100) == b'no not all processes have come\n'
  assert last.recv(1) == b''


@pytest.mark.parametrize(
  'text, message',
  [
    (b'unlearn_jax 1 3 word\n', 'there are two processes with --process_id=1'),
    (b'unlearn_jax 2 3 other\n', 'process 2 has other flags than process 0'),
    (b'unlearn_jax 2 4 word\n', '--process_id=2 of 4 has come to 3'),
    (b'unlearn_jax 3 3 word\n', '--process_id=3 of 3 has come to 3'),
    (b'unlearn_jax 0 3 word\n', '--process_id=0 of 3 has come to 3'),
  ],
)
def test_what_does_not_fit_is_told_to_all(pool, port, text, message):
  first = pool.submit(rendezvous.meet, place(port, 0, 3))
  second = pool.submit(rendezvous.meet, place(port, 1, 3))
  time.sleep(1)  # That it be the one that has come before.
  third = come(port, text)
  with pytest.raises(InputError, match=f'^{message}; allowed: one command'):
    first.result()
  with pytest.raises(InputError, match=f'says: {message}$'):
    second.result()
  assert third.recv(100) == f'no {message}\n'.encode()
  assert third.recv(1) == b''


@pytest.mark.parametrize(
  'answer, message',
  [
    (b'', 'does not go on: it has ended'),
    (b'port', 'does not go on: it has ended'),
    (b'\xff' * 1000, 'does not go on: it has ended'),
    (b'port x\n', 'is no process 0'),
    (b'port 99999999\n', 'is no process 0'),
    (b'HTTP/1.1 400 Bad Request\r\n\r\n', 'is no process 0'),
    (b'no reason\n', 'says: reason'),
  ],
)
def test_another_service_in_place_of_process_0(pool, port, answer, message):
  with socket.create_server(('127.0.0.1', port)) as listener:
    second = pool.submit(rendezvous.meet, place(port, 1))
    connection, _ = listener.accept()
    with connection:
      connection.recv(100)
      connection.sendall(answer)
    with pytest.raises(InputError, match=message):
      second.result()


def test_a_port_that_is_connected_with_itself_is_no_process_0(
  pool, port, monkeypatch
):
  connect, calls = socket.create_connection, []

  def first_itself(address, timeout):
    calls.append(address)
    if len(calls) > 1:
      return connect(address, timeout)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(address)
    connection.connect(address)
    return connection

  monkeypatch.setattr(socket, 'create_connection', first_itself)
  second = pool.submit(rendezvous.meet, place(port, 1))
  while not calls:
    time.sleep(0.01)
  first = pool.submit(rendezvous.meet, place(port, 0))
  speak([first.result()[0][1], second.result()[0][0]])
  assert len(calls) > 1


def test_lines_of_several_threads_stay_whole(pool):
  one, other = map(Link, socket.socketpair())
  text = 'x' * 300
  said = [pool.submit(one.say, f'{text} {i}') for i in range(5000)]
  heard = []
  while len(heard) < len(said):
    other.receive()
    heard.extend(other.lines)
    other.lines.clear()
  assert sorted(heard) == sorted(f'{text} {i}' for i in range(5000))


def test_one_that_takes_nothing_holds_up_nobody_for_long(monkeypatch):
  monkeypatch.setattr(rendezvous, '_STUCK', 0.2)
  one, other = map(Link, socket.socketpair())
  start = time.monotonic()
  for _ in range(20_000):
    one.say('x' * 300)
  assert time.monotonic() - start < 5
  # The half line is the last: nothing is read as what it is not.
  one.close()
  with contextlib.suppress(OSError):
    while True:
      other.receive()
  assert set(other.lines) == {'x' * 300}
