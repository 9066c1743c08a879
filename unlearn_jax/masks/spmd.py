"""Where leaves lie, and a selection run there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from unlearn_jax.masks import device
from unlearn_jax.masks.pieces import Plan, Source


def is_traced(leaves: Sequence[Any]) -> bool:
  """Whether any leaf has no value yet."""
  return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def plan_for(leaves: Sequence[Any]) -> Plan:
  """How to select among these leaves.

  Args:
    leaves: arrays of JAX, traced or not; or of NumPy, or only shapes: those
      are taken to be on one device.

  Returns:
    The plan. Without a mesh and not `whole` it takes nothing for granted.
  """
  if is_traced(leaves):
    return _traced_plan(leaves)
  arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
  devices: set[Any] = set()
  devices.update(*(x.sharding.device_set for x in arrays))
  platform = next(iter(devices)).platform if devices else jax.default_backend()
  loop = platform == 'cpu'
  if len(devices) <= 1:
    return Plan(loop, whole=True)
  shardings = [x.sharding for x in arrays]
  named = [s for s in shardings if isinstance(s, NamedSharding)]
  if len(named) == len(leaves) and len({s.mesh for s in named}) == 1:
    return Plan(loop, False, named[0].mesh, tuple(s.spec for s in named))
  return Plan(loop=False, whole=False)


def _traced_plan(leaves: Sequence[Any]) -> Plan:
  # JAX renames the attribute that says so, and prints it alike.
  if any('{V' in str(jax.typeof(leaf)) for leaf in leaves):
    raise ValueError(
      'params vary over the devices of a shard_map, allowed there:'
      ' check_vma=False (each device then selects among its own)'
    )
  loop = jax.default_backend() == 'cpu'
  shardings = [jax.typeof(leaf).sharding for leaf in leaves]
  mesh = shardings[0].mesh
  types = set(mesh.axis_types) if not mesh.empty else set()
  if types == {AxisType.Explicit} and all(s.mesh == mesh for s in shardings):
    return Plan(loop, False, mesh, tuple(s.spec for s in shardings))
  if mesh.empty and jax.device_count() == 1:
    return Plan(loop, whole=True)
  return Plan(loop=False, whole=False)


def select(
  arrays: Sequence[tuple[jax.Array, ...]],
  like: Sequence[Source],
  k: jax.Array,
  plan: Plan,
  extra: Any = None,
  expected: Any = None,
) -> tuple[list[jax.Array], jax.Array]:
  """`device.select`, inside `shard_map` where the plan has a mesh.

  Args:
    arrays: for each leaf what its keys are made from, whole.
    like: the leaves' sources; their own arrays are not read, and `make` is
      given `extra` as its third argument.
    k: as in `device.select`.
    plan: how.
    extra: arrays that every device has, such as the words of a key.
    expected: as in `device.select`.

  Returns:
    As in `device.select`.
  """

  def run(arrays, k, extra, expected):
    sources = [
      source._replace(
        arrays=mine,
        make=lambda a, i, make=source.make: make(a, i, extra),
      )
      for source, mine in zip(like, arrays)
    ]
    return device.select(sources, k, plan, expected=expected)

  if plan.mesh is None:
    return run(arrays, k, extra, expected)
  assert plan.specs is not None
  mine = [(spec,) * len(a) for spec, a in zip(plan.specs, arrays)]
  none = PartitionSpec()
  return jax.shard_map(
    run,
    mesh=plan.mesh,
    in_specs=(mine, none, none, none),
    out_specs=(list(plan.specs), none),
    check_vma=False,
  )(list(arrays), k, extra, expected)


def put_like(leaf: Any, like: Any) -> Any:
  """The leaf on the devices of `like`, if those are several and known."""
  if (
    isinstance(leaf, jax.core.Tracer)
    or isinstance(like, jax.core.Tracer)
    or not isinstance(like, jax.Array)
    or len(like.sharding.device_set) == 1
  ):
    return leaf
  if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
    return leaf
  return jax.device_put(jnp.asarray(leaf), like.sharding)
