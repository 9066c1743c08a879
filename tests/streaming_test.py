"""Sets that do not fit the devices train and evaluate like those that do."""

import itertools
import math

import helpers
import jax
import numpy as np
import optax
import pytest

from unlearn_jax import (
  data,
  evaluation,
  normalization,
  parallel,
  strategies,
  timing,
  training,
  unlearning,
)
from unlearn_jax.data import images, streaming
from unlearn_jax.finetuning import Budget
from unlearn_jax.prediction import predict

MODEL, SPLITS = helpers.model(), helpers.splits()
# An image has 36 bytes, all 144 of them 5184; batches are of 16.
LIMIT = 1200


class OnHost:
  """Images that can only be had by the row, and that count what was taken."""

  def __init__(self, array):
    self._array = array
    self.shape, self.dtype = array.shape, array.dtype
    self.most = self.taken = 0

  def __getitem__(self, rows):
    rows = np.asarray(rows)
    assert rows.ndim == 1 and rows.dtype.kind == 'i', rows
    self.most, self.taken = max(self.most, len(rows)), self.taken + len(rows)
    return self._array[rows]

  def __array__(self, *_, **__):
    raise AssertionError('the whole array was asked for')


def on_host():
  """The splits with images that must not be put anywhere as a whole."""
  images = OnHost(SPLITS.train.images)
  return images, type(SPLITS)(*(s._replace(images=images) for s in SPLITS[:4]))


def fresh(seed=0):
  return training.initialize(jax.random.key(seed), MODEL)


def equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def noise(key, images):
  return images + jax.random.randint(key, images.shape, 0, 40, images.dtype)


def fit(splits, devices=1, **options):
  with parallel.use(jax.devices()[:devices]):
    return training.fit(
      jax.random.key(7),
      MODEL,
      fresh(),
      [splits.retain],
      **{
        'epochs': 2,
        'batch_sizes': [16],
        'optimizer': training.adam(1e-2),
        'augment': noise,
        **options,
      },
    )


@pytest.mark.parametrize('devices, limit', [(1, 4600), (4, 0)])
def test_streamed_training_is_resident_training_bit_by_bit(devices, limit):
  images, splits = on_host()
  with streaming.limit(limit):
    got = fit(splits, devices)
  want = fit(SPLITS, devices)
  equal(got.state, want.state)
  assert [e.loss for e in got.history] == [e.loss for e in want.history]
  # Each of the 80 examples once an epoch, in more than one piece.
  assert images.taken == 160
  assert images.most <= (80 if limit == 4600 else 48)


def test_so_is_guided_finetuning():
  """Two sets: the forget set is streamed too."""
  _, splits = on_host()

  def finetune(splits):
    with parallel.use(jax.devices()[:1]):
      return helpers.finetune(
        jax.random.key(3),
        MODEL,
        fresh(),
        splits,
        teacher=fresh(1),
        js_weight=1.0,
        epochs=2,
        batch_size=16,
        augment=noise,
        frozen=frozenset(MODEL.order[:2]),
      ).state

  with streaming.limit(0):
    got = finetune(splits)
  equal(got, finetune(SPLITS))


def test_a_memory_mapped_file_is_streamed(tmp_path):
  path = tmp_path / 'images.npy'
  np.save(path, SPLITS.train.images)
  images = np.load(path, mmap_mode='r')
  with streaming.limit(LIMIT):
    mapped = SPLITS.retain._replace(images=images)
    assert streaming.streams(mapped)
    got = fit(SPLITS._replace(retain=mapped))
  equal(got.state, fit(SPLITS).state)


def stream(limit=LIMIT, steps=11, even=False):
  with streaming.limit(limit):
    return streaming.Stream(
      [np.arange(36 * 99).reshape(99, 36).astype(np.uint8)], [4], steps, even
    )


@pytest.mark.parametrize(
  'limit, even, lengths',
  [
    (LIMIT, False, [2, 2, 2, 2, 3]),
    (LIMIT, True, [3, 3, 3, 3]),
    (0, False, [2, 2, 2, 2, 3]),
    (4 * 4 * 144, False, [3, 4, 4]),
    (4 * 6 * 144, False, [5, 6]),
    (4 * 11 * 144, False, [11]),
    (None, False, [11]),
  ],
)
def test_two_blocks_take_half_of_the_limit(limit, even, lengths):
  spans = stream(limit, even=even).spans
  assert [last - first for first, last in spans] == lengths
  assert spans[0][0] == 0
  assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))


@pytest.mark.parametrize('steps', [1, 2, 3])
def test_few_steps_make_one_block(steps):
  assert stream(0, steps).spans == ((0, steps),)


def read(blocks):
  return [(b.first, b.last, np.asarray(b.images[0]).tolist()) for b in blocks]


@pytest.mark.parametrize('even', [False, True])
@pytest.mark.parametrize('step', [0, 1, 3, 4, 10])
def test_reading_begins_with_the_block_of_any_step(step, even):
  rows = np.random.default_rng(0).permutation(99)[:88].reshape(2, 11, 4)
  cut = stream(even=even)
  every = read(cut.blocks([rows]))
  assert len(every) == len(cut.spans)
  got = read(cut.blocks([rows], step=step))
  assert got == every[-len(got) :]
  assert got[0][0] <= step < got[0][1]
  numbers = np.concatenate([np.array(b[2])[..., 0] for b in every], 1)
  assert (numbers[:, :11] == (36 * rows).astype(np.uint8)).all()
  # What is beyond the last step is not read, but black.
  assert numbers.shape[1] == (12 if even else 11)
  assert not numbers[:, 11:].any()


class Ragged:
  """Calls of one step, two, three, one, ... where time would cut them."""

  is_long = True

  def __init__(self, steps):
    self._lengths = itertools.cycle([1, 2, 3])

  @property
  def steps(self):
    return next(self._lengths)

  def learn(self, steps, seconds):
    pass


class Watching:
  """Sees that never more than two blocks lie on the devices."""

  def __init__(self):
    self.steps = []

  def load(self, like):
    return None

  def save(self, snapshot):
    # Blocks are [D, S, P, height, width, channels].
    assert sum(array.ndim == 6 for array in jax.live_arrays()) <= 2
    self.steps.append((snapshot.course.epoch, snapshot.course.step))


@pytest.mark.parametrize('devices, limit', [(1, None), (4, 0), (1, 4600)])
def test_an_epoch_is_the_same_however_it_is_cut(devices, limit, monkeypatch):
  want = fit(SPLITS, devices)
  monkeypatch.setattr(training, '_Pace', Ragged)
  images, splits = on_host()
  keeper = Watching()
  with streaming.limit(limit):
    got = fit(SPLITS if limit is None else splits, devices, keeper=keeper)
  equal(got.state, want.state)
  assert [e.loss for e in got.history] == [e.loss for e in want.history]
  middle = [step for epoch, step in keeper.steps if epoch == 1]
  assert middle == sorted(middle) and len(middle) > 2, keeper.steps
  # Each of the 80 examples once an epoch.
  assert images.taken == (0 if limit is None else 160)


@pytest.mark.parametrize('devices, batch_size', [(1, 7), (4, 16), (4, 1000)])
def test_predictions_are_those_of_the_resident_set(devices, batch_size):
  images, splits = on_host()
  with parallel.use(jax.devices()[:devices]):
    with streaming.limit(LIMIT):
      got = predict(MODEL, fresh(), splits.train, batch_size=batch_size)
    want = predict(MODEL, fresh(), SPLITS.train, batch_size=batch_size)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
  assert got.shape == (96, 3)


def test_of_no_examples_nothing_is_predicted():
  _, splits = on_host()
  nobody = splits.train.take(np.zeros(0, int))
  with streaming.limit(LIMIT):
    assert predict(MODEL, fresh(), nobody).shape == (0, 3)


def test_predicting_any_number_of_examples_compiles_once():
  _, splits = on_host()

  def count(size):
    with parallel.use(jax.devices()[:2]), streaming.limit(LIMIT):
      with timing.Stopwatch() as watch:
        got = predict(
          MODEL, fresh(), splits.train.take(np.arange(size)), batch_size=16
        )
    assert len(got) == size
    return watch.compilations

  fresh()
  assert count(96) > 0  # 3 blocks of 2 steps
  assert [count(size) for size in (90, 60, 49, 32)] == [0] * 4


@pytest.mark.parametrize(
  'devices, frozen, augment', [(1, 3, None), (4, 0, images.augment)]
)
def test_statistics_are_those_of_the_resident_set(devices, frozen, augment):
  _, splits = on_host()
  model = MODEL.freeze(frozenset(MODEL.order[:frozen]))
  state = fit(SPLITS, epochs=1).state
  with parallel.use(jax.devices()[:devices]):
    with streaming.limit(LIMIT):
      got = normalization.reestimate(
        model, state, splits.retain, batch_size=16, augment=augment
      )
    want = normalization.reestimate(
      model, state, SPLITS.retain, batch_size=16, augment=augment
    )
  assert got.params is state.params
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  if frozen:
    equal(got.batch_stats['bn1'], state.batch_stats['bn1'])


def test_the_whole_method_never_asks_for_the_whole_array():
  """Selection, perturbation, fine-tuning, monitoring and evaluation."""
  strategy = strategies.top_k(5, examples=30)

  def everything(splits):
    source = training.train(
      jax.random.key(0), MODEL, splits.train, epochs=2, batch_size=16
    ).state
    result = unlearning.unlearn(
      jax.random.key(1), MODEL, source, splits, strategy, Budget(1, 1e-3, 16)
    )
    report = evaluation.evaluate(MODEL, result.state, source, splits)
    return result, report

  images, splits = on_host()
  with parallel.use(jax.devices()[:1]):
    with streaming.limit(LIMIT):
      got, report = everything(splits)
    want, expected = everything(SPLITS)
  assert images.most <= 96 < len(SPLITS.train.images)
  for a, b in zip(
    jax.tree.leaves(got.state), jax.tree.leaves(want.state), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert report == pytest.approx(expected, abs=1e-4)


def test_nothing_is_compiled_after_the_first_streamed_epoch():
  _, splits = on_host()
  # Of its own, so that no test before has compiled its steps.
  seen, own = [], training.descent(optax.scale_by_adam(), 0.01)

  def note(_):
    seen.append(len(timing._compilations))

  def run():
    fit(splits, 4, epochs=3, optimizer=own, on_epoch=note)

  with streaming.limit(LIMIT):
    run()
    run()
  # The steps, and perhaps the plan.
  assert seen[1] - seen[0] in (1, 2), seen
  assert seen[1] == seen[2] == seen[3] == seen[-1], seen


def test_what_streams():
  images = SPLITS.train.images
  assert not streaming.streams(SPLITS.train)
  with streaming.limit(images.nbytes):
    assert not streaming.streams(SPLITS.train)
  with streaming.limit(images.nbytes - 1):
    assert streaming.streams(SPLITS.train)
    there = SPLITS.train._replace(images=jax.numpy.asarray(images))
    assert not streaming.streams(there)
    with streaming.limit(None):
      assert not streaming.streams(SPLITS.train)
  with pytest.raises(ValueError, match='nbytes=-1, allowed: 0 or more'):
    with streaming.limit(-1):
      pass


def test_the_default_limit_is_half_of_a_devices_memory(monkeypatch):
  class Device:
    platform = 'gpu'

    def memory_stats(self):
      return {'bytes_limit': 1000}

  assert streaming.limit_bytes() == math.inf
  monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
  assert streaming.limit_bytes() == 500
  monkeypatch.setattr(Device, 'memory_stats', lambda self: None)
  assert streaming.limit_bytes() == math.inf


def test_pixel_statistics_read_a_streamed_set_by_the_row():
  _, splits = on_host()
  with streaming.limit(LIMIT):
    got = data.pixel_statistics(splits.retain)
  np.testing.assert_allclose(
    got, data.pixel_statistics(SPLITS.retain), rtol=1e-6
  )


def test_a_block_is_never_longer_than_it_need_be(monkeypatch):
  monkeypatch.setattr(streaming, '_LONGEST', 6 * 144)
  assert len(stream(None).spans) == 2


def test_a_gathered_subset_keeps_order_and_targets():
  images, splits = on_host()
  chosen = splits.train.take(np.array([5, 2, 2]))._replace(targets=np.eye(3))
  with streaming.limit(LIMIT):
    got = streaming.gathered(chosen)
    assert streaming.gathered(splits.retain) is splits.retain
  assert streaming.gathered(chosen) is chosen
  np.testing.assert_array_equal(got.images, SPLITS.train.images[[5, 2, 2]])
  np.testing.assert_array_equal(got.labels, SPLITS.train.labels[[5, 2, 2]])
  assert got.indices.tolist() == [0, 1, 2] and (got.targets == np.eye(3)).all()


def test_each_has_two_blocks_under_way_at_most():
  events = []

  class Result:
    """Stands for an array that is being computed."""

    def __init__(self, number):
      self.number = number

    def __array__(self, *_, **__):
      events.append(f'wait {self.number}')
      return np.array(self.number)

  def blocks():
    for number in range(4):
      events.append(f'place {number}')
      yield number

  got = streaming.each(blocks(), lambda n: Result(n))
  assert len(got) == 4
  assert events.index('wait 0') < events.index('place 2')
  assert events.index('wait 0') > events.index('place 1')
  assert events.index('wait 1') < events.index('place 3')
