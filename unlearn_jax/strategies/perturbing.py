"""The paper's perturbations, and the control that draws its scalars by lot."""

import functools
import math
from typing import Any, Literal

import jax
import numpy as np

from unlearn_jax import masks, perturbation
from unlearn_jax.base import Batch, Context, Key, Mask, Params, require
from unlearn_jax.masks import arguments
from unlearn_jax.objectives import Teacher, guided
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.strategies.base import (
  CONTROL,
  METHOD,
  Edit,
  Strategy,
  require_training,
)

Granularity = Literal['scalar', 'leaf']
Objective = Literal['loss', 'output_norm']
Reduction = Literal['mean_abs', 'mean', 'single']
Rule = Literal['scale', 'donor', 'tree_donor']
Moves = Literal['all', 'scalars']


def top_k(
  k: int | float = 45,
  epsilon: float = -1.0,
  *,
  granularity: Granularity = 'scalar',
  objective: Objective = 'loss',
  reduction: Reduction = 'mean_abs',
  examples: int = 256,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
  learning_rate: float | None = None,
  epochs: int | None = None,
) -> Strategy:
  """The K most sensitive scalars become ω + ε·ω (Zuo et al., §III-B, Eq. 7).

  s = |∂F/∂ω| (Eq. 5 and 6) says how sensitive a scalar is. Then D_RE is
  trained on, guided by the JS divergence to the source on D_UL (Eq. 10).

  Args:
    k: K, how many (int) or which share (float) of the scalars; how many
      tensors with `granularity='leaf'`.
    epsilon: ε; the paper calls it small without a number. −1 zeroes.
    granularity: what K counts: scalars, or leaves (tensors).
    objective: F, see `sensitivity.model_objective`.
    reduction: see `sensitivity.gradient_sensitivity`.
    examples: of D, that the sensitivity averages.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves: all (Algorithm 1), or those that
      were perturbed (Theorem 1).
    learning_rate: of the training; None is the budget's.
    epochs: likewise.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> top_k(k=45, epsilon=-1.0).label
    'Top-K'
  """
  shared = _shared(
    k, epsilon, js_weight, js_teacher, moves, learning_rate, epochs
  )
  require('examples', examples, examples >= 1, '1 or more')
  score = functools.partial(
    _sensitivity, objective=objective, reduction=reduction, count=examples
  )

  def edit(context: Context) -> Edit:
    params = context.source.params
    mask = masks.topk_mask(params, score(context), k, granularity=granularity)
    return Edit(perturbation.perturb(params, mask, epsilon), mask)

  return Strategy(
    'Top-K',
    METHOD,
    edit,
    **shared,
    check=functools.partial(_require_k, k=k, granularity=granularity),
  )


def random_scalars(
  k: int | float = 45,
  epsilon: float = -1.0,
  *,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
  learning_rate: float | None = None,
  epochs: int | None = None,
) -> Strategy:
  """As many scalars as Top-K perturbs, drawn by lot: what choosing is worth.

  Args:
    k: K, scalars or a share of them, as in `top_k`; beside a Top-K of tensors,
      as many scalars as those have.
    epsilon: as in `top_k`, and so are all others.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves.
    learning_rate: of the training.
    epochs: likewise.

  Raises:
    ValueError: a number out of range.
  """
  shared = _shared(
    k, epsilon, js_weight, js_teacher, moves, learning_rate, epochs
  )

  def edit(context: Context) -> Edit:
    params = context.source.params
    mask = masks.randomk_mask(_lot(context), params, k)
    return Edit(perturbation.perturb(params, mask, epsilon), mask)

  return Strategy(
    'K random scalars',
    CONTROL,
    edit,
    **shared,
    check=functools.partial(_require_k, k=k, granularity='scalar'),
  )


def random_k(
  ratio: float = 0.05,
  epsilon: float = 1.0,
  *,
  rule: Rule = 'scale',
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
  learning_rate: float | None = None,
  epochs: int | None = None,
) -> Strategy:
  """A share k of all scalars, drawn by lot, is perturbed (§III-B).

  Args:
    ratio: k, a share of all scalars in (0, 1].
    epsilon: ε.
    rule: scale, ω + ε·ω (Eq. 7); (tree_)donor, (1 − ε)·ω + ε·ω_j, another
      chosen weight of its tensor (Algorithm 1, line 12), or of any.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves, see `top_k`.
    learning_rate: of the training; None is the budget's.
    epochs: likewise.

  Raises:
    ValueError: a number out of range.
  """
  shared = _shared(
    1, epsilon, js_weight, js_teacher, moves, learning_rate, epochs
  )
  _require_ratio(ratio)

  def edit(context: Context) -> Edit:
    params = context.source.params
    mask = masks.randomk_mask(_lot(context), params, float(ratio))
    return Edit(_changed(context, mask, epsilon, rule), mask)

  return Strategy('Random-k', METHOD, edit, **shared)


def random_top_k(
  k: int | float = 45,
  ratio: float = 0.05,
  epsilon: float = 1.0,
  *,
  rule: Rule = 'scale',
  objective: Objective = 'loss',
  reduction: Reduction = 'mean_abs',
  examples: int = 256,
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  moves: Moves = 'all',
  learning_rate: float | None = None,
  epochs: int | None = None,
) -> Strategy:
  """Random-k's scalars, K of which have made way for the Top-K (§IV-C4).

  Args:
    k: K, as in `top_k`.
    ratio: k, as in `random_k`, the Top-K included.
    epsilon: ε.
    rule: as in `random_k`.
    objective: F, see `sensitivity.model_objective`.
    reduction: see `sensitivity.gradient_sensitivity`.
    examples: of D, that the sensitivity averages.
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    moves: which scalars the training moves, see `top_k`.
    learning_rate: of the training; None is the budget's.
    epochs: likewise.

  Raises:
    ValueError: a number out of range.
  """
  shared = _shared(
    k, epsilon, js_weight, js_teacher, moves, learning_rate, epochs
  )
  _require_ratio(ratio)
  require('examples', examples, examples >= 1, '1 or more')

  def edit(context: Context) -> Edit:
    params = context.source.params
    scores = _sensitivity(context, objective, reduction, examples)
    mask = masks.random_topk_mask(
      _lot(context), params, scores, float(ratio), k
    )
    return Edit(_changed(context, mask, epsilon, rule), mask)

  def check(params: Params, order: tuple[str, ...]) -> None:
    _require_k(params, order, k=k, granularity='scalar')
    size = arguments.size_of(params)
    chosen = arguments.number('k', k, size)
    drawn = arguments.number('ratio', float(ratio), size)
    allowed = f'shares of at least K = {chosen} of {size} scalars'
    require('ratio', ratio, bool(chosen <= drawn), allowed)

  return Strategy('Random-TopK', METHOD, edit, **shared, check=check)


def _sensitivity(
  context: Context, objective: str, reduction: str, count: int
) -> Params:
  """|∂F/∂ω| over some examples of D, drawn by lot."""
  train, source = context.splits.train, context.source
  sample_key, _ = jax.random.split(context.keys.choose)
  drawn = jax.random.choice(
    sample_key, train.size, (min(count, train.size),), replace=False
  )
  chosen = train.take(np.asarray(drawn))
  rows = np.asarray(chosen.indices)
  return gradient_sensitivity(
    model_objective(context.model, objective),
    source.params,
    Batch(chosen.images[rows], chosen.labels[rows]),
    source.batch_stats,
    reduction=reduction,
  )


def _lot(context: Context) -> Key:
  """By which scalars are drawn."""
  return jax.random.split(context.keys.choose)[1]


def _changed(
  context: Context, mask: Mask, epsilon: float, rule: Rule
) -> Params:
  params, key = context.source.params, context.keys.change
  if rule == 'scale':
    return perturbation.perturb(params, mask, epsilon)
  scope = 'tensor' if rule == 'donor' else 'tree'
  return perturbation.donor_mix(key, params, mask, epsilon, scope=scope)


def _shared(
  k: int | float,
  epsilon: float,
  js_weight: float,
  js_teacher: Teacher,
  moves: Moves,
  learning_rate: float | None,
  epochs: int | None,
) -> dict[str, Any]:
  """What all of them check, and what they do after the perturbation."""
  whole = isinstance(k, int) and k >= 1
  share = isinstance(k, float) and 0 < k <= 1
  allowed = 'a whole number from 1, or a share above 0 and at most 1'
  require('k', k, (whole or share) and not isinstance(k, bool), allowed)
  require('epsilon', epsilon, abs(epsilon) < math.inf, 'a finite number')
  require_training(learning_rate, epochs)
  return {
    'terms': guided(js_weight, js_teacher),
    'moves': moves,
    'learning_rate': learning_rate,
    'epochs': epochs,
    'needs_retrained': js_teacher == 'retrained',
  }


def _require_ratio(ratio: float) -> None:
  require('ratio', ratio, 0 < ratio <= 1, 'above 0 and at most 1')


def _require_k(
  params: Params,
  order: tuple[str, ...],
  k: int | float,
  granularity: Granularity,
) -> None:
  """K against the scalars or tensors that there are."""
  del order
  unit, most = 'scalars', arguments.size_of(params)
  if granularity == 'leaf':
    unit, most = 'tensors', len(jax.tree.leaves(params))
  holds = isinstance(k, float) or k <= most
  require('k', k, holds, f'1 to {most}, the {unit}')
