"""Whether a training that is stopped and gone on with has the bits of a whole.

  python -m benchmarks.reliability --out=mine.json
  python -m benchmarks.reliability --xla_flags= \
      --xla_flags=--xla_gpu_deterministic_ops=true \
      --train='--dataset=npz:cifar10.npz --model=resnet18 --dtype=bfloat16'

For each --train and each --xla_flags `experiments.train` is run whole, whole
again, ended by SIGTERM and given again, and killed by SIGKILL and given again:
six processes, one compilation cache. They are compared by the digest of the
state, which the command writes into the manifest of its checkpoint.
"""

from collections.abc import Iterator
import contextlib
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags as absl_flags

from benchmarks import output, workers
from benchmarks.environment import environment
from experiments import binary, flags
from unlearn_jax.base import InputError

DIGITS = '--dataset=digits --width=8 --train_epochs=12 --seed=0'
# How each of them is interrupted.
RUNS = {
  'whole': None,
  'again': None,
  'terminated': signal.SIGTERM,
  'killed': signal.SIGKILL,
}


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_multi_string(
    'train', [DIGITS], 'Flags of experiments.train; once or more often.'
  )
  absl_flags.DEFINE_multi_string(
    'xla_flags', [''], 'XLA_FLAGS; once or more often.'
  )
  absl_flags.DEFINE_integer(
    'after', 2, 'The saved epoch after which a run is interrupted.'
  )
  output.define()


class Training:
  """One command in one work directory, given once or twice."""

  def __init__(self, arguments: str, xla_flags: str, home: pathlib.Path):
    """Nothing is started yet.

    Args:
      arguments: of `experiments.train`, but for the work directory.
      xla_flags: of its processes.
      home: a folder for the work directory, which is made in it.
    """
    folder = pathlib.Path(tempfile.mkdtemp(dir=home))
    self._workdir, self._log = folder / 'run', folder / 'log'
    module = [sys.executable, '-m', 'experiments.train']
    own = [f'--workdir={self._workdir}', '--save_seconds=0']
    self._command = [*module, *shlex.split(arguments), *own]
    self._environment = {
      **os.environ,
      'XLA_FLAGS': xla_flags,
      'JAX_COMPILATION_CACHE_DIR': str(home / 'cache'),
    }

  def interrupt(self, signum: int, after: int) -> dict[str, Any]:
    """Sends it a signal once that epoch is saved; how it ended.

    Raises:
      InputError: it ended before, or otherwise.
    """
    with self._running() as process:
      while not self._is_saved(after):
        if process.poll() is not None:
          raise self._failure(process)
        time.sleep(0.01)
      process.send_signal(signum)
      start = time.perf_counter()
      if process.wait() not in (-signum, 128 + signum):
        raise self._failure(process)
    return {
      'status': process.returncode,
      'seconds_to_exit': time.perf_counter() - start,
      'said': self._last_line() if signum != signal.SIGKILL else None,
    }

  def finish(self) -> str:
    """Runs it to its end; the digest of its state.

    Raises:
      InputError: it did not end well.
    """
    with self._running() as process:
      if process.wait():
        raise self._failure(process)
    (path,) = self._workdir.glob('checkpoints/[!.]*/manifest.json')
    return json.loads(path.read_text())['state_sha256']

  @contextlib.contextmanager
  def _running(self) -> Iterator[subprocess.Popen]:
    """The process, which does not outlive a `with` block."""
    with self._log.open('w') as log:
      process = subprocess.Popen(
        self._command,
        cwd=workers.ROOT,
        env=self._environment,
        stdout=log,
        stderr=log,
      )
    try:
      yield process
    finally:
      process.kill()
      process.wait()

  def _is_saved(self, epoch: int) -> bool:
    saves = self._workdir.glob('checkpoints/.*.partial/epoch-*')
    return any(int(path.name.split('-')[1]) >= epoch for path in saves)

  def _last_line(self) -> str:
    return (self._log.read_text().splitlines() or ['nothing was said'])[-1]

  def _failure(self, process: subprocess.Popen) -> InputError:
    return InputError(
      f'{shlex.join(self._command)} ended with status'
      f' {process.returncode}: {self._last_line()[:300]}'
    )


def case(
  arguments: str, xla_flags: str, after: int, home: pathlib.Path
) -> dict[str, Any]:
  """All `RUNS` of one command, and whether they end with the same bits."""
  runs = {}
  for name, signum in RUNS.items():
    training, found = Training(arguments, xla_flags, home), {}
    if signum is not None:
      found = training.interrupt(signum, after)
    runs[name] = {**found, 'digest': training.finish()}
    print(f'{name:10} {runs[name]["digest"][:16]}', flush=True)
  same = len({run['digest'] for run in runs.values()}) == 1
  print('the same bits' if same else 'NOT the same bits')
  return {
    'train': arguments,
    'xla_flags': xla_flags,
    'runs': runs,
    'identical': same,
  }


def require(values: Any) -> pathlib.Path | None:
  """Where the result goes.

  Raises:
    FlagError: a flag that is not allowed.
  """
  if values.after < 1:
    raise flags.FlagError('after', values.after, '1 or more')
  for text in values.train:
    try:
      shlex.split(text)
    except ValueError as error:
      raise flags.FlagError('train', text, f'a command line: {error}') from None
  return output.path(values)


def main() -> None:
  """Runs every case, and writes JSON where it was asked for."""
  values = absl_flags.FLAGS
  load, path = list(os.getloadavg()), require(values)
  with workers.Worker('benchmarks.jax_worker') as worker:
    probed = worker.ask('probe')
  cases: list[dict[str, Any]] = []
  record = {'environment': environment(probed, load), 'cases': cases}
  for arguments, xla_flags in itertools.product(values.train, values.xla_flags):
    print(f'{xla_flags} experiments.train {arguments}'.strip(), flush=True)
    with tempfile.TemporaryDirectory(prefix='unlearn_jax_') as home:
      cases.append(case(arguments, xla_flags, values.after, pathlib.Path(home)))
    output.write(path, record)  # After each case: time may run out.


if __name__ == '__main__':
  define()
  binary.run(main)
