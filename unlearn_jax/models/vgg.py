"""VGG19 with BatchNorm in its CIFAR form (Simonyan and Zisserman, 2015).

The convolutions keep their biases, and one linear layer replaces the three of
the original: the paper's Table I counts it so.
"""

from flax import linen as nn
import jax

from unlearn_jax.models import layers

# Convolutions of each stage; a 2×2 max-pool follows each stage.
_STAGES = (2, 2, 4, 4, 4)


class VGG19(layers.Classifier):
  """Sixteen 3×3 convolutions in five stages."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    for stage, count in enumerate(_STAGES):
      features = self.width * min(2**stage, 8)
      for i in range(count):
        name = f'{stage + 1}_{i}'
        x = self.conv(features, 3, name=f'conv{name}', use_bias=True)(x)
        x = nn.relu(self.norm(x, train, f'bn{name}'))
      x = layers.max_pool_2x2(x)
    # At 32×32 pixels this is a single position.
    return self.classify(layers.mean_over_pixels(x))
