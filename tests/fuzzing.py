"""What the fuzzing has in common: what each case must do.

A case runs one reader, or the `main` of one binary, on input that was made up.
It may accept the input, or refuse it in one line; it may not raise anything
else, hang, or change a file.
"""

import contextlib
import io
import os
import shutil
import signal
import stat
import sys
from unittest import mock

from absl import flags as absl_flags
from hypothesis import HealthCheck, settings

from experiments import config, evaluate, reproduce, train, tune, unlearn
from experiments import settings as flagged
from experiments.runtime import binary, distributed, process
from experiments.study import results
from experiments.workdir.directory import Workdir
from unlearn_jax.base import InputError

# UNLEARN_JAX_FUZZ=10 makes ten times as many cases, of other seeds.
MORE = int(os.environ.get('UNLEARN_JAX_FUZZ', '1'))
SECONDS = 60  # After which a case hangs; a tenth of a second is usual.


def cases(count):
  """Hypothesis' settings for so many cases, the same in each run."""
  return settings(
    max_examples=MORE * count,
    derandomize=MORE == 1,
    database=None,
    deadline=None,  # `case` has an alarm, which also ends what hangs.
    suppress_health_check=list(HealthCheck),
    print_blob=True,
  )


class AcceptedError(Exception):
  """All checks are passed; what is to be computed would come now."""


class HangsError(BaseException):
  """A case that does not end."""


def _hangs(*_):
  raise HangsError(f'no end after {SECONDS} s')


@contextlib.contextmanager
def case(*trees, workdir=None):
  """A case has to end in time and leave these folders alone.

  What a flag says is the work directory may come to be.
  """
  before = [snapshot(tree) for tree in trees]
  new = workdir is not None and not os.path.lexists(workdir)
  old = signal.signal(signal.SIGALRM, _hangs)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
  if new:
    shutil.rmtree(workdir, ignore_errors=True)
  assert [snapshot(tree) for tree in trees] == before


def snapshot(tree):
  """Every entry below a folder: its kind, and of a file its content."""
  found = {}
  for folder, names, files in os.walk(os.fsencode(tree)):
    for path in (os.path.join(folder, name) for name in names + files):
      mode = os.lstat(path).st_mode
      content = b''
      if stat.S_ISREG(mode):
        with open(path, 'rb') as file:
          content = file.read()
      found[path] = stat.S_IFMT(mode), hash(content)
  return found


def check_line(line):
  """A refusal is one line, of bounded length."""
  assert line.strip() and len(line) < 5000, line
  assert line.rstrip('\n').isprintable(), ascii(line)
  assert 'Traceback' not in line


def refused(read, *arguments):
  """Why a reader of the library refuses its input; None if it takes it."""
  try:
    read(*arguments)
  except InputError as error:
    assert str(error).strip() and 'Traceback' not in str(error)
    return str(error)
  return None


# Of each its main and what it takes.
BINARIES = {
  'unlearn': (unlearn.main, config.Study),
  'train': (train.main, train.Train),
  'tune': (tune.main, tune.Tune),
  'evaluate': (evaluate.main, evaluate.Evaluate),
  'reproduce': (reproduce.main, reproduce.Reproduce),
}
# What each does first when all checks are passed.
SEAMS = ((Workdir, 'claim'), (evaluate, 'evaluate'), (distributed, '_join'))


def quick(root):
  """A run of `unlearn` on the data in a folder; its work directory is there."""
  return [
    *(f'--dataset=npz:{root}/stripes.npz', f'--workdir={root}/run'),
    *('--width=2', '--batch_size=12', '--train_epochs=6'),
    *('--train_learning_rate=0.01', '--epochs=1', '--seeds=1'),
    '--strategies=retrain, top_k(k=5, examples=12)',
  ]


def stage(root, name):
  """The checkpoint of a stage in that work directory."""
  (path,) = (root / 'run' / 'checkpoints').glob(f'seed0-{name}-*')
  return path


def run_binary(name, arguments, whole=False):
  """Runs a binary here: (exit status, stderr); (0, '') if it accepts all.

  It ends where computing would begin; with `whole`, where reporting would.
  """
  main, kind = BINARIES[name]
  own, read = absl_flags.FlagValues(), flagged.read
  flagged.define(kind, own)
  absl_flags.DEFINE_string('flagfile', '', 'absl’s.', flag_values=own)
  if not absl_flags.FLAGS.is_parsed():
    absl_flags.FLAGS.mark_as_parsed()
  err = io.StringIO()
  with contextlib.ExitStack() as stack:
    for room, function in [(results, 'measured')] if whole else SEAMS:
      stack.enter_context(
        mock.patch.object(room, function, side_effect=AcceptedError)
      )
    for room, thing, value in (
      (absl_flags, 'FLAGS', own),
      (flagged, 'read', lambda kind, _=None: read(kind, own)),
      (process, 'prepare', lambda: None),
      (sys, 'argv', ['binary', *arguments]),
    ):
      stack.enter_context(mock.patch.object(room, thing, value))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(err))
    try:
      binary.run(main, kind)
    except AcceptedError:
      return 0, err.getvalue()
    except SystemExit as end:
      return end.code or 0, err.getvalue()
  return 0, err.getvalue()


def check_binary(name, arguments):
  """Runs a binary and checks how it ended: (status, stderr)."""
  status, text = run_binary(name, arguments)
  assert status in (0, 1, 2), (status, text)
  if status:
    assert text.count('\n') == 1 and text.startswith('error: '), text
    check_line(text)
  return status, text
