"""How fast the engine trains: against itself, the device and PyTorch.

  python -m benchmarks.train
  python -m benchmarks.train --models=resnet18 --dtype=bfloat16 --out=mine.json

For each network, on one device, with random images that lie on it:

1. Images a second of our engine: epochs in the middle of one `training.fit`,
   compiled and scanned, Adam, no augmentation.
2. The time of such an epoch over that of the same steps called one by one from
   Python (jitted, state donated, nothing waits before the epoch ends). At
   most 1 is the goal.
3. FLOP/s, and what share that is of the fastest large matrix product that
   this run measured on the same device, in the same type on a GPU or TPU and
   in float32 on a CPU. FLOPs are 6 a multiply-accumulate, by the convention
   of `experiments/flops.py`; XLA's own count stands beside it in the JSON.
4. Seconds that compiling the epoch takes, with an empty persistent cache and
   with a full one; each in a process of its own.
5. Peak memory of that second process (`benchmarks/memory.py` says which).
6. Where PyTorch is installed: the same network (same parameter count and same
   multiply-accumulates, or there is no ratio), same batch size, channels_last,
   fused Adam, as many threads. PyTorch gives bfloat16 by autocast.

Contestants take turns (scan, loop, torch, matmul, scan, ...), each asleep in
its process while another runs. Ratios are formed within a round; shown are
their median and range. Rates under load are worth little and those of torch
on a busy CPU nothing: the load average at the start is in the JSON.

Cost: about ten minutes on two CPU cores by default, most of it compilation.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import statistics
import tempfile
from typing import Any

from absl import flags as absl_flags

from benchmarks import output, table, workers
from benchmarks.environment import environment
from experiments import binary, flags, flops
from unlearn_jax import models
from unlearn_jax.base import InputError

PAPER = ('resnet18', 'vgg19', 'densenet121', 'googlenet')
_TORCH = ('auto', 'yes', 'no')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured; None leaves it to the platform or the family.

  Attributes:
    models: names in `unlearn_jax.models.FAMILIES`.
    width: channels of the first layer.
    batch_size: images a step.
    images: images an epoch.
    repeats: interleaved rounds.
    dtype: what activations are computed in.
    torch: auto, yes or no.
    torch_compile: whether torch.compile is let loose on the network.
    loop: whether the Python loop takes part.
    cached: whether a second process measures the cache and memory.
    profile: whether the largest kernels are named.
  """

  models: tuple[str, ...] = PAPER
  width: int | None = None
  batch_size: int | None = None
  images: int | None = None
  repeats: int | None = None
  dtype: str = 'float32'
  torch: str = 'auto'
  torch_compile: bool = False
  loop: bool = True
  cached: bool = True
  profile: bool = False


# Where the platform decides: CPU first, then all others.
_DEFAULTS = {
  'batch_size': (32, 128),
  'images': (128, 50_000),
  'repeats': (3, 5),
}


def define() -> None:
  """The flags of this binary."""
  standard = Settings()
  absl_flags.DEFINE_list(
    'models', list(PAPER), f'Out of {", ".join(models.FAMILIES)}.'
  )
  helps = {
    'width': "Channels of the first layer; default the family's own.",
    'batch_size': 'Images a step; default 32 on a CPU, otherwise 128.',
    'images': 'Images an epoch; default 128 on a CPU, otherwise 50000.',
    'repeats': 'Interleaved rounds; default 3 on a CPU, otherwise 5.',
  }
  for name, text in helps.items():
    absl_flags.DEFINE_integer(name, None, text)
  absl_flags.DEFINE_string('dtype', standard.dtype, 'float32 or bfloat16.')
  absl_flags.DEFINE_string(
    'torch', standard.torch, 'Whether PyTorch takes part: auto, yes or no.'
  )
  switches = {
    'torch_compile': 'Let torch.compile loose on the PyTorch network.',
    'loop': 'Measure the Python loop of steps, too.',
    'cached': 'Measure the compilation cache and peak memory, too.',
    'profile': 'Trace one more epoch and name its three largest kernels.',
  }
  for name, text in switches.items():
    absl_flags.DEFINE_bool(name, getattr(standard, name), text)
  output.define('JSON file, or folder for train_benchmark.json; default none.')


def check(settings: Settings) -> None:
  """Raises `FlagError` for the first setting that is not allowed."""
  known = sorted(models.FAMILIES)
  for name in settings.models or ('',):
    if name not in known:
      raise flags.FlagError('models', name, flags.closest(name, known))
  for name in ('width', *_DEFAULTS):
    value = getattr(settings, name)
    if value is not None and value < 1:
      raise flags.FlagError(name, value, '1 or more')
  for name, allowed in (('dtype', models.DTYPES), ('torch', _TORCH)):
    value = getattr(settings, name)
    if value not in allowed:
      raise flags.FlagError(name, value, flags.closest(value, allowed))
  if settings.torch == 'yes' and not torch_is_installed():
    raise flags.FlagError(
      'torch', 'yes', 'auto or no; PyTorch is not installed here'
    )


def torch_is_installed() -> bool:
  """Whether PyTorch can be imported; it is not imported here."""
  return importlib.util.find_spec('torch') is not None


def resolve(settings: Settings, platform: str) -> Settings:
  """The settings with the platform's defaults in place of None.

  Raises:
    FlagError: a batch that is larger than an epoch.
  """
  missing: dict[str, Any] = {
    name: pair[platform != 'cpu']
    for name, pair in _DEFAULTS.items()
    if getattr(settings, name) is None
  }
  settings = dataclasses.replace(settings, **missing)
  assert settings.batch_size is not None and settings.images is not None
  if settings.batch_size > settings.images:
    raise flags.FlagError(
      'batch_size',
      settings.batch_size,
      f'at most the {settings.images} images of an epoch',
    )
  return settings


def measure(
  settings: Settings,
  on_progress: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
  """Runs the whole benchmark.

  Args:
    settings: what is measured.
    on_progress: told of the result so far after each model.

  Returns:
    What the JSON file holds.

  Raises:
    FlagError: settings that are not allowed.
  """
  check(settings)
  load = list(os.getloadavg())  # Before anything of ours adds to it.
  with workers.Worker('benchmarks.jax_worker') as worker:
    probed = worker.ask('probe')
  settings = resolve(settings, probed['platform'])
  result: dict[str, Any] = {
    'schema': 1,
    'complete': False,
    'settings': {
      **dataclasses.asdict(settings),
      'models': list(settings.models),
    },
    'environment': environment(probed, load),
    'conventions': {
      'flops': (flops.__doc__ or '').strip(),
      'what': (__doc__ or '').strip(),
    },
    'torch': _torch_state(settings),
    'warnings': [],
    'models': {},
  }
  for name in settings.models:
    try:
      result['models'][name] = _contest(settings, name, probed['platform'])
    except workers.WorkerError as error:
      result['models'][name] = {'error': str(error)}
    summarize(result)
    on_progress(result)
  result['complete'] = True
  on_progress(result)
  return result


def _torch_state(settings: Settings) -> str:
  if settings.torch == 'no':
    return 'not asked for'
  return 'takes part' if torch_is_installed() else 'not installed'


def _contest(settings: Settings, name: str, platform: str) -> dict[str, Any]:
  """All that is measured of one network, not yet reduced."""
  task = {
    'model': name,
    **{
      key: getattr(settings, key)
      for key in ('width', 'batch_size', 'images', 'dtype')
    },
  }
  with tempfile.TemporaryDirectory() as cache:
    variables = {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    raw = _race(settings, task, variables, platform)
    if settings.cached:
      with workers.Worker('benchmarks.jax_worker', variables) as worker:
        worker.ask('start', task=task)
        worker.ask('scan')
        raw['cached'] = worker.ask('stop')
  return raw


def _race(
  settings: Settings,
  task: dict[str, Any],
  variables: dict[str, str],
  platform: str,
) -> dict[str, Any]:
  """Warms every contestant up, then lets them take turns."""
  with contextlib.ExitStack() as stack:
    ours = stack.enter_context(
      workers.Worker('benchmarks.jax_worker', variables)
    )
    facts = ours.ask('start', task=task)
    turns: list[tuple[str, workers.Worker, str]] = [('scan', ours, 'scan')]
    if settings.loop:
      turns.append(('loop', ours, 'loop'))
    theirs = _start_torch(settings, task, platform, stack, facts)
    if theirs is not None:
      turns.append(('torch', theirs, 'torch'))
      turns.append(('torch_matmul', theirs, 'matmul'))
    turns.append(('matmul', ours, 'matmul'))
    warm_up = {key: worker.ask(do) for key, worker, do in turns}
    rounds = [
      {key: worker.ask(do) for key, worker, do in turns}
      for _ in range(settings.repeats or 0)
    ]
    profile = ours.ask('profile') if settings.profile else None
    stopped = ours.ask('stop')
  raw = {**facts, 'warm_up': warm_up, 'rounds': rounds, 'cold': stopped}
  return {**raw, 'profile': profile} if profile else raw


def _start_torch(
  settings: Settings,
  task: dict[str, Any],
  platform: str,
  stack: contextlib.ExitStack,
  facts: dict[str, Any],
) -> workers.Worker | None:
  """PyTorch's contestant, if there is one; `facts` is told of it."""
  facts['torch'] = None
  if settings.torch == 'no' or not torch_is_installed():
    return None
  worker = stack.enter_context(workers.Worker('benchmarks.torch_worker'))
  device = 'cpu' if platform == 'cpu' else 'cuda'
  compiled = settings.torch_compile
  try:
    facts['torch'] = worker.ask(
      'start', task={**task, 'device': device, 'compile': compiled}
    )
    _same_network(facts)
  except workers.WorkerError as error:
    if settings.torch == 'yes':
      raise
    facts['torch'] = {'error': str(error)}
    return None
  return worker


def _same_network(facts: dict[str, Any]) -> None:
  for key in ('parameters', 'macs_per_image'):
    ours, theirs = facts[key], facts['torch'][key]
    if ours != theirs:
      raise workers.WorkerError(
        f'{key}: {ours} in JAX, {theirs} in PyTorch; nothing was compared'
      )


def summarize(result: dict[str, Any]) -> None:
  """Adds medians, ranges and ratios to each model that was measured."""
  done = [m for m in result['models'].values() if m.get('rounds')]
  ceiling = max(
    (
      turn[key]['flops_per_second']
      for model in done
      for turn in [model['warm_up'], *model['rounds']]
      for key in ('matmul', 'torch_matmul')
      if key in turn
    ),
    default=None,
  )
  result['matmul_flops_per_second'] = ceiling
  batch = result['settings']['batch_size']
  images = result['settings']['images'] // batch * batch
  for model in done:
    _summarize(model, images, ceiling)
  result['warnings'] = _warnings(result)


def _summarize(
  model: dict[str, Any], images: int, ceiling: float | None
) -> None:
  rounds = model['rounds']
  seconds = {
    key: [turn[key]['seconds'] for turn in rounds]
    for key in ('scan', 'loop', 'torch')
    if key in rounds[0]
  }
  speed = {
    key: spread([images / s for s in column]) for key, column in seconds.items()
  }
  work = flops.training_flops(model['macs_per_image'])
  rate = spread([work * images / s for s in seconds['scan']])
  cached = model.get('cached')
  model |= {
    'images_per_epoch': images,
    'training_flops_per_image': work,
    'xla_flops_per_image': model['warm_up']
    .get('loop', {})
    .get('xla_flops_per_image'),
    'images_per_second': speed,
    'flops_per_second': rate,
    'share_of_matmul': rate['median'] / ceiling if ceiling else None,
    'compile_seconds': {
      'cold': model['cold']['compile_seconds'],
      'cached': cached and cached['compile_seconds'],
    },
    'peak_memory': cached and cached['memory'],
    'steady': not any(
      turn[key].get('compilations')
      for turn in rounds
      for key in ('scan', 'loop')
      if key in turn
    ),
  }
  if 'loop' in seconds:
    model['time_scan_over_loop'] = _ratio(seconds['scan'], seconds['loop'])
  if 'torch' in seconds:
    model['speed_ours_over_torch'] = _ratio(seconds['torch'], seconds['scan'])


def _warnings(result: dict[str, Any]) -> list[str]:
  """What makes the figures worth less, in words."""
  host, found = result['environment']['host'], []
  if host['load_average'][0] > 0.25 * host['cores']:
    found.append(
      f'the host was busy before the start (load {host["load_average"][0]:.1f}'
      f' on {host["cores"]} cores): ratios to torch on the CPU mean nothing'
    )
  for name, model in result['models'].items():
    if 'error' in (model.get('torch') or {}):
      found.append(f'{name}: no PyTorch, {model["torch"]["error"]}')
    if not model.get('steady', True):
      found.append(f'{name}: something was compiled in a measured round')
  return found


def _ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
  return spread([a / b for a, b in zip(above, below)])


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least and most.

  Example:
    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
  """
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def destination(values: Any) -> pathlib.Path | None:
  """The JSON file that `--out` means.

  Raises:
    FlagError: it exists and may not be overwritten, or cannot be made.
  """
  if not values.out:
    return None
  path = pathlib.Path(values.out)
  if path.is_dir() or path.suffix != '.json':
    path = path / 'train_benchmark.json'
  output.require(path, values)
  return path


def main() -> None:
  """Measures, shows, writes."""
  values = absl_flags.FLAGS
  names = [field.name for field in dataclasses.fields(Settings)]
  chosen = {name: getattr(values, name) for name in names}
  settings = Settings(**{**chosen, 'models': tuple(values.models)})
  check(settings)
  path = destination(values)
  result = measure(settings, lambda so_far: output.write(path, so_far))
  table.show(result)
  failed = [n for n, found in result['models'].items() if 'error' in found]
  if failed:
    raise InputError(f'{", ".join(failed)} failed')


if __name__ == '__main__':
  define()
  binary.run(main)
