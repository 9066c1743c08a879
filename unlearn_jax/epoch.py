"""One epoch as one compiled, data-parallel program.

The program runs any consecutive steps of an epoch: all of them in one call,
or as many as a call may take, or those whose images have come from the host
(`data.streaming`). Order, augmentation and results are the same however an
epoch is cut.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import parallel
from unlearn_jax.base import (
  Batch,
  Examples,
  Key,
  Model,
  ModelState,
  TrainState,
  is_float,
)
from unlearn_jax.data import streaming


class Step(NamedTuple):
  """Where a training stands.

  Attributes:
    number: of the step, counted over all epochs; an int32 scalar.
    total: how many steps all epochs have, likewise.
    per_epoch: how many one has.
    given: what a loss looks at beside parameters and batches, the same at each
      step: the boolean tree of the scalars that masked terms reach, or None.
    turn: position of the set whose pass it is; None where the sets are passed
      side by side.
  """

  number: jax.Array
  total: jax.Array
  per_epoch: int
  given: Any = None
  turn: jax.Array | None = None


class Layout(NamedTuple):
  """How an epoch takes the examples of its sets.

  Attributes:
    counts: examples of each set.
    shares: of each set P, the examples that a device takes a step.
    steps: S, of the epoch.
    starts: of each set, the step that its pass begins with; all 0 where they
      are passed side by side.
  """

  counts: tuple[int, ...]
  shares: tuple[int, ...]
  steps: int
  starts: tuple[int, ...]


# `(model, state, batches, step) -> (loss, batch_stats)`, a mean over batches.
Loss = Callable[
  [Model, ModelState, tuple[Batch, ...], Step], tuple[jax.Array, Any]
]
# `(key, images) -> images`, a whole batch of pixels at once.
Augment = Callable[[Key, jax.Array], jax.Array]


def _shuffled(key: Key, count: int, shape: tuple[int, ...]) -> jax.Array:
  """Positions in [0, count): as many permutations as `shape` needs."""
  needed = int(np.prod(shape))
  keys = jax.random.split(key, -(-needed // count))
  rounds = [jax.random.permutation(k, count) for k in keys]
  return jnp.concatenate(rounds)[:needed].reshape(shape)


def _plan(key: Key, layout: Layout) -> tuple[Key, Key, tuple[jax.Array, ...]]:
  """What an epoch does.

  Args:
    key: of the epoch.
    layout: of the epoch; a permutation begins where a pass does.

  Returns:
    The key of the next epoch; the key that the augmentation of every step is
    drawn from; and of each set int32 `[S, D, P]`, the positions of the examples
    that each of the D devices takes.
  """
  key, shuffle_key, augment_key = jax.random.split(key, 3)
  counts, shares, steps, starts = layout
  devices = len(parallel.devices())
  orders = tuple(
    # Rolled, so that a pass begins with a permutation.
    jnp.roll(_shuffled(k, count, (steps, devices, share)), start, 0)
    for k, count, share, start in zip(
      jax.random.split(shuffle_key, len(counts)), counts, shares, starts
    )
  )
  return key, augment_key, orders


def _finite(tree: Any) -> jax.Array:
  """Whether every number of a tree is finite."""
  floats = filter(is_float, jax.tree.leaves(tree))
  found = [jnp.isfinite(leaf).all() for leaf in floats]
  return functools.reduce(jnp.logical_and, found, jnp.bool_(True))


def _scaled(update: jax.Array, scale: jax.Array) -> jax.Array:
  if scale.dtype == bool:
    return jnp.where(scale, update, 0)
  return update * scale.astype(update.dtype)


def of_trained(tree: Any, trained: Sequence[bool]) -> Any:
  """The tree, None in place of each leaf that does not move."""
  leaves, treedef = jax.tree.flatten(tree)
  kept = [x if moves else None for x, moves in zip(leaves, trained)]
  return jax.tree.unflatten(treedef, kept)


def _merged(moving: Any, every: Any) -> Any:
  return jax.tree.map(
    lambda own, still: still if own is None else own,
    *(moving, every),
    is_leaf=lambda x: x is None,
  )


@functools.lru_cache(maxsize=64)
def program(
  model: Model,
  loss: Loss,
  descend: optax.TransformUpdateFn,
  layout: Layout,
  trained: tuple[bool, ...],
  augments: tuple[Augment | None, ...],
  active: Callable[[Step], Any] | None,
  whole: bool = False,
):
  """The steps of an epoch: shuffle, augment, step, in a loop.

  Args:
    model: the classifier.
    loss: what is minimised.
    descend: Optax's update of the optimiser.
    layout: of an epoch.
    trained: of each parameter tensor, whether it moves.
    augments: of each set, what its images go through.
    active: whether a step does anything; None if each does.
    whole: compiles for the span of all steps only. A GPU runs a loop of known
      length without asking the host after each step.

  Returns:
    `(state, sets, marks, span, images) -> (state, losses)`, compiled once.
    `marks` are what updates are scaled by, and `Step.given`, each a tree or
    None.
    `span` is int32 `[5]`: the first step, the step after the last one, the
    step that `images`, the rows of streamed sets, begin with, how many
    epochs came before, and how many there are in all. `losses` is
    float32 `[steps]`, of which those in the span are set: to NaN if parameters
    or statistics are not finite afterwards. The key of the state is that of
    the epoch until its last step.
  """
  steps, starts = layout.steps, layout.starts

  def epoch(rank, state: TrainState, sets, marks, span, streamed):
    (scales, given), every = marks, state.model.params
    moving = of_trained(every, trained)
    first, last, begin = (0, steps, 0) if whole else span[:3]
    before = span[3] * steps
    next_key, augment_key, orders = _plan(state.key, layout)
    orders = tuple(order[:, rank] for order in orders)

    def draw(own: Examples, augment, positions, images, key) -> Batch:
      rows, targets = own.indices[positions], own.targets
      images = own.images[rows] if images is None else images
      if augment is not None:
        images = augment(key, images)
      if targets is not None:
        targets = targets[positions]
      return Batch(images, own.labels[rows], targets, key, own.teacher)

    def step(number, carry):
      turn = None
      if any(starts):
        turn = jnp.searchsorted(jnp.asarray(starts), number, side='right') - 1
      now = Step(before + number, span[4] * steps, steps, given, turn)
      if active is None:
        return taken(number, now, carry)
      return jax.lax.cond(
        active(now), lambda c: taken(number, now, c), lambda c: c, carry
      )

    def taken(number, now, carry):
      moving, batch_stats, opt_state, losses = carry
      keys = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(augment_key, number), rank),
        len(sets),
      )
      positions = tuple(order[number] for order in orders)
      images = tuple(
        None if rows is None else rows[number - begin] for rows in streamed
      )
      batches = tuple(map(draw, sets, augments, positions, images, keys))

      def objective(moving):
        params = _merged(moving, every)
        own = ModelState(params, batch_stats)
        return loss(model, own, batches, now)

      (value, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(
        moving
      )
      value, grads, batch_stats = parallel.mean((value, grads, batch_stats))
      updates, opt_state = descend(grads, opt_state, moving)
      if scales is not None:
        updates = jax.tree.map(_scaled, updates, scales)
      moving = optax.apply_updates(moving, updates)
      return moving, batch_stats, opt_state, losses.at[number].set(value)

    moving, batch_stats, opt_state, losses = jax.lax.fori_loop(
      first,
      last,
      step,
      (moving, state.model.batch_stats, state.opt_state, jnp.zeros(steps)),
    )
    model_state = ModelState(_merged(moving, every), batch_stats)
    # Where the host looks anyway: a broken state shows in its losses.
    losses = jnp.where(_finite((moving, batch_stats)), losses, jnp.nan)
    key = jnp.where(last == steps, next_key, state.key)
    return TrainState(model_state, opt_state, key), losses

  return parallel.spmd(epoch, donate=[0], split=[4])


@functools.lru_cache(maxsize=64)
def _plan_program(devices: tuple[jax.Device, ...], layout: Layout):
  """`_plan` alone, to know on the host what an epoch on `devices` will do."""
  return jax.jit(lambda key: _plan(key, layout)[-1])


def runs_whole() -> bool:
  """Whether a loop of known length is the faster one here; see `program`."""
  return parallel.devices()[0].platform != 'cpu'


class _Reader:
  """The images of streamed sets, block by block in the order of the steps."""

  def __init__(self, sets: Sequence[Examples], layout: Layout):
    streamed = [streaming.streams(s) for s in sets]
    self._stream = streaming.Stream(
      [s.images if streams else None for s, streams in zip(sets, streamed)],
      layout.shares,
      layout.steps,
      even=True,
    )
    # Of the streamed sets, where each example lies on the host.
    self._rows = [
      np.asarray(s.indices) if streams else None
      for s, streams in zip(sets, streamed)
    ]
    self._plan = _plan_program(parallel.devices(), layout)
    self._steps = layout.steps
    # Blocks to come, the one that is on the devices, the step that is next.
    self._blocks: Iterator[streaming.Block] = iter(())
    self._block: streaming.Block | None = None
    self._next = 0

  def block(self, step: int, key: Key) -> streaming.Block:
    """The block that holds a step, in the epoch of this key."""
    if self._block is None or step != self._next:
      self._block = None  # Its memory is free before the next takes some.
      own, orders = parallel.ranks(), jax.device_get(self._plan(key))
      rows = [
        None if rows is None else rows[order[:, own]].swapaxes(0, 1)
        for rows, order in zip(self._rows, orders)
      ]
      self._blocks = self._stream.blocks(rows, parallel.shard, step)
      self._block = next(self._blocks)
    return self._block

  def ran_to(self, step: int) -> None:
    """Told where the call that was just started will end.

    While the devices work on it, a next block is on its way to them.
    """
    self._next = step
    assert self._block is not None
    if step in (self._block.last, self._steps):
      self._block = next(self._blocks, None) if step < self._steps else None


class Runner:
  """Runs the steps of epochs over some sets, of which some may be streamed."""

  def __init__(
    self,
    executable: Callable[[bool], Callable[..., Any]],
    sets: Sequence[Examples],
    layout: Layout,
    epochs: int,
  ):
    """Reads and compiles nothing yet.

    Args:
      executable: gives the `program`, told whether for a whole epoch only.
      sets: what batches are drawn from; some may lie on the host.
      layout: of an epoch.
      epochs: how many there are in all, at most.
    """
    self.steps, self._program, self._epochs = layout.steps, executable, epochs
    sets = [streaming.gathered(examples) for examples in sets]
    nothing = np.zeros(0, np.uint8)
    self.sets = tuple(
      s._replace(images=nothing) if streaming.streams(s) else s for s in sets
    )
    streamed = any(map(streaming.streams, sets))
    self._reader = _Reader(sets, layout) if streamed else None

  def run(
    self,
    state: TrainState,
    sets: tuple[Examples, ...],
    marks: Any,
    first: int,
    last: int,
    epochs: int,
  ) -> tuple[TrainState, jax.Array, int]:
    """Starts some steps, without waiting for them.

    Args:
      state: before step `first`; donated.
      sets: `sets`, on the devices.
      marks: see `program`.
      first: in [0, steps).
      last: the step after the last that may be run, in (first, steps].
      epochs: how many are over.

    Returns:
      The state afterwards, float32 `[steps]` with the losses of the steps that
      are run, and the step after these: `last`, or less where a block of
      streamed images ends before it.
    """
    begin, images = 0, (None,) * len(sets)
    if self._reader:
      block = self._reader.block(first, state.key)
      begin, images, last = block.first, block.images, min(last, block.last)
    span = parallel.replicate(
      np.array([first, last, begin, epochs, self._epochs], np.int32)
    )
    whole = (
      runs_whole() and not self._reader and (first, last) == (0, self.steps)
    )
    program = self._program(whole)
    state, losses = program(state, sets, marks, span, images)
    if self._reader:
      self._reader.ran_to(last)
    return state, losses, last
