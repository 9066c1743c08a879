"""Real processes of a binary that start fast enough to be killed often.

A server imports the binary once; each process is forked from it and then does
what `python -m` would, its own JAX backend included.
"""

import json
import multiprocessing
import os
import runpy
import sys
import time

# What depends on the clock, in a report's rows.
TIMED = ('seconds', 'compile_seconds', 'acceleration')


def _run(module, arguments, log, cache, environment):
  os.environ.update(XLA_FLAGS='', JAX_COMPILATION_CACHE_DIR=str(cache))
  os.environ.update(environment)
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  sys.argv = [module, *map(str, arguments)]
  # Imported beforehand: runpy would warn that it is there already.
  sys.modules.pop(module, None)
  runpy.run_module(module, run_name='__main__', alter_sys=True)


class Binary:
  """Starts a binary again and again, with one compilation cache."""

  def __init__(self, module, cache):
    self.module, self.cache = module, cache
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload([module])

  def start(self, log, *arguments, **environment):
    """The running process; it writes to the file `log`."""
    process = self._context.Process(
      target=_run,
      args=(self.module, arguments, str(log), self.cache, environment),
    )
    process.start()
    return process

  def finish(self, log, *arguments, **environment):
    """Runs it to its end: (exit status, what it wrote)."""
    log.unlink(missing_ok=True)
    process = self.start(log, *arguments, **environment)
    process.join(300)
    return process.exitcode, log.read_text()


def wait_for(holds, process, seconds=120):
  """Waits until something holds, which has to be while the process lives."""
  end = time.monotonic() + seconds
  while not holds():
    assert process.is_alive() and time.monotonic() < end
    time.sleep(0.01)


def digests(workdir):
  """The digest of each finished stage's model, by its folder's name."""
  return {
    path.parent.name: json.loads(path.read_text())['state_sha256']
    for path in (workdir / 'checkpoints').glob('[!.]*/manifest.json')
  }


def numbers(workdir):
  """The rows of a report, without seconds and places."""
  rows = json.loads((workdir / 'report.json').read_text())['rows']
  for row in rows:
    for table in ('values', 'mean', 'paired'):
      for name in TIMED:
        row[table].pop(name, None)
    for curve in row['curves']:
      curve.pop('seconds')
    row['checkpoints'] = [path.split('/')[-1] for path in row['checkpoints']]
  return rows
