"""JAX's way to process 0, led through this process.

When its connection to process 0 closes, JAX ends the process from a thread of
its own, in 0.8 at once and later after a stack trace, mostly before a thread of
Python can say what has happened (`watch`). No option of `jax.distributed`
changes that, and neither does recoverability. So its connection leads to a
socket of this process, which hands all on and stays open when process 0 is
gone. Should the watch not notice, JAX's own heartbeats stop all the same.

JAX waits for process 0 without Python's lock, or no thread here could run.
"""

from collections.abc import Callable
import contextlib
import socket
import threading
from typing import Any

LOOPBACK = '127.0.0.1'


def through(host: str, port: int) -> str:
  """The address, in this process, of a way to that one."""
  listener = socket.create_server((LOOPBACK, 0))
  _start(_serve, listener, (host, port))
  return f'{LOOPBACK}:{listener.getsockname()[1]}'


def _serve(listener: socket.socket, far: tuple[str, int]) -> None:
  while True:
    near, _ = listener.accept()
    try:
      there = socket.create_connection(far, 5)
    except OSError:
      near.close()  # JAX tries again.
      continue
    for end in (near, there):
      end.settimeout(None)
      end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(_lead, near, there)
    _start(_answer, there, near)


def _lead(near: socket.socket, there: socket.socket) -> None:
  """Hands on what JAX says, until it ends; what can arrive no more is lost."""
  with contextlib.suppress(OSError):
    while data := near.recv(2**16):
      with contextlib.suppress(OSError):
        there.sendall(data)
  with contextlib.suppress(OSError):
    there.shutdown(socket.SHUT_RDWR)


def _answer(there: socket.socket, near: socket.socket) -> None:
  """Hands on what process 0 says, but not its end."""
  with contextlib.suppress(OSError):
    while data := there.recv(2**16):
      near.sendall(data)


def _start(function: Callable[..., None], *args: Any) -> None:
  threading.Thread(target=function, args=args, daemon=True).start()
