import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.models import convolution, layers

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
SAME_SIZE = ((1, 1), (1, 1))


def in_a_loop(function, *inputs):
  """`function(*inputs)` as `scan` gives it, where XLA:CPU compiles it anew."""

  def body(_, inputs):
    return None, function(*inputs)

  twice = [jnp.stack([x, x]) for x in inputs]
  outs = jax.jit(lambda xs: lax.scan(body, None, xs)[1])(twice)
  return jax.tree.map(lambda x: x[1], outs)


def once(function, *inputs):
  """`function(*inputs)`, compiled where lax's own gradients are fast."""
  return jax.jit(function)(*inputs)


def value_and_gradients(run, function, *inputs):
  def both(*inputs):
    value, backward = jax.vjp(function, *inputs)
    return value, backward(jnp.cos(3 * value))

  return run(both, *inputs)


def assert_close(own, expected, tolerance):
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def drawn(shape, kernel, out, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], shape, dtype)
  w = jax.random.normal(keys[1], (kernel, kernel, shape[-1], out), dtype)
  return x, w / kernel


def convolved(function, stride, padding, **options):
  pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
  return lambda x, w: function(
    x, w, (stride, stride), pads, dimension_numbers=LAYOUT, **options
  )


@pytest.mark.parametrize(
  'batch, side, kernel, stride, padding',
  [
    (4, 8, 3, 1, 1),
    (4, 9, 3, 2, 1),
    (4, 8, 1, 1, 0),
    (4, 7, 1, 2, 1),
    (4, 7, 5, 3, 2),
    (4, 6, 2, 2, 'VALID'),
    (1, 7, 3, 2, 'SAME'),
    # Images smaller than the kernel.
    (4, 2, 3, 1, 1),
    (4, 3, 5, 2, 2),
    # Summed in parts.
    (24, 32, 3, 1, 1),
    (96, 31, 1, 2, 0),
  ],
)
def test_convolution_and_both_gradients_equal_laxs(
  batch, side, kernel, stride, padding
):
  inputs = drawn((batch, side, side, 12), kernel, 10)
  own, laxs = (
    value_and_gradients(run, convolved(function, stride, padding), *inputs)
    for run, function in (
      (in_a_loop, convolution.conv_general_dilated),
      (once, lax.conv_general_dilated),
    )
  )
  assert_close(own, laxs, 1e-4)


@pytest.mark.parametrize('kernel, stride', [(1, 1), (3, 2)])
def test_bfloat16_is_near_float32(kernel, stride):
  function = convolved(convolution.conv_general_dilated, stride, kernel // 2)
  x, w = drawn((32, 32, 32, 12), kernel, 10, jnp.bfloat16)
  own = value_and_gradients(in_a_loop, function, x, w)
  assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {
    jnp.dtype('bfloat16')
  }

  def exactly(x, w):
    value, backward = jax.vjp(function, x, w)
    return value, backward(jnp.cos(3 * own[0]).astype(jnp.float32))

  expected = exactly(x.astype(jnp.float32), w.astype(jnp.float32))
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected)):
    error = np.asarray(a, np.float32) - np.asarray(b)
    assert np.linalg.norm(error) <= 0.02 * np.linalg.norm(b)


def test_parts_are_of_four_images_or_more_and_divide_the_batch():
  def parts(batch, side, channels):
    x = jnp.zeros((batch, side, side, channels))
    sizes = []

    def gradient(lhs, out_grad):
      sizes.append(lhs.shape[0])
      return jnp.zeros((3, 3, channels, channels))

    jax.eval_shape(lambda x: convolution._summed_in_parts(gradient, x, x), x)
    return sizes[-1]

  assert parts(128, 32, 64) == 4
  assert parts(126, 32, 64) == 6
  assert parts(127, 32, 64) == 127
  assert parts(64, 8, 256) == 16
  # A kernel that is larger than its images is added up once.
  assert parts(64, 4, 512) == 64


@pytest.mark.parametrize(
  'options',
  [
    {'feature_group_count': 2},
    {'rhs_dilation': (2, 2)},
    {'lhs_dilation': (2, 2)},
    {'precision': lax.Precision.HIGHEST},
    {'preferred_element_type': jnp.float32},
  ],
)
def test_anything_but_a_plain_convolution_is_laxs(options):
  x, w = drawn((2, 8, 8, 4), 3, 4)
  w = w[:, :, : 4 // options.get('feature_group_count', 1)]
  jaxprs = {
    str(jax.make_jaxpr(convolved(function, 1, 1, **options))(x, w))
    for function in (convolution.conv_general_dilated, lax.conv_general_dilated)
  }
  assert len(jaxprs) == 1


def test_other_backends_get_laxs_own_functions(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  x, w = drawn((2, 8, 8, 4), 1, 4)
  own = jax.make_jaxpr(convolved(convolution.conv_general_dilated, 1, 0))(x, w)
  assert [e.primitive for e in own.eqns] == [lax.conv_general_dilated_p]


@pytest.mark.parametrize('batch, side', [(2, 8), (16, 64)])
def test_gradients_in_a_loop_hold_only_canonical_convolutions(batch, side):
  x, w = jnp.ones((batch, side, side, 8)), jnp.ones((3, 3, 8, 8))

  def loss(x, w):
    out = convolution.conv_general_dilated(x, w, (1, 1), SAME_SIZE)
    return jnp.sum(out**2)

  text = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()
  layouts = [
    line for line in text.splitlines() if 'stablehlo.convolution' in line
  ]
  assert len(layouts) == 3
  for line in layouts:
    assert '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]' in line


def test_images_smaller_than_the_kernel_bring_their_zeros_along():
  x, w = jnp.ones((2, 2, 2, 8)), jnp.ones((3, 3, 8, 8))
  function = convolved(convolution.conv_general_dilated, 1, 1)
  text = jax.jit(function).lower(x, w).as_text()
  assert 'tensor<2x4x4x8xf32>, tensor<3x3x8x8xf32>' in text
  assert 'stablehlo.optimization_barrier' in text
  each = jax.vmap(lambda x: function(x[None], w)[0])(x)
  np.testing.assert_allclose(each, function(x, w), rtol=1e-6)


def test_max_pool_2x2():
  x = jnp.arange(30.0).reshape(1, 5, 6, 1)
  pooled = layers.max_pool_2x2(x)
  assert pooled[0, :, :, 0].tolist() == [[7, 9, 11], [19, 21, 23]]


def reduce_window(x):
  window = (1, 2, 2, 1)
  return lax.reduce_window(x, -np.inf, lax.max, window, window, 'VALID')


@pytest.mark.parametrize('side', [2, 7, 8])
@pytest.mark.parametrize('tied', [False, True])
def test_max_pool_and_its_gradients_equal_reduce_windows(side, tied):
  x = jax.random.normal(jax.random.key(0), (2, side, side + 1, 3))
  x = jnp.maximum(jnp.round(x), 0) if tied else x
  own, laxs = (
    value_and_gradients(in_a_loop, f, x)
    for f in (layers.max_pool_2x2, reduce_window)
  )
  assert_close(own[0], laxs[0], 1e-6)
  if tied:  # Who of equals gets it may differ, none of it may be lost.
    own, laxs = ([grad.sum() for grad in found[1]] for found in (own, laxs))
    np.testing.assert_allclose(own, laxs, rtol=1e-4)
  else:
    assert_close(own, laxs, 1e-6)
