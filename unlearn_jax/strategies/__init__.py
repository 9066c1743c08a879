"""How a model is made to forget: strategies as data, one file a family.

    strategy = strategies.top_k(k=45, epsilon=-1.0)
    unlearned = unlearn(key, model, source, splits, strategy).state

| file | what it holds |
|---|---|
| `base` | the types: an edit of the weights, then weighted terms |
| `references` | Retrain, and plain fine-tuning (K = 0) |
| `perturbing` | Top-K, Random-k, Random-TopK, K random scalars |
| `layers` | EU-K and CF-K |
| `spelling` | strategies as text |

A new one is a function that returns a `Strategy`, in any module.
"""

from unlearn_jax.objectives import Term, guided, retained, taught
from unlearn_jax.strategies.base import (
  BASELINE,
  CONTROL,
  METHOD,
  REFERENCE,
  Edit,
  Strategy,
  keep,
)
from unlearn_jax.strategies.layers import cf_k, eu_k
from unlearn_jax.strategies.perturbing import (
  random_k,
  random_scalars,
  random_top_k,
  top_k,
)
from unlearn_jax.strategies.references import finetune, retrain
from unlearn_jax.strategies.spelling import (
  FACTORIES,
  Chosen,
  closest,
  parse,
  signature,
)

__all__ = [
  'BASELINE',
  'CONTROL',
  'FACTORIES',
  'METHOD',
  'REFERENCE',
  'Chosen',
  'Edit',
  'Strategy',
  'Term',
  'cf_k',
  'closest',
  'eu_k',
  'finetune',
  'guided',
  'keep',
  'parse',
  'random_k',
  'random_scalars',
  'random_top_k',
  'retained',
  'retrain',
  'signature',
  'taught',
  'top_k',
]
