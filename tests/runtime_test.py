"""Signals and several processes, with real processes that do little else."""

import io
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib

import devices
import pytest

from experiments.runtime import distributed, progress, signals
from experiments.runtime import process as own_process
from experiments.runtime.distributed import Processes
from unlearn_jax import training
from unlearn_jax.base import InputError

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = {
  **os.environ,
  'XLA_FLAGS': devices.flags(2),
  'JAX_PLATFORMS': 'cpu',
  'NPROC': '8',
  'PYTHONUNBUFFERED': '',
  'PYTHONPATH': str(ROOT),
}


@pytest.fixture
def start():
  """Starts Python on some code, and leaves no process behind."""
  started = []

  def one(code, *arguments, **more):
    process = subprocess.Popen(
      [sys.executable, '-c', code, *map(str, arguments)],
      env={**ENVIRONMENT, **more},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield one
  for process in started:
    process.kill()
    process.communicate()


# Signals.

CONTINUED = """
import os, signal, time
from experiments.runtime import signals

with signals.watched():
  print('ready', signals.continued(), flush=True)
  end = time.monotonic() + 30
  while not signals.continued() and time.monotonic() < end:
    time.sleep(0.01)
  print(signals.continued())
"""


def test_that_it_was_stopped_and_goes_on_is_counted(start):
  process = start(CONTINUED)
  assert process.stdout.readline() == 'ready 0\n'
  process.send_signal(signal.SIGSTOP)
  process.send_signal(signal.SIGCONT)
  assert process.communicate(timeout=60)[0] == '1\n'


@pytest.mark.parametrize('name', ['abacus', 'cuda'])
def test_a_platform_that_is_not_there_is_one_line(start, name):
  code = 'from experiments.runtime import process as p; p.require_devices()'
  no_gpu = {'JAX_PLATFORMS': name, 'CUDA_VISIBLE_DEVICES': ''}
  _, err = start(code, **no_gpu).communicate(timeout=60)
  last = err.strip().split('\n')[-1]
  assert f'InputError: JAX_PLATFORMS={name}: ' in last and 'Error(' not in last
  assert last.endswith('; allowed: a platform of this machine, such as cpu')


SIGNALS = """
import hashlib, sys, time
from experiments.runtime import signals
from experiments.runtime.signals import Stopped, asked, working

def deaf(seconds):
  # Nothing in C code interrupts this: Python's handlers wait for its end.
  start = time.monotonic()
  while time.monotonic() - start < seconds:
    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**ROUNDS)

try:
  with signals.watched():
    BODY
except Stopped as stopped:
  print(stopped.note)
  sys.exit(128 + stopped.signum)
"""
READY = "print('ready', flush=True)"
KEPT = 'finished stages are kept, the same command goes on'
AT_ONCE = 'at once; what was saved is kept, the same command goes on'


@pytest.fixture
def ready(start):
  """Runs lines under `watched`, and returns once they have said `ready`."""

  def one(*lines, rounds=5):
    body = '\n    '.join(lines)
    code = SIGNALS.replace('BODY', body).replace('ROUNDS', str(rounds))
    process = start(code)
    assert process.stdout.readline() == 'ready\n'
    return process

  return one


def ended(process, number):
  out, err = process.communicate(timeout=20)
  assert process.returncode == 128 + number, err
  return out, err.splitlines()


def waits(number):
  word = signal.Signals(number).name
  return f'{word}: saving and stopping; once more stops at once'


def test_outside_of_work_it_ends_at_once(ready):
  numbers = signal.SIGTERM, signal.SIGHUP
  lines = READY, 'time.sleep(0.3)', "print('flushed')", 'deaf(60)'
  both = [(ready(*lines, rounds=8), number) for number in numbers]
  time.sleep(0.8)  # They are in C code.
  for process, number in both:
    process.send_signal(number)
    word = signal.Signals(number).name
    expected = 'flushed\n', [f'stopped by {word}: {KEPT}']
    assert ended(process, number) == expected


def test_work_is_finished_first(ready):
  inner = '  with working():', f'    {READY}', '    deaf(1)', "  print('done')"
  process = ready('with working():', *inner, "print('never')")
  process.send_signal(signal.SIGHUP)
  process.send_signal(signal.SIGHUP)  # As `timeout` does.
  expected = f'done\n{KEPT}\n', [waits(signal.SIGHUP)]
  assert ended(process, signal.SIGHUP) == expected


@pytest.mark.parametrize('again', [True, False])
def test_a_second_signal_or_too_long_ends_what_hears_nothing(ready, again):
  assert signals._PATIENCE < 30  # After which schedulers kill.
  patience = f'signals._PATIENCE = {60 if again else 1}'
  inner = 'with working():', f'  {READY}', '  deaf(60)'
  process = ready(patience, *inner, rounds=8)
  time.sleep(0.3)
  process.send_signal(signal.SIGINT)
  if again:
    time.sleep(signals._ECHO + 0.2)
    process.send_signal(signal.SIGTERM)
  expected = '', [waits(signal.SIGINT), f'stopped by SIGINT: {AT_ONCE}']
  assert ended(process, signal.SIGINT) == expected


def test_the_handlers_that_were_there_come_back():
  before = [signal.getsignal(number) for number in signals.SIGNALS]
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.watched(), signals.working():
      assert signal.getsignal(signal.SIGTERM) != before[0]
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # Of nohup.
      assert signals.requested() is signals.asked() is None
  finally:
    signal.signal(signal.SIGHUP, before[2])
  assert [signal.getsignal(number) for number in signals.SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1


def test_a_reader_that_goes_ends_nothing():
  code = (
    'import sys; from experiments.runtime import binary;'
    ' binary._outlive(sys.stdout);'
    ' [print(i, flush=True) for i in range(9)];'
    ' print("done", file=sys.stderr)'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  process.stdout.close()
  assert process.stderr.read() == b'done\n' and process.wait() == 0


def test_an_error_is_not_hidden_and_a_request_is_forgotten_with_the_watch():
  with pytest.raises(ZeroDivisionError), signals.watched():
    with signals.working():
      signal.raise_signal(signal.SIGTERM)
      while signals.requested() != signal.SIGTERM:
        time.sleep(0.01)
      raise ZeroDivisionError
  assert signals.requested() is None


# Several processes.

PROCESS = """
import os, sys, time
import jax
import numpy as np
from experiments.runtime import distributed, progress, signals
from unlearn_jax import parallel
from unlearn_jax.base import InputError

todo, port, index, seconds = sys.argv[1], *map(int, sys.argv[2:])
if todo in ('work', 'wait'):  # Else a busy machine may look dead.
  distributed._SILENCE = 3
mine = distributed.Processes(f'127.0.0.1:{port}', 2, index, seconds)
word = todo.replace('#', str(index))
mean = parallel.spmd(lambda rank, x: parallel.mean(x + rank))
try:
  with signals.watched(), distributed.joined(mine, word):
    print(float(mean(np.float32(10))), flush=True)
    print(distributed.name() + 'ready', file=sys.stderr, flush=True)
    if todo in ('work', 'stop'):
      with signals.working():
        for step in range(10**6):
          mean(np.float32(step)).block_until_ready()
          if signum := signals.asked():
            raise signals.Stopped(signum, f'step {step}')
    if todo == 'wait' and index == 0:
      parallel.gathered('never')
    if todo == 'wait':
      time.sleep(1000)
  print('after')
except InputError as error:
  print(f'error: {error}', file=sys.stderr)
  sys.exit(1)
except signals.Stopped as stopped:
  print(stopped.note, file=sys.stderr)
  sys.exit(128 + stopped.signum)
"""


@pytest.fixture
def pair(start):
  """Two processes at one free port, and where they are ready."""

  def two(todo, seconds=60):
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      port = probe.getsockname()[1]
    both = [start(PROCESS, todo, port, i, seconds) for i in range(2)]
    for index, process in enumerate(
      both if todo in ('work', 'wait', 'stop') else ()
    ):
      assert process.stderr.readline() == f'process {index}: ready\n'
    return both

  return two


@pytest.mark.parametrize(
  'flags, line',
  [
    (('node', 2, 0), '--coordinator=node, allowed: host:port of process 0'),
    (('a:0', 2, 0), '--coordinator=a:0, allowed: host:port of process 0'),
    (('a:²', 2, 0), '--coordinator=a:², allowed: host:port of process 0'),
    (('a:1', 2, 2), '--process_id=2, allowed: 0 to 1'),
    (('a:1',), '--num_processes=, allowed: a value, because --coordinator is'),
    ((None, None, 0), '--coordinator=, allowed: a value, because --process_id'),
  ],
)
def test_flags_that_say_nothing_possible_are_refused(flags, line):
  with pytest.raises(InputError) as refused:
    distributed.check(Processes(*flags))
  assert str(refused.value).startswith(line)


SLURM = {'SLURM_STEP_NODELIST': 'localhost', 'SLURM_PROCID': '0'}
KUBERNETES = {'KUBERNETES_SERVICE_HOST': 'a', 'JOB_COMPLETION_INDEX': '0'}


@pytest.mark.parametrize(
  'variables, kind',
  [
    ({}, None),
    ({'SLURM_NTASKS': '4'}, None),  # The script of a job, not its step.
    ({**SLURM, 'SLURM_NTASKS': '1'}, None),
    ({**SLURM, 'SLURM_NTASKS': '4'}, 'slurm'),
    ({**SLURM, 'SLURM_NTASKS': '2', 'OMPI_COMM_WORLD_SIZE': '4'}, 'ompi'),
    (KUBERNETES, 'k8s'),
    ({'KUBERNETES_SERVICE_HOST': 'a'}, None),
  ],
)
def test_what_has_started_several_processes(monkeypatch, variables, kind):
  monkeypatch.setattr(os, 'environ', variables)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
  assert distributed.launcher() == kind


def test_one_process_is_alone(capfd):
  with distributed.joined(Processes('node:1', 1, 0), 'word'):
    print('heard')
  assert capfd.readouterr().out == 'heard\n'
  assert distributed.name() == ''


def test_two_compute_together_and_one_speaks(pair):
  outs = [process.communicate(timeout=50) for process in pair('mean')]
  assert outs[0] == ('11.5\nafter\n', 'process 0: ready\n')
  assert outs[1] == ('after\n', 'process 1: ready\n')


def test_two_commands_are_refused_in_both(pair):
  for process in pair('other #'):
    assert process.wait(50) == 1
    assert process.communicate() == (
      '',
      'error: processes have other commands: other 0, other 1; allowed: the'
      ' same in all\n',
    )


def test_a_signal_to_one_stops_both_at_the_same_step(pair):
  both = pair('stop')
  both[1].send_signal(signal.SIGTERM)
  errors = [process.communicate(timeout=50)[1] for process in both]
  assert [process.returncode for process in both] == [143, 143], errors
  said, step = errors[1].splitlines()
  assert said == waits(signal.SIGTERM)
  assert errors[0] == f'{step}\n'


def test_when_one_is_killed_the_other_ends(pair):
  for todo, victim in (('work', 0), ('wait', 1)):
    both = pair(todo)
    both[victim].kill()
    _, error = both[1 - victim].communicate(timeout=55)
    assert both[1 - victim].returncode not in (0, None)
    assert 'JAX distributed service detected fatal errors' in error


def test_nobody_comes_or_the_port_is_taken(start):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    first = start(PROCESS, 'mean', port, 0, 60)
    second = start(PROCESS, 'mean', port, 1, 2)
    errors = [one.communicate(timeout=50)[1] for one in (first, second)]
  where = f'error: --coordinator=127.0.0.1:{port}:'
  assert first.returncode == second.returncode == 1
  assert f'{where} OSError: [Errno 98]' in errors[0]
  assert errors[1] == f'{where} not all there after --join_seconds=2\n'


@pytest.mark.parametrize('columns', [30, 60, 80])
def test_the_line_of_a_running_stage_is_rewritten_and_never_wraps(
  columns, monkeypatch
):
  out = io.StringIO()
  monkeypatch.setattr(out, 'isatty', lambda: True)
  monkeypatch.setattr(sys, 'stdout', out)
  size = os.terminal_size((columns, 24))
  monkeypatch.setattr(shutil, 'get_terminal_size', lambda: size)
  running = progress.Progress(12, 100)
  running.begin('seed 1000 · random_k(ratio=0.3, learning_rate=0.0095)', 100)
  for number in (1, 50):
    measured = {'forget_accuracy': 0.5, 'retain_accuracy': 1.0}
    running.epoch(training.Epoch(number, 0.5, 9.0, measured))
  lines = out.getvalue().split('\r\x1b[K')[1:]
  assert len(lines) == 2 and '\n' not in out.getvalue()
  assert all(len(line) < columns for line in lines)
  assert 'epoch 50/100' in lines[1]
  assert ('left' in lines[1]) == (columns > 60)


def test_what_workers_do_beside_each_other_takes_the_time_that_passes(
  monkeypatch, capsys
):
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  running = progress.Progress(4, 40)
  running.skip('a', 10, 'done before')
  for seconds, title in ((60, 'b'), (0, 'c')):  # Two workers, 20 epochs.
    now[0] += seconds
    running.elsewhere(title, 10, 'done')
  lines = capsys.readouterr().out.splitlines()
  assert [line.split('  ')[-1].strip() for line in lines] == [
    *('done before', 'at most 2:00 left', 'at most 0:30 left')
  ]


# --------------------------------------------------- One command for all.


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder of packages as pyproject.toml installs them, and the script."""
  place = tmp_path_factory.mktemp('installed')
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  folders, site = project['tool']['setuptools']['package-dir'], place / 'site'
  for package in project['tool']['setuptools']['packages']:
    home = site.joinpath(*package.split('.'))
    own = package
    for name, folder in folders.items():
      own = re.sub(rf'^{re.escape(name)}\b', folder, own)
    home.mkdir(parents=True)
    for path in ROOT.joinpath(*own.split('.')).iterdir():
      if path.is_file() or not [*path.glob('*.py')]:
        (home / path.name).symlink_to(path)
  # Theirs lie beside it, and where it is called.
  for theirs in (site / 'experiments', place / 'work' / 'experiments'):
    theirs.mkdir(parents=True)
    (theirs / '__init__.py').write_text('raise SystemExit("not ours")')
  script = project['project']['scripts']['unlearn-jax']
  module, _, function = script.partition(':')
  (place / 'bin').mkdir()
  (place / 'bin' / 'unlearn-jax').write_text(
    f'from {module} import {function}\n{function}()\n'
  )
  return place


def command(place, *arguments):
  """What the installed script does."""
  return subprocess.run(
    [sys.executable, place / 'bin' / 'unlearn-jax', *arguments],
    cwd=place / 'work',
    env={**os.environ, 'PYTHONPATH': str(place / 'site')},
    capture_output=True,
    text=True,
  )


def test_one_command_runs_every_binary_wherever_it_is_called(installed):
  listed = command(installed)
  assert listed.returncode == 0
  found = re.findall(r'^  (\w+) +\S', listed.stdout, re.M)
  files = (ROOT / 'experiments').glob('[a-z]*.py')
  own = {p.stem for p in files if 'binary.run(' in p.read_text()}
  assert {*found} == own and len(found) == len(own)
  made = command(installed, 'evaluate', '--checkpoint=nowhere')
  assert made.returncode in (1, 2) and made.stderr.startswith('error: nowhere')
  # Modules of one's own are found there, as by `python -m`.
  (installed / 'work' / 'my_net.py').write_text('def net(): return 3')
  made = command(installed, 'train', '--model=my_net:net()')
  assert 'my_net:net gave int, allowed: a Flax Linen' in made.stderr
  made = command(installed, 'forgt')
  assert made.returncode == 2
  assert made.stderr.startswith(
    "error: 'forgt' is no command, allowed: unlearn"
  )


def test_what_is_installed_is_the_same_code(installed):
  """Stages, their keys and their pages, whichever way it was started."""
  code = (
    "import sys; sys.argv = ['x/unlearn.py', '--seeds=1'];"
    'from {0}.study import provenance, results;'
    'from {0} import config, settings;'
    'from {0}.report import rendering; from {0}.runtime import help;'
    "about = help.text('python -m experiments.unlearn', config.Study);"
    'print(provenance.code().source_sha256, settings.key(config.Study()));'
    'print(results.command(), about.splitlines()[0])'
  )
  said = []
  for name, site in (
    ('experiments', ROOT),
    (
      'unlearn_jax.experiments',
      installed / 'site',
    ),
  ):
    done = subprocess.run(
      [sys.executable, '-c', code.format(name)],
      env={**os.environ, 'PYTHONPATH': str(site)},
      cwd=installed,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    said.append(done.stdout.splitlines())
  (ours, called), (theirs, installed_as) = said
  assert ours == theirs and len(ours.split()[0]) == 64
  assert called == (
    'python -m experiments.unlearn --seeds=1 python -m experiments.unlearn'
  )
  assert installed_as == 'unlearn-jax unlearn --seeds=1 unlearn-jax unlearn'


@pytest.mark.parametrize(
  'mode, trusted', [(None, True), (0o700, True), (0o770, False), (0o707, False)]
)
def test_programs_are_kept_where_nobody_else_may_write(
  mode, trusted, tmp_path, monkeypatch
):
  """JAX runs what lies there."""
  folder = tmp_path / 'programs'
  if mode is not None:
    folder.mkdir()
    folder.chmod(mode)
  place = lambda name: tmp_path  # noqa: E731
  monkeypatch.setattr(own_process.platformdirs, 'user_cache_path', place)
  assert own_process._own_cache() == (str(folder) if trusted else None)
  assert not trusted or folder.stat().st_mode & 0o777 == 0o700
  owner = os.getuid() + 1
  monkeypatch.setattr(own_process.os, 'getuid', lambda: owner)
  assert own_process._own_cache() is None
