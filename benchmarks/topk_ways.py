"""Ways to find the k largest |g| of a tree: ours, and what people use.

Each takes a list of float leaves and returns boolean leaves with k true. The
peers do what their documentation suggests: concatenate |g|, select, write the
mask, cut it to leaves.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study.provenance import cores
from unlearn_jax import topk_mask

FLOOR = 'read once'
CONTROL = 'read once, again'

# Bytes a float32 parameter that a way takes beyond the gradients, at least;
# to tell whether it can run at all. Measured by this benchmark at 1.1e7.
NEEDS = {
  'ours, NumPy': 1.3,
  'ours, jit': 1.3,
  'concatenate + lax.top_k': 13.0,
  'NumPy partition': 9.0,
  'NumPy argpartition': 17.0,
  'torch.topk': 21.0,
  'torch.kthvalue': 21.0,
  FLOOR: 0.0,
  CONTROL: 0.0,
}

Way = Callable[[], Any]


def ways(
  leaves: Sequence[jax.Array], k: int, *, with_torch: bool
) -> dict[str, Way]:
  """The contestants on these leaves, by name.

  Args:
    leaves: float arrays on one device.
    k: how many to choose.
    with_torch: whether PyTorch takes part.
  """
  cpu, number = jax.default_backend() == 'cpu', jnp.int32(k)
  if cpu:
    host = [np.asarray(leaf) for leaf in leaves]
    floor = functools.partial(_read, host)
  else:
    read = jax.jit(lambda leaves: [jnp.max(leaf) for leaf in leaves])
    floor = functools.partial(read, leaves)
  # Programs of their own: what is compiled must not be found in a cache.
  ours = jax.jit(lambda leaves, k: topk_mask(leaves, leaves, k))
  top = jax.jit(lambda leaves: _by_index(leaves, k))
  found: dict[str, Way] = {CONTROL: floor}  # Far from the floor in a round.
  if cpu:
    found['ours, NumPy'] = lambda: topk_mask(leaves, leaves, k)
  found['ours, jit'] = lambda: ours(leaves, number)
  found['concatenate + lax.top_k'] = lambda: top(leaves)
  if cpu:
    found['NumPy partition'] = lambda: _partition(host, k)
    found['NumPy argpartition'] = lambda: _argpartition(host, k)
  if with_torch:
    found |= _torch_ways(leaves, k)
  return {**found, FLOOR: floor}


def count(masks: Any) -> int:
  """How many are true, whoever made the masks."""
  return sum(int(mask.sum()) for mask in masks)


def _by_index(leaves: Sequence[jax.Array], k: int) -> Any:
  flat = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in leaves])
  mask = jnp.zeros(flat.shape, bool).at[jax.lax.top_k(flat, k)[1]].set(True)
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

  def flattened():
    return torch.cat([x.abs().reshape(-1) for x in tensors])

  def waited(masks):
    if tensors[0].is_cuda:
      torch.cuda.synchronize()
    return masks

  def topk():
    flat = flattened()
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[torch.topk(flat, k).indices] = True
    return waited(_cut(mask, leaves))

  def kthvalue():
    flat = flattened()
    threshold = torch.kthvalue(flat, flat.numel() - k + 1).values
    return waited([x.abs() >= threshold for x in tensors])

  return {'torch.topk': topk, 'torch.kthvalue': kthvalue}
