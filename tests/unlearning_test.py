"""Sensitivity, fine-tuning, strategies and the whole method."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import finetuning, parallel, sensitivity, training, unlearning
from unlearn_jax.base import (
  Batch,
  Examples,
  ModelState,
  Splits,
  stateless,
  tensor_paths,
)
from unlearn_jax.divergences import js_divergence
from unlearn_jax.prediction import predict
from unlearn_jax.strategies import CHOICES, STRATEGIES, Settings
from unlearn_jax.timing import Stopwatch

MODEL, SPLITS = helpers.model(), helpers.splits()
QUICK = Settings(
  k=5, ratio=0.1, last_k=2, epochs=1, batch_size=16, sensitivity_examples=32
)


@pytest.fixture(scope='module')
def source():
  with parallel.use(jax.devices()[:1]):
    return training.train(
      jax.random.key(3),
      MODEL,
      SPLITS.train,
      epochs=15,
      batch_size=16,
      optimizer=training.adam(1e-2),
    ).state


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# Sensitivity.


def squared(params, x):
  """Mean over examples of ½ (w·x)²; its gradient is (w·x) x."""
  return 0.5 * jnp.mean(jnp.square(x @ params['w']))


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize(
  'reduction, want',
  [('mean_abs', [2, 4 / 3]), ('mean', [2, 0]), ('single', [1, 1])],
)
def test_reductions_by_hand(reduction, want, devices):
  params = {'w': jnp.array([1.0, 0.0])}
  # Gradients (1, 1), (1, 1) and (4, −2): the signs cancel in w₂.
  x = jnp.array([[1.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
  with parallel.use(jax.devices()[:devices]):
    got = sensitivity.gradient_sensitivity(
      squared, params, x, reduction=reduction
    )
  np.testing.assert_allclose(got['w'], want, atol=1e-6)


def test_sensitivity_of_a_model_is_the_mean_of_single_gradients(source):
  images = SPLITS.train.images[:6]
  labels = SPLITS.train.labels[:6]
  for name in sensitivity.OBJECTIVES:
    objective = sensitivity.model_objective(MODEL, name)
    got = sensitivity.gradient_sensitivity(
      objective, source.params, Batch(images, labels), source.batch_stats
    )
    single = jax.jit(jax.grad(objective))
    want = [
      single(
        source.params,
        Batch(images[i : i + 1], labels[i : i + 1]),
        source.batch_stats,
      )
      for i in range(6)
    ]
    mean = jax.tree.map(lambda *g: jnp.mean(jnp.abs(jnp.stack(g)), 0), *want)
    for a, b in zip(leaves(got), leaves(mean), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('reduction', ['mean_abs', 'mean'])
def test_several_gradients_at_a_time_are_those_of_one_at_a_time(
  source, monkeypatch, devices, reduction
):
  """What other backends than a CPU do; 22 examples fill no chunk of 4."""
  batch = Batch(SPLITS.train.images[:22], SPLITS.train.labels[:22])
  arguments = (source.params, batch, source.batch_stats)

  def sensitivities(at_a_time, memory):
    monkeypatch.setattr(sensitivity, '_at_a_time', at_a_time)
    # A new function, so that nothing compiled before is used.
    objective = sensitivity.model_objective.__wrapped__(MODEL)
    with parallel.use(jax.devices()[:devices]):
      return sensitivity.gradient_sensitivity(
        objective, *arguments, reduction=reduction, memory=memory
      )

  one = sensitivities(lambda params, memory: 1, 0)
  four = sensitivities(lambda params, memory: memory, 4)
  for a, b in zip(leaves(one), leaves(four), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_memory_says_how_many_gradients_are_held(monkeypatch):
  params = {'w': jnp.ones((25, 10))}  # 1,000 bytes
  assert sensitivity._at_a_time(params, 10**6) == 1  # a CPU
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert sensitivity._at_a_time(params, 3999) == 3
  assert sensitivity._at_a_time(params, 0) == 1


def test_sensitivity_compiles_once():
  params, x, other = {'w': jnp.ones(2)}, jnp.ones((4, 2)), jnp.zeros((4, 2))
  sensitivity.gradient_sensitivity(squared, params, x)
  with Stopwatch() as watch:
    sensitivity.gradient_sensitivity(squared, params, other)
  assert watch.compilations == 0


def test_bad_sensitivity_arguments_are_named():
  params = {'w': jnp.ones(2)}
  with pytest.raises(ValueError, match="reduction='max', allowed: mean_abs"):
    sensitivity.gradient_sensitivity(
      squared, params, jnp.ones((1, 2)), reduction='max'
    )
  with pytest.raises(ValueError, match='memory=-1, allowed: 0 bytes or more'):
    sensitivity.gradient_sensitivity(
      squared, params, jnp.ones((1, 2)), memory=-1
    )
  with pytest.raises(ValueError, match='allowed: one size of 1 or more'):
    sensitivity.gradient_sensitivity(squared, params, jnp.ones((0, 2)))
  with pytest.raises(ValueError, match="name='accuracy', allowed: loss"):
    sensitivity.model_objective(MODEL, 'accuracy')


# Fine-tuning.


def test_the_guided_loss_by_hand():
  """Two classes, a uniform student, a certain teacher: JS is known."""
  model = stateless(lambda params, x: x @ params['w'])
  state = ModelState({'w': jnp.zeros((2, 2))})
  retain = Batch(jnp.eye(2), jnp.array([0, 1]))
  forget = Batch(jnp.eye(2)[:1], jnp.array([0]), jnp.array([[1.0, 0.0]]))
  value, _ = finetuning.guided_loss(2.0)(model, state, (retain, forget))
  # m = (3/4, 1/4): ½·log2(4/3) + ½·(½·log2(2/3) + ½·log2(2)) = 0.3113 bits.
  assert float(value) == pytest.approx(np.log(2) + 2 * 0.31128, abs=1e-4)


def finetune(source, devices=1, **options):
  options = {'epochs': 2, 'batch_size': 16, **options}
  with parallel.use(jax.devices()[:devices]):
    return finetuning.finetune(
      jax.random.key(1), MODEL, source, SPLITS, teacher=source, **options
    )


def test_finetuning_on_four_devices_equals_one(source):
  one = finetune(source, 1, forget_batch_size=4)
  four = finetune(source, 4, forget_batch_size=4)
  for a, b in zip(leaves(one.state), leaves(four.state), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_forget_examples_never_enter_the_running_statistics(source):
  """With λ > 0 D_UL is seen; its pixels must not reach BatchNorm."""
  other = SPLITS.forget.images.copy()
  other[np.asarray(SPLITS.forget.indices)] = 255
  blank = SPLITS._replace(forget=SPLITS.forget._replace(images=other))
  states = [
    finetuning.finetune(
      jax.random.key(1),
      MODEL,
      source,
      splits,
      teacher=training.initialize(jax.random.key(9), MODEL),
      epochs=1,
      batch_size=80,
      js_weight=0.5,
    ).state
    for splits in (SPLITS, blank)
  ]
  # One step: the statistics come from the same weights, the weights do not.
  for a, b in zip(
    leaves(states[0].batch_stats), leaves(states[1].batch_stats), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert any(
    (a != b).any()
    for a, b in zip(leaves(states[0].params), leaves(states[1].params))
  )


def test_a_heavy_js_term_keeps_the_outputs_near_the_teacher(source):
  optimizer = training.adam(1e-2)
  distances = []
  for weight in (0.0, 20.0):
    fit = finetune(source, js_weight=weight, epochs=6, optimizer=optimizer)
    distances.append(
      float(
        js_divergence(
          predict(MODEL, source, SPLITS.forget),
          predict(MODEL, fit.state, SPLITS.forget),
        ).mean()
      )
    )
  assert distances[1] < 0.5 * distances[0]


def test_the_stop_rule_by_hand():
  def history(*pairs):
    return [
      training.Epoch(i, None, 0.0, {'js_to_source': j, 'retain_accuracy': r})
      for i, (j, r) in enumerate(pairs)
    ]

  rule = finetuning.StopRule(js_change=0.01, retain_accuracy=0.9)
  assert rule.epoch(history((0.5, 1.0))) is None
  assert rule.epoch(history((0.5, 1.0), (0.505, 0.9))) == 1
  assert rule.epoch(history((0.5, 1.0), (0.505, 0.89))) is None
  assert rule.epoch(history((0.5, 1.0), (0.4, 0.95), (0.41, 0.95))) == 2


def test_finetuning_ends_where_the_rule_first_holds(source):
  measure = finetuning.monitor(MODEL, source, SPLITS)
  rule = finetuning.StopRule(js_change=1.0, retain_accuracy=0.0)
  fit = finetune(source, epochs=5, measure=measure, stop_rule=rule)
  assert [epoch.epoch for epoch in fit.history] == [0, 1]
  assert fit.history[0].measured['js_to_source'] == pytest.approx(0, abs=1e-9)


def test_the_monitor_looks_at_no_more_than_its_limit(source):
  every = finetuning.monitor(MODEL, source, SPLITS)(source)
  some = finetuning.monitor(MODEL, source, SPLITS, limit=5)(source)
  assert set(every) == set(some)
  labels = SPLITS.retain.labels[np.asarray(SPLITS.retain.indices)]
  chosen = predict(MODEL, source, SPLITS.retain).argmax(-1)
  assert every['retain_accuracy'] == pytest.approx((chosen == labels).mean())
  assert some['retain_accuracy'] * 5 == pytest.approx(
    round(some['retain_accuracy'] * 5)
  )


def test_a_negative_js_weight_is_named(source):
  with pytest.raises(ValueError, match='js_weight=-1, allowed: 0 or more'):
    finetune(source, js_weight=-1)


# The whole method.


def run(source, strategy, settings=QUICK, seed=0, **options):
  with parallel.use(jax.devices()[:1]):
    return unlearning.unlearn(
      jax.random.key(seed), MODEL, source, SPLITS, strategy, settings, **options
    )


COUNTS = {
  'retrain': sum(
    leaf.size
    for leaf in jax.tree.leaves(
      jax.eval_shape(MODEL.init, jax.random.key(0)).params
    )
  ),
  'finetune': 0,
  'random_scalars': 5,
  'top_k': 5,
  'random_k': 29,
  'random_top_k': 29,
  'eu_k': 21,
  'cf_k': 0,
}


def test_every_strategy_is_counted():
  assert set(COUNTS) == set(STRATEGIES)
  assert round(0.1 * COUNTS['retrain']) == COUNTS['random_k']


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_zero_epochs_return_the_perturbed_model(source, strategy):
  result = run(source, strategy, dataclasses.replace(QUICK, epochs=0))
  for a, b in zip(leaves(result.state), leaves(result.perturbed), strict=True):
    assert (a == b).all()
  assert sum(result.by_tensor.values()) == COUNTS[strategy]
  assert set(result.by_tensor) == set(MODEL.order)
  changed = {
    path: int((a != b).sum())
    for path, a, b in zip(
      tensor_paths(source.params),
      leaves(source.params),
      leaves(result.state.params),
    )
  }
  for path, count in changed.items():
    assert count <= result.by_tensor[path], path
  if COUNTS[strategy] == 0:
    assert result.perturbation_js == 0


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_one_epoch_trains_what_it_may(source, strategy):
  result = run(source, strategy)
  frozen = STRATEGIES[strategy].freezes
  kept = set(MODEL.order[:-2]) if frozen else set()
  for path, a, b in zip(
    tensor_paths(source.params),
    leaves(source.params),
    leaves(result.state.params),
  ):
    assert (a == b).all() == (path in kept), path
  for name in ('bn1', 'bn2'):
    same = (
      source.batch_stats[name]['mean'] == result.state.batch_stats[name]['mean']
    ).all()
    assert bool(same) == frozen
  assert result.seconds > 0
  assert len(result.history) == 2


def test_the_same_key_gives_the_same_model_and_another_does_not(source):
  first, again = run(source, 'random_k'), run(source, 'random_k')
  other = run(source, 'random_k', seed=1)
  for a, b in zip(leaves(first.state), leaves(again.state), strict=True):
    assert (a == b).all()
  assert any(
    (a != b).any() for a, b in zip(leaves(first.state), leaves(other.state))
  )


def test_the_source_is_left_alone(source):
  before = leaves(jax.tree.map(jnp.copy, source))
  run(source, 'top_k')
  for a, b in zip(before, leaves(source), strict=True):
    assert (a == b).all()


def test_zeroing_the_most_sensitive_scalars_is_what_top_k_does(source):
  settings = dataclasses.replace(QUICK, epochs=0, sensitivity_examples=96)
  result = run(source, 'top_k', settings)
  grads = sensitivity.gradient_sensitivity(
    sensitivity.model_objective(MODEL),
    source.params,
    Batch(SPLITS.train.images[:96], SPLITS.train.labels[:96]),
    source.batch_stats,
  )
  flat = np.concatenate([leaf.ravel() for leaf in leaves(grads)])
  params = np.concatenate([leaf.ravel() for leaf in leaves(source.params)])
  got = np.concatenate([leaf.ravel() for leaf in leaves(result.state.params)])
  top = np.argsort(-flat, kind='stable')[:5]
  assert (got[top] == 0).all()
  rest = np.setdiff1d(np.arange(len(flat)), top)
  assert (got[rest] == params[rest]).all()


def test_selected_training_moves_the_chosen_only(source):
  settings = dataclasses.replace(QUICK, train_mask='selected')
  result = run(source, 'top_k', settings)
  moved = sum(
    int((a != b).sum())
    for a, b in zip(leaves(source.params), leaves(result.state.params))
  )
  assert 0 < moved <= 5


def test_the_donor_rule_changes_no_more_than_its_mask(source):
  settings = dataclasses.replace(QUICK, rule='donor', epochs=0)
  result = run(source, 'random_k', settings)
  moved = sum(
    int((a != b).sum())
    for a, b in zip(leaves(source.params), leaves(result.state.params))
  )
  assert 10 < moved <= 29


def test_the_choices_are_those_of_the_functions():
  assert CHOICES['objective'] == sensitivity.OBJECTIVES
  assert CHOICES['reduction'] == sensitivity.REDUCTIONS


def test_bad_settings_are_named(source):
  with pytest.raises(ValueError, match="strategy='topk', allowed: retrain"):
    run(source, 'topk')
  for name, value in (('js_teacher', 'self'), ('rule', 'doner')):
    with pytest.raises(ValueError, match=f"{name}='{value}', allowed: "):
      Settings(**{name: value})
  with pytest.raises(ValueError, match='needs retrained, which is None'):
    run(source, 'top_k', dataclasses.replace(QUICK, js_teacher='retrained'))


def test_a_params_tree_of_the_users_own():
  """No BatchNorm, no Linen, a NamedTuple of arrays."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 8)).astype(np.float32)
  y = (x[:, 0] > 0).astype(np.int32)
  every = Examples.of(x, y)
  splits = Splits(
    every, every.take(np.arange(8)), every.take(np.arange(8, 64)), every
  )
  model = stateless(lambda params, x: jnp.tanh(x @ params[0]) @ params[1])
  params = [jnp.array(rng.normal(size=s)) for s in ((8, 6), (6, 2))]
  result = unlearning.unlearn(
    jax.random.key(0),
    model,
    ModelState(params),
    splits,
    'top_k',
    Settings(k=3, epochs=1, batch_size=8),
  )
  assert isinstance(result.state.params, list)
  assert sum(result.by_tensor.values()) == 3
