"""Changing the chosen parameters; all others stay bit for bit as they are."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Key, Mask, Params, require, require_floats


def perturb(params: Params, mask: Mask, epsilon: float) -> Params:
  """Scales the chosen parameters: ω ← ω + ε·ω (Zuo et al., Eq. 7).

  Perturbing the result again with 1/(1 + ε) - 1 undoes it up to rounding,
  except for ε = -1, which sets the chosen parameters to zero.

  Args:
    params: pytree of float arrays, ω.
    mask: boolean tree like `params`, true where ω changes.
    epsilon: ε, a finite number without unit.

  Returns:
    Tree like `params`, with the same dtypes.

  Raises:
    ValueError: `epsilon` is not finite.
    AssertionError: `mask` differs from `params` in structure or shapes, or is
      not boolean.

  Example:
    >>> params = {'w': jnp.array([1.0, 2.0])}
    >>> mask = {'w': jnp.array([False, True])}
    >>> perturb(params, mask, epsilon=0.5)['w'].tolist()
    [1.0, 3.0]
  """
  require('epsilon', epsilon, math.isfinite(epsilon), 'finite numbers')
  _check_mask(params, mask)
  # A Python float, unlike a NumPy one, leaves the dtype of w alone.
  epsilon = float(epsilon)

  def scaled(w, chosen):
    # Rounded once: in bfloat16, ω + ε·ω would be off by some per cent.
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    return jnp.where(chosen, (wide + epsilon * wide).astype(w.dtype), w)

  return jax.tree.map(scaled, jax.tree.map(jnp.asarray, params), mask)


def donor_mix(
  key: Key,
  params: Params,
  mask: Mask,
  epsilon: float,
  *,
  scope: str = 'tensor',
) -> Params:
  """Mixes into each chosen parameter another chosen one.

  ω ← (1 - m)·ω + m·ω_j with m = ε·mask (Zuo et al., Alg. 1 l. 10 to 12). The
  donors ω_j are the chosen parameters in another order: a uniformly random
  cycle, so that each gives once and none gives to itself (the paper does not
  exclude j = i, which would change nothing). Where only one parameter is
  chosen, it has no donor and stays.

  The bookkeeping of indices is NumPy's, on the host: not to be used inside
  `jax.jit`. The mixture is computed in float64 and rounded once.

  Args:
    key: typed PRNG key.
    params: pytree of float arrays, ω.
    mask: boolean tree like `params`, true where ω changes.
    epsilon: ε, a finite number without unit: 0 keeps ω, 1 replaces it by ω_j.
    scope: 'tensor' if a donor is from the same tensor, 'tree' if it may be
      from any.

  Returns:
    Tree like `params`, with the same dtypes and shardings.

  Raises:
    ValueError: `epsilon` is not finite, or `scope` is another.
    AssertionError: `mask` differs from `params` in structure or shapes, or is
      not boolean.

  Example:
    >>> params = {'w': jnp.array([1.0, 2.0, 4.0])}
    >>> mask = {'w': jnp.array([True, False, True])}
    >>> donor_mix(jax.random.key(0), params, mask, epsilon=1.0)['w'].tolist()
    [4.0, 2.0, 1.0]
  """
  require('epsilon', epsilon, math.isfinite(epsilon), 'finite numbers')
  _check_mask(params, mask)
  require('scope', scope, scope in ('tensor', 'tree'), "'tensor' or 'tree'")
  # NumPy's generator, since a permutation by JAX would be compiled anew for
  # every number of chosen parameters.
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  leaves, treedef = jax.tree.flatten(params)
  places = [np.flatnonzero(np.asarray(m)) for m in jax.tree.leaves(mask)]
  flat = [np.array(leaf).reshape(-1) for leaf in leaves]
  chosen = [x[i].astype(np.float64) for x, i in zip(flat, places)]

  if scope == 'tensor':
    donors = [weights[_cycle(rng, len(weights))] for weights in chosen]
  else:
    weights = np.concatenate(chosen) if chosen else np.zeros(0)
    ends = np.cumsum([len(i) for i in places])[:-1]
    donors = np.split(weights[_cycle(rng, len(weights))], ends)

  for x, i, weights, donor in zip(flat, places, chosen, donors):
    x[i] = ((1 - epsilon) * weights + epsilon * donor).astype(x.dtype)
  mixed = [_like(x, leaf) for x, leaf in zip(flat, leaves)]
  return jax.tree.unflatten(treedef, mixed)


def reinitialize(params: Params, fresh: Params, mask: Mask) -> Params:
  """Takes the chosen parameters from a freshly initialised model.

  What EU-K does to the last K tensors (Zuo et al., §IV-A).

  Args:
    params: pytree of float arrays, ω.
    fresh: tree like `params`, from another initialisation.
    mask: boolean tree like `params`, true where `fresh` is taken.

  Returns:
    Tree like `params`.

  Raises:
    AssertionError: `fresh` differs from `params` in structure, shapes or
      dtypes, or `mask` in structure or shapes, or it is not boolean.

  Example:
    >>> params, fresh = {'w': jnp.zeros(2)}, {'w': jnp.ones(2)}
    >>> mask = {'w': jnp.array([False, True])}
    >>> reinitialize(params, fresh, mask)['w'].tolist()
    [0.0, 1.0]
  """
  _check_mask(params, mask)
  chex.assert_trees_all_equal_structs(params, fresh)
  chex.assert_trees_all_equal_shapes_and_dtypes(params, fresh)
  return jax.tree.map(
    lambda w, new, chosen: jnp.where(chosen, new, w), params, fresh, mask
  )


def _check_mask(params: Params, mask: Mask) -> None:
  require_floats('params', params)
  chex.assert_trees_all_equal_structs(params, mask)
  chex.assert_trees_all_equal_shapes(params, mask)
  chex.assert_type(jax.tree.leaves(mask), bool)


def _cycle(rng: np.random.Generator, size: int) -> np.ndarray:
  """A uniformly random permutation `[size]` that is one cycle."""
  order = rng.permutation(size)
  cycle = np.empty(size, order.dtype)
  cycle[order] = np.roll(order, -1)
  return cycle


def _like(flat: np.ndarray, leaf: jax.Array) -> jax.Array:
  """`flat` in the shape of the leaf, and where the leaf is."""
  array = flat.reshape(leaf.shape)
  if isinstance(leaf, jax.Array):
    return jax.device_put(array, leaf.sharding)
  return jnp.asarray(array)
