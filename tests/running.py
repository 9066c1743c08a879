"""Runs a binary in this process, as somebody types it."""

import contextlib
import io
import sys

from absl import flags
import jax

from experiments import (
  adopt,
  audit,
  config,
  evaluate,
  forget,
  settings,
  train,
  tune,
  unlearn,
  verify,
)
from experiments.runtime import binary
from unlearn_jax import parallel

KINDS = {
  'audit': (audit.main, audit.Audit),
  'unlearn': (unlearn.main, config.Study),
  'train': (train.main, train.Train),
  'tune': (tune.main, tune.Tune),
  'evaluate': (evaluate.main, evaluate.Evaluate),
  'forget': (forget.main, forget.Forget),
  'verify': (verify.main, verify.Verify),
  'adopt': (adopt.main, adopt.Adopt),
}


@contextlib.contextmanager
def _own_flags(kind):
  """Takes away flags of these names, and gives them back."""
  names = settings.names(kind)
  kept = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
  for name in kept:
    delattr(flags.FLAGS, name)
  try:
    yield
  finally:
    for name in names:
      if name in flags.FLAGS:
        delattr(flags.FLAGS, name)
    for name, flag in kept.items():
      flags.FLAGS[name] = flag


def run(name, *arguments, devices=1):
  """The exit status, stdout and stderr of a binary of `KINDS`."""
  main, kind = KINDS[name]
  out, err, before = io.StringIO(), io.StringIO(), sys.argv
  sys.argv = [f'experiments/{name}.py', *map(str, arguments)]
  try:
    with (
      parallel.use(jax.devices()[:devices]),
      _own_flags(kind),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      binary.run(main, kind)
      status = 0
  except SystemExit as end:
    status = end.code or 0
  finally:
    sys.argv = before
  return status, out.getvalue(), err.getvalue()


def done(name, *arguments, devices=1):
  """The stdout of a binary that ends well."""
  status, out, err = run(name, *arguments, devices=devices)
  assert status == 0, err
  return out


def refused(name, *arguments, status=None, devices=1):
  """The line of a binary that refuses what it is told."""
  got, out, err = run(name, *arguments, devices=devices)
  assert err.startswith('error: ') and err.count('\n') == 1, err
  assert 'Traceback' not in err and got == (status or got) and got in (1, 2)
  return err


def study(*arguments, **values):
  """The `Study` that flags make."""
  own = flags.FlagValues()
  settings.define(config.Study, own)
  own(['unlearn', *arguments, *(f'--{n}={v}' for n, v in values.items())])
  return settings.read(config.Study, own)


def training(data_file, workdir, *more):
  """Flags of models that train in a second on `helpers.stripes_file`."""
  return (
    *(f'--dataset=npz:{data_file}', f'--workdir={workdir}', '--width=4'),
    *('--batch_size=24', '--train_epochs=6', '--train_learning_rate=0.01'),
    *more,
  )
