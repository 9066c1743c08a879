"""Real processes of a binary that start fast enough to be killed often.

A server imports the binary once; each process is forked from it and then does
what `python -m` would, its own JAX backend included.
"""

import json
import multiprocessing
import os
import runpy
import socket
import sys
import time

# What depends on the clock, in a report's rows.
TIMED = ('seconds', 'compile_seconds', 'acceleration')


def _run(module, arguments, log, cache, environment):
  flags = os.environ.get('UNLEARN_JAX_TESTS_XLA_FLAGS', '')
  os.environ.update(XLA_FLAGS=flags, JAX_COMPILATION_CACHE_DIR=str(cache))
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


def devices(count):
  return {'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def flags(index, port):
  return (
    f'--coordinator=127.0.0.1:{port}',
    '--num_processes=2',
    f'--process_id={index}',
  )


class Pair:
  """Two processes of one run, given their place by flags or as by Slurm."""

  def __init__(self, binary, folder, *arguments, slurm=False):
    port = free_port()
    # From this Slurm's job number JAX makes the port of the coordinator.
    step = {
      'SLURM_JOB_ID': str(port),
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': '2',
    }
    self.logs = [folder / f'log{index}' for index in range(2)]
    self.processes = []
    for index, log in enumerate(self.logs):
      log.unlink(missing_ok=True)
      given = () if slurm else flags(index, port)
      own = {'SLURM_PROCID': str(index), 'SLURM_LOCALID': str(index)}
      # A proxy that is not there: no way between processes leads over it.
      proxy = {'http_proxy': 'http://127.0.0.1:9'}
      slots = {**step, **own} if slurm else {}
      environment = {**devices(2), **proxy, **slots}
      self.processes.append(
        binary.start(log, *arguments, *given, **environment)
      )

  def texts(self):
    return [log.read_text() if log.exists() else '' for log in self.logs]

  def wait(self, seconds=500):
    """The exit statuses; None for one that has not ended in time."""
    end = time.monotonic() + seconds
    for process in self.processes:
      process.join(max(0, end - time.monotonic()))
    return [process.exitcode for process in self.processes]

  def wait_for_epoch(self, workdir, epoch):
    """Until these processes have saved the training after that or later."""
    before = [path.name for path in self._saves(workdir)]
    end = time.monotonic() + 500
    while not any(
      int(path.name[-6:]) >= epoch and path.name not in before
      for path in self._saves(workdir)
    ):
      alive = all(process.is_alive() for process in self.processes)
      assert alive and time.monotonic() < end, self.texts()
      time.sleep(0.01)

  def _saves(self, workdir):
    return list(workdir.glob('checkpoints/.*.partial/epoch-*'))


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
