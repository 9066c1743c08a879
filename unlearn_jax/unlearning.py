"""The method in one screen: `ModelState -> ModelState`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from unlearn_jax import finetuning, normalization, timing, training
from unlearn_jax.base import (
  Batch,
  Examples,
  Key,
  Mask,
  Model,
  ModelState,
  Params,
  Splits,
  tensor_paths,
)
from unlearn_jax.divergences import js_divergence
from unlearn_jax.prediction import predict
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.strategies import STRATEGIES, Settings, Strategy

# Below this many bits of JS divergence on held-out data a perturbation has
# done nothing that fine-tuning alone would not do.
NOTHING = 1e-3


class Unlearning(NamedTuple):
  """An unlearned model and how it came about.

  Attributes:
    state: θ, the unlearned model.
    perturbed: ω' with BatchNorm re-estimated, where the fine-tuning started.
    by_tensor: scalars changed by the perturbation, per tensor path.
    perturbation_js: bits; mean JS divergence on held-out data that the
      perturbation caused, BatchNorm re-estimated on both sides.
    history: the fine-tuning's curve, epoch 0 first.
    stop_epoch: when the stop rule held first; None if it never did.
    seconds: of selection, perturbation, re-estimation and training up to
      `stop_epoch` (or the end), without compilation.
    selection_seconds: those of them before the first epoch's clock.
    source_retain_accuracy: of the source, as `finetuning.monitor` sees it;
      what the stop rule's share is taken of.
    compile_seconds: what compilation cost in all.
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


def unlearn(
  key: Key,
  model: Model,
  source: ModelState,
  splits: Splits,
  strategy: str = 'top_k',
  settings: Settings | None = None,
  *,
  retrained: ModelState | None = None,
  optimizer: optax.GradientTransformation | None = None,
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
    strategy: a name of `STRATEGIES`.
    settings: `Settings()` by default.
    retrained: M_RE, needed with `js_teacher='retrained'` only.
    optimizer: of the training; Adam at `settings.learning_rate` by default.
    augment: applied to D_RE's images while training.
    on_epoch: told of each epoch as it ends.
    keeper: lets an interrupted fine-tuning go on, see `training.fit`; what
      comes before it is computed again, to the same numbers.

  Returns:
    The `Unlearning`.

  Raises:
    ValueError: an unknown strategy, or settings that do not fit the model.

  Example:
    >>> import jax.numpy as jnp
    >>> from unlearn_jax.base import stateless
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    >>> every = Examples.of(x, y)
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.array([[9., 0], [0, 9], [9, 0], [0, 9]])})
    >>> settings = Settings(k=2, epochs=0, batch_size=3)
    >>> from unlearn_jax import parallel
    >>> with parallel.use(jax.devices()[:1]):
    ...   result = unlearn(jax.random.key(0), model, source, splits,
    ...                    settings=settings)
    >>> result.by_tensor
    {'w': 2}
  """
  settings = Settings() if settings is None else settings
  if strategy not in STRATEGIES:
    raise ValueError(f'strategy={strategy!r}, allowed: {", ".join(STRATEGIES)}')
  row = STRATEGIES[strategy]
  select_key, change_key, init_key, train_key = jax.random.split(key, 4)
  measure = finetuning.monitor(model, source, splits)
  before = measure(source)['retain_accuracy']
  rule = finetuning.StopRule(
    settings.stop_js_change, settings.stop_retain_share * before
  )

  with timing.Stopwatch() as watch:
    # Choosing: the mask of what is changed; none at all for K = 0.
    mask = _choose(select_key, model, source, splits, row, settings)
    frozen = _frozen(mask) if row.freezes else frozenset()
    own = training.frozen_model(model, frozen) if frozen else model
    # Changing: ω ← ω + ε·ω where chosen, or a fresh start for EU-K.
    params = source.params
    if row.change is not None:
      fresh = params
      if 'fresh' in row.needs:
        fresh = training.initialize(init_key, model).params
      params = row.change(change_key, params, fresh, mask, settings)
    perturbed = ModelState(params, source.batch_stats)
    # Re-estimating BatchNorm: stale statistics are not forgetting.
    perturbed = normalization.reestimate(own, perturbed, splits.retain)
    watch.wait(perturbed)

  # Fine-tuning: CE on D_RE, and λ·JS to the teacher on D_UL.
  fit = finetuning.finetune(
    train_key,
    model,
    perturbed,
    splits,
    teacher=_teacher(settings, source, retrained) if row.guided else None,
    js_weight=settings.js_weight,
    epochs=settings.epochs,
    batch_size=settings.batch_size,
    optimizer=optimizer or training.adam(settings.learning_rate),
    frozen=frozen,
    update_mask=mask if settings.train_mask == 'selected' else None,
    augment=augment,
    measure=measure,
    stop_rule=rule if row.stops else None,
    on_epoch=on_epoch,
    keeper=keeper,
  )
  stop_epoch = rule.epoch(fit.history)
  return Unlearning(
    state=fit.state,
    perturbed=perturbed,
    by_tensor=_changed(row, mask, source.params),
    perturbation_js=_effect(own, source, perturbed, splits),
    history=fit.history,
    stop_epoch=stop_epoch,
    seconds=watch.seconds + fit.history[stop_epoch or -1].seconds,
    selection_seconds=watch.seconds,
    source_retain_accuracy=before,
    compile_seconds=watch.compile_seconds + fit.compile_seconds,
  )


def _choose(
  key: Key,
  model: Model,
  source: ModelState,
  splits: Splits,
  row: Strategy,
  settings: Settings,
) -> Mask | None:
  if row.choose is None:
    return None
  sensitivity = None
  sample_key, choose_key = jax.random.split(key)
  if 'sensitivity' in row.needs:
    count = min(settings.sensitivity_examples, splits.train.size)
    rows = jax.random.choice(
      sample_key, splits.train.size, (count,), replace=False
    )
    sensitivity = gradient_sensitivity(
      model_objective(model, settings.objective),
      source.params,
      _batch(splits.train.take(np.asarray(rows))),
      source.batch_stats,
      reduction=settings.reduction,
    )
  return row.choose(
    choose_key, source.params, sensitivity, model.order, settings
  )


def _batch(examples: Examples) -> Batch:
  rows = np.asarray(examples.indices)
  return Batch(examples.images[rows], examples.labels[rows])


def _frozen(mask: Mask) -> frozenset[str]:
  """Paths of the tensors of which nothing is chosen."""
  return frozenset(
    path
    for path, leaf in zip(tensor_paths(mask), jax.tree.leaves(mask))
    if not leaf.any()
  )


def _teacher(
  settings: Settings, source: ModelState, retrained: ModelState | None
) -> ModelState | None:
  if settings.js_teacher == 'none':
    return None
  if settings.js_teacher == 'source':
    return source
  if retrained is None:
    raise ValueError("js_teacher='retrained' needs retrained, which is None")
  return retrained


def _changed(
  row: Strategy, mask: Mask | None, params: Params
) -> dict[str, int]:
  if mask is None or row.change is None:
    return dict.fromkeys(tensor_paths(params), 0)
  counts = [int(leaf.sum()) for leaf in jax.tree.leaves(mask)]
  return dict(zip(tensor_paths(params), counts))


def _effect(
  model: Model, source: ModelState, perturbed: ModelState, splits: Splits
) -> float:
  """Bits by which the perturbation alone moved the outputs on held-out data."""
  held_out = splits.test.take(np.arange(min(2048, splits.test.size)))
  unchanged = normalization.reestimate(model, source, splits.retain)
  before = predict(model, unchanged, held_out)
  after = predict(model, perturbed, held_out)
  return float(np.mean(js_divergence(before, after)))
