"""Methods in which teachers say what D_UL and D_RE should look like."""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Batch, Context, Examples, ModelState, require
from unlearn_jax.data import class_matched
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import (
  TEACHING,
  Term,
  class_means,
  cross_entropy,
  forgotten,
  heldout_of,
  kl_to_teacher,
  of_source,
  retained,
  taught,
)
from unlearn_jax.prediction import predict
from unlearn_jax.strategies.base import Strategy, fresh, trained


@trained
def scrub(
  alpha: float = 0.001,
  gamma: float = 0.99,
  *,
  temperature: float = 4.0,
  max_epochs: int = 2,
  rewind: bool = False,
) -> Strategy:
  """SCRUB: away from the source on D_UL, towards it on D_RE.

  In the first epochs a pass over D_UL that climbs KL(source ‖ student); in
  each a pass over D_RE that descends α · KL(source ‖ student) + γ · CE; KL at
  a temperature T, times T² (Kurmanji et al., 2023). At the source the first
  step has no gradient: what breaks the tie is BatchNorm's batch.

  Costs a pass over both sets an epoch. Fails by diverging, more so with T > 1;
  its knob is the rate. The reference trains at 5e-4 of SGD for 3 epochs.

  Args:
    alpha: α ≥ 0.
    gamma: γ ≥ 0.
    temperature: T > 0.
    max_epochs: how many epochs climb.
    rewind: whether the model is that of the epoch after which the error on
      D_UL was nearest to the last one's on held-out images of D_UL's classes,
      as frequent as there (SCRUB+R). Costs a copy of the model an epoch, and
      needs `splits.heldout`.

  Raises:
    ValueError: a number out of range, or α = γ = 0.
  """
  require('alpha', alpha, 0 <= alpha < math.inf, '0 or more')
  allowed = '0 or more, above 0 where alpha is 0'
  require('gamma', gamma, 0 <= gamma < math.inf and alpha + gamma > 0, allowed)
  require('temperature', temperature, 0 < temperature < math.inf, 'above 0')
  require('max_epochs', max_epochs, max_epochs >= 0, '0 or more')
  down = Term(retained, weight=gamma)
  if alpha:
    down = Term(
      taught(of_source, retained), _faithful(alpha, gamma, temperature)
    )
  up = Term(TEACHING['source'], _kl(temperature), _early(max_epochs))
  return Strategy(
    'SCRUB',
    terms=(up, down) if max_epochs else (down,),
    passes=True,
    pick=_rewound if rewind else None,
    needs_heldout=rewind,
  )


def _rewound(context: Context, models: Sequence[ModelState]) -> int:
  """The epoch from 1 whose error on D_UL is as on unseen images, or the last.

  Of several that are as near the latest.
  """

  def error(model: ModelState, examples: Examples) -> float:
    found = predict(context.model, model, examples).argmax(-1)
    return float((found != examples.own_labels).mean())

  forget, last = context.splits.forget, len(models) - 1
  unseen = class_matched(forget, heldout_of(context.splits))
  goal = error(models[last], unseen)
  gaps = [abs(error(model, forget) - goal) for model in models[1:]]
  return last - int(np.argmin(gaps[::-1])) if gaps else last


@functools.lru_cache(maxsize=64)
def _kl(temperature: float):
  """T² · KL(teacher ‖ student), both at temperature T."""

  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    assert batch.targets is not None
    teacher = jnp.log(jnp.maximum(batch.targets, 1e-30)) / temperature
    softened = batch._replace(targets=jax.nn.softmax(teacher))
    return temperature**2 * kl_to_teacher(logits / temperature, softened)

  return loss


@functools.lru_cache(maxsize=64)
def _faithful(alpha: float, gamma: float, temperature: float):
  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    near = alpha * _kl(temperature)(logits, batch)
    return near + gamma * cross_entropy(logits, batch.labels)

  return loss


@functools.lru_cache(maxsize=64)
def _early(epochs: int):
  def weight(step: Step) -> Any:
    return jnp.where(step.number < epochs * step.per_epoch, -1.0, 0.0)

  return weight


@trained
def bad_teacher(share: float = 0.3) -> Strategy:
  """Bad teacher: a fresh model's outputs on D_UL, the source's on D_RE.

  KL(teacher ‖ student) over a share of D_RE and all of D_UL (Chundawat et
  al., 2023). An epoch is a pass over that share.

  Costs less than a pass over D_RE an epoch. Fails before every strong attack:
  outputs near uniform are what no retrained model has. Its knob is the rate.
  The reference trains at 1e-4 of Adam for 1 epoch.

  Args:
    share: of D_RE, in (0, 1].
  """
  require('share', share, 0 < share <= 1, 'above 0 and at most 1')

  def part(context: Context) -> Examples:
    retain = context.splits.retain
    count = max(1, round(share * retain.size))
    drawn = jax.random.permutation(context.keys.choose, retain.size)[:count]
    return retain.take(np.asarray(drawn))

  near = Term(taught(of_source, part), kl_to_teacher)
  far = Term(taught(fresh, forgotten), kl_to_teacher, share=None)
  return Strategy('Bad teacher', terms=(near, far))


@trained
def regun(weight: float = 0.5) -> Strategy:
  """ReGUn: D_UL should look as held-out images of its class look to the source.

  λ · KL(q_y ‖ p) on D_UL plus (1 − λ) · CE(D_RE), a batch of each a step, with
  q_y the source's mean output on held-out images of class y (2026). The
  reference has one q for a batch, which pulls each example to a mixture of
  classes.

  Costs two batches a step. Needs `splits.heldout`. Fails by one output for a
  whole class. Its knob is λ. The reference trains at 0.01 of SGD without decay
  for 10 passes over D_UL.

  Args:
    weight: λ in (0, 1).
  """
  require('weight', weight, 0 < weight < 1, 'between 0 and 1')
  return Strategy(
    'ReGUn',
    terms=(
      Term(retained, weight=1 - weight),
      Term(class_means, kl_to_teacher, weight),
    ),
    needs_heldout=True,
  )
