"""Training that was stopped and goes on: the numbers of one never stopped."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import (
  epoch,
  finetuning,
  parallel,
  recipes,
  snapshots,
  strategies,
  timing,
  training,
  unlearning,
)
from unlearn_jax.base import InputError, ModelState, TrainState
from unlearn_jax.data import streaming
from unlearn_jax.finetuning import Budget

MODEL, SPLITS = helpers.model(), helpers.splits()


class StopHereError(Exception):
  pass


class OnDisk:
  """Saves whatever it is told, and ends the training after one of it."""

  def __init__(self, folder, stop_after=None):
    self.folder, self.stop_after = folder, stop_after
    self.last = None

  def load(self, like):
    if self.last is None:
      return None
    packed, _ = snapshots.restore(self.folder / str(self.last))
    return snapshots.unpack(packed, like)

  def save(self, snapshot):
    course = snapshot.course
    self.last = (course.epoch, course.step) if course.step else course.epoch
    save(self.folder / str(self.last), snapshots.pack(snapshot))
    if self.last == self.stop_after:
      raise StopHereError


def save(directory, packed):
  snapshots.save(directory, packed, {})


def interrupted(train, folder, stop_after=2):
  """`train(keeper)` stopped after an epoch, and then gone on with."""
  keeper = OnDisk(folder, stop_after)
  with pytest.raises(StopHereError):
    train(keeper)
  assert keeper.last == stop_after
  keeper.stop_after = None
  return train(keeper)


def without_seconds(history):
  return [row._replace(seconds=0) for row in history]


def assert_same(one, other):
  assert without_seconds(one.history) == without_seconds(other.history)
  leaves, others = jax.tree.leaves(one.state), jax.tree.leaves(other.state)
  for a, b in zip(leaves, others, strict=True):
    np.testing.assert_array_equal(a, b)


def noise(key, images):
  return images + jax.random.randint(key, images.shape, 0, 40).astype(jnp.uint8)


SOURCE = training.initialize(jax.random.key(0), MODEL)
RNG = np.random.default_rng(0)
SCALARS = jax.tree.map(lambda w: RNG.random(w.shape) < 0.5, SOURCE.params)


def finetune(keeper=None, **options):
  """With all that changes a step: teacher, frozen, mask, augmentation."""
  options = {
    'epochs': 5,
    'frozen': frozenset(MODEL.order[:2]),
    'update_mask': SCALARS,
    'augment': noise,
    'measure': finetuning.monitor(MODEL, SOURCE, SPLITS),
    'optimizer': training.adam(1e-2),
    **options,
  }
  return helpers.finetune(
    jax.random.key(7),
    MODEL,
    SOURCE,
    SPLITS,
    teacher=training.initialize(jax.random.key(2), MODEL),
    batch_size=16,
    keeper=keeper,
    **options,
  )


@pytest.fixture
def short_calls(monkeypatch):
  """Calls of one step each, as if a step took ten seconds."""
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)


def test_finetuning_goes_on_to_the_same_bits(tmp_path, monkeypatch):
  with parallel.use(jax.devices()):
    whole = finetune()
    monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
    parts = interrupted(finetune, tmp_path, (2, 4))
  assert len(whole.history) == 6
  assert_same(whole, parts)


def test_streamed_training_goes_on_to_the_same_bits(tmp_path, short_calls):
  with parallel.use(jax.devices()[:1]):
    with streaming.limit(1500):
      assert streaming.streams(SPLITS.train)
      parts = interrupted(finetune, tmp_path, (1, 1))
    assert_same(finetune(), parts)


def test_a_schedule_goes_on_where_it_was(tmp_path):
  """The learning rate depends on the step, which lies in the optimiser."""

  def train(keeper=None):
    return training.train(
      jax.random.key(3),
      MODEL,
      SPLITS.train,
      epochs=5,
      batch_size=16,
      optimizer=recipes.momentum(0.1, 30),
      keeper=keeper,
    )

  with parallel.use(jax.devices()[:1]):
    whole, parts = train(), interrupted(train, tmp_path)
  assert_same(whole, parts)


def test_the_seconds_go_on_too(tmp_path):
  keeper = OnDisk(tmp_path, 2)
  with pytest.raises(StopHereError):
    finetune(keeper)
  packed, _ = snapshots.restore(tmp_path / '2')
  keeper.stop_after = None
  history = finetune(keeper).history
  assert history[:3] == packed.course.history
  seconds = [row.seconds for row in history]
  assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[1]


def test_the_stop_rule_sees_what_was_before(tmp_path):
  rule = finetuning.StopRule(js_change=1.0, retain_accuracy=0.0)
  keeper = OnDisk(tmp_path, 1)
  with pytest.raises(StopHereError):
    finetune(keeper, stop_rule=rule)
  keeper.stop_after = None
  # It holds after the first epoch, so there is no second.
  assert len(finetune(keeper, stop_rule=rule).history) == 2


def test_unlearning_goes_on_to_the_same_bits(tmp_path):
  strategy = strategies.top_k(5, examples=24, moves='scalars')
  budget = Budget(4, batch_size=16, stop_js_change=0.0, stop_retain_share=1.0)

  def unlearn(keeper=None):
    return unlearning.unlearn(
      jax.random.key(1),
      MODEL,
      SOURCE,
      SPLITS,
      strategy,
      budget,
      augment=noise,
      keeper=keeper,
    )

  whole, parts = unlearn(), interrupted(unlearn, tmp_path)
  assert len(whole.history) == 5
  assert_same(whole, parts)
  timed = ('seconds', 'selection_seconds', 'compile_seconds')
  for name in set(whole._fields) - {'state', 'perturbed', 'history', *timed}:
    assert getattr(whole, name) == getattr(parts, name), name


def test_nothing_is_compiled_for_going_on(tmp_path):
  keeper, seen = OnDisk(tmp_path, 2), []
  with pytest.raises(StopHereError):
    finetune(keeper)
  keeper.stop_after = None
  finetune(keeper, on_epoch=lambda _: seen.append(len(timing._compilations)))
  assert len(seen) == 4 and len(set(seen)) == 1, seen


def test_keeping_transfers_nothing_inside_an_epoch():
  """What is kept is asked for explicitly, between two epochs."""

  def guard(row):
    if row.epoch == 1:
      jax.config.update('jax_transfer_guard', 'disallow')

  class Holding:
    def load(self, like):
      return None

    def save(self, snapshot):
      self.packed = snapshots.pack(snapshot)

  keeper = Holding()
  try:
    with parallel.use(jax.devices()[:4]):
      fit = finetune(keeper, on_epoch=guard, epochs=3, measure=None)
  finally:
    jax.config.update('jax_transfer_guard', 'allow')
  kept = keeper.packed.arrays.values()
  model = jax.tree.leaves(fit.state)
  for a, b in zip(kept, model):
    np.testing.assert_array_equal(a, b)


def test_what_is_held_survives_the_next_epoch():
  """An epoch reuses the memory of the state that it starts from."""

  class Holding:
    packed = []

    def load(self, like):
      return None

    def save(self, snapshot):
      self.packed.append(snapshots.pack(snapshot))
      digests.append(digest(self.packed[-1]))

  def digest(packed):
    return [leaf.tobytes() for leaf in packed.arrays.values()]

  digests, keeper = [], Holding()
  finetune(keeper)
  assert [digest(packed) for packed in keeper.packed] == digests
  assert digests[0] != digests[1]


def test_another_trainings_save_is_refused(tmp_path):
  keeper = OnDisk(tmp_path, 1)
  with pytest.raises(StopHereError):
    finetune(keeper)
  with pytest.raises(InputError, match='the saved training has leaves='):
    finetune(keeper, frozen=frozenset(MODEL.order[:4]))


def test_a_save_of_longer_epochs_is_refused(tmp_path, short_calls):
  keeper = OnDisk(tmp_path, (1, 2))
  with pytest.raises(StopHereError):
    finetune(keeper)
  with pytest.raises(
    InputError, match='saved training has 5 steps an epoch, allowed: 1'
  ):
    training.fit(
      jax.random.key(0),
      MODEL,
      SOURCE,
      [SPLITS.retain],
      epochs=2,
      batch_sizes=[80],
      optimizer=training.adam(1e-2),
      frozen=frozenset(MODEL.order[:2]),
      keeper=keeper,
    )


def test_seconds_of_an_epoch_that_is_not_over_count(tmp_path, short_calls):
  keeper = OnDisk(tmp_path, (1, 3))
  with pytest.raises(StopHereError):
    finetune(keeper)
  course = snapshots.restore(tmp_path / '(1, 3)')[0].course
  assert course.step == 3 and course.seconds > 0
  keeper.stop_after = None
  first, second = finetune(keeper).history[1:3]
  assert first == course.history[1]
  assert second.seconds - first.seconds > course.seconds


def test_a_key_of_another_kind_is_refused():
  model = ModelState({'w': jnp.ones(2)})
  state = TrainState(model, (), jax.random.key(0))
  course = snapshots.Course((snapshots.Epoch(0, None, 0.0, {}),), 0.0, 1)
  packed = snapshots.pack(snapshots.Snapshot(state, course))
  other = state._replace(key=jax.random.key(0, impl='rbg'))
  with pytest.raises(InputError, match='saved training has (shapes|key)='):
    snapshots.unpack(packed, other)


def test_a_checkpoint_of_a_model_is_no_saved_training(tmp_path):
  from unlearn_jax import checkpoints

  checkpoints.save(tmp_path / 'model', SOURCE, {})
  with pytest.raises(InputError, match='is no saved training'):
    snapshots.restore(tmp_path / 'model')
  keeper = OnDisk(tmp_path, 1)
  with pytest.raises(StopHereError):
    finetune(keeper)
  with pytest.raises(InputError, match='allowed: a model'):
    checkpoints.restore(tmp_path / '1')


def test_measurements_that_are_not_finite_are_kept(tmp_path):
  keeper = OnDisk(tmp_path, 1)
  measured = {'odd': float('nan'), 'long': np.float32(0.1)}
  with pytest.raises(StopHereError):
    finetune(keeper, measure=lambda _: measured)
  (row,) = snapshots.restore(tmp_path / '1')[0].course.history[1:]
  assert np.isnan(row.measured['odd'])
  assert row.measured['long'] == np.float32(0.1)


# Numbers that stop being finite.


def diverging(keeper=None, learning_rate=1e38, **options):
  return finetune(
    keeper,
    optimizer=training.adam(learning_rate),
    frozen=frozenset(),
    update_mask=None,
    measure=None,
    **options,
  )


def test_a_training_that_diverges_stops_at_the_epochs_end(tmp_path):
  rows, keeper = [], OnDisk(tmp_path)
  with parallel.use(jax.devices()[:4]):
    with pytest.raises(training.DivergedError, match='in epoch 1') as error:
      diverging(keeper, on_epoch=rows.append)
  assert error.value.epoch == 1
  # Nothing that is not finite is shown to anyone.
  assert [row.epoch for row in rows] == [0] and keeper.last is None


def test_of_half_precision_it_is_said_why():
  def told(dtype):
    return str(training.DivergedError(1, {'w': np.ones(2, dtype)}))

  assert told('float32').endswith('smaller learning rates and ε')
  assert told('float16').endswith(', and no float16, in which 1e-8 is 0')


@pytest.mark.parametrize('limit', [None, 1500])
def test_parameters_that_break_in_the_last_step_are_seen(limit):
  """One step an epoch: the loss comes from the parameters before it."""
  broken = dataclasses.replace(MODEL)

  def huge(learning_rate):
    import optax

    return optax.scale(learning_rate)

  with streaming.limit(limit), pytest.raises(training.DivergedError):
    training.fit(
      jax.random.key(0),
      broken,
      SOURCE,
      [SPLITS.train],
      epochs=1,
      batch_sizes=[96],
      optimizer=huge(float('inf')),
    )


def test_finite_parameters_leave_the_losses_alone():
  tree = {'w': jnp.ones(3), 'n': jnp.arange(2)}
  assert bool(epoch._finite(tree))
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    assert not bool(epoch._finite({**tree, 'v': jnp.array([1.0, bad])}))


def test_an_optimiser_that_draws_noise_goes_on_with_its_key(tmp_path):
  """The state of its optimiser has a typed key."""

  def train(keeper):
    budget = Budget(epochs=3, batch_size=40)
    return unlearning.unlearn(
      *(jax.random.key(1), MODEL, MODEL.init(jax.random.key(0)), SPLITS),
      *(strategies.noisy_finetune(0.1), budget),
      keeper=keeper,
    ).state

  with parallel.use(jax.devices()[:1]):
    whole = train(None)
    again = interrupted(train, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, again, whole)
