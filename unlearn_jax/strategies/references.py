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
  require_training,
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


def finetune(
  js_weight: float = 0.1,
  js_teacher: Teacher = 'source',
  *,
  learning_rate: float | None = None,
  epochs: int | None = None,
) -> Strategy:
  """K = 0: the same training with nothing perturbed, which all have to beat.

  Args:
    js_weight: λ of Eq. 10.
    js_teacher: whose outputs guide.
    learning_rate: of the training; None is the budget's.
    epochs: likewise.

  Raises:
    ValueError: a number out of range.
  """
  require_training(learning_rate, epochs)
  return Strategy(
    'Fine-tune only (K = 0)',
    CONTROL,
    terms=guided(js_weight, js_teacher),
    learning_rate=learning_rate,
    epochs=epochs,
    needs_retrained=js_teacher == 'retrained',
  )


def _afresh(context: Context) -> Edit:
  fresh = training.initialize(context.keys.fresh, context.model).params
  everything = jax.tree.map(lambda w: jnp.ones(w.shape, bool), fresh)
  return Edit(fresh, everything)
