import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import (
  epoch,
  normalization,
  parallel,
  timing,
  training,
)
from unlearn_jax.base import (
  AXIS,
  Examples,
  Model,
  ModelState,
  stateless,
  tensor_paths,
)
from unlearn_jax.data.images import augment
from unlearn_jax.prediction import predict
from unlearn_jax.timing import Stopwatch

MODEL, SPLITS = helpers.model(), helpers.splits()


def fresh(seed=0):
  return training.initialize(jax.random.key(seed), MODEL)


def fit(state, devices=1, epochs=2, **options):
  options = {'batch_sizes': [16], 'optimizer': training.adam(1e-2), **options}
  with parallel.use(jax.devices()[:devices]):
    return training.fit(
      jax.random.key(7), MODEL, state, [SPLITS.train], epochs=epochs, **options
    )


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_four_devices_give_the_numbers_of_one():
  one, four = fit(fresh(), 1), fit(fresh(), 4)
  for a, b in zip(leaves(one.state), leaves(four.state)):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
  assert one.history[-1].loss == pytest.approx(four.history[-1].loss, rel=1e-3)


def test_a_step_under_pmap_is_a_step_of_plain_jit():
  """One full-batch step of SGD, against jax.grad without any pmap."""
  state = fresh()
  with parallel.use(jax.devices()):
    got = training.fit(
      jax.random.key(0),
      MODEL,
      state,
      [SPLITS.train],
      epochs=1,
      batch_sizes=[96],
      optimizer=optax.sgd(0.1),
    )

  def loss(params):
    logits, stats = MODEL.apply(
      ModelState(params, state.batch_stats), SPLITS.train.images[:96], True
    )
    return MODEL.loss(logits, SPLITS.train.labels[:96]).mean(), stats

  grads, stats = jax.jit(jax.grad(loss, has_aux=True))(state.params)
  params = jax.tree.map(lambda w, g: w - 0.1 * g, state.params, grads)
  for a, b in zip(
    leaves(got.state), leaves(ModelState(params, stats)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_example_is_seen_once_an_epoch():
  """Inputs are one-hot rows, so the gradient counts them."""
  eye = Examples.of(np.eye(12, dtype=np.float32), np.zeros(12, np.int32))
  model = stateless(
    lambda params, x: x @ params['w'], loss=lambda logits, _: logits[:, 0]
  )
  state = ModelState({'w': jnp.zeros((12, 1))})
  with parallel.use(jax.devices()[:2]):
    got = training.fit(
      jax.random.key(1),
      model,
      state,
      [eye],
      epochs=1,
      batch_sizes=[4],
      optimizer=optax.sgd(4.0),
    )
  assert got.state.params['w'].ravel().tolist() == [-1.0] * 12


def test_zero_epochs_return_the_state():
  state = fresh()
  got = fit(state, epochs=0)
  for a, b in zip(leaves(state), leaves(got.state), strict=True):
    assert (a == b).all()
  assert len(got.history) == 1


def test_the_start_is_neither_donated_nor_changed():
  state = fresh()
  before = leaves(jax.tree.map(jnp.copy, state))
  fit(state)
  fit(state)
  for a, b in zip(before, leaves(state), strict=True):
    assert (a == b).all()


@pytest.mark.parametrize('last', [2, 5])
def test_frozen_tensors_and_their_statistics_stay_bit_identical(last):
  state = fresh()
  frozen = frozenset(MODEL.order[:-last])
  got = fit(state, devices=4, frozen=frozen)
  for path, a, b in zip(
    tensor_paths(state.params),
    leaves(state.params),
    leaves(got.state.params),
    strict=True,
  ):
    assert (a == b).all() == (path in frozen), path
  kept = {'bn1': True, 'bn2': last == 2}
  for name, same in kept.items():
    for part in ('mean', 'var'):
      a = state.batch_stats[name][part]
      b = got.state.batch_stats[name][part]
      assert bool((a == b).all()) == same, (name, part)


def test_only_masked_scalars_move():
  state = fresh()
  rng = np.random.default_rng(0)
  mask = jax.tree.map(lambda w: rng.random(w.shape) < 0.3, state.params)
  got = fit(state, update_mask=mask)
  for a, b, m in zip(
    leaves(state.params), leaves(got.state.params), leaves(mask), strict=True
  ):
    assert (a == b)[~m].all()
  moved = [
    (a != b)[m].any()
    for a, b, m in zip(
      leaves(state.params), leaves(got.state.params), leaves(mask)
    )
    if m.any()
  ]
  assert all(moved)


def test_nothing_is_compiled_after_the_first_epoch():
  state = fresh()
  seen = []
  with Stopwatch() as watch:
    start = watch.__dict__['_first'][1]

    def note(epoch):
      seen.append(len(timing._compilations) - start)

    fit(state, epochs=4, measure=measure, on_epoch=note)
    fit(state, epochs=1, measure=measure, on_epoch=note)
  # Epoch 1 compiles; 2 to 4 and the whole second run do not.
  assert seen[1] == seen[2] == seen[3] == seen[4], seen


def test_finetuning_with_two_sets_compiles_in_its_first_epoch_only():
  seen = []

  def run(seed, rate=3e-2):
    helpers.finetune(
      jax.random.key(seed),
      MODEL,
      fresh(seed),
      SPLITS,
      teacher=fresh(2),
      epochs=3,
      batch_size=16,
      optimizer=training.adam(rate),
      measure=measure,
      on_epoch=lambda _: seen.append(len(timing._compilations)),
    )

  run(0)
  assert seen[0] < seen[1] == seen[2] == seen[3], seen
  run(1)
  run(1, rate=1e-3)
  assert seen[3] == seen[-1], seen


@pytest.mark.parametrize('devices', [1, 4])
def test_a_loop_of_known_length_gives_the_same_bits(devices, monkeypatch):
  """It is what a GPU runs."""
  with parallel.use(jax.devices()[:devices]):
    want, made, original = fit(fresh(), devices), [], epoch.program
    monkeypatch.setattr(epoch, 'runs_whole', lambda: True)
    monkeypatch.setattr(
      epoch,
      'program',
      lambda *given: made.append(given[-1]) or original(*given),
    )
    got = fit(fresh(), devices)
    assert made and all(made)
    # A call of ten seconds is one step: after the first epoch, others.
    monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
    made.clear()
    cut = fit(fresh(), devices)
    assert made[0] and not any(made[1:]) and len(made) > 2
  for other in (got, cut):
    assert [e.loss for e in other.history] == [e.loss for e in want.history]
    for a, b in zip(leaves(other.state), leaves(want.state), strict=True):
      assert (a == b).all()


@pytest.mark.parametrize('devices', [1, 4])
def test_an_epoch_transfers_nothing(devices):
  """From the first epoch on, only what is asked for explicitly moves."""

  def guard(epoch):
    if epoch.epoch == 1:
      jax.config.update('jax_transfer_guard', 'disallow')

  mask = jax.tree.map(lambda w: np.ones(w.shape, bool), fresh().params)
  try:
    guarded = fit(fresh(), devices, epochs=3, on_epoch=guard, update_mask=mask)
    with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed'):
      jnp.sin(np.arange(3.0))
  finally:
    jax.config.update('jax_transfer_guard', 'allow')
  free = fit(fresh(), devices, epochs=3, update_mask=mask)
  for a, b in zip(leaves(guarded.state), leaves(free.state), strict=True):
    assert (a == b).all()


def epoch_of(frozen):
  """The program of an epoch, and what it is run on."""
  state, optimizer = fresh(), training.adam(1e-2)
  trained = tuple(p not in frozen for p in tensor_paths(state.params))
  model = training.frozen_model(MODEL, frozen)
  program = epoch.program(
    model,
    training.cross_entropy,
    optimizer.update,
    epoch.Layout((SPLITS.train.size,), (16,), 6, (0,)),
    trained,
    (None,),
    None,
  )
  moving = epoch.of_trained(state.params, trained)
  start = training.TrainState(state, optimizer.init(moving), jax.random.key(0))
  span = np.array([0, 6, 0, 0, 1], np.int32)
  return program, (start, (SPLITS.train,), (None, None), span, (None,))


def test_a_frozen_beginning_costs_no_backward_pass():
  convolutions, flops = [], []
  with parallel.use(jax.devices()[:1]):
    # All; all but the first convolution and its BatchNorm; the last layer.
    for last in (8, 5, 2):
      program, inputs = epoch_of(frozenset(MODEL.order[:-last]))
      compiled = jax.jit(program).lower(*inputs).compile()
      found = re.findall(r'= \S+ convolution\(', compiled.as_text())
      convolutions.append(len(found))
      flops.append(compiled.cost_analysis()['flops'])
  # Two forward; two gradients of kernels and one of the second's inputs.
  assert convolutions == [2 + 3, 2 + 1, 2 + 0]
  assert flops[0] > 1.5 * flops[1] > 2 * flops[2]


def test_frozen_tensors_have_no_optimiser_state(monkeypatch):
  """The state that an epoch really carries has moments of the trained."""
  frozen, seen = frozenset(MODEL.order[:-2]), []
  original = epoch.program

  def spy(*arguments):
    program = original(*arguments)

    def run(state, *rest):
      seen.append(jax.tree.map(jnp.shape, state.opt_state))
      return program(state, *rest)

    return run

  monkeypatch.setattr(epoch, 'program', spy)
  got = fit(fresh(), epochs=1, frozen=frozen)
  shapes = jax.tree.map(jnp.shape, got.state.params['linear'])
  adam = seen[0][0]
  for moment in (adam.mu, adam.nu):
    assert moment.pop('linear') == shapes
    assert not jax.tree.leaves(moment)


def test_optax_sees_the_tree_and_its_paths():
  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: 'moves' if 'linear' in str(path[0]) else 'stays', params
    )

  own = optax.multi_transform(
    {'moves': optax.sgd(0.1), 'stays': optax.set_to_zero()}, labels
  )
  start = fresh()
  got = fit(start, epochs=1, optimizer=own)
  for name, before in start.params.items():
    after = got.state.params[name]
    same = [(a == b).all() for a, b in zip(leaves(before), leaves(after))]
    assert not any(same) if name == 'linear' else all(same), name


def measure(state):
  return {'mean': float(predict(MODEL, state, SPLITS.test).mean())}


def test_the_callers_key_is_not_donated():
  key = jax.random.key(7)
  for _ in range(2):
    training.fit(
      key,
      MODEL,
      fresh(),
      [SPLITS.train],
      epochs=1,
      batch_sizes=[16],
      optimizer=training.adam(1e-2),
    )
  assert jax.random.bits(key).shape == ()


def test_augmentation_changes_what_is_learned_and_is_drawn_anew():
  def noise(key, images):
    return images + jax.random.randint(key, images.shape, 0, 40)

  plain, first = fit(fresh()), fit(fresh(), augment=noise)
  assert plain.history[-1].loss != first.history[-1].loss


@pytest.mark.parametrize(
  'options, message',
  [
    ({'batch_sizes': [3], 'devices': 2}, 'batch_size=3, allowed: a positive'),
    ({'batch_sizes': [0]}, 'batch_size=0, allowed'),
    ({'batch_sizes': [97]}, 'batch_size=97, allowed: at most the 96'),
    ({'epochs': -1}, 'epochs=-1, allowed: 0 or more'),
    ({'frozen': frozenset({'conv9/kernel'})}, "frozen='conv9/kernel'"),
    ({'frozen': frozenset(MODEL.order)}, 'frozen names every tensor'),
  ],
)
def test_bad_values_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    fit(fresh(), **options)


def test_a_model_without_init_cannot_be_trained():
  model = stateless(lambda params, x: x)
  with pytest.raises(ValueError, match='model.init=None'):
    training.train(jax.random.key(0), model, SPLITS.train, epochs=1)


@pytest.mark.parametrize('batch_size', [1, 7, 16, 48, 1000])
def test_predictions_are_exact_for_every_batch_size(batch_size):
  state = fresh()
  logits, _ = MODEL.apply(
    state, SPLITS.test.images[np.asarray(SPLITS.test.indices)], False
  )
  want = jax.nn.softmax(logits)
  got = predict(MODEL, state, SPLITS.test, batch_size=batch_size)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# In which `reestimate` takes the 80 retained examples.
LOT = np.random.default_rng(0).permutation(80)


def test_statistics_are_the_averages_over_batches():
  state = fresh()
  got = normalization.reestimate(MODEL, state, SPLITS.retain, batch_size=16)
  # The first layer's input is the image itself: compute it by NumPy and lax.
  images = SPLITS.retain.images[np.asarray(SPLITS.retain.indices)[LOT]]
  x = (images.astype(np.float32) / 255 - 0.5) / 0.25
  out = jax.lax.conv_general_dilated(
    x,
    state.params['conv1']['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  batches = np.asarray(out).reshape(5, 16 * 36, 4)
  want = {'mean': batches.mean(1).mean(0), 'var': batches.var(1).mean(0)}
  for name, value in want.items():
    np.testing.assert_allclose(
      got.batch_stats['bn1'][name], value, rtol=1e-3, atol=1e-4
    )
  assert got.params is state.params
  # Of images as they were trained on: another draw for each step.
  seen = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(
    jnp.arange(5)
  )
  turned = np.concatenate(
    [
      augment(jax.random.fold_in(key, 0), own)
      for key, own in zip(seen, images.reshape(5, 16, *images.shape[1:]))
    ]
  )
  plain = Examples.of(turned[np.argsort(LOT)], SPLITS.retain.own_labels)
  with parallel.use(jax.devices()[:1]):
    want, got = (
      normalization.reestimate(MODEL, state, own, batch_size=16, augment=how)
      for own, how in ((plain, None), (SPLITS.retain, augment))
    )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_scaling_a_tensor_before_batchnorm_changes_nothing_after_all():
  """The symmetry of SPEC's reading 3, and why statistics are re-estimated."""
  state = normalization.reestimate(MODEL, fit(fresh()).state, SPLITS.retain)
  params = {**state.params}
  kernel = 10 * params['conv1']['kernel']
  scaled = ModelState({**params, 'conv1': {'kernel': kernel}}, state[1])
  before = predict(MODEL, state, SPLITS.test)
  stale = predict(MODEL, scaled, SPLITS.test)
  cured = predict(
    MODEL, normalization.reestimate(MODEL, scaled, SPLITS.retain), SPLITS.test
  )
  assert np.abs(stale - before).max() > 0.1
  np.testing.assert_allclose(cured, before, atol=1e-3)


@pytest.mark.parametrize('devices', [1, 4])
def test_reestimation_behind_frozen_layers_by_hand(devices):
  """The frozen layer normalises with its own statistics, and keeps them."""
  state = fit(fresh()).state
  model = MODEL.freeze(frozenset(MODEL.order[:3]))
  with parallel.use(jax.devices()[:devices]):
    got = normalization.reestimate(model, state, SPLITS.retain, batch_size=16)
  for part in ('mean', 'var'):
    np.testing.assert_array_equal(
      got.batch_stats['bn1'][part], state.batch_stats['bn1'][part]
    )
  layout = ('NHWC', 'HWIO', 'NHWC')
  images = SPLITS.retain.images[np.asarray(SPLITS.retain.indices)[LOT]]
  x = (images.astype(np.float32) / 255 - 0.5) / 0.25
  params, stats = state.params, state.batch_stats['bn1']
  x = jax.lax.conv_general_dilated(
    x, params['conv1']['kernel'], (1, 1), 'SAME', dimension_numbers=layout
  )
  x = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  x = jax.nn.relu(x * params['bn1']['scale'] + params['bn1']['bias'])
  x = jax.lax.conv_general_dilated(
    x,
    params['conv2']['kernel'],
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=layout,
  )
  batches = np.asarray(x).reshape(5, 16 * 9, 6)
  want = {'mean': batches.mean(1).mean(0), 'var': batches.var(1).mean(0)}
  for part, value in want.items():
    np.testing.assert_allclose(
      got.batch_stats['bn2'][part], value, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize('devices', [1, 4])
def test_statistics_are_those_of_all_devices(devices):
  """Of a model that does not average them itself; one batch of 0 to 7."""

  def apply(state, x, train):
    mean = x.mean(0) if train else state.batch_stats['mean']
    return x, {'mean': 0.75 * state.batch_stats['mean'] + 0.25 * mean}

  x = np.arange(8, dtype=np.float32)[:, None]
  with parallel.use(jax.devices()[:devices]):
    got = normalization.reestimate(
      Model(apply),
      ModelState({}, {'mean': jnp.full(1, 99.0)}),
      Examples.of(x, np.zeros(8, np.int32)),
    )
  assert got.batch_stats['mean'].tolist() == pytest.approx([3.5])


def test_data_that_are_sorted_by_class_have_the_variance_of_all():
  """As a folder of classes has them; within a class there is none here."""

  def apply(state, x, train):
    var = x.var(0) if train else state.batch_stats['var']
    return x, {'var': 0.75 * state.batch_stats['var'] + 0.25 * var}

  labels = np.repeat(np.arange(4, dtype=np.int32), 64)
  x = labels.astype(np.float32)[:, None]
  with parallel.use(jax.devices()[:1]):
    got = normalization.reestimate(
      Model(apply),
      ModelState({}, {'var': jnp.ones(1)}),
      Examples.of(x, labels),
      batch_size=64,
    )
  assert got.batch_stats['var'].tolist() == pytest.approx([1.25], rel=0.05)


def test_without_batchnorm_reestimation_is_the_identity():
  state = ModelState({'w': jnp.ones((36, 3))})
  model = stateless(lambda params, x: x.reshape(len(x), -1) @ params['w'])
  assert normalization.reestimate(model, state, SPLITS.retain) is state


def test_the_stopwatch_tells_compilation_apart():
  def slow(x):
    for _ in range(200):
      x = jnp.sin(x) @ x
    return x

  with Stopwatch() as first:
    first.wait(jax.jit(slow)(jnp.eye(5)))
  assert first.compilations >= 1
  assert first.compile_seconds > 0
  with Stopwatch() as second:
    pass
  assert second.compilations == 0
  assert second.compile_seconds == 0 <= second.seconds < 0.1


def test_a_forgotten_mean_would_show():
  """`spmd` returns device 0's value: `mean` is what makes it everyone's."""
  with parallel.use(jax.devices()):
    raw = parallel.spmd(lambda rank, x: x + rank)(jnp.float32(1))
    mean = parallel.spmd(lambda rank, x: parallel.mean(x + rank))(
      jnp.float32(1)
    )
    every = parallel.spmd(lambda rank, x: jax.lax.all_gather(x + rank, AXIS))(
      jnp.float32(1)
    )
  assert float(raw) == 1.0
  assert float(mean) == 2.5
  assert every.tolist() == [1, 2, 3, 4]


ADAM = training.adam(1e-3)


def linear(params, x):
  return x @ params['w']


def test_an_equal_model_compiles_nothing():
  every = Examples.of(np.eye(4, dtype=np.float32), np.arange(4) % 2)
  state, seen = ModelState({'w': jnp.ones((4, 2))}), []
  for _ in range(2):
    with parallel.use(jax.devices()[:1]):
      predict(stateless(linear), state, every)
      training.fit(
        jax.random.key(0),
        stateless(linear),
        state,
        [every],
        epochs=1,
        batch_sizes=[4],
        optimizer=ADAM,
      )
    seen.append(len(timing._compilations))
  assert seen[0] == seen[1] > 0


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
  """Nothing moves, so each example has its loss, in whatever batch it is."""
  every = Examples.of(np.eye(6, dtype=np.float32), np.arange(6) % 2)
  weights = np.random.default_rng(0).normal(size=(6, 2)) * 3
  logits = weights - np.log(np.exp(weights).sum(1, keepdims=True))
  with parallel.use(jax.devices()[:1]):
    fit = training.fit(
      jax.random.key(0),
      stateless(linear),
      ModelState({'w': jnp.asarray(weights, jnp.float32)}),
      [every],
      epochs=2,
      batch_sizes=[2],
      optimizer=optax.sgd(0.0),
    )
  mean = -logits[np.arange(6), np.arange(6) % 2].mean()
  assert [row.loss for row in fit.history[1:]] == pytest.approx([mean] * 2)
