"""VGG19 with BatchNorm in its CIFAR form (Simonyan and Zisserman, 2015).

The convolutions keep their biases, and one linear layer replaces the three of
the original: the paper's Table I counts it so.
"""

from flax import linen as nn
import jax

from unlearn_jax.models import layers

# Convolutions of each stage; a 2×2 max-pool follows each stage.
_STAGES = (2, 2, 4, 4, 4)


class VGG19(nn.Module):
  """Sixteen 3×3 convolutions in five stages.

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
    for stage, count in enumerate(_STAGES):
      features = self.width * min(2**stage, 8)
      for i in range(count):
        name = f'{stage + 1}_{i}'
        x = layers.conv(features, 3, use_bias=True, name=f'conv{name}')(x)
        x = nn.relu(layers.norm(self.axis_name, f'bn{name}')(x, not train))
      x = layers.max_pool_2x2(x)
    # At 32×32 pixels this is a single position.
    return nn.Dense(self.num_classes, name='linear')(x.mean((1, 2)))
