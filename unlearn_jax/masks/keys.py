"""The order-preserving integer view of |x|, and random priorities.

The bits of a non-negative float order like its value. A key is these bits
plus one: NaN has key 0, zero 1, infinity the highest. Everything is done on
the bits, since arithmetic on floats would flush subnormal numbers to zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

FLOATS = ('bfloat16', 'float16', 'float32', 'float64')


def unsigned(dtype: jnp.dtype) -> jnp.dtype:
  """The unsigned integer that holds the bits of a float."""
  return jnp.dtype(f'uint{jnp.finfo(dtype).bits}')


def infinity(dtype: jnp.dtype) -> int:
  """The bits of infinity; what lies above them is NaN."""
  info = jnp.finfo(dtype)
  return (2**info.nexp - 1) << info.nmant


def widest(dtypes: list[jnp.dtype]) -> jnp.dtype:
  """The narrowest dtype that holds every number of these exactly."""
  if len(set(dtypes)) == 1:
    return jnp.dtype(dtypes[0])
  return functools.reduce(jnp.promote_types, dtypes, jnp.dtype('float32'))


def keys_of(x: jax.Array, wide: jnp.dtype) -> jax.Array:
  """Unsigned keys that order like |x|, of x's shape.

  Args:
    x: float array.
    wide: a float dtype that holds every number of `x`; numbers of several
      dtypes compare by their keys in the same one.

  Returns:
    Keys of the width of `wide`.
  """
  bits = jax.lax.bitcast_convert_type(x, unsigned(x.dtype))
  bits = bits & (2 ** (jnp.finfo(x.dtype).bits - 1) - 1)
  widened = _widen(bits, x.dtype, wide)
  return jnp.where(bits > infinity(x.dtype), 0, widened + 1)


def _widen(bits: jax.Array, own: jnp.dtype, wide: jnp.dtype) -> jax.Array:
  """The bits in `wide` of the same numbers; exact, except for NaN."""
  if own == wide:
    return bits
  source, target = jnp.finfo(own), jnp.finfo(wide)
  bits = bits.astype(unsigned(wide))
  shifted = bits << (target.nmant - source.nmant)
  if source.nexp == target.nexp:
    return shifted
  rebiased = shifted + ((target.maxexp - source.maxexp) << target.nmant)
  # A number without exponent bits is `mantissa · 2^lowest`. In `wide` that is
  # a normal number, so this multiplication rounds and flushes nothing.
  lowest = 2.0 ** int(source.minexp - source.nmant)
  tiny = bits.astype(wide) * jnp.asarray(lowest, wide)
  tiny = jax.lax.bitcast_convert_type(tiny, unsigned(wide))
  top = jnp.asarray(infinity(wide), bits.dtype)
  wider = jnp.where(bits >= infinity(own), top, rebiased)
  return jnp.where(bits < (1 << source.nmant), tiny, wider)


def shuffled(index: jax.Array, words: jax.Array) -> jax.Array:
  """A pseudo-random priority for every index, computed where it is used.

  A keyed permutation of the 32-bit numbers: the index goes twice through
  Wellons' `triple32` (github.com/skeeto/hash-prospector, the 32-bit mixer
  with the lowest bias known), with words of the key added before, between and
  after. Different indices so have different priorities. Nothing of it has to
  be stored, and each device makes its own part.

  Args:
    index: uint32, of any shape.
    words: uint32 `[3]`, the key.

  Returns:
    uint32 of the shape of `index`.
  """
  return _mix(_mix(index ^ words[0]) + words[1]) ^ words[2]


def _mix(x: jax.Array) -> jax.Array:
  for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x ^ (x >> 14)
