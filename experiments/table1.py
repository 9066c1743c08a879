"""Prints the paper's Table I beside ours: how many parameters are perturbed.

  python -m experiments.table1

takes seconds: the models are traced, not computed.
"""

import functools

import jax
import rich
from rich.table import Table

from experiments import binary
from experiments.reproduction import paper
from unlearn_jax import models
from unlearn_jax.base import tensor_paths


@functools.cache
def counts(name: str) -> tuple[int, int, int, int, int]:
  """(tensors, parameters, 5 % of them, in the last 5, in the last 10)."""
  model = models.build(name, 10, (32, 32, 3))
  assert model.init is not None
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  sizes = dict(
    zip(tensor_paths(params), (leaf.size for leaf in jax.tree.leaves(params)))
  )
  total = sum(sizes.values())
  last = [sum(sizes[path] for path in model.order[-k:]) for k in (5, 10)]
  return len(sizes), total, round(0.05 * total), last[0], last[1]


def main() -> None:
  """Prints the table."""
  table = Table(title='Parameters perturbed; in brackets the paper’s Table I')
  for column in (
    'Model',
    'Tensors',
    'Parameters',
    'Top-K',
    'Random-k, 5 %',
    'EU-5, CF-5',
    'EU-10, CF-10',
  ):
    table.add_column(column, justify='left' if column == 'Model' else 'right')
  for name, (k, *printed) in paper.TABLE_1.items():
    tensors, total, *ours = counts(name)
    cells = (f'{own:,} ({its})' for own, its in zip(ours, printed))
    table.add_row(name, f'{tensors}', f'{total:,}', f'{k} ({k})', *cells)
  rich.print(table)


if __name__ == '__main__':
  binary.run(main)
