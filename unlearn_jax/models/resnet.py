"""ResNet18 in its CIFAR form (He et al., 2016).

The first convolution is 3×3 at stride 1 and there is no first max-pool.
"""

from flax import linen as nn
import jax

from unlearn_jax.models import layers


class BasicBlock(nn.Module):
  """Two 3×3 convolutions and a shortcut.

  Attributes:
    features: channels out.
    stride: of the first convolution and of the shortcut.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  features: int
  stride: int
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H / stride, W / stride, features]`."""

    def normed(y, name):
      return layers.norm(self.axis_name, name)(y, not train)

    y = layers.conv(self.features, 3, self.stride, 'conv1')(x)
    y = nn.relu(normed(y, 'bn1'))
    y = normed(layers.conv(self.features, 3, name='conv2')(y), 'bn2')
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layers.conv(self.features, 1, self.stride, 'shortcut_conv')(x)
      x = normed(x, 'shortcut_bn')
    return nn.relu(x + y)


class ResNet18(nn.Module):
  """Eight basic blocks in four stages.

  Attributes:
    num_classes: C.
    width: channels of the first stage; 64 is the paper's.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  num_classes: int
  width: int = 64
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = layers.conv(self.width, 3, name='conv1')(x)
    x = nn.relu(layers.norm(self.axis_name, 'bn1')(x, not train))
    for stage in range(4):
      for block in range(2):
        x = BasicBlock(
          self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          axis_name=self.axis_name,
          name=f'layer{stage + 1}_{block}',
        )(x, train)
    return nn.Dense(self.num_classes, name='linear')(x.mean((1, 2)))
