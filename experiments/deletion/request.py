"""A request carried out: from what was asked to a model and a record."""

import dataclasses
import datetime
import functools
import json
import pathlib
from typing import Any

import jax
import msgspec
import numpy as np
from safetensors.numpy import save

from experiments import config, files, settings
from experiments.deletion import basis as bases
from experiments.deletion import evidence, ids
from experiments.deletion import record as records
from experiments.deletion.basis import CHAIN, MODEL, TENSORS, Basis, Chain
from experiments.deletion.record import Record
from experiments.runtime.progress import Progress, say
from experiments.settings import FlagError
from experiments.study import engine, provenance, stages, training
from experiments.study import setup as setups
from experiments.study.stages import Output, Stage
from experiments.workdir import finished
from experiments.workdir.directory import Workdir
from experiments.workdir.partials import Partial
from unlearn_jax import data
from unlearn_jax.base import (
  Examples,
  InputError,
  ModelState,
  Splits,
  tensor_paths,
)
from unlearn_jax.objectives import forgotten, retained
from unlearn_jax.recipes import RECIPES
from unlearn_jax.strategies import REFERENCE, Chosen, parse

_LIMITS = {
  True: [
    'Who compares the model with an earlier one may learn what was forgotten.',
  ],
  False: [
    'Approximate: the weights come from a model that knew the images.',
    'The attack is one that knows only outputs of this model; stronger ones,'
    ' such as with reference models or with the weights, may find a trace.',
    'Who compares the model with an earlier one may learn what was forgotten.',
  ],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """One request, checked; nothing is computed yet."""

  asked: Any  # `experiments.forget.Forget`
  basis: Basis
  named: ids.Asked  # what the file names
  chosen: Chosen
  splits: Splits
  stages: list[Stage]  # the model, and Retrain where it is asked for
  key: bytes  # of the hashes

  @property
  def exact(self) -> bool:
    """Whether the result starts from nothing that knew the images."""
    return _is_exact(self.chosen)


def _is_exact(chosen: Chosen) -> bool:
  return chosen.strategy.role == REFERENCE or chosen.name == 'scratch'


@dataclasses.dataclass(frozen=True, eq=False)
class _InPlace(Stage):
  """A stage whose folder has the name that others look for."""

  @property
  def path(self) -> pathlib.Path:
    return self.root / MODEL


def plan(asked: Any) -> Plan:
  """All that can be checked before anything is computed or written."""
  for name in ('source', 'ids', 'out'):
    if getattr(asked, name) is None:
      raise FlagError(name, '', 'a path')
  chosen, key = _strategy(asked), records.read_key(asked.key_file)
  if asked.received is not None:
    try:
      datetime.datetime.fromisoformat(asked.received)
    except ValueError:
      raise FlagError(
        'received', asked.received, 'such as 2026-11-30'
      ) from None
  basis = bases.read(
    bases.find(pathlib.Path(asked.source)), asked.dataset, asked.archives
  )
  setup, earlier = basis.setup, {n for r in basis.chain.requests for n in r}
  known = setup.dataset.ids.tolist()
  path, name = pathlib.Path(asked.ids), setup.facts.dataset
  trained = {*basis.trained}
  named = ids.read(path, asked.id_column, name, known, trained, earlier)
  if not 0 < len(named.ids) < len(trained):
    raise InputError(
      f'{path}: {len(named.ids)} of {len(trained)} images are left to forget,'
      f' allowed: 1 to {len(trained) - 1}'
    )
  train = basis.take(basis.trained)
  assert train is not None
  rows = [basis.rows[name] for name in named.ids]
  which = np.isin(np.asarray(train.indices), rows)
  splits = Splits.of(train, which, setup.dataset.test)
  study = _study(asked, basis)
  size = study.training.resolved.batch_size
  if size > splits.retain.size:
    raise InputError(
      f'{path}: {splits.retain.size} images would be left, allowed: a batch'
      f' of the source, {size}, or more'
    )
  try:
    if chosen.strategy.check:
      chosen.strategy.check(setup.shapes.params, setup.model.order)
  except ValueError as error:
    raise InputError(f'--strategy: {chosen.text}: {error}') from error
  source = stages.given(basis.own, 'source')
  requests = [*basis.chain.requests, named.ids]
  chain = Chain(requests, str(basis.path.absolute()), basis.chain.origin)
  made = [_stage(_InPlace, study, basis, chosen, splits, chain, source)]
  if asked.retrain:
    (retrain,) = parse('retrain')
    made.append(_stage(Stage, study, basis, retrain, splits, chain, source))
  return Plan(asked, basis, named, chosen, splits, made, key)


def _strategy(asked: Any) -> Chosen:
  try:
    every = parse(asked.strategy)
  except InputError as error:
    raise InputError(f'--strategy: {error}') from error
  if len(every) != 1 or every[0].strategy.needs_retrained:
    allowed = 'one, that no Retrain teaches'
    raise FlagError('strategy', asked.strategy, allowed)
  (chosen,) = every
  reference = chosen.strategy.role == REFERENCE
  if reference and asked.retrain:
    raise FlagError('retrain', 'true', 'another --strategy than retrain itself')
  wrong = {True: 'unlearn', False: 'retrain'}[_is_exact(chosen)]
  if asked.decision == wrong:
    raise FlagError('decision', wrong, f'another for --strategy={chosen.text}')
  return chosen


def _study(asked: Any, basis: Basis) -> config.Study:
  """What the stages take from a study: how the source was trained."""
  said, recipe = basis.own.manifest, basis.own.manifest.recipe
  assert recipe is not None
  names = {own.optimizer.__name__: name for name, own in RECIPES.items()}
  if recipe.optimizer not in names:
    raise InputError(
      f'{basis.path} was trained by {recipe.optimizer}, allowed:'
      f' {", ".join(names)}'
    )
  own = msgspec.to_builtins(recipe)
  which = basis.setup.facts.dataset, said.train_subset, said.test_fraction
  return config.Study(
    data=config.Data(*which),
    network=config.Network(said.model, said.width, said.dtype),
    training=config.Training(
      names[own.pop('optimizer')],
      train_epochs=own.pop('epochs'),
      train_learning_rate=own.pop('learning_rate'),
      **own,
    ),
    draws=config.Seeds(asked.seed),
    archives=asked.archives,
    workdir=asked.out,
  )


def _stage(
  kind: type[Stage],
  study: config.Study,
  basis: Basis,
  chosen: Chosen,
  splits: Splits,
  chain: Chain,
  source: Stage,
) -> Stage:
  epochs = chosen.strategy.epochs
  if epochs is None:
    follows = chosen.strategy.follows == 'recipe'
    epochs = (study.training.resolved if follows else study.methods).epochs
  assert study.workdir is not None
  return kind(
    pathlib.Path(study.workdir),
    chosen.name.replace(':', '.'),
    chosen.text,
    {
      'kind': 'deletion',
      'strategy': chosen.name,
      'training': training.trained_by(study, chosen),
      'code': chosen.source_sha256,
      'forget': setups.forget_hash(basis.setup, splits),
      'seed': study.draws.seed,
    },
    functools.partial(
      _forget, basis=basis, chosen=chosen, splits=splits, chain=chain
    ),
    {'source': source},
    epochs=epochs,
    required=True,
    study=study,
  )


def _forget(
  stage: Stage,
  partial: Partial,
  progress: Progress,
  basis: Basis,
  chosen: Chosen,
  splits: Splits,
  chain: Chain,
) -> Output:
  """Makes the model forget; no output on a single image is kept."""
  setup = basis.setup
  output = training.unlearn_splits(
    stage, partial, progress, 0, chosen, setup, splits
  )
  kept = {n: c for n, c in output.files.items() if n != finished.PREDICTIONS}
  kept[CHAIN] = msgspec.json.encode(chain)
  recipe = basis.own.manifest.recipe
  said = dataclasses.replace(output.manifest, recipe=recipe)
  output = output._replace(files=kept, manifest=said)
  names = setups.ids_of(setup, splits.retain)
  return training.with_ids(output, finished.TRAINED, names)


def carry_out(made: Plan) -> None:
  """Forgets, measures, writes, and says what came out."""
  started, asked = _now(), made.asked
  root, named = made.stages[0].root, made.named
  depends = [made.stages[0].key, asked.decision, asked.received, asked.retrain]
  wanted = settings.key([*depends, records.keyed(made.key)])
  workdir = Workdir(root, {'request': wanted}, 'out')
  workdir.claim()
  for count, text in (
    (named.repeated, 'Entries that name an image again, taken once'),
    (named.earlier, 'Images that an earlier request named, left out'),
  ):
    if count:
      say(f'{text}: {count}')
  path = root / records.NAME
  if path.exists():
    record = records.read(path)
  else:
    assert made.stages[0].study is not None
    engine.run(made.stages, made.stages[0].study)
    found = [stages.load(stage) for stage in made.stages]
    content = tensors(made.basis, found[0].state)
    files.replace(root / TENSORS, content)
    models = evidence.Models(
      found[0].state,
      made.basis.own.state,
      found[1].state if len(found) > 1 else None,
      origin(made.basis.chain, made.basis),
    )
    whole = _record(made, models, started, records.sha256(content))
    record, page = whole.sealed()
    for name, text_bytes in records.contents(record, page).items():
      files.replace(root / name, text_bytes)
  say(*record.verdict)
  say(f'Model: {root / MODEL}, {root / TENSORS}', f'Record: {path}')


def origin(chain: Chain, basis: Basis) -> ModelState | None:
  """θ₀, or None where it is not there any more, or another model."""
  try:
    return setups.load_model(basis.setup, pathlib.Path(chain.origin)).state
  except InputError:
    return None


def tensors(basis: Basis, state: ModelState) -> bytes:
  """A model as safetensors, with all that its use needs as metadata."""
  facts = basis.setup.facts
  said = {
    'class_names': list(basis.setup.dataset.class_names),
    'mean': facts.pixel_mean,
    'std': facts.pixel_std,
    'input_size': facts.image_shape,
    'model': facts.model,
    'width': facts.width,
  }
  tree = state._asdict()
  arrays = zip(tensor_paths(tree), map(np.asarray, jax.tree.leaves(tree)))
  return save(dict(arrays), {n: json.dumps(v) for n, v in said.items()})


def _record(
  made: Plan, models: evidence.Models, started: str, tensors_sha256: str
) -> Record:
  """All that is written down."""
  basis, splits, asked, key = made.basis, made.splits, made.asked, made.key
  dataset, chain, named = basis.setup.dataset, basis.chain, made.named
  before, then = basis.record, []
  if before is not None:
    then = [own.then for own in before.evidence.reversals]
    then.append(before.evidence.result.forget_accuracy)
  kept = setups.ids_of(basis.setup, splits.retain)
  sets = basis.sets([*chain.requests, named.ids], kept)
  found = evidence.gather(basis.setup.model, sets, models, then)
  stage, strategy = made.stages[0], made.chosen.strategy
  said = finished.manifest(stage.path)
  lost = data.classes_lost(splits, len(dataset.class_names))
  previous = basis.path.parent / records.NAME
  decision = asked.decision or ('retrain' if made.exact else 'unlearn')
  hashes = records.hashes(key, named.ids)
  epochs = finished.load(stage.path).record.history[-1].epoch
  return Record(
    records.Request(
      number=len(chain.requests) + 1,
      images=len(named.ids),
      scope='whole classes' if lost else 'examples',
      decision=decision,
      received=asked.received,
      started=started,
      finished=_now(),
      repeated=named.repeated,
      earlier=named.earlier,
      keyed=bool(key),
      key_check=records.keyed(key),
      id_hashes=hashes,
    ),
    records.DataFacts(
      before=basis.fingerprint(basis.trained),
      after=basis.fingerprint(kept),
      images_before=len(basis.trained),
      images_after=len(kept),
    ),
    records.model_facts(basis.path, key, basis.trained),
    records.model_facts(stage.path, key, kept, tensors_sha256),
    records.Method(
      made.chosen.text,
      strategy.label,
      made.exact,
      said.parameters,
      asked.seed,
      epochs,
      *_passes(made, epochs),
      said.wall_seconds,
    ),
    provenance.code(),
    found,
    evidence.verdict(found, len(named.ids), strategy.label, made.exact),
    [*_LIMITS[made.exact], *([] if key else [records.UNKEYED])],
    list(records.NOT_ERASED),
    None if before is None else records.sha256(previous.read_bytes()),
  )


def _passes(made: Plan, epochs: int) -> tuple[float | None, float | None]:
  """Over D_RE and D_UL in training; None where a term mixes its own examples.

  What choosing weights has cost beforehand is not counted.
  """
  splits, strategy = made.splits, made.chosen.strategy
  study = made.stages[0].study
  assert study is not None
  size = study.training.resolved.batch_size
  parts: dict[Any, Examples] = {
    retained: splits.retain,
    forgotten: splits.forget,
  }
  if not all(term.examples in parts for term in strategy.terms):
    return None, None
  seen = dict.fromkeys(parts, 0.0)
  for place, term in enumerate(strategy.terms):
    if place == 0 or strategy.passes:
      seen[term.examples] += epochs
      continue
    steps = epochs * (parts[strategy.terms[0].examples].size // size)
    own = parts[term.examples].size
    share = own / parts[strategy.terms[0].examples].size
    batch = size * (share if term.share is None else term.share)
    seen[term.examples] += steps * max(1, int(min(batch, own))) / own
  return seen[retained], seen[forgotten]


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
