"""Table I: how many parameters are perturbed."""

import functools

import jax

from experiments.report.sections import Table
from experiments.reproduction import paper
from unlearn_jax import models
from unlearn_jax.base import tensor_paths


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


def table() -> Table:
  """Table I, ours and in brackets the paper's."""
  body = []
  for name, (k, *printed) in paper.TABLE_1.items():
    tensors, total, *ours = counts(name)
    cells = [f'{own:,} ({its})' for own, its in zip(ours, printed)]
    body.append([name, f'{tensors}', f'{total:,}', f'{k} ({k})', *cells])
  head = ['Model', 'Tensors', 'Parameters', 'Top-K', 'Random-k, 5 %']
  return Table.of([*head, 'EU-5, CF-5', 'EU-10, CF-10'], body)
