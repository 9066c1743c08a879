"""One training over several processes: `jax.distributed`, and little else."""

from collections.abc import Iterator
import contextlib
import contextvars
import importlib.util
import math
import os
import re
import socket
import sys
import threading
from typing import Any

import jax

from unlearn_jax import parallel
from unlearn_jax.base import InputError, shown
from ..config import Processes
from ..settings import FlagError
from . import signals

# Seconds. Who is silent for so long is dead; and so long one that ends because
# of an error waits for the others before they are ended too.
_SILENCE = 20
_FLAGS = ('coordinator', 'num_processes', 'process_id')
_name = contextvars.ContextVar('name', default='')


def name() -> str:
  """'process 1: ' in a run of several processes, otherwise nothing."""
  return _name.get()


def check(processes: Processes) -> None:
  """Raises a `FlagError` for a flag without the others, or not in accord."""
  given = {flag: getattr(processes, flag) for flag in _FLAGS}
  there = [flag for flag in _FLAGS if given[flag] is not None]
  if not there:
    return
  for flag in _FLAGS:
    if flag not in there:
      raise FlagError(flag, '', f'a value, because --{there[0]} is given')
  address, count, index = given.values()
  if not re.fullmatch(r'.+:0*[1-9][0-9]{0,4}', address):
    raise FlagError('coordinator', address, 'host:port of process 0')
  if index >= count:
    raise FlagError('process_id', index, f'0 to {count - 1}')


def launcher() -> str | None:
  """JAX's name for what has evidently started several processes.

  'k8s' is a Job with numbered pods, where JAX can ask Kubernetes about it.
  """
  own = os.environ
  if own.get('OMPI_COMM_WORLD_SIZE', '1') != '1':
    return 'ompi'
  if {'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= own.keys():
    return 'slurm' if own.get('SLURM_NTASKS', '1') != '1' else None
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= own.keys():
    return 'k8s' if importlib.util.find_spec('kubernetes') else None
  return None


@contextlib.contextmanager
def joined(processes: Processes, agreed: str) -> Iterator[None]:
  """Computes together with the other processes inside a `with` block.

  Does nothing for one process. Only process 0 has a standard output in there.
  No device may be touched before. At the end all wait for each other; after an
  error the process has to end, and JAX ends the others.
  """
  kind = None if processes.coordinator else launcher()
  if kind is None and (processes.num_processes or 1) == 1:
    yield
    return
  _join(processes, kind)
  if parallel.processes() > 1:
    _name.set(f'process {jax.process_index()}: ')
  with _only_speaker():
    parallel.connect()
    texts = parallel.gathered(agreed)
    if len(set(texts)) > 1:
      raise InputError(
        f'processes have other commands: {shown(", ".join(texts), 400)};'
        ' allowed: the same in all'
      )
    stopped = None
    try:
      yield
    except signals.Stopped as request:  # All are, at the same step.
      stopped = request
    parallel.gathered('done')  # However long process 0 still writes.
  jax.distributed.shutdown()
  if stopped:
    raise stopped


def _join(processes: Processes, kind: str | None) -> None:
  """Starts `jax.distributed`; in a thread, because JAX aborts if it is late."""
  address, seconds = processes.coordinator, processes.join_seconds
  # JAX has no name for Kubernetes. What the flags tell is not looked for, and
  # not every interface of the machine is listened at.
  method = None if kind == 'k8s' else kind or 'deactivate'
  options: dict[str, Any] = {'cluster_detection_method': method}
  if not kind:
    options |= {flag: getattr(processes, flag) for flag in _FLAGS[1:]}
    options |= {'coordinator_address': address}
    options |= {'coordinator_bind_address': address}
  # A proxy for HTTP has no part in this; JAX would wait for it in vain.
  os.environ['grpc_proxy'] = ''
  jax.config.update('jax_check_proxy_envs', False)
  # It would take SIGTERM.
  jax.config.update('jax_enable_preemption_service', False)
  failures: list[Exception] = []

  def initialize() -> None:
    try:
      if address and processes.process_id == 0:
        # JAX would crash where it cannot listen.
        host, _, port = address.rpartition(':')
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        place = host.strip('[]'), int(port)
        socket.create_server(place, family=family).close()
      jax.distributed.initialize(
        **options,
        initialization_timeout=math.ceil(seconds) + 60,
        heartbeat_timeout_seconds=_SILENCE,
        shutdown_timeout_seconds=_SILENCE,
      )
    except Exception as error:
      failures.append(error)

  thread = threading.Thread(target=initialize, daemon=True)
  thread.start()
  thread.join(seconds)
  where = f'the processes of {kind}' if kind else f'--coordinator={address}'
  if thread.is_alive():
    raise InputError(f'{where}: not all there after --join_seconds={seconds:g}')
  for error in failures:
    line = shown(f'{type(error).__name__}: {error}'.split('\n')[0])
    raise InputError(
      f'{where}: {line}; allowed: a free port of process 0 as --coordinator,'
      ' with --num_processes and --process_id'
    ) from error


@contextlib.contextmanager
def _only_speaker() -> Iterator[None]:
  """Leaves standard output to the prints of process 0.

  JAX's collectives for the CPU write there too, where JSON may be expected.
  """
  sys.stdout.flush()
  with (
    open(os.devnull, 'w', errors='replace') as nowhere,
    open(os.dup(1), 'w', 1, sys.stdout.encoding, 'backslashreplace') as own,
  ):
    os.dup2(nowhere.fileno(), 1)
    speaker = own if parallel.is_first() else nowhere
    try:
      with contextlib.redirect_stdout(speaker):
        yield
    finally:
      own.flush()
      os.dup2(own.fileno(), 1)
