"""Vision transformers (Dosovitskiy et al., 2021) in the sizes of DeiT.

Ti and S of Touvron et al. (2021): a class token, learned positions, LayerNorm
before attention and before the perceptron. The tensors are those of timm's
`VisionTransformer`, of the same names but for Flax's own endings.
"""

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.models import layers
from unlearn_jax.models.convolution import conv_general_dilated

_DEPTH = 12  # Of both sizes.
_NORMAL = nn.initializers.truncated_normal(0.02)


class _Part(layers.Block):
  """What the parts share."""

  @nn.nowrap
  def dense(self, features: int, name: str) -> nn.Dense:
    """A linear layer of tokens, as DeiT draws its weights."""
    return nn.Dense(features, dtype=self.dtype, kernel_init=_NORMAL, name=name)

  @nn.nowrap
  def layer_norm(self, x: jax.Array, name: str) -> jax.Array:
    """LayerNorm of `[..., D]`."""
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)(x)


class PatchEmbed(_Part, kw_only=True):
  """Patches as tokens.

  Attributes:
    features: D, the width of a token.
    size: the side of a patch, in pixels.
  """

  features: int
  size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, H, W, Cin] -> [B, H W / size², D]`, row by row."""
    side = (self.size, self.size)
    project = nn.Conv(
      self.features,
      side,
      side,
      padding='VALID',
      dtype=self.dtype,
      conv_general_dilated=conv_general_dilated,
      name='proj',
    )
    return project(x).reshape(x.shape[0], -1, self.features)


class Attention(_Part, kw_only=True):
  """Every token looks at all of them.

  Attributes:
    heads: that the width is divided among.
  """

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, N, D] -> [B, N, D]`."""
    b, n, width = x.shape
    qkv = self.dense(3 * width, 'qkv')(x)
    parts = qkv.reshape(b, n, 3, self.heads, width // self.heads)
    seen = jax.nn.dot_product_attention(*jnp.moveaxis(parts, 2, 0))
    return self.dense(width, 'proj')(seen.reshape(b, n, width))


class Perceptron(_Part):
  """Two layers, four times as wide between them."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, N, D] -> [B, N, D]`."""
    y = self.dense(4 * x.shape[-1], 'fc1')(x)
    return self.dense(x.shape[-1], 'fc2')(nn.gelu(y, approximate=False))


class Encoder(_Part, kw_only=True):
  """One block: attention, then a perceptron, each added to what came in.

  Attributes:
    heads: of the attention.
  """

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, N, D] -> [B, N, D]`."""
    attend = self.part(Attention, heads=self.heads, name='attn')
    x = x + attend(self.layer_norm(x, 'norm1'))
    return x + self.part(Perceptron, name='mlp')(self.layer_norm(x, 'norm2'))


class ViT(layers.Classifier, _Part, kw_only=True):
  """Twelve blocks over a class token and patches.

  Its `width` is D, that of a token.

  Attributes:
    heads: of each attention.
    patch_size: the side of a patch, in pixels.
  """

  heads: int
  patch_size: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Standardised images `[B, H, W, channels]` to logits `[B, C]`."""
    del train  # Neither dropout nor BatchNorm.
    x = self.part(
      PatchEmbed, features=self.width, size=self.patch_size, name='patch_embed'
    )(x)
    b, n, width = x.shape
    token = self.param('cls_token', _NORMAL, (1, 1, width))
    places = self.param('pos_embed', _NORMAL, (1, 1 + n, width))
    first = jnp.broadcast_to(token.astype(x.dtype), (b, 1, width))
    x = jnp.concatenate([first, x], 1) + places.astype(x.dtype)
    for i in range(_DEPTH):
      x = self.part(Encoder, heads=self.heads, name=f'blocks_{i}')(x)
    return self.classify(self.layer_norm(x, 'norm')[:, 0], 'head')


def from_pytorch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
  """The name and the axes in Flax of a tensor of timm's.

  Args:
    name: '/'-joined, such as `blocks/0/attn/qkv/weight`; anything may stand
      before it.
    array: as PyTorch has it: a linear layer's `[out, in]`, a convolution's
      `[out, in, height, width]`.

  Returns:
    Both as they came if they are not of PyTorch.

  Example:
    >>> name, array = from_pytorch('blocks/0/mlp/fc1/weight', np.ones((8, 2)))
    >>> name, array.shape
    ('blocks_0/mlp/fc1/kernel', (2, 8))
  """
  path = re.sub(r'(^|/)blocks/(\d+)/', r'\1blocks_\2/', name)
  layer, _, what = path.rpartition('/')
  if what != 'weight':
    return path, array
  if array.ndim < 2:
    return f'{layer}/scale', array
  # [out, in, ...] to [..., in, out].
  return f'{layer}/kernel', np.moveaxis(array, (1, 0), (-2, -1))
