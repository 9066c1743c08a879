"""Audits of one model: noise planted before training, and bounds of ε."""

import math
from typing import NamedTuple

import jax
import numpy as np
import scipy

from unlearn_jax.attacks import scores
from unlearn_jax.base import Array, Key, require
from unlearn_jax.data.extras import optional


class Planted(NamedTuple):
  """Canaries.

  Attributes:
    images: what to train on, `[M, ...]`, of the dtype that was given.
    noise: ξ as it was drawn, float32 `[M, ...]`: what the statistic takes.
    added: images − originals: what rounding and clipping left of ξ.
  """

  images: np.ndarray
  noise: np.ndarray
  added: np.ndarray


class CanaryTest(NamedTuple):
  """Whether a model still knows the noise.

  Attributes:
    z: √n · mean(I), N(0, 1) under perfect unlearning; None if n is 0.
    p_value: two-sided; None if n is 0.
    used: n, canaries with a gradient.
    dropped: canaries without.
  """

  z: float | None
  p_value: float | None
  used: int
  dropped: int


def plant(key: Key, images: Array, scale: float) -> Planted:
  """Adds noise ξ ~ N(0, scale²) to images whose deletion will be asked for.

  uint8 images are rounded and clipped to [0, 255]; floats are left as they are.

  Args:
    key: typed PRNG key, kept from whoever trains and unlearns.
    images: uint8 or floats, `[M, ...]`.
    scale: ε_p > 0, in units of `images`: of 255 for uint8.

  Returns:
    The `Planted`.

  Example:
    >>> images = np.full((2, 8, 8, 1), 128, np.uint8)
    >>> planted = plant(jax.random.key(0), images, scale=8.0)
    >>> bool(abs(planted.added - planted.noise).max() <= 0.5)
    True
  """
  images = np.asarray(images)
  require('scale', scale, 0 < scale < math.inf, 'above 0')
  known = images.dtype == np.uint8 or images.dtype.kind == 'f'
  require('images.dtype', images.dtype.name, known, 'uint8 or floats')
  noise = np.asarray(scale * jax.random.normal(key, images.shape))
  planted = images + noise
  if images.dtype == np.uint8:
    planted = np.clip(np.rint(planted), 0, 255)
  planted = planted.astype(images.dtype)
  return Planted(planted, noise, planted - images.astype(np.float32))


def canary_statistic(
  gradients: Array, noise: Array, scale: float
) -> np.ndarray:
  """I = ⟨g, ξ⟩ / (scale · ‖g‖), GUS (Pawelczyk et al., 2406.17216).

  A model made without ξ has I ~ N(0, 1), exactly and whatever it is. One that
  learned the images has a lower loss at x + ξ than at x: I is below 0 there,
  and above for the gradients of φ.

  Args:
    gradients: g = ∇_x of the loss at the image *before* the noise, `[M, ...]`,
      in any unit; or of φ, which is ∇_x of the loss times −1 / (1 − p_y), so
      that I changes its sign only, and which is not 0 where p_y rounds to 1.
    noise: ξ, `Planted.noise`. Not `added`: what is clipped depends on the
      image, as g does, and that gives false alarms.
    scale: as in `plant`.

  Returns:
    `[M]`; NaN where the gradient is 0.

  Example:
    >>> g = np.array([[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0]])
    >>> canary_statistic(g, np.array([[3.0, 4.0]] * 3), scale=1.0).tolist()
    [5.0, 0.0, nan]
  """
  require('scale', scale, 0 < scale < math.inf, 'above 0')
  shapes = np.shape(gradients), np.shape(noise)
  require('shapes', shapes, shapes[0] == shapes[1], 'the same of both')
  g, xi = (
    scores.as_floats(name, np.reshape(x, (shapes[0][0], -1)), '[M, d]')
    for name, x in (('gradients', gradients), ('noise', noise))
  )
  norm = np.linalg.norm(g, axis=1)
  norm[norm == 0] = np.nan
  return np.sum(g * xi, axis=1) / (scale * norm)


def canary_ranks(phi: Array, decoys: Array) -> np.ndarray:
  """I = (r − K/2) / √(K(K + 2)/12), r the rank of planted among other noise.

  The exposure of Carlini et al. (1802.08232), of images: a model that was made
  without ξ cannot tell it from K other draws, so r is uniform on 0 … K, exactly
  and whatever the model is. I has mean 0 and variance 1 there, less with ties,
  which count a half (a model that says the same of all of them has I = 0), and
  is above 0 where the noise is known. It needs no gradients, and
  finds more than `canary_statistic`, which sees the model to first order only.

  Args:
    phi: a score at the planted images, higher for members, such as
      `true_class_margin`, `[M]`.
    decoys: the same at these images with K other draws of noise, which were
      rounded and clipped likewise, `[K, M]`.

  Returns:
    `[M]`, from −√3 to √3.

  Example:
    >>> canary_ranks(np.array([3.0, 0.5]), np.array([[1.0, 1.0]])).tolist()
    [1.0, -1.0]
  """
  own = scores.as_floats('phi', phi, '[M]')
  others = scores.as_floats('decoys', decoys, '[K, M]')
  fits = others.shape[1:] == own.shape and len(others) > 0
  require('decoys.shape', others.shape, fits, f'[K, {own.size}], K above 0')
  count = len(others)
  rank = (others < own).sum(0) + (others == own).sum(0) / 2
  return (rank - count / 2) / math.sqrt(count * (count + 2) / 12)


def canary_test(statistic: Array) -> CanaryTest:
  """Tests whether the mean of I `[M]` is 0; NaN is dropped and counted.

  Example:
    >>> found = canary_test(np.array([-3.0, -3.0, -2.0, np.nan]))
    >>> round(found.z, 2), round(found.p_value, 6), found.dropped
    (-4.62, 4e-06, 1)
  """
  statistic = np.asarray(statistic, np.float64)
  own = statistic[~np.isnan(statistic)]
  dropped = statistic.size - own.size
  if not own.size:
    return CanaryTest(None, None, 0, dropped)
  z = math.sqrt(own.size) * float(own.mean())
  p_value = float(2 * scipy.stats.norm.sf(abs(z)))
  return CanaryTest(z, p_value, own.size, dropped)


def epsilon_clopper_pearson(
  found: int,
  members: int,
  alarms: int,
  others: int,
  *,
  confidence: float = 0.95,
  delta: float = 0.0,
) -> float:
  """Lower bound of ε: log((TPR_low − δ) / FPR_high), 0 or more.

  Of `found` of the members and `alarms` of the others that were called
  members; exact bounds, α/2 each. The threshold has to be fixed beforehand and
  the trials to be independent, a training each: canaries of one training are
  for `epsilon_one_run`. It bounds training and unlearning together.

  Example:
    >>> round(epsilon_clopper_pearson(40, 50, 10, 50), 4)
    0.6759
  """
  require('delta', delta, 0 <= delta < 1, '[0, 1)')
  low, _ = scores.proportion_interval(found, members, confidence)
  _, high = scores.proportion_interval(alarms, others, confidence)
  return max(0.0, math.log((low - delta) / high)) if low > delta else 0.0


def epsilon_one_run(
  members: Array,
  others: Array,
  threshold: float,
  *,
  confidence: float = 0.95,
  delta: float = 1e-5,
) -> float:
  """Lower bound of ε from canaries of one training (Steinke et al., 2023).

  By jax-privacy, the extra `[audit]`. Fair coins say before training which
  canaries are included; those are then unlearned. Retrain has to give about 0.

  Args:
    members: scores of the included, `[M]`, higher for likely members.
    others: scores of the rest, `[N]`.
    threshold: fixed beforehand; as high or higher is the guess "included".
    confidence: in (0.5, 1).
    delta: δ > 0.

  Returns:
    ε, of training and unlearning together.

  Raises:
    InputError: jax-privacy is not installed.
  """
  auditing = optional('jax_privacy.auditing', 'epsilon_one_run', 'audit')
  inside = scores.as_floats('members', members, '[M]', finite=False)
  outside = scores.as_floats('others', others, '[N]', finite=False)
  auditor = auditing.CanaryScoreAuditor(inside, outside)
  strategy = auditing.Explicit(threshold)
  return float(
    auditor.epsilon_one_run(1 - confidence, delta, threshold_strategy=strategy)
  )
