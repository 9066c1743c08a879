"""Retrain; its controls; and the baselines that train the last tensors only."""

import jax
import jax.numpy as jnp

from unlearn_jax import masks, perturbation
from unlearn_jax.base import Context, Params, require
from unlearn_jax.objectives import Teacher, Term, retained
from unlearn_jax.strategies.base import (
  BASELINE,
  CONTROL,
  REFERENCE,
  Edit,
  Strategy,
  fresh,
  guidance,
  trained,
)


def retrain() -> Strategy:
  """A fresh model learns D_RE as the source learned D: the reference.

  It never sees D_UL, follows the source's recipe to the end, and is guided by
  nobody (Zuo et al., §IV-A).

  Example:
    >>> retrain().follows
    'recipe'
  """
  return Strategy(
    'Retrain', REFERENCE, _afresh, (Term(retained),), follows='recipe'
  )


@trained
def finetune(
  js_weight: float = 0.0, js_teacher: Teacher = 'source'
) -> Strategy:
  """Fine-tuning on D_RE with nothing perturbed, which all have to beat.

  The paper's K = 0 is `js_weight=0.1`: it holds D_UL to the source's outputs.

  Args:
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
  """
  guide = guidance(js_weight, js_teacher)
  return Strategy('Fine-tune only (K = 0)', CONTROL, **guide)


@trained
def scratch() -> Strategy:
  """A fresh model learns D_RE for the budget of the methods: their control.

  It is exact: it never sees D_UL. A method that is no nearer to Retrain, or
  no better on test data, has no reason to be run. Its knob is the rate, which
  has to be its own.
  """
  return Strategy('From scratch', CONTROL, _afresh, (Term(retained),))


def _afresh(context: Context) -> Edit:
  params = fresh(context).params
  return Edit(params, jax.tree.map(lambda w: jnp.ones(w.shape, bool), params))


@trained
def eu_k(k: int = 5) -> Strategy:
  """EU-K: the last K tensors start afresh and learn D_RE; the rest is frozen.

  Zuo et al., §IV-A; their §IV-C3 swaps it with CF-K. Last is meant in the
  order in which the model defines its tensors: only this gives Table I.

  Args:
    k: K, in tensors.
  """
  return _last_k('EU-K', k, afresh=True)


@trained
def cf_k(k: int = 5) -> Strategy:
  """CF-K: the last K tensors learn D_RE as they are; the rest is frozen.

  Zuo et al., §IV-A: whether forgetting comes from training on alone.

  Args:
    k: K, in tensors.
  """
  return _last_k('CF-K', k, afresh=False)


def _last_k(label: str, k: int, *, afresh: bool) -> Strategy:
  require('k', k, k >= 1, '1 or more')

  def edit(context: Context) -> Edit:
    params = context.source.params
    mask = masks.last_k_mask(params, k, context.model.order)
    if not afresh:
      return Edit(params, mask)
    new = perturbation.reinitialize(params, fresh(context).params, mask)
    return Edit(new, mask)

  def check(params: Params, order: tuple[str, ...]) -> None:
    del order
    most = len(jax.tree.leaves(params))
    require('k', k, k <= most, f'1 to {most}, the tensors')

  terms = (Term(retained),)
  return Strategy(label, BASELINE, edit, terms, moves='tensors', check=check)
