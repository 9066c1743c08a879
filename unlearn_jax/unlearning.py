"""The method in one screen: `ModelState -> ModelState`."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import (
  finetuning,
  normalization,
  objectives,
  parallel,
  timing,
  training,
)
from unlearn_jax.base import (
  Context,
  Examples,
  Key,
  Mask,
  Model,
  ModelState,
  Splits,
  tensor_paths,
)
from unlearn_jax.divergences import js_divergence
from unlearn_jax.finetuning import Budget
from unlearn_jax.prediction import predict, require_classes
from unlearn_jax.recipes import RECIPES, Recipe
from unlearn_jax.strategies import Edit, Strategy

# Below this many bits of JS divergence on held-out data a perturbation has
# done nothing that fine-tuning alone would not do.
NOTHING = 1e-3


class Unlearning(NamedTuple):
  """An unlearned model and how it came about.

  Attributes:
    state: θ, the unlearned model; where batches of others than D_RE were
      normalised by themselves, with BatchNorm re-estimated on D_RE, which the
      curve in `history` is not.
    perturbed: ω' with BatchNorm re-estimated, where the fine-tuning started.
    by_tensor: scalars changed by the edit, per tensor path.
    perturbation_js: bits; mean JS divergence on held-out data that the
      edit caused, BatchNorm re-estimated on both sides.
    history: the fine-tuning's curve, epoch 0 first.
    stop_epoch: when the stop rule held first; None if it never did.
    seconds: of edit, re-estimation and training up to `stop_epoch` (or the
      end), without compilation.
    selection_seconds: those of them outside of the epochs' clock.
    source_retain_accuracy: of the source, as `finetuning.monitor` sees it;
      what the stop rule's share is taken of.
    compile_seconds: what compilation cost in all.
    picked: the position in `history` of θ; the last unless the strategy picks.
  """

  state: ModelState
  perturbed: ModelState
  by_tensor: dict[str, int]
  perturbation_js: float
  history: tuple[training.Epoch, ...]
  stop_epoch: int | None
  seconds: float
  selection_seconds: float
  source_retain_accuracy: float
  compile_seconds: float
  picked: int = -1


@parallel.apart
def unlearn(
  key: Key,
  model: Model,
  source: ModelState,
  splits: Splits,
  strategy: Strategy,
  budget: Budget | None = None,
  *,
  recipe: Recipe = RECIPES['paper'],
  retrained: ModelState | None = None,
  augment: training.Augment | None = None,
  on_epoch: Callable[[training.Epoch], None] | None = None,
  keeper: training.Keeper | None = None,
) -> Unlearning:
  """Makes `source` forget D_UL (Zuo et al., Algorithm 1, and its baselines).

  Args:
    key: typed PRNG key; it is consumed.
    model: the classifier.
    source: M, trained on D; its arrays are left alone.
    splits: D_UL, D_RE and held-out data.
    strategy: of `strategies`, or one's own.
    budget: `Budget()` by default.
    recipe: by which the source was trained; Retrain follows it.
    retrained: M_RE, needed by strategies that it teaches only.
    augment: applied to the images of a batch while training.
    on_epoch: told of each epoch as it ends.
    keeper: lets an interrupted training go on, see `training.fit`; what
      comes before it is computed again, to the same numbers.

  Returns:
    The `Unlearning`.

  Raises:
    ValueError: a strategy or labels that do not fit the model.
    DivergedError: see `training.fit`.

  Example:
    >>> import jax.numpy as jnp
    >>> from unlearn_jax import parallel, strategies
    >>> from unlearn_jax.base import Examples, stateless
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    >>> every = Examples.of(x, y)
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.array([[9., 0], [0, 9], [9, 0], [0, 9]])})
    >>> with parallel.use(jax.devices()[:1]):
    ...   result = unlearn(jax.random.key(0), model, source, splits,
    ...                    strategies.top_k(k=2), Budget(0, batch_size=3))
    >>> result.by_tensor
    {'w': 2}
  """
  given, source = source, parallel.replicate(source)
  budget = Budget() if budget is None else budget
  require_classes(model, source, splits.train, splits.test)
  if strategy.check:
    strategy.check(source.params, model.order)
  context = Context(key, model, source, splits, retrained)
  if strategy.needs_heldout:
    objectives.heldout_of(splits)
  measure = finetuning.monitor(model, source, splits)
  before = measure(source)['retain_accuracy']
  rule = budget.stop_rule(before)

  with timing.Stopwatch() as watch:
    # Choosing and changing: ω ← ω + ε·ω where chosen, or a fresh start.
    edit = strategy.edit(context)
    if strategy.moves != 'all' and edit.mask is None:
      raise ValueError(f'moves={strategy.moves!r}, allowed: with Edit.mask')
    frozen = _frozen(edit.mask) if strategy.moves == 'tensors' else frozenset()
    own = training.frozen_model(model, frozen) if frozen else model
    # Re-estimating BatchNorm: stale statistics are not forgetting.
    perturbed = ModelState(edit.params, source.batch_stats)
    anew = functools.partial(
      normalization.reestimate, own, examples=splits.retain, augment=augment
    )
    perturbed = watch.wait(anew(perturbed))

  # Training: the weighted terms, by the budget or as the source was trained.
  fit = training.Fit(
    perturbed, (training.Epoch(0, None, 0.0, measure(perturbed)),), 0.0
  )
  kept: list[ModelState] = []
  if strategy.terms:
    train = functools.partial(
      finetuning.minimize,
      context,
      perturbed,
      strategy.terms,
      **_schedule(strategy, budget, recipe),
      penalty=strategy.penalty,
      passes=strategy.passes,
      frozen=frozen,
      update_mask=edit.mask if strategy.moves == 'scalars' else edit.scales,
      mask=edit.mask,
      augment=augment,
      measure=_keeping(measure, kept) if strategy.pick else measure,
      stop_rule=rule if strategy.follows == 'budget' else None,
    )
    fit = train(on_epoch=on_epoch, keeper=keeper)
    # Of one that went on the first models are gone: they are made once more.
    if strategy.pick and len(kept) < len(fit.history):
      kept.clear()
      train()
  picked = -1
  if strategy.pick and kept:
    picked = strategy.pick(context, kept)
    fit = fit._replace(state=kept[picked])
  # Of what other batches than D_RE's left in BatchNorm's statistics, nothing.
  with timing.Stopwatch() as last:
    if any(
      term.batch_norm == 'batch' and term.examples is not objectives.retained
      for term in strategy.terms
    ):
      fit = fit._replace(state=last.wait(anew(fit.state)))
  stop_epoch = rule.epoch(fit.history)
  preparation = watch.seconds + last.seconds + fit.preparation_seconds
  return Unlearning(
    state=parallel.placed_like(fit.state, given),
    perturbed=parallel.placed_like(perturbed, given),
    by_tensor=_changed(edit, source),
    perturbation_js=_effect(own, anew(source), perturbed, splits.test),
    history=fit.history,
    stop_epoch=stop_epoch,
    seconds=preparation + fit.history[stop_epoch or -1].seconds,
    selection_seconds=preparation,
    source_retain_accuracy=before,
    compile_seconds=sum(x.compile_seconds for x in (watch, last, fit)),
    picked=picked,
  )


def _keeping(
  measure: Callable[[ModelState], dict[str, float]], kept: list[ModelState]
) -> Callable[[ModelState], dict[str, float]]:
  """The same, and keeps what it is shown, which the next epoch destroys."""

  def look(state: ModelState) -> dict[str, float]:
    kept.append(jax.tree.map(jnp.copy, state))
    return measure(state)

  return look


def _schedule(strategy: Strategy, budget: Budget, recipe: Recipe) -> dict:
  """Epochs, batch size and optimiser of a training."""
  own = budget.optimizer, budget.schedule, strategy.transform
  make: Any = functools.partial(finetuning.optimizer, *own)
  epochs, rate, size = budget.epochs, budget.learning_rate, budget.batch_size
  if strategy.follows == 'recipe':
    make = recipe.optimizer
    epochs, rate, size = recipe.epochs, recipe.learning_rate, recipe.batch_size
  make = strategy.optimizer or make
  epochs = epochs if strategy.epochs is None else strategy.epochs
  optimizer = functools.partial(make, strategy.learning_rate or rate)
  return {'epochs': epochs, 'batch_size': size, 'optimizer': optimizer}


def _frozen(mask: Mask) -> frozenset[str]:
  """Paths of the tensors of which nothing is chosen."""
  return frozenset(
    path
    for path, leaf in zip(tensor_paths(mask), jax.tree.leaves(mask))
    if not leaf.any()
  )


def _changed(edit: Edit, source: ModelState) -> dict[str, int]:
  paths = tensor_paths(source.params)
  if edit.mask is None or edit.params is source.params:
    return dict.fromkeys(paths, 0)
  counts = [int(leaf.sum()) for leaf in jax.tree.leaves(edit.mask)]
  return dict(zip(paths, counts))


def _effect(
  model: Model, unchanged: ModelState, perturbed: ModelState, test: Examples
) -> float:
  """Bits by which the edit alone moved the outputs on held-out data."""
  held_out = test.spread(2048)
  before = predict(model, unchanged, held_out)
  after = predict(model, perturbed, held_out)
  return float(np.mean(js_divergence(before, after)))
