"""Real processes of the binaries, which can end themselves where a test wants.

A server imports the binaries once; each process is forked from it and then does
what `python -m` would, its own JAX backend included.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from typing import NamedTuple

import devices
import jax

from experiments.runtime import process, signals
from unlearn_jax import checkpoints, snapshots, training

# What all files here compute: seconds, of which most are compilation. The two
# share the source.
TRAIN = (
  *('--dataset=digits', '--train_subset=300', '--forget=random(0.1)'),
  *('--width=4', '--batch_size=60'),
  *('--train_epochs=10', '--train_learning_rate=0.01', '--save_seconds=0'),
)
UNLEARN = (
  *TRAIN,
  *('--epochs=3', '--stop_retain_share=2', '--seeds=1'),
  '--strategies=top_k(examples=24)',
)
# What depends on the clock, in a report's rows.
TIMED = ('seconds', 'compile_seconds', 'acceleration')
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(
  ['experiments.study.study', 'experiments.report.pages', 'sklearn.datasets']
)


class End(NamedTuple):
  """A process sends itself a signal: where is the same in each run."""

  number: signal.Signals
  stage: str  # Part of its name.
  saves: int  # With this one of its saves,
  inside: bool = False  # after it, or while it is half written.
  short: bool = False  # Each step is a call, and saved.


class Processes:
  """Runs of one binary with one compilation cache."""

  def __init__(self, module, arguments, cache):
    self.module, self.arguments, self.cache = module, arguments, cache

  def start(self, log, workdir, *more, end=None, **environment):
    """The running process; it writes to `log`."""
    arguments = (*self.arguments, f'--workdir={workdir}', *more)
    environment = {'JAX_COMPILATION_CACHE_DIR': self.cache} | environment
    process = _context.Process(
      target=_run,
      args=(self.module, arguments, str(log), end, environment),
    )
    process.start()
    return process

  def finish(self, log, workdir, *more, **environment):
    """Runs it to its end: (exit status, what it wrote)."""
    log.unlink(missing_ok=True)
    process = self.start(log, workdir, *more, **environment)
    process.join(300)
    return process.exitcode, log.read_text()

  def pair(self, folder, workdir, *more, end=None):
    """Two processes of one run on loopback, with two devices each.

    The second ends itself. Returns both exit statuses, and what both wrote.
    """
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      here = f'--coordinator=127.0.0.1:{probe.getsockname()[1]}'
    logs = [folder / f'log{index}' for index in range(2)]
    started = []
    for index, log in enumerate(logs):
      log.unlink(missing_ok=True)
      flags = here, '--num_processes=2', f'--process_id={index}'
      # A proxy that is not there: no way between processes leads over it.
      environment = {
        'XLA_FLAGS': devices.flags(2),
        'http_proxy': 'http://127.0.0.1:9',
      }
      own = {'end': end if index else None, **environment}
      started.append(self.start(log, workdir, *more, *flags, **own))
    for one in started:
      one.join(300)
    return [one.exitcode for one in started], [x.read_text() for x in logs]


def _plan(end):
  save, count = snapshots.save, 0
  if end.short:
    training._CALL_SECONDS = 0.0

  def send():
    os.kill(os.getpid(), end.number)
    while signals.requested() is None:  # Its thread hears it.
      time.sleep(0.001)

  def saving(path, *rest):
    nonlocal count
    count += end.stage in str(path)
    if count == end.saves and end.inside:
      checkpoints.digests = lambda folder: send()
    save(path, *rest)
    if count == end.saves:
      send()

  snapshots.save = saving


def _run(module, arguments, log, end, environment):
  os.environ['XLA_FLAGS'] = devices.flags(1)
  os.environ.update({name: str(value) for name, value in environment.items()})
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  if end:
    _plan(end)
  prepare = process.prepare

  def prepared():
    prepare()  # Here small programs are kept as well: there are many starts.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)

  process.prepare = prepared
  sys.argv = [module, *arguments]
  # Imported beforehand: runpy would warn that it is there already.
  sys.modules.pop(module, None)
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def digests(workdir):
  """Of each finished stage's tensors, by its folder's name."""
  return {
    path.parent.name: json.loads(path.read_text())['state_sha256']
    for path in (workdir / 'checkpoints').glob('[!.]*/manifest.json')
  }


def source(workdir):
  """The same of the source."""
  found = digests(workdir)
  return {name: found[name] for name in found if 'source' in name}


def numbers(workdir):
  """Rows and degrees of a report, without seconds and places."""
  report = json.loads((workdir / 'report.json').read_text())
  for row in report['rows']:
    for table in ('values', 'mean', 'paired'):
      for name in TIMED:
        row[table].pop(name, None)
    for curve in row['curves']:
      curve.pop('seconds')
    row['checkpoints'] = [path.split('/')[-1] for path in row['checkpoints']]
  return report['rows'], report['degree']


def hidden(workdir):
  """What is left of stages that were not finished."""
  return [path.name for path in workdir.glob('checkpoints/.*')]
