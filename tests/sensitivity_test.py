"""How sensitive a model is to each scalar: |∂F/∂ω|, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import parallel, sensitivity
from unlearn_jax.base import Batch, Model


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


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('reduction', ['mean_abs', 'mean'])
def test_several_gradients_at_a_time_are_those_of_one_at_a_time(
  monkeypatch, devices, reduction
):
  """What other backends than a CPU do; 22 examples fill no chunk of 4."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(22, 3)), jnp.float32)
  params = {'w': jnp.array([1.0, -2.0, 0.5])}

  def sensitivities(at_a_time):
    monkeypatch.setattr(sensitivity, '_at_a_time', lambda params: at_a_time)
    with parallel.use(jax.devices()[:devices]):
      return sensitivity.gradient_sensitivity(
        # A new function, so that nothing compiled before is used.
        lambda *arguments: squared(*arguments), params, x,
        reduction=reduction,
      )['w']  # fmt: skip

  each = np.asarray(x) * np.asarray(x @ params['w'])[:, None]
  want = abs(each).mean(0) if reduction == 'mean_abs' else abs(each.mean(0))
  for one in (sensitivities(1), sensitivities(4)):
    np.testing.assert_allclose(one, want, rtol=1e-4)


def test_memory_says_how_many_gradients_are_held(monkeypatch):
  params = {'w': jnp.ones((25, 10))}  # 1,000 bytes
  assert sensitivity._at_a_time(params) == 1  # a CPU
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for memory, count in ((3999, 3), (0, 1)):
    monkeypatch.setattr(sensitivity, '_MEMORY', memory)
    assert sensitivity._at_a_time(params) == count


@pytest.mark.parametrize(
  'count, options, message',
  [
    (1, {'reduction': 'max'}, "reduction='max', allowed: mean_abs"),
    (0, {}, 'allowed: one size of 1 or more'),
  ],
)
def test_bad_sensitivity_arguments_are_named(count, options, message):
  with pytest.raises(ValueError, match=message):
    sensitivity.gradient_sensitivity(
      squared, {'w': jnp.ones(2)}, jnp.ones((count, 2)), **options
    )
  with pytest.raises(ValueError, match="name='accuracy', allowed: loss"):
    sensitivity.model_objective(Model(None), 'accuracy')


@pytest.mark.parametrize('objective', sensitivity.OBJECTIVES)
def test_the_sensitivity_is_by_the_running_statistics(objective):
  def apply(state, x, train):
    assert not train, 'BatchNorm in training mode'
    return x @ state.params['w'] * state.batch_stats['scale'], state.batch_stats

  grads = sensitivity.gradient_sensitivity(
    sensitivity.model_objective(Model(apply), objective),
    {'w': jnp.eye(2)},
    Batch(jnp.eye(2), jnp.array([0, 1])),
    {'scale': jnp.full(1, 3.0)},
  )
  assert (grads['w'] >= 0).all() and float(grads['w'].sum()) > 0
