"""Choosing which parameters to change: boolean trees shaped like `params`.

Top-K, Random-k and Random-TopK share one selection: every scalar has an
unsigned integer key, the k highest keys of the whole tree win, and among equal
keys the earlier scalar does ("earlier" is the order of `jax.tree.leaves`, then
row-major).

| file | what it holds |
|---|---|
| `top` | Top-K: which of the two ways is taken |
| `lots` | Random-k and Random-TopK |
| `keys` | the integer view of |x|, and random priorities |
| `host` | the way by NumPy: sample, bracket, collect, mark |
| `device` | the way under `jit`: bisection on counts, ties by their place |
| `search`, `pieces`, `small` | its loop, its counting, its small leaves |
| `spmd` | where leaves lie, and `shard_map` around `device` |
| `tensors` | masks of whole tensors, and what a mask counts |
| `arguments` | what k may be |
"""

from unlearn_jax.masks.lots import random_topk_mask, randomk_mask
from unlearn_jax.masks.tensors import (
  count_scalars,
  count_tensors,
  last_k_mask,
)
from unlearn_jax.masks.top import topk_mask

__all__ = [
  'count_scalars',
  'count_tensors',
  'last_k_mask',
  'random_topk_mask',
  'randomk_mask',
  'topk_mask',
]
