"""How a model is made to forget: strategies as data, one file a family.

    strategy = strategies.top_k(k=45, epsilon=-1.0)
    unlearned = unlearn(key, model, source, splits, strategy).state

| file | what it holds |
|---|---|
| `base` | the types: an edit of the weights, then weighted terms |
| `references` | Retrain; its controls, K = 0 and from scratch; EU-K, CF-K |
| `choosing` | which scalars: scores of them, and who is taken |
| `perturbing` | Top-K, Random-k, Random-TopK, K random scalars; MSG |
| `opposing` | NegGrad+, SFR-on, SalUn, AMUN, boundary shrink |
| `distilling` | SCRUB, bad teacher, ReGUn |
| `refreshing` | shrink and perturb, CT, L1-sparse, noisy fine-tuning, SSD |
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
from unlearn_jax.strategies.distilling import bad_teacher, regun, scrub
from unlearn_jax.strategies.opposing import (
  amun,
  boundary_shrink,
  neggrad_plus,
  salun,
  sfron,
)
from unlearn_jax.strategies.perturbing import (
  msg,
  random_k,
  random_scalars,
  random_top_k,
  top_k,
)
from unlearn_jax.strategies.references import (
  cf_k,
  eu_k,
  finetune,
  retrain,
  scratch,
)
from unlearn_jax.strategies.refreshing import (
  ct,
  l1_sparse,
  noisy_finetune,
  shrink_perturb,
  ssd,
)
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
  'amun',
  'bad_teacher',
  'boundary_shrink',
  'cf_k',
  'closest',
  'ct',
  'eu_k',
  'finetune',
  'guided',
  'keep',
  'l1_sparse',
  'msg',
  'neggrad_plus',
  'noisy_finetune',
  'parse',
  'random_k',
  'random_scalars',
  'random_top_k',
  'regun',
  'retained',
  'retrain',
  'salun',
  'scratch',
  'scrub',
  'sfron',
  'shrink_perturb',
  'signature',
  'ssd',
  'taught',
  'top_k',
]
