"""Methods that teach D_UL other labels."""

from typing import Literal

import jax

from unlearn_jax import adversaries
from unlearn_jax.base import Batch, Context, Examples, require
from unlearn_jax.objectives import Term, cross_entropy, forgotten, retained
from unlearn_jax.strategies.base import METHOD, Edit, Strategy, keep, trained
from unlearn_jax.strategies.choosing import scores, select

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
  |Σ ∂CE/∂ω| over D_UL moves (Fan et al., 2024). `ratio=1` is random labels.

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
    METHOD,
    edit if ratio < 1 else keep,
    (Term(forgotten, drawn, masked=masked), Term(retained, masked=masked)),
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
  scaled to that on D. Adversaries are not augmented.

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
    found, _ = adversaries.nearest(
      context.model,
      context.source,
      context.splits.forget,
      epsilon=epsilon,
      steps=steps,
    )
    return found

  return Strategy(
    'AMUN',
    METHOD,
    terms=(
      Term(_everything if with_forget else retained),
      Term(near, share=None),
    ),
  )


def _everything(context: Context) -> Examples:
  return context.splits.train


@trained
def boundary_shrink(epsilon: float = 0.1) -> Strategy:
  """Boundary shrink: D_UL gets the classes that the source gives x + ε·sign.

  CE(D_UL, argmax f(x + ε · sign(∂CE/∂x))) with f the source (Chen et al.,
  2023); D_RE is not looked at, an epoch is a pass over D_UL.

  Costs one gradient of D_UL, then passes over it. Fails by damaging all classes
  unless the rate, its knob, is tiny. The reference trains at 1e-5 of SGD for 10
  epochs.

  Args:
    epsilon: ε, a share of the range of pixels.
  """
  require('epsilon', epsilon, 0 < epsilon <= 1, 'above 0 and at most 1')

  def across(context: Context) -> Examples:
    model, source, forget = context.model, context.source, context.splits.forget
    return adversaries.relabelled(model, source, forget, epsilon)

  return Strategy(
    'Boundary shrink',
    METHOD,
    terms=(Term(across),),
  )
