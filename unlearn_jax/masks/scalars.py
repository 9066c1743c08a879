"""Masks of scalars: Top-K, Random-k and Random-TopK, by one selection."""

import functools
import math
from typing import Any, NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Key, Mask, Params, require, tensor_paths
from unlearn_jax.masks import arguments, host, keys, spmd, tensors
from unlearn_jax.masks.pieces import Plan, Source


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
  bisected on the bits of |g| (`masks/device.py`): no leaf is concatenated,
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
  known = scope in ('global', 'leaf')
  require('scope', scope, known, "'global' or 'leaf'")
  holds = scope == 'global' or granularity == 'scalar'
  require('scope', scope, holds, "'global' with granularity='leaf'")
  chex.assert_trees_all_equal_structs(params, grads)
  chex.assert_trees_all_equal_shapes(params, grads)
  paths, treedef = tensor_paths(grads), jax.tree.structure(grads)
  leaves = _float_leaves(params, grads, paths)
  size = arguments.size_of(params)
  if granularity == 'leaf':
    number = arguments.number('k', k, len(leaves))
    chosen = tensors.loudest(leaves, jnp.uint32(number))
    _check_nan(leaves, paths)
    masks = [jnp.full(x.shape, m) for x, m in zip(leaves, chosen)]
  elif scope == 'leaf':
    budgets = arguments.budgets(k, arguments.sizes_of(params))
    masks = _topk(leaves, budgets, paths)
  else:
    masks = _topk(leaves, [arguments.number('k', k, size)], paths)
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
    leaves.append(spmd.put_like(x, like))
  return leaves


def _topk(
  leaves: list[Any], budgets: list[Any], paths: tuple[str, ...]
) -> list[jax.Array]:
  """Masks of the Top-K of all leaves; with a budget each, of each of them."""
  traced = any(isinstance(k, jax.core.Tracer) for k in budgets)
  if not traced and all(map(host.is_host, leaves)):
    return _topk_on_host(leaves, budgets, paths)
  k = jnp.stack([jnp.uint32(k) for k in budgets])
  masks, numbers = _topk_on_device(leaves, k, plan=spmd.plan_for(leaves))
  # A count that is short of N says NaN, or that it was not counted.
  if not isinstance(numbers, jax.core.Tracer):
    if int(numbers) < sum(x.size for x in leaves):
      _check_nan(leaves, paths)
  return masks


def _topk_on_host(
  leaves: list[Any], budgets: list[int], paths: tuple[str, ...]
) -> list[jax.Array]:
  if len(budgets) == len(leaves):
    parts = [([x], k, i) for i, (x, k) in enumerate(zip(leaves, budgets))]
  else:
    parts = [(leaves, budgets[0], 0)]
  masks: list[jax.Array] = []
  for part, k, first in parts:
    try:
      found = host.select(part, k)
    except host.NaNError as error:
      _raise_nan(paths[first + error.args[0]])
    masks.extend(host.adopt(m, x) for m, x in zip(found, part))
  return masks


@functools.partial(jax.jit, static_argnames='plan')
def _topk_on_device(
  leaves: list[jax.Array], k: jax.Array, *, plan: Plan
) -> tuple[list[jax.Array], jax.Array]:
  sources = [Source((), x.shape, x.dtype, _magnitude) for x in leaves]
  return spmd.select([(x,) for x in leaves], sources, k, plan)


def _magnitude(arrays: Any, place: jax.Array, extra: Any) -> jax.Array:
  del place, extra
  return keys.keys_of(arrays[0])


def _check_nan(leaves: list[Any], paths: tuple[str, ...]) -> None:
  """Raises `ValueError` for the first leaf with NaN, outside of `jax.jit`."""
  if spmd.is_traced(leaves):
    return
  for path, has_nan in zip(paths, np.asarray(_has_nan(leaves))):
    if has_nan:
      _raise_nan(path)


@jax.jit
def _has_nan(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([jnp.any(jnp.isnan(x)) for x in leaves])


def _raise_nan(path: str) -> NoReturn:
  raise ValueError(f'grads[{path!r}] contains NaN; allowed are numbers.')


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
  number = arguments.number('k', k, arguments.size_of(params))
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
  size = arguments.size_of(params)
  number = arguments.number('k_random', k_random, size)
  top_number = arguments.number('k_top', k_top, size)
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
    plan=spmd.plan_for(leaves if tops is None else tops),
    shapes=tuple(jnp.shape(leaf) for leaf in leaves),
  )
  return jax.tree.unflatten(
    treedef, [_where(m, x) for m, x in zip(masks, leaves)]
  )


def _where(mask: jax.Array, like: Any) -> jax.Array:
  """The mask where `like` is; it is made from no array that would tell."""
  if not isinstance(like, jax.Array):
    return mask
  if isinstance(like, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
    return mask
  if mask.sharding == like.sharding:
    return mask
  return jax.device_put(mask, like.sharding) if like.committed else mask


@functools.partial(jax.jit, static_argnames=('plan', 'shapes'))
def _random_on_device(
  key: Key,
  tops: list[jax.Array] | None,
  number: jax.Array,
  top_number: jax.Array,
  *,
  plan: Plan,
  shapes: tuple[tuple[int, ...], ...],
) -> list[jax.Array]:
  words = jax.random.bits(key, (3,), jnp.uint32)
  sources = [Source((), shape, None, _priority) for shape in shapes]
  arrays = [() if tops is None else (tops[i],) for i in range(len(shapes))]
  size = sum(map(math.prod, shapes))
  # None are left to draw where all are the Top-K: one is, and not taken.
  wanted = number - top_number
  drawn = jnp.maximum(wanted, 1)
  rest = (size - top_number).astype(jnp.float32)
  masks, _ = spmd.select(
    arrays,
    sources,
    drawn[None],
    plan,
    extra=words,
    expected=1 - drawn.astype(jnp.float32) / jnp.maximum(rest, 1),
  )
  if tops is None:
    return masks
  return [top | (m & (wanted > 0)) for top, m in zip(tops, masks)]


def _priority(arrays: Any, place: jax.Array, words: jax.Array) -> jax.Array:
  """Random uint32; 0 for what is chosen already."""
  drawn = jnp.clip(keys.shuffled(place, words), 1, np.uint32(2**32 - 2))
  return jnp.where(arrays[0], np.uint32(0), drawn) if arrays else drawn
