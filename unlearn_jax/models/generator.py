"""SPD-GAN's generator: an autoencoder from images to perturbations."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.models import layers

# The encoder halves the size twice.
_MULTIPLE = 4


class Generator(layers.Block, kw_only=True):
  """Encoder Conv, Conv, BN, Conv, BN; decoder ConvT, BN, ConvT, Conv; Tanh.

  The layers and activations are those of Zuo et al. (§III-C, Fig. 3), which
  gives neither channels nor strides: here the second and third convolution
  have stride 2, and the channels double where the size is halved. Images of
  any size are padded by their edge to a multiple of four pixels; what comes
  out is cut to the size that went in.

  Attributes:
    channels: of the images.
    width: channels of the first stage.
    bound: the largest absolute value of an output.
  """

  channels: int
  width: int = 32
  bound: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`[B, H, W, channels]` in [-1, 1] to float32 of that shape, bounded."""
    height, width = x.shape[1:3]
    edges = [(0, 0), *((0, -n % _MULTIPLE) for n in (height, width)), (0, 0)]
    x = jnp.pad(x, edges, mode='edge')
    # The encoder.
    x = nn.leaky_relu(self.conv(self.width, 3, 1, 'conv1', use_bias=True)(x))
    x = self.conv(2 * self.width, 3, 2, 'conv2')(x)
    x = nn.leaky_relu(self.norm(x, train, 'bn2'))
    x = self.conv(4 * self.width, 3, 2, 'conv3')(x)
    x = nn.leaky_relu(self.norm(x, train, 'bn3'))
    # The decoder.
    x = depth_to_space(self.conv(8 * self.width, 3, 1, 'up1')(x))
    x = nn.relu(self.norm(x, train, 'bn4'))
    x = self.conv(4 * self.width, 3, 1, 'up2', use_bias=True)(x)
    x = nn.relu(depth_to_space(x))
    x = self.conv(self.channels, 3, 1, 'conv4', use_bias=True)(x)
    x = x[:, :height, :width].astype(jnp.float32)
    return self.bound * jnp.tanh(x)


def depth_to_space(x: jax.Array) -> jax.Array:
  """`[B, H, W, 4·C]` to `[B, 2·H, 2·W, C]`: channels become 2×2 pixels.

  After a 3×3 convolution of stride 1 it is the transposed convolution of a
  6×6 kernel and stride 2: output pixel (2i + a, 2j + b) is channel group
  2a + b of pixel (i, j). The weight gradient of `lax.conv_transpose` is 13
  times slower on XLA:CPU.

  Example:
    >>> depth_to_space(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, 2 * h, 2 * w, c // 4)
