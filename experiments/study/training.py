"""The stages that make models: sources, and what strategies make of them."""

import dataclasses
from typing import Any

import msgspec
import numpy as np

from experiments import config
from experiments.runtime.progress import Progress
from experiments.study import setup as setups
from experiments.study import stages
from experiments.study.setup import Setup
from experiments.study.stages import Output, Stage
from experiments.workdir import finished
from experiments.workdir.finished import Finished, Manifest, Record
from experiments.workdir.partials import Partial
from unlearn_jax import training
from unlearn_jax.base import InputError, ModelState, Splits
from unlearn_jax.data import images
from unlearn_jax.evaluation import Predictions, predict_splits
from unlearn_jax.recipes import Recipe
from unlearn_jax.strategies import Chosen
from unlearn_jax.unlearning import Unlearning, unlearn


@dataclasses.dataclass(frozen=True)
class TrainSource:
  """Trains M on D."""

  study: config.Study
  run: int

  def compute(
    self, stage: Stage, partial: Partial, progress: Progress
  ) -> Output:
    """See `stages.Work`."""
    study, setup = self.study, setups.set_up(self.study)
    splits = setups.draw(setup, study, self.run)
    recipe, seed = study.training.resolved, study.draws.of('source', self.run)
    fit = training.train(
      setups.key_of('source', seed),
      setup.model,
      splits.train,
      epochs=recipe.epochs,
      batch_size=recipe.batch_size,
      optimizer=recipe.optimizer(
        recipe.learning_rate,
        recipe.epochs * (splits.train.size // recipe.batch_size),
      ),
      augment=images.augment if recipe.augment else None,
      on_epoch=progress.epoch,
      keeper=partial,
    )
    record = Record(_history(fit.history), fit.compile_seconds)
    manifest = Manifest(
      **_facts(setup),
      strategy='source',
      recipe=_recipe(recipe),
      seed=seed,
    )
    predictions = _of_all(setup, fit.state, splits)
    note = f'{fit.history[-1].seconds:.1f} s'
    return _output(stage, fit.state, manifest, record, predictions, note)


@dataclasses.dataclass(frozen=True)
class Unlearn:
  """Makes M forget by one strategy."""

  study: config.Study
  run: int
  chosen: Chosen

  def compute(
    self, stage: Stage, partial: Partial, progress: Progress
  ) -> Output:
    """See `stages.Work`."""
    study, setup = self.study, setups.set_up(self.study)
    splits = setups.draw(setup, study, self.run)
    recipe, seed = study.training.resolved, study.draws.of('unlearn', self.run)
    source, retrained = stages.load(stage.parents['source']), None
    if 'retrained' in stage.parents:
      retrained = stages.load(stage.parents['retrained']).state
    result = unlearn(
      # The same for every strategy: what is compared sees the same batches.
      setups.key_of('unlearn', seed),
      setup.model,
      source.state,
      splits,
      self.chosen.strategy,
      study.methods.budget(recipe.batch_size),
      recipe=recipe,
      retrained=retrained,
      augment=images.augment if recipe.augment else None,
      on_epoch=progress.epoch,
      keeper=partial,
    )
    record = Record(
      _history(result.history),
      result.compile_seconds,
      result.selection_seconds,
      result.source_retain_accuracy,
      result.by_tensor,
      result.perturbation_js,
    )
    follows_recipe = self.chosen.strategy.follows == 'recipe'
    manifest = Manifest(
      **_facts(setup),
      strategy=self.chosen.text,
      recipe=_recipe(recipe) if follows_recipe else None,
      parameters=dict(stage.depends['training']),
      parent_sha256=source.manifest.state_sha256,
      forget_sha256=setups.forget_hash(setup, splits),
      seed=seed,
    )
    predictions = predict_splits(setup.model, result.state, splits)
    note = _summary(result, follows_recipe)
    output = _output(stage, result.state, manifest, record, predictions, note)
    ids = '\n'.join(setups.forget_ids(setup, splits)) + '\n'
    files = {**output.files, finished.FORGET: ids.encode()}
    return output._replace(files=files)


def trained_by(study: config.Study, chosen: Chosen) -> dict[str, Any]:
  """All that a strategy's result depends on beside data, model and source."""
  recipe = study.training.resolved
  own: dict[str, Any] = {
    **chosen.parameters,
    'augment': recipe.augment,
    'batch_size': recipe.batch_size,
  }
  if chosen.strategy.follows == 'recipe':
    return {**own, **msgspec.to_builtins(_recipe(recipe))}
  methods = study.methods
  for name in ('learning_rate', 'epochs'):
    if getattr(chosen.strategy, name) is None:
      own[name] = getattr(methods, name)
  rule = ('stop_js_change', 'stop_retain_share')
  return {**own, **{name: getattr(methods, name) for name in rule}}


def predictions_of(
  setup: Setup, model: Finished, splits: Splits, source: bool
) -> Predictions:
  """Predictions on the parts of these splits, kept ones where there are any."""
  kept = model.predictions
  if kept is None:
    return predict_splits(setup.model, model.state, splits)
  parts = {'retain': splits.train, 'test': splits.test}
  if not source:
    parts |= {'forget': splits.forget, 'retain': splits.retain}
  for name, part in parts.items():
    found = getattr(kept, name)
    if found.ndim != 2 or len(found) != part.size or found.dtype.kind != 'f':
      raise InputError(
        f'{model.path}: its predictions of {name} are'
        f' {found.dtype}{list(found.shape)}, allowed: a row for each of'
        f' {part.size} images'
      )
  if not source:
    return kept
  rows = np.asarray(splits.train.indices).argsort()
  return Predictions(
    forget=kept.retain[rows[np.asarray(splits.forget.indices)]],
    retain=kept.retain[rows[np.asarray(splits.retain.indices)]],
    test=kept.test,
  )


def _of_all(setup: Setup, state: ModelState, splits: Splits) -> Predictions:
  """Predictions of a model that no forget set belongs to.

  A source serves every forget set, so all of D is kept in `retain`, in the
  order of the data set.
  """
  every = splits._replace(retain=splits.train)
  return predict_splits(setup.model, state, every)


def _facts(setup: Setup) -> dict[str, Any]:
  return msgspec.to_builtins(setup.facts)


def _recipe(recipe: Recipe) -> finished.Recipe:
  return finished.Recipe(
    recipe.optimizer.__name__,
    recipe.epochs,
    recipe.learning_rate,
    recipe.batch_size,
    recipe.augment,
  )


def _history(history: tuple[training.Epoch, ...]) -> list[finished.Epoch]:
  return [
    finished.Epoch(row.epoch, row.loss, row.seconds, **row.measured)
    for row in history
  ]


def _output(
  stage: Stage,
  state: ModelState,
  manifest: Manifest,
  record: Record,
  predictions: Predictions,
  note: str,
) -> Output:
  """What is kept of a model; its outputs may overflow where it does not."""
  for row in record.history:
    numbers = [v for v in dataclasses.astuple(row) if v is not None]
    if not np.isfinite(numbers).all():
      raise stages.diverged(stage, row.epoch)
  if not np.isfinite(record.perturbation_js):
    raise stages.diverged(stage, 0)
  files = finished.contents(record, **predictions._asdict())
  return Output(state._asdict(), manifest, files, note)


def _summary(result: Unlearning, follows_recipe: bool) -> str:
  last = result.history[-1]
  parts = [
    f'forget {100 * last.measured["forget_accuracy"]:.1f} %',
    f'retain {100 * last.measured["retain_accuracy"]:.1f} %',
    f'{last.seconds + result.selection_seconds:.1f} s',
  ]
  if result.stop_epoch is None and not follows_recipe:
    parts.append('stop rule not met')
  changed = sum(result.by_tensor.values())
  if changed and not follows_recipe:
    bits = result.perturbation_js
    parts.insert(0, f'{changed:,} scalars changed, outputs by {bits:.4f} bits')
  return ', '.join(parts)
