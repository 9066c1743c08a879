"""DenseNet121 in its CIFAR form (Huang et al., 2017), with bottlenecks."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers

# Bottlenecks of each dense block; a transition follows all but the last.
_BLOCKS = (6, 12, 24, 16)


class Bottleneck(nn.Module):
  """BN-ReLU-1×1-BN-ReLU-3×3; its output joins its input.

  Attributes:
    growth: channels that it adds.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  growth: int
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H, W, Cin + growth]`."""
    y = nn.relu(layers.norm(self.axis_name, 'bn1')(x, not train))
    y = layers.conv(4 * self.growth, 1, name='conv1')(y)
    y = nn.relu(layers.norm(self.axis_name, 'bn2')(y, not train))
    y = layers.conv(self.growth, 3, name='conv2')(y)
    return jnp.concatenate([y, x], -1)


class DenseNet121(nn.Module):
  """Four dense blocks, channels and size halved between them.

  Attributes:
    num_classes: C.
    width: growth rate; 32 is the paper's.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  num_classes: int
  width: int = 32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = layers.conv(2 * self.width, 3, name='conv1')(x)
    for block, count in enumerate(_BLOCKS):
      for i in range(count):
        name = f'dense{block + 1}_{i}'
        x = Bottleneck(self.width, self.axis_name, name=name)(x, train)
      if block < len(_BLOCKS) - 1:
        name = f'transition{block + 1}'
        x = nn.relu(layers.norm(self.axis_name, f'{name}_bn')(x, not train))
        x = layers.conv(x.shape[-1] // 2, 1, name=f'{name}_conv')(x)
        x = layers.mean_pool_2x2(x)
    x = nn.relu(layers.norm(self.axis_name, 'bn')(x, not train))
    return nn.Dense(self.num_classes, name='linear')(x.mean((1, 2)))
