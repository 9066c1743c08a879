"""Top-K: which way of selection is taken, and on which keys."""

import functools
from typing import Any, NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Mask, Params, tensor_paths
from unlearn_jax.masks import arguments, host, keys, spmd, tensors
from unlearn_jax.masks.plans import Plan, Source


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
  arguments.check_choice('granularity', granularity, arguments.GRANULARITIES)
  arguments.check_choice('scope', scope, arguments.SCOPES)
  if granularity == scope == 'leaf':
    raise ValueError(
      "scope is 'leaf'; allowed with granularity='leaf' is 'global'."
    )
  chex.assert_trees_all_equal_structs(params, grads)
  chex.assert_trees_all_equal_shapes(params, grads)
  paths, treedef = tensor_paths(grads), jax.tree.structure(grads)
  leaves = _float_leaves(params, grads, paths)
  size = arguments.size_of(params)
  sizes = arguments.sizes_of(params)
  if granularity == 'leaf':
    number = arguments.number('k', k, len(leaves))
    chosen = tensors.loudest(leaves, jnp.uint32(number))
    _check_nan(leaves, paths)
    masks = [jnp.full(x.shape, m) for x, m in zip(leaves, chosen)]
  elif scope == 'leaf':
    budgets = arguments.budgets(k, sizes)
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
