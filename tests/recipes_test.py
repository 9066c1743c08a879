import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import finetuning, parallel, training
from unlearn_jax.data import images
from unlearn_jax.prediction import predict
from unlearn_jax.recipes import RECIPES, momentum


def test_the_paper_recipe_is_plain_adam():
  recipe = RECIPES['paper']
  assert not recipe.augment
  own = recipe.optimizer(1e-3, 7)
  assert own.update is training.adam(1e-3).update
  expect_like(own, optax.adam(1e-3))


def test_programs_are_shared_between_trainings_whose_rates_differ():
  for recipe in RECIPES.values():
    own = recipe.optimizer(0.1, 30).update
    assert own is recipe.optimizer(0.2, 30).update
  annealed = RECIPES['standard'].optimizer
  assert annealed(0.1, 30).update is not annealed(0.1, 31).update


SGD = optax.chain(training.decay, optax.sgd(0.2, 0.9))
COSINE = optax.cosine_decay_schedule(0.2, 5)


@pytest.mark.parametrize(
  'kind, schedule, want',
  [
    ('adam', 'constant', optax.adam(0.2)),
    ('adam', 'cosine', optax.adam(COSINE)),
    ('sgd', 'constant', SGD),
    ('sgd', 'cosine', optax.chain(training.decay, optax.sgd(COSINE, 0.9))),
  ],
)
@pytest.mark.parametrize('clipped', [False, True])
def test_a_budget_steps_as_optax_does(kind, schedule, want, clipped):
  transform = optax.clip_by_global_norm(0.5) if clipped else None
  own = finetuning.optimizer(kind, schedule, transform, 0.2, 5)
  expect_like(own, optax.chain(transform, want) if clipped else want)


def expect_like(own, want):
  """The same updates, six of them, in two kinds of numbers."""
  for kind in (jnp.float32, jnp.bfloat16):
    params = {'kernel': jnp.full((1, 2), 2.0, kind), 'scale': jnp.ones(1, kind)}
    grads = jax.tree.map(lambda w: w * 0.7 - 0.3, params)
    got, wanted = (steps_of(o, grads, params, 6) for o in (own, want))
    error = 1e-6 if kind == jnp.float32 else 1e-2
    for each, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
      assert each.dtype == other.dtype == kind
      np.testing.assert_allclose(
        *(np.asarray(x, float) for x in (each, other)), rtol=error, atol=1e-8
      )


def steps_of(optimizer, grads, params, count):
  """The updates of `count` steps under a constant gradient."""
  state, seen = optimizer.init(params), []
  for _ in range(count):
    updates, state = optimizer.update(grads, state, params)
    seen.append(updates)
  return seen


def test_momentum_by_hand():
  """Nesterov's momentum m ← 0.9 m + g; the step is −rate · (g + 0.9 m)."""
  count, peak = 20, 0.5
  params = {'kernel': jnp.full((1, 1), 2.0), 'scale': jnp.full(1, 2.0)}
  grads = jax.tree.map(jnp.ones_like, params)
  seen = steps_of(momentum(peak, count), grads, params, count)
  memory = {'kernel': 0.0, 'scale': 0.0}
  for number, updates in enumerate(seen):
    if number < 2:  # a tenth of the steps
      rate = peak * number / 2
    else:
      rate = peak * (1 + np.cos(np.pi * (number - 2) / 18)) / 2
    for name in memory:
      decay = 5e-4 * 2.0 if name == 'kernel' else 0.0
      memory[name] = 0.9 * memory[name] + 1 + decay
      step = -rate * (1 + decay + 0.9 * memory[name])
      np.testing.assert_allclose(updates[name], step, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('steps', [0, 1, 2])
def test_the_shortest_trainings_have_finite_steps(steps):
  params = {'kernel': jnp.ones((2, 2))}
  for updates in steps_of(momentum(0.1, steps), params, params, 3):
    assert np.isfinite(updates['kernel']).all()


@pytest.mark.parametrize('name', RECIPES)
def test_each_recipe_learns(name):
  recipe, splits = RECIPES[name], helpers.splits()
  with parallel.use(jax.devices()[:2]):
    fit = training.train(
      jax.random.key(0),
      helpers.model(),
      splits.train,
      epochs=25,
      batch_size=16,
      optimizer=recipe.optimizer(10 * recipe.learning_rate, 25 * 6)
      if name == 'paper'
      else recipe.optimizer(recipe.learning_rate, 25 * 6),
      augment=(lambda key, x: images.augment(key, x, pad=0))
      if recipe.augment
      else None,
    )
    chosen = predict(helpers.model(), fit.state, splits.test).argmax(-1)
  labels = splits.test.labels[splits.test.indices]
  assert (chosen == labels).mean() > 0.8


def test_a_recipe_works_on_a_list_of_leaves():
  """The engine hands optimisers the trained tensors as a list."""
  leaves = [jnp.ones((2, 2)), jnp.ones(2)]
  optimizer = RECIPES['standard'].optimizer(0.1, 10)
  updates, _ = optimizer.update(leaves, optimizer.init(leaves), leaves)
  assert optax.apply_updates(leaves, updates)[1].shape == (2,)
