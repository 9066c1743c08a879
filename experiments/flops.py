"""Arithmetic of a network, by a convention that no compiler changes.

Training costs 6 FLOPs a multiply-accumulate (MAC) of the forward pass's
convolutions and dense layers: two for the forward pass, four for the two
gradients. A convolution has every tap of its kernel at every output pixel,
those that meet padding too. Nothing else is counted, and what the first layer
saves by having no input gradient is not taken off.
"""

import math
from typing import Any

import jax
import numpy as np

from unlearn_jax.base import Model


def forward_macs(model: Model, image_shape: tuple[int, ...]) -> int:
  """MACs of the forward pass of one image, read off its trace.

  Args:
    model: the classifier; needs `init`.
    image_shape: (height, width, channels).

  Returns:
    The count; nothing is computed or compiled.
  """
  assert model.init is not None
  state = jax.eval_shape(model.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
  trace = jax.make_jaxpr(lambda s, x: model.apply(s, x, False)[0])(state, image)
  return _count(trace.jaxpr)


def training_flops(macs: int) -> int:
  """FLOPs of training on one image, by the convention of this module."""
  return 6 * macs


def parameters(model: Model) -> int:
  """How many scalars are trained."""
  assert model.init is not None
  state = jax.eval_shape(model.init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def _count(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, parameter = equation.primitive.name, equation.params
    if name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape
      features = kernel[parameter['dimension_numbers'].rhs_spec[0]]
      out = math.prod(equation.outvars[0].aval.shape)
      total += out * math.prod(kernel) // features
    elif name == 'dot_general':
      (contracted, _), _ = parameter['dimension_numbers']
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += math.prod(equation.outvars[0].aval.shape) * depth
    elif name in ('while', 'cond'):
      raise ValueError(f'{name} in a forward pass: how often is not known')
    else:
      times = parameter.get('length', 1) if name == 'scan' else 1
      total += times * sum(map(_count, _inner(parameter)))
  return total


def _inner(parameter: dict[str, Any]) -> list[Any]:
  """The functions that an operation calls."""
  values = [
    item
    for value in parameter.values()
    for item in (value if isinstance(value, tuple | list) else (value,))
  ]
  opened = [getattr(value, 'jaxpr', value) for value in values]
  return [value for value in opened if hasattr(value, 'eqns')]
