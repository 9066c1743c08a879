"""A model with the data that it knows, and the requests before."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import msgspec
import numpy as np

from unlearn_jax import data
from unlearn_jax.base import (
  Dataset,
  Examples,
  InputError,
  ModelState,
  require_file,
  shown,
)
from .. import config
from ..report.wording import say
from ..study import canaries, shadows
from ..study import setup as setups
from ..study.setup import Setup
from ..workdir import finished
from ..workdir.finished import Finished, Manifest
from . import record as records
from .evidence import ATTACK, Noise, Sets
from .record import Record

_TURNS = 8  # Requests that have canaries of their own.
MODEL, CHAIN, TENSORS = 'model', 'requests.json', 'model.safetensors'


class Chain(NamedTuple):
  """What a keeper has to know of the requests so far; it is private."""

  requests: list[list[str]]  # the ids of each, the oldest first
  source: str  # folder of the model that forgot
  origin: str  # folder of the first source
  inexact: int  # requests since the last exact model
  # What may have got noise before the first source was trained, in the order of
  # its data, and what each request forgot of that beside its own ids.
  canaries: list[str]
  spent: list[list[str]]

  @property
  def forgotten(self) -> set[str]:
    """All that requests have forgotten so far."""
    return {n for ids in (*self.requests, *self.spent) for n in ids}


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
  """A model, its data, and its past."""

  path: pathlib.Path  # its checkpoint
  own: Finished
  setup: Setup  # with the facts of its manifest
  trained: list[str]  # ids that it may know, in the order of the data set
  chain: Chain
  record: Record | None  # of the last request, if there was one
  clean: Dataset  # without the noise of canaries

  def canaries(self, named: list[str]) -> list[str]:
    """Images with noise that a request forgets beside those that it names.

    An eighth of all, and others each time: what is forgotten shows no more.
    """
    every = canaries.in_turn(self.chain.canaries)
    left = {*self.trained} - {*named}
    return [n for n in every if n in left][: -(-len(every) // _TURNS)]

  @functools.cached_property
  def rows(self) -> dict[str, int]:
    """Of the data set, by id."""
    return {name: row for row, name in enumerate(self.setup.dataset.ids)}

  def model(self, path: pathlib.Path, sha256: str = '') -> ModelState | None:
    """What is there; None without one like it, or of the digest if given."""
    try:
      own = setups.load_model(self.setup, path)
    except InputError:
      return None
    return own.state if sha256 in ('', own.manifest.state_sha256) else None

  def take(self, ids: list[str]) -> Examples | None:
    """The images of these ids; None if one of them is not there."""
    if not {*ids} <= self.rows.keys():
      return None
    return self.setup.dataset.train.take(sorted(self.rows[n] for n in ids))

  def fingerprint(self, ids: list[str]) -> str:
    """Of these training images and the test images."""
    part, whole = self.take(ids), self.setup.dataset
    if part is None:
      missing = [name for name in ids if name not in self.rows]
      raise InputError(
        f'{whole.name} lacks {len(missing)} images that the model was trained'
        f' on, such as {shown(ascii(missing[0]))}; allowed: a data set with all'
        ' that nobody asked to delete'
      )
    names = whole.ids[np.asarray(part.indices)]
    return data.fingerprint(part, whole.test, names)

  def sets(self, chain: Chain, retain: list[str]) -> Sets:
    """What is measured on, with None for images that are not there."""
    kept, test = self.take(retain), self.setup.dataset.test
    assert kept is not None
    sets = Sets(kept, test, [*map(self.take, chain.requests)])
    sets = sets._replace(noise=self._noise(chain, {*retain}))
    if (
      found := shadows.read_halves(self.chain.origin, self.own.manifest)
    ) is None:
      return sets
    phi, others, sha256 = found
    names, there = self.setup.dataset.ids, filter(None, sets.requests)
    rows = [names[np.asarray(own.indices)] for own in there]
    unseen = [np.stack([phi[n] for n in own], axis=1) for own in rows]
    text = say('deletion', 'by_others', attack=ATTACK, sha256=sha256)
    return sets._replace(unseen=[*unseen, others], attack=text)

  def _noise(self, chain: Chain, retain: set[str]) -> Noise | None:
    """The canaries of a source that has some."""
    if not (names := chain.canaries):
      return None
    newest, every = {*chain.spent[-1]}, {n for own in chain.spent for n in own}
    own, rows = canaries.planted(names), canaries.there(self.clean, names)
    groups = {
      'forgotten': np.isin(names, [*newest]),
      'all': np.isin(names, [*every]) & (len(every) > len(newest)),
      'never_planted': ~own,
    }
    places = {n: np.flatnonzero(g & (rows >= 0)) for n, g in groups.items()}
    left = len({*canaries.in_turn(names)} & retain)
    return Noise(self.clean, names, places, len(newest), left)


def find(path: pathlib.Path) -> pathlib.Path:
  """The checkpoint that `--source` means: itself, an OUT's, a work directory's.

  Raises:
    InputError: none, or several.
  """
  if (path / 'manifest.json').exists():
    return path
  if (path / records.NAME).exists():
    return path / MODEL
  found = sorted(path.glob('checkpoints/*-source-*/manifest.json'))
  if len(found) == 1:
    return found[0].parent
  few = ', '.join(f'checkpoints/{own.parent.name}' for own in found[:3])
  why = f'one of {few}' if few else 'a checkpoint of experiments.train, or what'
  why += '' if few else ' an earlier experiments.forget has finished'
  raise InputError(f'--source={shown(path)}, allowed: {why}')


def read(
  path: pathlib.Path,
  dataset: str | None,
  archives: config.Archives,
  code: str | None = None,
) -> Basis:
  """A checkpoint of `experiments.train`, or the model of an earlier request.

  Raises:
    InputError: another's checkpoint, or data that it was not trained on.
  """
  said = finished.manifest(path)
  _require_ours(path, said)
  name = dataset or said.dataset
  where, record = str(path.absolute()), None
  chain = Chain([], where, where, 0, [], [])
  if (path / CHAIN).exists():
    record, chain = records.read(path.parent / records.NAME), read_chain(path)
  which = dataclasses.replace(setups.data_of(said, name), canaries=0)
  whole = clean = setups.load(which, archives)
  if said.canaries:
    # By their names: some may be gone from the data by now.
    names = chain.canaries or canaries.chosen(clean, said.canaries)
    chain = chain._replace(canaries=names)
    whole = canaries.plant(clean, names)
  setup = setups.of_manifest(path, whole, code, name)
  own = setups.load_model(setup, path)
  if (path / finished.TRAINED).exists():
    trained = _lines(path / finished.TRAINED)
  else:  # A Retrain: all but its own forget set.
    file = path / finished.FORGET
    gone = {*_lines(file)} if file.exists() else set()
    trained = [n for n in map(str, whole.ids) if n not in gone]
  basis = Basis(path, own, setup, trained, chain, record, clean)
  told = said.data_fingerprint if record is None else record.data.after
  if (basis.fingerprint(trained) if record else whole.fingerprint) != told:
    raise InputError(
      f'--dataset={shown(name)}: its images are not those that {path} was'
      ' trained on; allowed: the same, but for deleted ones of earlier requests'
    )
  return basis


def _require_ours(path: pathlib.Path, said: Manifest) -> None:
  if said.recipe is None:
    raise InputError(
      f'{path} does not say how it was trained, allowed: a checkpoint of'
      ' experiments.train, of experiments.adopt --recipe, or of an earlier'
      ' experiments.forget'
    )
  if said.given_labels:
    raise InputError(f'{path} learned wrong labels, allowed: those of the data')


def _lines(path: pathlib.Path) -> list[str]:
  """The ids of a file that a stage has written."""
  require_file(path)
  return path.read_bytes().decode().split('\n')[:-1]


def read_chain(path: pathlib.Path) -> Chain:
  """The requests that a model has behind it."""
  try:
    require_file(path / CHAIN)
    own = msgspec.json.decode((path / CHAIN).read_bytes(), type=list)
    if own[4:5] == [None]:  # As it was written where there are no canaries.
      own[4] = []
    return msgspec.convert(own, Chain)
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{path / CHAIN}: {shown(error)}') from error
