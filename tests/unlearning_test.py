"""The whole method, worked by hand: `unlearn`, a case for each strategy.

Two layers without an activation, z and then a. Inputs are the rows of an
identity, so that row i of z belongs to example i alone: it moves if and only
if example i is trained on. The loss is minus the output of the label, whose
gradients can be read off: of z[i] it is −a[:, label], of a[:, c] it is minus
the sum of z[i] over the examples i with label c. Adam's first step is ±rate.
"""

import dataclasses
import time

import helpers
import jax
import jax.numpy as jnp
from jax.sharding import (
  AxisType,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)
import numpy as np
import optax
import pytest

from unlearn_jax import (
  finetuning,
  normalization,
  parallel,
  strategies,
  timing,
  training,
)
from unlearn_jax.base import (
  Batch,
  Context,
  Examples,
  Model,
  ModelState,
  Splits,
  stateless,
  tensor_paths,
)
from unlearn_jax.evaluation import evaluate
from unlearn_jax.finetuning import Budget
from unlearn_jax.masks import topk_mask
from unlearn_jax.perturbation import perturb
from unlearn_jax.recipes import Recipe
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.strategies import (
  cf_k,
  eu_k,
  finetune,
  random_k,
  random_scalars,
  random_top_k,
  retrain,
  top_k,
)
from unlearn_jax.unlearning import unlearn

X = np.eye(8, dtype=np.float32)
Y = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32)
# Rows 0 to 4 are retained, 5 is to be forgotten, 6 and 7 are the test set.
EVERY = Examples.of(X, Y)
SPLITS = Splits.of(EVERY.take(np.arange(6)), [5], EVERY.take(np.array([6, 7])))
A = [[2.0, -1.0], [0.5, 3.0]]
Z = [[1, 1], [3, -2], [-2, 1], [1, -1], [2, 2], [-1, 4], [1, 0], [0, 1]]
SOURCE = ModelState({'z': jnp.array(Z, jnp.float32), 'a': jnp.array(A)})
# A teacher that is as sure of class 0 on D_UL as the source is of class 1.
RETRAINED = ModelState({'z': SOURCE.params['z'], 'a': jnp.array(A)[:, ::-1]})
FRESH = {'z': jnp.ones((8, 2)), 'a': jnp.eye(2)}
MODEL = stateless(
  lambda params, x: x @ params['z'] @ params['a'],
  init=lambda key: ModelState(FRESH),
  loss=lambda logits, labels: -logits[jnp.arange(len(labels)), labels],
  order=('z', 'a'),
)
# One step an epoch, of all of D_RE and the whole of D_UL.
BUDGET = Budget(1, learning_rate=0.25, batch_size=5)


def run(strategy, budget=BUDGET, seed=0, **options):
  options = {'model': MODEL, 'source': SOURCE, 'splits': SPLITS, **options}
  with parallel.use(jax.devices()[:1]):
    return unlearn(
      jax.random.key(seed), strategy=strategy, budget=budget, **options
    )


def edited(strategy, seed=0, **options):
  """The parameters after the edit, as NumPy arrays."""
  params = run(strategy, Budget(0, batch_size=5), seed, **options).state.params
  return {name: np.asarray(leaf) for name, leaf in params.items()}


def expect(params, z=None, a=None, message=''):
  z = Z if z is None else z
  a = A if a is None else a
  np.testing.assert_allclose(params['a'], a, atol=2e-5, err_msg=f'a {message}')
  np.testing.assert_allclose(params['z'], z, atol=2e-5, err_msg=f'z {message}')


def rows(changes):
  """Z with some of its rows replaced."""
  return [changes.get(i, row) for i, row in enumerate(Z)]


# After the edit.


@pytest.mark.parametrize(
  'strategy, a',
  [
    # |∂F/∂a| · 6 = [[5, 5], [4, 7]], |∂F/∂z| · 6 = (2, 0.5) or (1, 3).
    (top_k(1, -1.0), [[2, -1], [0.5, 0]]),
    # Of the two fives, the earlier one.
    (top_k(2, -1.0), [[0, -1], [0.5, 0]]),
    (top_k(2, 0.5), [[3, -1], [0.5, 4.5]]),
    (top_k(0.1, -1.0), [[0, -1], [0.5, 0]]),
    (top_k(1, -1.0, granularity='leaf'), [[0, 0], [0, 0]]),
    # The signs cancel: |mean of g| · 6 = [[1, 3], [4, 1]].
    (top_k(1, -1.0, reduction='mean'), [[2, -1], [0, 3]]),
    # Of ½‖f‖²: [[∙, 64], [∙, 89]].
    (top_k(2, -1.0, objective='output_norm'), [[2, 0], [0.5, 0]]),
  ],
)
def test_top_k_changes_the_most_sensitive(strategy, a):
  expect(edited(strategy), a=a)


@pytest.mark.parametrize(
  'strategy, params',
  [
    (finetune(), {}),
    (cf_k(1), {}),
    (eu_k(1), {'a': FRESH['a']}),
    (eu_k(2), FRESH),
    (retrain(), FRESH),
  ],
)
def test_layers_and_references_start_where_they_should(strategy, params):
  budget = Budget(0, batch_size=5)
  result = run(strategy, budget, recipe=recipe(epochs=0))
  expect(result.state.params, **params)
  # Adding nothing is counted as nothing.
  counts = {'z': 16, 'a': 4}
  changed = {n: counts[n] if n in params else 0 for n in counts}
  assert result.by_tensor == changed


def test_a_fresh_start_follows_the_key():

  def drawn(key):
    return jax.tree.map(lambda w: w + jax.random.normal(key, w.shape), FRESH)

  model = dataclasses.replace(MODEL, init=lambda key: ModelState(drawn(key)))
  for seed in (0, 1):
    key = Context(jax.random.key(seed), MODEL, SOURCE, SPLITS).keys.fresh
    got = edited(eu_k(1), seed, model=model)
    expect(got, a=drawn(key)['a'])


def test_each_purpose_has_a_key_of_its_own():
  keys = Context(jax.random.key(3), MODEL, SOURCE, SPLITS).keys
  data = {jax.random.key_data(k).tobytes() for k in (jax.random.key(3), *keys)}
  assert len(data) == 5 and len(keys) == 4


# Without zeros among the weights, so that each change is seen.
FULL = ModelState({**SOURCE.params, 'z': SOURCE.params['z'].at[6:].set(7.0)})


def changes(strategy, seed=0):
  """Which of the 20 scalars a strategy changes, and the factors."""
  before = np.concatenate([np.ravel(w) for w in jax.tree.leaves(FULL.params)])
  params = edited(strategy, seed, source=FULL)
  after = np.concatenate([params['a'].ravel(), params['z'].ravel()])
  places = np.flatnonzero(before != after)
  return set(places.tolist()), set((after / before)[places].tolist())


# Places of a[0, 0] and a[1, 1], the Top-2.
TOP = {0, 3}


def test_k_random_scalars_are_as_many_as_top_k_but_drawn_by_lot():
  found = [changes(random_scalars(2, -1.0), seed)[0] for seed in range(6)]
  assert {len(places) for places in found} == {2}
  assert len(set(map(frozenset, found))) > 3, 'the same scalars for every key'
  assert not all(places == TOP for places in found), 'these are the Top-K'


def test_random_k_changes_its_share_and_the_key_says_which():
  found = [changes(random_k(0.2, 1.0), seed) for seed in range(4)]
  assert [(len(p), f) for p, f in found] == [(4, {2})] * 4
  assert len({frozenset(places) for places, _ in found}) > 2
  assert changes(random_k(0.2, -0.5))[1] == {0.5}


def test_random_top_k_holds_the_top_k_and_draws_the_rest():
  found = [changes(random_top_k(2, 0.2, 1.0), seed) for seed in range(4)]
  assert [(len(p), f) for p, f in found] == [(4, {2})] * 4
  assert all(places >= TOP for places, _ in found)
  assert len({frozenset(places) for places, _ in found}) > 2
  places, _ = changes(random_top_k(2, 0.1, 1.0))
  assert places == TOP


@pytest.mark.parametrize('make', [random_k, lambda **o: random_top_k(2, **o)])
def test_donors_come_from_their_tensor_or_from_the_whole_tree(make):
  own = edited(make(ratio=1.0, epsilon=1.0, change='donor'))
  for name, leaf in SOURCE.params.items():
    assert sorted(np.ravel(own[name])) == sorted(np.ravel(leaf)), name
    assert (own[name] != leaf).any()
  every = edited(make(ratio=1.0, change='tree_donor'))
  assert sorted(np.ravel(every['a'])) != sorted(np.ravel(A))
  both = [
    np.concatenate([p['a'].ravel(), p['z'].ravel()]) for p in (own, every)
  ]
  assert sorted(both[0]) == sorted(both[1])
  half = edited(make(ratio=1.0, epsilon=0.5, change='donor'))
  np.testing.assert_allclose(half['z'], (own['z'] + Z) / 2, atol=1e-6)
  again = edited(make(ratio=1.0, change='donor'), seed=1)
  assert (again['z'] != own['z']).any(), 'the key does not choose the donors'


def test_the_sensitivity_is_of_examples_of_d_drawn_by_the_key():
  """A single example has 4 gradients: a column of a, and its own row of z."""
  seen = set()
  for seed in range(12):
    places, _ = changes(top_k(4, -1.0, examples=1), seed)
    (row,) = {(place - 4) // 2 for place in places if place >= 4}
    label = Y[row]
    assert places == {label, 2 + label, 4 + 2 * row, 5 + 2 * row}
    seen.add(row)
  assert seen <= set(range(6)), 'examples that are not of D'
  assert len(seen) > 2, 'always the same examples'


# After the training.

MOVED = {0: (1, 1.25), 1: (2.75, -2), 2: (-2, 1.25), 3: (0.75, -1)}
# Top-2 zeroed: a is [[0, −1], [0.5, 0]], so rows of label 0 move by (0, ¼),
# those of label 1 by (−¼, 0); Σ z of label 0 is (1, 4), of label 1 (4, −3).
TOP_2 = {
  'a': [[0.25, -0.75], [0.75, -0.25]],
  'z': {**MOVED, 4: (2, 2.25)},
}
# Nothing edited: rows of label 0 move by (¼, ¼), those of label 1 by (−¼, ¼).
PLAIN = {
  'a': [[2.25, -0.75], [0.75, 2.75]],
  'z': {
    **{0: (1.25, 1.25), 1: (2.75, -1.75), 2: (-1.75, 1.25)},
    **{3: (0.75, -0.75), 4: (2.25, 2.25)},
  },
}


@pytest.mark.parametrize(
  'options, row',
  [
    # The source says class 1 of it: a[:, 1] − a[:, 0] is (−1, −0.5).
    ({}, (-1.25, 3.75)),
    ({'js_teacher': 'source'}, (-1.25, 3.75)),
    # This teacher says class 0.
    ({'js_teacher': 'retrained'}, (-0.75, 4.25)),
    ({'js_teacher': 'none'}, (-1, 4)),
    ({'js_weight': 0.0}, (-1, 4)),
  ],
)
def test_the_teacher_of_d_ul_is_the_one_that_was_asked_for(options, row):
  result = run(top_k(2, -1.0, **options), retrained=RETRAINED)
  z = rows({**TOP_2['z'], 5: row})
  expect(result.state.params, z, TOP_2['a'], f'with {options}')
  expect(result.perturbed.params, a=[[0, -1], [0.5, 0]])
  assert result.by_tensor == {'a': 2, 'z': 0}


def test_a_teacher_that_is_not_there_is_asked_for_before_it_is_needed():
  with pytest.raises(ValueError, match='needs retrained, which is None'):
    run(top_k(2, js_teacher='retrained'))
  assert top_k(js_teacher='retrained').needs_retrained
  assert not top_k().needs_retrained


def test_fine_tuning_alone_sees_d_re_unless_it_is_held_by_the_source():
  result = run(finetune())
  expect(result.state.params, rows(PLAIN['z']), PLAIN['a'])
  assert result.by_tensor == {'a': 0, 'z': 0} and result.perturbation_js == 0
  # After one step the student has left the teacher, and D_UL is seen.
  z = run(finetune(0.1), Budget(2, 0.25, 5, 0.0)).state.params['z']
  assert (z[5] != SOURCE.params['z'][5]).all()
  z = run(finetune(), Budget(2, 0.25, 5, 0.0)).state.params['z']
  np.testing.assert_array_equal(z[5:], SOURCE.params['z'][5:])


@pytest.mark.parametrize(
  'strategy',
  [
    # Each chooses all 20 scalars, so that no draw decides what is seen.
    lambda **options: random_k(ratio=1.0, epsilon=-0.5, **options),
    lambda **options: random_top_k(k=2, ratio=1.0, epsilon=-0.5, **options),
    lambda **options: random_scalars(k=20, epsilon=-0.5, **options),
  ],
)
def test_every_perturbation_is_guided_on_d_ul(strategy):
  guided = run(strategy()).state.params['z']
  alone = run(strategy(js_weight=0.0)).state.params['z']
  assert (guided[5] != alone[5]).any(), 'no teacher on D_UL'
  np.testing.assert_allclose(guided[:5], alone[:5], atol=1e-4)
  np.testing.assert_array_equal(guided[6:], alone[6:])


def test_cf_k_moves_the_last_tensors_from_where_they_are_by_d_re_alone():
  expect(run(cf_k(1)).state.params, a=PLAIN['a'])
  expect(run(cf_k(2)).state.params, rows(PLAIN['z']), PLAIN['a'])


def test_eu_k_moves_the_last_tensors_from_a_fresh_start_by_d_re_alone():
  expect(run(eu_k(1)).state.params, a=[[1.25, 0.25], [0.25, 0.75]])
  # Rows of ones; those of label 0 move by (¼, 0), those of label 1 by (0, ¼).
  z = [(1.25, 1), (1, 1.25), (1.25, 1), (1, 1.25), (1.25, 1), *[(1, 1)] * 3]
  expect(run(eu_k(2)).state.params, z, [[1.25, 0.25], [0.25, 1.25]])


@pytest.mark.parametrize('make', [eu_k, cf_k, retrain])
def test_baselines_and_the_reference_are_guided_by_nobody(make):
  """Three epochs, so that the student has long left any teacher."""
  strategy = make() if make is retrain else make(2)
  start = FRESH['z'] if make is not cf_k else SOURCE.params['z']
  z = run(strategy, Budget(3, 0.25, 5, 0.0), recipe=recipe(3)).state.params['z']
  np.testing.assert_array_equal(z[5:], start[5:])


def recipe(epochs=2, rate=5.0, batch_size=5):
  """SGD; at a rate of 5 a row moves by its whole gradient."""
  return Recipe(lambda rate, steps: optax.sgd(rate), epochs, rate, batch_size,
                augment=False)  # fmt: skip


def test_retrain_follows_the_recipe_to_the_end():
  easy = Budget(1, 0.25, 2, stop_js_change=1.0, stop_retain_share=0.0)
  result = run(retrain(), easy, recipe=recipe())
  # Epoch 1: rows get a's columns, a's columns get Σ z: (3, 3) and (2, 2).
  # Epoch 2: the same with a = [[4, 2], [3, 3]] and rows (2, 1) and (1, 2).
  z = [(6, 4), (3, 5), (6, 4), (3, 5), (6, 4), *[(1, 1)] * 3]
  expect(result.state.params, z, [[10, 4], [6, 7]])
  assert len(result.history) == 3, 'ended by the stop rule or by the budget'
  assert result.stop_epoch == 1


def test_an_optimiser_is_told_its_rate_and_all_its_steps():
  told = []

  def make(rate, steps):
    told.append((rate, steps))
    return optax.sgd(rate)

  run(retrain(), recipe=recipe(3, 0.5, 2)._replace(optimizer=make))
  own = strategies.Strategy('own', terms=finetune().terms, optimizer=make)
  run(own, Budget(4, 0.125, 5))
  run(own._replace(epochs=2, learning_rate=0.25), Budget(4, 0.125, 5))
  assert told == [(0.5, 6), (0.125, 4), (0.25, 2)]


def test_a_strategys_own_rate_and_epochs_come_before_the_budgets():
  result = run(finetune(learning_rate=0.5, epochs=1), Budget(4, 0.25, 5, 0.0))
  assert len(result.history) == 2
  a = [[2.5, -0.5], [1, 2.5]]
  np.testing.assert_allclose(result.state.params['a'], a, atol=1e-5)
  assert len(run(finetune(epochs=0)).history) == 1


def test_the_stop_rule_asks_for_a_share_of_the_sources_own_accuracy():
  """The source has 2 of 5 retained examples right, and training leaves it."""
  result = run(finetune(), Budget(4, 0.001, 5, 1.0, 0.98))
  assert result.source_retain_accuracy == pytest.approx(0.4)
  assert result.stop_epoch == 1 and len(result.history) == 2
  # A source that knows little could be surpassed by so much, and is.
  assert Budget(stop_retain_share=1.0).stop_rule(0.4).retain_accuracy == 0.4
  assert Budget(stop_retain_share=1.01).stop_rule(0.4).retain_accuracy > 1
  never = run(finetune(), Budget(2, 0.001, 5, 1.0, 1.01))
  assert never.stop_epoch is None and len(never.history) == 3


@pytest.mark.parametrize(
  'moves, tensors, scalars',
  [('all', {'a', 'z'}, 14), ('scalars', {'a'}, 2), ('tensors', {'a'}, 4)],
)
def test_what_moves_is_all_or_what_was_chosen(moves, tensors, scalars):
  strategy = top_k(2, -1.0, moves=moves)
  result = run(strategy)
  before, after = result.perturbed.params, result.state.params
  moved = {name: before[name] != after[name] for name in before}
  assert {name for name, where in moved.items() if where.any()} == tensors
  count = sum(int(where.sum()) for where in moved.values())
  # Of z one scalar in each of five rows and two in that of D_UL; a's four.
  assert count == {'all': 4 + 5 + 2}.get(moves, scalars)
  if moves == 'scalars':
    assert moved['a'].tolist() == [[True, False], [False, True]]


def test_images_are_augmented_and_so_are_those_that_a_teacher_speaks_of():
  blank = run(finetune(), augment=lambda key, images: 0 * images)
  expect(blank.state.params)
  result = run(top_k(2, -1.0), augment=lambda key, images: 0 * images)
  assert (result.state.params['z'] == SOURCE.params['z']).all()


def test_the_effect_of_the_edit_is_measured_on_held_out_data():
  """Rows 6 and 7: (2, −1) and (0.5, 3) become (0, −1) and (0.5, 0).

  The log-odds of class 0 go from 3 to 1 and from −2.5 to 0.5: by 0.0723 and
  0.2615 bits.
  """
  result = run(top_k(2, -1.0), Budget(0, batch_size=5))
  assert result.perturbation_js == pytest.approx(0.16688, abs=1e-4)


def test_the_clock_counts_the_edit_and_the_teacher_but_not_measuring():
  def slow(wait, function):
    def waiting(*arguments):
      time.sleep(wait)
      return function(*arguments)

    return waiting

  terms = finetune().terms
  late = terms[0]._replace(examples=slow(0.3, terms[0].examples))
  strategy = strategies.Strategy('slow', edit=slow(0.5, strategies.keep),
                                 terms=(late,))  # fmt: skip
  result = run(strategy)
  assert 0.8 <= result.selection_seconds < 30
  training_seconds = result.history[-1].seconds
  total = result.selection_seconds + training_seconds
  assert result.seconds == pytest.approx(total, abs=1e-9)
  assert result.compile_seconds >= 0


def test_the_seconds_end_where_the_stop_rule_held():
  """Retrain goes on to the end; its time does not."""
  result = run(retrain(), Budget(1, 0.25, 5, 1.0, 0.0), recipe=recipe(3))
  wanted = result.selection_seconds + result.history[1].seconds
  assert result.stop_epoch == 1 and len(result.history) == 4
  assert result.seconds == pytest.approx(wanted, abs=1e-9)


PLACES = {
  'sharded': lambda mesh: NamedSharding(mesh, PartitionSpec('d')),
  'replicated': lambda mesh: NamedSharding(mesh, PartitionSpec()),
  'another device': lambda mesh: SingleDeviceSharding(jax.devices()[3]),
}


@pytest.mark.parametrize(
  'place, kind',
  [
    *((place, AxisType.Explicit) for place in PLACES),
    ('sharded', AxisType.Auto),
  ],
)
def test_a_caller_may_have_a_mesh_and_parameters_of_her_own(place, kind):
  """The numbers of no mesh, and each parameter where she had it."""
  mesh = jax.make_mesh((2,), ('d',), axis_types=(kind,))
  placed = PLACES[place](mesh)
  source = ModelState(jax.device_put(SOURCE.params, placed))
  with jax.set_mesh(mesh):
    got = run(top_k(k=3), source=source)
    report = evaluate(MODEL, got.state, source, SPLITS)
  alone = run(top_k(k=3)).state
  for name, leaf in alone.params.items():
    np.testing.assert_allclose(got.state.params[name], leaf, atol=1e-6)
    assert got.state.params[name].sharding.is_equivalent_to(placed, 2)
  assert report == evaluate(MODEL, alone, SOURCE, SPLITS)


@pytest.mark.parametrize('place', ['nowhere', 'sharded', 'replicated'])
@pytest.mark.parametrize('kind', [AxisType.Explicit, AxisType.Auto])
def test_so_she_may_with_every_step_by_itself(place, kind):
  mesh = jax.make_mesh((2,), ('d',), axis_types=(kind,))
  params = SOURCE.params
  if place != 'nowhere':
    params = jax.device_put(params, PLACES[place](mesh))

  def steps(params):
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    found = gradient_sensitivity(model_objective(MODEL), params, batch, {})
    return perturb(params, topk_mask(params, found, k=3), epsilon=-0.5)

  want = steps(SOURCE.params)
  with jax.set_mesh(mesh):
    got = steps(params)
  for name, leaf in want.items():
    np.testing.assert_array_equal(got[name], leaf)
  assert any((leaf != SOURCE.params[name]).any() for name, leaf in want.items())


def test_a_sensitivity_may_be_traced():
  batch = Batch(jnp.asarray(X), jnp.asarray(Y))

  def found(params):
    return gradient_sensitivity(model_objective(MODEL), params, batch, {})

  with parallel.use(jax.devices()[:1]):
    want, got = found(SOURCE.params), jax.jit(found)(SOURCE.params)
  for name, leaf in want.items():
    np.testing.assert_allclose(got[name], leaf, rtol=1e-6)


def test_the_source_is_left_alone_and_a_second_run_compiles_nothing():
  run(top_k(2, -1.0))
  with timing.Stopwatch() as watch:
    run(top_k(2, -1.0), seed=5)
  assert watch.compilations == 0
  expect(SOURCE.params)


@pytest.mark.parametrize(
  'strategy, message',
  [
    (top_k(21), 'k=21, allowed: 1 to 20, the scalars'),
    (top_k(3, granularity='leaf'), 'k=3, allowed: 1 to 2, the tensors'),
    (random_scalars(21), 'k=21, allowed: 1 to 20'),
    (
      random_top_k(5, 0.2),
      'ratio=0.2, allowed: shares of at least K = 5 of 20',
    ),
    (random_top_k(0.5, 0.2), 'ratio=0.2, allowed: shares of at least K = 10'),
    (eu_k(3), 'k=3, allowed: 1 to 2, the tensors'),
    (cf_k(3), 'k=3, allowed: 1 to 2, the tensors'),
  ],
)
def test_what_does_not_fit_the_model_is_refused_at_once(strategy, message):
  with pytest.raises(ValueError, match=message):
    run(strategy)


# What is watched while it trains.


def test_the_monitor_by_hand():
  """D_UL are rows 0 to 3; the state has swapped the outputs of row 3."""
  splits = Splits.of(EVERY, np.arange(4), EVERY)
  sure = 9 * np.eye(2, dtype=np.float32)[Y]
  model = stateless(lambda params, x: x @ params)
  swapped = sure.copy()
  swapped[3] = sure[3, ::-1]
  measure = finetuning.monitor(model, ModelState(jnp.array(sure)), splits)
  found = measure(ModelState(jnp.array(swapped)))
  # Of row 3 the divergence is nearly 1 bit, of the others 0: the mean.
  assert found['js_to_source'] == pytest.approx(0.25, abs=1e-3)
  assert found['forget_accuracy'] == 0.75, 'that of the source is 1'
  assert found['retain_accuracy'] == 1
  assert measure(ModelState(jnp.array(sure)))['js_to_source'] == 0


def test_the_monitor_looks_at_examples_from_the_first_to_the_last():
  """Only the latter half of each set is predicted rightly."""
  every = Examples.of(np.repeat(X, 5, 0), np.zeros(40, np.int32))
  splits = Splits.of(every, np.arange(20), every)
  right = jnp.array([[0, 1], [0, 1], [1, 0], [1, 0]] * 2, jnp.float32)
  model = stateless(lambda params, x: x @ params)
  found = finetuning.monitor(model, ModelState(right), splits, limit=4)(
    ModelState(right)
  )
  assert found['forget_accuracy'] == found['retain_accuracy'] == 0.5


def test_the_stop_rule_by_hand():
  def history(*pairs):
    return [
      training.Epoch(i, None, 0.0, {'js_to_source': j, 'retain_accuracy': r})
      for i, (j, r) in enumerate(pairs)
    ]

  rule = Budget(stop_js_change=0.01, stop_retain_share=0.9).stop_rule(1.0)
  assert rule == finetuning.StopRule(0.01, 0.9)
  assert rule.epoch(history((0.5, 1.0))) is None
  assert rule.epoch(history((0.5, 1.0), (0.505, 0.9))) == 1
  assert rule.epoch(history((0.5, 1.0), (0.505, 0.89))) is None
  assert rule.epoch(history((0.5, 1.0), (0.4, 0.95), (0.41, 0.95))) == 2


def test_a_step_takes_an_eighth_as_many_of_d_ul_as_of_d_re():
  """One step of 16: of D_UL two rows, whatever its size, on each count."""
  x = np.eye(32, dtype=np.float32)
  every = Examples.of(x, np.arange(32, dtype=np.int32) % 2)
  splits = Splits.of(every, np.arange(16), every)
  start = ModelState({'w': jnp.ones((32, 2)).at[:, 0].set(0.0)})
  teacher = ModelState({'w': jnp.ones((32, 2)).at[:, 1].set(0.0)})
  model = stateless(lambda params, x: x @ params['w'])
  for devices, expected in ((1, 2), (4, 4)):
    with parallel.use(jax.devices()[:devices]):
      fit = helpers.finetune(
        *(jax.random.key(0), model, start, splits),
        teacher=teacher, epochs=1, batch_size=16, js_weight=1.0,
      )  # fmt: skip
    moved = np.asarray(fit.state.params['w'] != start.params['w']).any(1)
    assert moved[:16].sum() == expected and moved[16:].all()


def test_fine_tuning_by_itself_is_taught_by_the_teacher_it_is_given():
  start = ModelState({**SOURCE.params, 'a': jnp.array([[0, -1], [0.5, 0]])})
  options = {'epochs': 1, 'batch_size': 5, 'optimizer': training.adam(0.25)}
  for teacher, row in (
    (SOURCE, (-1.25, 3.75)), (RETRAINED, (-0.75, 4.25)), (None, (-1, 4))
  ):  # fmt: skip
    with parallel.use(jax.devices()[:1]):
      fit = helpers.finetune(
        jax.random.key(1), MODEL, start, SPLITS, teacher=teacher, **options
      )
    expect(fit.state.params, rows({**TOP_2['z'], 5: row}), TOP_2['a'])


# With BatchNorm.

TINY, STRIPES = helpers.model(), helpers.splits()


@pytest.fixture(scope='module')
def trained():
  state = training.initialize(jax.random.key(3), TINY)
  return normalization.reestimate(TINY, state, STRIPES.train)


def unlearned(trained, strategy, epochs=0):
  budget = Budget(epochs, batch_size=16)
  return run(strategy, budget, model=TINY, source=trained, splits=STRIPES)


def test_statistics_are_estimated_anew_on_the_retained_examples(trained):
  result = unlearned(trained, top_k(20, -1.0))
  with parallel.use(jax.devices()[:1]):
    want = normalization.reestimate(
      TINY, ModelState(result.state.params, trained.batch_stats), STRIPES.retain
    )
  for got, wanted in zip(
    jax.tree.leaves(result.state.batch_stats), jax.tree.leaves(want.batch_stats)
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize('make', [eu_k, cf_k])
@pytest.mark.parametrize('k, frozen', [(2, 4), (4, 2)])
def test_frozen_layers_keep_weights_and_statistics(trained, make, k, frozen):
  result = unlearned(trained, make(k), epochs=1)
  still = set(TINY.order[:-k])
  for path, before, after in zip(
    tensor_paths(trained.params),
    *map(jax.tree.leaves, (trained.params, result.state.params)),
  ):
    assert np.array_equal(before, after) == (path in still), path
  before, after = trained.batch_stats, result.state.batch_stats
  same = jax.tree.map(np.array_equal, before, after)
  assert set(jax.tree.leaves(same['bn1'])) == {True}
  assert set(jax.tree.leaves(same['bn2'])) == {frozen == 4}


def remembering():
  """A network that remembers as Haiku's BatchNorm does, and draws noise."""

  def apply(state, x, train):
    stats = state.batch_stats
    if not train:
      return (x - stats['average']) @ state.params['w'], stats
    counter, mean = stats['counter'] + 1, x.mean(0)
    hidden = 0.9 * stats['hidden'] + 0.1 * mean
    key, draw = jax.random.split(stats['key'])
    noise = 0 * jax.random.normal(draw, x.shape)
    new = {
      'counter': counter,
      'seen': stats['seen'] + len(x),
      'key': key,
      'hidden': hidden,
      'average': hidden / (1 - 0.9 ** counter.astype(jnp.float32)),
    }
    return (x + noise - mean) @ state.params['w'], new

  def init(key):
    stats = {
      'counter': jnp.int32(0),
      'seen': jnp.float32(0),
      'key': key,
      'hidden': jnp.zeros(2),
      'average': jnp.zeros(2),
    }
    return ModelState({'w': jnp.eye(2)}, stats)

  return Model(apply, init)


def test_a_network_may_carry_counters_and_keys():
  devices = 4
  model, x = remembering(), np.tile(np.float32([[1, 5], [3, 5]]), (20, 1))
  every = Examples.of(x, np.tile([0, 1], 20))
  with parallel.use(jax.devices()[:devices]):
    fit = training.train(
      jax.random.key(0), model, every, epochs=60, batch_size=8
    )
    stats = fit.state.batch_stats
    assert stats['counter'] == 300 and stats['seen'] == 300 * 8 // devices
    splits = Splits.of(every, np.arange(4), every)
    budget = Budget(1, 0.01, 8)
    got = unlearn(
      jax.random.key(1), model, fit.state, splits, finetune(), budget
    )
    assert got.state.batch_stats['counter'] > 300
    # By hand it is off; what counts is no average, and stays.
    moved = {**stats, 'hidden': jnp.ones(2), 'average': jnp.ones(2)}
    own = normalization.reestimate(
      model, ModelState(fit.state.params, moved), every
    ).batch_stats
  assert own['counter'] == 300 and own['seen'] == stats['seen']
  assert own['key'] == stats['key']
  np.testing.assert_allclose(own['hidden'], [2, 5], rtol=1e-5)
  np.testing.assert_allclose(own['average'], [2, 5], rtol=1e-4)
