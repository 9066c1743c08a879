"""What shadow models learn and forget."""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import jax
import numpy as np

from unlearn_jax.base import Key, require


class Drawn(NamedTuple):
  """What one shadow model learns and forgets, as sorted positions in D.

  Attributes:
    rows: what it learns, half of D.
    requests: of these, each set is forgotten by itself.
  """

  rows: np.ndarray
  requests: tuple[np.ndarray, ...]


def shadow_draws(
  key: Key, total: int, size: int, requests: int
) -> Iterator[Drawn]:
  """What one shadow model after the other learns and forgets, for `u_lira`.

  Two consecutive models learn complementary halves, so that each example is in
  half of them (as in Carlini et al., 2112.03570), and what was forgotten least
  is forgotten next, ties by lot: N models give it about N · requests · size /
  total times IN. A model's draw does not depend on how many follow.

  Args:
    key: typed PRNG key.
    total: examples of D.
    size: of a set that is forgotten.
    requests: such sets of a model, disjoint.

  Yields:
    A `Drawn` a model, without end.

  Example:
    >>> first = next(shadow_draws(jax.random.key(0), 100, 5, 2))
    >>> len(first.rows), [len(rows) for rows in first.requests]
    (50, [5, 5])
  """
  counts, half = np.zeros(total, np.int64), total // 2
  holds = 0 < size * requests <= half
  require('size · requests', size * requests, holds, f'1 to {half}')
  for number in itertools.count():
    lots = jax.random.fold_in(key, number // 2)
    order = np.asarray(jax.random.permutation(lots, total))
    rows = order[:half] if number % 2 == 0 else order[half : 2 * half]
    # Rows are in random order, which a stable sort keeps among equals.
    chosen = rows[np.argsort(counts[rows], kind='stable')[: size * requests]]
    counts[chosen] += 1
    lot = jax.random.fold_in(lots, 1 + number % 2)
    mixed = np.asarray(jax.random.permutation(lot, chosen))
    parts = np.sort(mixed.reshape(requests, size), axis=1)
    yield Drawn(np.sort(rows), tuple(parts))
