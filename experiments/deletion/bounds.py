"""Bounds of what is measured, beyond which a model is replaced by a retrain."""

from collections.abc import Mapping
import dataclasses
import math
import re

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


def parse(text: str) -> dict[str, float]:
  """Reads `attack>0.6, test_drop>2`: the most that each may be.

  Raises:
    FlagError: a name that nothing measures, or a number that it never is.
  """
  found = [_BOUND.fullmatch(part) for part in text.split(',')]
  every = {own[1]: float(own[2]) for own in found if own}
  inside = all(
    name in RANGES and RANGES[name][0] <= limit < RANGES[name][1]
    for name, limit in every.items()
  )
  if not inside or len(every) < len(found):  # One is none, or is there twice.
    allowed = ', '.join(
      f'{name}>{low:g}' + f' to {high:.3g}' * (high < math.inf)
      for name, (low, high) in RANGES.items()
    )
    raise FlagError('retrain_if', text, f'some of {allowed}; each once')
  return every


def broken(bounds: Mapping[str, float], evidence: Evidence) -> list[Broken]:
  """Those that are: the whole interval of a value is above its bound."""
  values = evidence.monitored
  every = [Broken(n, m, *values[n]) for n, m in bounds.items() if n in values]
  return [own for own in every if own.value - own.half_width > own.limit]
