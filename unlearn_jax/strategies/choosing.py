"""Which scalars a method changes: scores of them, and who is taken."""

from typing import Literal

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from unlearn_jax import masks
from unlearn_jax.base import (
  Batch,
  Context,
  Examples,
  Key,
  Mask,
  Params,
  tensor_paths,
)
from unlearn_jax.masks import tensors
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective

Sensitivity = Literal[
  'all', 'forget', 'difference', 'fisher_ratio', 'saliency', 'random'
]
Objective = Literal['loss', 'output_norm']
Reduction = Literal['mean_abs', 'mean', 'single']
Direction = Literal['largest', 'smallest']
Scope = Literal['tree', 'leaf']
Leaves = Literal['all', 'conv', 'last']
Granularity = Literal['scalar', 'leaf']

# Keeps a ratio of squares finite where both vanish.
_TINY = 1e-15


def scores(
  context: Context,
  kind: Sensitivity = 'all',
  *,
  objective: Objective = 'loss',
  reduction: Reduction = 'mean_abs',
  count: int = 256,
) -> Params:
  """How much each scalar matters, by gradients of the source.

  With g_f and g_r the mean gradients over D_UL and D_RE, and F the mean of
  squared gradients of single examples:

  | kind | score |
  |---|---|
  | all | the sensitivity over D (Zuo et al., Eq. 5) |
  | forget | the same over D_UL |
  | difference | |g_r − g_f| (MSG) |
  | fisher_ratio | F_f / F_r (SSD, SFR-on) |
  | saliency | |g_f · ω| (LUR) |
  | random | by lot, the control of all others |

  Args:
    context: of the unlearning; examples are drawn by its key.
    kind: which.
    objective: F of Eq. 5, see `sensitivity.model_objective`.
    reduction: of `all` and `forget`, see `sensitivity.gradient_sensitivity`.
    count: of each set, the most examples that are looked at.

  Returns:
    Tree like the parameters, float32, non-negative.
  """
  splits, params = context.splits, context.source.params
  if kind == 'random':
    flat, unravel = ravel_pytree(jax.tree.map(jnp.float32, params))
    return unravel(jax.random.uniform(lot(context), flat.shape))
  if kind == 'all':
    return gradients(context, splits.train, objective, reduction, count)
  if kind == 'forget':
    return gradients(context, splits.forget, objective, reduction, count)
  how = 'mean_square' if kind == 'fisher_ratio' else 'signed'
  forget = gradients(context, splits.forget, objective, how, count)
  if kind == 'saliency':
    return jax.tree.map(lambda g, w: jnp.abs(g * w), forget, params)
  # As many of D_RE as of D_UL, so that both are as noisy.
  count = min(count, splits.forget.size)
  retain = gradients(context, splits.retain, objective, how, count)
  if kind == 'difference':
    return jax.tree.map(lambda r, f: jnp.abs(r - f), retain, forget)
  return jax.tree.map(lambda f, r: (f + _TINY) / (r + _TINY), forget, retain)


def gradients(
  context: Context,
  examples: Examples,
  objective: str,
  reduction: str,
  count: int,
) -> Params:
  """A gradient's size over some of the examples, drawn by lot."""
  sample_key, _ = jax.random.split(context.keys.choose)
  drawn = jax.random.choice(
    sample_key, examples.size, (min(count, examples.size),), replace=False
  )
  chosen = examples.take(np.asarray(drawn))
  rows = np.asarray(chosen.indices)
  return gradient_sensitivity(
    model_objective(context.model, objective),
    context.source.params,
    Batch(chosen.images[rows], chosen.labels[rows]),
    context.source.batch_stats,
    reduction=reduction,
  )


def lot(context: Context) -> Key:
  """By which scalars are drawn."""
  return jax.random.split(context.keys.choose)[1]


def among(
  params: Params, leaves: Leaves, order: tuple[str, ...] = ()
) -> list[int]:
  """Positions of the tensors that may change, in the order of the tree.

  Args:
    params: pytree of arrays.
    leaves: 'all'; 'conv', kernels of convolutions, which have four axes; or
      'last', the second half of the tensors.
    order: of their definition, see `Model.order`; needed by 'last'.
  """
  flat, paths = jax.tree.leaves(params), tensor_paths(params)
  late = set(order[len(order) // 2 :])
  return [
    i
    for i, (leaf, path) in enumerate(zip(flat, paths))
    if leaves == 'all'
    or (leaves == 'conv' and jnp.ndim(leaf) == 4)
    or (leaves == 'last' and path in late)
  ]


def select(
  params: Params,
  scored: Params,
  k: int | float,
  *,
  granularity: Granularity = 'scalar',
  direction: Direction = 'largest',
  scope: Scope = 'tree',
  leaves: Leaves = 'all',
  order: tuple[str, ...] = (),
) -> Mask:
  """The scalars with the k largest scores, or with the k smallest.

  Args:
    params: pytree of float arrays.
    scored: tree like it.
    k: how many (int) or which share (float); of each tensor with
      `scope='leaf'`, there at most its size.
    granularity: what k counts, scalars or whole tensors.
    direction: 'smallest' takes all but the others; of equal scores the later
      scalars.
    scope: whether all are ranked together or each tensor by itself.
    leaves: which tensors take part, see `among`.
    order: see `among`.

  Returns:
    Boolean tree like `params`.
  """
  if leaves == 'all' and scope == 'tree' and direction == 'largest':
    return masks.topk_mask(params, scored, k, granularity=granularity)
  flat, treedef = jax.tree.flatten(params)
  found = [jnp.zeros(leaf.shape, bool) for leaf in flat]
  chosen, ranks = among(params, leaves, order), jax.tree.leaves(scored)
  groups = [chosen] if scope == 'tree' else [[i] for i in chosen]
  for group in groups:
    own = [flat[i] for i in group]
    size = len(own) if granularity == 'leaf' else tensors.size_of(own)
    number = k if isinstance(k, float) else min(k, size)
    wanted = int(tensors.number('k', number, size))
    wanted = size - wanted if direction == 'smallest' else wanted
    parts = [jnp.zeros(leaf.shape, bool) for leaf in own]
    if wanted:
      of = [ranks[i] for i in group]
      parts = masks.topk_mask(own, of, wanted, granularity=granularity)
    for i, part in zip(group, parts):
      found[i] = ~part if direction == 'smallest' else part
  return jax.tree.unflatten(treedef, found)
