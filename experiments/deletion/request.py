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
from experiments.study import engine, planning, provenance, stages, training
from experiments.study import setup as setups
from experiments.study.stages import Output, Stage
from experiments.workdir import finished
from experiments.workdir.directory import Workdir
from experiments.workdir.partials import Partial
from unlearn_jax import data, parallel
from unlearn_jax.base import (
  Examples,
  InputError,
  ModelState,
  Splits,
  tensor_paths,
)
from unlearn_jax.objectives import forgotten, retained
from unlearn_jax.strategies import Chosen, parse

# Whatever another's strategy says of itself.
_EXACT = 'retrain', 'scratch'
_ALWAYS = (
  'Who compares the model with an earlier one may learn what was forgotten.'
)
_APPROXIMATE = (
  'Approximate: the weights come from a model that knew the images.',
  'The attack is one that knows only outputs of this model; stronger ones, such'
  ' as with many reference models or with the weights, may find a trace.',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """One request, checked; nothing is computed yet."""

  asked: Any  # `experiments.forget.Forget`
  basis: Basis
  named: ids.Asked  # what the file names
  chosen: Chosen
  splits: Splits
  study: config.Study  # how the source was trained, and what else stages take
  key: bytes  # of the hashes
  # The strategy that was asked for, where --retrain_every has another.
  instead_of: str | None

  @property
  def exact(self) -> bool:
    """Whether the result starts from nothing that knew the images."""
    return self.chosen.name in _EXACT

  @property
  def chain(self) -> Chain:
    """The requests with this one."""
    past = self.basis.chain
    where = str(self.basis.path.absolute())
    count = 0 if self.exact else self.basis.inexact + 1
    return Chain([*past.requests, self.named.ids], where, past.origin, count)

  @functools.cached_property
  def stages(self) -> list[Stage]:
    """The model, and Retrain where it is asked for."""
    wanted = self.asked.retrain and self.chosen.name != 'retrain'
    more = parse('retrain') if wanted else []
    return [_stage(_InPlace, self, self.chosen)] + [
      _stage(Stage, self, own) for own in more
    ]


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
  where, more = bases.find(pathlib.Path(asked.source)), asked.archives
  basis = bases.read(where, asked.dataset, more, asked.model)
  if (last := basis.record) is not None:
    if records.digest(last) != last.content_sha256:
      raise InputError(
        f'--source={asked.source}: its record is not as it was written,'
        ' experiments.verify says more; allowed: one that is'
      )
  chosen, instead_of = _due(asked, chosen, basis.inexact)
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
  size, count = study.recipe.batch_size, len(parallel.devices())
  if size > splits.retain.size or size % count:
    raise InputError(
      f'{basis.path} was trained with batches of {size}; allowed: a multiple of'
      f' the {count} device(s), at most the {splits.retain.size} images left'
    )
  try:
    if chosen.strategy.check:
      chosen.strategy.check(setup.shapes.params, setup.model.order)
  except ValueError as error:
    raise InputError(f'--strategy: {chosen.text}: {error}') from error
  return Plan(asked, basis, named, chosen, splits, study, key, instead_of)


def _strategy(asked: Any) -> Chosen:
  try:
    every = parse(asked.strategy)
  except InputError as error:
    raise InputError(f'--strategy: {error}') from error
  if len(every) != 1 or every[0].strategy.needs_retrained:
    allowed = 'one, that no Retrain teaches'
    raise FlagError('strategy', asked.strategy, allowed)
  (chosen,) = every
  if chosen.strategy.needs_heldout:
    allowed = 'one that needs no held-out images'
    raise FlagError('strategy', asked.strategy, allowed)
  if chosen.name == 'retrain' and asked.retrain:
    raise FlagError('retrain', 'true', 'another --strategy than retrain itself')
  return chosen


def _due(asked: Any, chosen: Chosen, inexact: int) -> tuple[Chosen, str | None]:
  """Who carries the request out, and what was asked for if that is another.

  `inexact`: how many requests came since the last exact model.
  """
  told, instead_of = f'--strategy={chosen.text}', None
  if chosen.name not in _EXACT and 0 < asked.retrain_every <= inexact + 1:
    told, instead_of = f'--retrain_every={asked.retrain_every}', chosen.text
    (chosen,) = parse('retrain')
  wrong = 'unlearn' if chosen.name in _EXACT else 'retrain'
  if asked.decision == wrong:
    raise FlagError('decision', wrong, f'another for {told}')
  return chosen, instead_of


def _study(asked: Any, basis: Basis) -> config.Study:
  """What the stages take from a study: how the source was trained."""
  said, recipe = basis.own.manifest, basis.own.manifest.recipe
  assert recipe is not None
  which = setups.data_of(said, basis.setup.facts.dataset)
  return config.Study(
    data=which,
    network=setups.network_of(said, asked.model),
    training=planning.training_as(recipe, str(basis.path)),
    draws=config.Seeds(asked.seed),
    archives=asked.archives,
    workdir=asked.out,
  )


def _stage(kind: type[Stage], made: Plan, chosen: Chosen) -> Stage:
  study, epochs = made.study, chosen.strategy.epochs
  if epochs is None:
    follows = chosen.strategy.follows == 'recipe'
    epochs = (study.recipe if follows else study.methods).epochs
  return kind(
    pathlib.Path(made.asked.out),
    chosen.name.replace(':', '.'),
    chosen.text,
    {
      'kind': 'deletion',
      'strategy': chosen.name,
      'training': training.trained_by(study, chosen),
      'code': chosen.source_sha256,
      'forget': setups.forget_hash(made.basis.setup, made.splits),
      'seed': study.draws.seed,
    },
    functools.partial(_forget, made=made, chosen=chosen),
    {'source': stages.given(made.basis.own, 'source')},
    epochs=epochs,
    required=True,
    study=study,
  )


def _forget(
  stage: Stage, partial: Partial, progress: Progress, made: Plan, chosen: Chosen
) -> Output:
  """Makes the model forget; no output on a single image is kept."""
  setup, splits = made.basis.setup, made.splits
  how = 0, chosen, setup, splits
  output = training.unlearn_splits(stage, partial, progress, *how)
  kept = {n: c for n, c in output.files.items() if n != finished.PREDICTIONS}
  kept[CHAIN] = msgspec.json.encode(made.chain)
  recipe = made.basis.own.manifest.recipe
  said = dataclasses.replace(output.manifest, recipe=recipe)
  output = output._replace(files=kept, manifest=said)
  names = setups.ids_of(setup, splits.retain)
  return training.with_ids(output, finished.TRAINED, names)


def carry_out(made: Plan) -> None:
  """Forgets, measures, writes, and says what came out."""
  started, asked = _now(), made.asked
  root, named = made.stages[0].root, made.named
  depends = [made.stages[0].key, asked.decision, asked.received, asked.retrain]
  depends += [made.instead_of] * (made.instead_of is not None)
  wanted = settings.key([*depends, records.keyed(made.key)])
  workdir = Workdir(root, {'request': wanted}, 'out')
  workdir.claim()
  say(*setups.left_out(made.basis.setup))
  for count, text in (
    (named.repeated, 'Entries that name an image again, taken once'),
    (named.earlier, 'Images that an earlier request named, left out'),
  ):
    if count:
      say(f'{text}: {count}')
  say(*_turn(made))
  path = root / records.NAME
  if path.exists():
    record = records.read(path)
  else:
    engine.run(made.stages, made.study)
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


def _turn(made: Plan) -> list[str]:
  """Where a chain is that has a retrain every few requests."""
  every, now = made.asked.retrain_every, made.basis.inexact + 1
  if made.instead_of is not None:
    why = f'Request {now} since the last exact model, --retrain_every={every}'
    return [f'{why}: by retrain, not {made.instead_of}']
  if not every or made.exact:
    return []
  return [f'Requests since the last exact model: {now}; retrain at {every}']


def origin(chain: Chain, basis: Basis) -> ModelState | None:
  """θ₀, or None where it is not there any more."""
  try:
    return setups.load_model(basis.setup, pathlib.Path(chain.origin)).state
  except InputError:
    return None


def tensors(basis: Basis, state: ModelState) -> bytes:
  """A model as safetensors, with all that its use needs as metadata."""
  facts = basis.setup.facts
  # One's own network sees pixels in [0, 1], and standardises them itself.
  own = facts.model_sha256 is not None
  said = {
    'class_names': list(basis.setup.dataset.class_names),
    'mean': [0.0] * len(facts.pixel_mean) if own else facts.pixel_mean,
    'std': [1.0] * len(facts.pixel_std) if own else facts.pixel_std,
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
  dataset, chain, named = basis.setup.dataset, made.chain, made.named
  before, then = basis.record, []
  if before is not None:
    then = [own.then for own in before.evidence.reversals]
    then.append(before.evidence.result.forget_accuracy)
  kept = setups.ids_of(basis.setup, splits.retain)
  sets = basis.sets(chain.requests, kept)
  found = evidence.gather(basis.setup.model, sets, models, then)
  stage, strategy = made.stages[0], made.chosen.strategy
  said = finished.manifest(stage.path)
  lost = data.classes_lost(splits, len(dataset.class_names))
  previous = basis.path.parent / records.NAME
  decision = asked.decision or ('retrain' if made.exact else 'unlearn')
  epochs = finished.load(stage.path).record.history[-1].epoch
  parameters, why = said.parameters, ''
  if made.instead_of is not None:
    every, instead_of = asked.retrain_every, made.instead_of
    why = f', by --retrain_every={every} in place of {instead_of}'
    parameters = {
      **parameters,
      'retrain_every': every,
      'in_place_of': instead_of,
    }
  return Record(
    records.Request(
      number=len(chain.requests),
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
      id_hashes=records.hashes(key, named.ids),
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
      parameters,
      asked.seed,
      epochs,
      *_passes(made, epochs),
      said.wall_seconds,
    ),
    provenance.code(),
    found,
    evidence.verdict(found, len(named.ids), strategy.label, made.exact, why),
    [
      *(() if made.exact else _APPROXIMATE),
      _ALWAYS,
      *([] if key else [records.UNKEYED]),
    ],
    [*records.NOT_ERASED, *[records.UNSEEN] * (sets.unseen is not None)],
    None if before is None else records.sha256(previous.read_bytes()),
  )


def _passes(made: Plan, epochs: int) -> tuple[float | None, float | None]:
  """Over D_RE and D_UL in training; None where terms have other examples.

  What choosing weights has cost beforehand is not counted.
  """
  splits, strategy = made.splits, made.chosen.strategy
  parts: dict[Any, Examples] = {
    retained: splits.retain,
    forgotten: splits.forget,
  }
  if not all(term.examples in parts for term in strategy.terms):
    return None, None
  seen: dict[Any, float] = dict.fromkeys(parts, 0.0)
  size = made.study.recipe.batch_size
  for term in strategy.terms:
    first, own = (parts[t.examples].size for t in (strategy.terms[0], term))
    passes = 1.0
    if term.share is not None and not strategy.passes:
      passes = first // size * min(size * term.share, own) / own
    seen[term.examples] += epochs * passes
  return seen[retained], seen[forgotten]


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
