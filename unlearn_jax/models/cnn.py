"""A three-convolution net for small images such as scikit-learn's digits."""

from flax import linen as nn
import jax

from unlearn_jax.models import layers


class CNN(layers.Classifier):
  """Conv-BN-ReLU three times, the last two halved in size, and a classifier."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    for i in range(3):
      x = self.conv(self.width * 2**i, 3, name=f'conv{i + 1}')(x)
      x = nn.relu(self.norm(x, train, f'bn{i + 1}'))
      if i > 0:
        x = layers.max_pool_2x2(x)
    return self.classify(layers.mean_over_pixels(x))
