"""Processes that are asked for one measurement at a time.

Each contestant of a benchmark lives in a process of its own, is set up once,
and then sleeps on its standard input until it is asked. So contestants can
take turns, none of them shares a thread pool, an allocator or a compilation
cache with another, and memory and compilation are measured from a clean
start. Requests and replies are JSON, one a line.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


class WorkerError(Exception):
  """A worker that ended before it answered; the message is one line."""


class Worker:
  """The asking side.

  Example, not run as a test because it starts a process:

    with Worker('benchmarks.jax_worker') as worker:
      worker.ask('probe')['platform']
  """

  def __init__(self, module: str, environment: Mapping[str, str] | None = None):
    """Starts `python -m module` with these additions to the environment."""
    self._module = module
    self._errors = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
      [sys.executable, '-m', module],
      cwd=ROOT,
      env={**os.environ, **(environment or {})},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *_: Any) -> None:
    self._process.kill()
    self._process.communicate()
    self._errors.close()

  def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
    """The reply to one request.

    Raises:
      WorkerError: the process ended instead.
    """
    assert self._process.stdin and self._process.stdout
    try:
      request = json.dumps({'do': do, **arguments})
      self._process.stdin.write(request + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      raise self._failure(do) from None
    line = self._process.stdout.readline()
    if not line:
      raise self._failure(do)
    return json.loads(line)

  def _failure(self, do: str) -> WorkerError:
    status = self._process.wait()
    self._errors.seek(0)
    lines = [line.strip() for line in self._errors if line.strip()]
    # JAX ends its tracebacks with a note on what it filtered.
    errors = [line for line in lines if 'Error' in line.split(':')[0]]
    last = (errors or lines or ['nothing on stderr'])[-1]
    return WorkerError(
      f'{self._module} ended with status {status} at {do!r}: {last[:300]}'
    )


class Channel:
  """The answering side; what else the process prints goes to stderr."""

  def __init__(self):
    self._replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def receive(self) -> dict[str, Any]:
    """The next request; ends the process when the asking side is gone."""
    line = sys.stdin.readline()
    if not line:
      raise SystemExit(0)
    return json.loads(line)

  def reply(self, answer: Mapping[str, Any]) -> None:
    """Answers the last request."""
    self._replies.write(json.dumps(answer) + '\n')
    self._replies.flush()
