"""Training as it stood after an epoch: what it takes to go on from there.

`training.fit` hands a `Snapshot` to a `Keeper` after each epoch and asks it for
one at the start. When and where to save is the keeper's affair; here is how:
`pack` copies a snapshot to the host, `save` and `restore` write and read it,
`unpack` puts it back into the shape that training needs.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import checkpoints
from unlearn_jax.base import InputError, TrainState, shown, tensor_paths

_HISTORY = 'history.json'


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


class Snapshot(NamedTuple):
  """Training after an epoch.

  Attributes:
    state: what the next epoch starts from; it destroys these arrays.
    history: one `Epoch` an epoch, epoch 0 first: curve, seconds, and all that
      a stop rule looks at.
    compile_seconds: what compilation has cost.
  """

  state: TrainState
  history: tuple[Epoch, ...]
  compile_seconds: float


class Keeper(Protocol):
  """Keeps a training, so that another process can go on with it."""

  def load(self, like: TrainState) -> Snapshot | None:
    """What was kept last, or None for a start from the beginning.

    Args:
      like: the state before the first epoch, for `unpack`.
    """

  def save(self, snapshot: Snapshot) -> None:
    """Told of every epoch, the last one included, whose numbers are finite.

    It may raise to end the training. The snapshot's arrays are gone when it
    has returned: `pack` copies them.
    """


class Packed(NamedTuple):
  """A snapshot on the host.

  Attributes:
    arrays: leaf number to array, the key as its data.
    history: as in `Snapshot`.
    compile_seconds: as in `Snapshot`.
    facts: JSON-serialisable; which leaves these are, and the kind of key.
  """

  arrays: dict[str, np.ndarray]
  history: tuple[Epoch, ...]
  compile_seconds: float
  facts: dict[str, Any]


def pack(snapshot: Snapshot) -> Packed:
  """Copies a snapshot to the host.

  Example:
    >>> from unlearn_jax.base import ModelState
    >>> model, key = ModelState({'w': jnp.ones(2)}), jax.random.key(0)
    >>> state = TrainState(model, (), key)
    >>> packed = pack(Snapshot(state, (Epoch(0, None, 0.0, {}),), 0.0))
    >>> packed.facts['leaves']
    ['model/params/w', 'key']
    >>> unpack(packed, state).state.model.params['w'].tolist()
    [1.0, 1.0]
  """
  state = _with_plain_key(snapshot.state)
  # Copies, because on a CPU the host sees the very memory that is donated.
  leaves = [np.array(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
  return Packed(
    {f'{number:06}': leaf for number, leaf in enumerate(leaves)},
    snapshot.history,
    snapshot.compile_seconds,
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
  structure = jax.tree.structure(_with_plain_key(like))
  leaves = [jnp.array(packed.arrays[name]) for name in sorted(packed.arrays)]
  found = [f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves[:-1]]
  if found != wanted['shapes']:
    raise InputError(
      f'the saved training holds {shown(found, 60)}, allowed:'
      f' {shown(wanted["shapes"], 60)}'
    )
  state = jax.tree.unflatten(structure, leaves)
  key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
  return Snapshot(
    state._replace(key=key), packed.history, packed.compile_seconds
  )


def _with_plain_key(state: TrainState) -> TrainState:
  return state._replace(key=jax.random.key_data(state.key))


def _facts(state: TrainState) -> dict[str, Any]:
  leaves = jax.tree.leaves(state.model) + jax.tree.leaves(state.opt_state)
  return {
    'leaves': list(tensor_paths(state)),
    'shapes': [f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves],
    'key': str(jax.random.key_impl(state.key)),
  }


def save(
  directory: str | os.PathLike, packed: Packed, manifest: dict[str, Any]
) -> None:
  """Writes a packed snapshot, all of it or nothing, as `checkpoints.save` does.

  Args:
    directory: a folder that does not exist yet.
    packed: from `pack`.
    manifest: JSON-serialisable facts about it.

  Raises:
    InputError: `directory` exists, or cannot be written.
  """
  # A measurement may be NaN, which a manifest must not hold.
  text = json.dumps(
    {
      'history': [row._asdict() for row in packed.history],
      'compile_seconds': packed.compile_seconds,
    },
    default=float,
  )
  checkpoints.save_tree(
    directory,
    packed.arrays,
    {**manifest, 'training': packed.facts},
    {_HISTORY: text.encode()},
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
    kept = json.loads((pathlib.Path(directory) / _HISTORY).read_text())
    history = tuple(Epoch(**row) for row in kept['history'])
    packed = Packed(
      arrays, history, kept['compile_seconds'], manifest['training']
    )
    _require_history(packed)
  except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
    raise InputError(
      f'{directory} is no saved training:'
      f' {type(error).__name__}: {shown(error)}'
    ) from error
  return packed, manifest


def _require_history(packed: Packed) -> None:
  if not packed.history or not isinstance(packed.facts, dict):
    raise ValueError('it has no epoch')
  for row in packed.history:
    if not isinstance(row.epoch, int) or not isinstance(row.measured, dict):
      raise TypeError(f'epoch {shown(row)}')
    numbers = [row.seconds, packed.compile_seconds, *row.measured.values()]
    for number in numbers if row.loss is None else [row.loss, *numbers]:
      if not isinstance(number, int | float):
        raise TypeError(f'{shown(repr(number))} is no number')
