import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from unlearn_jax import masks, perturbation

KEY = jax.random.key(0)


def example(dtype='float32', share=0.4, seed=0):
  """A tree and a mask of it."""
  rng = np.random.default_rng(seed)
  shapes = {'a': (3, 5), 'b': {'c': (8,), 'd': (), 'e': (0, 2)}}

  def fill(make):
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))

  params = fill(lambda s: jnp.asarray(rng.standard_normal(s), dtype))
  mask = fill(lambda s: jnp.asarray(rng.random(s) < share))
  return params, mask


def flat(tree):
  return np.concatenate(
    [np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)]
  )


def bits(tree):
  """Tells 0 from -0 and one NaN from another."""
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def test_perturb_by_hand():
  params = {'w': jnp.array([[1.0, -2.0], [4.0, 0.0]])}
  mask = {'w': jnp.array([[True, True], [False, True]])}
  for epsilon, expected in (
    (0.5, [[1.5, -3.0], [4.0, 0.0]]),
    (-1, [[0.0, 0.0], [4.0, 0.0]]),
    (np.float64(1), [[2.0, -4.0], [4.0, 0.0]]),
  ):
    result = perturbation.perturb(params, mask, epsilon)
    np.testing.assert_array_equal(result['w'], expected)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('change', ['perturb', 'tensor', 'tree'])
def test_the_unchosen_keep_their_bits_and_all_their_dtype(dtype, change):
  params, mask = example(dtype)
  params['b']['c'] = (
    params['b']['c'].at[:3].set(jnp.array([-0.0, jnp.nan, 6e-8], dtype))
  )
  mask['b']['c'] = mask['b']['c'].at[:3].set(False)
  if change == 'perturb':
    result = perturbation.perturb(params, mask, 0.7)
  else:
    result = perturbation.donor_mix(KEY, params, mask, 0.7, scope=change)
  chex.assert_trees_all_equal_shapes_and_dtypes(result, params)
  chosen = flat(mask)
  assert 0 < chosen.sum() < chosen.size
  assert flat(result)[~chosen].tobytes() == flat(params)[~chosen].tobytes()
  assert (flat(result)[chosen] != flat(params)[chosen]).any()


@pytest.mark.parametrize('change', ['perturb', 'tensor', 'tree'])
def test_epsilon_zero_is_the_identity(change):
  params, mask = example(share=1.0)
  if change == 'perturb':
    result = perturbation.perturb(params, mask, 0.0)
  else:
    result = perturbation.donor_mix(KEY, params, mask, 0.0, scope=change)
  assert bits(result) == bits(params)


@given(epsilon=st.floats(-0.9, 9.0), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_perturb_is_undone_by_its_inverse(epsilon, seed):
  params, mask = example(seed=seed)
  there = perturbation.perturb(params, mask, epsilon)
  back = perturbation.perturb(there, mask, 1 / (1 + epsilon) - 1)
  chex.assert_trees_all_close(back, params, rtol=2e-5)


def test_perturb_under_jit():
  params, mask = example()
  jitted = jax.jit(lambda p, m: perturbation.perturb(p, m, 0.3))
  chex.assert_trees_all_close(
    jitted(params, mask), perturbation.perturb(params, mask, 0.3), rtol=1e-6
  )


def test_perturb_of_sharded_parameters():
  mesh = Mesh(np.array(jax.devices()[:4]), ('x',))
  sharding = NamedSharding(mesh, PartitionSpec('x'))
  w = np.arange(8, dtype=np.float32)
  params = {'w': jax.device_put(w, sharding)}
  mask = {'w': jax.device_put(w % 3 == 0, sharding)}
  for result in (
    perturbation.perturb(params, mask, 1.0),
    perturbation.donor_mix(KEY, params, mask, 0.5),
  ):
    assert result['w'].sharding == sharding
  np.testing.assert_array_equal(
    perturbation.perturb(params, mask, 1.0)['w'], [0, 1, 2, 6, 4, 5, 12, 7]
  )


@pytest.mark.parametrize('epsilon', [np.nan, np.inf, -np.inf])
def test_epsilon_has_to_be_finite(epsilon):
  params, mask = example()
  message = f'epsilon={epsilon}, allowed: finite'
  with pytest.raises(ValueError, match=message):
    perturbation.perturb(params, mask, epsilon)
  with pytest.raises(ValueError, match=message):
    perturbation.donor_mix(KEY, params, mask, epsilon)


def test_masks_that_do_not_fit():
  params = {'w': jnp.zeros(3)}
  for bad in (
    {'v': jnp.zeros(3, bool)},
    {'w': jnp.zeros(4, bool)},
    {'w': jnp.zeros(3)},
  ):
    with pytest.raises(AssertionError):
      perturbation.perturb(params, bad, 1.0)
    with pytest.raises(AssertionError):
      perturbation.donor_mix(KEY, params, bad, 1.0)
    with pytest.raises(AssertionError):
      perturbation.reinitialize(params, params, bad)


def test_donor_mix_by_hand():
  # Two chosen ones can only swap; a single one stays.
  params = {'a': jnp.array([1.0, 2.0, 3.0]), 'b': jnp.array([10.0, 20.0])}
  mask = {'a': jnp.array([True, False, True]), 'b': jnp.array([False, True])}
  result = perturbation.donor_mix(KEY, params, mask, 0.25)
  chex.assert_trees_all_equal(
    result, {'a': np.array([1.5, 2, 2.5], 'f'), 'b': np.array([10, 20.0], 'f')}
  )


def test_donors_are_one_cycle_within_each_tensor():
  params = {'a': jnp.arange(40.0).reshape(5, 8), 'b': jnp.arange(100.0, 120)}
  mask = jax.tree.map(lambda x: x % 4 != 0, params)
  for seed in range(5):
    result = perturbation.donor_mix(
      jax.random.key(seed), params, mask, 1.0, scope='tensor'
    )
    for name in params:
      chosen = np.asarray(mask[name]).reshape(-1)
      weights = np.asarray(params[name]).reshape(-1)[chosen]
      donors = np.asarray(result[name]).reshape(-1)[chosen]
      assert_one_cycle(weights, donors)


def test_donors_are_one_cycle_over_the_whole_tree():
  params = {'a': jnp.arange(6.0), 'b': jnp.arange(100.0, 104), 'c': jnp.ones(2)}
  mask = jax.tree.map(lambda x: jnp.full(x.shape, x[0] != 1), params)
  crossed = 0
  for seed in range(5):
    result = perturbation.donor_mix(
      jax.random.key(seed), params, mask, 1.0, scope='tree'
    )
    chosen = flat(mask)
    assert_one_cycle(flat(params)[chosen], flat(result)[chosen])
    crossed += (np.asarray(result['a']) >= 100).sum()
  assert crossed > 0


def assert_one_cycle(weights, donors):
  """All weights are distinct; following donors visits each of them once."""
  donor_of = dict(zip(weights.tolist(), donors.tolist()))
  at, visited = weights[0].item(), []
  for _ in weights:
    visited.append(at)
    at = donor_of[at]
  assert sorted(visited) == sorted(weights.tolist())
  assert at == weights[0]


def test_all_cycles_are_equally_likely():
  params = {'w': jnp.arange(4.0)}
  mask = {'w': jnp.ones(4, bool)}
  mixed = [
    perturbation.donor_mix(jax.random.key(i), params, mask, 1.0)['w']
    for i in range(300)
  ]
  results = [tuple(x.tolist()) for x in mixed]
  often = np.array([results.count(x) for x in sorted(set(results))])
  # (4 - 1)! cycles; 20.5 is the 0.999 quantile of chi-square with 5 degrees.
  assert len(often) == 6
  assert ((often - 50) ** 2 / 50).sum() < 20.5


@pytest.mark.parametrize('scope', ['tensor', 'tree'])
def test_donor_mix_depends_on_the_key_only(scope):
  params, mask = example(share=0.9)

  def mix(seed):
    key = jax.random.key(seed)
    return bits(perturbation.donor_mix(key, params, mask, 1.0, scope=scope))

  assert mix(1) == mix(1)
  assert mix(1) != mix(2)


@pytest.mark.parametrize('scope', ['tensor', 'tree'])
def test_donor_mix_of_nothing(scope):
  params, mask = example(share=0.0)
  result = perturbation.donor_mix(KEY, params, mask, 1.0, scope=scope)
  assert bits(result) == bits(params)
  assert perturbation.donor_mix(KEY, {}, {}, 1.0, scope=scope) == {}


def test_donor_mix_leaves_its_input_alone_and_takes_numpy():
  params = {'w': np.arange(5, dtype=np.float32)}
  mask = {'w': np.ones(5, bool)}
  result = perturbation.donor_mix(KEY, params, mask, 1.0)
  assert params['w'].tolist() == [0, 1, 2, 3, 4]
  assert isinstance(result['w'], jax.Array)
  assert sorted(result['w'].tolist()) == [0, 1, 2, 3, 4]


def test_donor_mix_scope():
  params, mask = example()
  with pytest.raises(ValueError, match="scope='leaf', allowed: 'tensor'"):
    perturbation.donor_mix(KEY, params, mask, 1.0, scope='leaf')


def test_reinitialize_takes_the_chosen():
  params, mask = example()
  fresh, _ = example(seed=1)
  for apply in (perturbation.reinitialize, jax.jit(perturbation.reinitialize)):
    result = apply(params, fresh, mask)
    expected = np.where(flat(mask), flat(fresh), flat(params))
    np.testing.assert_array_equal(flat(result), expected)


def test_reinitialize_needs_alike_trees():
  params, mask = {'w': jnp.zeros(3)}, {'w': jnp.zeros(3, bool)}
  for bad in (
    {'v': jnp.zeros(3)},
    {'w': jnp.zeros(4)},
    {'w': jnp.zeros(3, jnp.bfloat16)},
  ):
    with pytest.raises(AssertionError):
      perturbation.reinitialize(params, bad, mask)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_a_scaled_scalar_is_rounded_once(dtype):
  params = {'w': jnp.asarray(np.linspace(0.5, 3, 999), dtype)}
  mask = {'w': jnp.ones(999, bool)}
  got = perturbation.perturb(params, mask, -0.9)['w']
  exact = np.asarray(params['w'], np.float64) * (1 - 0.9)
  once = jnp.asarray(exact, jnp.float32).astype(dtype)
  np.testing.assert_array_equal(got, once)
  assert got.dtype == dtype


@pytest.mark.parametrize('leaf', [np.int32(3), np.complex64(1j), True, len])
def test_what_is_no_float_is_refused(leaf):
  params = {'w': jnp.ones(2), 'x': leaf}
  mask = {'w': jnp.ones(2, bool), 'x': jnp.array(True)}
  with pytest.raises(ValueError, match=r"params\['x'\] is .*, allowed: floats"):
    perturbation.perturb(params, mask, 1.0)
  with pytest.raises(ValueError, match=r"params\['x'\] is .*, allowed: floats"):
    masks.randomk_mask(jax.random.key(0), params, 1)
