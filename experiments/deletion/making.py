"""A request carried out: the model that forgot and its record, in files."""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save

from unlearn_jax.base import ModelState, tensor_paths
from .. import files, settings
from ..runtime.progress import say
from ..study import engine, stages
from ..study import setup as setups
from ..workdir.directory import Workdir
from . import bounds as limits
from . import evidence, writing
from . import record as records
from .basis import MODEL, TENSORS, Basis
from .evidence import Evidence
from .record import Replaced
from .request import Plan


def carry_out(made: Plan) -> None:
  """Forgets, measures, writes, and says what came out."""
  started, asked = writing.now(), made.asked
  root, named = made.stages[0].root, made.named
  depends = [made.stages[0].key, asked.decision, asked.received, asked.retrain]
  depends += [made.instead_of] * (made.instead_of is not None)
  depends += [{'name': n, 'limit': most} for n, most in made.bounds.items()]
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
    made, found, tried = _kept_to(made, _measured(made))
    state = stages.load(made.stages[0]).state
    content = tensors(made.basis, state)
    files.replace(root / TENSORS, content)
    facts = started, records.sha256(content)
    record = writing.record(made, found, tried, *facts).sealed()
    for name, text_bytes in records.contents(record).items():
      files.replace(root / name, text_bytes)
  say(*record.verdict)
  say(f'Model: {root / MODEL}, {root / TENSORS}', f'Record: {path}')


def _measured(made: Plan) -> Evidence:
  """Makes the models, unless they are there, and measures them."""
  engine.run([own for own in made.stages if not own.done()], made.study)
  state, *retrained = (stages.load(stage).state for stage in made.stages)
  basis = made.basis
  models = evidence.Models(
    state,
    basis.own.state,
    retrained[0] if retrained else None,
    basis.model(pathlib.Path(basis.chain.origin)),
  )
  sets = basis.sets(made.chain, made.kept)
  return evidence.gather(
    basis.setup.model, sets, models, writing.then(basis.record)
  )


def _kept_to(
  made: Plan, found: Evidence
) -> tuple[Plan, Evidence, Replaced | None]:
  """The model in its place, or an exact one where it broke a bound."""
  path, place = made.stages[0].path, made.stages[0].root / MODEL
  if path == place:  # It has none, or kept to them before this process.
    return made, found, None
  if not (broken := limits.broken(made.bounds, found)):
    path.rename(place)
    return made, found, None
  tried = writing.replaced(made, found, broken)
  say(f'By retrain, not {tried}')
  made = made.retrained()
  return made, _measured(made), tried


def _turn(made: Plan) -> list[str]:
  """Where a chain is that has a retrain every few requests."""
  every, now = made.asked.retrain_every, made.basis.chain.inexact + 1
  if made.instead_of is not None:
    why = f'Request {now} since the last exact model, --retrain_every={every}'
    return [f'{why}: by retrain, not {made.instead_of}']
  if not every or made.exact:
    return []
  return [f'Requests since the last exact model: {now}; retrain at {every}']


def tensors(basis: Basis, state: ModelState) -> bytes:
  """A model as safetensors, with all that its use needs as metadata."""
  facts = basis.setup.facts
  said = {
    'class_names': list(basis.setup.dataset.class_names),
    'input_size': facts.image_shape,
    'model': facts.model,
    'width': facts.width,
    'patch_size': facts.patch_size,
    'pixels': 'from 0 to 255, scaled by the model',
  }
  if (units := basis.setup.units) is not None:
    said |= dict(zip(('mean', 'std'), units))
    said['pixels'] = '(pixels / 255 - mean) / std'
  tree = state._asdict()
  arrays = zip(tensor_paths(tree), map(np.asarray, jax.tree.leaves(tree)))
  return save(dict(arrays), {n: json.dumps(v) for n, v in said.items()})
