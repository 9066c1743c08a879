"""The order-preserving integer view of |x|.

The bits of a non-negative float order like its value. A key is these bits
plus one: NaN has key 0, zero 1, infinity the highest. Everything is done on
the bits, since arithmetic on floats would flush subnormal numbers to zero.

Leaves of several dtypes are compared in the widest one, but their keys are
never widened: the bound that they are compared with is narrowed instead.
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


def keys_of(x: jax.Array) -> jax.Array:
  """Unsigned keys that order like |x|, of x's shape and width."""
  bits = jax.lax.bitcast_convert_type(x, unsigned(x.dtype))
  bits = bits & (2 ** (jnp.finfo(x.dtype).bits - 1) - 1)
  return jnp.where(bits > infinity(x.dtype), 0, bits + 1)


def widen(keys: jax.Array, narrow: jnp.dtype, wide: jnp.dtype) -> jax.Array:
  """The keys in `wide` of the same numbers; exact.

  Args:
    keys: unsigned keys of `narrow` numbers, of any shape.
    narrow: a float dtype.
    wide: a float dtype that holds every number of `narrow`.

  Returns:
    Unsigned keys of `wide`, of the same shape.
  """
  if narrow == wide:
    return keys
  source, target = jnp.finfo(narrow), jnp.finfo(wide)
  shift = target.nmant - source.nmant
  present = keys > 0
  keys = keys.astype(unsigned(wide))
  bits = keys - present.astype(keys.dtype)
  if source.nexp == target.nexp:
    return (bits << shift) + present.astype(keys.dtype)
  big = (bits << shift) + _bias(narrow, wide)
  # A number without exponent bits is `mantissa · 2^lowest`. In `wide` that is
  # a normal number, so this multiplication rounds and flushes nothing.
  tiny = bits.astype(wide) * jnp.asarray(2.0 ** _lowest(narrow), wide)
  tiny = jax.lax.bitcast_convert_type(tiny, unsigned(wide))
  top = jnp.asarray(infinity(wide), bits.dtype)
  wider = jnp.where(bits >= infinity(narrow), top, big)
  wider = jnp.where(bits < (1 << source.nmant), tiny, wider)
  return wider + present.astype(keys.dtype)


def narrow_bound(
  bounds: jax.Array, wide: jnp.dtype, narrow: jnp.dtype
) -> jax.Array:
  """For each key in `wide`, the lowest key in `narrow` that reaches it.

  So that `widen(key) >= bound` exactly where `key >= narrow_bound(bound)`.

  Args:
    bounds: unsigned, of any shape and of at least the width of `wide`: keys
      of `wide`, or one more than the highest.
    wide: a float dtype.
    narrow: a float dtype whose numbers `wide` holds.

  Returns:
    Keys of `narrow` in its unsigned dtype, or one more than the highest.
  """
  small = unsigned(narrow)
  if narrow == wide:
    return bounds.astype(small)
  source, target = jnp.finfo(narrow), jnp.finfo(wide)
  shift = target.nmant - source.nmant
  present = bounds > 0
  bits = bounds - present.astype(bounds.dtype)
  below = (1 << shift) - 1
  if source.nexp == target.nexp:
    up = (bits + below) >> shift
  else:
    bias, top = _bias(narrow, wide), infinity(narrow)
    normal = jnp.minimum((bits - bias + below) >> shift, top)
    value = jax.lax.bitcast_convert_type(bits.astype(unsigned(wide)), wide)
    # Exact unless `value` is subnormal: then it counts as zero, and one is up.
    steps = jnp.ceil(value * jnp.asarray(2.0 ** -_lowest(narrow), wide))
    first_normal = bias + (1 << target.nmant)
    steps = jnp.where(bits < first_normal, steps, 0).astype(bits.dtype)
    tiny = jnp.maximum(steps, (bits > 0).astype(bits.dtype))
    up = jnp.where(bits < first_normal, tiny, normal)
    up = jnp.where(bits > infinity(wide), top + 1, up)
  return up.astype(small) + present.astype(small)


def _bias(narrow: jnp.dtype, wide: jnp.dtype) -> int:
  """What rebiasing the exponent adds to the bits in `wide`."""
  source, target = jnp.finfo(narrow), jnp.finfo(wide)
  return (target.maxexp - source.maxexp) << target.nmant


def _lowest(dtype: jnp.dtype) -> int:
  """log2 of the smallest subnormal number."""
  info = jnp.finfo(dtype)
  return int(info.minexp - info.nmant)


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
