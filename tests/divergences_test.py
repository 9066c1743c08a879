from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special

from unlearn_jax import divergences

ROWS = 16


def random_rows(seed, zeros=True):
  """`[ROWS, 5]` probabilities in float32, some of them 0."""
  rng = np.random.default_rng(seed)
  p = rng.gamma(0.3, size=(ROWS, 5))
  if zeros:
    p = p * (rng.random((ROWS, 5)) < 0.7)
    p[:, 0] += 1e-3
  return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def test_js_by_hand():
  p = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
  q = jnp.array([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
  # The second: m = (3/4, 1/4); ½ log₂ 4/3 + ½ (½ log₂ 2/3 + ½ log₂ 2).
  second = 0.5 * np.log2(4 / 3) + 0.25 * (np.log2(2 / 3) + 1)
  fourth = 0.25 * (np.log2(4 / 3) + np.log2(4 / 5)) + 0.5 * (
    0.25 * np.log2(2 / 3) + 0.75 * np.log2(6 / 5)
  )
  np.testing.assert_allclose(
    divergences.js_divergence(p, q), [1, second, 0, fourth], atol=1e-7
  )


@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_js_is_what_scipy_gives(seed, other):
  p, q = random_rows(seed), random_rows(other)
  js = scipy.spatial.distance.jensenshannon(
    p.astype(float), q.astype(float), base=2, axis=1
  )
  np.testing.assert_allclose(
    divergences.js_divergence(p, q), js**2, rtol=1e-5, atol=1e-6
  )


@given(seed=st.integers(0, 10_000), other=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_js_theorems(seed, other):
  p, q = random_rows(seed), random_rows(other)
  js = np.asarray(divergences.js_divergence(p, q))
  assert ((js >= 0) & (js <= 1)).all()
  np.testing.assert_array_equal(js, divergences.js_divergence(q, p))
  np.testing.assert_array_equal(divergences.js_divergence(p, p), 0)
  # Half the total variation in nats is a lower bound (Pinsker), the total
  # variation an upper one.
  variation = abs(p - q).sum(1) / 2
  assert (js <= variation + 1e-6).all()
  assert (js >= variation**2 / (2 * np.log(2)) - 1e-6).all()


def test_js_of_disjoint_rows_does_not_pass_one():
  # A thousand thirds do not sum to 1 exactly.
  p = np.zeros((1, 2000), np.float32)
  p[:, :1000] = 1 / 1000
  p[:, 0] += 1e-5
  js = divergences.js_divergence(p, p[:, ::-1])
  assert 1 - 1e-4 < js.item() <= 1


def test_js_of_close_rows_keeps_its_digits():
  # JS ~ δ² / (2 ln 2) at (½ + δ, ½ - δ) against (½, ½).
  delta = 2.0**-13
  p = jnp.array([0.5 + delta, 0.5 - delta])
  js = divergences.js_divergence(p, jnp.array([0.5, 0.5])).item()
  np.testing.assert_allclose(js, delta**2 / (2 * np.log(2)), rtol=1e-2)


@pytest.mark.parametrize('tiny', [0.0, 1e-45, 2e-38, 1e-30, 1e-19, 1e-9])
def test_finite_with_finite_gradients_at_zero(tiny):
  divergence = divergences.js_divergence
  tiny = np.float32(tiny)
  p = jnp.array([[tiny, 1.0, tiny], [tiny, tiny, 1.0]])
  q = jnp.array([[tiny, 0.5, 0.5], [tiny, 1e-3, 1.0]])
  values = divergence(p, q)
  gradients = jax.grad(lambda p, q: divergence(p, q).sum(), (0, 1))(p, q)
  assert np.isfinite(values).all()
  assert np.isfinite(gradients).all()
  assert (np.asarray(gradients)[1, 0, 1] != 0).all()


def test_js_gradient_is_that_of_the_formula():
  p = jnp.array([0.1, 0.2, 0.7])
  q = jnp.array([0.3, 0.3, 0.4])
  gradient = jax.grad(divergences.js_divergence)(p, q)
  # ∂JS/∂pᵢ = ½ log₂(pᵢ / mᵢ)
  np.testing.assert_allclose(gradient, np.log2(2 * p / (p + q)) / 2, atol=1e-6)


def test_js_gradient_does_not_vanish_at_the_upper_bound():
  p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  assert divergences.js_divergence(p, q) == 1
  assert jax.grad(divergences.js_divergence)(p, q)[0] > 0.4


def test_js_pulls_logits_together():
  target = jnp.array([0.7, 0.2, 0.1])

  def loss(logits):
    return divergences.js_divergence(target, jax.nn.softmax(logits))

  logits = jnp.array([-2.0, 0.0, 3.0])
  before = loss(logits)
  step = jax.jit(lambda x: x - 5.0 * jax.grad(loss)(x))
  for _ in range(200):
    logits = step(logits)
  assert before > 0.3
  assert loss(logits) < 1e-6


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_narrow_floats_are_widened(dtype):
  p = jnp.array([[[0.25, 0.75]]], dtype)
  q = jnp.array([[[0.5, 0.5]]], dtype)
  value = jax.jit(divergences.js_divergence)(p, q)
  assert value.dtype == jnp.float32
  assert value.shape == (1, 1)


def test_shapes_have_to_be_equal():
  with pytest.raises(AssertionError):
    divergences.js_divergence(jnp.ones((2, 3)), jnp.ones(3))


def test_similarity_is_one_minus_the_mean_js():
  p = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
  q = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
  assert divergences.similarity(p, q) == 0.75
  assert divergences.similarity(p, p) == 1
  assert isinstance(divergences.similarity(p, q), float)


@pytest.mark.parametrize(
  'row', [[0.5, 0.6], [-0.1, 1.1], [np.nan, 1.0], [np.inf, 0.0], [3.0, -7.0]]
)
def test_similarity_needs_probabilities(row):
  good = np.array([[0.5, 0.5], [0.5, 0.5]])
  bad = np.array([[0.5, 0.5], row])
  with pytest.raises(ValueError, match=r'^p\[1\] is .*allowed are probab'):
    divergences.similarity(bad, good)
  with pytest.raises(ValueError, match=r'^q\[1\] is .*allowed are probab'):
    divergences.similarity(good, bad)


def test_similarity_needs_examples_and_matrices():
  with pytest.raises(ValueError, match=r'^p=\(0, 3\), allowed'):
    divergences.similarity(np.zeros((0, 3)), np.zeros((0, 3)))
  with pytest.raises(AssertionError):
    divergences.similarity(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
