"""Weighted terms, a stranger's strategies, and what a training is told."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import (
  epoch,
  finetuning,
  objectives,
  parallel,
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
)
from unlearn_jax.finetuning import Budget
from unlearn_jax.objectives import Term, forgotten, retained, taught
from unlearn_jax.strategies import Edit, Strategy
from unlearn_jax.unlearning import unlearn

# One weight a class; the loss is minus the output of the label, so that SGD at
# a rate of 1 adds to w[c] the share of the batch that has label c.
X = np.ones((8, 1), np.float32)
Y = np.array([0, 0, 0, 1, 2, 2, 2, 2], np.int32)
EVERY = Examples.of(X, Y)
SPLITS = Splits.of(EVERY, np.arange(4, 8), EVERY)  # D_RE: 0, 0, 0, 1. D_UL: 2.
STEP = epoch.Step(jnp.int32(0), jnp.int32(1), 1)
MODEL = stateless(
  lambda params, x: x @ params['w'],
  loss=lambda logits, labels: -logits[jnp.arange(len(labels)), labels],
)
SOURCE = ModelState({'w': jnp.zeros((1, 3)), 'still': jnp.full((2,), 2.0)})


def sgd(rate, steps):
  return optax.sgd(rate)


def run(terms, epochs=1, batch_size=4, **fields):
  strategy = Strategy('own', terms=terms, optimizer=sgd, **fields)
  budget = Budget(epochs, 1.0, batch_size, 0.0, 2.0)
  with parallel.use(jax.devices()[:1]):
    return unlearn(jax.random.key(0), MODEL, SOURCE, SPLITS, strategy, budget)


def w(result):
  return pytest.approx(np.ravel(result.state.params['w']), abs=1e-5)


def test_a_term_is_the_mean_of_the_models_loss():
  assert [0.75, 0.25, 0] == w(run((Term(retained),)))


@pytest.mark.parametrize(
  'weight, moved',
  [(2.0, 2), (0.5, 0.5), (-1.0, -1), (0.0, 0), (lambda s: 3.0 + s.number, 3)],
)
def test_a_weight_scales_a_term_and_below_0_it_ascends(weight, moved):
  assert [0, 0, moved] == w(run((Term(forgotten, weight=weight),)))
  both = run((Term(retained), Term(forgotten, weight=weight)))
  assert [0.75, 0.25, moved] == w(both)


def test_the_step_of_a_weight_counts_on_over_the_epochs():
  """Two steps an epoch, three epochs: the weights are 1, 2, 4, 8, 16, 32."""
  term = Term(forgotten, weight=lambda s: 2.0**s.number)
  assert [0, 0, 63] == w(run((term,), epochs=3, batch_size=2))
  late = Term(forgotten, weight=lambda s: jnp.where(s.number == 4, 1.0, 0.0))
  assert [0, 0, 1] == w(run((late,), epochs=3, batch_size=2))


def first_output(logits, batch):
  assert batch.targets is None
  return -10 * logits[:, 0]


def test_a_loss_of_ones_own_sees_the_batch_of_its_examples():
  assert [10, 0, 0] == w(run((Term(forgotten, first_output),)))

  def own(logits, batch):
    return -logits[:, 1] * batch.labels

  assert [0, 2, 0] == w(run((Term(forgotten, own),)))


def relabelled(context):
  """D_UL with label 0."""
  examples = context.splits.forget
  return examples._replace(labels=np.zeros_like(examples.labels))


def test_examples_may_be_made_by_the_strategy():
  assert [1, 0, 0] == w(run((Term(relabelled),)))
  with pytest.raises(AssertionError):  # Those of the data are as they were.
    assert [1, 0, 0] == w(run((Term(forgotten),)))


def l1(params, step):
  del step
  return 0.5 * jnp.abs(params['still']).sum()


def test_a_penalty_is_added_to_the_terms():
  result = run((Term(retained),), penalty=l1)
  assert [0.75, 0.25, 0] == w(result)
  assert result.state.params['still'].tolist() == [1.5, 1.5]
  assert result.history[1].loss == pytest.approx(2.0)
  assert run((Term(retained),)).state.params['still'].tolist() == [2, 2]


def halve(context):
  params = dict(context.source.params)
  mask = {'w': jnp.zeros((1, 3), bool), 'still': jnp.array([True, False])}
  return Edit({**params, 'still': params['still'] * jnp.array([0.5, 1])}, mask)


def test_without_terms_nothing_is_trained():
  result = run((), epochs=5, edit=halve)
  assert result.state.params['still'].tolist() == [1, 2]
  assert result.state.params['w'].tolist() == [[0, 0, 0]]
  assert result.by_tensor == {'w': 0, 'still': 1}
  assert [row.epoch for row in result.history] == [0]
  assert result.seconds == result.selection_seconds > 0


@pytest.mark.parametrize(
  'moves, still, moved',
  [('all', [0.5, 1.5], True), ('scalars', [0.5, 2], False),
   ('tensors', [0.5, 1.5], False)],
)  # fmt: skip
def test_a_strangers_mask_says_what_moves(moves, still, moved):
  result = run((Term(retained),), edit=halve, moves=moves, penalty=l1)
  assert result.state.params['still'].tolist() == still
  assert bool(result.state.params['w'].any()) == moved


def test_a_stranger_may_teach_and_take_a_share():
  """The teacher is sure of class 1 on D_RE; only that class is pulled up."""

  def teacher(context):
    return ModelState({**context.source.params, 'w': jnp.array([[0, 99.0, 0]])})

  def cross_entropy(logits, batch):
    return -(batch.targets * logits).sum(-1)

  term = Term(taught(teacher, retained), cross_entropy, share=0.5)
  assert [0.75, 1.25, 0] == w(run((Term(retained), term)))


# The losses.


def test_the_guided_loss_by_hand():
  """Two classes, a uniform student, a certain teacher: JS is known."""
  model = stateless(lambda params, x: x @ params['w'])
  state = ModelState({'w': jnp.zeros((2, 2))})
  retain = Batch(jnp.eye(2), jnp.array([0, 1]))
  forget = Batch(jnp.eye(2)[:1], jnp.array([0]), jnp.array([[1.0, 0.0]]))
  loss = objectives.total(objectives.guided(2.0, 'source'))
  value, _ = loss(model, state, (retain, forget), STEP)
  # m = (3/4, 1/4): ½·log2(4/3) + ½·(½·log2(2/3) + ½·log2(2)) = 0.3113 bits.
  assert float(value) == pytest.approx(np.log(2) + 2 * 0.31128, abs=1e-4)
  assert objectives.total(objectives.guided(2.0, 'source')) is loss


@pytest.mark.parametrize(
  'weight, teacher, count',
  [
    (0.1, 'source', 2),
    (0.1, 'retrained', 2),
    (0.1, 'none', 1),
    (0, 'source', 1),
  ],
)
def test_the_guided_terms(weight, teacher, count):
  terms = objectives.guided(weight, teacher)
  assert len(terms) == count and terms[0] == Term(retained)
  for term in terms[1:]:
    assert (term.weight, term.share, term.batch_norm) == (0.1, 1 / 8, 'running')


def counting(state, images, train):
  """Statistics that count the images seen in training mode, by their value."""
  logits = images @ state.params['w'] + 0 * state.batch_stats['sum']
  more = jnp.where(train, images.sum(), 0.0)
  return logits, {'sum': state.batch_stats['sum'] + more}


def test_terms_enter_the_statistics_one_after_the_other_or_not_at_all():
  model = Model(counting)
  state = ModelState({'w': jnp.ones((1, 2))}, {'sum': jnp.float32(1)})
  batches = [
    Batch(jnp.full((2, 1), value), jnp.zeros(2, int))
    for value in (1.0, 10, 100)
  ]
  for kinds, want in (
    (('batch', 'batch', 'batch'), 223), (('batch', 'running', 'batch'), 203),
    (('running', 'running', 'running'), 1),
    (('batch', 'running', 'running'), 3),
  ):  # fmt: skip
    terms = [Term(retained, first_output, batch_norm=kind) for kind in kinds]
    _, stats = objectives.total(tuple(terms))(model, state, batches, STEP)
    assert stats['sum'] == want, kinds


def test_d_ul_never_enters_the_running_statistics():
  """With λ > 0 D_UL is seen, in evaluation mode, by the running statistics."""
  modes = []

  def apply(state, images, train):
    modes.append((train, images.shape[0]))
    return counting(state, images, train)

  x = np.concatenate([np.ones((16, 1)), np.full((8, 1), 1000.0)])
  every = Examples.of(x.astype(np.float32), np.arange(24, dtype=np.int32) % 2)
  splits = Splits.of(every, np.arange(16, 24), every)
  model, state = Model(apply), ModelState({'w': jnp.ones((1, 2))}, {
    'sum': jnp.float32(0)
  })  # fmt: skip
  with parallel.use(jax.devices()[:1]):
    fit = helpers.finetune(
      jax.random.key(1), model, state, splits,
      teacher=state, epochs=1, batch_size=16, js_weight=0.5,
    )  # fmt: skip
  assert fit.state.batch_stats['sum'] == 16
  assert (True, 16) in modes and (False, 2) in modes and (True, 2) not in modes


def test_minimising_on_four_devices_equals_one():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(48, 5)).astype(np.float32)
  every = Examples.of(x, rng.integers(0, 3, 48).astype(np.int32))
  splits = Splits.of(every, np.arange(16), every)
  model = stateless(lambda params, x: jnp.tanh(x @ params) @ params[:3])
  source, other = (
    ModelState(jnp.array(rng.normal(size=(5, 3)), jnp.float32)) for _ in '12'
  )
  terms = (
    Term(retained),
    Term(
      taught(lambda _: other, forgotten), objectives.js_to_teacher, 0.5, 0.25
    ),
  )
  fits = []
  for devices in (1, 4):
    with parallel.use(jax.devices()[:devices]):
      context = Context(jax.random.key(1), model, source, splits)
      fits.append(
        finetuning.minimize(
          context,
          source,
          terms,
          epochs=2,
          batch_size=16,
          optimizer=training.adam(1e-2),
        )  # fmt: skip
      )
  one, four = (np.asarray(fit.state.params) for fit in fits)
  np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)


# The orders and the noise of an epoch.


def watched(devices=1, epochs=2, noise=0.0, share=1.0):
  """What each step of each device saw: {(t, first row of set 0): rows}."""
  x = np.arange(48, dtype=np.float32)[:, None]
  every = Examples.of(x, np.zeros(48, np.int32))
  splits = Splits.of(every, np.arange(24), every)
  seen = []

  def loss(model, state, batches, step):
    def note(t, *images):
      seen.append((int(t), *(np.ravel(image) for image in images)))

    jax.debug.callback(note, step.number, *(batch.images for batch in batches))
    return jnp.sum(state.params['w']) * 0.0, state.batch_stats

  def augment(key, images):
    return images + noise * jax.random.uniform(key, images.shape)

  with parallel.use(jax.devices()[:devices]):
    training.fit(
      jax.random.key(0),
      stateless(lambda params, x: x),
      ModelState({'w': jnp.zeros(1)}),
      [splits.retain, splits.forget],
      epochs=epochs,
      batch_sizes=[8, 8],
      optimizer=training.adam(1e-3),
      loss=loss,
      augment=augment,
    )
    jax.effects_barrier()
  return sorted(seen, key=lambda each: each[0])


def test_every_epoch_has_an_order_of_its_own():
  seen = watched(epochs=3)
  assert [t for t, *_ in seen] == list(range(9)), 't counts on over epochs'
  for place, rows in ((1, range(24, 48)), (2, range(24))):
    orders = [
      np.concatenate([step[place] for step in seen[i : i + 3]]).tolist()
      for i in (0, 3, 6)
    ]
    assert all(sorted(order) == list(rows) for order in orders)
    assert len(set(map(tuple, orders))) == 3, 'two epochs have the same order'


def test_sets_are_shuffled_independently():
  """Of the same size and share, and still not by the same permutation."""
  for _, retain, forget in watched(epochs=1):
    assert (retain - 24).tolist() != forget.tolist()


def test_the_noise_of_steps_devices_sets_and_epochs_differs():
  seen = watched(devices=2, epochs=2, noise=0.5)
  assert len(seen) == 2 * 3 * 2  # epochs, steps, devices
  noises = [part - np.floor(part) for _, *sets in seen for part in sets]
  drawn = {np.round(noise, 4).tobytes() for noise in noises}
  assert len(drawn) == len(noises) == 24, 'the same noise twice'
  for noise in noises:
    assert len(set(noise.tolist())) > 1
