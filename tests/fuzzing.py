"""What the fuzzing has in common: how many cases, and what each must do.

A case runs one reader, or the `main` of one binary, on input that was made up.
It may accept the input, or refuse it in one line; it may not raise anything
else, hang, or change a file.
"""

import collections
import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import signal
import stat
import sys
from unittest import mock

from absl import flags as absl_flags
from hypothesis import HealthCheck, settings

from experiments import (
  binary,
  evaluate,
  flags,
  generator_flags,
  locks,
  pairs,
  pipeline,
  rendezvous,
  reproduce,
  spd_gan,
  train,
  unlearn,
)
from experiments.reproduction import costs, options
from unlearn_jax import models
from unlearn_jax.base import InputError

# Cases of each kind; their sum is what a run of the tests promises.
CASES = {
  'flags of unlearn': 300,
  'flags of train': 120,
  'flags of evaluate': 80,
  'flags of spd_gan': 160,
  'flags of reproduce': 120,
  'forget ids': 350,
  'npz': 350,
  'folders': 160,
  'manifests': 200,
  'checkpoints of binaries': 120,
  'partial saves': 60,
  'outcomes': 120,
  'claims': 60,
}
# UNLEARN_JAX_FUZZ=10 makes ten times as many, of other seeds.
MORE = int(os.environ.get('UNLEARN_JAX_FUZZ', '1'))
SECONDS = 60  # After which a case hangs; a tenth of a second is usual.

ran: collections.Counter = collections.Counter()


def profile(kind):
  """Hypothesis' settings for a kind of case, the same cases in each run."""
  return settings(
    max_examples=MORE * CASES[kind],
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
def case(kind, *trees, workdir=None):
  """Counts a case; it has to end in time and leave these folders alone.

  What a flag says is the work directory may come to be, or fill if it is empty.
  """
  ran[kind] += 1
  before = [snapshot(tree) for tree in trees]
  empty = workdir is not None and os.path.isdir(workdir)
  empty = empty and not os.listdir(workdir)
  new = workdir is not None and not os.path.lexists(workdir)
  old = signal.signal(signal.SIGALRM, _hangs)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
  if new or empty:
    shutil.rmtree(workdir, ignore_errors=True)
  if empty:
    os.mkdir(workdir)
  assert [snapshot(tree) for tree in trees] == before


def snapshot(tree):
  """Every entry below a folder: its kind, and of a file its content.

  Of a lock, which says who had it last, nothing.
  """
  found = {}
  for folder, names, files in os.walk(os.fsencode(tree)):
    for name in names + files:
      if name == os.fsencode(locks.NAME):
        continue
      path = os.path.join(folder, name)
      status = os.lstat(path)
      content = None
      if stat.S_ISREG(status.st_mode):
        with open(path, 'rb') as file:
          content = hashlib.file_digest(file, 'blake2b').digest()
      found[path] = stat.S_IFMT(status.st_mode), content
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


# ------------------------------------------------------------------ Binaries.


def _define_unlearn():
  flags.define_data_and_model()
  flags.define_unlearning()
  generator_flags.define_beside_unlearning()


def _define_train():
  flags.define_data_and_model()
  train.define()


# Of each binary: what defines its flags, its main, and what it does first when
# all checks are passed. Nothing that checks input comes after that.
BINARIES = {
  'unlearn': (_define_unlearn, unlearn.main, [(pipeline, '_one_run')]),
  'train': (_define_train, train.main, [(pipeline, 'source_stage')]),
  'evaluate': (evaluate.define, evaluate.main, [(evaluate, 'evaluate')]),
  'spd_gan': (
    spd_gan.define,
    spd_gan.main,
    [(spd_gan, '_pairs'), (pairs, 'train_null')],
  ),
  'reproduce': (options.define, reproduce.main, [(costs, 'calibrate')]),
}


def defined(define):
  """The flags of a binary, as an object of their own."""
  own = absl_flags.FlagValues()
  absl_flags.disclaim_key_flags()
  with contextlib.ExitStack() as stack:
    for name in dir(absl_flags):
      if name.startswith('DEFINE_'):
        stack.enter_context(
          mock.patch.object(
            absl_flags, name, _into(getattr(absl_flags, name), own)
          )
        )
    define()
  absl_flags.DEFINE_string('flagfile', '', 'absl’s.', flag_values=own)
  return own


def _into(real, own):
  def wrapped(*arguments, **named):
    return real(*arguments, **{**named, 'flag_values': own})

  return wrapped


def quick(root):
  """A run of `unlearn` on the data in a folder; its work directory is there."""
  return [
    f'--dataset=npz:{root / "stripes.npz"}',
    f'--workdir={root / "run"}',
    '--width=2',
    '--batch_size=12',
    '--train_epochs=6',
    '--train_learning_rate=0.01',
    '--epochs=1',
    '--seeds=1',
    '--k=5',
    '--sensitivity_examples=12',
  ]


def stage(root, name):
  """The checkpoint of a stage in that work directory."""
  (path,) = (root / 'run' / 'checkpoints').glob(f'seed0-{name}-*')
  return path


def run_binary(name, arguments, whole=False, out=None):
  """Runs a binary here: (exit status, stderr); (0, '') if it accepts all.

  With `whole` it computes as well, otherwise it ends where that would begin.
  Its stdout goes to `out`.
  """
  define, main, seams = BINARIES[name]
  if not absl_flags.FLAGS.is_parsed():
    absl_flags.FLAGS.mark_as_parsed()
  out, err = out or io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as stack:
    for room, function in [] if whole else [*seams, (rendezvous, 'meet')]:
      stack.enter_context(
        mock.patch.object(room, function, side_effect=AcceptedError)
      )
    stack.enter_context(mock.patch.object(absl_flags, 'FLAGS', defined(define)))
    argv = ['binary', *arguments]
    stack.enter_context(mock.patch.object(sys, 'argv', argv))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    try:
      binary.run(main)
    except AcceptedError:
      status = 0
    except SystemExit as end:
      status = end.code or 0
  return status, err.getvalue()


def check_binary(name, arguments):
  """Runs a binary and checks how it ended; its status."""
  status, text = run_binary(name, arguments)
  assert status in (0, 1, 2), (status, text)
  if status:
    assert text.count('\n') == 1 and text.startswith('error: '), text
    check_line(text)
  return status, text


_build = models.build
_built = {}


def build(name, num_classes, image_shape, **named):
  """`models.build`, which is a pure function, once for the same arguments."""
  key = repr((name, num_classes, image_shape, named))
  if key not in _built:
    _built[key] = _build(name, num_classes, image_shape, **named)
  return _built[key]


def fresh(folder):
  """Folders that no case has used yet."""
  for number in range(10**9):
    path = pathlib.Path(folder) / str(number)
    path.mkdir()
    yield path
