"""What the paper prints, how this package reads its data, and Table I."""

import functools
import pathlib
from typing import Any, NamedTuple, TypeVar

import jax
import msgspec

from unlearn_jax import models
from unlearn_jax.base import tensor_paths
from ..report.sections import Table

T = TypeVar('T')


def read(name: str, kind: type[T]) -> T:
  """What a data file of this package says."""
  content = (pathlib.Path(__file__).parent / name).read_bytes()
  return msgspec.toml.decode(content, type=kind)


class Row(NamedTuple):
  """A row of Table II."""

  label: str  # what a reader sees
  factory: str  # of the strategy
  parameters: dict[str, Any] = {}  # that are fixed


class Cells(NamedTuple):
  """What a row of Table II says: %, % and %, and seconds."""

  forget_accuracy: float
  retain_accuracy: float
  similarity: float
  seconds: float


_printed = read('paper.toml', dict[str, dict[str, Any]])
ARTEFACTS: dict[str, str] = _printed['artefacts']
ROWS = msgspec.convert(_printed['rows'], dict[str, Row])
TABLE_1: dict[str, tuple[int, str, str, str]] = _printed['table_1']
TABLE_2 = msgspec.convert(
  _printed['table_2'], dict[float, dict[str, Cells]], strict=False
)
WORDS = read('words.toml', dict[str, dict[str, Any]])
FIGURES = read('figures.toml', dict[str, dict[str, Any]])


def acceleration(fraction: float, row: str) -> float:
  """How many times as fast as Retrain, by Table II's own seconds."""
  return TABLE_2[fraction]['retrain'].seconds / TABLE_2[fraction][row].seconds


@functools.cache
def counts(name: str) -> tuple[int, int, int, int, int]:
  """(tensors, parameters, 5 % of them, in the last 5, in the last 10)."""
  model = models.build(name, 10, (32, 32, 3))
  assert model.init is not None
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  leaves = jax.tree.leaves(params)
  sizes = dict(zip(tensor_paths(params), (leaf.size for leaf in leaves)))
  total = sum(sizes.values())
  last = [sum(sizes[path] for path in model.order[-k:]) for k in (5, 10)]
  return len(sizes), total, round(0.05 * total), last[0], last[1]


def table_1() -> Table:
  """Table I, ours and in brackets the paper's."""
  body = []
  for name, (k, *printed) in TABLE_1.items():
    tensors, total, *ours = counts(name)
    cells = [f'{own:,} ({its})' for own, its in zip(ours, printed)]
    body.append([name, f'{tensors}', f'{total:,}', f'{k} ({k})', *cells])
  return Table.of(WORDS['table_1']['head'], body)
