"""How a binary runs, and how it ends.

A bad flag ends it with one line on stderr and exit status 2, bad data with one
line and status 1; in both cases before anything is written.
"""

from collections.abc import Callable, Sequence
import contextlib
import errno
import functools
from logging import ERROR, LogRecord, getLogger
import os
import pathlib
import signal
import sys
import tempfile
import traceback
from typing import Any, NoReturn

from absl import app, logging
from absl import flags as absl_flags
import jax

from experiments import cluster, flags, preemption
from unlearn_jax.base import InputError, require_file, shown
from unlearn_jax.data import streaming

# What a disk says that takes no more, or nothing of ours.
_REFUSED = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.ESTALE),
)


def run(main: Callable[[], None]) -> None:
  """Runs a binary's `main` with the errors and exit statuses that all share.

  Args:
    main: the binary.
  """
  known = absl_flags.FLAGS
  for name in flags.names():  # Those that --help shows.
    known.register_key_flag_for_module(sys.argv[0], known[name])
  for stream in (sys.stdout, sys.stderr):  # A path can be any bytes.
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')
  try:
    _one_line_only()
    with preemption.watched():
      app.run(lambda _: _guarded(main), flags_parser=_parse)
  except preemption.Stopped as stopped:
    status = 128 + stopped.signum
    cluster.stop(stopped.signum)
    if not cluster.is_first():
      cluster.leave(status)
    name = signal.Signals(stopped.signum).name
    _exit(f'stopped by {name}: {stopped.note}', status, '')
  except KeyboardInterrupt:
    _exit(
      'interrupted; finished stages are kept, the same command goes on', 130
    )


@functools.cache
def _one_line_only() -> None:
  """Keeps errors of Orbax and of the event loops of its threads to ourselves.

  Orbax raises them, and we say in one line what it raised; it also logs them
  with stack traces, and tasks of a save that failed outlive their event loop.
  That may be long after the save, so this is for the rest of the process.
  """
  folder, before = f'{os.sep}orbax{os.sep}', sys.unraisablehook

  def is_told(record: LogRecord) -> bool:
    theirs = record.name == 'asyncio' or folder in record.pathname
    return not theirs or record.levelno < ERROR

  def unraisable(what: Any) -> None:
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  for logger in (logging.get_absl_logger(), getLogger('asyncio')):
    logger.addFilter(is_told)
  sys.unraisablehook = unraisable


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    _require_flag_files(argv)
    rest = absl_flags.FLAGS(list(argv))
  except (absl_flags.Error, ValueError, RecursionError) as error:
    _exit(str(error), 2)
  if len(rest) > 1:
    _exit(f'{shown(repr(rest[1]))} is not a flag, allowed: --name=value', 2)
  return rest


def _require_flag_files(argv: Sequence[str]) -> None:
  """Refuses files of flags that absl would wait for or stumble over."""
  for argument, following in zip(argv, [*argv[1:], '']):
    name, equals, value = argument.partition('=')
    if name in ('-flagfile', '--flagfile'):
      path = value if equals else following
      try:
        require_file(path)
        pathlib.Path(path).read_text('utf-8')
      except (OSError, ValueError) as error:
        raise InputError(f'--flagfile={shown(path)}: {error}') from error


def _guarded(main: Callable[[], None]) -> None:
  logging.set_verbosity(logging.WARNING)
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.join(
    tempfile.gettempdir(), f'unlearn_jax_cache_{os.getuid()}'
  )
  with contextlib.suppress(OSError):  # Without a cache it is only slower.
    os.makedirs(cache, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  megabytes = getattr(absl_flags.FLAGS, 'device_data_mb', None)
  limit = megabytes if megabytes is None else max(0, megabytes) * 10**6
  try:
    own = flags.place(absl_flags.FLAGS)
    with cluster.joined(own), streaming.limit(limit):
      main()
    cluster.leave(0)
  except flags.FlagError as error:
    _exit(str(error), 2)
  except Exception as error:
    if cluster.several() and _is_of_runtime(error):
      # Of a collective, perhaps: another process may have gone first.
      if stopped := preemption.stopped():
        raise stopped from error
      cluster.await_end()
    if isinstance(error, InputError):
      _exit(str(error), 1)
    if isinstance(error, OSError) and error.errno in _REFUSED:
      _exit(f'{error.filename or "a file"}: {error.strerror}', 1)
    if cluster.several():
      if isinstance(error, jax.errors.JaxRuntimeError):
        _exit(str(error).split('\n')[0], 1)
      traceback.print_exc()
      cluster.leave(1)
    raise


def _is_of_runtime(error: BaseException | None) -> bool:
  """Whether it is an error of JAX's runtime, or was raised because of one."""
  while error and not isinstance(error, jax.errors.JaxRuntimeError):
    error = error.__cause__ or error.__context__
  return error is not None


def _exit(message: str, status: int, kind: str = 'error: ') -> NoReturn:
  line = shown(' '.join(message.split()), 4000)
  print(f'{kind}{cluster.name() if kind else ""}{line}', file=sys.stderr)
  cluster.leave(status)
  raise SystemExit(status)
