"""A degree held against that of two models that forgot nothing."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy

from unlearn_jax import metrics
from unlearn_jax.base import require

# A difference that is surely below this is called none.
RESOLUTION = 0.05
LEVEL = 0.05
_EXACT = 20_000  # splits up to which a permutation test takes all of them

Verdict = Literal['separates', 'does not separate', 'cannot tell']


class Calibrated(NamedTuple):
  """A degree held against the null of two models that forgot nothing.

  Attributes:
    difference: degree minus null degree, paired by generator seed.
    p_value: one-sided, of a permutation test over the generators.
    verdict: whether the degree separates from the null.
  """

  difference: metrics.Interval
  p_value: float
  verdict: Verdict


def calibrated_degree(
  degrees: Sequence[float],
  null: Sequence[float],
  target: Sequence[float] | None = None,
) -> Calibrated:
  """A degree minus that of two models that forgot nothing.

  The p-value is the share of all ways to deal the 2n degrees to two sides
  that put the means at least as far apart (all of them up to 20,000, else so
  many drawn ones). With 5 generators a side it cannot be below 1/252. It
  speaks of generators: that these two models, M_UL and M', would come out so
  again. What another M' would do it cannot say; that takes more of them.

  | verdict | when |
  |---|---|
  | separates | p ≤ 0.05, and the interval is above 0 |
  | does not separate | the interval is below 0.05, and the target separates \
or there is none |
  | cannot tell | otherwise |

  Args:
    degrees: of (M, M_UL), one a generator.
    null: of (M, M'), by the same generator seeds.
    target: of (M, M_RE), or None. If even this does not separate, then that
      M_UL does not says nothing.

  Returns:
    The `Calibrated`.

  Raises:
    ValueError: fewer than 2 values, not finite, or of different numbers.

  Example:
    >>> found = calibrated_degree([0.6, 0.7, 0.8, 0.7], [0.2, 0.1, 0.2, 0.1])
    >>> round(found.difference.mean, 3), round(found.p_value, 4), found.verdict
    (0.55, 0.0143, 'separates')
  """
  require('len(degrees)', len(degrees), len(degrees) >= 2, '2 or more')
  difference = metrics.paired_interval(degrees, null)
  assert difference.low is not None and difference.high is not None
  p_value = scipy.stats.permutation_test(
    (np.asarray(degrees), np.asarray(null)),
    lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis),
    vectorized=True,
    alternative='greater',
    n_resamples=_EXACT,
    random_state=0,
  ).pvalue
  verdict: Verdict = 'cannot tell'
  if p_value <= LEVEL and difference.low > 0:
    verdict = 'separates'
  elif difference.high < RESOLUTION and (
    target is None or calibrated_degree(target, null).verdict == 'separates'
  ):
    verdict = 'does not separate'
  return Calibrated(difference, float(p_value), verdict)
