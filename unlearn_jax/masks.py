"""Choosing which parameters to change: boolean trees shaped like `params`.

Top-K, Random-k and Random-TopK share one selection. Every scalar gets an
unsigned integer key; the k highest keys of the whole tree win, and among equal
keys the earlier scalar does ("earlier" is the order of `jax.tree.leaves`, then
row-major). The selection consists of elementwise operations and sums only, so
that sharded parameters stay where they are.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Key, Mask, Params, tensor_paths

# One past the largest number of scalars, and one past the highest key: both
# are counted in uint32.
_LIMIT = 2**32 - 1
# Leaves below this many scalars are searched as one array. Each array that the
# search reads is compiled on its own, and most leaves of a network are tiny.
_SMALL = 2**16
# How many elements are counted at a time on a CPU.
_BLOCK = 1024
_FLOATS = ('bfloat16', 'float16', 'float32', 'float64')


def topk_mask(
  params: Params,
  grads: Params,
  k: int | float,
  *,
  granularity: str = 'scalar',
) -> Mask:
  """Chooses the k most sensitive parameters of the whole tree.

  With s = |∂F/∂ω| (Zuo et al., Eq. 5 and 6), a parameter is chosen if fewer
  than k parameters have a larger s, or the same s and an earlier place.

  | gradients | what happens |
  |---|---|
  | ties, all zeros included | the earlier scalar wins, exactly k are true |
  | 0 and -0 | equal |
  | subnormal numbers | ordered by their value, never flushed to 0 |
  | infinite | ranked highest |
  | NaN, outside `jax.jit` | `ValueError` that names the tensor |
  | NaN, inside `jax.jit` | ranked below every number |
  | several dtypes in one tree | compared by value, exactly |

  Inside `jax.jit`, `k` and `granularity` have to be static.

  Args:
    params: pytree of N < 2³² - 1 scalars in float arrays; only its structure
      and shapes are read.
    grads: pytree like `params`, of bfloat16, float16, float32 or float64; the
      sign does not matter. NumPy's float64 becomes float32 unless
      `jax_enable_x64` is set.
    k: how many to choose: an int in `[1, N]`, or a float in `(0, 1]`, the
      share of N (rounded, at least one).
    granularity: 'scalar', or 'leaf': N and k count tensors, ranked by their
      gradient's L2 norm, and a chosen tensor is true everywhere.

  Returns:
    Boolean tree like `params`, exactly k (scalars or tensors) true.

  Raises:
    ValueError: for `k` or `granularity` out of range, a tree without scalars
      or with too many, gradients of another dtype, and NaN (see above).
    AssertionError: `grads` differs from `params` in structure or shapes.

  Example:
    >>> grads = {'a': jnp.array([0.1, -3.0]), 'b': jnp.array([2.0, 0.0])}
    >>> jax.tree.map(lambda m: m.tolist(), topk_mask(grads, grads, k=2))
    {'a': [False, True], 'b': [True, False]}
  """
  if granularity not in ('scalar', 'leaf'):
    raise ValueError(
      f"granularity is {granularity!r}; allowed are 'scalar' and 'leaf'."
    )
  chex.assert_trees_all_equal_structs(params, grads)
  chex.assert_trees_all_equal_shapes(params, grads)
  for path, grad in zip(tensor_paths(grads), jax.tree.leaves(grads)):
    if jnp.result_type(grad).name not in _FLOATS:
      raise ValueError(
        f'grads[{path!r}] has dtype {jnp.result_type(grad).name}; allowed are '
        f'{", ".join(_FLOATS)}.'
      )
  tensors = jax.tree.map(jnp.asarray, grads)
  size = _size(tensors)
  number = _number(
    'k', k, size if granularity == 'scalar' else len(jax.tree.leaves(grads))
  )
  keys, has_nan = _sensitivity_keys(tensors, granularity=granularity)
  if not isinstance(has_nan, jax.core.Tracer) and np.any(has_nan):
    path = tensor_paths(grads)[int(np.argmax(has_nan))]
    raise ValueError(f'grads[{path!r}] contains NaN; allowed are numbers.')
  mask = _select(keys, np.uint32(number))
  if granularity == 'leaf':
    mask = jax.tree.map(lambda m, x: jnp.full(x.shape, m), mask, tensors)
  return mask


def randomk_mask(key: Key, params: Params, k: int | float) -> Mask:
  """Chooses k parameters uniformly, without replacement, over the whole tree.

  The Random-k of Zuo et al., §III-B. Each scalar draws 31 random bits and the
  k highest win. Two scalars that draw the same bits at the boundary (one case
  in 2³¹ / N, about 0.5 % of the masks at 11 million scalars) are told apart by
  their place, which favours one scalar of k: no bias that could be measured.

  Inside `jax.jit`, `k` has to be static.

  Args:
    key: typed PRNG key.
    params: pytree of N < 2³² - 1 scalars; only its shapes are read.
    k: how many to choose: an int in `[1, N]`, or a float in `(0, 1]`, the
      share of N (rounded, at least one).

  Returns:
    Boolean tree like `params`, exactly k scalars true.

  Raises:
    ValueError: for `k` out of range, and a tree without scalars or with too
      many.

  Example:
    >>> params = {'a': jnp.zeros((4, 5)), 'b': jnp.zeros(20)}
    >>> count_scalars(randomk_mask(jax.random.key(0), params, 0.1))
    4
  """
  number = _number('k', k, _size(params))
  return _select(_priorities(key, params), np.uint32(number))


def random_topk_mask(
  key: Key,
  params: Params,
  grads: Params,
  k_random: int | float,
  k_top: int | float,
) -> Mask:
  """Random-k's mask in which K of the chosen have made way for the Top-K.

  The Random-TopK of Zuo et al., §IV-C4. Who leaves is uniform among the
  randomly chosen that are not in the Top-K: with the same key, everything but
  the Top-K is also in `randomk_mask(key, params, k_random)`.

  Args:
    key: typed PRNG key.
    params: pytree of N < 2³² - 1 scalars; only its shapes are read.
    grads: gradients, see `topk_mask`.
    k_random: how many to choose in all, a number or a share as in
      `randomk_mask`.
    k_top: how many of them are the most sensitive ones, a number or a share
      of N; at most `k_random`.

  Returns:
    Boolean tree like `params` with Random-k's count that contains the Top-K.

  Raises:
    ValueError: `k_top` is more than `k_random`, or as in `topk_mask`.
    AssertionError: `grads` differs from `params` in structure or shapes.

  Example:
    >>> grads = {'a': jnp.zeros(50), 'b': jnp.arange(50.0)}
    >>> mask = random_topk_mask(jax.random.key(0), grads, grads, 0.1, 2)
    >>> count_scalars(mask), mask['b'][-2:].tolist()
    (10, [True, True])
  """
  size = _size(params)
  number = _number('k_random', k_random, size)
  top_number = _number('k_top', k_top, size)
  if top_number > number:
    raise ValueError(
      f'k_top is {k_top!r}, {top_number} scalars; allowed are at most '
      f'k_random, {number} scalars.'
    )
  top = topk_mask(params, grads, top_number)
  # Above every priority that can be drawn: the Top-K are in for certain, and
  # the order of all others stays as Random-k has it.
  certain = jnp.uint32(2**31)
  keys = jax.tree.map(
    lambda chosen, priority: jnp.where(chosen, certain, priority),
    top,
    _priorities(key, params),
  )
  return _select(keys, np.uint32(number))


def last_k_mask(params: Params, k: int, order: tuple[str, ...]) -> Mask:
  """Chooses the last k tensors in definition order, whole.

  What EU-K and CF-K train (Zuo et al., §IV-A). Weights, biases, and the scale
  and bias of a BatchNorm count one each, as in the paper's Table I.

  Args:
    params: pytree of arrays.
    k: how many tensors to choose, an int in `[1, number of tensors]`.
    order: the paths of all tensors in definition order, as
      `base.tensor_paths` writes them. It cannot be read off `params`, since
      JAX sorts dictionary keys.

  Returns:
    Boolean tree like `params`, true in the last k tensors of `order`.

  Raises:
    ValueError: `k` is out of range, or `order` does not name every tensor of
      `params` exactly once.

  Example:
    >>> params = {'bias': jnp.zeros(2), 'kernel': jnp.zeros((1, 2))}
    >>> mask = last_k_mask(params, 1, order=('kernel', 'bias'))
    >>> jax.tree.map(lambda m: m.tolist(), mask)
    {'bias': [True, True], 'kernel': [[False, False]]}
  """
  paths = tensor_paths(params)
  if isinstance(k, bool | np.bool_) or not isinstance(k, int | np.integer):
    raise ValueError(f'k is {k!r}; allowed are whole numbers of tensors.')
  if not 1 <= k <= len(paths):
    raise ValueError(f'k is {k}; allowed are 1 to {len(paths)} tensors.')
  for path in paths:
    if path not in order:
      raise ValueError(f'order lacks {path!r}, which is a tensor of params.')
  for place, path in enumerate(order):
    if path not in paths:
      raise ValueError(f'order has {path!r}, which is no tensor of params.')
    if path in order[:place]:
      raise ValueError(f'order has {path!r} more than once.')
  chosen = frozenset(order[-k:])
  leaves, treedef = jax.tree.flatten(params)
  return jax.tree.unflatten(
    treedef,
    [jnp.full(jnp.shape(x), path in chosen) for path, x in zip(paths, leaves)],
  )


def count_scalars(mask: Mask) -> int:
  """How many scalars are chosen.

  Args:
    mask: boolean tree.

  Returns:
    The number of true scalars.

  Example:
    >>> count_scalars({'a': jnp.array([True, False]), 'b': jnp.array(True)})
    2
  """
  return sum(int(number) for number in _counts(mask))


def count_tensors(mask: Mask) -> int:
  """How many tensors have at least one chosen scalar.

  Args:
    mask: boolean tree.

  Returns:
    The number of leaves with a true scalar.

  Example:
    >>> count_tensors({'a': jnp.array([True, True]), 'b': jnp.array(False)})
    1
  """
  return sum(number > 0 for number in _counts(mask))


def _counts(mask: Mask) -> list[int]:
  """The number of true scalars in each leaf."""
  chex.assert_type(jax.tree.leaves(mask), bool)
  return [int(jnp.sum(x, dtype=jnp.uint32)) for x in jax.tree.leaves(mask)]


def _size(tree: Any) -> int:
  """N, the number of scalars in the tree."""
  size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))
  if not 1 <= size < _LIMIT:
    raise ValueError(
      f'params has {size} scalars; allowed are 1 to {_LIMIT - 1}.'
    )
  return size


def _number(name: str, k: int | float, size: int) -> int:
  """`k` as a number in [1, size], be it a number or a share."""
  if isinstance(k, int | np.integer) and not isinstance(k, bool):
    if 1 <= k <= size:
      return int(k)
  elif isinstance(k, float | np.floating) and 0 < k <= 1:
    return max(1, round(float(k) * size))
  raise ValueError(
    f'{name} is {k!r}; allowed are an int from 1 to {size} (how many) and a '
    'float in (0, 1] (the share).'
  )


def _priorities(key: Key, params: Params) -> Any:
  """Random uint32 below 2³¹ for every scalar."""
  leaves, treedef = jax.tree.flatten(params)
  shapes = tuple(jnp.shape(leaf) for leaf in leaves)
  return jax.tree.unflatten(treedef, _draw(key, shapes))


@functools.partial(jax.jit, static_argnames='shapes')
def _draw(key: Key, shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
  """31 random bits for every element of arrays of these shapes."""
  sizes = [math.prod(shape) for shape in shapes]
  keys = jax.random.split(key, len(shapes) + 1)
  # One draw for all small leaves: each draw is compiled on its own.
  joint = sum(size for size in sizes if size < _SMALL)
  pool = jax.random.bits(keys[-1], (joint,), jnp.uint32) >> 1
  draws, start = [], 0
  for i, (shape, size) in enumerate(zip(shapes, sizes)):
    if size < _SMALL:
      draws.append(pool[start : start + size].reshape(shape))
      start += size
    else:
      draws.append(jax.random.bits(keys[i], shape, jnp.uint32) >> 1)
  return draws


@functools.partial(jax.jit, static_argnames='granularity')
def _sensitivity_keys(
  grads: Params, *, granularity: str
) -> tuple[Any, jax.Array]:
  """Keys that order like |g|, and for each leaf whether it contains NaN.

  With granularity 'leaf' there is one key a tensor, a scalar array.
  """
  leaves, treedef = jax.tree.flatten(grads)
  has_nan = jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in leaves])
  # Keys are compared across leaves, so all of them are made for the widest.
  widest = functools.reduce(jnp.promote_types, [x.dtype for x in leaves])
  widest = jnp.promote_types(widest, jnp.float32)
  if granularity == 'leaf':
    leaves = [_norm(leaf.astype(widest)) for leaf in leaves]
  keys = [_sortable(leaf, widest) for leaf in leaves]
  return jax.tree.unflatten(treedef, keys), has_nan


def _sortable(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Unsigned keys that order like |x|; NaN has key 0, numbers 1 and above.

  The bits of a non-negative float order like its value. Everything is done on
  the bits: arithmetic on floats would flush subnormal numbers to zero.
  """
  bits = jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))
  bits = bits & (2 ** (jnp.finfo(x.dtype).bits - 1) - 1)
  infinity = _infinity(x.dtype)
  magnitude = _widen(bits, x.dtype, dtype)
  return jnp.where(bits > infinity, 0, magnitude + 1)


def _widen(bits: jax.Array, narrow: jnp.dtype, wide: jnp.dtype) -> jax.Array:
  """The bits, in `wide`, of the non-negative `narrow` number with these bits.

  Exact, since `wide` has at least as many bits for exponent and mantissa.
  """
  if narrow == wide:
    return bits
  source, target = jnp.finfo(narrow), jnp.finfo(wide)
  shift = target.nmant - source.nmant
  bits = bits.astype(_unsigned(wide))
  if source.nexp == target.nexp:
    return bits << shift
  bias = (target.maxexp - source.maxexp) << target.nmant
  normal = (bits << shift) + bias
  # A number without exponent bits is `mantissa · 2^lowest`. In `wide` that is
  # a normal number, so this multiplication rounds and flushes nothing.
  lowest = source.minexp - source.nmant
  tiny = bits.astype(wide) * jnp.asarray(2.0**lowest, wide)
  tiny = jax.lax.bitcast_convert_type(tiny, _unsigned(wide))
  infinite = jnp.asarray(_infinity(wide), bits.dtype)
  big = jnp.where(bits >= _infinity(narrow), infinite, normal)
  return jnp.where(bits < (1 << source.nmant), tiny, big)


def _unsigned(dtype: jnp.dtype) -> jnp.dtype:
  return jnp.dtype(f'uint{jnp.finfo(dtype).bits}')


def _infinity(dtype: jnp.dtype) -> int:
  """The bits of infinity; what lies above them is NaN."""
  info = jnp.finfo(dtype)
  return (2**info.nexp - 1) << info.nmant


def _norm(x: jax.Array) -> jax.Array:
  """L2 norm, scaled by the peak so that no square over- or underflows."""
  peak = jnp.max(jnp.abs(x), initial=0)
  scale = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
  norm = scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))
  return jnp.where(jnp.isfinite(peak), norm, peak)


@jax.jit
def _select(keys: Any, k: jax.Array) -> Mask:
  """True at the k highest keys; among equal ones, at the earlier.

  Finds the highest threshold that at least k keys reach. If more than k do,
  some keys equal to it have to go: those whose index in the whole tree is not
  below a cut, which is found in the same way. k is traced, so that another k
  costs no compilation.

  Args:
    keys: tree of unsigned integers, none the largest of its dtype.
    k: uint32, from 1 to the number of keys.

  Returns:
    Boolean tree.
  """
  leaves, treedef = jax.tree.flatten(keys)
  sizes = [leaf.size for leaf in leaves]
  offsets = [sum(sizes[:i]) for i in range(len(sizes))]
  total = jnp.uint32(sum(sizes))
  dtype = leaves[0].dtype

  pieces = _join_small(leaves, leaves)
  threshold, reached = _search(
    lambda bounds: jnp.asarray(
      sum(_count(jnp.greater_equal, x, bounds) for x in pieces)
    ),
    k,
    enough=jnp.zeros((), dtype),
    at_enough=total,
    short=jnp.asarray(jnp.iinfo(dtype).max, dtype),
  )

  def chosen(place, cut):
    x, index = place
    return (x > threshold) | ((x == threshold) & (index < cut))

  def places():
    return [(x, _indices(x.shape, at)) for x, at in zip(leaves, offsets)]

  def find_cut():
    indices = [index for _, index in places()]
    pairs = list(zip(pieces, _join_small(indices, leaves)))
    cut, _ = _search(
      lambda cuts: sum(_count(chosen, pair, cuts) for pair in pairs),
      k,
      enough=total,
      at_enough=reached,
      short=jnp.uint32(0),
    )
    return cut

  cut = jax.lax.cond(reached > k, find_cut, lambda: total)
  masks = [chosen(place, cut) for place in places()]
  return jax.tree.unflatten(treedef, masks)


def _search(
  count: Callable[[jax.Array], jax.Array],
  k: jax.Array,
  enough: jax.Array,
  at_enough: jax.Array,
  short: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Quarters an interval until the last bound that counts k or more is known.

  Args:
    count: from three bounds `[3]` to their counts, uint32 `[3]`; monotone
      between `enough` and `short`.
    k: uint32.
    enough: unsigned integer that counts at least k.
    at_enough: uint32, what `enough` counts.
    short: unsigned integer of the same dtype that counts less than k.

  Returns:
    The bound next to the first that falls short, or one before it that counts
    exactly k (which settles the matter), and what it counts.
  """

  def distance(state):
    enough, _, short = state
    return jnp.maximum(enough, short) - jnp.minimum(enough, short)

  def unsettled(state):
    return (state[1] != k) & (distance(state) > 1)

  def quarter(state):
    enough, at_enough, short = state
    parts = jnp.arange(1, 4, dtype=enough.dtype)
    # distance · parts / 4, rounded down, without overflow.
    far = distance(state)
    steps = (far >> 2) * parts + (((far & 3) * parts) >> 2)
    bounds = jnp.where(enough < short, enough + steps, enough - steps)
    counts = count(bounds)
    bounds = jnp.concatenate([enough[None], bounds, short[None]])
    last = jnp.sum(counts >= k)
    counts = jnp.concatenate([at_enough[None], counts])
    return bounds[last], counts[last], bounds[last + 1]

  enough, at_enough, _ = jax.lax.while_loop(
    unsettled, quarter, (enough, at_enough, short)
  )
  return enough, at_enough


def _count(
  predicate: Callable[[Any, jax.Array], jax.Array],
  arrays: Any,
  bounds: jax.Array,
) -> jax.Array:
  """How often the predicate holds, for each bound.

  Args:
    predicate: `(arrays, bound) -> truth`, elementwise.
    arrays: one array or a tree of them, all of one shape.
    bounds: `[B]`.

  Returns:
    uint32 `[B]`.
  """
  size = jax.tree.leaves(arrays)[0].size

  def plain(arrays, bounds):
    truths = [predicate(arrays, bound) for bound in bounds]
    return jnp.stack([jnp.sum(truth, dtype=jnp.uint32) for truth in truths])

  # XLA turns a sum on the CPU into a pass that writes one number for every
  # element and a pass that adds them up. Adding block to block is several
  # times as fast, and the blocks stay in the cache.
  def by_blocks(arrays, bounds):
    flat = jax.tree.map(lambda x: x.reshape(-1), arrays)
    blocks = size // _BLOCK

    def add(i, counts):
      block = jax.tree.map(
        lambda x: jax.lax.dynamic_slice(x, (i * _BLOCK,), (_BLOCK,)), flat
      )
      return counts + predicate(block, bounds[:, None]).astype(jnp.uint32)

    zeros = jnp.zeros((len(bounds), _BLOCK), jnp.uint32)
    counts = jax.lax.fori_loop(0, blocks, add, zeros)
    rest = jax.tree.map(lambda x: x[blocks * _BLOCK :], flat)
    return jnp.sum(counts, axis=1, dtype=jnp.uint32) + plain(rest, bounds)

  # Blocks are addressed by int32.
  in_range = _BLOCK <= size < 2**31
  if not in_range or any(map(_is_sharded, jax.tree.leaves(arrays))):
    return plain(arrays, bounds)
  return jax.lax.platform_dependent(
    arrays, bounds, cpu=by_blocks, default=plain
  )


def _indices(shape: tuple[int, ...], start: int) -> jax.Array:
  """Row-major indices from `start` on, without a reshape of the array."""
  index = jnp.full(shape, start, jnp.uint32)
  for axis in range(len(shape)):
    stride = np.uint32(math.prod(shape[axis + 1 :]))
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
  return index


def _join_small(
  arrays: list[jax.Array], like: list[jax.Array]
) -> list[jax.Array]:
  """The large arrays, and one array of all elements of the small ones.

  Which is which is read off `like`, arrays of the same shapes.
  """
  large, small = [], []
  for array, x in zip(arrays, like):
    if x.size >= _SMALL or _is_sharded(x):
      large.append(array)
    else:
      small.append(array.reshape(-1))
  return large + ([jnp.concatenate(small)] if small else [])


def _is_sharded(x: jax.Array) -> bool:
  """Whether the sharding is part of the type, and so may forbid a reshape."""
  return any(jax.typeof(x).sharding.spec)
