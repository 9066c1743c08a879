"""The convolution that is fast inside loops."""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options,
) -> jax.Array:
  """`lax.conv_general_dilated`, with gradients that stay fast inside loops.

  XLA:CPU turns only the convolutions of a program's entry computation into
  its fast kernel; lax's own gradients, inside `scan`, are not in the form
  that this kernel takes and run 20-40 times slower (jax-ml/jax#12868). Here
  both gradients are spelled out as plain NHWC/HWIO convolutions. On other
  backends, and for dilated or grouped convolutions, this *is* lax's function.

  Args:
    lhs: `[B, height, width, Cin]`.
    rhs: `[kernel height, kernel width, Cin, Cout]`.
    window_strides: (rows, columns).
    padding: 'SAME', 'VALID' or (low, high) pairs, in pixels.
    **options: the further arguments of `lax.conv_general_dilated`.

  Returns:
    `[B, height', width', Cout]`.
  """
  plain = (
    lhs.ndim == 4
    and options.get('feature_group_count', 1) == 1
    and all(d == 1 for d in options.get('lhs_dilation') or (1,))
    and all(d == 1 for d in options.get('rhs_dilation') or (1,))
  )
  if not plain or jax.default_backend() != 'cpu':
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, **options
    )
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      lhs.shape[1:3], rhs.shape[:2], strides, padding
    )
  pads = tuple((int(low), int(high)) for low, high in padding)
  return _convolve(lhs, rhs, strides, pads)


def _canonical(lhs, rhs, strides, pads, lhs_dilation=(1, 1), rhs_dilation=None):
  return lax.conv_general_dilated(
    lhs,
    rhs,
    strides,
    pads,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=_LAYOUT,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(lhs, rhs, strides, pads):
  return _canonical(lhs, rhs, strides, pads)


def _convolve_forward(lhs, rhs, strides, pads):
  return _canonical(lhs, rhs, strides, pads), (lhs, rhs)


def _convolve_backward(strides, pads, residuals, out_grad):
  lhs, rhs = residuals
  # What the windows leave over at the bottom and right when they do not tile
  # the padded input; it takes part in neither gradient but must be counted.
  left_over = [
    lhs.shape[1 + i]
    + sum(pads[i])
    - rhs.shape[i]
    - strides[i] * (out_grad.shape[1 + i] - 1)
    for i in range(2)
  ]
  # d lhs: the gradient, spread out by the strides, under the flipped kernel.
  lhs_grad = _canonical(
    out_grad,
    jnp.flip(rhs, (0, 1)).transpose(0, 1, 3, 2),
    (1, 1),
    [
      (
        rhs.shape[i] - 1 - pads[i][0],
        rhs.shape[i] - 1 - pads[i][1] + left_over[i],
      )
      for i in range(2)
    ],
    lhs_dilation=strides,
  )
  # d rhs: channels act as the batch, and the batch is summed as channels are.
  rhs_grad = _canonical(
    lhs.transpose(3, 1, 2, 0),
    out_grad.transpose(1, 2, 0, 3),
    (1, 1),
    [(pads[i][0], pads[i][1] - left_over[i]) for i in range(2)],
    rhs_dilation=strides,
  ).transpose(1, 2, 0, 3)
  return lhs_grad, rhs_grad


_convolve.defvjp(_convolve_forward, _convolve_backward)
