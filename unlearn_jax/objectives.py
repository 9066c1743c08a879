"""What unlearning minimises: weighted terms, each on examples of its own."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import epoch
from unlearn_jax.base import (
  Array,
  Batch,
  Context,
  Examples,
  Model,
  ModelState,
  Params,
  require,
)
from unlearn_jax.divergences import js_divergence
from unlearn_jax.prediction import predict

Teacher = Literal['source', 'retrained', 'none']
# A step takes an eighth as many examples of D_UL as of D_RE.
_FORGET_SHARE = 1 / 8


class Term(NamedTuple):
  """weight(t) · mean loss on a batch of `examples` at step t.

  Attributes:
    examples: which they are; called once, before training.
    loss: `(logits [B, C], batch) -> [B]`; None is the model's own, on the
      labels. Programs are shared between trainings where it is the same
      object, so make it once, not anew in each call of a factory.
    weight: a number, or an Optax schedule of the step; below 0: ascent.
    share: of the batch size, in (0, 1], that a step takes of them.
    batch_norm: 'batch': by the statistics of the batch, which enter the
      running ones; 'running': by the running ones, which stay as they are.
  """

  examples: Callable[[Context], Examples]
  loss: Callable[[jax.Array, Batch], jax.Array] | None = None
  weight: float | optax.Schedule = 1.0
  share: float = 1.0
  batch_norm: str = 'batch'


def retained(context: Context) -> Examples:
  """D_RE."""
  return context.splits.retain


def forgotten(context: Context) -> Examples:
  """D_UL."""
  return context.splits.forget


def taught(
  teacher: Callable[[Context], ModelState],
  examples: Callable[[Context], Examples],
) -> Callable[[Context], Examples]:
  """Examples with a teacher's probabilities as `targets`.

  Args:
    teacher: whose probabilities, computed once; they are not augmented.
    examples: of which examples.

  Returns:
    What `Term.examples` takes.
  """

  def make(context: Context) -> Examples:
    own = examples(context)
    return own._replace(targets=predict(context.model, teacher(context), own))

  return make


def js_to_teacher(logits: jax.Array, batch: Batch) -> jax.Array:
  """JS(teacher ‖ student) in bits (Zuo et al., Eq. 8; Eq. 9 is misprinted).

  Args:
    logits: the student's, `[B, C]`.
    batch: with the teacher's probabilities as `targets`.

  Returns:
    `[B]`, in [0, 1].
  """
  assert batch.targets is not None
  student = jax.nn.softmax(logits.astype(jnp.float32))
  return js_divergence(batch.targets, student)


def guided(
  js_weight: float = 0.1, js_teacher: Teacher = 'source'
) -> tuple[Term, ...]:
  """CE(D_RE) + λ · mean over D_UL of JS(teacher ‖ student) (Eq. 10).

  The paper's Eq. 10 lacks the minus sign of the cross-entropy. The student
  sees D_UL with its running statistics, so that D_UL never enters them.

  Args:
    js_weight: λ ≥ 0; 0 leaves the second term out.
    js_teacher: 'source' (the paper's), 'retrained' or 'none'.

  Raises:
    ValueError: λ < 0.
  """
  require('js_weight', js_weight, 0 <= js_weight < math.inf, '0 or more')
  terms: tuple[Term, ...] = (Term(retained),)
  if js_weight and js_teacher != 'none':
    terms += (
      Term(
        taught(_TEACHERS[js_teacher], forgotten),
        js_to_teacher,
        float(js_weight),
        _FORGET_SHARE,
        'running',
      ),
    )
  return terms


def _source(context: Context) -> ModelState:
  return context.source


def _retrained(context: Context) -> ModelState:
  if context.retrained is None:
    raise ValueError("js_teacher='retrained' needs retrained, which is None")
  return context.retrained


_TEACHERS = {'source': _source, 'retrained': _retrained}


def total(
  terms: Sequence[Term], penalty: Callable[[Params], Array] | None = None
) -> epoch.Loss:
  """Σ weight(t) · mean loss of a term, plus the penalty of the parameters.

  Args:
    terms: at least one.
    penalty: `params -> scalar`, or None.

  Returns:
    A loss of one batch a term, in their order; the same object for the same
    losses, weights and penalty.
  """
  parts = tuple((t.loss, t.weight, t.batch_norm) for t in terms)
  return _total(parts, penalty)


@functools.lru_cache(maxsize=64)
def _total(
  parts: tuple[tuple[Any, Any, str], ...],
  penalty: Callable[[Params], Array] | None,
) -> epoch.Loss:
  def loss(
    model: Model, state: ModelState, batches: tuple[Batch, ...], t: jax.Array
  ) -> tuple[jax.Array, Any]:
    # Terms in training mode build upon each other's statistics; the others
    # see those that the step began with.
    value, trained = jnp.float32(0.0), state
    for (own, weight, batch_norm), batch in zip(parts, batches, strict=True):
      if batch_norm == 'batch':
        logits, batch_stats = model.apply(trained, batch.images, True)
        trained = trained._replace(batch_stats=batch_stats)
      else:
        logits, _ = model.apply(state, batch.images, False)
      each = own(logits, batch) if own else model.loss(logits, batch.labels)
      mean = each.mean()
      if weight != 1.0:
        mean = (weight(t) if callable(weight) else weight) * mean
      value = value + mean
    if penalty is not None:
      value = value + penalty(state.params)
    return value, trained.batch_stats

  return loss
