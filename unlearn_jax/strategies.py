"""The table of strategies: how each chooses, changes, freezes and trains."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unlearn_jax import masks, perturbation
from unlearn_jax.base import Key, Mask, Params

METHOD, CONTROL = 'method', 'control'
BASELINE, REFERENCE = 'baseline', 'reference'


# What the settings that are names can be.
CHOICES = {
  'granularity': ('scalar', 'leaf'),
  'rule': ('scale', 'donor'),
  'donor_scope': ('tensor', 'tree'),
  'objective': ('loss', 'output_norm'),
  'reduction': ('mean_abs', 'mean', 'single'),
  'js_teacher': ('source', 'retrained', 'none'),
  'train_mask': ('all', 'selected'),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that unlearning can be told; the defaults are SPEC's readings.

  Attributes:
    k: K of Top-K; how many (int) or which share (float) of the scalars, or
      how many tensors with `granularity='leaf'`.
    ratio: k of Random-k, a share of all parameters in (0, 1].
    last_k: K of EU-K and CF-K, in tensors.
    granularity: `scalar` or `leaf`; what K counts.
    epsilon_top: ε of Top-K and of its random control. The paper calls ε small
      without a number; −1 zeroes.
    epsilon_random: ε of Random-k and Random-TopK.
    rule: `scale` (Eq. 7) or `donor` (Algorithm 1, line 12) for Random-k and
      Random-TopK.
    donor_scope: `tensor` or `tree`, where donors come from.
    objective: `loss` or `output_norm`, see `sensitivity.model_objective`.
    reduction: see `sensitivity.gradient_sensitivity`.
    sensitivity_examples: how many examples of D the sensitivity averages.
    js_weight: λ of Eq. 10.
    js_teacher: `source` (the paper's), `retrained` or `none`.
    train_mask: `all` (Algorithm 1) or `selected` (Theorem 1); which scalars
      the fine-tuning moves.
    learning_rate: of Adam, in every fine-tuning. The paper has 1e-4 for EU-K
      and CF-K and is silent on the others; one rate for all keeps the rows
      comparable.
    epochs: the most epochs of fine-tuning.
    batch_size: over all devices.
    stop_js_change: bits, see `finetuning.StopRule`.
    stop_retain_share: of the source's accuracy on D_RE that must be reached.
  """

  k: int | float = 45
  ratio: float = 0.05
  last_k: int = 5
  granularity: str = 'scalar'
  epsilon_top: float = -1.0
  epsilon_random: float = 1.0
  rule: str = 'scale'
  donor_scope: str = 'tensor'
  objective: str = 'loss'
  reduction: str = 'mean_abs'
  sensitivity_examples: int = 256
  js_weight: float = 0.1
  js_teacher: str = 'source'
  train_mask: str = 'all'
  learning_rate: float = 1e-3
  epochs: int = 10
  batch_size: int = 128
  stop_js_change: float = 0.01
  stop_retain_share: float = 0.98

  def __post_init__(self):
    for name, allowed in CHOICES.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r}, allowed: {", ".join(allowed)}'
        )


# `(key, params, sensitivity, order, settings) -> mask`.
Choose = Callable[[Key, Params, Params, tuple[str, ...], Settings], Mask]
# `(key, params, fresh, mask, settings) -> params`.
Change = Callable[[Key, Params, Params, Mask, Settings], Params]


class Strategy(NamedTuple):
  """One row of the table.

  Attributes:
    label: what a report calls it.
    role: METHOD, BASELINE, CONTROL or REFERENCE.
    choose: which scalars are changed; None for none (K = 0).
    change: what happens to them; None leaves them as they are.
    needs: what `choose` and `change` use of 'sensitivity', 'fresh', 'order'.
    freezes: whether all but the chosen tensors are frozen.
    guided: whether the fine-tuning has the JS term.
    stops: whether the stop rule ends the training or only dates it.
    settings: names of the settings that only matter to strategies like this.
  """

  label: str
  role: str
  choose: Choose | None = None
  change: Change | None = None
  needs: frozenset[str] = frozenset()
  freezes: bool = False
  guided: bool = True
  stops: bool = True
  settings: tuple[str, ...] = ()


def _everything(key, params, sensitivity, order, settings):
  del key, sensitivity, order, settings
  return jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)


def _top_k(key, params, sensitivity, order, settings):
  del key, order
  return masks.topk_mask(
    params, sensitivity, settings.k, granularity=settings.granularity
  )


def _random_scalars(key, params, sensitivity, order, settings):
  chosen = _top_k(key, params, sensitivity, order, settings)
  return masks.randomk_mask(key, params, masks.count_scalars(chosen))


def _random_k(key, params, sensitivity, order, settings):
  del sensitivity, order
  return masks.randomk_mask(key, params, settings.ratio)


def _random_top_k(key, params, sensitivity, order, settings):
  del order
  return masks.random_topk_mask(
    key, params, sensitivity, settings.ratio, settings.k
  )


def _last_k(key, params, sensitivity, order, settings):
  del key, sensitivity
  return masks.last_k_mask(params, settings.last_k, order)


def _scale_top(key, params, fresh, mask, settings):
  del key, fresh
  return perturbation.perturb(params, mask, settings.epsilon_top)


def _change_random(key, params, fresh, mask, settings):
  del fresh
  if settings.rule == 'scale':
    return perturbation.perturb(params, mask, settings.epsilon_random)
  return perturbation.donor_mix(
    key,
    params,
    mask,
    settings.epsilon_random,
    scope=settings.donor_scope,
  )


def _reinitialize(key, params, fresh, mask, settings):
  del key, settings
  return perturbation.reinitialize(params, fresh, mask)


_SENSITIVITY = ('objective', 'reduction', 'sensitivity_examples')
_TOP = ('k', 'granularity', *_SENSITIVITY)
_RANDOM = ('ratio', 'epsilon_random', 'rule', 'donor_scope')

# In the order of a report.
STRATEGIES = {
  'retrain': Strategy(
    'Retrain',
    REFERENCE,
    _everything,
    _reinitialize,
    needs=frozenset({'fresh'}),
    guided=False,
    stops=False,
  ),
  'finetune': Strategy('Fine-tune only (K = 0)', CONTROL),
  'random_scalars': Strategy(
    'K random scalars',
    CONTROL,
    _random_scalars,
    _scale_top,
    needs=frozenset({'sensitivity'}),
    settings=(*_TOP, 'epsilon_top'),
  ),
  'top_k': Strategy(
    'Top-K',
    METHOD,
    _top_k,
    _scale_top,
    needs=frozenset({'sensitivity'}),
    settings=(*_TOP, 'epsilon_top'),
  ),
  'random_k': Strategy(
    'Random-k', METHOD, _random_k, _change_random, settings=_RANDOM
  ),
  'random_top_k': Strategy(
    'Random-TopK',
    METHOD,
    _random_top_k,
    _change_random,
    needs=frozenset({'sensitivity'}),
    settings=('k', *_SENSITIVITY, *_RANDOM),
  ),
  'eu_k': Strategy(
    'EU-K',
    BASELINE,
    _last_k,
    _reinitialize,
    needs=frozenset({'fresh', 'order'}),
    freezes=True,
    guided=False,
    settings=('last_k',),
  ),
  'cf_k': Strategy(
    'CF-K',
    BASELINE,
    _last_k,
    needs=frozenset({'order'}),
    freezes=True,
    guided=False,
    settings=('last_k',),
  ),
}
