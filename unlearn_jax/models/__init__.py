"""The table of models, and how a Linen module becomes a `Model`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import importlib
from typing import Any, NamedTuple

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


FAMILIES = {
  'cnn': _Family('cnn', 'CNN', width=16, smallest=4),
  'resnet9': _Family('resnet', 'ResNet9', width=64, smallest=8),
  'resnet18': _Family('resnet', 'ResNet18', width=64, smallest=8),
  'vgg19': _Family('vgg', 'VGG19', width=64, smallest=32),
  'densenet121': _Family('densenet', 'DenseNet121', width=32, smallest=8),
  'googlenet': _Family('googlenet', 'GoogLeNet', width=64, smallest=8),
}

DTYPES = ('float32', 'bfloat16')


def build(
  name: str,
  num_classes: int,
  image_shape: Sequence[int],
  *,
  width: int | None = None,
  mean: Sequence[float] = (0.5,),
  std: Sequence[float] = (0.25,),
  dtype: str = 'float32',
) -> Model:
  """A classifier of the table `FAMILIES`, on pixels.

  Args:
    name: a key of `FAMILIES`.
    num_classes: C, at least 2.
    image_shape: (height, width, channels).
    width: channels of the first layer; None for the family's own.
    mean: per channel, in [0, 1] units, subtracted inside the model.
    std: per channel, in [0, 1] units, divided by inside the model.
    dtype: one of `DTYPES`, what activations are computed in. Parameters,
      BatchNorm's statistics, logits and all that follows are float32.

  Returns:
    A `Model` that takes pixels in [0, 255], uint8 or float.

  Raises:
    ValueError: an unknown name or dtype, fewer than 2 classes, a width below
      1, or an image that is too small for the net.

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
  holds = min(image_shape[:2]) >= family.smallest
  allowed = f'sides of at least {family.smallest} pixels for {name}'
  require('image_shape', tuple(image_shape), holds, allowed)
  require('dtype', dtype, dtype in DTYPES, ', '.join(DTYPES))
  home = importlib.import_module(f'unlearn_jax.models.{family.module}')
  make = getattr(home, family.name)
  module = make(num_classes=num_classes, width=width, dtype=dtype)
  return from_linen(module, image_shape, mean=mean, std=std, scale=255.0)


def from_linen(
  module: nn.Module,
  image_shape: Sequence[int],
  *,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  scale: float | None = None,
) -> Model:
  """A `Model` from a Linen module called as `module(x, train)`.

  Where the module has a field `axis_name`, it is set to the device axis while
  training under `pmap`, so that BatchNorm sees the whole batch.

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
  units = (np.asarray(mean, np.float32), np.asarray(std, np.float32), scale)

  def init(key: Key) -> ModelState:
    x = jnp.zeros((1, *image_shape), jnp.float32)
    variables = module.init(key, x, False)
    params = variables.get('params', {})
    return ModelState(params, variables.get('batch_stats', {}))

  # Tracing costs milliseconds and computes nothing.
  order = definition_order(lambda key: init(key).params)
  return _model(module, init, order, units, frozenset())


def _model(module, init, order, units, frozen: frozenset[str]) -> Model:
  mean, std, scale = units

  def apply(
    state: ModelState, images: Array, train: bool
  ) -> tuple[jax.Array, Any]:
    whole = jnp.issubdtype(jnp.result_type(images), jnp.integer)
    by = scale or (255.0 if whole else 1.0)
    x = (jnp.asarray(images, jnp.float32) / by - mean) / std
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    if not train:
      return module.apply(variables, x, False), state.batch_stats
    synchronised = hasattr(module, 'axis_name') and axis_is_bound()
    trained = module.clone(axis_name=AXIS) if synchronised else module
    with nn.intercept_methods(_keep_statistics_of(frozen)):
      logits, updated = trained.apply(
        variables, x, True, mutable=['batch_stats']
      )
    return logits, updated.get('batch_stats', {})

  return Model(
    apply=apply,
    init=init,
    order=order,
    freeze=lambda paths: _model(module, init, order, units, paths),
  )


def _keep_statistics_of(frozen: frozenset[str]):
  """Makes BatchNorm layers with a frozen scale run as in evaluation."""

  def interceptor(next_function, args, kwargs, context):
    module, path = context.module, '/'.join(context.module.path)
    if isinstance(module, nn.BatchNorm) and f'{path}/scale' in frozen:
      # Told when it was made or when it is called, never both; what was made
      # lives for this one call of the network.
      object.__setattr__(module, 'use_running_average', None)
      args, kwargs = args[:1], {**kwargs, 'use_running_average': True}
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
