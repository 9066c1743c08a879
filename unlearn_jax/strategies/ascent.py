"""Methods that climb the loss on D_UL, and descend it on D_RE."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from unlearn_jax import parallel
from unlearn_jax.base import Batch, Context, axis_is_bound, require
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import Term, cross_entropy, forgotten, retained
from unlearn_jax.strategies.base import METHOD, Edit, Strategy, trained
from unlearn_jax.strategies.choosing import scores

BatchNorm = Literal['batch', 'running']


@trained
def neggrad_plus(
  alpha: float = 0.95,
  *,
  bounded: bool = True,
  batch_norm: BatchNorm = 'batch',
) -> Strategy:
  """NegGrad+: α · CE(D_RE) − (1 − α) · CE(D_UL), a batch of each a step.

  Kurmanji et al., 2023. α = 1 is fine-tuning, α = 0 gradient ascent, of which
  an epoch is a pass over D_UL.

  Costs two batches a step. Fails by climbing without end, or by the batch of
  D_UL in BatchNorm's evaluation mode. Its knob is α. The reference trains at
  0.01 of SGD for 10 epochs.

  Args:
    alpha: α in [0, 1].
    bounded: whether an example is left alone once its loss is that of chance,
      log C.
    batch_norm: how D_UL is normalised, see `Term`; the reference has both.
  """
  require('alpha', alpha, 0 <= alpha <= 1, '0 to 1')
  loss = _bounded if bounded else None
  down, up = Term(retained, weight=alpha), None
  if alpha < 1:
    up = Term(forgotten, loss, alpha - 1, batch_norm=batch_norm)
  terms = tuple(t for t in (down, up) if t and t.weight)
  return Strategy(
    'NegGrad+',
    METHOD,
    terms=terms,
  )


def _bounded(logits: jax.Array, batch: Batch) -> jax.Array:
  chance = math.log(logits.shape[-1])
  return jnp.minimum(cross_entropy(logits, batch.labels), chance)


@trained
def sfron(
  alpha: float = 25.0,
  *,
  power: float = 0.5,
  threshold: float = 1.0,
  every: int = 5,
  clip: float = 7.0,
  examples: int = 1024,
) -> Strategy:
  """SFR-on: now and then a masked step up on D_UL, always one down on D_RE.

  Every m-th step adds −α_t · mean of w_i · CE_i over a batch of D_UL, with
  w_i ∝ CE_i^−λ of mean 1 and α_t annealed by a cosine; its gradient reaches
  the scalars with F_f / F_r ≥ γ only (Huang et al., 2024). The reference
  clips the step up by itself and runs two updates; here they are one, and
  all of its gradient is clipped.

  Costs two gradients of `examples` images one by one, then 1 + 1/m batches a
  step. Fails by too large an α_0, which is its knob. The reference trains at
  0.01 of SGD and a cosine for some four epochs.

  Args:
    alpha: α_0 ≥ 0.
    power: λ ≥ 0; 0 weights all alike.
    threshold: γ.
    every: m.
    clip: the largest L2 norm of a step's gradient.
    examples: of each set, that F averages.
  """
  require('alpha', alpha, 0 <= alpha < math.inf, '0 or more')
  require('power', power, 0 <= power < math.inf, '0 or more')
  require('threshold', threshold, 0 <= threshold < math.inf, '0 or more')
  require('every', every, every >= 1, '1 or more')
  require('clip', clip, 0 < clip < math.inf, 'above 0')
  require('examples', examples, examples >= 1, '1 or more')

  def edit(context: Context) -> Edit:
    ratio = scores(context, 'fisher_ratio', count=examples)
    mask = jax.tree.map(lambda r: r >= threshold, ratio)
    return Edit(context.source.params, mask)

  up = Term(forgotten, _evened(power), _now_and_then(alpha, every), masked=True)
  return Strategy(
    'SFR-on',
    METHOD,
    edit,
    (Term(retained), up),
    transform=_clipped(clip),
  )


@functools.lru_cache(maxsize=64)
def _evened(power: float):
  def loss(logits: jax.Array, batch: Batch) -> jax.Array:
    own = cross_entropy(logits, batch.labels)
    weights = jax.lax.stop_gradient(jnp.maximum(own, 1e-6) ** -power)
    mean = weights.mean()
    return weights / (parallel.mean(mean) if axis_is_bound() else mean) * own

  return loss


@functools.lru_cache(maxsize=64)
def _now_and_then(alpha: float, every: int):
  def weight(step: Step) -> Any:
    share = step.number / jnp.maximum(step.total, 1)
    annealed = alpha * (1 + jnp.cos(math.pi * share)) / 2
    return jnp.where(step.number % every == 0, -annealed, 0.0)

  return weight


@functools.lru_cache(maxsize=64)
def _clipped(norm: float) -> optax.GradientTransformation:
  return optax.clip_by_global_norm(norm)
