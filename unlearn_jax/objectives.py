"""What unlearning minimises: weighted terms, each on examples of its own."""

from collections.abc import Callable
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import epoch
from unlearn_jax.base import (
  Array,
  Batch,
  Context,
  Examples,
  InputError,
  Model,
  ModelState,
  Params,
  Splits,
  require,
)
from unlearn_jax.divergences import js_divergence
from unlearn_jax.epoch import Step
from unlearn_jax.prediction import predict

Teacher = Literal['source', 'retrained', 'heldout', 'none']
# A step takes an eighth as many examples of D_UL as of D_RE.
_FORGET_SHARE = 1 / 8


class Term(NamedTuple):
  """weight · mean loss on a batch of `examples`, at each step.

  Attributes:
    examples: which they are; called once, before training.
    loss: `(logits [B, C], batch) -> [B]`; None is the model's own, on the
      labels. Programs are shared between trainings where it is the same
      object, so make it once, not anew in each call of a factory.
    weight: a number, or a function of the `Step`; below 0: ascent. Where the
      function gives 0 the term is not computed.
    share: of the batch size, that a step takes of them; None is in proportion
      to their number beside the first term's, and `weight` is multiplied by
      it: so terms add up like a shuffled union, if normalised each by itself.
    batch_norm: 'batch': by the statistics of the batch, which enter the
      running ones; 'running': by the running ones, which stay as they are.
    masked: whether its gradient reaches the edit's mask only.
    augmented: whether its images are, where a training augments.
  """

  examples: Callable[[Context], Examples]
  loss: Callable[[jax.Array, Batch], jax.Array] | None = None
  weight: float | Callable[[Step], Any] = 1.0
  share: float | None = 1.0
  batch_norm: str = 'batch'
  masked: bool = False
  augmented: bool = True


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
    teacher: whose probabilities: on the images of a batch as they are
      augmented, in evaluation mode; where they are not, computed once.
    examples: of which examples.

  Returns:
    What `Term.examples` takes.
  """

  def make(context: Context) -> Examples:
    return examples(context)._replace(teacher=teacher(context))

  return make


def once(model: Model, examples: Examples) -> Examples:
  """With the teacher's probabilities on plain images in place of itself."""
  if examples.teacher is None:
    return examples
  found = predict(model, examples.teacher, examples)
  return examples._replace(targets=found, teacher=None)


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
    js_teacher: 'source' (the paper's), 'retrained', 'heldout', see
      `class_means`, or 'none'.

  Raises:
    ValueError: λ < 0.
  """
  require('js_weight', js_weight, 0 <= js_weight < math.inf, '0 or more')
  terms: tuple[Term, ...] = (Term(retained),)
  if js_weight and js_teacher != 'none':
    terms += (
      Term(
        TEACHING[js_teacher],
        js_to_teacher,
        float(js_weight),
        _FORGET_SHARE,
        'running',
      ),
    )
  return terms


def class_means(context: Context) -> Examples:
  """D_UL, taught by the source's mean output on held-out images of its class.

  Raises:
    InputError: no held-out data, or none of a class of D_UL.
  """
  heldout, forget = heldout_of(context.splits), context.splits.forget
  found = predict(context.model, context.source, heldout)
  labels, means = heldout.own_labels, np.zeros((found.shape[1],) * 2)
  for label in np.unique(forget.own_labels):
    means[label] = found[labels == label].mean(0)
  return forget._replace(targets=means[forget.own_labels].astype(np.float32))


def heldout_of(splits: Splits) -> Examples:
  """Held-out data with every class of D_UL.

  Raises:
    InputError: there are none, or none of a class.
  """
  heldout = splits.heldout
  if heldout is None:
    raise InputError(
      'splits.heldout=None, allowed: examples that are neither trained on nor'
      ' judged by'
    )
  for label in np.setdiff1d(splits.forget.own_labels, heldout.own_labels):
    raise InputError(f'splits.heldout has none of class {label}, allowed: some')
  return heldout


def of_source(context: Context) -> ModelState:
  """M."""
  return context.source


def _retrained(context: Context) -> ModelState:
  if context.retrained is None:
    raise ValueError("js_teacher='retrained' needs retrained, which is None")
  return context.retrained


# D_UL with a teacher's probabilities.
TEACHING = {
  'source': taught(of_source, forgotten),
  'retrained': taught(_retrained, forgotten),
  'heldout': class_means,
}


def kl_to_teacher(logits: jax.Array, batch: Batch) -> jax.Array:
  """KL(teacher ‖ student) in nats, `[B]`."""
  assert batch.targets is not None
  student = jax.nn.log_softmax(logits.astype(jnp.float32))
  own = jax.scipy.special.xlogy(batch.targets, batch.targets)
  return (own - batch.targets * student).sum(-1)


def cross_entropy(logits: jax.Array, labels: Array) -> jax.Array:
  """−log p of the label, `[B]`, in nats, whatever the model's own loss is."""
  return optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )


def _weight(term: Term, place: int, step: Step) -> Any:
  weight = term.weight(step) if callable(term.weight) else term.weight
  if step.turn is None:
    return weight
  return jnp.where(step.turn == place, weight, 0.0)


@functools.lru_cache(maxsize=64)
def active(
  terms: tuple[Term, ...], passes: bool = False
) -> Callable[[Step], Any] | None:
  """Whether a step computes any term at all; None where each one does.

  Args:
    terms: as in `total`.
    passes: whether a step is of one term only.

  Returns:
    The same object for the same terms.
  """
  changing = [callable(term.weight) for term in terms]
  if not (any(changing) if passes else all(changing)):
    return None

  def some(step: Step) -> Any:
    weights = [_weight(term, i, step) for i, term in enumerate(terms)]
    return jnp.stack([jnp.asarray(w) != 0 for w in weights]).any()

  return some


@functools.lru_cache(maxsize=64)
def total(
  terms: tuple[Term, ...],
  penalty: Callable[[Params, Step], Array] | None = None,
) -> epoch.Loss:
  """Σ weight · mean loss of a term, plus the penalty of the parameters.

  Args:
    terms: at least one; their examples and shares are not looked at.
    penalty: `(params, step) -> scalar`, or None.

  Returns:
    A loss of one batch a term, in their order; the same object for the same
    terms and penalty.
  """

  def loss(
    model: Model, state: ModelState, batches: tuple[Batch, ...], step: Step
  ) -> tuple[jax.Array, Any]:
    # Terms in training mode build upon each other's statistics; the others
    # see those that the step began with.
    value, batch_stats = jnp.float32(0.0), state.batch_stats
    for place, (term, batch) in enumerate(zip(terms, batches, strict=True)):
      own = state.params
      if term.masked and step.given is not None:
        own = jax.tree.map(_held, own, step.given)

      def mean(batch_stats, term=term, batch=batch, own=own):
        trains = term.batch_norm == 'batch'
        seen = ModelState(own, batch_stats if trains else state.batch_stats)
        if batch.teacher is not None:
          said, _ = model.apply(batch.teacher, batch.images, False)
          targets = jax.nn.softmax(said.astype(jnp.float32))
          batch = batch._replace(targets=targets)
        logits, found = model.apply(seen, batch.images, trains)
        if term.loss:
          each = term.loss(logits, batch)
        else:
          each = model.loss(logits.astype(jnp.float32), batch.labels)
        value = each.astype(jnp.float32).mean()
        return value, found if trains else batch_stats

      weight = _weight(term, place, step)
      if fixed := isinstance(weight, int | float):
        found, batch_stats = mean(batch_stats)
      else:
        nothing = jnp.float32(0.0)
        found, batch_stats = jax.lax.cond(
          weight != 0, mean, lambda kept, no=nothing: (no, kept), batch_stats
        )
      value = value + (found if fixed and weight == 1.0 else weight * found)
    if penalty is not None:
      value = value + penalty(state.params, step)
    return value, batch_stats

  return loss


def _held(param: jax.Array, chosen: jax.Array) -> jax.Array:
  """The parameter, through whose other scalars no gradient comes."""
  return jnp.where(chosen, param, jax.lax.stop_gradient(param))
