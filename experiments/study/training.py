"""The stages that make models: sources, and what strategies make of them."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import msgspec
import numpy as np

from unlearn_jax import training
from unlearn_jax.base import Examples, Key, Model, Splits
from unlearn_jax.data import images
from unlearn_jax.evaluation import Predictions, predict_splits
from unlearn_jax.strategies import REFERENCE, Chosen
from unlearn_jax.unlearning import Unlearning, unlearn
from .. import config
from ..runtime.progress import Progress
from ..workdir import finished
from ..workdir.finished import Finished, Manifest, Recipe, Record
from ..workdir.partials import Partial
from . import canaries, stages
from . import setup as setups
from .setup import Setup
from .stages import Output, Stage


def fitted(
  key: Key,
  model: Model,
  examples: Examples,
  study: config.Study,
  on_epoch: Callable[[training.Epoch], None],
  keeper: Partial,
) -> training.Fit:
  """Trains a model by the recipe of a study."""
  recipe = study.recipe
  steps = recipe.epochs * (examples.size // recipe.batch_size)
  return training.train(
    key,
    model,
    examples,
    epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    optimizer=recipe.optimizer(recipe.learning_rate, steps),
    augment=images.augment if recipe.augment else None,
    on_epoch=on_epoch,
    keeper=keeper,
  )


def budgeted(study: config.Study) -> dict[str, Any]:
  """What every strategy of a study is given, for `unlearn`."""
  recipe = study.recipe
  return {
    'budget': study.methods.budget(recipe.batch_size),
    'recipe': recipe,
    'augment': images.augment if recipe.augment else None,
  }


def train_source(
  stage: Stage, partial: Partial, progress: Progress, run: int
) -> Output:
  """Trains M on D; see `stages.Work`."""
  study, setup, splits = stages.problem(stage, run)
  seed = study.draws.of('source', run)
  key, how = setups.key_of('source', seed), (study, progress.epoch, partial)
  fit = fitted(key, setup.model, splits.train, *how)
  # A source serves every forget set, so all of D is kept in `retain`, in the
  # order of the data set; and whatever methods see, all test images.
  every = splits._replace(retain=splits.train, test=setup.dataset.test)
  forget = setups.forget_hash(setup, splits)
  output = _output(
    setup,
    fit,
    every,
    f'{fit.history[-1].seconds:.1f} s',
    strategy='source',
    recipe=Recipe.of(study.recipe),
    # With wrong labels it serves this one only.
    forget_sha256=None if splits.truth is None else forget,
    seed=seed,
  )
  ids = setups.ids_of(setup, splits.train)
  output = with_ids(output, finished.TRAINED, ids)
  if count := setup.facts.canaries:
    names = canaries.chosen(setup.dataset, count)
    own = np.array(names)[canaries.planted(names)].tolist()
    output = with_ids(output, canaries.FILE, own)
  return output


def unlearn_source(
  stage: Stage,
  partial: Partial,
  progress: Progress,
  run: int,
  chosen: Chosen,
  reference: int = 0,
  given: tuple[config.Study, Setup, Splits] | None = None,
) -> Output:
  """Makes M forget by one strategy; see `stages.Work`.

  `given`: a problem that is loaded and split, where it is not that of a run.
  """
  study, setup, splits = given or stages.problem(stage, run)
  seed = study.draws.of('unlearn', run)
  source, retrained = stages.load(stage.parents['source']), None
  if 'retrained' in stage.parents:
    retrained = stages.load(stage.parents['retrained']).state
  # The same for every strategy: what is compared sees the same batches. Not
  # for what it is compared with: who starts afresh would start as Retrain did.
  key = setups.key_of('unlearn', seed)
  if chosen.strategy.role == REFERENCE:
    key = jax.random.fold_in(key, 2**31 + reference)
  result = unlearn(
    key,
    setup.model,
    source.state,
    splits,
    chosen.strategy,
    **budgeted(study),
    retrained=retrained,
    on_epoch=progress.epoch,
    keeper=partial,
  )
  last, follows_recipe = result.history[-1], chosen.strategy.follows == 'recipe'
  own = result.history[result.picked].measured
  parts = [
    f'forget {100 * own["forget_accuracy"]:.1f} %',
    f'retain {100 * own["retain_accuracy"]:.1f} %',
    f'{last.seconds + result.selection_seconds:.1f} s',
  ]
  output = _output(
    setup,
    result,
    splits,
    ', '.join(parts),
    strategy=finished.REFERENCE if reference else chosen.text,
    recipe=Recipe.of(study.recipe) if follows_recipe else None,
    parameters=dict(stage.depends['training']),
    parent_sha256=source.manifest.state_sha256,
    forget_sha256=setups.forget_hash(setup, splits),
    class_matched=splits.unseen is not None,
    heldout=study.heldout,
    seed=seed,
  )
  return with_ids(output, finished.FORGET, setups.ids_of(setup, splits.forget))


def with_ids(output: Output, name: str, ids: list[str]) -> Output:
  """The same with a file of ids, one a line."""
  content = '\n'.join([*ids, '']).encode()
  return output._replace(files={**output.files, name: content})


def epochs_of(study: config.Study, chosen: Chosen) -> int:
  """How many a strategy may take."""
  by_recipe = chosen.strategy.follows == 'recipe'
  default = (study.recipe if by_recipe else study.methods).epochs
  own = chosen.strategy.epochs
  return default if own is None else own


def made_by(study: config.Study, chosen: Chosen) -> dict[str, Any]:
  """All that a strategy's result depends on beside data, model and source."""
  recipe = msgspec.to_builtins(Recipe.of(study.recipe))
  more = {name: recipe[name] for name in ('augment', 'batch_size')}
  if chosen.strategy.follows == 'recipe':
    more |= recipe
  else:
    names = ['learning_rate', 'epochs']
    names = [name for name in names if getattr(chosen.strategy, name) is None]
    names += ['stop_js_change', 'stop_retain_share', 'optimizer', 'schedule']
    more |= {name: getattr(study.methods, name) for name in names}
  return {
    'strategy': chosen.name,
    'training': {**chosen.parameters, **more},
    'code': chosen.source_sha256,
  }


def predictions_of(
  setup: Setup, model: Finished, splits: Splits
) -> Predictions:
  """Predictions on the parts of these splits, kept ones where there are any."""
  kept, source = model.predictions, model.manifest.strategy == 'source'
  # A Retrain that is given may be of a run that held out others; as many are
  # the same, see `data.set_aside`.
  other = kept and not source and len(kept.test) != splits.test.size
  if kept is None or other:
    return predict_splits(setup.model, model.state, splits)
  if not source:
    return kept
  rows = np.asarray(splits.train.indices).argsort()
  tests = np.asarray(setup.dataset.test.indices).argsort()
  return Predictions(
    forget=kept.retain[rows[np.asarray(splits.forget.indices)]],
    retain=kept.retain[rows[np.asarray(splits.retain.indices)]],
    test=kept.test[tests[np.asarray(splits.test.indices)]],
  )


def _output(
  setup: Setup,
  made: training.Fit | Unlearning,
  splits: Splits,
  note: str,
  **said: Any,
) -> Output:
  """What is kept of a model; its outputs may overflow where it does not."""
  # What is kept of how it came about has the same names here and there.
  names = Record.__dataclass_fields__.keys() & {*made._fields}
  own = {name: getattr(made, name) for name in names}
  own['history'] = [
    finished.Epoch(row.epoch, row.loss, row.seconds, **row.measured)
    for row in made.history
  ]
  record = Record(**own)
  for row in record.history:
    numbers = [v for v in dataclasses.astuple(row) if v is not None]
    if not np.isfinite(numbers).all():
      raise training.DivergedError(row.epoch)
  if not np.isfinite(record.perturbation_js):
    raise training.DivergedError(0)
  predictions = predict_splits(setup.model, made.state, splits)
  if not all(np.isfinite(part).all() for part in predictions):
    raise training.DivergedError(record.history[-1].epoch)
  files = finished.contents(record, **predictions._asdict())
  said |= {'given_labels': setups.given_labels(splits)}
  manifest = Manifest(**dataclasses.asdict(setup.facts), **said)
  return Output(made.state._asdict(), manifest, files, note)
