"""How a process that computes is prepared."""

import contextlib
import functools
from logging import ERROR, LogRecord, getLogger
import os
import sys
from typing import Any

from absl import logging
import jax
import platformdirs

from unlearn_jax.base import InputError, shown
from unlearn_jax.data import streaming


@functools.cache
def prepare() -> None:
  """Compiled programs are kept, and only our own lines are said.

  Raises nothing: without a folder for them programs are compiled anew.
  """
  logging.set_verbosity(logging.WARNING)
  _one_line_only()
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or _own_cache()
  if cache:
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _own_cache() -> str | None:
  """The user's folder for programs, or None if it is not the user's alone.

  JAX trusts what lies there, and runs it.
  """
  folder = platformdirs.user_cache_path('unlearn_jax') / 'programs'
  with contextlib.suppress(OSError, RuntimeError):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.getuid() and not status.st_mode & 0o022:
      return str(folder)
  return None


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


def require_devices() -> None:
  """Starts JAX's backend, or says in one line that it cannot be."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter of 'cuda'.
    name, text = os.environ.get('JAX_PLATFORMS', ''), str(error) or 'not here'
    raise InputError(
      f'JAX_PLATFORMS={shown(name)}: {shown(text.splitlines()[0])}; allowed: a'
      ' platform of this machine, such as cpu'
    ) from error


def device_limit(megabytes: int | None) -> contextlib.AbstractContextManager:
  """Inside, images of more megabytes come from the host in blocks."""
  return streaming.limit(None if megabytes is None else megabytes * 10**6)
