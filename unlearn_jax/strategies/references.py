"""Retrain, which is what forgetting should look like, and plain fine-tuning."""

import jax
import jax.numpy as jnp

from unlearn_jax import training
from unlearn_jax.base import Context
from unlearn_jax.objectives import Teacher, Term, guided, retained
from unlearn_jax.strategies.base import (
  CONTROL,
  REFERENCE,
  Edit,
  Strategy,
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
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
) -> Strategy:
  """K = 0: the same training with nothing perturbed, which all have to beat.

  Args:
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
  """
  return Strategy(
    'Fine-tune only (K = 0)',
    CONTROL,
    terms=guided(js_weight, js_teacher),
    needs_retrained=js_teacher == 'retrained',
  )


@trained
def scratch() -> Strategy:
  """A fresh model learns D_RE for the budget of the methods: their control.

  It is exact: it never sees D_UL. A method that is no nearer to Retrain, or
  no better on test data, has no reason to be run. Its knob is the rate, which
  has to be its own.
  """
  return Strategy(
    'From scratch',
    CONTROL,
    _afresh,
    (Term(retained),),
  )


def _afresh(context: Context) -> Edit:
  fresh = training.initialize(context.keys.fresh, context.model).params
  everything = jax.tree.map(lambda w: jnp.ones(w.shape, bool), fresh)
  return Edit(fresh, everything)
