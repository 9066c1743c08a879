"""One epoch as one compiled, data-parallel program; or as several parts.

What an epoch does is the same wherever the images lie: `program` runs all of
it at once where they lie on the devices, and part by part where they come
from the host (`data.streaming`), in the same order and with the same keys.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import parallel
from unlearn_jax.base import (
  Array,
  Batch,
  Examples,
  Key,
  Model,
  ModelState,
  TrainState,
)
from unlearn_jax.data import streaming

# `(model, state, batches) -> (loss, batch_stats)`, a mean over the batches.
Loss = Callable[[Model, ModelState, tuple[Batch, ...]], tuple[jax.Array, Any]]
# `(key, images) -> images`, a whole batch of pixels at once.
Augment = Callable[[Key, jax.Array], jax.Array]


def _shuffled(key: Key, count: int, shape: tuple[int, ...]) -> jax.Array:
  """Positions in [0, count): as many permutations as `shape` needs."""
  needed = int(np.prod(shape))
  keys = jax.random.split(key, -(-needed // count))
  rounds = [jax.random.permutation(k, count) for k in keys]
  return jnp.concatenate(rounds)[:needed].reshape(shape)


class _Part(NamedTuple):
  """Consecutive steps of an epoch: which examples, and what augments them.

  Attributes:
    key: that the augmentation of every step of the epoch is drawn from.
    numbers: int32 `[S]`, the steps' numbers in the epoch.
    orders: of each set int32 `[S, D, P]`, positions of the examples that each
      of the D devices takes.
  """

  key: Key
  numbers: Array
  orders: tuple[Array, ...]


def _plan(
  key: Key, counts: Sequence[int], shares: Sequence[int], steps: int
) -> tuple[Key, _Part]:
  """A whole epoch, and the key of the next one."""
  key, shuffle_key, augment_key = jax.random.split(key, 3)
  devices = len(parallel.devices())
  orders = tuple(
    _shuffled(k, count, (steps, devices, share))
    for k, count, share in zip(
      jax.random.split(shuffle_key, len(counts)), counts, shares
    )
  )
  return key, _Part(augment_key, jnp.arange(steps), orders)


def _finite(tree: Any) -> jax.Array:
  """Whether every number of a tree is finite."""
  found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return functools.reduce(jnp.logical_and, found)


@functools.lru_cache(maxsize=64)
def program(
  model: Model,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  sizes: tuple[int, ...],
  steps: int,
  trained: tuple[bool, ...],
  augment: Augment | None,
):
  """One epoch as one program: shuffle, augment, step, scanned.

  Where images are streamed it runs one part of the epoch a call. The losses
  are NaN if parameters or statistics are not finite afterwards.
  """

  def merge(moving: list, still: list, treedef: Any) -> Any:
    parts = {True: iter(moving), False: iter(still)}
    return treedef.unflatten([next(parts[moves]) for moves in trained])

  def epoch(rank, state: TrainState, sets, movable, part, streamed):
    leaves, treedef = jax.tree.flatten(state.model.params)
    frozen = [leaf for leaf, moves in zip(leaves, trained) if not moves]
    moving = [leaf for leaf, moves in zip(leaves, trained) if moves]
    key = state.key
    if part is None:
      key, part = _plan(key, [s.size for s in sets], sizes, steps)
      streamed = (None,) * len(sets)
    orders = tuple(order[:, rank] for order in part.orders)

    def draw(examples: Examples, positions, images, key) -> Batch:
      rows, targets = examples.indices[positions], examples.targets
      images = examples.images[rows] if images is None else images
      if targets is not None:
        # A teacher speaks of the plain images.
        targets = targets[positions]
      elif augment is not None:
        images = augment(key, images)
      return Batch(images, examples.labels[rows], targets)

    def step(carry, inputs):
      moving, batch_stats, opt_state = carry
      number, positions, images = inputs
      keys = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(part.key, number), rank),
        len(sets),
      )
      batches = tuple(map(draw, sets, positions, images, keys))

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
      step, start, (part.numbers, orders, streamed)
    )
    params = merge(moving, frozen, treedef)
    model_state = ModelState(params, batch_stats)
    # Where the host looks anyway: a broken state shows in its epoch's losses.
    losses = jnp.where(_finite((moving, batch_stats)), losses, jnp.nan)
    return TrainState(model_state, opt_state, key), losses

  return parallel.spmd(epoch, donate=[0], split=[4])


@functools.lru_cache(maxsize=64)
def _plan_program(
  devices: tuple[jax.Device, ...],
  counts: tuple[int, ...],
  shares: tuple[int, ...],
  steps: int,
):
  """`_plan` alone, to know on the host what an epoch on `devices` will do."""
  return jax.jit(lambda key: _plan(key, counts, shares, steps))


class _Streamed:
  """Runs epochs over sets of which some stay on the host, part by part.

  Order and augmentation are those of an epoch with everything on the devices.
  """

  def __init__(
    self,
    program: Callable[..., Any],
    sets: Sequence[Examples],
    shares: tuple[int, ...],
    steps: int,
  ):
    self._program = program
    self._indices = [
      np.asarray(s.indices) if streaming.streams(s) else None for s in sets
    ]
    counts = tuple(s.size for s in sets)
    self._plan = _plan_program(parallel.devices(), counts, shares, steps)
    images = [s.images if streaming.streams(s) else None for s in sets]
    self._stream = streaming.Stream(images, shares, steps)

  def run(
    self,
    state: TrainState,
    sets: tuple[Examples, ...],
    movable: Any,
    position: dict[str, Any] | None = None,
    on_block: Callable[[TrainState, dict[str, Any]], None] | None = None,
  ) -> tuple[TrainState, np.ndarray]:
    """Runs an epoch, or what is left of it.

    Args:
      state: at the start of the epoch, or as `on_block` saw it; donated.
      sets: as they lie on the devices, without the streamed images.
      movable: what `update_mask` leaves of the trained tensors.
      position: as `on_block` saw it; None for the start of the epoch.
      on_block: told the state after each block, which the next one destroys,
        and the position that goes with it. Its `key` is still the epoch's.

    Returns:
      The state after the epoch, and the losses of its steps.
    """
    next_key, part = self._plan(state.key)
    numbers, orders = jax.device_get((part.numbers, part.orders))
    own = parallel.ranks()
    blocks = self._stream.blocks(
      [
        None if rows is None else rows[order[:, own]].swapaxes(0, 1)
        for rows, order in zip(self._indices, orders)
      ],
      parallel.shard,
    )
    if position is not None:
      blocks.set_state(position)

    def advance(block: streaming.Block) -> jax.Array:
      nonlocal state
      steps = slice(block.first, block.last)
      now = _Part(part.key, numbers[steps], tuple(o[steps] for o in orders))
      state, losses = self._program(
        state, sets, movable, parallel.replicate(now), block.images
      )
      if on_block:
        on_block(state, blocks.get_state())
      return losses

    losses = streaming.each(blocks, advance)
    state = state._replace(key=parallel.replicate(next_key))
    return state, np.concatenate(losses)


def runner(
  executable: Callable[..., Any],
  sets: Sequence[Examples],
  shares: tuple[int, ...],
  steps: int,
) -> tuple[Callable[..., Any], tuple[Examples, ...]]:
  """How an epoch is run, and the sets as they are to lie on the devices.

  Args:
    executable: what `program` made.
    sets: what batches are drawn from; some may lie on the host.
    shares: examples of each set that a device takes a step.
    steps: of an epoch.

  Returns:
    `(state, sets, movable) -> (state, losses [steps])`, and the sets.
  """
  sets = [streaming.gathered(examples) for examples in sets]
  if not any(map(streaming.streams, sets)):
    return lambda *inputs: executable(*inputs, None, None), tuple(sets)
  run = _Streamed(executable, sets, shares, steps).run
  nothing = np.zeros(0, np.uint8)
  return run, tuple(
    s._replace(images=nothing) if streaming.streams(s) else s for s in sets
  )
