import functools
from typing import NamedTuple

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats

from unlearn_jax import masks

# Few trees, so that XLA compiles few programs for many examples.
SHAPES = {
  'plain': {'a': (3, 4), 'b': (5,)},
  'odd': {'empty': (0, 3), 'one': (), 'row': (1, 7), 'z': (2, 2, 3)},
  'bare': (17,),
}
DTYPES = ('float32', 'bfloat16', 'float16', 'mixed')
# Zeros, ties, numbers that are tiny, subnormal or large in every dtype.
VALUES = (0.0, -0.0, 1.0, -1.0, 1.0, 2.0, -0.5, 3e4, 6e-8, -1e-7, 1e-39, 3e-39)


class Layer(NamedTuple):
  kernel: jax.Array
  bias: jax.Array


def make(name, dtype, values):
  """A tree of NumPy arrays of the shape `name`, filled from the front."""
  leaves, treedef = jax.tree.flatten(
    SHAPES[name], is_leaf=lambda x: isinstance(x, tuple)
  )
  cycle = ('float16', 'float32', 'bfloat16')
  filled, start = [], 0
  for i, shape in enumerate(leaves):
    size = int(np.prod(shape))
    kind = cycle[i % 3] if dtype == 'mixed' else dtype
    piece = np.asarray(values[start : start + size], np.float64)
    filled.append(piece.reshape(shape).astype(jnp.dtype(kind)))
    start += size
  return jax.tree.unflatten(treedef, filled)


def tree_size(name):
  zeros = make(name, 'float32', np.zeros(100))
  return sum(x.size for x in jax.tree.leaves(zeros))


def reference(grads, k):
  """Sorts by |g| (NaN last), then by place; float64 holds every value."""
  leaves = [np.asarray(x) for x in jax.tree.leaves(grads)]
  flat = [abs(x.astype(np.float64).reshape(-1)) for x in leaves]
  rank = np.nan_to_num(np.concatenate(flat), nan=-1.0, posinf=np.inf)
  chosen = np.zeros(rank.size, bool)
  chosen[np.lexsort((np.arange(rank.size), -rank))[:k]] = True
  ends = np.cumsum([x.size for x in leaves])[:-1]
  parts = [c.reshape(x.shape) for c, x in zip(np.split(chosen, ends), leaves)]
  return jax.tree.unflatten(jax.tree.structure(grads), parts)


@functools.partial(jax.jit, static_argnames=('k', 'granularity'))
def jitted_topk(grads, k, granularity='scalar'):
  return masks.topk_mask(grads, grads, k, granularity=granularity)


def all_of(tree):
  return np.concatenate(
    [np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)]
  )


def test_topk_takes_the_largest_of_the_whole_tree():
  grads = {'b': jnp.array([0.5, -4.0]), 'a': jnp.array([[1.0, -3.0], [2.0, 0]])}
  mask = masks.topk_mask(grads, grads, 3)
  chex.assert_trees_all_equal(
    mask,
    {'a': np.array([[0, 1], [1, 0]], bool), 'b': np.array([0, 1], bool)},
  )


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_topk_is_what_sorting_gives(data):
  name = data.draw(st.sampled_from(sorted(SHAPES)))
  dtype = data.draw(st.sampled_from(DTYPES))
  size = tree_size(name)
  element = st.one_of(
    st.sampled_from(VALUES), st.floats(-10, 10, width=16), st.just(np.inf)
  )
  values = data.draw(st.lists(element, min_size=size, max_size=size))
  grads = make(name, dtype, values)
  k = data.draw(st.integers(1, size))
  mask = masks.topk_mask(grads, grads, k)
  chex.assert_trees_all_equal(mask, reference(grads, k))
  assert masks.count_scalars(mask) == k


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_topk_inside_jit_ranks_nan_lowest(data):
  dtype = data.draw(st.sampled_from(('float32', 'mixed')))
  element = st.sampled_from((*VALUES, np.nan, np.inf, -np.inf))
  size = tree_size('plain')
  values = data.draw(st.lists(element, min_size=size, max_size=size))
  grads = make('plain', dtype, values)
  # Each static k is another program.
  k = data.draw(st.sampled_from((1, 5, 16, 17)))
  chex.assert_trees_all_equal(jitted_topk(grads, k), reference(grads, k))


def test_nan_is_chosen_last_whatever_its_payload_and_in_order():
  payloads = np.array([0x7FC00001, 0xFFFFFFFF, 0x7F800001], np.uint32)
  grads = np.append(payloads.view(np.float32), np.zeros(1, np.float32))
  chosen = [jitted_topk(grads, k).tolist() for k in (1, 2, 3)]
  assert chosen == [
    [False, False, False, True],
    [True, False, False, True],
    [True, True, False, True],
  ]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_every_neighbouring_pair_of_numbers_is_told_apart(dtype):
  # All 16-bit numbers, or the float32 around each power of two and below the
  # smallest normal one. The permutation makes places useless.
  if dtype == 'float32':
    bits = np.arange(0, 0x7F800000, 0x400000, dtype=np.uint32)
    bits = np.unique(np.concatenate([bits, bits + 1, bits[1:] - 1]))
    numbers = bits.view(np.float32)
  else:
    top = 0x7F80 if dtype == 'bfloat16' else 0x7C00
    numbers = np.arange(top + 1, dtype=np.uint16).view(jnp.dtype(dtype))
  shuffle = np.random.default_rng(0).permutation(numbers.size)
  grads = {'x': numbers[shuffle], 'y': np.zeros(1, np.float32)}
  for k in (1, numbers.size // 3, numbers.size - 5, numbers.size - 1):
    mask = masks.topk_mask(grads, grads, k)
    expected = shuffle >= numbers.size - k
    np.testing.assert_array_equal(mask['x'], expected)


def test_subnormal_float16_is_compared_exactly_with_wider_dtypes():
  # Multiples of 2^-24, and float32 right between them.
  half = np.arange(1, 5, dtype=np.uint16).view(np.float16)
  grads = {
    'half': half,
    'single': half.astype(np.float32) + np.float32(2**-25),
    'brain': np.array([2**-24.5, 2**-14], ml_dtypes.bfloat16),
  }
  for k in range(1, 11):
    mask = masks.topk_mask(grads, grads, k)
    chex.assert_trees_all_equal(mask, reference(grads, k))


def test_float64_is_compared_exactly_with_narrower_dtypes():
  with jax.enable_x64(True):
    one = np.nextafter(1.0, 2.0)
    grads = {
      'double': np.array([1.0, one, 5e-324, 1e300]),
      'half': np.array([1.0, 6e-8, np.inf], np.float16),
      'single': np.array([1.0, 1e-45, 2e-45], np.float32),
      'brain': np.array([1.0, 1e-40], ml_dtypes.bfloat16),
    }
    size = 12
    for k in range(1, size + 1):
      mask = masks.topk_mask(grads, grads, k)
      chex.assert_trees_all_equal(mask, reference(grads, k))
      inside = jax.jit(lambda g, k: masks.topk_mask(g, g, k))(grads, k)
      chex.assert_trees_all_equal(inside, mask)


@pytest.mark.parametrize(
  'tree',
  [
    jnp.zeros(6),
    [jnp.zeros(2), jnp.zeros((2, 2))],
    Layer(jnp.zeros((2, 2)), jnp.zeros(2)),
    {'a': {'b': Layer(jnp.zeros((1, 4)), jnp.zeros(())), 'c': jnp.zeros(1)}},
  ],
  ids=['bare', 'list', 'namedtuple', 'nested'],
)
def test_all_zero_gradients_give_the_first_k_of_any_tree(tree):
  for k in range(1, 7):
    mask = masks.topk_mask(tree, tree, k)
    chex.assert_trees_all_equal_structs(mask, tree)
    assert all_of(mask).tolist() == [True] * k + [False] * (6 - k)


def large_tree(round_to=None):
  """Leaves above and below the sizes where the code changes its way."""
  rng = np.random.default_rng(3)
  shapes = {
    'a': (70_001,),
    'b': (64,),
    'c': (3, 3, 64, 128),
    'd': (1023,),
    'e': (1024,),
    'f': (257, 256),
  }
  tree = {k: rng.standard_normal(s).astype('f') for k, s in shapes.items()}
  if round_to is not None:
    tree = jax.tree.map(lambda x: np.round(x, round_to), tree)
  return tree


@pytest.mark.parametrize('round_to', [None, 1, -1])
def test_large_leaves_are_what_sorting_gives(round_to):
  grads = large_tree(round_to)
  size = sum(x.size for x in grads.values())
  for k in (1, 45, 70_000, 150_000, size - 1, size):
    mask = masks.topk_mask(grads, grads, k)
    chex.assert_trees_all_equal(mask, reference(grads, k))


@pytest.mark.parametrize(
  'k, count', [(0.5, 10), (1.0, 20), (1e-9, 1), (0.13, 3), (np.int64(7), 7)]
)
def test_a_float_is_a_share_and_an_int_a_number(k, count):
  params = {'w': jnp.arange(20.0)}
  key = jax.random.key(0)
  assert masks.count_scalars(masks.topk_mask(params, params, k)) == count
  assert masks.count_scalars(masks.randomk_mask(key, params, k)) == count


@pytest.mark.parametrize('k', [0, -1, 21, True, 0.0, 1.5, np.nan, '3', None])
def test_k_out_of_range(k):
  params = {'w': jnp.arange(20.0)}
  key = jax.random.key(0)
  allowed = 'allowed are an int from 1 to 20'
  with pytest.raises(ValueError, match=f'^k is .*{allowed}'):
    masks.topk_mask(params, params, k)
  with pytest.raises(ValueError, match=f'^k is .*{allowed}'):
    masks.randomk_mask(key, params, k)
  with pytest.raises(ValueError, match=f'^k_random is .*{allowed}'):
    masks.random_topk_mask(key, params, params, k, 1)
  with pytest.raises(ValueError, match=f'^k_top is .*{allowed}'):
    masks.random_topk_mask(key, params, params, 5, k)


def test_topk_errors():
  params = {'a': {'w': jnp.zeros(3)}, 'b': jnp.zeros(2)}
  with pytest.raises(ValueError, match="granularity='row', allowed: 'sc"):
    masks.topk_mask(params, params, 1, granularity='row')
  with pytest.raises(ValueError, match="scope='all', allowed: 'gl"):
    masks.topk_mask(params, params, 1, scope='all')
  with pytest.raises(ValueError, match="'global' with gran"):
    masks.topk_mask(params, params, 1, granularity='leaf', scope='leaf')
  with pytest.raises(ValueError, match='k is 4; allowed .* from 1 to 3'):
    masks.topk_mask(params, params, 4, scope='leaf')
  bad = {'a': {'w': jnp.zeros(3)}, 'b': jnp.array([1.0, jnp.nan])}
  with pytest.raises(ValueError, match=r"grads\['b'\] contains NaN"):
    masks.topk_mask(params, bad, 1)
  with pytest.raises(ValueError, match=r"grads\['b'\] contains NaN"):
    masks.topk_mask(params, bad, 1, granularity='leaf')
  with pytest.raises(ValueError, match=r"grads\['b'\] contains NaN"):
    masks.topk_mask(params, bad, 1, scope='leaf')
  bad = {'a': {'w': jnp.zeros(3, int)}, 'b': jnp.zeros(2)}
  with pytest.raises(ValueError, match=r"grads\['a/w'\] has dtype int32"):
    masks.topk_mask(params, bad, 1)
  with pytest.raises(AssertionError):
    masks.topk_mask(params, {'b': jnp.zeros(2)}, 1)
  with pytest.raises(AssertionError):
    masks.topk_mask(params, {'a': {'w': jnp.zeros(4)}, 'b': jnp.zeros(2)}, 1)


def test_trees_without_or_with_too_many_scalars():
  with pytest.raises(ValueError, match='params has 0 scalars; allowed'):
    masks.topk_mask({}, {}, 1)
  huge = {'w': jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)}
  with pytest.raises(ValueError, match='params has 4294967296 scalars'):
    masks.randomk_mask(jax.random.key(0), huge, 1)


@pytest.mark.parametrize('k', [3, 0.25, 1.0])
@pytest.mark.parametrize('inside', [False, True])
def test_leaf_scope_is_a_selection_in_each_leaf(k, inside):
  rng = np.random.default_rng(1)
  sizes = {'a': 40, 'b': 1, 'c': 0, 'd': 70_000, 'e': 12}
  grads = {
    name: np.round(rng.standard_normal(size), 1).astype('f')
    for name, size in sizes.items()
  }

  def choose(grads):
    return masks.topk_mask(grads, grads, k, scope='leaf')

  mask = jax.jit(choose)(grads) if inside else choose(grads)
  for name, size in sizes.items():
    count = min(k, size) if k == 3 else max(1, round(k * size))
    if size:
      expected = reference({'x': grads[name]}, count)['x']
      np.testing.assert_array_equal(mask[name], expected)


def test_leaf_granularity_ranks_tensors_by_norm():
  grads = {
    'a': jnp.full((4, 4), 1.0),  # Norm 4.
    'b': jnp.array([3.0, -4.0]),  # Norm 5.
    'c': jnp.array(-4.5),
    'd': jnp.zeros((0,)),
    'e': jnp.array([-5.0]),  # A tie with b, and later.
  }
  ranking = 'becad'
  for k in range(1, 6):
    expected = {x: np.full(grads[x].shape, x in ranking[:k]) for x in grads}
    mask = masks.topk_mask(grads, grads, k, granularity='leaf')
    chex.assert_trees_all_equal(mask, expected)
    chex.assert_trees_all_equal(jitted_topk(grads, k, 'leaf'), expected)


def test_leaf_granularity_neither_overflows_nor_prefers_nan():
  grads = {
    'large': jnp.array([2e38, 2e38]),
    'larger': jnp.array([3e38]),
    'nan': jnp.array([jnp.nan, 3e38]),
    'small': jnp.array([1e-30]),
    'smaller': jnp.array([1e-31, 1e-31]),
  }
  ranking = ('larger', 'large', 'small', 'smaller', 'nan')
  for k in (1, 2, 3, 4):
    mask = jitted_topk(grads, k, 'leaf')
    assert {x for x in grads if mask[x].all()} == set(ranking[:k])
  grads['small'] = jnp.array([jnp.inf, -jnp.inf])
  assert jitted_topk(grads, 1, 'leaf')['small'].all()


def test_randomk_has_exactly_k_and_depends_on_the_key():
  params = {'a': jnp.zeros((7, 11)), 'b': jnp.zeros(23), 'c': jnp.zeros(())}
  size = 101
  for k in (1, 50, 100, size):
    mask = masks.randomk_mask(jax.random.key(1), params, k)
    assert masks.count_scalars(mask) == k
    chex.assert_trees_all_equal_shapes(mask, params)
  first = all_of(masks.randomk_mask(jax.random.key(1), params, 50))
  again = all_of(masks.randomk_mask(jax.random.key(1), params, 50))
  other = all_of(masks.randomk_mask(jax.random.key(2), params, 50))
  inside = all_of(
    jax.jit(lambda key: masks.randomk_mask(key, params, 50))(jax.random.key(1))
  )
  assert (first == again).all() and (first == inside).all()
  assert (first != other).any()


def test_randomk_is_uniform():
  params = {'a': jnp.zeros((4, 5)), 'b': jnp.zeros(20)}
  draws = np.array(
    [
      all_of(masks.randomk_mask(jax.random.key(seed), params, 10))
      for seed in range(400)
    ]
  )
  # Without replacement, the statistic is (N - 1)/N of a chi-square's.
  statistic = ((draws.sum(0) - 100) ** 2 / 75).sum()
  low, high = scipy.stats.chi2.ppf([0.001, 0.999], 39)
  assert low < statistic < high
  # Pairs of neighbours must not stick together: 10/40 · 9/39 of the draws.
  together = (draws[:, :-1] & draws[:, 1:]).mean()
  assert abs(together - 10 / 40 * 9 / 39) < 0.01


def test_randomk_is_uniform_over_large_and_small_leaves():
  params = large_tree()
  mask = masks.randomk_mask(jax.random.key(5), params, 0.25)
  size = sum(x.size for x in params.values())
  assert masks.count_scalars(mask) == round(size / 4)
  for leaf in mask.values():
    deviation = np.sqrt(0.25 * 0.75 / leaf.size)
    assert abs(np.mean(leaf) - 0.25) < 4 * deviation


@pytest.mark.parametrize('size', [1000, 70_000])
def test_randomk_draws_each_tensor_by_itself(size):
  params = {'a': jnp.zeros(size), 'b': jnp.zeros(size)}
  mask = masks.randomk_mask(jax.random.key(0), params, 0.5)
  assert abs(np.mean(mask['a'] == mask['b']) - 0.5) < 0.1


@pytest.mark.parametrize('k_random, k_top', [(10, 3), (10, 10), (0.5, 0.1)])
def test_random_topk_has_the_count_and_contains_the_topk(k_random, k_top):
  rng = np.random.default_rng(0)
  params = {'a': jnp.zeros((5, 6)), 'b': jnp.zeros(14)}
  grads = {'a': rng.standard_normal((5, 6)), 'b': rng.standard_normal(14)}
  for seed in range(5):
    key = jax.random.key(seed)
    mask = masks.random_topk_mask(key, params, grads, k_random, k_top)
    top = all_of(masks.topk_mask(params, grads, k_top))
    random = all_of(masks.randomk_mask(key, params, k_random))
    assert all_of(mask).sum() == random.sum()
    assert all_of(mask)[top].all()
    # Nobody enters but the Top-K.
    assert random[all_of(mask) & ~top].all()


def test_random_topk_chooses_the_others_uniformly():
  grads = {'a': jnp.array([0.0, 9.0, 1.0, 0.0]), 'b': jnp.arange(7.0)}
  draws = np.array(
    [
      all_of(masks.random_topk_mask(jax.random.key(i), grads, grads, 5, 2))
      for i in range(300)
    ]
  )
  assert (draws.sum(1) == 5).all()
  often = draws.sum(0)
  top = all_of(masks.topk_mask(grads, grads, 2))
  assert (often[top] == 300).all()
  # Three of the other nine, each with probability 1/3.
  statistic = ((often[~top] - 100) ** 2 / (100 * 2 / 3)).sum() * 8 / 9
  low, high = scipy.stats.chi2.ppf([0.001, 0.999], 8)
  assert low < statistic < high


def test_random_topk_refuses_more_top_than_random():
  params = {'w': jnp.arange(20.0)}
  with pytest.raises(ValueError, match=r'k_top is 0\.5, 10 .* k_random, 9 sc'):
    masks.random_topk_mask(jax.random.key(0), params, params, 9, 0.5)


def test_last_k_follows_the_order_and_not_the_tree():
  params = {'a': jnp.zeros((2, 2)), 'b': {'c': jnp.zeros(3), 'd': jnp.zeros(1)}}
  order = ('b/d', 'a', 'b/c')
  for k in (1, 2, 3):
    mask = masks.last_k_mask(params, k, order)
    chosen = order[-k:]
    assert mask['a'].tolist() == [['a' in chosen] * 2] * 2
    assert mask['b']['c'].tolist() == ['b/c' in chosen] * 3
    assert mask['b']['d'].tolist() == ['b/d' in chosen]


@pytest.mark.parametrize('k', [0, -1, 4, True, 1.0, '1'])
def test_last_k_out_of_range(k):
  params = [jnp.zeros(1)] * 3
  with pytest.raises(ValueError, match=f'^k={k!r}, allowed: 1 to 3'):
    masks.last_k_mask(params, k, ('0', '1', '2'))


@pytest.mark.parametrize(
  'order, message',
  [
    (('a',), "order='b/c', allowed: each"),
    ((), "order='a', allowed: each"),
    (('a', 'x', 'b/c', 'y'), "order='x', allowed: each"),
    (('b/c', 'a', 'b/c'), "order='b/c', allowed: each"),
  ],
)
def test_last_k_order_has_to_be_a_permutation(order, message):
  params = {'a': jnp.zeros(2), 'b': {'c': jnp.zeros(3)}}
  with pytest.raises(ValueError, match=message):
    masks.last_k_mask(params, 1, order)


def test_counts():
  mask = {
    'a': np.array([[True, False], [True, True]]),
    'b': jnp.zeros(4, bool),
    'c': jnp.array(True),
    'd': jnp.zeros((0,), bool),
  }
  assert masks.count_scalars(mask) == 4
  assert masks.count_scalars({}) == 0
  with pytest.raises(AssertionError):
    masks.count_scalars({'a': jnp.ones(3)})


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'int32'])
@pytest.mark.parametrize('k, count', [(100, 100), (-3, 1), (120, 120)])
def test_a_traced_k_of_any_dtype(dtype, k, count):
  if dtype.startswith('u') and k < 0:
    return
  grads = jnp.arange(1000.0)
  mask = jax.jit(lambda k: masks.topk_mask(grads, grads, k))(
    jnp.asarray(k, dtype)
  )
  assert mask.sum() == count


def test_a_traced_random_k_below_k_top_is_k_top():
  grads = jnp.arange(40.0)
  mask = jax.jit(
    lambda k: masks.random_topk_mask(jax.random.key(0), grads, grads, k, 5)
  )(3)
  assert np.flatnonzero(mask).tolist() == [35, 36, 37, 38, 39]


@pytest.mark.parametrize('k', [jnp.int32(3), np.array(3), jnp.float32(0.075)])
def test_a_k_that_is_an_array_of_one_number(k):
  grads = jnp.arange(40.0)
  assert masks.topk_mask(grads, grads, k).sum() == 3
