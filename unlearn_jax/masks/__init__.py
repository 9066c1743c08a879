"""Choosing which parameters to change: boolean trees shaped like `params`.

Top-K, Random-k and Random-TopK share one selection: every scalar has an
unsigned integer key, the k highest keys of the whole tree win, and among equal
keys the earlier scalar does ("earlier" is the order of `jax.tree.leaves`, then
row-major).

| file | what it holds |
|---|---|
| `scalars` | Top-K, Random-k and Random-TopK |
| `tensors` | masks of whole tensors; how many scalars, and what k may be |
| `keys` | the integer view of |x|, and random priorities |
| `host` | the way by NumPy: sample, bracket, collect, mark |
| `device` | the way under `jit`: digit by digit, on one device or many |
"""

from unlearn_jax.masks.scalars import (
  random_topk_mask,
  randomk_mask,
  topk_mask,
)
from unlearn_jax.masks.tensors import (
  count_scalars,
  last_k_mask,
)

__all__ = [
  'count_scalars',
  'last_k_mask',
  'random_topk_mask',
  'randomk_mask',
  'topk_mask',
]
