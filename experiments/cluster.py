"""One run of several processes: how they meet, and how they end together.

    with cluster.joined(place):
      ...

Process 0 listens at the coordinator's address. When all have come there,
`jax.distributed` starts, and the connections stay open: as long as a run
lasts, every process hears from process 0 every few seconds, and process 0 from
all. A process that ends says so; one that is killed cannot, but its connection
closes. Either way the others end too, with one line, because a collective
without one of its processes waits for ever. A signal that one process gets is
handed to all, and with `parallel.gathered` they stop after the same epoch.

JAX itself would abort instead, after its own timeout, with a stack trace.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn
import warnings

import jax
from jax._src import clusters

from experiments import preemption
from unlearn_jax import parallel
from unlearn_jax.base import InputError

# Seconds from one sign of life to the next, and after which one is missed.
_BEAT, _SILENCE = 5.0, 40.0
# JAX's own timeout, for what the connections do not show; under a minute too.
_JAX_SILENCE = 55
# Seconds that a process has to end by itself once another one has ended.
_GRACE = 5.0
_GREETING = 'unlearn_jax'
# What jax.distributed.initialize() detects, but for a plain Kubernetes pod,
# which it cannot tell from one of several.
_DETECTED = ('slurm', 'ompi', 'gketpu', 'gcetpu')
_AGAIN = 'the same command, given again in all processes, goes on'


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


@dataclasses.dataclass
class _Run:
  """The run that this process is part of; `watch` is None without others."""

  watch: '_Watch | None' = None


_run = _Run()


def detected(join_seconds: float) -> Place | None:
  """This process's place in a Slurm step, an Open MPI job or a TPU slice.

  Returns:
    None outside of these, and in those that have one process.

  Raises:
    InputError: there is one, but it does not say where process 0 is.
  """
  kinds = clusters.ClusterEnv._cluster_types
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    # JAX 0.8 has kinds without a name.
    known = [k for k in kinds if getattr(k, 'name', None) in _DETECTED]
    present = [kind for kind in known if kind.is_env_present()]
  if not present:
    return None
  kind = present[0]
  try:
    if kind.get_process_count() < 2:
      return None
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, local = detect(
      None, None, None, None, kind.name, int(join_seconds)
    )
    assert address is not None and count is not None and index is not None
  # Whatever of the environment is missing or is no number.
  except Exception as error:
    raise InputError(
      f'several processes under {kind.name}, but {type(error).__name__}:'
      f' {error}; allowed: --coordinator, --num_processes and --process_id'
    ) from error
  return Place(address, count, index, list(local) if local else None)


@contextlib.contextmanager
def joined(place: Place | None) -> Iterator[None]:
  """Computes together with the other processes inside a `with` block.

  Only process 0 has a standard output there. No device may have been
  touched before. Without an error the block ends in all processes at once.

  Args:
    place: of this process; None for a process of its own.

  Raises:
    InputError: the others have not come in time.
  """
  if place is None:
    yield
    return
  connections, address = _meet(place)
  _run.watch = watch = _Watch(place, connections)
  _slow_abort()
  # JAX's own way with SIGTERM; JAX 0.8 cannot switch it off.
  with contextlib.suppress(AttributeError):
    jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    address,
    place.count,
    place.index,
    # What is empty would be detected.
    cluster_detection_method='deactivate',
    # Not every interface of the machine, as JAX would have it.
    coordinator_bind_address=address,
    local_device_ids=place.local_devices,
    initialization_timeout=int(place.join_seconds),
    heartbeat_timeout_seconds=_JAX_SILENCE,
  )
  for number in preemption.SIGNALS:  # Back from JAX, see above.
    signal.signal(number, signal.getsignal(number))
  with preemption.told(watch.signalled), _only_speaker(place.index == 0):
    parallel.connect()
    yield
    parallel.gathered('done')
  watch.end(0)
  jax.distributed.shutdown()
  _run.watch = None


@contextlib.contextmanager
def _only_speaker(first: bool) -> Iterator[None]:
  """Leaves standard output to Python's prints, and to those of process 0.

  JAX's collectives for the CPU write there too, where JSON may be expected.
  """
  sys.stdout.flush()
  with open(os.devnull, 'w') as nowhere, open(os.dup(1), 'w') as own:
    os.dup2(nowhere.fileno(), 1)
    try:
      with contextlib.redirect_stdout(own if first else nowhere):
        yield
    finally:
      own.flush()
      os.dup2(own.fileno(), 1)


def several() -> bool:
  """Whether this is one of several processes of a run."""
  return _run.watch is not None


def name() -> str:
  """'process 1: ' in a run of several processes, otherwise nothing."""
  return f'process {_run.watch.place.index}: ' if _run.watch else ''


def is_first() -> bool:
  """Whether this process speaks for all: process 0, or the only one."""
  return _run.watch is None or _run.watch.place.index == 0


def leave(status: int) -> None:
  """Ends the process, and tells the others; does nothing without others.

  `jax.distributed` would wait for the others first. Process 0 waits a little,
  because JAX aborts those whose coordinator is gone.
  """
  if _run.watch is None:
    return
  _run.watch.end(status)
  if status and _run.watch.place.index == 0:
    _run.watch.await_others(_GRACE + 2)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def await_end() -> None:
  """Waits a little: an error may be because another process has ended.

  If it is, this process ends in here.
  """
  if _run.watch is not None:
    time.sleep(3)


class _Watch:
  """The connections to the other processes, each with a thread that listens.

  Process 0 is connected with every other one, and hands on what it hears. A
  message is a line: `beat`, `signal N`, `end PROCESS STATUS`, `lost PROCESS`.
  """

  def __init__(self, place: Place, connections: dict[int, socket.socket]):
    self.place, self._connections = place, connections
    self._ended: set[int] = set()  # They said so.
    self._gone: set[int] = set()
    self._relayed = self._leaving = False
    self._lock = threading.Lock()
    for index, connection in connections.items():
      connection.settimeout(_SILENCE)
      self._start(self._listen, index, connection)
    self._start(self._beat)

  def signalled(self, signum: int) -> None:
    """Hands a signal of this process to the others."""
    with self._lock:
      if self._relayed:
        return
      self._relayed = True
    self._send(f'signal {signum}')

  def end(self, status: int) -> None:
    """Says that this process ends."""
    self._leaving = True
    self._send(f'end {self.place.index} {status}')

  def await_others(self, seconds: float) -> None:
    """Waits for the end of the others, but not longer than this."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(self._gone) < len(self._connections):
      time.sleep(0.05)

  def _start(self, function: Any, *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()

  def _send(self, line: str, but: int | None = None) -> None:
    for index, connection in self._connections.items():
      if index != but:
        # One that is gone is noticed where it is listened to.
        with contextlib.suppress(OSError):
          connection.sendall(f'{line}\n'.encode())

  def _beat(self) -> None:
    while True:
      time.sleep(_BEAT)
      self._send('beat')

  def _listen(self, index: int, connection: socket.socket) -> None:
    reason = 'was killed, or its machine is gone'
    try:
      with connection.makefile(encoding='utf-8') as lines:
        for line in lines:
          word, *numbers = line.split()
          self._heard(index, word, *map(int, numbers))
    except TimeoutError:
      reason = f'was not heard of for {_SILENCE:.0f} s'
    except OSError:
      pass
    self._gone.add(index)
    if index not in self._ended and not self._leaving:
      self._lost(index, reason)

  def _heard(self, index: int, word: str, *numbers: int) -> None:
    if word == 'signal':
      with self._lock:
        known, self._relayed = self._relayed, True
      if not known:
        self._send(f'{word} {numbers[0]}', but=index)
        preemption.relay(numbers[0])
    elif word == 'lost':
      self._lost(numbers[0], 'was killed, or its machine is gone')
    elif word == 'end':
      process, status = numbers
      self._ended.add(process)
      if status:
        self._send(f'end {process} {status}', but=index)
        self._start(self._follow, process, status)

  def _follow(self, process: int, status: int) -> None:
    """Gives this process time to end as that one has, then ends it."""
    time.sleep(_GRACE)
    if not self._leaving:
      _die(
        f'{name()}process {process} of {self.place.count} has ended with status'
        f' {status} and said why; {_AGAIN}',
        status,
      )

  def _lost(self, process: int, reason: str) -> NoReturn:
    self._send(f'lost {process}', but=process)
    signum = preemption.requested()
    if signum is not None:  # By a second signal, say.
      _die(f'process {process} has stopped at once; {_AGAIN}', 128 + signum)
    _die(
      f'{name()}process {process} of {self.place.count} {reason}; {_AGAIN}', 1
    )


def _die(text: str, status: int) -> NoReturn:
  """Ends the process where it stands, its main thread inside a collective."""
  with contextlib.suppress(OSError):
    os.write(2, f'error: {text}\n'.encode())
  os._exit(status)


def _slow_abort() -> None:
  """Has an abort of JAX's wait, so that our own line comes first.

  JAX aborts from a thread of its own as soon as it hears that process 0 is
  gone. The handler is sleep(SIGABRT), of 6 seconds, and no Python code, which
  could not run there; after it the process aborts as ever.
  """
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _meet(place: Place) -> tuple[dict[int, socket.socket], str]:
  """Waits for all processes: (connections by process, address for JAX)."""
  host, _, port = place.coordinator.rpartition(':')
  deadline = time.monotonic() + place.join_seconds
  if place.index == 0:
    connections = _welcome(place, host, int(port), deadline)
    with socket.socket(next(iter(connections.values())).family) as probe:
      probe.bind(('', 0))
      chosen = probe.getsockname()[1]
    for connection in connections.values():
      connection.sendall(f'port {chosen}\n'.encode())
  else:
    connection, chosen = _arrive(place, host, int(port), deadline)
    connections = {0: connection}
  return connections, f'{host}:{chosen}'


def _welcome(
  place: Place, host: str, port: int, deadline: float
) -> dict[int, socket.socket]:
  """The connections of process 0."""
  came: dict[int, socket.socket] = {}
  with _listener(place, host, port) as listener:
    while len(came) < place.count - 1:
      listener.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        connection, _ = listener.accept()
      except TimeoutError:
        missing = sorted(set(range(1, place.count)) - set(came))
        _refuse(came, 'not all processes have come')
        raise InputError(
          f'of {place.count} processes {_listed(missing)} did not come to'
          f' {place.coordinator} in {place.join_seconds:g} s; allowed: the same'
          ' command in each of them, or a longer --join_seconds'
        ) from None
      index, wrong = _greeted(place, connection)
      if index in came:
        wrong = f'there are two processes with --process_id={index}'
      if index is None:
        connection.close()  # No process of ours.
      elif wrong:
        _refuse({**came, -1: connection}, wrong)
        raise InputError(f'{wrong}; allowed: one command, in all processes')
      else:
        came[index] = connection
  return came


def _listed(numbers: list[int]) -> str:
  shown = ', '.join(map(str, numbers[:8]))
  return f'{shown} and {len(numbers) - 8} more' if len(numbers) > 8 else shown


def _listener(place: Place, host: str, port: int) -> socket.socket:
  try:
    family, _, _, _, address = socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address[:2], family=family)
  except OSError as error:
    raise InputError(
      f'process 0 cannot listen at {place.coordinator}: {error.strerror};'
      ' allowed: an address of its machine and a port that is free'
    ) from error


def _greeted(
  place: Place, connection: socket.socket
) -> tuple[int | None, str | None]:
  """Which process it is, or None; and what is wrong with it."""
  connection.settimeout(5)
  try:
    word, index, count, own = _line(connection).split(' ')
    number = int(index)
  except (OSError, ValueError):
    return None, None
  if word != _GREETING:
    return None, None
  if int(count) != place.count or not 0 < number < place.count:
    wrong = f'--process_id={number} of {count} has come to {place.count}'
  elif own != place.flags:
    wrong = f'process {number} has other flags than process 0'
  else:
    return number, None
  return number, wrong


def _refuse(connections: dict[int, socket.socket], reason: str) -> None:
  for connection in connections.values():
    with contextlib.suppress(OSError):
      connection.sendall(f'no {reason}\n'.encode())


def _arrive(
  place: Place, host: str, port: int, deadline: float
) -> tuple[socket.socket, int]:
  """The connection to process 0, and the port that JAX takes there."""
  while True:
    left = deadline - time.monotonic()
    try:
      connection = socket.create_connection(
        (host.strip('[]'), port), max(0.01, left)
      )
      break
    except OSError as error:
      if left > 0.5:
        time.sleep(0.2)  # It may be about to start.
        continue
      raise InputError(
        f'process 0 does not answer at {place.coordinator} for'
        f' {place.join_seconds:g} s: {error.strerror or error}; allowed: the'
        ' address where it runs, or a longer --join_seconds'
      ) from error
  told = f'{_GREETING} {place.index} {place.count} {place.flags}'
  try:
    connection.sendall(f'{told}\n'.encode())
    connection.settimeout(max(1.0, deadline - time.monotonic() + 5))
    word, _, rest = _line(connection).partition(' ')
  except OSError as error:
    raise InputError(
      f'process 0 at {place.coordinator} does not go on: {error}'
    ) from error
  if word != 'port':
    reason = rest if word == 'no' else 'it has ended'
    raise InputError(f'process 0 at {place.coordinator} says: {reason}')
  return connection, int(rest)


def _line(connection: socket.socket) -> str:
  """A line, read byte by byte: what follows it stays in the connection."""
  text = b''
  while not text.endswith(b'\n') and len(text) < 200:
    byte = connection.recv(1)
    if not byte:
      break
    text += byte
  return text.decode('utf-8', 'replace').rstrip('\n')
