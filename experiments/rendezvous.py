"""How the processes of a run meet: process 0 listens, the others come to it.

Each says its number, their count and a word for its flags. When all have come,
process 0 answers with the port that JAX is to take, or, where something is
wrong, with what. It reads from all that have connected at once, so one that is
silent (something that tries ports, say) holds up nobody, and one that is gone
again may come a second time.
"""

import collections
import dataclasses
import re
import selectors
import socket
import threading
import time

from unlearn_jax.base import InputError

_GREETING = 'unlearn_jax'
_LONGEST = 400  # Bytes of a line; whatever says more is no process of ours.
_STUCK = 5.0  # Seconds after which nothing more is sent to one that takes none.


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process of how many this is.

  Attributes:
    coordinator: 'host:port' of process 0.
    count: of processes.
    index: of this one, in [0, count).
    local_devices: which devices of the machine are its own; None for all.
    flags: a word that is the same where the flags are.
    join_seconds: for how long processes wait for each other at the start.
  """

  coordinator: str
  count: int
  index: int
  local_devices: list[int] | None = None
  flags: str = ''
  join_seconds: float = 300.0


class Link:
  """A connection to another process; what passes over it are lines.

  One thread receives, any may say something.

  Attributes:
    lines: those that have come and were not taken yet.
  """

  def __init__(self, connection: socket.socket):
    connection.settimeout(_STUCK)
    self.lines: collections.deque[str] = collections.deque()
    self._connection, self._begun = connection, b''
    self._lock, self._whole = threading.Lock(), True

  def fileno(self) -> int:
    """For selectors."""
    return self._connection.fileno()

  def say(self, line: str) -> None:
    """Sends a line; one that is gone is noticed by who receives from it."""
    with self._lock:
      try:
        if self._whole:
          self._connection.sendall(f'{line}\n'.encode())
      except OSError:
        self._whole = False  # Half a line may be out.

  def receive(self) -> None:
    """Takes what has come; waits for it where nothing has.

    Raises:
      OSError: the other one is gone, or not one of ours.
    """
    data = self._connection.recv(4096)
    *lines, self._begun = (self._begun + data).split(b'\n')
    if not data or len(self._begun) > _LONGEST:
      raise ConnectionError('it has ended')
    self.lines.extend(line.decode('utf-8', 'replace') for line in lines)

  def close(self) -> None:
    """Frees it; nobody may use it any more."""
    self._connection.close()


def meet(place: Place) -> tuple[dict[int, Link], str, int]:
  """Waits for all processes.

  Returns:
    Links by process (process 0 has one to every other, these have one to it),
    its host, and the port that JAX takes there.

  Raises:
    InputError: the others have not come in time, or do not fit.
  """
  host, _, port = place.coordinator.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  deadline = time.monotonic() + place.join_seconds
  if place.index:
    link, chosen = _arrive(place, (host, int(port)), deadline)
    return {0: link}, host, chosen
  with _listener(place, host, int(port)) as listener:
    links = _Reception(place, listener).welcome(deadline)
    with socket.socket(listener.family) as probe:
      probe.bind(('', 0))
      chosen = probe.getsockname()[1]
  for link in links.values():
    link.say(f'port {chosen}')
  return links, host, chosen


def _listener(place: Place, host: str, port: int) -> socket.socket:
  try:
    family, _, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address[:2], family=family, backlog=1024)
  except OSError as error:
    raise InputError(
      f'process 0 cannot listen at {place.coordinator}: {error.strerror};'
      ' allowed: an address of its machine and a port that is free'
    ) from error


class _Reception:
  """Process 0 until all others have come."""

  def __init__(self, place: Place, listener: socket.socket):
    self._place, self._listener = place, listener
    self._came: dict[int, Link] = {}
    self._selector = selectors.DefaultSelector()
    self._selector.register(listener, selectors.EVENT_READ)

  def welcome(self, deadline: float) -> dict[int, Link]:
    """The links to all others; whoever else has connected is left."""
    stay: dict[int, Link] = {}
    try:
      while len(self._came) < self._place.count - 1:
        left = deadline - time.monotonic()
        if left <= 0:
          raise self._missed()
        for key, _ in self._selector.select(left):
          if key.data is None:
            self._admit()
          else:
            self._hear(key.data)
      stay = self._came
    finally:
      for key in list(self._selector.get_map().values()):
        if key.data is not None and key.data not in stay.values():
          key.data.close()
      self._selector.close()
    return stay

  def _admit(self) -> None:
    try:
      connection, _ = self._listener.accept()
    except OSError:  # It is gone again, or there are too many.
      time.sleep(0.05)
      return
    link = Link(connection)
    self._selector.register(link, selectors.EVENT_READ, link)

  def _hear(self, link: Link) -> None:
    try:
      link.receive()
      if not link.lines:
        return
      index, wrong = _read_greeting(self._place, link.lines.popleft())
    except (OSError, ValueError):
      # A process that is gone may come again; others are none of ours.
      self._selector.unregister(link)
      link.close()
      self._came = {
        i: other for i, other in self._came.items() if other is not link
      }
      return
    if index in self._came:
      wrong = f'there are two processes with --process_id={index}'
    if wrong:
      self._refuse(wrong, link)
      raise InputError(f'{wrong}; allowed: one command, in all processes')
    self._came[index] = link

  def _missed(self) -> InputError:
    place = self._place
    missing = [i for i in range(1, place.count) if i not in self._came]
    shown = ', '.join(map(str, missing[:8]))
    if len(missing) > 8:
      shown += f' and {len(missing) - 8} more'
    self._refuse('not all processes have come')
    # A name may mean another address in its own machine than elsewhere.
    at, own = place.coordinator, self._listener.getsockname()[0]
    return InputError(
      f'of {place.count} processes {shown} did not come to {at}'
      f'{"" if own in at else f" ({own})"} in {place.join_seconds:g} s;'
      ' allowed: the same command in each of them, or a longer --join_seconds'
    )

  def _refuse(self, reason: str, *more: Link) -> None:
    for link in (*self._came.values(), *more):
      link.say(f'no {reason}')


def _read_greeting(place: Place, line: str) -> tuple[int, str | None]:
  """Which process it is, and what is wrong with it.

  Raises:
    ValueError: it is none.
  """
  found = re.fullmatch(rf'{_GREETING} (\d{{1,9}}) (\d{{1,9}}) (\w*)', line)
  if not found:
    raise ValueError('no greeting')
  index, count = int(found[1]), int(found[2])
  if count != place.count or not 0 < index < place.count:
    return index, f'--process_id={index} of {count} has come to {place.count}'
  if found[3] != place.flags:
    return index, f'process {index} has other flags than process 0'
  return index, None


def _arrive(
  place: Place, address: tuple[str, int], deadline: float
) -> tuple[Link, int]:
  """The link to process 0, and the port that JAX takes there."""
  connection = _connect(place, address, deadline)
  link, at = Link(connection), f'process 0 at {place.coordinator}'
  link.say(f'{_GREETING} {place.index} {place.count} {place.flags}')
  try:
    while not link.lines:
      left = deadline - time.monotonic() + 5  # Process 0 speaks first.
      if left <= 0:
        raise TimeoutError('timed out')
      connection.settimeout(left)
      link.receive()
  except OSError as error:
    link.close()
    raise InputError(f'{at} does not go on: {error}') from error
  connection.settimeout(_STUCK)
  word, _, rest = link.lines.popleft().partition(' ')
  if word == 'port' and re.fullmatch(r'\d{1,5}', rest):
    return link, int(rest)
  link.close()
  if word == 'no':
    raise InputError(f'{at} says: {rest}')
  raise InputError(
    f'what answers at {place.coordinator} is no process 0; allowed: the address'
    ' where it runs, and a port that is free there'
  )


def _connect(
  place: Place, address: tuple[str, int], deadline: float
) -> socket.socket:
  """A connection to process 0, which may be about to start."""
  while True:
    left = deadline - time.monotonic()
    try:
      connection = socket.create_connection(address, max(0.01, left))
      if connection.getsockname() != connection.getpeername():
        return connection
      # Where nobody listens yet, a port may be connected with itself.
      connection.close()
      raise ConnectionRefusedError('nobody listens')
    except OSError as error:
      if left > 0.5:
        time.sleep(0.2)
        continue
      raise InputError(
        f'process 0 does not answer at {place.coordinator} for'
        f' {place.join_seconds:g} s: {error.strerror or error}; allowed: the'
        ' address where it runs, or a longer --join_seconds'
      ) from error
