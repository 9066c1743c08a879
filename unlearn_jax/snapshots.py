"""Training as it stood after a step: what it takes to go on from there.

`training.fit` hands a `Snapshot` to a `Keeper` after each epoch, and in the
midst of a long one, and asks it for one at the start. When and where to save is
the keeper's affair; here is how: `pack` copies a snapshot to the host, `save`
and `restore` write and read it, `unpack` puts it back into the shape that
training needs.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from unlearn_jax import checkpoints
from unlearn_jax.base import InputError, TrainState, shown, tensor_paths

# The file with how far it got.
COURSE = 'course.json'


class Epoch(NamedTuple):
  """One row of a training curve."""

  epoch: int  # 0 is the state before the first step
  loss: float | None  # mean training loss of the epoch; None at epoch 0
  # Training time since the start, compilation and measuring excluded.
  seconds: float
  measured: dict[str, float]  # what the caller's `measure` returned


class Course(NamedTuple):
  """How far a training got, and what it has shown so far."""

  # One `Epoch` for each that is over, epoch 0 first: curve, seconds, and all
  # that a stop rule looks at.
  history: tuple[Epoch, ...]
  compile_seconds: float  # what compilation has cost
  steps: int  # of each epoch
  # Of each step of the epoch that is not over; none between epochs.
  losses: tuple[float, ...] = ()
  seconds: float = 0.0  # that went into these steps, compilation excluded

  @property
  def epoch(self) -> int:
    """The last epoch that is over."""
    return self.history[-1].epoch

  @property
  def step(self) -> int:
    """Steps of the next epoch that are done: the position in the data.

    Which examples come next follows from it and from the state's key, which
    is that of the epoch.
    """
    return len(self.losses)


class Snapshot(NamedTuple):
  """Training after an epoch, or in the midst of one."""

  state: TrainState  # what the next step starts from; it destroys these arrays
  course: Course  # how far it got


class Keeper(Protocol):
  """Keeps a training, so that another process can go on with it."""

  def load(self, like: TrainState) -> Snapshot | None:
    """What was kept last, or None for a start from the beginning.

    Args:
      like: the state before the first epoch, for `unpack`.
    """

  def save(self, snapshot: Snapshot) -> None:
    """Told of every epoch, the last one included, whose numbers are finite.

    Of an epoch that lasts longer it is told now and then. It may raise to end
    the training. The snapshot's arrays are gone when it has returned: `pack`
    copies them.
    """


class Packed(NamedTuple):
  """A snapshot on the host."""

  arrays: dict[str, np.ndarray]  # leaf number to array, the key as its data
  course: Course  # as in `Snapshot`
  # JSON-serialisable; which leaves these are, and the kind of key.
  facts: dict[str, Any]


def pack(snapshot: Snapshot) -> Packed:
  """Copies a snapshot to the host.

  Example:
    >>> from unlearn_jax.base import ModelState
    >>> model, key = ModelState({'w': jnp.ones(2)}), jax.random.key(0)
    >>> state = TrainState(model, (), key)
    >>> course = Course((Epoch(0, None, 0.0, {}),), 0.0, steps=1)
    >>> packed = pack(Snapshot(state, course))
    >>> packed.facts['leaves']
    ['model/params/w', 'key']
    >>> unpack(packed, state).state.model.params['w'].tolist()
    [1.0, 1.0]
  """
  state = _plain(snapshot.state)
  # Copies, because on a CPU the host sees the very memory that is donated.
  leaves = [np.array(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
  return Packed(
    {f'{number:06}': leaf for number, leaf in enumerate(leaves)},
    snapshot.course,
    _facts(snapshot.state),
  )


def unpack(packed: Packed, like: TrainState) -> Snapshot:
  """The snapshot again.

  Args:
    packed: from `pack` or `restore`.
    like: a state of the same structure, shapes and types.

  Returns:
    The snapshot, on the default device.

  Raises:
    InputError: it is another training's.
  """
  facts, wanted = packed.facts, _facts(like)
  for name in wanted:
    if facts.get(name) != wanted[name]:
      raise InputError(
        f'the saved training has {name}={str(facts.get(name))[:60]}, allowed:'
        f' {str(wanted[name])[:60]}'
      )
  structure = jax.tree.structure(_plain(like))
  leaves = [jnp.array(packed.arrays[name]) for name in sorted(packed.arrays)]
  found = [f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves[:-1]]
  if found != wanted['shapes']:
    raise InputError(
      f'the saved training holds {shown(found, 60)}, allowed:'
      f' {shown(wanted["shapes"], 60)}'
    )
  state = jax.tree.unflatten(structure, leaves)
  state = jax.tree.map(
    lambda own, form: (
      jax.random.wrap_key_data(own, impl=jax.random.key_impl(form))
      if _is_key(form)
      else own
    ),
    state,
    like,
  )
  return Snapshot(state, packed.course)


def _is_key(leaf: jax.Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: TrainState) -> TrainState:
  """With the data of keys; an optimiser that adds noise has one too."""
  return jax.tree.map(
    lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
  )


def _facts(state: TrainState) -> dict[str, Any]:
  plain = _plain(state)
  leaves = jax.tree.leaves((plain.model, plain.opt_state))
  return {
    'leaves': list(tensor_paths(state)),
    'shapes': [f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves],
    'key': str(jax.random.key_impl(state.key)),
  }


def save(
  directory: str | os.PathLike, packed: Packed, manifest: dict[str, Any]
) -> None:
  """Writes a packed snapshot, all of it or nothing.

  Args:
    directory: a folder that does not exist yet.
    packed: from `pack`.
    manifest: JSON-serialisable facts about it.

  Raises:
    InputError: `directory` exists, or cannot be written.
  """
  # As arrays; a measurement may be NaN, which a manifest must not hold.
  text = json.dumps(packed.course, default=float)
  checkpoints.save(
    directory,
    packed.arrays,
    {**manifest, 'training': packed.facts},
    {COURSE: text.encode()},
  )


def restore(
  directory: str | os.PathLike, **expected: Any
) -> tuple[Packed, dict[str, Any]]:
  """Reads what `save` wrote.

  Args:
    directory: where it is.
    **expected: entries of the manifest and the values that they must have.

  Returns:
    (packed snapshot, manifest).

  Raises:
    InputError: missing, damaged, or an expected entry that differs.
  """
  arrays, manifest = checkpoints.restore_tree(directory, **expected)
  try:
    kept = json.loads((pathlib.Path(directory) / COURSE).read_text())
    course = msgspec.convert(kept, Course)
    if not course.history or course.step >= course.steps:
      raise ValueError(f'{course.step} steps of {course.steps}')
    facts = msgspec.convert(manifest['training'], dict[str, Any])
  except (OSError, ValueError, LookupError, RecursionError) as error:
    raise InputError(
      f'{directory} is no saved training:'
      f' {type(error).__name__}: {shown(error)}'
    ) from error
  return Packed(arrays, course, facts), manifest
