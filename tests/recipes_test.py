import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import parallel, training
from unlearn_jax.data import images
from unlearn_jax.prediction import predict
from unlearn_jax.recipes import RECIPES, momentum


def test_the_paper_recipe_is_plain_adam():
  recipe = RECIPES['paper']
  assert not recipe.augment
  assert recipe.optimizer(1e-3, 7) is training.adam(1e-3)


def test_optimisers_are_shared_between_equal_trainings():
  for recipe in RECIPES.values():
    assert recipe.optimizer(0.1, 30) is recipe.optimizer(0.1, 30)


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
