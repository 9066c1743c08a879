"""How a binary runs, and how it ends.

A bad flag ends it with one line on stderr and exit status 2, bad data with one
line and status 1; in both cases before anything is written.
"""

from collections.abc import Callable, Sequence
import os
import signal
import sys
import traceback
from typing import Any, NoReturn, TypeVar

from absl import app, flags

from unlearn_jax.base import InputError, require_file, shown
from .. import config, settings
from ..settings import FlagError
from . import distributed, process, signals

C = TypeVar('C')
_KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}


def run(main: Callable[[C], None], kind: type[C]) -> None:
  """Runs a binary's `main` with the errors and exit statuses that all share."""
  for stream in (sys.stdout, sys.stderr):  # A path can be any bytes.
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')
      _outlive(stream)
  if not {*settings.names(kind)} <= {*flags.FLAGS}:
    settings.define(kind)
  try:
    with signals.watched():
      app.run(lambda _: _guarded(main, kind), flags_parser=_parser(main, kind))
  except signals.Stopped as stopped:
    name = signal.Signals(stopped.signum).name
    _exit(f'stopped by {name}: {stopped.note}', 128 + stopped.signum, '')


def _outlive(stream: Any) -> None:
  """Whoever reads may go, as `| head` does; what is computed goes on."""

  def patient(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
      try:
        return method(*arguments)
      except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    return call

  for name in ('write', 'flush'):
    setattr(stream, name, patient(getattr(stream, name)))


def _parser(main: Any, kind: type) -> Callable[[Sequence[str]], list[str]]:
  def parse(argv: Sequence[str]) -> list[str]:
    if not {'-h', '-help', '--help', '--helpshort', '-?'}.isdisjoint(argv[1:]):
      from . import help  # For who asks.

      print(help.text(sys.modules[main.__module__].__doc__ or '', kind))
      raise SystemExit
    return _parse(argv)

  return parse


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    for flag, after in zip(argv[1:], [*argv[2:], '']):
      name, is_told, path = flag.partition('=')
      path = path if is_told else after
      if name.lstrip('-') == 'flagfile' and path:  # Absl would wait for a pipe.
        require_file(path)
    rest = flags.FLAGS(list(argv))
  except flags.IllegalFlagValueError as error:  # Says why, not what is allowed.
    why = error.__context__  # None where no value is there.
    told = str(error).removeprefix('flag ').removesuffix(f': {why}')
    own = flags.FLAGS[told[2:].partition('=')[0]].flag_type() if why else ''
    _exit(f'{told}, allowed: {_KINDS.get(own, why or "a value")}', 2)
  except (flags.Error, ValueError, RecursionError) as error:
    _exit(str(error), 2)
  if len(rest) > 1:
    _exit(f'{shown(repr(rest[1]))} is not a flag, allowed: --name=value', 2)
  return rest


def _guarded(main: Callable[[C], None], kind: type[C]) -> None:
  process.prepare()
  try:
    own: Any = settings.read(kind)
    processes = getattr(own, 'processes', config.Processes())
    archives = getattr(own, 'archives', config.Archives())
    distributed.check(processes)
    with (
      distributed.joined(processes, config.agreed(own)),
      process.device_limit(archives.device_data_mb),
    ):
      process.require_devices()
      main(own)
  except InputError as error:
    _exit(str(error), 2 if isinstance(error, FlagError) else 1)
  except OSError as error:
    _exit(f'{error.filename or "a file"}: {error.strerror or error}', 1)
  except Exception:
    if not distributed.name():
      raise
    traceback.print_exc()
    _end(1)


def _exit(message: str, status: int, kind: str = 'error: ') -> NoReturn:
  line = shown(' '.join(message.split()), 4000)
  name = distributed.name() if kind else ''
  print(f'{kind}{name}{line}', file=sys.stderr)
  _end(status)


def _end(status: int) -> NoReturn:
  """One of several processes does not wait for the others to say goodbye."""
  if distributed.name():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  raise SystemExit(status)
