"""The stages of an audit: models trained to be attacked, or to attack by.

Each learns some of D, and is made to forget parts of that, by every strategy.
All have one shape, so that each program is compiled once; what is kept of them
is φ of every example (`attacks.true_class_margin`).
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib

import jax
import numpy as np

from unlearn_jax import attacks, checkpoints
from unlearn_jax.attacks import Drawn
from unlearn_jax.base import Key, Model, ModelState, Splits
from unlearn_jax.prediction import predict
from unlearn_jax.strategies import REFERENCE, Chosen
from unlearn_jax.training import DivergedError
from unlearn_jax.unlearning import unlearn
from .. import config
from ..runtime.progress import Progress
from ..workdir import finished
from ..workdir.finished import Manifest, Recipe, Record
from ..workdir.partials import Partial
from . import setup as setups
from . import stages, training
from .stages import Output, Stage

_UNSEEN, _COUNT = 'unseen', 4  # Models that learn halves, beside a source.
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
    return Drawn(np.arange(splits.train.size), (forgotten(splits),))
  total, seed = splits.train.size, study.draws.of('split', 0)
  size = splits.forget.size // 2
  # A draw depends on those before: of these 1, 2, 4, 8, … are kept.
  count = 1 << which.number.bit_length()
  own = _drawn(seed, which.kind, count, total, size, which.requests)
  return own[which.number]


def forgotten(splits: Splits) -> np.ndarray:
  """Positions in D of its forget set."""
  return np.flatnonzero(np.isin(splits.train.indices, splits.forget.indices))


@functools.lru_cache(maxsize=32)
def _drawn(
  seed: int, kind: str, count: int, total: int, size: int, requests: int
) -> list[Drawn]:
  """Those of the first models of a kind."""
  key = jax.random.fold_in(setups.key_of('audit', seed), kind == TARGET)
  every = attacks.shadow_draws(key, total, size, requests)
  return [*itertools.islice(every, count)]


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
  how = study, progress.epoch, partial
  fit = training.fitted(key, setup.model, learned, *how)
  phi, right = look(setup.model, fit.state, splits)
  total = splits.train.size
  note = f'test {100 * right[total:].mean():.1f} %'
  manifest = Manifest(
    **dataclasses.asdict(setup.facts),
    strategy=which.kind,  # No source that `evaluate` would take for another.
    recipe=Recipe.of(study.recipe),
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
  own = drawn(study, splits, which)
  model = finished.load(stage.parents['source'].path).state
  found = []
  epochs = stage.epochs // which.requests
  for number in range(which.requests):
    parts = parts_of(splits, own, number)
    tell, keeper = progress.after(number * epochs), partial.part(number, epochs)
    again = copy + (chosen.strategy.role == REFERENCE)  # None starts as it.
    key = _key(study.draws.of('unlearn', 0), which, 1 + number + 1000 * again)
    if chosen.name == 'retrain':  # As `unlearn`, without its curve.
      how = parts.retain, study, tell, keeper
      made = training.fitted(key, setup.model, *how).state
    else:
      made = unlearn(
        key,
        setup.model,
        model,
        parts,
        chosen.strategy,
        **training.budgeted(study),
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


def look(
  model: Model, state: ModelState, splits: Splits
) -> tuple[np.ndarray, np.ndarray]:
  """See `read`."""
  parts = splits.train, splits.test
  logits = [predict(model, state, part, logits=True) for part in parts]
  if not all(np.isfinite(part).all() for part in logits):
    raise DivergedError(0)
  pairs = [(z, part.own_labels) for z, part in zip(logits, parts)]
  phi = [attacks.true_class_margin(*pair) for pair in pairs]
  right = [z.argmax(1) == labels for z, labels in pairs]
  return np.concatenate(phi).astype(np.float32), np.concatenate(right)


# ------------------------------------------------- Halves beside a source.


def halves(source: Stage) -> Stage:
  """The stage beside a source's that keeps what models say of the unseen.

  Nobody knows beforehand which images a request will name. So models learn
  halves of D that are drawn by lot, two of them one D: of each pair one never
  saw a given image, and what it says of it is kept. The models, who know
  others, go.
  """
  return dataclasses.replace(
    source,
    name=source.name.replace('source', _UNSEEN),
    title=f'{_COUNT} models of halves',
    depends={**source.depends, 'kind': _UNSEEN, 'count': _COUNT},
    work=_train_halves,
    epochs=_COUNT * source.epochs,
  )


def _train_halves(stage: Stage, partial: Partial, progress: Progress) -> Output:
  study, setup, splits = stages.problem(stage, 0)
  seed, total = study.draws.of('source', 0), splits.train.size
  epochs, said, knows = stage.epochs // _COUNT, [], []
  for number in range(_COUNT):
    pair, own = divmod(number, 2)
    key = jax.random.fold_in(setups.key_of('halves', seed), pair)
    lot, *keys = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(lot, total))
    rows = np.sort(order[own::2][: total // 2])
    how = study, progress.after(number * epochs), partial.part(number, epochs)
    learned = splits.train.take(rows)
    fit = training.fitted(keys[own], setup.model, learned, *how)
    said.append(look(setup.model, fit.state, splits)[0])
    # Test images are shared, too: as many models tell of one as of one of D.
    shared = np.arange(splits.test.size) % 2 == own
    knows.append(np.concatenate([np.isin(np.arange(total), rows), shared]))
  phi = np.where(knows[::2], said[1::2], said[::2]).astype(np.float32)
  facts, recipe = dataclasses.asdict(setup.facts), Recipe.of(study.recipe)
  manifest = Manifest(**facts, strategy=_UNSEEN, recipe=recipe)
  tree = {'phi': phi, 'learned': np.stack(knows)[:, :total]}
  output = Output(tree, manifest, {}, 'done')
  ids = setups.ids_of(setup, splits.train)
  return training.with_ids(output, finished.TRAINED, ids)


def read_halves(
  source: str, said: Manifest
) -> tuple[dict[str, np.ndarray], np.ndarray, str] | None:
  """φ `[R]` of each id, `[R, T]` of the test images, and a SHA-256.

  It is that of their manifest, which has those of arrays and ids. They lie
  beside the source, which may be gone; `said`: of a model like it.
  """
  for folder in sorted(pathlib.Path(source).parent.glob(f'seed*-{_UNSEEN}-*')):
    own, names = finished.manifest(folder), (*setups.COMMON, 'recipe')
    if all(getattr(own, name) == getattr(said, name) for name in names):
      phi = checkpoints.restore_tree(folder)[0]['phi'].astype(float)
      sha256 = hashlib.sha256((folder / 'manifest.json').read_bytes())
      ids = (folder / finished.TRAINED).read_bytes().decode().split('\n')[:-1]
      return dict(zip(ids, phi.T)), phi[:, len(ids) :], sha256.hexdigest()
  return None
