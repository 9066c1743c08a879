"""Bounds of what is measured, beyond which a model is replaced by a retrain."""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import NamedTuple

from ..settings import FlagError
from .evidence import Evidence

# What may be bounded, and from where to where.
RANGES = {
  'attack': (0.5, 1.0),
  'test_drop': (0.0, 100.0),
  'returned': (0.0, 100.0),
  'drift': (0.0, math.inf),
  'canaries': (0.0, math.sqrt(3)),
}
_BOUND = re.compile(r'\s*(\w+)\s*>\s*(\d+\.?\d*|\.\d+)\s*', re.ASCII)


class Bound(NamedTuple):
  """What has to be at most that."""

  name: str
  limit: float


@dataclasses.dataclass(frozen=True)
class Broken:
  """A value that is above its bound, all of its interval."""

  name: str
  limit: float
  value: float
  half_width: float

  def __str__(self) -> str:
    """Such as `attack 0.743 ± 0.051 > 0.6`."""
    half = f' ± {self.half_width:.3f}' if self.half_width else ''
    return f'{self.name} {self.value:.3f}{half} > {self.limit:g}'


def parse(text: str) -> list[Bound]:
  """Reads `attack>0.6, test_drop>2`.

  Raises:
    FlagError: a name that nothing measures, or a number that it never is.
  """
  found = [_BOUND.fullmatch(part) for part in text.split(',')]
  every = [Bound(own[1], float(own[2])) for own in found if own]
  names = [own.name for own in every]
  inside = all(
    own.name in RANGES
    and RANGES[own.name][0] <= own.limit < RANGES[own.name][1]
    for own in every
  )
  if None in found or not inside or len({*names}) < len(names):
    allowed = ', '.join(
      f'{name}>{low:g}' + f' to {high:.3g}' * (high < math.inf)
      for name, (low, high) in RANGES.items()
    )
    raise FlagError('retrain_if', text, f'some of {allowed}; each once')
  return every


def broken(bounds: Sequence[Bound], evidence: Evidence) -> list[Broken]:
  """Those that are: the whole interval of a value is above its bound."""
  values = evidence.monitored
  every = [
    Broken(*own, *values[own.name]) for own in bounds if own.name in values
  ]
  return [own for own in every if own.value - own.half_width > own.limit]


def unmeasured(bounds: Sequence[Bound], evidence: Evidence) -> list[str]:
  """Names of what could not be held to its bound."""
  return [own.name for own in bounds if own.name not in evidence.monitored]
