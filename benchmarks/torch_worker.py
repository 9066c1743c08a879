"""The same training in PyTorch, in a process of its own.

Answers `start`, and then any number of `torch` (an epoch) and `matmul`.
Written as PyTorch is used when speed matters: channels_last, the data on the
device, fused Adam, cuDNN's search for the fastest kernel, TF32 where JAX uses
it, as many threads as JAX has. `benchmarks.train` does the asking.
"""

import math
import os
import time
from typing import Any

import torch
from torch.nn import functional

from benchmarks import torch_models, workers

IMAGE_SHAPE = (32, 32, 3)
CLASSES = 10
LEARNING_RATE = 1e-3

_MATMULS = {'cpu': ((1024, 4), (2048, 1)), 'cuda': ((8192, 8), (16384, 2))}


class Contest:
  """A network in training."""

  def __init__(self, task: dict[str, Any]):
    self._device = task['device']
    self._batch_size = task['batch_size']
    self._dtype = getattr(torch, task['dtype'])
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    generator = torch.Generator().manual_seed(0)
    shape = (task['images'], *IMAGE_SHAPE)
    self._images = torch.randint(
      0, 256, shape, dtype=torch.uint8, generator=generator
    ).to(self._device)
    self._labels = torch.randint(
      0, CLASSES, (task['images'],), generator=generator
    ).to(self._device)
    self._net = torch_models.build(task['model'], CLASSES, task['width'])
    self._net.to(self._device)
    self.facts = {
      'parameters': torch_models.parameters(self._net),
      'macs_per_image': torch_models.forward_macs(self._net, IMAGE_SHAPE),
      'threads': torch.get_num_threads(),
      'device': self._device,
      'version': torch.__version__,
    }
    self._optimizer = torch.optim.Adam(
      self._net.parameters(), LEARNING_RATE, fused=True
    )
    self._forward = torch.compile(self._net) if task['compile'] else self._net

  def _wait(self) -> None:
    if self._device == 'cuda':
      torch.cuda.synchronize()

  def epoch(self) -> dict[str, Any]:
    """Runs it, and waits for its end."""
    self._wait()
    start, cpu_before = time.perf_counter(), time.process_time()
    size = self._batch_size
    order = torch.randperm(len(self._images), device=self._device)
    losses = []
    for step in range(len(order) // size):
      rows = order[step * size : (step + 1) * size]
      self._optimizer.zero_grad(set_to_none=True)
      with torch.autocast(
        self._device, self._dtype, enabled=self._dtype != torch.float32
      ):
        logits = self._forward(self._images[rows])
      loss = functional.cross_entropy(logits, self._labels[rows])
      loss.backward()
      self._optimizer.step()
      losses.append(loss.detach())
    mean = torch.stack(losses).mean()
    self._wait()
    return {
      'seconds': time.perf_counter() - start,
      'cpu_seconds': time.process_time() - cpu_before,
      'loss': float(mean),
    }

  def best_matmul(self) -> dict[str, Any]:
    """FLOP/s of the fastest of a few chains of random matrix products."""
    dtype = torch.float32 if self._device == 'cpu' else self._dtype
    found = {}
    for side, products in _MATMULS[self._device]:
      x = torch.randn(side, side, device=self._device).to(dtype)
      y = torch.randn(side, side, device=self._device).to(dtype)
      y /= math.sqrt(side)
      best = math.inf
      for _ in range(4):  # The first one warms up.
        self._wait()
        start = time.perf_counter()
        for _ in range(products):
          x = x @ y
        self._wait()
        best = min(best, time.perf_counter() - start)
      found[str(side)] = 2 * side**3 * products / best
    return {'flops_per_second': max(found.values()), 'by_side': found}


def main() -> None:
  """Answers until there is nobody left who asks."""
  channel = workers.Channel()
  contest = Contest(channel.receive()['task'])
  channel.reply(contest.facts)
  while True:
    request = channel.receive()['do']
    if request == 'torch':
      channel.reply(contest.epoch())
    elif request == 'matmul':
      channel.reply(contest.best_matmul())
    else:
      raise ValueError(f'do={request!r}, allowed: torch, matmul')


if __name__ == '__main__':
  main()
