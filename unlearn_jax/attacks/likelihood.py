"""Attacks by likelihood ratios against reference models: LiRA and RMIA."""

import enum
from typing import NamedTuple

import numpy as np
import scipy

from unlearn_jax.attacks.scores import as_floats
from unlearn_jax.base import Array, require

# Below so many models an example's own standard deviation is not estimated.
_OWN_STD = 8
_LEAST_STD = 1e-3
_LEAST_P = 1e-12


class Status(enum.IntEnum):
  """What an example was to a shadow model."""

  OUT = 0  # never trained on
  IN_FORGET = 1  # trained on, then unlearned
  IN_RETAIN = 2  # trained on, and kept


class Normal(NamedTuple):
  """Normal distributions of margins, by example: `[n]` each."""

  mean: np.ndarray
  std: np.ndarray


def lira_offline(phi: Array, out_phi: Array) -> np.ndarray:
  """Φ((φ − μ_out) / σ_out): how unusually high a margin is (Carlini et al.).

  One-sided: a margin far *below* those of models that never saw the example is
  no sign of membership. Beyond 8 σ it rounds to 1, and members tie.

  Args:
    phi: margins of the attacked model `[n]`, see `true_class_margin`.
    out_phi: those of R ≥ 2 models that never saw the examples, `[R, n]`; σ as
      in `lira`.

  Returns:
    `[n]`, in [0, 1], higher for likely members.

  Example:
    >>> lira_offline(np.array([1.6449]), np.array([[-1.0], [1.0]])).round(4)
    array([0.95])
  """
  out = as_floats('out_phi', out_phi, '[R, n]')
  phi = _fitting('phi', phi, '[n]', out.shape[1])
  return scipy.stats.norm.cdf(phi, *fit('out_phi', out))


def lira(
  phi: Array,
  status: Array,
  target_phi: Array,
  *,
  out: Array | None = None,
  members: Status = Status.IN_FORGET,
) -> np.ndarray:
  """U-LiRA: Λ = log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²), by example.

  Hayes et al., 2403.01218. Each of N shadow models was trained on a random
  half of the data and made to forget a random part of that half by the method
  that is audited. Where a side has fewer than 8 models σ is pooled over the
  examples (of residuals about their means); it is at least a tenth of that,
  and 1e-3.

  Args:
    phi: margins under the unlearned shadow models, `[N, n]`.
    status: a `Status` each, `[N, n]`; two models or more on either side.
    target_phi: margins under M models that are in no fit, `[M, n]`.
    out: None takes the shadow models' OUT, which were unlearned on other sets
      (convention 'unlearned', what an attacker sees); or margins `[R, n]` of
      models retrained without the examples (convention 'retrained').
    members: what is to be found; IN_RETAIN attacks D_RE.

  Returns:
    `[M, n]`, above 0 for likely members.

  Example:
    >>> phi = np.array([[1.0], [3.0], [-1.0], [1.0]])
    >>> status = np.array([[1], [1], [0], [0]])
    >>> lira(phi, status, np.array([[2.0], [1.0], [0.0]])).ravel().tolist()
    [2.0, 0.0, -2.0]
  """
  phi, status = shadows(phi, status)
  target = _fitting('target_phi', target_phi, '[M, n]', phi.shape[1])
  inside = fit(f'status of {members.name}', phi, status == members)
  if out is None:
    outside = fit('status of OUT', phi, status == Status.OUT)
  else:
    outside = fit('out', _fitting('out', out, '[R, n]', phi.shape[1]))
  log_density = scipy.stats.norm.logpdf
  return log_density(target, *inside) - log_density(target, *outside)


def rmia(
  log_p: Array,
  references: Array,
  z: tuple[Array, Array] | None = None,
  *,
  gamma: float = 1.0,
  a: float = 0.3,
) -> np.ndarray:
  """RMIA, offline (Zarifzadeh et al., 2312.03262), in log space.

  ratio_x = p_θ(x) / p(x) with p(x) = ½[(1 + a) p̄_out(x) + (1 − a)]; p̄_out is
  the mean over the references, 1e-12 or more. The score is the share of a
  population z with ratio_x / ratio_z ≥ γ. For one model it only rises with
  ratio_x, so that AUC and TPR are those of ratio_x, up to ties: z puts models
  on one scale, and fixes the threshold.

  Args:
    log_p: log p_y of the attacked model, `[n]`.
    references: those of R ≥ 1 models that never saw the examples, such as
      retrained ones, `[R, n]`.
    z: log p_y of the attacked model `[k]` and of the references `[R, k]`, on
      k examples that none of them saw, 1,000 or more.
    gamma: γ > 0, by how much x has to exceed z.
    a: in [0, 1], how much of p_in is inferred from p̄_out.

  Returns:
    `[n]`, higher for likely members: a share in [0, 1]; without z log ratio_x.

  Example:
    >>> z = np.log([0.3, 0.6, 0.8]), np.log([[0.4, 0.4, 0.9]])
    >>> rmia(np.log([0.9]), np.log([[0.4]]), z, gamma=2).round(4).tolist()
    [0.3333]
  """
  require('gamma', gamma, gamma > 0, 'above 0')
  require('a', a, 0 <= a <= 1, '[0, 1]')
  own = _log_ratio(('log_p', 'references'), (log_p, references), a)
  if z is None:
    return own
  counts = len(references), len(z[1])
  alike = counts[0] == counts[1]
  require('len(references, z[1])', counts, alike, 'the same models')
  theirs = np.sort(_log_ratio(('z[0]', 'z[1]'), z, a))
  below = np.searchsorted(theirs, own - np.log(gamma), side='right')
  return below / len(theirs)


def _log_ratio(names, values, a: float) -> np.ndarray:
  own = as_floats(names[0], values[0], '[n]', finite=False)
  out = as_floats(names[1], values[1], '[R, n]', finite=False)
  require(f'{names[0]}.shape', own.shape, own.shape == out.shape[1:], 'one n')
  for name, most in zip(names, (own.max(), out.max())):
    # A softmax in float32 may exceed 1 by little.
    require(name, float(most), most <= 1e-6, 'log-probabilities, at most 0')
  mean = scipy.special.logsumexp(out, axis=0) - np.log(len(out))
  mean = np.maximum(mean, np.log(_LEAST_P))
  with np.errstate(divide='ignore'):  # a = 1
    parts = np.log((1 + a) / 2) + mean, np.log((1 - a) / 2)
  return own - np.logaddexp(*parts)


def shadows(phi: Array, status: Array) -> tuple[np.ndarray, np.ndarray]:
  """Margins and statuses of shadow models, `[N, n]`, looked at."""
  phi = as_floats('phi', phi, '[N, n]')
  return phi, statuses('status', status, phi.shape)


def statuses(name: str, status: Array, shape: tuple[int, ...]) -> np.ndarray:
  """An array of `Status`, looked at."""
  status = np.asarray(status)
  require(f'{name}.shape', status.shape, status.shape == shape, f'{shape}')
  odd = status[~np.isin(status, list(Status))]
  allowed = ', '.join(f'{s.value} ({s.name})' for s in Status)
  require(name, odd[0].item() if odd.size else 0, not odd.size, allowed)
  return status


def fit(name: str, phi: np.ndarray, chosen: np.ndarray | None = None) -> Normal:
  """Of the chosen models of `[N, n]`, or of all; see `lira` for σ."""
  chosen = np.ones(phi.shape, bool) if chosen is None else chosen
  count = chosen.sum(0)
  example = int(np.argmin(count))
  allowed = f'2 models or more for each example, and {example} has fewer'
  require(name, int(count[example]), count[example] > 1, allowed)
  mean = np.mean(phi, 0, where=chosen)
  squares = np.where(chosen, phi - mean, 0) ** 2
  pooled = np.sqrt(squares.sum() / count.sum())
  std = np.where(count < _OWN_STD, pooled, np.sqrt(squares.sum(0) / count))
  return Normal(mean, np.maximum(std, max(0.1 * pooled, _LEAST_STD)))


def _fitting(name: str, values: Array, shape: str, size: int) -> np.ndarray:
  array = as_floats(name, values, shape)
  require(f'{name}.shape', array.shape, array.shape[-1] == size, f'n = {size}')
  return array
