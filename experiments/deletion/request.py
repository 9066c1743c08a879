"""A request: from what was asked to a plan that was checked, and its stages."""

from collections.abc import Mapping
import dataclasses
import datetime
import functools
import pathlib
from typing import Any

import msgspec
import numpy as np

from unlearn_jax import data, parallel
from unlearn_jax.base import InputError, Splits
from unlearn_jax.strategies import Chosen, parse
from .. import config
from ..runtime.progress import Progress
from ..settings import FlagError
from ..study import planning, stages, training
from ..study import setup as setups
from ..study.stages import Output, Stage
from ..workdir import finished
from ..workdir.partials import Partial
from . import basis as bases
from . import bounds as limits
from . import ids
from . import record as records
from .basis import CHAIN, MODEL, Basis, Chain

# Whatever another's strategy says of itself.
EXACT = 'retrain', 'scratch'


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """One request, checked; nothing is computed yet."""

  asked: Any  # `experiments.forget.Forget`
  basis: Basis
  named: ids.Asked  # what the file names
  canaries: list[str]  # what is forgotten beside that
  chosen: Chosen
  splits: Splits
  study: config.Study  # how the source was trained, and what else stages take
  key: bytes  # of the hashes
  # The strategy that was asked for, where --retrain_every has another.
  instead_of: str | None
  # What the model has to keep to, else it is replaced by a retrain.
  bounds: Mapping[str, float]

  @property
  def exact(self) -> bool:
    """Whether the result starts from nothing that knew the images."""
    return self.chosen.name in EXACT

  @property
  def chain(self) -> Chain:
    """The requests with this one."""
    past = self.basis.chain
    return past._replace(
      requests=[*past.requests, self.named.ids],
      source=str(self.basis.path.absolute()),
      inexact=0 if self.exact else past.inexact + 1,
      spent=[*past.spent, self.canaries],
    )

  @property
  def kept(self) -> list[str]:
    """The ids of what the model may know."""
    return setups.ids_of(self.basis.setup, self.splits.retain)

  @functools.cached_property
  def stages(self) -> list[Stage]:
    """The model, and Retrain where it is asked for."""
    wanted = self.asked.retrain and self.chosen.name != 'retrain'
    more = parse('retrain') if wanted else []
    first = _Bounded if self.bounds else _InPlace
    return [_stage(first, self, self.chosen)] + [
      _stage(Stage, self, own) for own in more
    ]

  def retrained(self) -> 'Plan':
    """The same by an exact retrain, where a bound was broken."""
    (chosen,) = parse('retrain')
    return dataclasses.replace(self, chosen=chosen, bounds={})


@dataclasses.dataclass(frozen=True, eq=False)
class _InPlace(Stage):
  """A stage whose folder has the name that others look for."""

  @property
  def path(self) -> pathlib.Path:
    return self.root / MODEL


@dataclasses.dataclass(frozen=True, eq=False)
class _Bounded(Stage):
  """One whose folder gets that name once its model kept to its bounds."""

  @property
  def path(self) -> pathlib.Path:
    aside, place = super().path, self.root / MODEL
    return place if place.exists() and not aside.exists() else aside


def plan(asked: Any) -> Plan:
  """All that can be checked before anything is computed or written."""
  for name in ('source', 'ids', 'out'):
    if getattr(asked, name) is None:
      raise FlagError(name, '', 'a path')
  chosen, key = _strategy(asked), records.read_key(asked.key_file)
  bounds = {} if asked.retrain_if is None else limits.parse(asked.retrain_if)
  if bounds and asked.retrain:
    allowed = 'false beside --retrain_if, which trains it where it is needed'
    raise FlagError('retrain', 'true', allowed)
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
  chosen, instead_of = _due(asked, chosen, basis.chain.inexact)
  setup, earlier = basis.setup, basis.chain.forgotten
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
  exact = chosen.name in EXACT  # It shows nothing that is not known.
  more = [] if exact else basis.canaries(named.ids)
  rows = [basis.rows[name] for name in (*named.ids, *more)]
  which = np.isin(np.asarray(train.indices), rows)
  splits = Splits.of(train, which, setup.dataset.test)
  unseen = data.class_matched(splits.forget, splits.test)
  splits = splits._replace(unseen=unseen)
  study = _study(asked, basis)
  size, count = study.recipe.batch_size, len(parallel.devices())
  if size > splits.retain.size or size % count:
    raise InputError(
      f'{basis.path} was trained with batches of {size}; allowed: at most the'
      f' {splits.retain.size} images left, a multiple of {count}, the devices'
    )
  try:
    if chosen.strategy.check:
      chosen.strategy.check(setup.shapes.params, setup.model.order)
  except ValueError as error:
    raise InputError(f'--strategy: {chosen.text}: {error}') from error
  own = basis, named, more, chosen, splits, study, key, instead_of
  return Plan(asked, *own, {} if exact else bounds)


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
  if chosen.name not in EXACT and 0 < asked.retrain_every <= inexact + 1:
    told, instead_of = f'--retrain_every={asked.retrain_every}', chosen.text
    (chosen,) = parse('retrain')
  wrong = 'unlearn' if chosen.name in EXACT else 'retrain'
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
  study = made.study
  return kind(
    pathlib.Path(made.asked.out),
    chosen.name.replace(':', '.'),
    chosen.text,
    {
      'kind': 'deletion',
      **training.made_by(study, chosen),
      'forget': setups.forget_hash(made.basis.setup, made.splits),
      'seed': study.draws.seed,
    },
    functools.partial(_forget, made=made, chosen=chosen),
    {'source': stages.given(made.basis.own, 'source')},
    epochs=training.epochs_of(study, chosen),
    required=True,
    study=study,
  )


def _forget(
  stage: Stage, partial: Partial, progress: Progress, made: Plan, chosen: Chosen
) -> Output:
  """Makes the model forget; no output on a single image is kept."""
  setup, splits = made.basis.setup, made.splits
  given = made.study, setup, splits
  how = stage, partial, progress, 0, chosen
  output = training.unlearn_source(*how, given=given)
  kept = {n: c for n, c in output.files.items() if n != finished.PREDICTIONS}
  kept[CHAIN] = msgspec.json.encode(made.chain)
  recipe = made.basis.own.manifest.recipe
  said = dataclasses.replace(output.manifest, recipe=recipe)
  output = output._replace(files=kept, manifest=said)
  return training.with_ids(output, finished.TRAINED, made.kept)
