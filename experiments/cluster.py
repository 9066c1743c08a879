"""One run of several processes: how they compute together.

    with cluster.joined(place):
      ...

When all have met (`rendezvous`), `jax.distributed` starts, and as long as the
run lasts a thread watches over the others (`watch`): they end together, and
stop together, with `parallel.gathered` after the same epoch.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
import warnings

import jax
from jax._src import clusters

from experiments import preemption, rendezvous, tunnel
from experiments.rendezvous import Place
from experiments.watch import GRACE, Watch
from unlearn_jax import parallel
from unlearn_jax.base import InputError

# JAX's own timeout, for what the watch does not notice. JAX may end a process
# after half of it, which must be later than the watch would.
_JAX_SILENCE = 120
# What jax.distributed.initialize() detects, but for a plain Kubernetes pod,
# which it cannot tell from one of several.
_DETECTED = ('slurm', 'ompi', 'gketpu', 'gcetpu')


@dataclasses.dataclass
class _Run:
  """The run that this process is part of; `watch` is None without others."""

  watch: Watch | None = None


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
  touched before. Without an error the block ends in all processes at once;
  then, as after an error, `leave` ends the process.

  Args:
    place: of this process; None for a process of its own.

  Raises:
    InputError: the others have not come in time.
  """
  if place is None:
    yield
    return
  links, host, port = rendezvous.meet(place)
  _run.watch = watch = Watch(place, links)
  _start_jax(place, host, port)
  with preemption.told(watch.signalled), _only_speaker(place.index == 0):
    parallel.connect()
    yield
    parallel.gathered('done')


def _start_jax(place: Place, host: str, port: int) -> None:
  own = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
  # A proxy for HTTP has no part in this; JAX would try it, warn, and give up.
  known = os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy', '')
  os.environ['no_grpc_proxy'] = f'{known},{host},{tunnel.LOOPBACK}'.lstrip(',')
  jax.config.update('jax_check_proxy_envs', False)
  # JAX's own way with SIGTERM; JAX 0.8 cannot switch it off.
  with contextlib.suppress(AttributeError):
    jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    own if place.index == 0 else tunnel.through(host, port),
    place.count,
    place.index,
    # What is empty would be detected.
    cluster_detection_method='deactivate',
    # Not every interface of the machine, as JAX would have it.
    coordinator_bind_address=own,
    local_device_ids=place.local_devices,
    initialization_timeout=math.ceil(place.join_seconds),
    heartbeat_timeout_seconds=_JAX_SILENCE,
  )
  for number in preemption.SIGNALS:  # Back from JAX, see above.
    signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def _only_speaker(first: bool) -> Iterator[None]:
  """Leaves standard output to Python's prints, and to those of process 0.

  JAX's collectives for the CPU write there too, where JSON may be expected.
  """
  sys.stdout.flush()
  # Line by line, because `watch` may end the process where it stands; and a
  # path can be any bytes.
  with (
    open(os.devnull, 'w', errors='replace') as nowhere,
    open(os.dup(1), 'w', 1, sys.stdout.encoding, 'backslashreplace') as own,
  ):
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


def stop(signum: int) -> None:
  """Hands a signal on that ends this process, unless that has been done."""
  if _run.watch is not None:
    _run.watch.signalled(signum)


def leave(status: int) -> None:
  """Ends the process, and tells the others; does nothing without others.

  `jax.distributed` would wait for the others first, and abort if one is gone.
  Process 0 waits a little, because they may not have asked it yet what it has
  decided.
  """
  if _run.watch is None:
    return
  _run.watch.end(status)
  if _run.watch.place.index == 0:
    _run.watch.await_others(GRACE + 2)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def await_end() -> None:
  """Waits a little: an error may be because another process has ended.

  If it is, this process ends in here: at once if that one was killed, after
  `GRACE` if it has said that it ends.
  """
  if _run.watch is not None:
    time.sleep(GRACE + 1)
