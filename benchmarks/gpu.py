"""Everything that a GPU is asked, in one command.

  python -m benchmarks.gpu --out=results/h100 --cifar_npz=cifar10.npz
  python -m benchmarks.gpu --parts=bfloat16_512,train --deadline=560
  JAX_PLATFORMS=cpu python -m benchmarks.gpu --toy --out=/tmp/toy

Parts, each a process and a JSON file of its own, in the order of what matters
most if time runs out:

  bfloat16_512   five networks on 50,000 images at batch 512, with the Python
                 loop, PyTorch, the compilation cache, peak memory, and the
                 three largest kernels of each
  train          the trainings of `TRAININGS` on --cifar_npz, where given
  reliability    whether trainings that are stopped and gone on with have the
                 bits of a whole one, without and with XLA's deterministic flag
  float32_512, bfloat16_128, float32_128
                 the same networks, without the cache and the kernels

Needs jax, flax, optax, chex, scipy, orbax and absl, for `reliability` also
scikit-learn; no network, no data set, no git. PyTorch and rich are used where
they are installed. `gpu.json` says what was run, how it ended and how long it
took; results stand one file a part from the first finished network on, also
when a part is cut off.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags as absl_flags

from benchmarks import reliability, workers
from experiments import binary, files, flags
from unlearn_jax.base import InputError

MODELS = ('resnet18', 'vgg19', 'densenet121', 'googlenet', 'resnet9')
BENCHMARKS = ('bfloat16_512', 'float32_512', 'bfloat16_128', 'float32_128')
PARTS = (
  *('bfloat16_512', 'train', 'reliability'),
  *('float32_512', 'bfloat16_128', 'float32_128'),
)
# What is trained on --cifar_npz: the flags of `experiments.train`.
TRAININGS = {
  'resnet9': ('--recipe=standard', '--dtype=bfloat16'),
  'resnet18': ('--recipe=standard', '--dtype=bfloat16'),
}
_TOY = ('--width=4', '--images=64', '--batch_size=32', '--repeats=1')


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_list('parts', list(PARTS), f'Of {", ".join(PARTS)}.')
  absl_flags.DEFINE_string(
    'out', None, 'Folder for results; default results/DEVICE.'
  )
  absl_flags.DEFINE_bool('overwrite', False, 'Replace existing results.')
  absl_flags.DEFINE_string(
    'cifar_npz', None, 'x_train, y_train, x_test, y_test; see --dataset=npz.'
  )
  absl_flags.DEFINE_integer(
    'deadline', None, 'Seconds after which what is left is cut off.'
  )
  absl_flags.DEFINE_bool(
    'toy', False, 'Tiny networks, two of them: a dry run on any machine.'
  )


def check(values: Any) -> None:
  """Raises `FlagError` for the first flag that is not allowed."""
  for part in values.parts or ('',):
    if part not in PARTS:
      raise flags.FlagError('parts', part, flags.closest(part, PARTS))
  if values.deadline is not None and values.deadline < 1:
    raise flags.FlagError('deadline', values.deadline, '1 or more')
  npz = values.cifar_npz
  if npz is not None and not pathlib.Path(npz).is_file():
    raise flags.FlagError('cifar_npz', npz, 'an existing file')


def commands(values: Any, folder: pathlib.Path) -> dict[str, list[str]]:
  """What is run, by name, in the order of --parts."""
  found = {}
  for part in values.parts:
    if part == 'train':
      found.update(_trainings(values, folder))
    elif part == 'reliability':
      found[part] = _reliability(values, folder)
    else:
      found[part] = _benchmark(part, values, folder)
  return found


def _benchmark(part: str, values: Any, folder: pathlib.Path) -> list[str]:
  dtype, batch_size = part.split('_')
  chosen = ('cnn', 'resnet9') if values.toy else MODELS
  first = part == BENCHMARKS[0]
  sizes = _TOY if values.toy else (f'--batch_size={batch_size}',)
  return [
    'benchmarks.train',
    f'--models={",".join(chosen)}',
    f'--dtype={dtype}',
    *sizes,
    *(('--profile',) if first else ('--nocached',)),
    f'--out={folder / part}.json',
    *(('--overwrite',) if values.overwrite else ()),
  ]


def _reliability(values: Any, folder: pathlib.Path) -> list[str]:
  trainings = [reliability.DIGITS]
  if values.cifar_npz and not values.toy:
    path = shlex.quote(str(pathlib.Path(values.cifar_npz).resolve()))
    trainings.append(
      f'--dataset=npz:{path} --model=resnet18 --dtype=bfloat16'
      ' --train_subset=10240 --train_epochs=6 --seed=0'
    )
  xla_flags = ('',) if values.toy else ('', '--xla_gpu_deterministic_ops=true')
  return [
    'benchmarks.reliability',
    *(f'--train={arguments}' for arguments in trainings),
    *(f'--xla_flags={flag}' for flag in xla_flags),
    f'--out={folder}/reliability.json',
    *(('--overwrite',) if values.overwrite else ()),
  ]


def _trainings(values: Any, folder: pathlib.Path) -> dict[str, list[str]]:
  if values.cifar_npz is None:
    return {}
  return {
    f'train_{model}': [
      'experiments.train',
      f'--dataset=npz:{pathlib.Path(values.cifar_npz).resolve()}',
      f'--model={model}',
      # Accuracies are wanted, checkpoints are not.
      f'--workdir=/tmp/unlearn_jax_gpu_{os.getpid()}/{model}',
      *(('--width=4', '--train_epochs=1') if values.toy else ()),
      *more,
    ]
    for model, more in TRAININGS.items()
  }


def run(command: Sequence[str], seconds: float | None) -> dict[str, Any]:
  """Runs a module; its status, wall time and the end of what it printed.

  Args:
    command: module and flags.
    seconds: after which it and the processes it started are killed.
  """
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, '-m', *command],
    cwd=workers.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,  # A group, so that all of it can be ended.
  )
  try:
    printed, _ = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    printed += '\ncut off at the deadline'
  except BaseException:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  return {
    'command': f'python -m {shlex.join(command)}',
    'status': process.returncode,
    'seconds': time.perf_counter() - start,
    'printed': printed[-4000:],
  }


def destination(values: Any, device: str) -> pathlib.Path:
  """Where results go.

  Raises:
    FlagError: results are there and may not be replaced.
  """
  name = ''.join(c if c.isalnum() else '_' for c in device.lower())
  chosen = values.out or f'results/{name}'
  folder = pathlib.Path(chosen).resolve()
  for part in (*values.parts, 'gpu'):
    if (folder / f'{part}.json').exists() and not values.overwrite:
      raise flags.FlagError(
        'out', chosen, f'no {part}.json in it, or --overwrite'
      )
  return folder


def main() -> None:
  """Runs the parts one after the other."""
  values = absl_flags.FLAGS
  check(values)
  start = time.perf_counter()
  with workers.Worker('benchmarks.jax_worker') as worker:
    probed = worker.ask('probe')
  if probed['platform'] == 'cpu' and not values.toy:
    raise InputError('JAX sees no GPU here; --toy is for a dry run')
  folder = destination(values, probed['device'])
  summary: dict[str, Any] = {'device': probed, 'runs': {}}
  if 'train' in values.parts and values.cifar_npz is None:
    print('train: skipped, no --cifar_npz')
  for name, command in commands(values, folder).items():
    left = None
    if values.deadline is not None:
      left = max(1.0, values.deadline - (time.perf_counter() - start))
    print(f'{name}: python -m {shlex.join(command)}', flush=True)
    done = summary['runs'][name] = run(command, left)
    print(done['printed'].rstrip())
    print(f'{name}: status {done["status"]}, {done["seconds"]:.0f} s\n')
    text = json.dumps(summary, indent=1) + '\n'
    files.replace(folder / 'gpu.json', text.encode())
  failed = [n for n, done in summary['runs'].items() if done['status']]
  if failed:
    raise InputError(f'{", ".join(failed)} did not end well')


if __name__ == '__main__':
  define()
  binary.run(main)
