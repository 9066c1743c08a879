"""ResNet18 in its CIFAR form (He et al., 2016), and a small fast ResNet9."""

from flax import linen as nn
import jax

from unlearn_jax.models import layers


class BasicBlock(layers.Block, kw_only=True):
  """Two 3×3 convolutions and a shortcut.

  Attributes:
    features: channels out.
    stride: of the first convolution and of the shortcut.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H / stride, W / stride, features]`."""
    y = self.conv(self.features, 3, self.stride, 'conv1')(x)
    y = nn.relu(self.norm(y, train, 'bn1'))
    y = self.norm(self.conv(self.features, 3, name='conv2')(y), train, 'bn2')
    if self.stride != 1 or x.shape[-1] != self.features:
      x = self.conv(self.features, 1, self.stride, 'shortcut_conv')(x)
      x = self.norm(x, train, 'shortcut_bn')
    return nn.relu(x + y)


class ResNet18(layers.Classifier):
  """Eight basic blocks in four stages.

  The first convolution is 3×3 at stride 1 and there is no first max-pool.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = self.conv(self.width, 3, name='conv1')(x)
    x = nn.relu(self.norm(x, train, 'bn1'))
    for stage in range(4):
      for block in range(2):
        x = self.part(
          BasicBlock,
          features=self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          name=f'layer{stage + 1}_{block}',
        )(x, train)
    return self.classify(layers.mean_over_pixels(x))


class PooledGroup(layers.Block, kw_only=True):
  """A convolution that halves the image, and a residual path behind it.

  Attributes:
    features: channels out.
    depth: convolutions on the residual path.
  """

  features: int
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H / 2, W / 2, features]`."""
    # Pooled before it is normalised: a quarter of the work, as airbench has it.
    x = layers.max_pool_2x2(self.conv(self.features, 3, name='conv0')(x))
    x = nn.gelu(self.norm(x, train, 'bn0'))
    y = x
    for i in range(1, self.depth + 1):
      y = self.conv(self.features, 3, name=f'conv{i}')(y)
      y = nn.gelu(self.norm(y, train, f'bn{i}'))
    return x + y


class ResNet9(layers.Classifier):
  """Eight convolutions that shrink the image early, for many retrained models.

  A fifth of ResNet18's arithmetic. Learned from the nets that train fastest
  on CIFAR-10 (Page's ResNet-9; Jordan, 'airbench', 2024), without their
  whitened first layer: few channels while the image is large, GELU, a maximum
  over the last pixels, small logits at the start.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = self.conv(max(1, 3 * self.width // 8), 3, name='conv0')(x)
    x = nn.gelu(self.norm(x, train, 'bn0'))
    for i, (multiple, depth) in enumerate([(1, 1), (4, 1), (4, 2)]):
      x = self.part(
        PooledGroup,
        features=self.width * multiple,
        depth=depth,
        name=f'group{i + 1}',
      )(x, train)
    return self.classify(x.max((1, 2))) / 9
