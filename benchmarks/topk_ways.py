"""Ways to find the k largest |g| of a tree: ours, and what people use.

Each takes a list of float leaves and returns boolean leaves with k true. The
peers do what their documentation suggests: concatenate |g|, select, write the
mask, cut it to leaves.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.machine import cores
from unlearn_jax import topk_mask

FLOOR = 'read once'

# Bytes a float32 parameter that a way takes beyond the gradients, at least;
# to tell whether it can run at all. Measured by this benchmark at 1.1e7.
NEEDS = {
  'ours, NumPy': 1.3,
  'ours, jit': 1.3,
  'concatenate + lax.top_k': 13.0,
  'concatenate + approx_max_k': 13.0,
  'NumPy partition': 9.0,
  'NumPy argpartition': 17.0,
  'torch.topk': 21.0,
  'torch.kthvalue': 21.0,
  FLOOR: 0.0,
}

Way = Callable[[], Any]


def torch_is_installed() -> bool:
  """Whether PyTorch can be imported."""
  return importlib.util.find_spec('torch') is not None


def ways(
  leaves: Sequence[jax.Array], k: int, *, with_torch: bool
) -> dict[str, tuple[Way, Callable[[], Any] | None]]:
  """The contestants on these leaves.

  Args:
    leaves: float arrays on one device.
    k: how many to choose.
    with_torch: whether PyTorch takes part.

  Returns:
    From a name to the way and, where it is one compiled program, to what
    compiles it anew.
  """
  cpu = jax.default_backend() == 'cpu'
  number = jnp.int32(k)
  # Programs of their own: what is compiled must not be found in a cache.
  ours = jax.jit(lambda leaves, k: topk_mask(leaves, leaves, k))
  top = jax.jit(lambda leaves: _by_index(leaves, k, jax.lax.top_k))
  approx = jax.jit(lambda leaves: _by_index(leaves, k, jax.lax.approx_max_k))
  found: dict[str, tuple[Way, Callable[[], Any] | None]] = {}
  if cpu:
    found['ours, NumPy'] = (lambda: topk_mask(leaves, leaves, k), None)
  found['ours, jit'] = (
    lambda: ours(leaves, number),
    functools.partial(_compile, ours, leaves, number),
  )
  for name, program in (
    ('concatenate + lax.top_k', top),
    ('concatenate + approx_max_k', approx),
  ):
    found[name] = (
      functools.partial(program, leaves),
      functools.partial(_compile, program, leaves),
    )
  if cpu:
    host = [np.asarray(leaf) for leaf in leaves]
    found['NumPy partition'] = (lambda: _partition(host, k), None)
    found['NumPy argpartition'] = (lambda: _argpartition(host, k), None)
  if with_torch:
    for name, way in _torch_ways(leaves, k).items():
      found[name] = (way, None)
  if cpu:
    found[FLOOR] = (lambda: _read(host), None)
  else:
    read = jax.jit(lambda leaves: [jnp.max(leaf) for leaf in leaves])
    found[FLOOR] = (lambda: read(leaves), None)
  return found


def _compile(program: Any, *args: Any) -> Any:
  return program.lower(*args).compile()


def count(masks: Any) -> int:
  """How many are true, whoever made the masks."""
  return sum(int(mask.sum()) for mask in masks)


def _by_index(leaves: Sequence[jax.Array], k: int, choose: Callable) -> Any:
  flat = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in leaves])
  index = choose(flat, k)[1]
  mask = jnp.zeros(flat.shape, bool).at[index].set(True)
  return _cut(mask, leaves)


def _partition(leaves: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
  """The quickest of NumPy; not exactly k where numbers tie."""
  flat = np.concatenate([np.abs(leaf).reshape(-1) for leaf in leaves])
  flat.partition(flat.size - k)
  threshold = flat[flat.size - k]
  return [np.abs(leaf) >= threshold for leaf in leaves]


def _argpartition(leaves: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
  flat = np.concatenate([np.abs(leaf).reshape(-1) for leaf in leaves])
  mask = np.zeros(flat.size, bool)
  mask[np.argpartition(flat, flat.size - k)[flat.size - k :]] = True
  return _cut(mask, leaves)


def _cut(mask: Any, leaves: Sequence[Any]) -> list[Any]:
  pieces, start = [], 0
  for leaf in leaves:
    pieces.append(mask[start : start + leaf.size].reshape(leaf.shape))
    start += leaf.size
  return pieces


def _read(leaves: Sequence[np.ndarray]) -> list[Any]:
  """Every gradient once, by all cores: the floor."""
  block = 2**20
  flat = [leaf.reshape(-1) for leaf in leaves]
  if flat[0].dtype.itemsize == 2:
    flat = [leaf.view(np.int16) for leaf in flat]
  blocks = [
    x[i : i + block] for x in flat for i in range(0, max(x.size, 1), block)
  ]
  if len(blocks) < 2 * cores():
    return [x.max() for x in blocks if x.size]
  size = -(-len(blocks) // cores())
  parts = [blocks[i : i + size] for i in range(0, len(blocks), size)]
  with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
    work = pool.map(lambda part: [x.max() for x in part if x.size], parts)
    return list(work)


def _torch_ways(leaves: Sequence[jax.Array], k: int) -> dict[str, Way]:
  import torch

  tensors = [torch.from_dlpack(leaf) for leaf in leaves]

  def wait(masks):
    if tensors[0].is_cuda:
      torch.cuda.synchronize()
    return masks

  def topk():
    flat = torch.cat([x.abs().reshape(-1) for x in tensors])
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[torch.topk(flat, k).indices] = True
    return wait(
      [
        piece.reshape(x.shape)
        for piece, x in zip(mask.split([x.numel() for x in tensors]), tensors)
      ]
    )

  def kthvalue():
    flat = torch.cat([x.abs().reshape(-1) for x in tensors])
    threshold = torch.kthvalue(flat, flat.numel() - k + 1).values
    return wait([x.abs() >= threshold for x in tensors])

  return {'torch.topk': topk, 'torch.kthvalue': kthvalue}
