"""Methods that disturb or damp weights, and then learn D_RE or nothing."""

import functools
import math

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import optax

from unlearn_jax.base import Context, Params, require
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import Term, retained
from unlearn_jax.strategies.base import Edit, Strategy, fresh, trained
from unlearn_jax.strategies.choosing import Objective, among, gradients


@trained
def shrink_perturb(shrink: float = 0.4) -> Strategy:
  """Shrink and perturb: ω ← λ·ω + (1 − λ)·ω_fresh, then D_RE is learned.

  Ash and Adams, 2020, who add noise of a scale of its own; mixed like this it
  runs from a fresh model (λ = 0) to the source.

  Costs the passes over D_RE only. Fails by retain accuracy that few passes do
  not bring back. Its knob is λ.

  Args:
    shrink: λ in [0, 1].
  """
  require('shrink', shrink, 0 <= shrink <= 1, '0 to 1')

  def edit(context: Context) -> Edit:
    params = context.source.params
    mixed = jax.tree.map(
      lambda w, new: (shrink * w + (1 - shrink) * new).astype(w.dtype),
      *(params, fresh(context).params),
    )
    return Edit(mixed, jax.tree.map(lambda w: jnp.ones(w.shape, bool), mixed))

  return Strategy('Shrink and perturb', edit=edit, terms=(Term(retained),))


@trained
def ct() -> Strategy:
  """CT: each convolution's kernel is transposed, then D_RE is learned.

  The two spatial axes change places (fifth in the NeurIPS'23 challenge);
  kernels of one pixel stay as they are.

  Costs the passes over D_RE only. Fails by too few of these. Without a knob but
  the rate. The reference trains at 1e-3 of SGD for 3 epochs.

  Raises:
    ValueError: a number out of range, or, by a network without square kernels.
  """

  def edit(context: Context) -> Edit:
    params = context.source.params
    flat, treedef = jax.tree.flatten(params)
    turned, axes = set(_square(params)), _spatial(params)
    new = [w.swapaxes(*axes) if i in turned else w for i, w in enumerate(flat)]
    mask = [jnp.full(w.shape, i in turned) for i, w in enumerate(flat)]
    unflatten = jax.tree.unflatten
    return Edit(unflatten(treedef, new), unflatten(treedef, mask))

  def check(params: Params, order: tuple[str, ...]) -> None:
    del order
    found = len(_square(params))
    require('convolutions', found, found > 0, 'a model with square kernels')

  return Strategy('CT', edit=edit, terms=(Term(retained),), check=check)


def _square(params: Params) -> list[int]:
  flat, (a, b) = jax.tree.leaves(params), _spatial(params)
  return [
    i for i in among(params, 'conv') if 1 < flat[i].shape[a] == flat[i].shape[b]
  ]


def _spatial(params: Params) -> tuple[int, int]:
  """A kernel's axes: the first two of Flax and Haiku, the last of Equinox."""
  flat = jax.tree.leaves(params)
  shapes = [flat[i].shape for i in among(params, 'conv')]
  first, last = (sum(s[a] == s[a + 1] for s in shapes) for a in (0, 2))
  return (0, 1) if first >= last else (2, 3)


@trained
def l1_sparse(gamma: float = 5e-4) -> Strategy:
  """L1-sparse: CE(D_RE) + γ_t · ‖ω‖₁, with γ_t falling linearly to 0.

  Jia et al., 2023.

  Costs the passes over D_RE only. Fails by retain and test accuracy lost to the
  penalty; γ is its knob. The reference trains at 0.01 of SGD for 10 epochs.

  Args:
    gamma: γ_0 ≥ 0.
  """
  require('gamma', gamma, 0 <= gamma < math.inf, '0 or more')
  return Strategy('L1-sparse', terms=(Term(retained),), penalty=_l1(gamma))


@functools.lru_cache(maxsize=64)
def _l1(gamma: float):
  def penalty(params: Params, step: Step) -> jax.Array:
    left = 1 - step.number / jnp.maximum(step.total, 1)
    norms = [jnp.abs(w).sum() for w in jax.tree.leaves(params)]
    return gamma * left * jnp.stack(norms).sum()

  return penalty


@trained
def noisy_finetune(sigma: float = 0.01) -> Strategy:
  """Noisy fine-tuning: g + N(0, σ²) in each step on D_RE.

  Chien et al., 2024; no bound is computed here.

  Costs the passes over D_RE only. Fails by noise that hurts all alike; σ is
  its knob.

  Args:
    sigma: σ > 0, of each scalar's gradient.
  """
  require('sigma', sigma, 0 < sigma < math.inf, 'above 0')
  terms, noise = (Term(retained),), _noise(sigma)
  return Strategy('Noisy fine-tuning', terms=terms, transform=noise)


@functools.lru_cache(maxsize=64)
def _noise(sigma: float) -> optax.GradientTransformation:
  """N(0, σ²), one draw for all scalars: a draw a tensor compiles for long."""

  def update(updates, key, params=None):
    del params
    key, own = jax.random.split(key)
    flat, unravel = ravel_pytree(updates)
    drawn = sigma * jax.random.normal(own, flat.shape, flat.dtype)
    return jax.tree.map(jnp.add, updates, unravel(drawn)), key

  # `training.fit` puts a key of the run in place of this one.
  return optax.GradientTransformation(lambda params: jax.random.key(0), update)


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

  def edit(context: Context) -> Edit:
    params, splits = context.source.params, context.splits
    how = 'mean_square' if importance == 'loss' else 'mean_abs'
    forget, every = (
      gradients(context, part, importance, how, examples)
      for part in (splits.forget, splits.train)
    )
    mask = jax.tree.map(lambda f, d: f > alpha * d, forget, every)
    damped = jax.tree.map(
      lambda w, f, d, m: jnp.where(
        m, (w * jnp.minimum(lam * d / f, 1)).astype(w.dtype), w
      ),
      *(params, forget, every, mask),
    )
    return Edit(damped, mask)

  return Strategy('SSD', edit=edit)
