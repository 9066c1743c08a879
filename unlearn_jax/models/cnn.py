"""A three-convolution net for small images such as scikit-learn's digits."""

from flax import linen as nn
import jax

from unlearn_jax.models import layers


class CNN(nn.Module):
  """Conv-BN-ReLU three times, the last two halved in size, and a classifier.

  Attributes:
    num_classes: C.
    width: channels of the first convolution.
    axis_name: device axis over which BatchNorm is synchronised, or None.
  """

  num_classes: int
  width: int = 16
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    for i in range(3):
      x = layers.conv(self.width * 2**i, 3, name=f'conv{i + 1}')(x)
      x = nn.relu(layers.norm(self.axis_name, f'bn{i + 1}')(x, not train))
      if i > 0:
        x = layers.max_pool_2x2(x)
    return nn.Dense(self.num_classes, name='linear')(x.mean((1, 2)))
