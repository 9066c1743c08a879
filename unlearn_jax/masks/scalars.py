"""Masks of scalars: Top-K, Random-k and Random-TopK, by one selection."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Key, Mask, Params, require, tensor_paths
from unlearn_jax.masks import device, host, keys, tensors


def topk_mask(
  params: Params,
  grads: Params,
  k: int | float | jax.Array,
  *,
  granularity: str = 'scalar',
  scope: str = 'global',
) -> Mask:
  """Chooses the k most sensitive parameters of the whole tree, exactly.

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

  Where NumPy can read the gradients, it selects (`masks/host.py`): two passes
  over them, in threads. Otherwise, and inside `jax.jit`, the threshold is
  found digit by digit of |g| (`masks/device.py`): no leaf is concatenated,
  sorted, gathered or copied, and between devices only counts travel. Both
  take 1 byte a scalar for the mask and little more.

  Inside `jax.jit`, `k` may be static, or a traced integer, which is clipped to
  what is allowed; another `k` is then no other program.

  Args:
    params: pytree of N < 2³² - 1 scalars in float arrays; only its structure,
      shapes and shardings are read.
    grads: pytree like `params`, of bfloat16, float16, float32 or float64; the
      sign does not matter. NumPy's float64 becomes float32 unless
      `jax_enable_x64` is set.
    k: how many to choose: an int in `[1, N]`, or a float in `(0, 1]`, the
      share of N (rounded, at least one). With `scope='leaf'` an int is taken
      of each leaf, at most its size, and a float is the share of each.
    granularity: 'scalar', or 'leaf': N and k count tensors, ranked by their
      gradient's L2 norm, and a chosen tensor is true everywhere.
    scope: 'global', or 'leaf': each leaf has its own k and its own ranking.

  Returns:
    Boolean tree like `params`, exactly k (scalars or tensors) true, with the
    shardings of the gradients.

  Raises:
    ValueError: for `k`, `granularity` or `scope` out of range or not fitting
      each other, a tree without scalars or with too many, gradients of
      another dtype, and NaN (see above).
    AssertionError: `grads` differs from `params` in structure or shapes.

  Example:
    >>> grads = {'a': jnp.array([0.1, -3.0]), 'b': jnp.array([2.0, 0.0])}
    >>> jax.tree.map(lambda m: m.tolist(), topk_mask(grads, grads, k=2))
    {'a': [False, True], 'b': [True, False]}
  """
  known = granularity in ('scalar', 'leaf')
  require('granularity', granularity, known, "'scalar' or 'leaf'")
  require('scope', scope, scope in ('global', 'leaf'), "'global' or 'leaf'")
  holds = scope == 'global' or granularity == 'scalar'
  require('scope', scope, holds, "'global' with granularity='leaf'")
  chex.assert_trees_all_equal_structs(params, grads)
  chex.assert_trees_all_equal_shapes(params, grads)
  paths, treedef = tensor_paths(grads), jax.tree.structure(grads)
  leaves = _float_leaves(params, grads, paths)
  size = tensors.size_of(params)
  if granularity == 'leaf':
    number = tensors.number('k', k, len(leaves))
    chosen = tensors.loudest(leaves, jnp.uint32(number))
    _check_nan(leaves, paths)
    masks = [jnp.full(x.shape, m) for x, m in zip(leaves, chosen)]
  elif scope == 'leaf':
    budgets = tensors.budgets(k, tensors.sizes_of(params))
    masks = _topk(leaves, budgets, paths)
  else:
    masks = _topk(leaves, [tensors.number('k', k, size)], paths)
  return jax.tree.unflatten(treedef, masks)


def _float_leaves(
  params: Params, grads: Params, paths: tuple[str, ...]
) -> list[Any]:
  """The gradients as arrays of a float dtype, where `params` are."""
  leaves = []
  for path, x, like in zip(
    paths, jax.tree.leaves(grads), jax.tree.leaves(params)
  ):
    dtype = jnp.result_type(x)
    if dtype.name not in keys.FLOATS:
      raise ValueError(
        f'grads[{path!r}] has dtype {dtype.name}; allowed are '
        f'{", ".join(keys.FLOATS)}.'
      )
    if not isinstance(x, jax.Array):
      x = np.asarray(x, dtype)
    if _is_spread(like) and not isinstance(x, jax.core.Tracer):
      if not _is_spread(x):
        x = jax.device_put(jnp.asarray(x), like.sharding)
    leaves.append(x)
  return leaves


def _lies(x: Any) -> bool:
  """Whether it is an array of JAX with a value, which lies somewhere."""
  return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)


def _is_spread(x: Any) -> bool:
  return _lies(x) and len(x.sharding.device_set) > 1


def _topk(
  leaves: list[Any], budgets: list[Any], paths: tuple[str, ...]
) -> list[jax.Array]:
  """Masks of the Top-K of all leaves; with a budget each, of each of them."""
  traced = any(isinstance(k, jax.core.Tracer) for k in budgets)
  if not traced and all(map(host.is_host, leaves)):
    return _topk_on_host(leaves, budgets, paths)
  k = jnp.stack([jnp.uint32(k) for k in budgets])
  shardings = device.shardings_of(leaves)
  masks = _topk_on_device(leaves, k, shardings=shardings)
  _check_nan(leaves, paths)
  return masks


def _topk_on_host(
  leaves: list[Any], budgets: list[int], paths: tuple[str, ...]
) -> list[jax.Array]:
  parts = [leaves] if len(budgets) == 1 else [[x] for x in leaves]
  masks: list[jax.Array] = []
  for part, k in zip(parts, budgets):
    try:
      found = host.select(part, k)
    except host.NaNError:
      _check_nan(leaves, paths)
      raise
    masks.extend(host.adopt(m, x) for m, x in zip(found, part))
  return masks


@functools.partial(jax.jit, static_argnames='shardings')
def _topk_on_device(
  leaves: list[jax.Array], k: jax.Array, *, shardings: device.Shardings
) -> list[jax.Array]:
  wide = keys.widest([x.dtype for x in leaves])
  return device.select(
    lambda x, places, extra: keys.keys_of(x, wide),
    None,
    leaves,
    [x.shape for x in leaves],
    k,
    bits=(keys.infinity(wide) + 1).bit_length(),
    shardings=shardings,
  )


def _check_nan(leaves: list[Any], paths: tuple[str, ...]) -> None:
  """Raises `ValueError` for the first leaf with NaN, outside of `jax.jit`."""
  found = _has_nan(leaves)
  if isinstance(found, jax.core.Tracer):
    return
  for path, has_nan in zip(paths, np.asarray(found)):
    if has_nan:
      raise ValueError(f'grads[{path!r}] contains NaN; allowed are numbers.')


@jax.jit
def _has_nan(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([jnp.any(jnp.isnan(x)) for x in leaves])


def randomk_mask(key: Key, params: Params, k: int | float) -> Mask:
  """Chooses k parameters uniformly, without replacement, over the whole tree.

  The Random-k of Zuo et al., §III-B. The key is stretched to a pseudo-random
  permutation of the 32-bit numbers (`masks.keys.shuffled`); it gives each
  scalar a priority by its place in the tree, and the k highest win. They are
  computed where they are compared, so that the mask is all the memory that is
  taken. The mask is the same inside and outside of `jax.jit`, on one device
  and on many.

  Inside `jax.jit`, `k` may be static or a traced integer.

  Args:
    key: typed PRNG key.
    params: pytree of N < 2³² - 1 scalars; only its shapes and shardings are
      read.
    k: how many to choose: an int in `[1, N]`, or a float in `(0, 1]`, the
      share of N (rounded, at least one).

  Returns:
    Boolean tree like `params`, exactly k scalars true.

  Raises:
    ValueError: for `k` out of range, and a tree without scalars or with too
      many.

  Example:
    >>> from unlearn_jax.masks import count_scalars
    >>> params = {'a': jnp.zeros((4, 5)), 'b': jnp.zeros(20)}
    >>> count_scalars(randomk_mask(jax.random.key(0), params, 0.1))
    4
  """
  number = tensors.number('k', k, tensors.size_of(params))
  return _random(key, params, number, None, 0)


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
    params: pytree of N < 2³² - 1 scalars; only its shapes and shardings are
      read.
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
    >>> from unlearn_jax.masks import count_scalars
    >>> grads = {'a': jnp.zeros(50), 'b': jnp.arange(50.0)}
    >>> mask = random_topk_mask(jax.random.key(0), grads, grads, 0.1, 2)
    >>> count_scalars(mask), mask['b'][-2:].tolist()
    (10, [True, True])
  """
  size = tensors.size_of(params)
  number = tensors.number('k_random', k_random, size)
  top_number = tensors.number('k_top', k_top, size)
  if isinstance(number, int) and isinstance(top_number, int):
    if top_number > number:
      raise ValueError(
        f'k_top is {k_top!r}, {top_number} scalars; allowed are at most '
        f'k_random, {number} scalars.'
      )
  else:
    number = jnp.maximum(jnp.uint32(number), jnp.uint32(top_number))
  top = topk_mask(params, grads, top_number)
  return _random(key, params, number, top, top_number)


def _random(
  key: Key, params: Params, number: Any, top: Mask | None, top_number: Any
) -> Mask:
  """The mask `top` and so many others by lot that it has `number` scalars."""
  leaves, treedef = jax.tree.flatten(params)
  tops = None if top is None else jax.tree.leaves(top)
  masks = _random_on_device(
    key,
    tops,
    jnp.uint32(number),
    jnp.uint32(top_number),
    shardings=device.shardings_of(leaves if tops is None else tops),
    shapes=tuple(jnp.shape(leaf) for leaf in leaves),
  )
  # Where the parameters are: masks are made from no array that would tell.
  for i, (mask, like) in enumerate(zip(masks, leaves)):
    if _lies(mask) and _lies(like) and like.committed:
      masks[i] = jax.device_put(mask, like.sharding)
  return jax.tree.unflatten(treedef, masks)


@functools.partial(jax.jit, static_argnames=('shardings', 'shapes'))
def _random_on_device(
  key: Key,
  tops: list[jax.Array] | None,
  number: jax.Array,
  top_number: jax.Array,
  *,
  shardings: device.Shardings,
  shapes: tuple[tuple[int, ...], ...],
) -> list[jax.Array]:
  # None are left to draw where all are the Top-K: one is, and not taken.
  wanted = number - top_number
  masks = device.select(
    _priority,
    jax.random.bits(key, (3,), jnp.uint32),
    [None] * len(shapes) if tops is None else tops,
    shapes,
    jnp.maximum(wanted, 1)[None],
    bits=32,
    shardings=shardings,
  )
  if tops is None:
    return masks
  return [top | (m & (wanted > 0)) for top, m in zip(tops, masks)]


def _priority(
  top: jax.Array | None, places: jax.Array, words: jax.Array
) -> jax.Array:
  """Random uint32; 0 for what is chosen already."""
  drawn = jnp.maximum(keys.shuffled(places, words), 1)
  return drawn if top is None else jnp.where(top, 0, drawn)
