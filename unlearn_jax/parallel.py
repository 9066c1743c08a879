"""Data parallelism: the only module that knows `pmap`, meshes and hosts.

One logical copy of the state goes in and comes out: nothing is replicated or
un-replicated by hand.

Under `jax.distributed` every process computes the same and must therefore
take the same branches. What only one of them can know (whether a file is
there, whether a signal came) they agree on by `by_first` and `gathered`. With
one process both cost nothing.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import functools
import json
from typing import Any, TypeVar, cast

import jax
from jax.experimental import multihost_utils
import numpy as np

from unlearn_jax.base import AXIS, InputError, is_float, require

T = TypeVar('T')
F = TypeVar('F', bound=Callable[..., Any])

_chosen: contextvars.ContextVar[tuple[jax.Device, ...] | None] = (
  contextvars.ContextVar('devices', default=None)
)


def processes() -> int:
  """How many processes compute together; 1 without `jax.distributed`."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
  """Whether this process is the one that writes: process 0, or the only one."""
  return processes() == 1 or jax.process_index() == 0


def by_first(function: Callable[[], T]) -> T:
  """What `function` returns in process 0, which alone calls it.

  All processes have to call this, in the same order; they wait for process 0.

  Args:
    function: what it returns has to be JSON.

  Returns:
    The same in all processes.

  Raises:
    InputError: in the others, where it raised any error in process 0.

  Example:
    >>> by_first(lambda: 'alone')
    'alone'
  """
  if processes() == 1:
    return function()
  if not is_first():
    told = gathered(None)[0] or {}
    if 'error' in told:
      raise InputError(told['error'])
    return told['value']
  try:
    value = function()
  except Exception as error:
    gathered({'error': str(error)})
    raise
  gathered({'value': value})
  return value


def gathered(value: Any) -> list[Any]:
  """The `value` of every process, in their order.

  Args:
    value: JSON; all processes have to call this, in the same order, in the
      main thread: it is a collective on all devices.

  Example:
    >>> gathered(3)
    [3]
  """
  if processes() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size))
  # Few sizes, so that few programs are compiled.
  padded = np.zeros(max(64, 1 << int(max(sizes)).bit_length()), np.uint8)
  padded[: text.size] = text
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, np.asarray(sizes))
  ]


def connect() -> None:
  """Connects the devices of all processes, while these are in step.

  JAX's collectives for the CPU (Gloo) give the first use of a group of devices
  30 s, and how long a process compiles before may differ by more. Once there is
  a connection, they wait.
  """
  if processes() == 1:
    return
  gathered('here')
  jax.block_until_ready(spmd(lambda rank: mean(1.0 + 0 * rank))())
  multihost_utils.sync_global_devices('unlearn_jax')  # As Orbax does.


def everywhere(tree: Any) -> Any:
  """Host arrays that are equal in all processes, as Orbax saves them from all.

  They are replicated over all devices; types that JAX lacks stay as they are.
  """
  sharding = _over(jax.devices())

  def placed(array: np.ndarray) -> Any:
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
      return array
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(placed, tree)


def devices() -> tuple[jax.Device, ...]:
  """The devices that share each batch: all of them, or those of `use`."""
  return _chosen.get() or tuple(jax.devices())


@contextlib.contextmanager
def use(chosen: Sequence[jax.Device]) -> Iterator[None]:
  """Restricts data parallelism to some devices inside a `with` block.

  Args:
    chosen: at least one device.

  Example:
    >>> with use(jax.devices()[:1]):
    ...   len(devices())
    1
  """
  token = _chosen.set(tuple(chosen))
  try:
    yield
  finally:
    _chosen.reset(token)


def apart(function: F) -> F:
  """Decorates what has devices of its own, whatever mesh its caller has set.

  What then comes back from our devices is replicated over the caller's mesh.
  """

  def is_ours(leaf: Any) -> bool:
    mesh = getattr(getattr(leaf, 'sharding', None), 'mesh', None)
    return getattr(mesh, 'axis_names', ()) == (AXIS,)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    if jax.sharding.get_abstract_mesh().empty:
      return function(*args, **kwargs)
    theirs = jax.sharding.get_mesh()
    with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
      found = function(*args, **kwargs)
    place = jax.sharding.NamedSharding(theirs, jax.sharding.PartitionSpec())
    return jax.tree.map(
      lambda leaf: jax.device_put(leaf, place) if is_ours(leaf) else leaf, found
    )

  return cast(F, call)


def placed_like(tree: Any, like: Any) -> Any:
  """Puts each array where its counterpart lies, if somebody has placed that."""

  def placed(leaf: Any, other: Any) -> Any:
    traced = isinstance(other, jax.core.Tracer)  # It is nowhere yet.
    known = not traced and getattr(other, 'committed', False)
    return jax.device_put(leaf, other.sharding) if known else leaf

  return jax.tree.map(placed, tree, like)


def replicate(tree: Any) -> Any:
  """Puts every array of `tree` on every device, as one logical array.

  With several processes each of them puts its own copy, which has to be equal
  to the others', on the devices that it holds.
  """
  return jax.device_put(tree, _over(_local(devices())))


def _over(chosen: Sequence[jax.Device], *spec: str) -> jax.sharding.Sharding:
  mesh = jax.sharding.Mesh(np.array(chosen), (AXIS,))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


def _local(chosen: Sequence[jax.Device]) -> list[jax.Device]:
  """Those of the devices that this process holds."""
  return [d for d in chosen if d.process_index == jax.process_index()]


def ranks() -> np.ndarray:
  """The int32 numbers, in [0, D), of the devices that this process holds."""
  chosen = devices()
  return np.array([chosen.index(d) for d in _local(chosen)], np.int32)


def shard(tree: Any) -> Any:
  """Puts row i of every array of `tree` on the i-th device of `ranks`.

  For the `split` arguments of `spmd`; each process gives its own rows.
  """
  return jax.device_put(tree, _over(_local(devices()), AXIS))


def per_device(batch_size: int) -> int:
  """The share of a batch that each device takes.

  Raises:
    ValueError: `batch_size` below 1 or not divisible by the devices.
  """
  count = len(devices())
  holds = batch_size >= 1 and not batch_size % count
  allowed = f'a positive multiple of the {count} device{"s" * (count > 1)}'
  require('batch_size', batch_size, holds, allowed)
  return batch_size // count


def mean(tree: Any) -> Any:
  """The mean over devices; every output of an `spmd` function needs one.

  Counters and keys, which are no floats, are the same on each and stay.
  """
  leaves, structure = jax.tree.flatten(tree)
  floats = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
  means = dict(zip(floats, jax.lax.pmean([leaves[i] for i in floats], AXIS)))
  every = [means.get(i, leaf) for i, leaf in enumerate(leaves)]
  return jax.tree.unflatten(structure, every)


def spmd(
  function: Callable[..., Any],
  donate: Sequence[int] = (),
  split: Sequence[int] = (),
) -> Callable[..., Any]:
  """Runs `function(rank, *args)` on every device under `jax.pmap`.

  Args:
    function: pure; `rank` is the int32 number of the device, in [0, D). All
      else is the same on every device, and so must be all that it returns:
      pass it through `mean` or gather it, otherwise device 0's value comes
      back in silence.
    donate: positions in `args` whose memory the outputs may reuse.
    split: positions in `args` of which each device gets its own row, as
      `shard` places them.

  Returns:
    `(*args) -> outputs`, compiled once per shapes and devices.
  """

  @functools.wraps(function)
  def unpacked(rank: tuple[jax.Array], *args: Any) -> Any:
    return function(*rank, *args)

  @functools.cache
  def mapped(chosen: tuple[jax.Device, ...], arity: int):
    # The rank in a tuple, because pmap of JAX 0.10 mistakes flat axes for
    # those of leaves when arguments that are None make up for the others.
    program = jax.pmap(
      unpacked,
      axis_name=AXIS,
      in_axes=((0,), *(0 if i in split else None for i in range(arity))),
      out_axes=None,
      devices=chosen,
      donate_argnums=[position + 1 for position in donate],
    )
    # The ranks lie on the devices once and for all, even if JAX is tracing.
    with jax.ensure_compile_time_eval():
      return functools.partial(program, (shard(ranks()),))

  def run(*args: Any) -> Any:
    return mapped(devices(), len(args))(*args)

  return run
