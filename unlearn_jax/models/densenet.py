"""DenseNet121 in its CIFAR form (Huang et al., 2017), with bottlenecks."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers

# Bottlenecks of each dense block; a transition follows all but the last.
_BLOCKS = (6, 12, 24, 16)


class Bottleneck(layers.Block, kw_only=True):
  """BN-ReLU-1×1-BN-ReLU-3×3; its output joins its input.

  Attributes:
    growth: channels that it adds.
  """

  growth: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H, W, Cin + growth]`."""
    y = nn.relu(self.norm(x, train, 'bn1'))
    y = self.conv(4 * self.growth, 1, name='conv1')(y)
    y = nn.relu(self.norm(y, train, 'bn2'))
    y = self.conv(self.growth, 3, name='conv2')(y)
    return jnp.concatenate([y, x.astype(y.dtype)], -1)


class DenseNet121(layers.Classifier):
  """Four dense blocks, channels and size halved between them.

  Its `width` is the growth rate; 32 is the paper's.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = self.conv(2 * self.width, 3, name='conv1')(x)
    for block, count in enumerate(_BLOCKS):
      for i in range(count):
        name = f'dense{block + 1}_{i}'
        x = self.part(Bottleneck, growth=self.width, name=name)(x, train)
      if block < len(_BLOCKS) - 1:
        name = f'transition{block + 1}'
        x = nn.relu(self.norm(x, train, f'{name}_bn'))
        x = self.conv(x.shape[-1] // 2, 1, name=f'{name}_conv')(x)
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x = nn.relu(self.norm(x, train, 'bn'))
    return self.classify(layers.mean_over_pixels(x))
