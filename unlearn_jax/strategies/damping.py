"""A method that only damps weights, and trains nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Batch, Context, Examples, Params, require
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.strategies.base import METHOD, Edit, Strategy
from unlearn_jax.strategies.choosing import Objective


def ssd(
  alpha: float = 10.0,
  lam: float = 1.0,
  *,
  importance: Objective = 'loss',
  examples: int = 4096,
) -> Strategy:
  """SSD: ω ← ω · min(λ·F/F_f, 1) where F_f > α·F; nothing is trained.

  F and F_f are the means of squared gradients of single examples of D and of
  D_UL (Foster et al., 2024), which the reference takes of batches, so that its
  α depends on their size; with `output_norm`, which needs no labels, those of
  |∂‖f(x)‖²/∂ω| (LFSSD).

  Costs a gradient of each example. Made for classes: on a random D_UL it does
  nothing, or with α < 1 ruins every class. α is its knob.

  Args:
    alpha: α > 0.
    lam: λ > 0.
    importance: of which F is the size.
    examples: of each set, drawn by lot, that F averages at most.
  """
  require('alpha', alpha, 0 < alpha < math.inf, 'above 0')
  require('lam', lam, 0 < lam < math.inf, 'above 0')
  require('examples', examples, examples >= 1, '1 or more')

  def size(context: Context, part: Examples) -> Params:
    count = min(examples, part.size)
    drawn = jax.random.permutation(context.keys.choose, part.size)[:count]
    own = part.take(np.asarray(drawn))
    rows = np.asarray(own.indices)
    return gradient_sensitivity(
      model_objective(context.model, importance),
      context.source.params,
      Batch(own.images[rows], own.labels[rows]),
      context.source.batch_stats,
      reduction='mean_square' if importance == 'loss' else 'mean_abs',
    )

  def edit(context: Context) -> Edit:
    params, splits = context.source.params, context.splits
    forget, every = size(context, splits.forget), size(context, splits.train)
    mask = jax.tree.map(lambda f, d: f > alpha * d, forget, every)
    damped = jax.tree.map(
      lambda w, f, d, m: jnp.where(
        m, (w * jnp.minimum(lam * d / f, 1)).astype(w.dtype), w
      ),
      *(params, forget, every, mask),
    )
    return Edit(damped, mask)

  return Strategy('SSD', METHOD, edit)
