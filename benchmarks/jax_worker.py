"""Our engine and the Python loop that it has to beat, in one process.

Answers `probe`, or `start` and then any number of

  scan     the next epoch of one running `training.fit`
  loop     an epoch of the same steps, called one by one from Python
  matmul   square matrix products: the most that the device gives
  profile  one more `scan`, traced
  stop     memory and compilation time; ends the process

`benchmarks.train` does the asking.
"""

import functools
import importlib.metadata
import math
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import memory, profiles, workers
from experiments import flops
from unlearn_jax import models, parallel, timing, training
from unlearn_jax.base import Batch, Examples, Model, ModelState

IMAGE_SHAPE = (32, 32, 3)
CLASSES = 10
LEARNING_RATE = 1e-3

# Sides of the matrix products, and how many make one measurement.
_MATMULS = {'cpu': ((1024, 4), (2048, 1)), 'other': ((8192, 8), (16384, 2))}


def probe() -> dict[str, Any]:
  """What the device and the packages are."""
  device = jax.devices()[0]
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  return {
    'platform': jax.default_backend(),
    'device': device.device_kind,
    'devices': len(jax.devices()),
    'versions': {name: importlib.metadata.version(name) for name in names},
  }


class Carry(NamedTuple):
  """What one step hands to the next.

  Attributes:
    model: parameters and BatchNorm statistics.
    opt_state: Adam's.
    number: int32 scalar, the step within the epoch.
  """

  model: ModelState
  opt_state: optax.OptState
  number: jax.Array


class Loop:
  """An epoch as a Python loop of jitted, donating steps."""

  def __init__(self, model: Model, state: ModelState, batch_size: int):
    optimizer = training.adam(LEARNING_RATE)

    def step(carry: Carry, orders: jax.Array, examples: Examples):
      rows = orders[carry.number]
      batch = Batch(examples.images[rows], examples.labels[rows])
      params, batch_stats = carry.model

      def objective(params):
        now = ModelState(params, batch_stats)
        return training.cross_entropy(model, now, (batch,))

      (loss, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(
        params
      )
      updates, opt_state = optimizer.update(grads, carry.opt_state, params)
      moved = ModelState(optax.apply_updates(params, updates), batch_stats)
      return Carry(moved, opt_state, carry.number + 1), loss

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def shuffle(key, count: int, steps: int):
      order = jax.random.permutation(key, count)[: steps * batch_size]
      return order.reshape(steps, batch_size)

    self._batch_size = batch_size
    self._shuffle = shuffle
    self._step = jax.jit(step, donate_argnums=0)
    own = jax.tree.map(jnp.copy, state)
    self._carry = Carry(own, optimizer.init(own.params), jnp.int32(0))
    self._key = jax.random.key(1)

  def xla_flops(self, examples: Examples) -> float | None:
    """FLOPs of a step as XLA counts them, before it optimises, or None."""
    orders = self._orders(examples)
    lowered = self._step.lower(self._carry, orders, examples)
    counted = (lowered.cost_analysis() or {}).get('flops')
    return counted if counted and counted > 0 else None

  def _orders(self, examples: Examples) -> jax.Array:
    self._key, key = jax.random.split(self._key)
    steps = training.steps_per_epoch(examples, self._batch_size)
    return self._shuffle(key, examples.size, steps)

  def epoch(self, examples: Examples) -> jax.Array:
    """Runs it; the mean loss. Nothing waits for a step before the last."""
    orders = self._orders(examples)
    self._carry = self._carry._replace(number=jnp.int32(0))
    losses = []
    for _ in range(len(orders)):
      self._carry, loss = self._step(self._carry, orders, examples)
      losses.append(loss)
    return jnp.stack(losses).mean()


def best_matmul(dtype: str) -> dict[str, Any]:
  """FLOP/s of the fastest of a few chains of random matrix products."""
  platform = jax.default_backend()
  if platform == 'cpu':
    dtype = 'float32'
  found: dict[str, float] = {}
  for side, products in _MATMULS.get(platform, _MATMULS['other']):
    chain, x, y = _matmul_chain(side, products, dtype)
    jax.block_until_ready(chain(x, y))
    for _ in range(3):
      with timing.Stopwatch() as watch:
        watch.wait(chain(x, y))
      speed = 2 * side**3 * products / watch.seconds
      found[str(side)] = max(speed, found.get(str(side), 0))
  best = max(found.values())
  return {'flops_per_second': best, 'by_side': found, 'dtype': dtype}


@functools.cache
def _matmul_chain(side: int, products: int, dtype: str):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (side, side), dtype)
  # Keeps the magnitude of x from one product to the next.
  y = jax.random.normal(keys[1], (side, side), dtype) / math.sqrt(side)

  @jax.jit
  def chain(x, y):
    for _ in range(products):
      x = x @ y
    return x

  return chain, x, y.astype(dtype)


class Contest:
  """Serves requests from inside a running training.

  `fit` calls back after each epoch; the callback answers until it is asked
  for the next epoch. What is timed is thus an epoch in the middle of an
  ordinary training.
  """

  def __init__(self, channel: workers.Channel, task: dict[str, Any]):
    self._channel = channel
    self._task = task
    self._model = models.build(
      task['model'],
      CLASSES,
      IMAGE_SHAPE,
      width=task['width'],
      dtype=task['dtype'],
    )
    self._examples = synthetic(task['images'])
    self._state = training.initialize(jax.random.key(0), self._model)
    jax.block_until_ready((self._examples, self._state))
    self._loop: Loop | None = None
    self._memory = memory.PeakMemory(jax.devices()[0])
    self._traced: tempfile.TemporaryDirectory | None = None
    self._running: tuple[timing.Stopwatch, float] | None = None
    self._seconds = 0.0
    self._stopped = False

  def run(self) -> None:
    """Trains until it is told to stop, then answers a last time."""
    macs = flops.forward_macs(self._model, IMAGE_SHAPE)
    self._channel.reply(
      {'parameters': flops.parameters(self._model), 'macs_per_image': macs}
    )
    fit = training.fit(
      jax.random.key(2),
      self._model,
      self._state,
      [self._examples],
      epochs=10**6,
      batch_sizes=[self._task['batch_size']],
      optimizer=training.adam(LEARNING_RATE),
      on_epoch=self._serve,
      stop=lambda _: self._stopped,
    )
    self._channel.reply(
      {'compile_seconds': fit.compile_seconds, 'memory': self._memory.read()}
    )

  def _serve(self, epoch: training.Epoch) -> None:
    if self._running is not None:
      self._channel.reply(self._finished(epoch))
    self._seconds = epoch.seconds
    while True:
      request = self._channel.receive()['do']
      if request == 'stop':
        self._stopped = True
        return
      if request in ('scan', 'profile'):
        self._begin(traced=request == 'profile')
        return
      if request == 'loop':
        self._channel.reply(self._looped())
      elif request == 'matmul':
        self._channel.reply(best_matmul(self._task['dtype']))
      else:
        raise ValueError(f'do={request!r}, allowed: see benchmarks.jax_worker')

  def _begin(self, traced: bool) -> None:
    if traced:
      self._traced = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._traced.name)
    self._running = (timing.Stopwatch().__enter__(), time.process_time())

  def _finished(self, epoch: training.Epoch) -> dict[str, Any]:
    assert self._running is not None
    watch, cpu_before = self._running
    cpu_seconds = time.process_time() - cpu_before
    watch.__exit__()
    answer: dict[str, Any] = {
      'seconds': epoch.seconds - self._seconds,
      'cpu_seconds': cpu_seconds,
      'loss': epoch.loss,
      'compilations': watch.compilations,
    }
    if self._traced is not None:
      jax.profiler.stop_trace()
      answer |= profiles.largest_kernels(self._traced.name)
      self._traced.cleanup()
      self._traced = None
    return answer

  def _looped(self) -> dict[str, Any]:
    size = self._task['batch_size']
    if first := self._loop is None:
      self._loop = Loop(self._model, self._state, size)
    cpu_before = time.process_time()
    with timing.Stopwatch() as watch:
      loss = watch.wait(self._loop.epoch(self._examples))
    cpu_seconds = time.process_time() - cpu_before
    extra: dict[str, Any] = {}
    if first:
      step_flops = self._loop.xla_flops(self._examples)
      extra['xla_flops_per_image'] = step_flops and step_flops / size
    return {
      'seconds': watch.seconds,
      'cpu_seconds': cpu_seconds,
      'loss': float(loss),
      'compilations': watch.compilations,
      'compile_seconds': watch.compile_seconds,
      **extra,
    }


def synthetic(count: int) -> Examples:
  """Random uint8 images and labels on the device."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, *IMAGE_SHAPE), np.uint8)
  labels = rng.integers(0, CLASSES, count, np.int32)
  return jax.tree.map(jax.device_put, Examples.of(images, labels))


def main() -> None:
  """Answers until there is nobody left who asks."""
  channel = workers.Channel()
  request = channel.receive()
  if request['do'] == 'probe':
    channel.reply(probe())
    return
  with parallel.use(jax.devices()[:1]):
    Contest(channel, request['task']).run()


if __name__ == '__main__':
  main()
