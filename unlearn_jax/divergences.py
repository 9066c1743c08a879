"""How far apart two classifiers' outputs are, in bits."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax.base import Array, require


@jax.jit
def js_divergence(p: Array, q: Array) -> jax.Array:
  """Jensen-Shannon divergence, in [0, 1] bit (Zuo et al., Eq. 8).

  ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2. This is the paper's Eq. 8;
  its Eq. 9, meant to be the same written out, is misprinted (it is not 0 at
  p = q) and not used. Symmetric to the last bit, exactly 0 at p = q, finite
  with a finite gradient where probabilities are 0.

  Args:
    p: `[..., C]` probabilities; rows are taken to sum to 1.
    q: `[..., C]` probabilities, likewise.

  Returns:
    `[...]`, in bits; float32 or wider.

  Raises:
    AssertionError: the shapes differ.

  Example:
    >>> p = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    >>> q = jnp.array([[0.0, 1.0], [0.5, 0.5]])
    >>> js_divergence(p, q).tolist()
    [1.0, 0.0]
  """
  chex.assert_equal_shape([p, q])
  dtype = jnp.promote_types(jnp.result_type(p, q), jnp.float32)
  p, q = jnp.asarray(p, dtype), jnp.asarray(q, dtype)
  # ½ Σ p · log₂(p/m) + ½ Σ q · log₂(q/m)
  terms = _log_ratio_term(p, q) + _log_ratio_term(q, p)
  divergence = jnp.sum(terms, axis=-1) / 2
  # Rounding may step over the bounds. Added as a constant, the correction
  # does not zero the gradient at the bounds as clipping would.
  excess = divergence - jnp.clip(divergence, 0, 1)
  return divergence - jax.lax.stop_gradient(excess)


def similarity(p: Array, q: Array) -> float:
  """1 - JS of two classifiers' outputs, averaged (Zuo et al., §IV-B).

  Runs on the host, on the unlearned and the retrained model's outputs.

  Args:
    p: `[M, C]` probabilities.
    q: `[M, C]` probabilities of the same M examples.

  Returns:
    Mean over the examples, in [0, 1]; 1 if the outputs are equal.

  Raises:
    ValueError: there are no examples, or rows that are not probabilities
      (negative, not finite, or the sum is further than 0.01 from 1).
    AssertionError: the shapes differ or are not `[M, C]`.

  Example:
    >>> p = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    >>> similarity(p, jnp.array([[0.0, 1.0], [0.5, 0.5]]))
    0.5
  """
  chex.assert_rank([p, q], 2)
  for name, rows in (('p', p), ('q', q)):
    rows = np.asarray(rows, np.float64)
    require(name, rows.shape, rows.size > 0, 'M and C above 0')
    # Written so that NaN fails.
    wrong = ~((rows.min(axis=1) >= 0) & (abs(rows.sum(axis=1) - 1) <= 0.01))
    if wrong.any():
      row = int(np.argmax(wrong))
      raise ValueError(
        f'{name}[{row}] is {rows[row].tolist()}; allowed are probabilities, '
        'at least 0 and with the sum 1.'
      )
  divergences = np.asarray(js_divergence(p, q), np.float64)
  return 1 - float(np.mean(divergences))


def _log_ratio_term(p: jax.Array, q: jax.Array) -> jax.Array:
  """Computes p · log₂(p/m), m = (p + q)/2; 0 with gradient 0 where p is 0.

  Every branch gets arguments that are good there: a gradient runs through the
  branches that `where` does not take, too.
  """
  # False also below about 1e-19, where squares, and so gradients, underflow:
  # what such a probability could add is beyond rounding.
  positive = p >= float(jnp.finfo(p.dtype).tiny) ** 0.5
  total = jnp.where(positive, p + q, 1)
  # p/m = 1 + d. Where p and q are close, which is where fine-tuning ends, d
  # has digits that p/m has lost; where p is far below q, it is the reverse.
  d = jnp.where(positive, p - q, 0) / total
  near = d > -0.5
  ratio = jnp.where(near, 1, 2 * p / total)
  ratio = jnp.where(positive, ratio, 1)
  logarithm = jnp.where(near, jnp.log1p(jnp.where(near, d, 0)), jnp.log(ratio))
  return jnp.where(positive, p * logarithm / math.log(2), 0)
