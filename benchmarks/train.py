"""How fast ResNet18 trains: against PyTorch and against a Python loop.

  python -m benchmarks.train
  python -m benchmarks.train --dtype=bfloat16 --batch_size=512 --out=mine.json
  python -m benchmarks.train --width=4 --images=64 --repeats=1    # a dry run

On one device, with random images that lie on it, four contestants take turns:

  scan   an epoch in the middle of one `training.fit`, compiled and scanned
  loop   the same steps called one by one from Python (jitted, state donated,
         nothing waits before the epoch ends)
  torch  the same network in PyTorch: channels_last, fused Adam, as many
         threads, bfloat16 by autocast; in a process that sleeps meanwhile
  again  scan once more: the control

All train by Adam without augmentation. Ratios are formed within a round; told
are their median and range over rounds:

  speed of scan over torch
  time of scan over loop, at most 1 is the goal
  time of again over scan, the control: its range is what noise alone does

On a CPU that others use, too, a ratio to torch is worth nothing; the JSON has
the load average at the start.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent import futures
import contextlib
import functools
import importlib
import multiprocessing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import record
from unlearn_jax import models, parallel, timing, training
from unlearn_jax.base import Batch, Examples, Model, ModelState

IMAGE_SHAPE = (32, 32, 3)
CLASSES = 10
LEARNING_RATE = 1e-3
# Where the platform decides: CPU first, then all others.
_DEFAULTS = {
  'batch_size': (32, 128),
  'images': (128, 50_000),
  'repeats': (3, 5),
}

Turn = dict[str, float]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The flags; ends the program for what is not allowed."""
  parser, one = record.parser(__doc__), record.at_least(1)
  parser.add_argument('--width', type=one, default=64, help='first channels')
  parser.add_argument('--batch_size', type=one, help='32 on a CPU, else 128')
  parser.add_argument('--images', type=one, help='128 on a CPU, else 50000')
  parser.add_argument('--dtype', choices=models.DTYPES, default='float32')
  parser.add_argument(
    '--torch_compile', action='store_true', help='let torch.compile loose'
  )
  values = parser.parse_args(arguments)
  for name, pair in _DEFAULTS.items():
    if getattr(values, name) is None:
      setattr(values, name, pair[jax.default_backend() != 'cpu'])
  if values.batch_size > values.images:
    parser.error('argument --batch_size: allowed: at most --images')
  return values


def python_loop(
  model: Model, state: ModelState, examples: Examples, size: int
) -> Callable[[], Turn]:
  """What runs an epoch as a Python loop of jitted, donating steps."""
  optimizer = training.adam(LEARNING_RATE)
  steps = training.steps_per_epoch(examples, size)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry, orders, examples):
    (params, batch_stats), opt_state, number = carry
    rows = orders[number]
    batch = Batch(examples.images[rows], examples.labels[rows])

    def objective(params):
      now = ModelState(params, batch_stats)
      return training.cross_entropy(model, now, (batch,), np.uint32(0))

    (loss, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(
      params
    )
    updates, opt_state = optimizer.update(grads, opt_state, params)
    moved = ModelState(optax.apply_updates(params, updates), batch_stats)
    return (moved, opt_state, number + 1), loss

  @jax.jit
  def shuffle(key):
    order = jax.random.permutation(key, examples.size)
    return order[: steps * size].reshape(steps, size)

  own, key = jax.tree.map(jnp.copy, state), jax.random.key(1)
  opt_state = optimizer.init(own.params)

  def epoch() -> Turn:
    nonlocal own, opt_state, key
    with timing.Stopwatch() as watch:
      key, now = jax.random.split(key)
      orders, carry, losses = shuffle(now), (own, opt_state, jnp.int32(0)), []
      for _ in range(steps):  # Nothing waits for a step before the last.
        carry, loss = step(carry, orders, examples)
        losses.append(loss)
      mean = watch.wait(jnp.stack(losses).mean())
    own, opt_state, _ = carry
    return {'seconds': watch.seconds, 'loss': float(mean)}

  return epoch


def _in_torch(name: str, *arguments: Any) -> Any:
  """Calls a function of the module that only PyTorch's process imports."""
  worker = importlib.import_module('benchmarks.torch_worker')
  return getattr(worker, name)(*arguments)


def _start_torch(
  result: dict[str, Any], stack: contextlib.ExitStack
) -> Callable[[], Turn] | None:
  """What runs an epoch of PyTorch in its process; `result` is told of it."""
  result['torch'] = record.torch_state(result['settings']['torch'])
  if result['torch'] != 'takes part':
    return None
  context = multiprocessing.get_context('spawn')
  pool = stack.enter_context(futures.ProcessPoolExecutor(1, context))
  device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
  task = {**result['settings'], 'device': device, 'classes': CLASSES}
  task |= {'image_shape': IMAGE_SHAPE, 'learning_rate': LEARNING_RATE}
  try:
    count = pool.submit(_in_torch, 'start', task).result()
  except Exception as error:  # Of any kind: no CUDA, a library, no memory.
    line = (str(error).splitlines() or [''])[0]
    result['torch'] = f'failed: {type(error).__name__}: {line[:200]}'
    return None
  if count != result['parameters']:
    raise RuntimeError(f'{count} parameters in PyTorch')
  return lambda: pool.submit(_in_torch, 'epoch').result()


def measure(settings: dict[str, Any]) -> dict[str, Any]:
  """Runs the whole benchmark; what the JSON file holds.

  Args:
    settings: the flags by name.
  """
  result: dict[str, Any] = {
    'what': (__doc__ or '').strip(),
    'settings': settings,
    'environment': record.environment(),
  }
  chosen = {name: settings[name] for name in ('width', 'dtype')}
  model = models.build('resnet18', CLASSES, IMAGE_SHAPE, **chosen)
  with contextlib.ExitStack() as stack:
    stack.enter_context(parallel.use(jax.devices()[:1]))
    state = training.initialize(jax.random.key(settings['seed']), model)
    leaves = jax.tree.leaves(state.params)
    result['parameters'] = sum(leaf.size for leaf in leaves)
    torch = _start_torch(result, stack)
    result['rounds'] = _race(settings, model, state, torch)
  return {**result, **summarize(result)}


def _race(
  settings: dict[str, Any],
  model: Model,
  state: ModelState,
  torch: Callable[[], Turn] | None,
) -> list[dict[str, Turn]]:
  """All turns, a round after the other; the first, which compiles, is cut."""
  examples = synthetic(settings['images'], settings['seed'])
  size = settings['batch_size']
  others = {'loop': python_loop(model, state, examples, size)}
  if torch:
    others['torch'] = torch
  rounds: list[dict[str, Turn]] = []
  before = 0.0

  def turn(epoch: training.Epoch) -> None:
    """Epochs 1, 3, 5, … are `scan`, and those between are `again`."""
    nonlocal before
    own = {'seconds': epoch.seconds - before, 'loss': epoch.loss or 0.0}
    before = epoch.seconds
    if epoch.epoch % 2:
      rounds.append({'scan': own, **{k: run() for k, run in others.items()}})
    elif epoch.epoch:
      rounds[-1]['again'] = own

  training.fit(
    jax.random.key(2),
    model,
    state,
    [examples],
    epochs=2 * (1 + settings['repeats']),
    batch_sizes=[size],
    optimizer=training.adam(LEARNING_RATE),
    on_epoch=turn,
  )
  return rounds[1:]


def synthetic(count: int, seed: int) -> Examples:
  """Random uint8 images and labels on the device."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, *IMAGE_SHAPE), np.uint8)
  labels = rng.integers(0, CLASSES, count, np.int32)
  return jax.tree.map(jax.device_put, Examples.of(images, labels))


def summarize(result: dict[str, Any]) -> dict[str, Any]:
  """Ratios and rates, each as median, least and most over rounds."""
  rounds, size = result['rounds'], result['settings']['batch_size']
  images = result['settings']['images'] // size * size
  seconds = {
    key: [turns[key]['seconds'] for turns in rounds] for key in rounds[0]
  }

  def ratio(above: str, below: str) -> dict[str, float]:
    pairs = zip(seconds[above], seconds[below])
    return record.spread([a / b for a, b in pairs])

  return {
    'speed_scan_over_torch': (
      ratio('torch', 'scan') if 'torch' in seconds else None
    ),
    'time_scan_over_loop': ratio('scan', 'loop'),
    'time_again_over_scan': ratio('again', 'scan'),
    'images_per_second': {
      key: record.spread([images / s for s in column])
      for key, column in seconds.items()
    },
  }


def table(result: dict[str, Any]) -> str:
  """The figures for people, medians with least and most in brackets."""
  lines = [
    'ResNet18 on {device}, width {width}, {dtype}, batch {batch_size},'
    ' {images} images, {repeats} rounds'.format(
      device=result['environment']['device'], **result['settings']
    )
  ]
  ratios = {key: found for key, found in result.items() if '_over_' in key}
  for key, found in result['images_per_second'].items():
    ratios[f'images_per_second, {key}'] = found
  for key, found in ratios.items():
    cell = record.shown(found) if found else f'PyTorch {result["torch"]}'
    lines.append(f'  {key.replace("_", " "):26} {cell}')
  return '\n'.join(lines)


def main() -> None:
  """Measures, shows, writes."""
  settings = vars(parse())
  out = settings.pop('out')
  result = measure(settings)
  record.write(out, result)
  print(table(result))


if __name__ == '__main__':
  main()
