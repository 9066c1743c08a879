"""Methods that unlearn D_UL: they climb its loss, or teach it other labels."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import parallel
from unlearn_jax.base import Batch, Context, Examples, axis_is_bound, require
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import Term, cross_entropy, forgotten, retained
from unlearn_jax.strategies.base import Edit, Strategy, keep, trained
from unlearn_jax.strategies.choosing import scores, select

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
  return Strategy('NegGrad+', terms=terms)


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
  terms = Term(retained), up
  return Strategy('SFR-on', edit=edit, terms=terms, transform=_clipped(clip))


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


_clipped = functools.lru_cache(maxsize=64)(optax.clip_by_global_norm)


Labels = Literal['uniform', 'other']
MaskMode = Literal['hard', 'gradient']


@trained
def salun(
  ratio: float = 0.5,
  *,
  labels: Labels = 'uniform',
  mask_mode: MaskMode = 'hard',
  examples: int = 1024,
) -> Strategy:
  """SalUn: random labels for D_UL, learned by its most salient scalars alone.

  A pass over D_UL with labels that are drawn anew in each batch, then one
  over D_RE, under one optimiser; only the share of scalars with the largest
  |Σ ∂CE/∂ω| over D_UL moves (Fan et al., 2024). `ratio=1` is random labels. The
  mask is of plain images, the reference's of augmented ones.

  Costs one gradient of `examples` images and a pass over both sets an epoch.
  Fails by being unsure where Retrain is not: right accuracy, wrong confidence.
  Its knob is the rate. The reference trains at 0.013 of SGD for 10 epochs.

  Args:
    ratio: the share of scalars, in (0, 1].
    labels: uniform over all classes, or over the other ones.
    mask_mode: 'hard': all other scalars stay bit for bit. 'gradient': their
      gradient is 0, but the optimiser may still move them by weight decay,
      as in the reference before 2026-02.
    examples: of D_UL, that the mask is made from.
  """
  require('ratio', ratio, 0 < ratio <= 1, 'above 0 and at most 1')
  require('examples', examples, examples >= 1, '1 or more')

  def edit(context: Context) -> Edit:
    params = context.source.params
    found = scores(context, 'forget', reduction='mean', count=examples)
    return Edit(params, select(params, found, float(ratio)))

  masked = ratio < 1 and mask_mode == 'gradient'
  drawn = _uniform if labels == 'uniform' else _other
  return Strategy(
    'SalUn' if ratio < 1 else 'Random labels',
    edit=edit if ratio < 1 else keep,
    terms=(
      Term(forgotten, drawn, masked=masked),
      Term(retained, masked=masked),
    ),
    passes=True,
    moves='scalars' if ratio < 1 and mask_mode == 'hard' else 'all',
  )


def _uniform(logits: jax.Array, batch: Batch) -> jax.Array:
  return cross_entropy(logits, _drawn(batch, 0, logits.shape[-1]))


def _other(logits: jax.Array, batch: Batch) -> jax.Array:
  count = logits.shape[-1]
  return cross_entropy(logits, (batch.labels + _drawn(batch, 1, count)) % count)


def _drawn(batch: Batch, least: int, end: int) -> jax.Array:
  assert batch.key is not None
  return jax.random.randint(batch.key, batch.labels.shape, least, end)


@trained
def amun(
  epsilon: float = 0.04,
  *,
  steps: int = 50,
  with_forget: bool = True,
) -> Strategy:
  """AMUN: D, and of D_UL the nearest adversaries with the classes they got.

  The shuffled union of D_RE, D_UL with its labels, and (x_adv, ŷ_adv) of
  each of D_UL is trained on (Ebrahimpour-Boroojeny et al., 2025); the loss is
  scaled to that on D. Adversaries are not augmented, and the few of a step are
  normalised by themselves, where the reference has one batch of all.

  Costs up to `steps` gradients of D_UL and more where radii double, then D and
  D_UL an epoch. Fails by lowering the confidence on D_UL below that on unseen
  data. Its knob is the number of epochs. The reference trains at 0.01 of SGD, a
  tenth of it after each epoch.

  Args:
    epsilon: the first radius, see `adversaries.nearest`.
    steps: of each radius, at most.
    with_forget: whether D_UL itself is trained on.
  """
  require('epsilon', epsilon, 0 < epsilon <= 1, 'above 0 and at most 1')
  require('steps', steps, steps >= 1, '1 or more')

  def near(context: Context) -> Examples:
    from unlearn_jax import adversaries  # Few need it.

    found, _ = adversaries.nearest(
      context.model,
      context.source,
      context.splits.forget,
      epsilon=epsilon,
      steps=steps,
    )
    return found

  own = Term(_everything if with_forget else retained)
  return Strategy('AMUN', terms=(own, Term(near, share=None, augmented=False)))


def _everything(context: Context) -> Examples:
  return context.splits.train


@trained
def boundary_shrink(epsilon: float = 0.1) -> Strategy:
  """Boundary shrink: D_UL gets the classes that the source gives x + ε·sign.

  CE(D_UL, argmax f(x + ε · sign(∂CE/∂x))) with f the source (Chen et al.,
  2023), of plain images; D_RE is not looked at, an epoch is a pass over D_UL.

  Costs one gradient of D_UL, then passes over it. Fails by damaging all classes
  unless the rate, its knob, is tiny. The reference trains at 1e-5 of SGD for 10
  epochs.

  Args:
    epsilon: ε, a share of the range of pixels.
  """
  require('epsilon', epsilon, 0 < epsilon <= 1, 'above 0 and at most 1')

  def across(context: Context) -> Examples:
    from unlearn_jax import adversaries

    model, source, forget = context.model, context.source, context.splits.forget
    _, classes = adversaries.fgsm(model, source, forget, epsilon)
    labels = np.array(forget.labels)
    labels[np.asarray(forget.indices)] = classes
    return forget._replace(labels=labels)

  return Strategy('Boundary shrink', terms=(Term(across),))
