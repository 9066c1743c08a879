"""The paper's perturbations, and the control that draws its scalars by lot."""

from collections.abc import Callable
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from unlearn_jax import masks, perturbation
from unlearn_jax.base import Context, Mask, Params, require
from unlearn_jax.masks import tensors
from unlearn_jax.objectives import Teacher
from unlearn_jax.strategies.base import (
  CONTROL,
  METHOD,
  Edit,
  Strategy,
  fresh,
  guidance,
  trained,
)
from unlearn_jax.strategies.choosing import (
  Direction,
  Granularity,
  Leaves,
  Objective,
  Reduction,
  Scope,
  Sensitivity,
  among,
  lot,
  scores,
  select,
)

Change = Literal['scale', 'donor', 'tree_donor', 'reinitialize']
Moves = Literal['all', 'scalars']


@trained
def top_k(
  k: int | float = 45,
  epsilon: float = -1.0,
  *,
  sensitivity: Sensitivity = 'all',
  direction: Direction = 'largest',
  change: Change = 'scale',
  scope: Scope = 'tree',
  leaves: Leaves = 'all',
  granularity: Granularity = 'scalar',
  objective: Objective = 'loss',
  reduction: Reduction = 'mean_abs',
  examples: int = 256,
  grad_scale: float = 1.0,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
) -> Strategy:
  """The K most sensitive scalars become ω + ε·ω (Zuo et al., §III-B, Eq. 7).

  s = |∂F/∂ω| (Eq. 5 and 6) says how sensitive a scalar is. Then D_RE is
  trained on, guided by the JS divergence to the source on D_UL (Eq. 10). The
  other scores, directions and changes aim it at D_UL, which the paper's does
  not look at.

  Args:
    k: K, how many (int) or which share (float) of the scalars; how many
      tensors with `granularity='leaf'`; of each tensor with `scope='leaf'`.
    epsilon: ε; the paper calls it small without a number. −1 zeroes. Of a
      donor the share, from 0 to 1, and to be given: 1 takes its value.
    sensitivity: the score, see `choosing.scores`.
    direction: whether the largest scores or the smallest are taken.
    change: scale, ω + ε·ω (Eq. 7); (tree_)donor, (1 − ε)·ω + ε·ω_j, another
      chosen weight of its tensor (Algorithm 1, line 12), or of any;
      reinitialize, a fresh model's weight, whatever ε.
    scope: whether all scalars are ranked together or each tensor's.
    leaves: which tensors take part, see `choosing.among`.
    granularity: what K counts: scalars, or leaves (tensors).
    objective: F, see `sensitivity.model_objective`.
    reduction: of `all` and `forget`, see `sensitivity.gradient_sensitivity`.
    examples: of each set, that a score averages.
    grad_scale: what the updates of scalars that took part and were not chosen
      are multiplied by.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves: all (Algorithm 1), or those that
      were perturbed (Theorem 1).

  Example:
    >>> top_k(k=45, epsilon=-1.0).label
    'Top-K'
  """
  shared = _shared(k, epsilon, js_weight, js_teacher, moves, change)
  require('examples', examples, examples >= 1, '1 or more')
  require('grad_scale', grad_scale, 0 <= grad_scale <= 1, '0 to 1')
  holds = granularity == 'scalar' or (scope, leaves) == ('tree', 'all')
  allowed = "'scalar' where scope or leaves are given"
  require('granularity', granularity, holds, allowed)

  def edit(context: Context) -> Edit:
    params, order = context.source.params, context.model.order
    scored = scores(
      context,
      sensitivity,
      objective=objective,
      reduction=reduction,
      count=examples,
    )
    mask = select(
      *(params, scored, k),
      granularity=granularity,
      direction=direction,
      scope=scope,
      leaves=leaves,
      order=order,
    )
    scales = None
    if grad_scale != 1:
      part = set(among(params, leaves, order))
      flat, treedef = jax.tree.flatten(mask)
      own = [
        jnp.where(m, 1.0, grad_scale) if i in part else jnp.ones(m.shape)
        for i, m in enumerate(flat)
      ]
      scales = jax.tree.unflatten(treedef, own)
    return Edit(_changed(context, mask, epsilon, change), mask, scales)

  check = functools.partial(
    _require_k, k=k, granularity=granularity, scope=scope, leaves=leaves
  )
  role = CONTROL if sensitivity == 'random' else METHOD
  return Strategy('Top-K', role, edit, **shared, check=check)


@trained
def msg(
  ratio: float = 0.3,
  grad_scale: float = 0.1,
  *,
  examples: int = 256,
) -> Strategy:
  """MSG: where D_UL and D_RE pull alike, convolutions start afresh.

  The share of each convolution's weights with the smallest |g_r − g_f| is
  re-initialised; D_RE is trained on, the kept weights of convolutions more
  slowly (Kookmin, second in the NeurIPS'23 challenge). It is
  `top_k(ratio, sensitivity='difference', direction='smallest', scope='leaf',
  leaves='conv', change='reinitialize', js_teacher='none')`.

  Costs two gradients of `examples` images, then the passes over D_RE. Fails by
  too few of these for a small model. Its knob is the rate; its control is that
  Top-K with `sensitivity='random'` and its `grad_scale`. The reference trains
  at 1e-3 of SGD for 5 epochs.

  Args:
    ratio: the share of each convolution, in (0, 1].
    grad_scale: what the updates of the kept weights are multiplied by; the
      reference scales gradients, which Adam would not feel.
    examples: of each set, that a gradient averages.
  """
  require('ratio', ratio, 0 < ratio <= 1, 'above 0 and at most 1')
  made = top_k(
    float(ratio),
    sensitivity='difference',
    direction='smallest',
    change='reinitialize',
    scope='leaf',
    leaves='conv',
    examples=examples,
    grad_scale=grad_scale,
    js_teacher='none',
  )
  return made._replace(label='MSG')


@trained
def random_scalars(
  k: int | float = 45,
  epsilon: float = -1.0,
  *,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
) -> Strategy:
  """As many scalars as Top-K perturbs, drawn by lot: what choosing is worth.

  Args:
    k: K, scalars or a share of them, as in `top_k`; beside a Top-K of tensors,
      as many scalars as those have.
    epsilon: as in `top_k`, and so are all others.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves.
  """
  shared = _shared(k, epsilon, js_weight, js_teacher, moves)
  check = functools.partial(_require_k, k=k)
  edit = _by_lot(k, epsilon, 'scale')
  return Strategy('K random scalars', CONTROL, edit, **shared, check=check)


@trained
def random_k(
  ratio: float = 0.05,
  epsilon: float = 1.0,
  *,
  change: Change = 'scale',
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
) -> Strategy:
  """A share k of all scalars, drawn by lot, is perturbed (§III-B).

  Args:
    ratio: k, a share of all scalars in (0, 1].
    epsilon: ε.
    change: as in `top_k`. What re-initialises by a mask of the whole tree has
      it as control, guided alike; else `top_k` with `sensitivity='random'`.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves, see `top_k`.
  """
  shared = _shared(1, epsilon, js_weight, js_teacher, moves, change)
  require('ratio', ratio, 0 < ratio <= 1, 'above 0 and at most 1')
  edit = _by_lot(float(ratio), epsilon, change)
  return Strategy('Random-k', edit=edit, **shared)


def _by_lot(
  k: int | float, epsilon: float, change: Change
) -> Callable[[Context], Edit]:
  def edit(context: Context) -> Edit:
    mask = masks.randomk_mask(lot(context), context.source.params, k)
    return Edit(_changed(context, mask, epsilon, change), mask)

  return edit


@trained
def random_top_k(
  k: int | float = 45,
  ratio: float = 0.05,
  epsilon: float = 1.0,
  *,
  change: Change = 'scale',
  objective: Objective = 'loss',
  reduction: Reduction = 'mean_abs',
  examples: int = 256,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
) -> Strategy:
  """Random-k's scalars, K of which have made way for the Top-K (§IV-C4).

  Args:
    k: K, as in `top_k`.
    ratio: k, as in `random_k`, the Top-K included.
    epsilon: ε.
    change: as in `top_k`.
    objective: F, see `sensitivity.model_objective`.
    reduction: see `sensitivity.gradient_sensitivity`.
    examples: of D, that the sensitivity averages.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves, see `top_k`.
  """
  shared = _shared(k, epsilon, js_weight, js_teacher, moves, change)
  require('ratio', ratio, 0 < ratio <= 1, 'above 0 and at most 1')
  require('examples', examples, examples >= 1, '1 or more')

  def edit(context: Context) -> Edit:
    params = context.source.params
    scored = scores(
      context, objective=objective, reduction=reduction, count=examples
    )
    mask = masks.random_topk_mask(lot(context), params, scored, float(ratio), k)
    return Edit(_changed(context, mask, epsilon, change), mask)

  def check(params: Params, order: tuple[str, ...]) -> None:
    _require_k(params, order, k=k)
    size = tensors.size_of(params)
    chosen = tensors.number('k', k, size)
    drawn = tensors.number('ratio', float(ratio), size)
    allowed = f'shares of at least K = {chosen} of {size} scalars'
    require('ratio', ratio, bool(chosen <= drawn), allowed)

  return Strategy('Random-TopK', edit=edit, **shared, check=check)


def _changed(
  context: Context, mask: Mask, epsilon: float, change: Change
) -> Params:
  params = context.source.params
  if change == 'scale':
    return perturbation.perturb(params, mask, epsilon)
  if change == 'reinitialize':
    return perturbation.reinitialize(params, fresh(context).params, mask)
  scope = 'tensor' if change == 'donor' else 'tree'
  key = context.keys.change
  return perturbation.donor_mix(key, params, mask, epsilon, scope=scope)


def _shared(
  k: int | float,
  epsilon: float,
  js_weight: float,
  js_teacher: Teacher,
  moves: Moves,
  change: Change = 'scale',
) -> dict[str, Any]:
  """What all of them check, and what they do after the perturbation."""
  whole = isinstance(k, int) and k >= 1
  share = isinstance(k, float) and 0 < k <= 1
  allowed = 'a whole number from 1, or a share above 0 and at most 1'
  require('k', k, (whole or share) and not isinstance(k, bool), allowed)
  require('epsilon', epsilon, abs(epsilon) < math.inf, 'a finite number')
  mixes = 0 <= epsilon <= 1 or 'donor' not in change
  require('epsilon', epsilon, mixes, f'0 to 1, the share, with {change=}')
  return {**guidance(js_weight, js_teacher), 'moves': moves}


def _require_k(
  params: Params,
  order: tuple[str, ...],
  k: int | float,
  granularity: Granularity = 'scalar',
  scope: Scope = 'tree',
  leaves: Leaves = 'all',
) -> None:
  """K against the scalars or tensors that there are."""
  flat = jax.tree.leaves(params)
  part = [flat[i] for i in among(params, leaves, order)]
  require('leaves', leaves, bool(part), 'tensors that the model has')
  sizes = tensors.sizes_of(part)
  unit, most = 'scalars', max(sizes) if scope == 'leaf' else sum(sizes)
  if granularity == 'leaf':
    unit, most = 'tensors', len(flat)
  holds = isinstance(k, float) or k <= most
  require('k', k, holds, f'1 to {most}, the {unit}')
