"""The networks of `unlearn_jax.models` in PyTorch: the other contestant.

Same layers, same shapes, same names: a Flax tensor `layer1_0/conv1/kernel` is
`layer1_0.conv1.weight` here, and with the weights copied over both give the
same logits (`tests/benchmarks_test.py`). Images are NHWC in memory, which
PyTorch calls channels_last.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

# Without data nothing is known of them; `unlearn_jax.models.build`'s defaults.
_MEAN, _STD = 0.5, 0.25


class Net(nn.Module):
  """From uint8 `[B, H, W, 3]` to float32 logits `[B, C]`.

  Layers are made in the constructor and used by name, so that a network here
  reads like its Flax original.
  """

  linear: nn.Linear

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """Standardises, runs the network, classifies in float32."""
    x = (images.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD
    x = self._features(x)
    with torch.autocast(x.device.type, enabled=False):
      return self._scale(self.linear(x.float()))

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    """`[B, 3, H, W]` to `[B, F]`."""
    raise TypeError(f'{type(self).__name__} has no _features')

  def _scale(self, logits: torch.Tensor) -> torch.Tensor:
    """What is done to the logits last."""
    return logits


def _conv(
  channels: int, features: int, kernel: int, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
  return nn.Conv2d(
    channels, features, kernel, stride, padding=kernel // 2, bias=bias
  )


def _gelu(x: torch.Tensor) -> torch.Tensor:
  return functional.gelu(x, approximate='tanh')


def _mean_over_pixels(x: torch.Tensor) -> torch.Tensor:
  return x.float().mean((2, 3))


class CNN(Net):
  """See `unlearn_jax.models.cnn`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    channels = 3
    for i in range(3):
      features = width * 2**i
      self.add_module(f'conv{i + 1}', _conv(channels, features, 3))
      self.add_module(f'bn{i + 1}', nn.BatchNorm2d(features))
      channels = features
    self.linear = nn.Linear(channels, num_classes)

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    for i in range(3):
      x = self.get_submodule(f'conv{i + 1}')(x)
      x = functional.relu(self.get_submodule(f'bn{i + 1}')(x))
      if i > 0:
        x = functional.max_pool2d(x, 2)
    return _mean_over_pixels(x)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut."""

  def __init__(self, channels: int, features: int, stride: int):
    super().__init__()
    self.conv1 = _conv(channels, features, 3, stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
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


class ResNet18(Net):
  """See `unlearn_jax.models.resnet`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.conv1 = _conv(3, width, 3)
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

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    x = functional.relu(self.bn1(self.conv1(x)))
    for name in self.names:
      x = self.get_submodule(name)(x)
    return _mean_over_pixels(x)


class PooledGroup(nn.Module):
  """A convolution that halves the image, and a residual path behind it."""

  def __init__(self, channels: int, features: int, depth: int):
    super().__init__()
    self.depth = depth
    for i in range(depth + 1):
      self.add_module(f'conv{i}', _conv(channels, features, 3))
      self.add_module(f'bn{i}', nn.BatchNorm2d(features))
      channels = features

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`[B, Cin, H, W] -> [B, features, H / 2, W / 2]`."""
    x = functional.max_pool2d(self.get_submodule('conv0')(x), 2)
    x = _gelu(self.get_submodule('bn0')(x))
    y = x
    for i in range(1, self.depth + 1):
      y = self.get_submodule(f'conv{i}')(y)
      y = _gelu(self.get_submodule(f'bn{i}')(y))
    return x + y


class ResNet9(Net):
  """See `unlearn_jax.models.resnet`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    channels = max(1, 3 * width // 8)
    self.conv0 = _conv(3, channels, 3)
    self.bn0 = nn.BatchNorm2d(channels)
    for i, (multiple, depth) in enumerate([(1, 1), (4, 1), (4, 2)]):
      group = PooledGroup(channels, width * multiple, depth)
      self.add_module(f'group{i + 1}', group)
      channels = width * multiple
    self.linear = nn.Linear(channels, num_classes)

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    x = _gelu(self.bn0(self.conv0(x)))
    for i in range(3):
      x = self.get_submodule(f'group{i + 1}')(x)
    return x.amax((2, 3))

  def _scale(self, logits: torch.Tensor) -> torch.Tensor:
    return logits / 9


class VGG19(Net):
  """See `unlearn_jax.models.vgg`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.stages = (2, 2, 4, 4, 4)
    channels = 3
    for stage, count in enumerate(self.stages):
      features = width * min(2**stage, 8)
      for i in range(count):
        name = f'{stage + 1}_{i}'
        self.add_module(f'conv{name}', _conv(channels, features, 3, bias=True))
        self.add_module(f'bn{name}', nn.BatchNorm2d(features))
        channels = features
    self.linear = nn.Linear(channels, num_classes)

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    for stage, count in enumerate(self.stages):
      for i in range(count):
        name = f'{stage + 1}_{i}'
        x = self.get_submodule(f'conv{name}')(x)
        x = functional.relu(self.get_submodule(f'bn{name}')(x))
      x = functional.max_pool2d(x, 2)
    return _mean_over_pixels(x)


class Bottleneck(nn.Module):
  """BN-ReLU-1×1-BN-ReLU-3×3; its output joins its input."""

  def __init__(self, channels: int, growth: int):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv1 = _conv(channels, 4 * growth, 1)
    self.bn2 = nn.BatchNorm2d(4 * growth)
    self.conv2 = _conv(4 * growth, growth, 3)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`[B, Cin, H, W] -> [B, Cin + growth, H, W]`."""
    y = self.conv1(functional.relu(self.bn1(x)))
    y = self.conv2(functional.relu(self.bn2(y)))
    return torch.cat([y, x.to(y.dtype)], 1)


class DenseNet121(Net):
  """See `unlearn_jax.models.densenet`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.blocks = (6, 12, 24, 16)
    channels = 2 * width
    self.conv1 = _conv(3, channels, 3)
    for block, count in enumerate(self.blocks):
      for i in range(count):
        name = f'dense{block + 1}_{i}'
        self.add_module(name, Bottleneck(channels, width))
        channels += width
      if block < len(self.blocks) - 1:
        name = f'transition{block + 1}'
        self.add_module(f'{name}_bn', nn.BatchNorm2d(channels))
        self.add_module(f'{name}_conv', _conv(channels, channels // 2, 1))
        channels //= 2
    self.bn = nn.BatchNorm2d(channels)
    self.linear = nn.Linear(channels, num_classes)

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    x = self.conv1(x)
    for block, count in enumerate(self.blocks):
      for i in range(count):
        x = self.get_submodule(f'dense{block + 1}_{i}')(x)
      if block < len(self.blocks) - 1:
        name = f'transition{block + 1}'
        x = functional.relu(self.get_submodule(f'{name}_bn')(x))
        x = self.get_submodule(f'{name}_conv')(x)
        x = functional.avg_pool2d(x, 2)
    return _mean_over_pixels(functional.relu(self.bn(x)))


# As in `unlearn_jax.models.googlenet`, written again so that this side stands
# for itself.
_INCEPTIONS = (
  (64, 96, 128, 16, 32, 32),
  (128, 128, 192, 32, 96, 64),
  None,
  (192, 96, 208, 16, 48, 64),
  (160, 112, 224, 24, 64, 64),
  (128, 128, 256, 24, 64, 64),
  (112, 144, 288, 32, 64, 64),
  (256, 160, 320, 32, 128, 128),
  None,
  (256, 160, 320, 32, 128, 128),
  (384, 192, 384, 48, 128, 128),
)


class Inception(nn.Module):
  """Four branches side by side."""

  def __init__(self, channels: int, features: tuple[int, ...]):
    super().__init__()
    one, three_in, three, five_in, five, pooled = features
    for name, before, after, kernel in (
      ('b1', channels, one, 1),
      ('b2_in', channels, three_in, 1),
      ('b2', three_in, three, 3),
      ('b3_in', channels, five_in, 1),
      ('b3_mid', five_in, five, 3),
      ('b3', five, five, 3),
      ('b4', channels, pooled, 1),
    ):
      self.add_module(f'{name}_conv', _conv(before, after, kernel, bias=True))
      self.add_module(f'{name}_bn', nn.BatchNorm2d(after))
    self.channels = one + three + five + pooled

  def _unit(self, x: torch.Tensor, name: str) -> torch.Tensor:
    x = self.get_submodule(f'{name}_conv')(x)
    return functional.relu(self.get_submodule(f'{name}_bn')(x))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`[B, Cin, H, W]` to the four branches' channels, concatenated."""
    first = self._unit(x, 'b1')
    second = self._unit(self._unit(x, 'b2_in'), 'b2')
    third = self._unit(self._unit(x, 'b3_in'), 'b3_mid')
    third = self._unit(third, 'b3')
    fourth = self._unit(functional.max_pool2d(x, 3, 1, 1), 'b4')
    return torch.cat([first, second, third, fourth], 1)


class GoogLeNet(Net):
  """See `unlearn_jax.models.googlenet`."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    channels = 3 * width
    self.conv1 = _conv(3, channels, 3, bias=True)
    self.bn1 = nn.BatchNorm2d(channels)
    for i, row in enumerate(_INCEPTIONS):
      if row is not None:
        features = tuple(max(1, n * width // 64) for n in row)
        inception = Inception(channels, features)
        self.add_module(f'inception{i + 1}', inception)
        channels = inception.channels
    self.linear = nn.Linear(channels, num_classes)

  def _features(self, x: torch.Tensor) -> torch.Tensor:
    x = functional.relu(self.bn1(self.conv1(x)))
    for i, row in enumerate(_INCEPTIONS):
      if row is None:
        x = functional.max_pool2d(x, 3, 2, 1)
      else:
        x = self.get_submodule(f'inception{i + 1}')(x)
    return _mean_over_pixels(x)


# Each with the width that `unlearn_jax.models.FAMILIES` gives it.
FAMILIES: dict[str, tuple[Callable[[int, int], Net], int]] = {
  'cnn': (CNN, 16),
  'resnet9': (ResNet9, 64),
  'resnet18': (ResNet18, 64),
  'vgg19': (VGG19, 64),
  'densenet121': (DenseNet121, 32),
  'googlenet': (GoogLeNet, 64),
}


def build(name: str, num_classes: int, width: int | None = None) -> Net:
  """A network of the table `FAMILIES`, freshly initialised, on the CPU."""
  family, default = FAMILIES[name]
  net = family(num_classes, default if width is None else width)
  # torch types `memory_format` for tensors only.
  return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameters(net: nn.Module) -> int:
  """How many scalars are trained."""
  return sum(p.numel() for p in net.parameters())


def forward_macs(net: nn.Module, image_shape: tuple[int, ...]) -> int:
  """MACs of one image, as `experiments.flops` counts them.

  Args:
    net: the network; its parameters are neither read nor changed.
    image_shape: (height, width, channels).
  """
  total = 0

  def count(layer: nn.Module, _, out: torch.Tensor) -> None:
    nonlocal total
    weight = layer.get_parameter('weight')
    total += out.numel() * weight[0].numel()

  hooks = [
    layer.register_forward_hook(count)
    for layer in net.modules()
    if isinstance(layer, nn.Conv2d | nn.Linear)
  ]
  device = next(net.parameters()).device
  was_training = net.training
  with torch.no_grad():
    net.eval()
    net(torch.zeros((1, *image_shape), dtype=torch.uint8, device=device))
  net.train(was_training)
  for hook in hooks:
    hook.remove()
  return total
