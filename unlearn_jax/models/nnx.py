"""How an NNX module becomes a `Model`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flax import nnx
from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp

from unlearn_jax.base import (
  AXIS,
  Key,
  Model,
  ModelState,
  axis_is_bound,
  tensor_paths,
)
from unlearn_jax.models import adapted, told


def from_nnx(
  make: Callable[[nnx.Rngs], nnx.Module],
  image_shape: Sequence[int],
  *,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  scale: float | None = None,
) -> Model:
  """A `Model` from an NNX module.

  Its `nnx.Param` are `params`; all else that it carries along, such as
  BatchNorm's statistics and Dropout's keys and counters, is `batch_stats`. It
  trains in the mode of `module.train()`, and is told so as in `from_linen`.
  BatchNorm sees the batches of all devices, and Dropout draws on each device
  by itself.

  Args:
    make: `rngs -> module`, which maps float32 `[B, height, width, channels]` to
      logits `[B, C]`.
    image_shape: (height, width, channels).
    mean: as `std` and `scale` of `from_linen`.
    std: likewise.
    scale: likewise.

  Returns:
    The model; its `order` is that in which the module got its parameters.

  Example:
    >>> class Linear(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.stem = nnx.Linear(4, 3, rngs=rngs)
    ...     self.head = nnx.Linear(3, 2, rngs=rngs)
    ...   def __call__(self, x):
    ...     return self.head(self.stem(x.reshape(len(x), -1)))
    >>> from_nnx(Linear, (2, 2, 1)).order[:2]
    ('stem/kernel', 'stem/bias')
  """
  order: tuple[str, ...] = ()

  def made() -> nnx.Module:
    nonlocal order
    module = make(nnx.Rngs(0))
    order = _order(module)  # As it was made: what comes out is sorted.
    return module

  module = nnx.eval_shape(made)
  modes: dict[bool, Any] = {}
  for train in (False, True):
    (module.train if train else module.eval)()
    split: Any = nnx.split(module, nnx.Param, ...)
    modes[train], *forms = split
  say = told(module)

  def init(key: Key) -> ModelState:
    split: Any = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
    _, *parts = split
    return ModelState(*map(_nested, parts))

  def forward(state, x, key, train, frozen):
    del key  # It carries its own.
    params, rest = (_like(own, form) for own, form in zip(state, forms))
    module = nnx.merge(modes[train], params, _apart(rest))
    if not train:
      return module(x, **say(False)), state.batch_stats
    _prepare(module, frozen)
    logits = module(x, **say(True))
    after = nnx.state(module, nnx.Not(nnx.Param))
    # Keys of devices are not kept.
    after = jax.tree.map(lambda a, b: a if _is_key(a) else b, rest, after)
    return logits, _nested(after)

  return adapted(init, forward, order, (mean, std, scale))


class _Frozen(nnx.BatchNorm):
  """One that runs as in evaluation, whatever it is told."""

  def __call__(
    self, x: Any, use_running_average: bool | None = None, **more: Any
  ) -> Any:
    return super().__call__(x, use_running_average=True, **more)


def _prepare(module: nnx.Module, frozen: frozenset[str]) -> None:
  """Synchronises BatchNorm over devices, or freezes it; for one call."""
  for path, layer in nnx.iter_graph(module):
    if isinstance(layer, nnx.BatchNorm):
      name = '/'.join(map(str, (*path, 'scale')))
      if name in frozen:
        layer.__class__ = _Frozen
      elif layer.axis_name is None and axis_is_bound():
        layer.axis_name = AXIS


def _order(module: nnx.Module) -> tuple[str, ...]:
  """Paths of its parameters as its attributes were set; shared ones once."""
  found: dict[int, None] = {}
  seen: set[int] = set()

  def visit(node: Any) -> None:
    if isinstance(node, nnx.Param):
      found[id(node)] = None
    if id(node) in seen or isinstance(node, nnx.Variable):
      return
    seen.add(id(node))
    own: Iterable[Any] = ()
    if isinstance(node, nnx.Module):
      own = list(vars(node).values())
    elif isinstance(node, dict | list | tuple):
      own = node.values() if isinstance(node, dict) else node
    for child in own:
      visit(child)

  visit(module)
  paths = {
    id(node): '/'.join(map(str, path))
    for path, node in nnx.iter_graph(module)
    if isinstance(node, nnx.Param)
  }
  return tuple(paths[name] for name in found if name in paths)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _nested(state: Any) -> dict[str, Any]:
  """NNX's `State` as dictionaries of arrays; a key as its data."""
  leaves = [
    jax.random.key_data(leaf) if _is_key(leaf) else leaf
    for leaf in jax.tree.leaves(state)
  ]
  paths = tensor_paths(nnx.to_pure_dict(state))
  return unflatten_dict(dict(zip(paths, leaves)), sep='/')


def _like(tree: Any, form: Any) -> Any:
  """The `State` again."""
  leaves = dict(zip(tensor_paths(tree), jax.tree.leaves(tree)))
  wanted, structure = jax.tree.flatten(form)
  found = [leaves[path] for path in tensor_paths(nnx.to_pure_dict(form))]
  for place, own in enumerate(wanted):
    if _is_key(own):
      found[place] = jax.random.wrap_key_data(found[place])
  return jax.tree.unflatten(structure, found)


def _apart(rest: Any) -> Any:
  """With keys of this device alone, so that each drops other units."""
  if not axis_is_bound():
    return rest
  rank = jax.lax.axis_index(AXIS)
  return jax.tree.map(
    lambda leaf: jax.random.fold_in(leaf, rank) if _is_key(leaf) else leaf, rest
  )
