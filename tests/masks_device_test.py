"""The selection under `jit`: equal to NumPy's, small, and on many devices."""

import functools

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from masks_test import SHAPES, VALUES, large_tree, make, reference, tree_size
import numpy as np
import pytest

from unlearn_jax import masks
from unlearn_jax.masks import device, host, keys, scalars

# How many bits a pass finds on a CPU, and elsewhere.
DIGITS = (2, 3)


@functools.cache
def topk_by(digit):
  """`scalars._topk_on_device` for leaves on one device, compiled anew."""

  @jax.jit
  def topk(leaves, k):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(device, '_digit', lambda: digit)
      return scalars._topk_on_device.__wrapped__(leaves, k, shardings=None)

  return topk


def on_device(grads, k, digit=2):
  leaves, treedef = jax.tree.flatten(grads)
  found = topk_by(digit)(leaves, jnp.array([k], jnp.uint32))
  return jax.tree.unflatten(treedef, found)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_digit_is_what_sorting_gives(data):
  name = data.draw(st.sampled_from(sorted(SHAPES)))
  dtype = data.draw(st.sampled_from(('float32', 'bfloat16', 'mixed')))
  size = tree_size(name)
  element = st.sampled_from((*VALUES, np.nan, np.inf, -np.inf, 7.0, 1e-3))
  values = data.draw(st.lists(element, min_size=size, max_size=size))
  grads = make(name, dtype, values)
  k = data.draw(st.integers(1, size))
  digit = data.draw(st.sampled_from(DIGITS))
  chex.assert_trees_all_equal(on_device(grads, k, digit), reference(grads, k))


@pytest.mark.parametrize('digit', DIGITS)
@pytest.mark.parametrize('round_to', [None, 1, -1])
def test_every_digit_agrees_on_large_leaves(digit, round_to):
  grads = large_tree(round_to)
  size = sum(x.size for x in grads.values())
  for k in (1, 45, 70_000, size - 1, size):
    found = on_device(grads, k, digit)
    chex.assert_trees_all_equal(found, reference(grads, k))


@pytest.mark.parametrize('k', [45, 60_000, 1_150_000])
def test_many_ties_among_many_scalars_are_cut_exactly(k):
  # An odd number of them, a tenth of which ties.
  rng = np.random.default_rng(0)
  values = rng.standard_normal(1_200_007).astype('f')
  values[rng.random(values.size) < 0.1] = 1.5
  grads = {'a': values[:700_001], 'b': values[700_001:]}
  expected = reference(grads, k)
  chex.assert_trees_all_equal(on_device(grads, k), expected)
  chex.assert_trees_all_equal(masks.topk_mask(grads, grads, k), expected)


@pytest.mark.parametrize(
  'case',
  ['too low', 'too high', 'one leaf far above', 'half tied', 'bfloat16'],
)
def test_numpy_is_exact_where_the_sample_is_no_help(case, monkeypatch):
  rng = np.random.default_rng(0)
  x = rng.standard_normal(300_000).astype('f')
  grads = {'a': x[:100_000], 'b': x[100_000:]}
  if case in ('too low', 'too high'):
    value = np.float32(1e-20 if case == 'too low' else 1e20)
    lie = np.full(1000, value.view(np.int32))
    monkeypatch.setattr(host, '_sample', lambda *_: lie)
  elif case == 'one leaf far above':
    grads['a'] = grads['a'] * 1000
  elif case == 'half tied':
    grads['b'] = np.where(rng.random(200_000) < 0.5, np.float32(1), grads['b'])
  else:
    grads = {name: x.astype(jnp.bfloat16) for name, x in grads.items()}
  for k in (1, 45, 15_000, 80_000, 150_000, 299_999):
    mask = masks.topk_mask(grads, grads, k)
    chex.assert_trees_all_equal(mask, reference(grads, k))


def test_a_jax_array_is_read_and_a_mask_taken_over_without_a_copy():
  x = jnp.arange(70_000.0)
  assert np.asarray(x).ctypes.data == x.unsafe_buffer_pointer()
  (mask,) = host.select([x], 5)
  taken = host.adopt(mask, x)
  assert taken.unsafe_buffer_pointer() == mask.ctypes.data


def test_the_mask_is_on_the_device_of_the_gradients():
  there = jax.devices()[2]
  grads = jax.device_put({'w': jnp.arange(9.0)}, there)
  assert masks.topk_mask(grads, grads, 2)['w'].devices() == {there}
  mask = masks.randomk_mask(jax.random.key(0), grads, 2)
  assert mask['w'].devices() == {there}


def test_another_k_is_not_compiled_again():
  count = scalars._topk_on_device._cache_size
  _, _, sharded = spread(AxisType.Auto)
  masks.topk_mask(sharded, sharded, 3)
  before = count()
  masks.topk_mask(sharded, sharded, 4)
  masks.topk_mask(sharded, sharded, 11)
  assert count() == before > 0

  grads = {'w': jnp.arange(11.0)}

  @jax.jit
  def traced(grads, k):
    return masks.topk_mask(grads, grads, k)

  for k, expected in ((1, 1), (7, 7), (0, 1), (50, 11)):
    assert masks.count_scalars(traced(grads, k)) == expected
  assert traced._cache_size() == 1


@pytest.mark.parametrize('digit', DIGITS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_memory_beyond_the_mask_is_small(dtype, digit):
  shape = jax.ShapeDtypeStruct((4096, 4096), jnp.dtype(dtype))
  k = jax.ShapeDtypeStruct((1,), jnp.uint32)
  memory = topk_by(digit).lower([shape], k).compile().memory_analysis()
  assert memory.output_size_in_bytes <= 2**24 + 1024
  # XLA:CPU copies bfloat16 to float32.
  copied = 4 if dtype == 'bfloat16' else 0
  assert memory.temp_size_in_bytes <= (copied + 0.1) * 2**24


@pytest.mark.parametrize('wide', ['float32', 'float64'])
@pytest.mark.parametrize('narrow', ['float16', 'bfloat16', 'float32'])
def test_a_number_has_the_same_key_from_a_narrower_dtype(narrow, wide):
  bits = np.arange(2**16)
  if narrow == 'float32':  # Every 65,536th number, and the subnormal ones.
    bits = np.concatenate([bits << 16, (bits << 16) + 1, bits])
  numbers = bits.astype(f'uint{8 * jnp.dtype(narrow).itemsize}').view(
    jnp.dtype(narrow)
  )
  with jax.enable_x64(wide == 'float64'):
    found = keys.keys_of(jnp.asarray(numbers), jnp.dtype(wide))
    assert found.dtype == f'uint{8 * jnp.dtype(wide).itemsize}'
  with np.errstate(invalid='ignore'):  # Of NaN.
    widened = abs(numbers.astype(wide))
  expected = np.where(np.isnan(widened), 0, widened.view(found.dtype) + 1)
  np.testing.assert_array_equal(found, expected)


def test_priorities_of_different_places_differ():
  words = jax.random.bits(jax.random.key(3), (3,), jnp.uint32)
  drawn = np.asarray(keys.shuffled(jnp.arange(2**16, dtype=jnp.uint32), words))
  assert np.unique(drawn).size == 2**16
  # Each bit is set in half of them.
  for bit in range(32):
    assert abs(np.mean(drawn >> bit & 1) - 0.5) < 0.01


# A leaf's shape, and how a mesh of two axes spreads it.
LEAVES = {
  'both': ((8, 128, 72), PartitionSpec('x', 'y')),
  'joint': ((8, 160), PartitionSpec(None, ('y', 'x'))),
  'nowhere': ((3,), PartitionSpec()),
  'one': ((4000,), PartitionSpec('y')),
}


def spread(axis_type, round_to=1):
  mesh = jax.make_mesh((2, 2), ('x', 'y'), axis_types=(axis_type,) * 2)
  rng = np.random.default_rng(0)
  dense = {
    name: np.round(rng.standard_normal(shape), round_to).astype('f')
    for name, (shape, _) in LEAVES.items()
  }
  sharded = {
    name: jax.device_put(x, NamedSharding(mesh, LEAVES[name][1]))
    for name, x in dense.items()
  }
  return mesh, dense, sharded


WAYS = {
  'topk': lambda g, k: masks.topk_mask(g, g, k),
  'leaf': lambda g, k: masks.topk_mask(g, g, 3, scope='leaf'),
  'random': lambda g, k: masks.randomk_mask(jax.random.key(0), g, k),
  'both': lambda g, k: masks.random_topk_mask(jax.random.key(0), g, g, k, 30),
}


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('way', WAYS)
def test_sharded_parameters_give_the_mask_of_dense_ones(axis_type, way):
  mesh, dense, sharded = spread(axis_type)
  with jax.set_mesh(mesh):
    for k in (45, 20_000):
      choose = functools.partial(WAYS[way], k=k)
      expected = choose(dense)
      if way == 'topk':
        chex.assert_trees_all_equal(expected, reference(dense, k))
      inside, outside = jax.jit(choose)(sharded), choose(sharded)
      chex.assert_trees_all_equal(inside, expected)
      chex.assert_trees_all_equal(outside, expected)
      for name, x in sharded.items():
        same = outside[name].sharding.is_equivalent_to(x.sharding, x.ndim)
        assert same, name
        if way == 'topk' or axis_type == AxisType.Explicit:
          same = inside[name].sharding.is_equivalent_to(x.sharding, x.ndim)
          assert same, name


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('way', WAYS)
def test_no_parameter_travels_between_devices(axis_type, way):
  mesh, _, sharded = spread(axis_type)
  with jax.set_mesh(mesh):
    choose = functools.partial(WAYS[way], k=50)
    texts = [jax.jit(choose).lower(sharded).compile().as_text()]
    leaves = list(sharded.values())
    shardings = device.shardings_of(leaves)
    assert shardings == tuple(x.sharding for x in leaves)
    one = jnp.ones(1, jnp.uint32)
    lowered = scalars._topk_on_device.lower(leaves, one, shardings=shardings)
    texts.append(lowered.compile().as_text())
  assert 'all-gather' not in texts[1]
  for text in texts:
    assert 'all-to-all' not in text
    assert 'collective-permute' not in text
    for line in text.splitlines():
      # Where shardings are not known, counts of devices are gathered.
      if ' all-gather(' in line:
        kind, _, shape = line.split('= ')[1].split(']')[0].partition('[')
        assert kind == 'u32', line
        assert np.prod([int(n) for n in shape.split(',')]) <= 8, line


def test_numpy_gradients_of_sharded_parameters():
  _, dense, sharded = spread(AxisType.Auto)
  mask = masks.topk_mask(sharded, dense, 500)
  chex.assert_trees_all_equal(mask, reference(dense, 500))
  assert mask['both'].sharding == sharded['both'].sharding


def test_sharded_nan_is_named():
  _, dense, _ = spread(AxisType.Auto)
  dense['one'][7] = np.nan
  mesh = jax.make_mesh((2, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  sharded = {
    name: jax.device_put(x, NamedSharding(mesh, LEAVES[name][1]))
    for name, x in dense.items()
  }
  for scope in ('global', 'leaf'):
    with pytest.raises(ValueError, match=r"grads\['one'\] contains NaN"):
      masks.topk_mask(sharded, sharded, 2, scope=scope)


def test_a_checked_shard_map_is_refused_and_an_unchecked_one_selects():
  mesh = jax.make_mesh((4,), ('d',), axis_types=(AxisType.Auto,))
  tree = {'w': jnp.arange(32.0).reshape(8, 4)}

  def selected(check):
    part = PartitionSpec('d')
    options = {'mesh': mesh, 'in_specs': part, 'out_specs': part}
    mapped = jax.shard_map(
      lambda tree: masks.topk_mask(tree, tree, 3), **options, check_vma=check
    )
    return jax.jit(mapped)(tree)['w']

  with pytest.raises(ValueError, match='allowed there: check_vma=False'):
    selected(True)
  assert np.flatnonzero(selected(False)).tolist() == [
    *(5, 6, 7, 13, 14, 15, 21, 22, 23, 29, 30, 31)
  ]
