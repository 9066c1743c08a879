"""How an Equinox module becomes a `Model`; Equinox is imported by then only."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import inspect
from typing import Any

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp

from unlearn_jax.base import (
  AXIS,
  Key,
  Model,
  ModelState,
  axis_is_bound,
  is_float,
  require,
  shown,
  tensor_paths,
)
from unlearn_jax.models import adapted

# The axis of the examples; BatchNorm is told of it, whatever it was told.
_EXAMPLES = 'examples'


def from_equinox(
  make: Callable[[Key], Any],
  image_shape: Sequence[int],
  *,
  channels_first: bool = True,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  scale: float | None = None,
) -> Model:
  """A `Model` from an Equinox module, which is called on each example.

  Its arrays of floats are `params`; what an `eqx.nn.State` holds, and the key
  and counter of what is drawn by lot, is `batch_stats`. It is called as
  `module(x)`, `module(x, state)`, or with `key=`, whichever it takes, and is
  told whether it trains by `eqx.nn.inference_mode`. BatchNorm, of
  `mode='batch'`, sees the batches of all devices; what stands in the state is
  its average, not the sum that Equinox divides at each look.

  Args:
    make: `key -> module`, which maps float32 `[channels, height, width]` to
      logits `[C]`; or `key -> (module, state)`, such as those that somebody
      trained, which `init` then returns.
    image_shape: (height, width, channels).
    channels_first: False if the module takes `[height, width, channels]`, or
      what is no image.
    mean: as `std` and `scale` of `from_linen`.
    std: likewise.
    scale: likewise.

  Returns:
    The model; its `order` is that of the fields.

  Raises:
    ValueError: a BatchNorm of another mode, arrays that are no floats, or
      some whose order only JAX knows.

  Example:
    >>> import equinox as eqx
    >>> def make(key):
    ...   flat = eqx.nn.Lambda(jax.numpy.ravel)
    ...   return eqx.nn.Sequential([flat, eqx.nn.Linear(4, 2, key=key)])
    >>> from_equinox(make, (2, 2, 1)).order
    ('layers/1/weight', 'layers/1/bias')
  """
  import equinox as eqx

  order: tuple[str, ...] = ()

  def made(key: Key) -> tuple[Any, Any]:
    nonlocal order
    module = make(key)
    # As it was made: what comes out of a transformation is sorted.
    order = _order(module, eqx)
    if isinstance(module, tuple):
      module, state = module
      return module, jax.tree.map(
        lambda leaf: leaf, state
      )  # It is not used up.
    return eqx.nn.delete_init_state(module), eqx.nn.State(module)

  form, empty = eqx.filter_eval_shape(made, jax.random.key(0))
  forms, structure = jax.tree.flatten(form)
  paths, (kept, state_structure) = tensor_paths(form), jax.tree.flatten(empty)
  takes = inspect.signature(form).parameters
  stateful = len(kept) > 0 or 'state' in takes

  def layers(module: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(
      module, is_leaf=lambda node: isinstance(node, eqx.nn.BatchNorm)
    )[0]
    return [
      (jax.tree_util.keystr(path, simple=True, separator='/'), layer)
      for path, layer in found
      if isinstance(layer, eqx.nn.BatchNorm)
    ]

  _check(dict(zip(paths, forms)), order, layers(form))

  def init(key: Key) -> ModelState:
    module, state = made(key)
    for _, layer in layers(module):
      state = _weighted(state, layer, back=True)
    own = zip(paths, jax.tree.leaves(module), forms)
    params = {path: leaf for path, leaf, like in own if _is_array(like)}
    return ModelState(unflatten_dict(params, sep='/'), _named(state))

  def forward(state, x, key, train, frozen):
    params, carried = state
    if channels_first:
      x = jnp.moveaxis(x, -1, 1)
    own = dict(zip(tensor_paths(params), jax.tree.leaves(params)))
    leaves = [own.get(path, leaf) for path, leaf in zip(paths, forms)]
    module = jax.tree.unflatten(structure, leaves)
    module = eqx.nn.inference_mode(module, not train)
    norms, bound = layers(module), axis_is_bound()
    for name, layer in norms:  # Made for this one call.
      if f'{name}/weight' in frozen:
        object.__setattr__(layer, 'inference', True)
      axes = (_EXAMPLES, AXIS) if bound else _EXAMPLES
      object.__setattr__(layer, 'axis_name', axes)
    before = [carried[str(i)] for i in range(len(kept))]
    given = jax.tree.unflatten(state_structure, before)
    stats = jax.tree.map(lambda leaf: leaf, given)
    for _, layer in norms:
      stats = _weighted(stats, layer)

    def one(x: jax.Array, stats: Any, key: Key | None) -> tuple[Any, Any]:
      more = {'key': key} if 'key' in takes else {}
      if stateful:
        return module(x, stats, **more)
      return module(x, **more), stats

    keys = None if key is None else jax.random.split(key, len(x))
    each = (0, None, None if keys is None else 0)
    mapped = jax.vmap(one, each, (0, None), axis_name=_EXAMPLES)
    logits, stats = mapped(x, stats, keys)
    if not train:
      return logits, carried
    for _, layer in norms:
      if layer.inference:  # To the bit.
        still = given.get(layer.batch_state_index)
        stats = stats.set(layer.batch_state_index, still)
      else:
        stats = _weighted(stats, layer, back=True)
    return logits, _named(stats)

  units = mean, std, scale
  return adapted(init, forward, order, units, draws='key' in takes)


def _weighted(stats: Any, layer: Any, back: bool = False) -> Any:
  """Averages as the sums that Equinox divides by 1 - momentum^steps, or back.

  By average and counter the next average is m·average + (1 - m)·batch, with an
  m below 1 once there was a step, as `reestimate` takes it to be.
  """
  steps = stats.get(layer.batch_counter)
  weight = jnp.where(steps == 0, 1.0, 1 - layer.momentum**steps)
  weight = 1 / weight if back else weight
  sums = stats.get(layer.batch_state_index)
  scaled = jax.tree.map(lambda leaf: leaf * weight, sums)
  return stats.set(layer.batch_state_index, scaled)


def _named(state: Any) -> dict[str, Any]:
  # Not of weak types, which a checkpoint does not know.
  leaves = (jnp.asarray(leaf, leaf.dtype) for leaf in jax.tree.leaves(state))
  return {str(i): leaf for i, leaf in enumerate(leaves)}


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _check(
  found: dict[str, Any], order: tuple[str, ...], norms: list[tuple[str, Any]]
) -> None:
  """Refuses what would be taken for something that it is not."""
  arrays = {path: leaf for path, leaf in found.items() if _is_array(leaf)}
  for path, leaf in arrays.items():
    allowed = f'floats; {shown(path)} may be a NumPy array or a StateIndex'
    require('make', str(leaf.dtype), is_float(leaf), allowed)
  hidden = sorted({*arrays} - {*order})
  allowed = 'arrays in modules, lists, tuples, and dictionaries of a new module'
  require('make', hidden[:3], not hidden, allowed)
  for _, layer in norms:
    # The other's statistics depend on those before it, in training too.
    mode = getattr(layer, 'mode', 'ema')
    require("BatchNorm's mode", mode, mode == 'batch', "'batch'")


def _order(made: Any, eqx: Any) -> tuple[str, ...]:
  """Paths of its arrays by fields, and by keys as they were set."""
  found: list[str] = []
  # To take the state out of it was a transformation.
  passed = isinstance(made, tuple)

  def visit(node: Any, path: tuple[str, ...]) -> None:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, eqx.nn.StateIndex):
      return
    if isinstance(node, eqx.Module):
      fields = [
        field.name
        for field in dataclasses.fields(node)
        if not field.metadata.get('static') and hasattr(node, field.name)
      ]
      children = ((name, getattr(node, name)) for name in fields)
    elif isinstance(node, dict):
      children = () if passed and len(node) > 1 else node.items()
    elif isinstance(node, list | tuple):
      children = zip(getattr(node, '_fields', range(len(node))), node)
    elif _is_array(node):
      found.append('/'.join(path))
    for name, child in children:
      visit(child, (*path, str(name)))

  visit(made[0] if passed else made, ())
  return tuple(found)
