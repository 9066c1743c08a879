"""The same training in PyTorch: ResNet18 again, and epochs of it.

Written as PyTorch is used when speed matters: channels_last, the data on the
device, fused Adam, cuDNN's search for the fastest kernel, TF32 where JAX uses
it, as many threads as JAX has. `benchmarks.train` runs it in its own process.
"""

import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.study.provenance import cores

# Without data nothing is known of them; `unlearn_jax.models.build`'s defaults.
_MEAN, _STD = 0.5, 0.25


def _conv(channels: int, features: int, kernel: int, stride: int) -> nn.Conv2d:
  padding = kernel // 2
  return nn.Conv2d(channels, features, kernel, stride, padding, bias=False)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut."""

  def __init__(self, channels: int, features: int, stride: int):
    super().__init__()
    self.conv1 = _conv(channels, features, 3, stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3, 1)
    self.bn2 = nn.BatchNorm2d(features)
    self.projects = stride != 1 or channels != features
    if self.projects:
      self.shortcut_conv = _conv(channels, features, 1, stride)
      self.shortcut_bn = nn.BatchNorm2d(features)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`[B, Cin, H, W] -> [B, features, H / stride, W / stride]`."""
    y = functional.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    if self.projects:
      x = self.shortcut_bn(self.shortcut_conv(x))
    return functional.relu(x + y)


class ResNet18(nn.Module):
  """`unlearn_jax.models.resnet`'s, layer by layer.

  A Flax tensor `layer1_0/conv1/kernel` is `layer1_0.conv1.weight` here, and
  with the weights copied over both give the same logits
  (`tests/benchmarks_test.py`).
  """

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.conv1 = _conv(3, width, 3, 1)
    self.bn1 = nn.BatchNorm2d(width)
    self.names = []
    channels = width
    for stage in range(4):
      for block in range(2):
        features = width * 2**stage
        stride = 2 if stage > 0 and block == 0 else 1
        self.names.append(f'layer{stage + 1}_{block}')
        self.add_module(self.names[-1], BasicBlock(channels, features, stride))
        channels = features
    self.linear = nn.Linear(channels, num_classes)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """uint8 `[B, H, W, 3]`, channels last in memory, to logits `[B, C]`."""
    x = (images.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD
    x = functional.relu(self.bn1(self.conv1(x)))
    for name in self.names:
      x = self.get_submodule(name)(x)
    with torch.autocast(x.device.type, enabled=False):
      return self.linear(x.float().mean((2, 3)))


def start(task: dict[str, Any]) -> int:
  """Makes this process a contestant.

  Args:
    task: flags of `benchmarks.train` by name, and torch's `device`,
      `image_shape` (height, width, 3), `classes`, and Adam's `learning_rate`.

  Returns:
    How many scalars are trained.
  """
  device = task['device']
  torch.manual_seed(task['seed'])
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  torch.set_num_threads(cores())
  count, shape = (task['images'],), (task['images'], *task['image_shape'])
  images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
  labels = torch.randint(0, task['classes'], count).to(device)
  net = ResNet18(task['classes'], task['width']).to(device)
  # torch types `memory_format` for tensors only.
  net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
  optimizer = torch.optim.Adam(
    net.parameters(), task['learning_rate'], fused=True
  )
  forward = torch.compile(net) if task['torch_compile'] else net
  _started[:] = [(task, images, labels, forward, optimizer)]
  return sum(p.numel() for p in net.parameters())


_started: list[tuple[Any, ...]] = []


def epoch() -> dict[str, float]:
  """Runs an epoch of what was started, and waits for its end."""
  ((task, images, labels, forward, optimizer),) = _started
  device, size = task['device'], task['batch_size']
  dtype = getattr(torch, task['dtype'])
  _wait(device)
  begin, losses = time.perf_counter(), []
  order = torch.randperm(len(images), device=device)
  for step in range(len(order) // size):
    rows = order[step * size : (step + 1) * size]
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      logits = forward(images[rows])
    loss = functional.cross_entropy(logits, labels[rows])
    loss.backward()
    optimizer.step()
    losses.append(loss.detach())
  mean = torch.stack(losses).mean()
  _wait(device)
  return {'seconds': time.perf_counter() - begin, 'loss': float(mean)}


def _wait(device: str) -> None:
  if device == 'cuda':
    torch.cuda.synchronize()
