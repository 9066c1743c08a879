"""The loop that trains every model.

Source, retrained, fine-tuned and baseline models differ in the loss, in the
examples and in which tensors are frozen; all go through `fit`.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import epoch, parallel, timing
from unlearn_jax.base import (
  Batch,
  Examples,
  InputError,
  Key,
  Model,
  ModelState,
  Params,
  TrainState,
  require,
  tensor_paths,
)
from unlearn_jax.epoch import Augment, Loss, Step, of_trained
from unlearn_jax.prediction import require_classes
from unlearn_jax.snapshots import Course, Epoch, Keeper, Snapshot

# Seconds that a call to the devices lasts, about. What wants to interrupt a
# training (a signal, a save that is due) waits for the end of a call.
_CALL_SECONDS = 10.0


class DivergedError(InputError):
  """Training left the finite numbers.

  Attributes:
    epoch: at whose end a loss, a parameter or a statistic was not finite.
  """

  def __init__(self, epoch: int, params: Params = None):
    every = [getattr(leaf, 'dtype', None) for leaf in jax.tree.leaves(params)]
    half = ', and no float16, in which 1e-8 is 0' * (np.float16 in every)
    super().__init__(
      f'training diverged in epoch {epoch}: a loss or a parameter is not'
      f' finite; allowed: smaller learning rates and ε{half}'
    )
    self.epoch = epoch


class Fit(NamedTuple):
  """A trained model and how it came about.

  Attributes:
    state: the model after the last epoch.
    history: one `Epoch` an epoch, epoch 0 first.
    compile_seconds: what compilation cost.
    preparation_seconds: spent before the clock of the history starts.
  """

  state: ModelState
  history: tuple[Epoch, ...]
  compile_seconds: float
  preparation_seconds: float = 0.0


def cross_entropy(
  model: Model, state: ModelState, batches: tuple[Batch, ...], step: Step
) -> tuple[jax.Array, Any]:
  """Mean loss of the first batch, with BatchNorm in training mode."""
  del step
  logits, batch_stats = model.apply(state, batches[0].images, True)
  each = model.loss(logits.astype(jnp.float32), batches[0].labels)
  return each.mean(), batch_stats


def descent(
  direction: optax.GradientTransformation, learning_rate: float
) -> optax.GradientTransformation:
  """Steps of `learning_rate` against what `direction` makes of a gradient.

  The rate is part of the state, no constant of a program: compiled epochs are
  shared by all rates of one `direction`.

  Args:
    direction: Optax; the same object for what shares programs.
    learning_rate: η of ω ← ω − η · direction.

  Returns:
    Optax. Its state is that of `direction`, and η.

  Example:
    >>> fast, slow = adam(0.1), adam(0.01)
    >>> fast.update is slow.update
    True
    >>> moved, _ = fast.update(jnp.ones(1), fast.init(jnp.zeros(1)))
    >>> round(float(moved[0]), 4)
    -0.1
  """

  def init(params: Params) -> optax.OptState:
    return direction.init(params), jnp.asarray(learning_rate, float)

  return optax.GradientTransformation(init, _descent(direction))


@functools.lru_cache(maxsize=64)
def _descent(direction: optax.GradientTransformation):
  def update(updates, state, params=None):
    own, rate = state
    updates, own = direction.update(updates, own, params)
    down = jax.tree.map(lambda d: -rate.astype(d.dtype) * d, updates)
    return down, (own, rate)

  return update


ADAM = optax.scale_by_adam()


def adam(learning_rate: float) -> optax.GradientTransformation:
  """Adam at a constant rate."""
  return descent(ADAM, learning_rate)


# Weights decay by 5e-4; biases and BatchNorm's scales do not.
decay = optax.add_decayed_weights(
  5e-4, lambda params: jax.tree.map(lambda w: w.ndim > 1, params)
)


def steps_per_epoch(examples: Examples, batch_size: int) -> int:
  """Full batches in an epoch.

  Raises:
    ValueError: a batch that is larger than the set.
  """
  allowed = f'at most the {examples.size} examples that are trained on'
  require('batch_size', batch_size, batch_size <= examples.size, allowed)
  return examples.size // batch_size


@parallel.apart
def fit(
  key: Key,
  model: Model,
  state: ModelState,
  sets: Sequence[Examples],
  *,
  epochs: int,
  batch_sizes: Sequence[int],
  optimizer: optax.GradientTransformation,
  loss: Loss = cross_entropy,
  passes: bool = False,
  active: Callable[[Step], Any] | None = None,
  frozen: frozenset[str] = frozenset(),
  update_mask: Params | None = None,
  given: Any = None,
  augment: Augment | Sequence[Augment | None] | None = None,
  measure: Callable[[ModelState], dict[str, float]] | None = None,
  stop: Callable[[Sequence[Epoch]], bool] | None = None,
  on_epoch: Callable[[Epoch], None] | None = None,
  keeper: Keeper | None = None,
) -> Fit:
  """Trains a model: one compiled, data-parallel call an epoch.

  Where an epoch takes long, it is several calls of about ten seconds, to the
  same bits.

  Args:
    key: typed PRNG key; it is consumed.
    model: the classifier.
    state: where training starts. It is copied, never donated.
    sets: what batches are drawn from, one batch of each a step. An epoch is
      one pass over the first; the others are cycled through. Images on the
      host beyond `data.streaming.limit` come in blocks, with equal results.
    epochs: the most epochs, 0 or more; 0 returns `state`.
    batch_sizes: one per set, over all devices.
    optimizer: Optax; its state is made for the trained tensors only, and a
      typed PRNG key in it is replaced by one that follows from `key`.
    loss: what is minimised, given a batch of each set.
    passes: whether an epoch is a pass over each set, one after the other,
      instead of one over the first with batches of the others beside it.
    active: whether a step does anything; None if each does.
    frozen: paths of the tensors that stay bit-identical, their BatchNorm
      statistics too.
    update_mask: tree like the parameters: only true scalars move; or floats,
      which updates are multiplied by. None moves all of them.
    given: a tree that the loss finds as `Step.given`.
    augment: applied on the device to the images of every batch, or None; or
      one of these for each set.
    measure: called before the first epoch and after each; its time is not
      counted.
    stop: told the history after each epoch; true ends the training.
    on_epoch: told of each epoch as it ends, first of the one that training
      starts after: epoch 0, or where the keeper's snapshot was taken.
    keeper: where training goes on from, and who is told how far it got; with
      the same arguments all numbers but the seconds are those of a training
      that was never stopped. None to start from the beginning.

  Returns:
    The `Fit`.

  Raises:
    ValueError: sizes that do not fit the devices or the sets, negative
      `epochs`, unknown or all paths in `frozen`.
    DivergedError: a loss, a parameter or a statistic was not finite after a
      call.
    InputError: the keeper's snapshot is of epochs with more or fewer steps.
  """
  if epochs < 0:
    raise ValueError(f'epochs={epochs}, allowed: 0 or more')
  if augment is None or callable(augment):
    augment = [augment] * len(sets)
  shares = tuple(parallel.per_device(size) for size in batch_sizes)
  lengths = list(map(steps_per_epoch, sets, batch_sizes)) if passes else []
  starts = tuple(np.cumsum([0, *lengths])[:-1].tolist()) or (0,) * len(sets)
  steps = sum(lengths) or steps_per_epoch(sets[0], batch_sizes[0])
  counts = tuple(examples.size for examples in sets)
  layout = epoch.Layout(counts, shares, steps, starts)
  paths = tensor_paths(state.params)
  if unknown := sorted(frozen - set(paths)):
    raise ValueError(f'frozen={unknown[0]!r}, allowed: {", ".join(paths)}')
  if frozen and frozen >= set(paths):
    raise ValueError('frozen names every tensor, allowed: all but one or more')
  trained = tuple(path not in frozen for path in paths)
  if frozen:
    model = frozen_model(model, frozen)
  program = functools.partial(
    epoch.program,
    *(model, loss, optimizer.update, layout, trained, tuple(augment), active),
  )
  runner = epoch.Runner(program, sets, layout, epochs)
  # Copies, because what an epoch starts from is donated.
  own, key = jax.tree.map(jnp.copy, (state, key))
  optimizer_state = optimizer.init(of_trained(own.params, trained))
  # No number that `split` counts by: `split(key, n)[i]` is `fold_in(key, i)`.
  noise_key = jax.random.fold_in(key, 2**31)
  optimizer_state = jax.tree.map(
    lambda x: noise_key if _is_key(x) else x, optimizer_state
  )
  train_state = parallel.replicate(TrainState(own, optimizer_state, key))
  marks = of_trained(update_mask, trained), given
  inputs = parallel.replicate((runner.sets, marks))
  now = keeper.load(train_state) if keeper else None
  if now is None:
    first = Epoch(0, None, 0.0, measure(state) if measure else {})
    now = Snapshot(train_state, Course((first,), 0.0, steps))
  elif now.course.steps != steps:
    raise InputError(
      f'the saved training has {now.course.steps} steps an epoch, allowed:'
      f' {steps}'
    )
  else:
    now = now._replace(state=parallel.replicate(now.state))
  if on_epoch:
    on_epoch(now.course.history[-1])
  pace = _Pace(steps if epoch.runs_whole() else 1)
  while not _is_over(now.course.history, epochs, stop):
    now = _advanced(now, runner, inputs, pace, measure)
    # Kept first: whoever is told may end the training by raising.
    if keeper and (not now.course.step or pace.is_long):
      keeper.save(now)
    if on_epoch and not now.course.step:
      on_epoch(now.course.history[-1])
  course = now.course
  return Fit(now.state.model, course.history, course.compile_seconds)


def _is_key(x: Any) -> bool:
  return jax.dtypes.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key)


class _Pace:
  """How many steps the next call may take.

  Attributes:
    steps: as many as `_CALL_SECONDS` hold.
    is_long: whether the last call has come near to that.
  """

  def __init__(self, steps: int):
    self.steps, self.is_long = steps, False

  def learn(self, steps: int, seconds: float) -> None:
    """Told what the last call took; process 0's clock counts for all."""
    most = max(1, int(steps * _CALL_SECONDS / max(seconds, 1e-9)))
    is_long = seconds > _CALL_SECONDS / 2
    self.steps, self.is_long = parallel.by_first(lambda: (most, is_long))


def _is_over(
  history: Sequence[Epoch],
  epochs: int,
  stop: Callable[[Sequence[Epoch]], bool] | None,
) -> bool:
  """Whether training ends here; a resumed one asks before its first epoch."""
  done = history[-1].epoch
  return done >= epochs or bool(done and stop and stop(history))


def _advanced(
  before: Snapshot,
  runner: epoch.Runner,
  inputs: tuple[Any, Any],
  pace: _Pace,
  measure: Callable[[ModelState], dict[str, float]] | None,
) -> Snapshot:
  """The snapshot after the next call; the one before it is used up."""
  course, first = before.course, before.course.step
  most = min(runner.steps, first + pace.steps)
  with timing.Stopwatch() as watch:
    state, losses, last = watch.wait(
      runner.run(before.state, *inputs, first, most, course.epoch)
    )
  pace.learn(last - first, watch.seconds)
  done = jax.device_get(losses)[first:last].tolist()
  if not np.isfinite(done).all():
    raise DivergedError(course.epoch + 1, state.model.params)
  course = course._replace(
    losses=(*course.losses, *done),
    seconds=course.seconds + watch.seconds,
    compile_seconds=course.compile_seconds + watch.compile_seconds,
  )
  if last == runner.steps:
    measured = measure(state.model) if measure else {}
    row = Epoch(
      course.epoch + 1,
      float(np.mean(course.losses)),
      course.history[-1].seconds + course.seconds,
      measured,
    )
    history = (*course.history, row)
    course = Course(history, course.compile_seconds, course.steps)
  return Snapshot(state, course)


@functools.lru_cache(maxsize=64)
def frozen_model(model: Model, frozen: frozenset[str]) -> Model:
  """`model.freeze`, the same object for the same paths."""
  return model.freeze(frozen) if model.freeze else model


@parallel.apart
def train(
  key: Key,
  model: Model,
  examples: Examples,
  *,
  epochs: int,
  batch_size: int = 128,
  optimizer: optax.GradientTransformation | None = None,
  augment: Augment | None = None,
  measure: Callable[[ModelState], dict[str, float]] | None = None,
  on_epoch: Callable[[Epoch], None] | None = None,
  keeper: Keeper | None = None,
) -> Fit:
  """Trains a fresh model on `examples`: the source on D, Retrain on D_RE.

  Args:
    key: typed PRNG key for initialisation and batches; it is consumed.
    model: the classifier; needs `init`.
    examples: what it learns.
    epochs: passes over the examples.
    batch_size: over all devices.
    optimizer: Optax; Adam at 1e-3 by default.
    augment: see `fit`.
    measure: see `fit`.
    on_epoch: see `fit`.
    keeper: see `fit`.

  Returns:
    The `Fit`; its `state` is ω.

  Raises:
    ValueError: a model without `init`, or sizes or labels that do not fit.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> model = stateless(
    ...   lambda params, x: x @ params['w'],
    ...   init=lambda key: ModelState({'w': jnp.zeros((4, 2))}),
    ... )
    >>> examples = Examples.of(np.eye(4), np.array([0, 1, 0, 1]))
    >>> with parallel.use(jax.devices()[:1]):
    ...   fit = train(jax.random.key(0), model, examples, epochs=3,
    ...               batch_size=2)
    >>> fit.history[-1].loss < fit.history[1].loss
    True
  """
  init_key, fit_key = jax.random.split(key)
  state = initialize(init_key, model)
  require_classes(model, state, examples)
  return fit(
    fit_key,
    model,
    state,
    [examples],
    epochs=epochs,
    batch_sizes=[batch_size],
    optimizer=adam(1e-3) if optimizer is None else optimizer,
    augment=augment,
    measure=measure,
    on_epoch=on_epoch,
    keeper=keeper,
  )


@functools.lru_cache(maxsize=32)
def _init_program(init: Callable[[Key], ModelState]):
  # Compiling costs far more than running here, so XLA is told to be quick.
  return jax.jit(init, compiler_options={'xla_backend_optimization_level': '0'})


def initialize(key: Key, model: Model) -> ModelState:
  """A freshly initialised model.

  Raises:
    ValueError: a model without `init`.
  """
  if model.init is None:
    raise ValueError('model.init=None, allowed: a function key -> ModelState')
  return _init_program(model.init)(key)
