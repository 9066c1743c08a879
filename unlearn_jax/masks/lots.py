"""Random-k and Random-TopK: the same selection, on random priorities."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Key, Mask, Params
from unlearn_jax.masks import arguments, keys, spmd
from unlearn_jax.masks.plans import Plan, Source
from unlearn_jax.masks.top import topk_mask


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
