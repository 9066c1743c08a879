"""Who carries stages out: this process, or any `concurrent.futures.Executor`.

A stage's result is a folder that all see, never something that a worker
holds, so that an engine can end at any time and the same command goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
from logging import WARNING
import os
import pathlib
from typing import Any

from unlearn_jax.base import InputError, shown
from .. import config
from ..runtime import process
from ..runtime.progress import Progress, Silent
from ..settings import FlagError
from . import stages
from .stages import Stage, StageFailedError

# Seconds that a scheduler may take to answer.
_PATIENCE = 30


class InProcess(futures.Executor):
  """Does what it is given at once, in the calling thread."""

  def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """A future that is done; what is no `Exception` is raised right here."""
    future: futures.Future[Any] = futures.Future()
    try:
      future.set_result(fn(*args, **kwargs))
    except Exception as error:
      future.set_exception(error)
    return future


def run(wanted: Sequence[Stage], asked: config.Study) -> dict[str, str]:
  """Carries out all stages as `asked` says; by key, why some have failed."""
  progress = Progress(len(wanted), sum(stage.epochs for stage in wanted))
  engine, local = asked.execution, asked.execution.engine == 'local'

  def tell(stage: Stage, note: str) -> None:
    if not note:
      progress.skip(stage.title, stage.epochs, 'done before')
    elif local:
      progress.end(note)
    else:
      progress.elsewhere(stage.title, stage.epochs, note)

  if local:
    for name in ('scheduler', 'workers'):
      if (value := getattr(engine, name)) is not None:
        raise FlagError(name, value, 'nothing, without --engine=dask')
    return schedule(
      wanted, InProcess(), lambda own: stages.carry_out(own, progress), tell
    )
  with _dask(engine) as pool:
    return schedule(wanted, pool, _there, tell)


def schedule(
  wanted: Sequence[Stage],
  pool: futures.Executor,
  work: Callable[[Stage], str],
  tell: Callable[[Stage, str], None],
) -> dict[str, str]:
  """Submits each stage once its parents are done, until none is left."""
  waiting = {stage.key: stage for stage in wanted}
  running: dict[futures.Future[str], Stage] = {}
  failed: dict[str, str] = {}
  while waiting or running:
    # Submitting: what does not wait for a parent that is still to come.
    pending = {*waiting, *(stage.key for stage in running.values())}
    for key, stage in list(waiting.items()):
      parents = {parent.key for parent in stage.parents.values()}
      if parents & failed.keys():
        failed[key] = f'{stage.title}: what it needs has failed'
        del waiting[key]
      elif not parents & pending:
        future = pool.submit(work, waiting.pop(key))
        running[future] = stage
        if future.done():
          break  # One after the other: the first error is the end.
    # Hearing: what is done, and what cannot be done.
    done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
    for future in done:
      stage = running.pop(future)
      try:
        tell(stage, future.result())
      except StageFailedError as error:
        if stage.required:
          raise
        failed[stage.key] = str(error)
        tell(stage, f'warning: {error}')
  return failed


def _there(stage: Stage) -> str:
  """What a worker does, in a process of its own."""
  assert stage.study is not None
  process.prepare()
  with process.device_limit(stage.study.archives.device_data_mb):
    return stages.carry_out(stage, Silent())


@contextlib.contextmanager
def _dask(engine: config.Engine) -> Iterator[futures.Executor]:
  """The workers of a Dask cluster, one of this machine if none is named."""
  # Before Dask is loaded, here and in the workers that are started from here.
  os.environ.setdefault('DASK_DISTRIBUTED__LOGGING__DISTRIBUTED', 'warning')
  try:
    import distributed
  except ImportError as error:
    allowed = "local, or dask after pip install 'unlearn_jax[cluster]'"
    raise FlagError('engine', 'dask', allowed) from error
  with contextlib.ExitStack() as stack:
    if engine.scheduler is None:
      cluster = stack.enter_context(_local_cluster(engine.workers))
      client = stack.enter_context(distributed.Client(cluster))
    else:
      is_file = pathlib.Path(engine.scheduler).is_file()
      where = {'scheduler_file' if is_file else 'address': engine.scheduler}
      try:
        client = distributed.Client(**where, timeout=_PATIENCE)
      # Dask asserts that its loop has begun within 10 s.
      except (OSError, ValueError, AssertionError) as error:
        raise InputError(
          f'--scheduler={shown(engine.scheduler)}: no Dask scheduler answers'
          f' there ({shown(error)}); allowed: its address, or its file'
        ) from error
      stack.enter_context(client)
    yield client.get_executor()


def _local_cluster(workers: int | None) -> Any:
  """One worker a GPU, which alone it sees; without any, one worker."""
  import distributed

  gpus = sorted(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  names = visible.split(',') if visible else [p.name[6:] for p in gpus]
  spec = {}
  for number in range(workers or len(names) or 1):
    own = {'CUDA_VISIBLE_DEVICES': names[number % len(names)]} if names else {}
    # Nothing is taken from a worker for its memory: JAX's is not Dask's.
    options = {'nthreads': 1, 'memory_limit': 0, 'env': own}
    spec[number] = {'cls': distributed.Nanny, 'options': options}
  scheduler = {
    'cls': distributed.Scheduler,
    'options': {'host': '127.0.0.1', 'dashboard_address': '127.0.0.1:0'},
  }
  return distributed.SpecCluster(
    workers=spec, scheduler=scheduler, silence_logs=WARNING
  )
