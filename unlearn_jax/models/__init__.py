"""The table of models, and how a Linen module becomes a `Model`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import importlib
import inspect
import math
from typing import Any, NamedTuple

from flax import errors
from flax import linen as nn
from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import (
  AXIS,
  Array,
  Key,
  Model,
  ModelState,
  axis_is_bound,
  require,
)


class _Family(NamedTuple):
  module: str  # of this package, loaded when one is built
  name: str  # of the class in it
  width: int  # the default
  smallest: int  # the smallest image side that the net can take, in pixels
  # Of transformers: the side of a patch, the default, and heads of attention.
  patch_size: int | None = None
  heads: int = 1


FAMILIES = {
  'cnn': _Family('cnn', 'CNN', width=16, smallest=4),
  'resnet9': _Family('resnet', 'ResNet9', width=64, smallest=8),
  'resnet18': _Family('resnet', 'ResNet18', width=64, smallest=8),
  'vgg19': _Family('vgg', 'VGG19', width=64, smallest=32),
  'densenet121': _Family('densenet', 'DenseNet121', width=32, smallest=8),
  'googlenet': _Family('googlenet', 'GoogLeNet', width=64, smallest=8),
  'vit_ti': _Family('vit', 'ViT', 192, smallest=1, patch_size=16, heads=3),
  'vit_s': _Family('vit', 'ViT', 384, smallest=1, patch_size=16, heads=6),
}

DTYPES = ('float32', 'bfloat16')


def build(
  name: str,
  num_classes: int,
  image_shape: Sequence[int],
  *,
  width: int | None = None,
  patch_size: int | None = None,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.25,),
  dtype: str = 'float32',
) -> Model:
  """A classifier of the table `FAMILIES`, on pixels.

  Args:
    name: a key of `FAMILIES`.
    num_classes: C, at least 2.
    image_shape: (height, width, channels).
    width: channels of the first layer, or of a token; None for the family's
      own.
    patch_size: the side of a transformer's patches, in pixels; None for 16,
      and for a net without patches.
    mean: per channel, in [0, 1] units, subtracted inside the model.
    std: per channel, in [0, 1] units, divided by inside the model.
    dtype: one of `DTYPES`, what activations are computed in. Parameters,
      BatchNorm's statistics, logits and all that follows are float32.

  Returns:
    A `Model` that takes pixels in [0, 255], uint8 or float.

  Raises:
    ValueError: an unknown name or dtype, fewer than 2 classes, a width below
      1 or not to be divided among the heads, an image that is too small for
      the net, or that patches do not tile.

  Example:
    >>> model = build('cnn', 10, (8, 8, 1))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(shapes.params))
    24058
  """
  require('name', name, name in FAMILIES, ', '.join(sorted(FAMILIES)))
  family = FAMILIES[name]
  width = family.width if width is None else width
  require('num_classes', num_classes, num_classes >= 2, '2 or more')
  require('width', width, width >= 1, '1 or more')
  heads = f'a multiple of {family.heads}, the heads of {name}'
  require('width', width, width % family.heads == 0, heads)
  holds = min(image_shape[:2]) >= family.smallest
  allowed = f'sides of at least {family.smallest} pixels for {name}'
  require('image_shape', tuple(image_shape), holds, allowed)
  require('dtype', dtype, dtype in DTYPES, ', '.join(DTYPES))
  home = importlib.import_module(f'unlearn_jax.models.{family.module}')
  more = _patches(name, image_shape, patch_size)
  make = getattr(home, family.name)
  module = make(num_classes=num_classes, width=width, dtype=dtype, **more)
  return _linen(module, image_shape, (mean, std, 255.0), draws=False)


def _patches(
  name: str, image_shape: Sequence[int], asked: int | None
) -> dict[str, int]:
  """Fields of a transformer, none of other families."""
  family = FAMILIES[name]
  if family.patch_size is None:
    require('patch_size', asked, asked is None, f'none for {name}')
    return {}
  size = family.patch_size if asked is None else asked
  side = math.gcd(*image_shape[:2])
  tiles = [n for n in range(1, side + 1) if side % n == 0]
  allowed = 'what divides both sides of the images: '
  allowed += ', '.join(map(str, tiles))
  require('patch_size', size, size in tiles, allowed)
  return {'heads': family.heads, 'patch_size': size}


def from_linen(
  module: nn.Module,
  image_shape: Sequence[int],
  *,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  scale: float | None = None,
) -> Model:
  """A `Model` from a Linen module called as `module(x, train)`.

  It may call that `train`, `training`, `is_training`, `deterministic` or
  `use_running_average` (the last two are the opposite), or not ask at all.
  BatchNorm sees the batches of all devices. Dropout draws from a key and a
  counter that the state carries along, on each device by itself; so does
  whatever else the module makes a collection of variables of.

  Args:
    module: maps float32 `[B, height, width, channels]` to logits `[B, C]`.
    image_shape: (height, width, channels).
    mean: per channel, subtracted after the division by `scale`.
    std: per channel, divided by then.
    scale: what pixels are divided by; None: 255 if integers, 1 if floats.

  Returns:
    The model; its `order` is the order in which `module` makes its tensors.

  Example:
    >>> class Linear(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x, train):
    ...     return nn.Dense(3)(x.reshape(len(x), -1))
    >>> from_linen(Linear(), (2, 2, 1)).order
    ('Dense_0/kernel', 'Dense_0/bias')
  """
  draws = _draws(module, image_shape)
  return _linen(module, image_shape, (mean, std, scale), draws)


# In a state: the key and the counter of what is drawn by lot.
_LOT = 'lot'


def adapted(
  init: Callable[[Key], ModelState],
  forward: Callable[..., tuple[jax.Array, Any]],
  order: tuple[str, ...],
  units: tuple[Sequence[float], Sequence[float], float | None],
  draws: bool = False,
) -> Model:
  """A `Model` from a network of any library, as pure functions.

  Args:
    init: `key -> ModelState`.
    forward: `(state, x, key, train, frozen) -> (logits, carried)` of
      standardised images; `frozen` are paths of tensors, and what it carries
      is looked at in training only.
    order: see `Model.order`.
    units: `mean`, `std` and `scale` of `from_linen`.
    draws: whether it needs a key in training: of this step, of this device
      alone. The state then carries it and a counter along, as `lot`.

  Returns:
    The model.
  """
  mean, std, scale = units

  def begun(key: Key) -> ModelState:
    state = init(key)
    if draws:
      own = jax.random.key_data(jax.random.fold_in(key, 1))
      lot = {'key': own, 'count': jnp.uint32(0)}
      state = state._replace(batch_stats={**state.batch_stats, _LOT: lot})
    return state

  def with_frozen(frozen: frozenset[str]) -> Model:
    def apply(
      state: ModelState, images: Array, train: bool
    ) -> tuple[jax.Array, Any]:
      carried, key, after = dict(state.batch_stats), None, {}
      lot = carried.pop(_LOT, None) if draws else None
      if train and lot is not None:
        key = jax.random.wrap_key_data(lot['key'])
        key = jax.random.fold_in(key, lot['count'])
        if axis_is_bound():
          key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        after = {_LOT: {**lot, 'count': lot['count'] + 1}}
      own = ModelState(state.params, carried)
      whole = jnp.issubdtype(jnp.result_type(images), jnp.integer)
      pixels = jnp.asarray(images, jnp.float32)
      x = pixels / (scale or (255.0 if whole else 1))
      x = (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
      logits, carried = forward(own, x, key, train, frozen)
      return logits, {**carried, **after} if train else state.batch_stats

    return Model(apply, begun, order=order, freeze=with_frozen)

  return with_frozen(frozenset())


# What networks call it, and whether it is the opposite of training.
_MODES = {
  'train': False,
  'training': False,
  'is_training': False,
  'deterministic': True,
  'use_running_average': True,
}


def told(network: Callable[..., Any]) -> Callable[[bool], dict[str, Any]]:
  """How a network is told whether it trains, as keywords of its call.

  Example:
    >>> told(lambda x, deterministic: x)(True)
    {'deterministic': False}
  """
  _, *rest = inspect.signature(network).parameters.values()
  names = [own.name for own in rest if own.name in _MODES]
  # Of another name, where it has to be said.
  names = names or [p.name for p in rest[:1] if p.default is p.empty]
  return lambda train: {n: train != _MODES.get(n, False) for n in names}


def _draws(module: nn.Module, image_shape: Sequence[int]) -> bool:
  """Whether it asks for random numbers in training."""
  x, say = jnp.zeros((1, *image_shape), jnp.float32), told(module)

  def trained(key: Key) -> Any:
    variables = module.init(key, x, **say(False))
    return module.apply(variables, x, **say(True), mutable=True)[0]

  try:
    jax.eval_shape(trained, jax.random.key(0))
  except errors.InvalidRngError:
    return True
  return False


def _linen(
  module: nn.Module,
  image_shape: Sequence[int],
  units: tuple[Sequence[float], Sequence[float], float | None],
  draws: bool,
) -> Model:
  say = told(module)
  collections: set[str] = set()

  def made(key: Key) -> tuple[Any, dict[str, Any]]:
    x = jnp.zeros((1, *image_shape), jnp.float32)
    variables = dict(module.init(key, x, **say(False)))
    params = variables.pop('params', {})
    collections.update(variables)
    return params, variables

  # Tracing costs milliseconds and computes nothing.
  order = definition_order(lambda key: made(key)[0])
  kept = sorted({*collections, 'batch_stats'})
  # BatchNorm's alone stand without the name of their collection.
  alone = not draws and collections <= {'batch_stats'}

  def init(key: Key) -> ModelState:
    params, rest = made(key)
    return ModelState(params, rest.get('batch_stats', {}) if alone else rest)

  def forward(state, x, key, train, frozen):
    params, carried = state
    rest = {'batch_stats': carried} if alone else carried
    variables = {'params': params, **rest}
    if not train:
      mutable = False if alone else kept
      found = module.apply(variables, x, **say(False), mutable=mutable)
      return (found if alone else found[0]), carried
    rngs = {} if key is None else {'params': key}  # For whatever name it asks.
    with nn.intercept_methods(_statistics(frozen)):
      logits, updated = module.apply(
        variables, x, **say(True), mutable=kept, rngs=rngs
      )
    return logits, updated.get('batch_stats', {}) if alone else updated

  return adapted(init, forward, order, units, draws)


def _statistics(frozen: frozenset[str]):
  """Synchronises BatchNorm; layers with a frozen scale run as in evaluation."""

  def interceptor(next_function, args, kwargs, context):
    module, path = context.module, '/'.join(context.module.path)
    if isinstance(module, nn.BatchNorm) and f'{path}/scale' in frozen:
      # Told when it was made or when it is called, never both; what was made
      # lives for this one call of the network.
      object.__setattr__(module, 'use_running_average', None)
      args, kwargs = args[:1], {**kwargs, 'use_running_average': True}
    elif isinstance(module, nn.BatchNorm) and module.axis_name is None:
      if axis_is_bound():
        object.__setattr__(module, 'axis_name', AXIS)
    return next_function(*args, **kwargs)

  return interceptor


def definition_order(init: Callable[[Key], Any]) -> tuple[str, ...]:
  """The paths of a model's tensors in the order in which `init` makes them.

  JAX sorts dictionaries whenever a tree passes through a transformation, so
  the order is read inside the trace, before the tree leaves it.

  Args:
    init: `key -> params`, nested dictionaries (Linen, Haiku or hand-made),
      lists and tuples that are filled in definition order.

  Returns:
    '/'-joined paths, as `base.tensor_paths` writes them.

  Raises:
    ValueError: another mapping, which may have lost that order.

  Example:
    >>> definition_order(lambda key: {'w': jnp.ones(2), 'b': jnp.ones(1)})
    ('w', 'b')
  """
  found: list[str] = []

  def visit(tree: Any, path: str) -> None:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, dict | FrozenDict):
      children = tree.items()
    elif isinstance(tree, Mapping):  # NNX sorts what it makes a State of.
      raise ValueError(
        f'{path or "params"} is a {type(tree).__name__}, whose order is not'
        ' that of its definition, allowed: a dict, or an order given by hand'
      )
    elif hasattr(tree, '_fields'):
      children = zip(tree._fields, tree)
    elif isinstance(tree, list | tuple):
      children = enumerate(tree)
    for name, child in children:
      visit(child, f'{path}/{name}' if path else str(name))
    if not isinstance(tree, dict | FrozenDict | list | tuple):
      for leaf_path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        tail = jax.tree_util.keystr(leaf_path, simple=True, separator='/')
        found.append('/'.join(part for part in (path, tail) if part))

  def record(key: Key) -> None:
    visit(init(key), '')

  jax.eval_shape(record, jax.random.key(0))
  return tuple(found)
