"""GoogLeNet in its CIFAR form (Szegedy et al., 2015), without side outputs.

With BatchNorm, convolution biases, and two 3×3 convolutions where the
original has a 5×5 one.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers

# Channels of each inception at width 64: the 1×1 branch; the 3×3 branch,
# reduced and out; the double 3×3 branch, reduced and out; the pooled branch.
# None stands for the 3×3 max-pool at stride 2 between stages.
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


def _max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
  """3×3 max-pool of `[B, H, W, C]`, padded by one pixel on all sides."""
  return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))


class Inception(layers.Block, kw_only=True):
  """Four branches side by side.

  Attributes:
    features: channels, as in a row of `_INCEPTIONS`.
  """

  features: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin]` to the four branches' channels, concatenated."""

    def unit(y, features, kernel, name):
      y = self.conv(features, kernel, name=f'{name}_conv', use_bias=True)(y)
      return nn.relu(self.norm(y, train, f'{name}_bn'))

    one, three_in, three, five_in, five, pooled = self.features
    first = unit(x, one, 1, 'b1')
    second = unit(unit(x, three_in, 1, 'b2_in'), three, 3, 'b2')
    third = unit(unit(x, five_in, 1, 'b3_in'), five, 3, 'b3_mid')
    third = unit(third, five, 3, 'b3')
    fourth = unit(_max_pool(x), pooled, 1, 'b4')
    return jnp.concatenate([first, second, third, fourth], -1)


class GoogLeNet(layers.Classifier):
  """Nine inceptions in three stages.

  Its `width` is a third of the first convolution's channels.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = self.conv(3 * self.width, 3, name='conv1', use_bias=True)(x)
    x = nn.relu(self.norm(x, train, 'bn1'))
    for i, row in enumerate(_INCEPTIONS):
      if row is None:
        x = _max_pool(x, stride=2)
      else:
        features = tuple(max(1, n * self.width // 64) for n in row)
        name = f'inception{i + 1}'
        x = self.part(Inception, features=features, name=name)(x, train)
    return self.classify(layers.mean_over_pixels(x))
