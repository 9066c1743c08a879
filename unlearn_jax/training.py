"""The step, the epoch and the loop that train every model.

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

from unlearn_jax import parallel, timing
from unlearn_jax.base import (
  Batch,
  Examples,
  Key,
  Mask,
  Model,
  ModelState,
  TrainState,
  tensor_paths,
)

# `(model, state, batches) -> (loss, batch_stats)`, a mean over the batches.
Loss = Callable[[Model, ModelState, tuple[Batch, ...]], tuple[jax.Array, Any]]
# `(key, images) -> images`, a whole batch of pixels at once.
Augment = Callable[[Key, jax.Array], jax.Array]


class Epoch(NamedTuple):
  """One row of a training curve.

  Attributes:
    epoch: 0 is the state before the first step.
    loss: mean training loss of the epoch; None at epoch 0.
    seconds: training time since the start, compilation and measuring
      excluded.
    measured: what the caller's `measure` returned.
  """

  epoch: int
  loss: float | None
  seconds: float
  measured: dict[str, float]


class Fit(NamedTuple):
  """A trained model and how it came about.

  Attributes:
    state: the model after the last epoch.
    history: one `Epoch` an epoch, epoch 0 first.
    compile_seconds: what compilation cost.
  """

  state: ModelState
  history: tuple[Epoch, ...]
  compile_seconds: float


def cross_entropy(
  model: Model, state: ModelState, batches: tuple[Batch, ...]
) -> tuple[jax.Array, Any]:
  """Mean loss of the first batch, with BatchNorm in training mode."""
  logits, batch_stats = model.apply(state, batches[0].images, True)
  return model.loss(logits, batches[0].labels).mean(), batch_stats


@functools.lru_cache(maxsize=64)
def adam(learning_rate: float) -> optax.GradientTransformation:
  """Adam, one object per learning rate so that compiled epochs are shared."""
  return optax.adam(learning_rate)


def steps_per_epoch(examples: Examples, batch_size: int) -> int:
  """Full batches in an epoch.

  Raises:
    ValueError: a batch that is larger than the set.
  """
  if batch_size > examples.size:
    raise ValueError(
      f'batch_size={batch_size}, allowed: at most the {examples.size}'
      ' examples that are trained on'
    )
  return examples.size // batch_size


def _shuffled(key: Key, count: int, shape: tuple[int, ...]) -> jax.Array:
  """Positions in [0, count): as many permutations as `shape` needs."""
  needed = int(np.prod(shape))
  keys = jax.random.split(key, -(-needed // count))
  rounds = [jax.random.permutation(k, count) for k in keys]
  return jnp.concatenate(rounds)[:needed].reshape(shape)


@functools.lru_cache(maxsize=64)
def _program(
  model: Model,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  sizes: tuple[int, ...],
  steps: int,
  trained: tuple[bool, ...],
  augment: Augment | None,
):
  """One epoch as one program: shuffle, augment, step, scanned."""

  def merge(moving: list, still: list, treedef: Any) -> Any:
    parts = {True: iter(moving), False: iter(still)}
    return treedef.unflatten([next(parts[moves]) for moves in trained])

  def epoch(rank, state: TrainState, sets: tuple[Examples, ...], movable):
    leaves, treedef = jax.tree.flatten(state.model.params)
    frozen = [leaf for leaf, moves in zip(leaves, trained) if not moves]
    moving = [leaf for leaf, moves in zip(leaves, trained) if moves]
    key, shuffle_key, augment_key = jax.random.split(state.key, 3)
    devices = len(parallel.devices())
    orders = tuple(
      _shuffled(k, examples.size, (steps, devices, size))[:, rank]
      for k, examples, size in zip(
        jax.random.split(shuffle_key, len(sets)), sets, sizes
      )
    )

    def draw(examples: Examples, positions, key) -> Batch:
      rows = examples.indices[positions]
      images, targets = examples.images[rows], examples.targets
      if targets is not None:
        # A teacher speaks of the plain images.
        targets = targets[positions]
      elif augment is not None:
        images = augment(key, images)
      return Batch(images, examples.labels[rows], targets)

    def step(carry, inputs):
      moving, batch_stats, opt_state = carry
      number, positions = inputs
      keys = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(augment_key, number), rank),
        len(sets),
      )
      batches = tuple(map(draw, sets, positions, keys))

      def objective(moving):
        params = merge(moving, frozen, treedef)
        value, new = loss(model, ModelState(params, batch_stats), batches)
        return value, new

      (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(
        moving
      )
      value, grads, batch_stats = parallel.mean((value, grads, batch_stats))
      updates, opt_state = optimizer.update(grads, opt_state, moving)
      if movable is not None:
        updates = jax.tree.map(
          lambda u, m: jnp.where(m, u, 0), updates, movable
        )
      moving = optax.apply_updates(moving, updates)
      return (moving, batch_stats, opt_state), value

    start = (moving, state.model.batch_stats, state.opt_state)
    (moving, batch_stats, opt_state), losses = jax.lax.scan(
      step, start, (jnp.arange(steps), orders)
    )
    params = merge(moving, frozen, treedef)
    model_state = ModelState(params, batch_stats)
    return TrainState(model_state, opt_state, key), losses.mean()

  return parallel.spmd(epoch, donate=[0])


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
  frozen: frozenset[str] = frozenset(),
  update_mask: Mask | None = None,
  augment: Augment | None = None,
  measure: Callable[[ModelState], dict[str, float]] | None = None,
  stop: Callable[[Sequence[Epoch]], bool] | None = None,
  on_epoch: Callable[[Epoch], None] | None = None,
  spent: float = 0.0,
) -> Fit:
  """Trains a model: one compiled, data-parallel call an epoch.

  Args:
    key: typed PRNG key; it is consumed.
    model: the classifier.
    state: where training starts. It is copied, never donated.
    sets: what batches are drawn from, one batch of each a step. An epoch is
      one pass over the first; the others are cycled through.
    epochs: the most epochs, 0 or more; 0 returns `state`.
    batch_sizes: one per set, over all devices.
    optimizer: Optax; its state is made for the trained tensors only.
    loss: what is minimised, given a batch of each set.
    frozen: paths of the tensors that stay bit-identical, their BatchNorm
      statistics too.
    update_mask: tree like the parameters; only true scalars move. None moves
      all of them.
    augment: applied on the device to the images of every batch that has no
      teacher, or None.
    measure: called before the first epoch and after each; its time is not
      counted.
    stop: told the history after each epoch; true ends the training.
    on_epoch: told of each epoch as it ends, epoch 0 included.
    spent: seconds that preparing this training took, where the clock starts.

  Returns:
    The `Fit`.

  Raises:
    ValueError: sizes that do not fit the devices or the sets, negative
      `epochs`, unknown or all paths in `frozen`.
  """
  if epochs < 0:
    raise ValueError(f'epochs={epochs}, allowed: 0 or more')
  sizes = tuple(parallel.per_device(size) for size in batch_sizes)
  steps = steps_per_epoch(sets[0], batch_sizes[0])
  paths = tensor_paths(state.params)
  if unknown := sorted(frozen - set(paths)):
    raise ValueError(f'frozen={unknown[0]!r}, allowed: {", ".join(paths)}')
  if frozen and frozen >= set(paths):
    raise ValueError('frozen names every tensor, allowed: all but one or more')
  trained = tuple(path not in frozen for path in paths)
  if frozen:
    model = frozen_model(model, frozen)

  def of_trained(tree: Any) -> list:
    return [x for x, moves in zip(jax.tree.leaves(tree), trained) if moves]

  run = _program(model, loss, optimizer, sizes, steps, trained, augment)
  # Copies, because what an epoch starts from is donated.
  own, key = jax.tree.map(jnp.copy, (state, key))
  train_state = parallel.replicate(
    TrainState(own, optimizer.init(of_trained(own.params)), key)
  )
  movable = None if update_mask is None else of_trained(update_mask)
  inputs = parallel.replicate((tuple(sets), movable))
  history = [Epoch(0, None, spent, measure(state) if measure else {})]
  if on_epoch:
    on_epoch(history[0])
  compile_seconds = 0.0
  for number in range(1, epochs + 1):
    with timing.Stopwatch() as watch:
      train_state, mean_loss = watch.wait(run(train_state, *inputs))
    compile_seconds += watch.compile_seconds
    seconds = history[-1].seconds + watch.seconds
    measured = measure(train_state.model) if measure else {}
    history.append(Epoch(number, float(mean_loss), seconds, measured))
    if on_epoch:
      on_epoch(history[-1])
    if stop and stop(history):
      break
  return Fit(train_state.model, tuple(history), compile_seconds)


@functools.lru_cache(maxsize=64)
def frozen_model(model: Model, frozen: frozenset[str]) -> Model:
  """`model.freeze`, the same object for the same paths."""
  return model.freeze(frozen) if model.freeze else model


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

  Returns:
    The `Fit`; its `state` is ω.

  Raises:
    ValueError: a model without `init`, or sizes that do not fit.

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
  return fit(
    fit_key,
    model,
    initialize(init_key, model),
    [examples],
    epochs=epochs,
    batch_sizes=[batch_size],
    optimizer=adam(1e-3) if optimizer is None else optimizer,
    augment=augment,
    measure=measure,
    on_epoch=on_epoch,
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
