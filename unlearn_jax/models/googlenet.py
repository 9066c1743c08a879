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


class Inception(nn.Module):
  """Four branches side by side.

  Attributes:
    features: channels, as in a row of `_INCEPTIONS`.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  features: tuple[int, ...]
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, Cin]` to the four branches' channels, concatenated."""

    def unit(y, features, kernel, name):
      y = layers.conv(features, kernel, use_bias=True, name=f'{name}_conv')(y)
      return nn.relu(layers.norm(self.axis_name, f'{name}_bn')(y, not train))

    one, three_in, three, five_in, five, pooled = self.features
    first = unit(x, one, 1, 'b1')
    second = unit(unit(x, three_in, 1, 'b2_in'), three, 3, 'b2')
    third = unit(unit(x, five_in, 1, 'b3_in'), five, 3, 'b3_mid')
    third = unit(third, five, 3, 'b3')
    fourth = nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))
    fourth = unit(fourth, pooled, 1, 'b4')
    return jnp.concatenate([first, second, third, fourth], -1)


class GoogLeNet(nn.Module):
  """Nine inceptions in three stages.

  Attributes:
    num_classes: C.
    width: a third of the first convolution's channels; 64 is the paper's.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  num_classes: int
  width: int = 64
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    x = layers.conv(3 * self.width, 3, use_bias=True, name='conv1')(x)
    x = nn.relu(layers.norm(self.axis_name, 'bn1')(x, not train))
    for i, row in enumerate(_INCEPTIONS):
      if row is None:
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
      else:
        features = tuple(max(1, n * self.width // 64) for n in row)
        name = f'inception{i + 1}'
        x = Inception(features, self.axis_name, name=name)(x, train)
    return nn.Dense(self.num_classes, name='linear')(x.mean((1, 2)))
