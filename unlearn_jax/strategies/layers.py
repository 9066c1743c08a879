"""The baselines that train the last tensors only (Goel et al., 2022)."""

import functools

import jax

from unlearn_jax import masks, perturbation, training
from unlearn_jax.base import Context, Params, require
from unlearn_jax.objectives import Term, retained
from unlearn_jax.strategies.base import BASELINE, Edit, Strategy, trained


@trained
def eu_k(k: int = 5) -> Strategy:
  """EU-K: the last K tensors start afresh and learn D_RE; the rest is frozen.

  Zuo et al., §IV-A; their §IV-C3 swaps it with CF-K. Last is meant in the
  order in which the model defines its tensors: only this gives Table I.

  Args:
    k: K, in tensors.
  """
  return _last_k('EU-K', _afresh, k)


@trained
def cf_k(k: int = 5) -> Strategy:
  """CF-K: the last K tensors learn D_RE as they are; the rest is frozen.

  Zuo et al., §IV-A: whether forgetting comes from training on alone.

  Args:
    k: K, in tensors.
  """
  return _last_k('CF-K', _as_they_are, k)


def _last_k(label, edit, k) -> Strategy:
  require('k', k, k >= 1, '1 or more')
  return Strategy(
    label,
    BASELINE,
    functools.partial(edit, k=k),
    (Term(retained),),
    moves='tensors',
    check=functools.partial(_require_tensors, k=k),
  )


def _afresh(context: Context, k: int) -> Edit:
  params = context.source.params
  mask = masks.last_k_mask(params, k, context.model.order)
  fresh = training.initialize(context.keys.fresh, context.model).params
  return Edit(perturbation.reinitialize(params, fresh, mask), mask)


def _as_they_are(context: Context, k: int) -> Edit:
  params = context.source.params
  return Edit(params, masks.last_k_mask(params, k, context.model.order))


def _require_tensors(params: Params, order: tuple[str, ...], k: int) -> None:
  del order
  most = len(jax.tree.leaves(params))
  require('k', k, k <= most, f'1 to {most}, the tensors')
