"""The stages of an audit: models trained to be attacked, or to attack by.

Each learns some of D, and is made to forget parts of that, by every strategy.
All have one shape, so that each program is compiled once; what is kept of them
is φ of every example (`attacks.true_class_margin`).
"""

from collections.abc import Callable
import dataclasses
import functools
import itertools
import threading

import jax
import numpy as np

from unlearn_jax import attacks, checkpoints
from unlearn_jax import training as loops
from unlearn_jax.attacks import Drawn
from unlearn_jax.base import Examples, Key, Model, ModelState, Splits
from unlearn_jax.data import images
from unlearn_jax.prediction import predict
from unlearn_jax.snapshots import Epoch
from unlearn_jax.strategies import REFERENCE, Chosen
from unlearn_jax.unlearning import unlearn
from .. import config
from ..runtime.progress import Progress
from ..workdir import finished
from ..workdir.finished import Manifest, Recipe, Record
from ..workdir.partials import Partial
from . import setup as setups
from . import stages
from .stages import Output, Stage

_DRAWING = threading.Lock()  # A worker of Dask has several threads.

# Models of an ensemble learn all of D; shadows and targets random halves.
SHADOW, TARGET, MEMBER = 'shadow', 'target', 'member'


@dataclasses.dataclass(frozen=True)
class Which:
  """One model of an audit."""

  kind: str  # SHADOW, TARGET or MEMBER
  number: int  # from 0
  requests: int  # how many sets it is made to forget, one by one


def drawn(study: config.Study, splits: Splits, which: Which) -> Drawn:
  """What a model of a study learns and forgets."""
  if which.kind == MEMBER:
    places = np.asarray(splits.train.indices)
    forget = np.flatnonzero(np.isin(places, np.asarray(splits.forget.indices)))
    return Drawn(np.arange(splits.train.size), (forget,))
  total, seed = splits.train.size, study.draws.of('split', 0)
  size = splits.forget.size // 2
  return _drawn(seed, total, size, which.kind, which.requests, which.number)[-1]


@functools.lru_cache(maxsize=4)
def _iterator(seed: int, total: int, size: int, kind: str, requests: int):
  """Draws of one kind of models, and those that have been made."""
  key = jax.random.fold_in(setups.key_of('audit', seed), kind == TARGET)
  return attacks.shadow_draws(key, total, size, requests), []


def _drawn(seed, total, size, kind, requests, number) -> list[Drawn]:
  """Those of the models up to this number."""
  with _DRAWING:
    more, made = _iterator(seed, total, size, kind, requests)
    made += itertools.islice(more, max(0, number + 1 - len(made)))
    return made[: number + 1]


def parts_of(splits: Splits, own: Drawn, number: int) -> Splits:
  """The splits of one request to a model."""
  learned = splits.train.take(own.rows)
  forget = np.searchsorted(own.rows, own.requests[number])
  return Splits.of(learned, forget, splits.test)


def train_model(
  stage: Stage, partial: Partial, progress: Progress, which: Which
) -> Output:
  """Trains a model on what it learns; see `stages.Work`."""
  study, setup, splits = stages.problem(stage, 0)
  learned = splits.train.take(drawn(study, splits, which).rows)
  key = _key(study.draws.of('source', 0), which, 0)
  fit = trained(key, setup.model, learned, study, progress.epoch, partial)
  phi, right = look(setup.model, fit.state, splits)
  total = splits.train.size
  note = f'test {100 * right[total:].mean():.1f} %'
  recipe = study.recipe
  manifest = Manifest(
    **dataclasses.asdict(setup.facts),
    strategy=which.kind,  # No source that `evaluate` would take for another.
    recipe=Recipe.of(recipe),
    given_labels=setups.given_labels(splits),
    seed=study.draws.of('source', 0),
  )
  tree = fit.state._asdict() | {'phi': phi, 'right': right}
  rows = [finished.Epoch(*row[:3]) for row in fit.history]
  record = Record(rows, fit.compile_seconds)
  return Output(tree, manifest, finished.contents(record), note)


def unlearn_requests(
  stage: Stage,
  partial: Partial,
  progress: Progress,
  which: Which,
  chosen: Chosen,
  copy: int = 0,
) -> Output:
  """Makes a model forget each of its requests by itself, by one strategy.

  `copy`: what is drawn anew, for a second Retrain of the same.
  """
  study, setup, splits = stages.problem(stage, 0)
  own, recipe = drawn(study, splits, which), study.recipe
  model = finished.load(stage.parents['source'].path).state
  found = []
  epochs = stage.epochs // which.requests
  for number in range(which.requests):
    parts = parts_of(splits, own, number)
    keeper = partial.part(number, epochs, progress.goes_on)
    again = copy + (chosen.strategy.role == REFERENCE)  # None starts as it.
    key = _key(study.draws.of('unlearn', 0), which, 1 + number + 1000 * again)

    def tell(row: Epoch, before: int = number * epochs) -> None:
      progress.epoch(row._replace(epoch=before + row.epoch))

    if chosen.name == 'retrain':  # As `unlearn`, without its curve.
      made = trained(key, setup.model, parts.retain, study, tell, keeper).state
    else:
      made = unlearn(
        key,
        setup.model,
        model,
        parts,
        chosen.strategy,
        study.methods.budget(recipe.batch_size),
        recipe=recipe,
        augment=images.augment if recipe.augment else None,
        on_epoch=tell,
        keeper=keeper,
      ).state
    found.append(look(setup.model, made, splits))
  phi, right = (np.stack(column) for column in zip(*found))
  note = f'test {100 * right[:, splits.train.size :].mean():.1f} %'
  return Output({'phi': phi, 'right': right}, {}, {}, note)


def read(stage: Stage) -> tuple[np.ndarray, np.ndarray]:
  """φ of D and of the test images, and where the model was right.

  `[N + T]` of a model, `[requests, N + T]` of what it was made to forget.
  """
  tree, _ = checkpoints.restore_tree(stage.path)
  return np.asarray(tree['phi'], np.float64), np.asarray(tree['right'], bool)


def _key(seed: int, which: Which, purpose: int) -> Key:
  """Of one training of one model."""
  kind = (SHADOW, TARGET, MEMBER).index(which.kind)
  key = jax.random.fold_in(setups.key_of('audit', seed), 3 + kind)
  return jax.random.fold_in(jax.random.fold_in(key, which.number), purpose)


def trained(
  key: Key,
  model: Model,
  examples: Examples,
  study: config.Study,
  on_epoch: Callable[[Epoch], None],
  keeper: Partial,
) -> loops.Fit:
  """Trains a model by the recipe of a study."""
  recipe = study.recipe
  steps = recipe.epochs * (examples.size // recipe.batch_size)
  return loops.train(
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


def look(
  model: Model, state: ModelState, splits: Splits
) -> tuple[np.ndarray, np.ndarray]:
  """See `read`."""
  parts = splits.train, splits.test
  logits = [predict(model, state, part, logits=True) for part in parts]
  if not all(np.isfinite(part).all() for part in logits):
    raise loops.DivergedError(0)
  pairs = [(z, part.own_labels) for z, part in zip(logits, parts)]
  phi = [attacks.true_class_margin(*pair) for pair in pairs]
  right = [z.argmax(1) == labels for z, labels in pairs]
  return np.concatenate(phi).astype(np.float32), np.concatenate(right)
