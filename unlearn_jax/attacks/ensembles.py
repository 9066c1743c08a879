"""Distances between many unlearned and many retrained models, by example."""

from collections.abc import Iterator

import jax
import numpy as np

from unlearn_jax.attacks.scores import as_floats
from unlearn_jax.base import Array, Key, require

_BINS = 20
_CLIP = -100.0, 100.0
_LEAST_SHARE = 1e-5
_MOST_EPSILON = 50.0
_PER_UNIT = 100  # thresholds
_BUFFER = 2.0


def klom(unlearned: Array, retrained: Array) -> np.ndarray:
  """KL(unlearned ‖ retrained) of margins, in nats (Georgiev et al., 2024).

  2410.23232: of histograms with 20 equal bins on the range of both, the last
  closed on the right, margins clipped to ±100; where the first has models the
  second counts as 1e-5 or more. *Not* 0 between alike ensembles: compare with
  `klom` of as many retrained models, see `halves`.

  Args:
    unlearned: margins φ under N models, `[N, n]`, see `true_class_margin`.
    retrained: under retrained models, as many at best.

  Returns:
    `[n]`, 0 to log 1e5. Report the mean and the 95th percentile.

  Example:
    >>> klom(np.array([[0], [0], [1], [1]]), np.array([[0], [1], [1], [1]]))
    array([0.14384104])
  """
  found = []
  for pair in _columns(unlearned, retrained):
    pair = np.clip(pair[0], *_CLIP), np.clip(pair[1], *_CLIP)
    edges = np.histogram_bin_edges(np.concatenate(pair), _BINS)
    p, q = (np.histogram(own, edges)[0] / len(own) for own in pair)
    some = p > 0
    ratios = p[some] / np.maximum(q[some], _LEAST_SHARE)
    found.append(float(np.sum(p[some] * np.log(ratios))))
  return np.array(found)


def forgetting_score(
  unlearned: Array, retrained: Array, delta: float = 1e-5
) -> tuple[float, np.ndarray]:
  """Forgetting quality F and ε̂ of the NeurIPS'23 competition (2406.09073).

  ε̂ is the largest of log(1 − δ − FPR) − log FNR and log(1 − δ − FNR) − log FPR
  over single and double thresholds; those with one of the rates 0 are left
  out, where both are 0 it is 50. F is the mean over examples of 2^−⌊2ε̂⌋ for
  ε̂ < ⌈log(N − 1)⌉, else 0. Perfect unlearning scores far *below 1*: compare
  with retrained models on both sides. The thresholds are .01 apart in units of
  φ, so that scaling φ changes F: for comparison with others' numbers only.

  Args:
    unlearned: margins φ under N ≥ 3 models, better 64, `[N, n]`.
    retrained: under N retrained models, `[N, n]`.
    delta: δ, in [0, 1).

  Returns:
    F in [0, 1], and ε̂ `[n]` in [0, 50].

  Example:
    >>> own, its = [[1.0], [2], [3], [4]], [[0.0], [1.5], [2.5], [3.5]]
    >>> F, epsilon = forgetting_score(np.array(own), np.array(its))
    >>> F, epsilon.round(3)
    (0.5, array([0.693]))
  """
  require('delta', delta, 0 <= delta < 1, '[0, 1)')
  pairs = list(_columns(unlearned, retrained))
  sizes = pairs[0][0].size, pairs[0][1].size
  require('models', sizes, sizes[0] == sizes[1] > 2, 'as many, 3 or more')
  epsilon = np.array([_epsilon(*pair, delta) for pair in pairs])
  points = 0.5 ** np.floor(2 * epsilon)
  bound = np.ceil(np.log(sizes[0] - 1))
  return float(np.mean(np.where(epsilon < bound, points, 0))), epsilon


def halves(key: Key, retrained: Array) -> tuple[np.ndarray, np.ndarray]:
  """Two random halves of an ensemble: the null of what this module measures.

  That depends on the number of models: the halves of 2N retrained models are
  the null of N unlearned against N retrained ones.

  Args:
    key: typed PRNG key.
    retrained: margins under retrained models, `[N, n]`, N ≥ 2.

  Returns:
    Twice `[⌊N / 2⌋, n]`.

  Example:
    >>> a, b = halves(jax.random.key(0), np.arange(4.0)[:, None])
    >>> sorted(np.concatenate([a, b]).ravel().tolist())
    [0.0, 1.0, 2.0, 3.0]
  """
  margins = as_floats('retrained', retrained, '[N, n]')
  half = len(margins) // 2
  require('len(retrained)', len(margins), half > 0, '2 or more')
  order = np.asarray(jax.random.permutation(key, len(margins)))
  return margins[order[:half]], margins[order[half : 2 * half]]


def _columns(
  unlearned: Array, retrained: Array
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Both ensembles' margins of each example."""
  own = as_floats('unlearned', unlearned, '[N, n]')
  reference = as_floats('retrained', retrained, '[N, n]')
  sizes = own.shape[1], reference.shape[1]
  require('examples', sizes, sizes[0] == sizes[1], 'the same of both')
  return zip(own.T, reference.T)


def _epsilon(own: np.ndarray, reference: np.ndarray, delta: float) -> float:
  """ε̂ of one example, of N margins each."""
  ranges = np.ptp(own), np.ptp(reference)
  if max(ranges) == 0:
    return 0.0 if own[0] == reference[0] else _MOST_EPSILON
  if min(ranges) / max(ranges) < 0.01:
    return _MOST_EPSILON
  # The positive side of a single threshold has the larger median, that of
  # double thresholds the smaller range; the reference code's rules for ties.
  pair = own, reference
  larger = np.median(reference) > np.median(own)
  narrower = ranges[1] <= ranges[0]
  rates = [_single(*pair[:: -1 if larger else 1])]
  rates += [_double(*pair[:: -1 if narrower else 1])]
  fpr, fnr = np.concatenate(rates, axis=1)
  if np.any((fpr == 0) & (fnr == 0)):
    return _MOST_EPSILON
  both = np.stack([fpr, fnr])[:, (fpr > 0) & (fnr > 0)]
  allowed = 'wide enough for thresholds .01 apart, or constant'
  require('ranges of φ', tuple(map(float, ranges)), both.size > 0, allowed)
  with np.errstate(invalid='ignore', divide='ignore'):  # A rate of 1.
    bounds = np.log(1 - delta - both) - np.log(both[::-1])
  return float(np.nanmax(bounds, initial=0))


def _single(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  """FPR and FNR `[2, thresholds]` where at or above one is positive."""
  both = np.concatenate([positive, negative])
  thresholds = _grid(both.min(), both.max())
  below = [_share_below(x, thresholds) for x in (negative, positive)]
  return np.stack([1 - below[0], below[1]])


def _double(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
  """Likewise, where between two is positive."""
  top, width = positive.max(), np.ptp(positive)
  right = _grid(top - _BUFFER, top + _BUFFER)[:, None]
  left = right - width + _grid(-_BUFFER, _BUFFER)
  fpr, tpr = (
    np.maximum(_share_below(x, right, 'right') - _share_below(x, left), 0)
    for x in (negative, positive)
  )
  return np.stack([fpr.ravel(), 1 - tpr.ravel()])


def _grid(low: float, high: float) -> np.ndarray:
  return np.linspace(low, high, int(np.ceil((high - low) * _PER_UNIT)))


def _share_below(values, thresholds, side='left') -> np.ndarray:
  return np.searchsorted(np.sort(values), thresholds, side) / len(values)
