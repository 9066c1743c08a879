"""A request carried out: the model that forgot and its record, in files."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save

from unlearn_jax.base import InputError, ModelState, tensor_paths
from .. import files, settings
from ..runtime.progress import say
from ..study import engine, networks, stages
from ..study import setup as setups
from ..workdir.directory import Workdir
from . import bounds as limits
from . import evidence, writing
from . import record as records
from .basis import MODEL, TENSORS, Basis, Chain
from .evidence import Evidence
from .record import Replaced
from .request import Plan


def carry_out(made: Plan) -> None:
  """Forgets, measures, writes, and says what came out."""
  started, asked = writing.now(), made.asked
  root, named = made.stages[0].root, made.named
  depends = [made.stages[0].key, asked.decision, asked.received, asked.retrain]
  depends += [made.instead_of] * (made.instead_of is not None)
  depends += [own._asdict() for own in made.bounds]
  wanted = settings.key([*depends, records.keyed(made.key)])
  workdir = Workdir(root, {'request': wanted}, 'out')
  workdir.claim()
  say(*setups.left_out(made.basis.setup))
  for count, text in (
    (named.repeated, 'Entries that name an image again, taken once'),
    (named.earlier, 'Images that an earlier request forgot, left out'),
  ):
    if count:
      say(f'{text}: {count}')
  say(*_turn(made))
  path = root / records.NAME
  if path.exists():
    record = records.read(path)
  else:
    made, found, tried = _kept_to(*_measured(made))
    state = stages.load(made.stages[0]).state
    content = tensors(made.basis, state, asked.model)
    files.replace(root / TENSORS, content)
    facts = started, records.sha256(content)
    record, page = writing.record(made, found, tried, *facts).sealed()
    for name, text_bytes in records.contents(record, page).items():
      files.replace(root / name, text_bytes)
  say(*record.verdict)
  say(f'Model: {root / MODEL}, {root / TENSORS}', f'Record: {path}')


def _measured(made: Plan) -> tuple[Plan, Evidence]:
  """Makes the models, unless they are there, and measures them."""
  aside, place = made.stages[0], made.stages[0].root / MODEL
  if (
    made.bounds
    and not made.settled
    and place.exists()
    and not aside.path.exists()
  ):
    # It kept to its bounds, and was moved there before this process.
    made = dataclasses.replace(made, settled=True)
  engine.run([own for own in made.stages if not own.done()], made.study)
  state, *retrained = (stages.load(stage).state for stage in made.stages)
  basis = made.basis
  models = evidence.Models(
    state,
    basis.own.state,
    retrained[0] if retrained else None,
    origin(basis.chain, basis),
  )
  return made, writing.measured(made, models)


def _kept_to(
  made: Plan, found: Evidence
) -> tuple[Plan, Evidence, Replaced | None]:
  """The model in its place, or an exact one where it broke a bound."""
  if not made.bounds or made.settled:
    return made, found, None
  aside = made.stages[0].path
  if not (broken := limits.broken(made.bounds, found)):
    aside.rename(aside.parent.parent / MODEL)
    return dataclasses.replace(made, settled=True), found, None
  tried = writing.replaced(made, found, broken)
  say(f'By retrain, not {tried}')
  return *_measured(made.retrained()), tried


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


def tensors(basis: Basis, state: ModelState, code: str | None) -> bytes:
  """A model as safetensors, with all that its use needs as metadata.

  `code`: of a model of one's own, as `--model` spells it.
  """
  facts = basis.setup.facts
  said = {
    'class_names': list(basis.setup.dataset.class_names),
    'input_size': facts.image_shape,
    'model': facts.model,
    'width': facts.width,
    'patch_size': facts.patch_size,
    'pixels': 'from 0 to 255, scaled by the model',
  }
  if (units := networks.units(facts, code)) is not None:
    said |= dict(zip(('mean', 'std'), units))
    said['pixels'] = '(pixels / 255 - mean) / std'
  tree = state._asdict()
  arrays = zip(tensor_paths(tree), map(np.asarray, jax.tree.leaves(tree)))
  return save(dict(arrays), {n: json.dumps(v) for n, v in said.items()})
