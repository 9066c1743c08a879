"""How a Haiku network becomes a `Model`; Haiku is imported by then only."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from unlearn_jax.base import (
  AXIS,
  Key,
  Model,
  ModelState,
  axis_is_bound,
  require,
)
from unlearn_jax.models import adapted, told


def from_haiku(
  transformed: Any,
  image_shape: Sequence[int],
  *,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  scale: float | None = None,
) -> Model:
  """A `Model` from what `hk.transform` or `hk.transform_with_state` returns.

  Parameters and state are Haiku's own dictionaries, `batch_stats` with the key
  and counter of what is drawn beside them, as `lot`. It is told whether it
  trains as in `from_linen`. BatchNorm sees the batches of all devices; its
  `hidden` is worked out from `average`, which `reestimate` replaces.

  Args:
    transformed: of a function of float32 `[B, height, width, channels]`, and
      perhaps of `is_training`, to logits `[B, C]`.
    image_shape: (height, width, channels).
    mean: as `std` and `scale` of `from_linen`.
    std: likewise.
    scale: likewise.

  Returns:
    The model; its `order` is that in which Haiku creates parameters.

  Raises:
    ValueError: something else than a transformed function.

  Example:
    >>> import haiku as hk
    >>> net = hk.transform(lambda x: hk.Linear(2)(hk.Flatten()(x)))
    >>> from_haiku(net, (2, 2, 1)).order
    ('linear/w', 'linear/b')
  """
  import haiku as hk

  kinds = hk.Transformed | hk.TransformedWithState
  allowed = 'what hk.transform or hk.transform_with_state returns'
  given = type(transformed).__name__
  require('transformed', given, isinstance(transformed, kinds), allowed)
  # What the function itself takes, but for the key of `init`.
  say = told(functools.partial(transformed.init, None))
  if isinstance(transformed, hk.Transformed):
    transformed = hk.with_empty_state(transformed)
  example = jnp.zeros((1, *image_shape), jnp.float32)
  found: dict[str, None] = {}

  def created(next_creator, shape, dtype, init, context):
    found[context.full_name] = None
    return next_creator(shape, dtype, init)

  def made(key: Key) -> tuple[Any, Any]:
    # BatchNorm makes its statistics in training only.
    tree = transformed.init(key, example, **say(True))
    params, state = ({n: dict(own) for n, own in part.items()} for part in tree)
    return params, state

  def watched(key: Key) -> None:
    with hk.custom_creator(created):
      made(key)

  def trained(key: Key) -> Any:
    # Creators can be watched from inside of a transformed function only.
    hk.transform(watched).init(None, key)
    return transformed.apply(*made(key), None, example, **say(True))

  draws = False
  try:
    jax.eval_shape(trained, jax.random.key(0))
  except ValueError as error:
    if type(error).__name__ != 'MissingRNGError':
      raise
    draws = True

  def forward(state, x, key, train, frozen):
    def intercept(next_function, args, kwargs, context):
      module = context.module
      if context.method_name != '__call__':
        return next_function(*args, **kwargs)
      if isinstance(module, hk.BatchNorm):
        if f'{module.module_name}/scale' in frozen:
          args, kwargs = args[:1], {**kwargs, 'is_training': False}
        elif module.cross_replica_axis is None and axis_is_bound():
          module.cross_replica_axis = AXIS
      elif isinstance(module, hk.ExponentialMovingAverage):
        _debiased(module)
      return next_function(*args, **kwargs)

    if not train:
      return transformed.apply(*state, None, x, **say(False))
    with hk.intercept_methods(intercept):
      logits, new = transformed.apply(*state, key, x, **say(True))
    return logits, {n: dict(own) for n, own in new.items()}

  def _debiased(module: Any) -> None:
    """Has an average alone say where it stands.

    Haiku adds to `hidden` and shows `average`, hidden / (1 - decay^counter). By
    the average and the counter the next one is m·average + (1 - m)·value, with
    an m below 1 at each step, as `reestimate` takes it to be.
    """
    average = hk.get_state('average', (), init=jnp.zeros)
    counter = hk.get_state('counter', (), jnp.int32, init=jnp.zeros)
    share = 1 - module.decay**counter if module.zero_debias else 1
    hk.set_state('hidden', average * share)

  def init(key: Key) -> ModelState:
    return ModelState(*made(key))

  units = mean, std, scale
  return adapted(init, forward, tuple(found), units, draws)
