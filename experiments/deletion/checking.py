"""All that a record says, computed again from the files that are there."""

import dataclasses
import math
import pathlib
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load

from unlearn_jax import checkpoints
from unlearn_jax.base import InputError, shown
from unlearn_jax.strategies import FACTORIES, parse
from ..report.model import to_json
from ..runtime.progress import say
from ..settings import FlagError
from ..study import provenance
from ..workdir import finished
from . import basis as bases
from . import bounds as limits
from . import evidence, writing
from . import record as records
from .basis import MODEL, TENSORS, Basis
from .record import Method, Record

# By which a number may differ: other devices round otherwise.
_TOLERANCE = 1e-4


@dataclasses.dataclass
class _Told:
  """What is said, line by line."""

  wrong: int = 0
  unknown: int = 0

  def holds(self, what: str, holds: bool, why: str = '') -> bool:
    """Says whether something matches."""
    self.wrong += not holds
    tail = f': {why}' if why and not holds else ''
    say(f'{"matches" if holds else "DIFFERS":11}  {what}{tail}')
    return holds

  def says(self, what: str, part: Any, **own: Any) -> None:
    """Says whether fields of a part of the record are these."""
    pairs = [(n, v, getattr(part, n)) for n, v in own.items()]
    wrong = [f'{n} is {v}, not {said}' for n, v, said in pairs if v != said]
    self.holds(what, not wrong, '; '.join(wrong))

  def skip(self, what: str, why: str) -> None:
    """Says that something could not be checked."""
    self.unknown += 1
    say(f'{"not checked":11}  {what}: {why}')


def check(asked: Any) -> None:
  """Says of everything whether it matches.

  Raises:
    InputError: something does not, or there is no record.
  """
  if asked.record is None:
    raise FlagError('record', '', f'a {records.NAME} of experiments.forget')
  path, key = pathlib.Path(asked.record), records.read_key(asked.key_file)
  try:
    record, told, root = records.read(path), _Told(), path.parent
  except InputError as error:
    raise InputError(f'--record={error}') from error
  if record.format != records.FORMAT:
    why = f'is of format {record.format}, for the version that wrote it'
    raise InputError(f'--record={path}: {why}; allowed: {records.FORMAT}')
  own = path.read_bytes() == to_json(record)
  own &= records.digest(record) == record.content_sha256
  told.holds(path.name, own, 'not as it was written')
  _file(told, root / records.PAGE, record.page_sha256)
  what, own_code = f'what {records.PAGE} says', provenance.code()
  codes = [dataclasses.astuple(c)[:3] for c in (record.code, own_code)]
  same = records.sha256(records.html(record).encode()) == record.page_sha256
  if same or codes[0] == codes[1]:
    told.holds(what, same, 'not what the record says')
  else:
    told.skip(what, 'another version wrote it')
  tensors = root / TENSORS
  if _file(told, tensors, record.result.safetensors_sha256):
    its = checkpoints.digest(load(tensors.read_bytes()))
    same = its == record.result.state_sha256
    told.holds(f'tensors of {TENSORS}', same, 'not those of the result')
  whole = _folder(told, root / MODEL, record)
  if whole:
    said = checkpoints.read_manifest(root / MODEL)
    if said.get('model_sha256') is not None and asked.model is None:
      name = shown(said.get('model'))
      allowed = f'{name}, with the path of its file, which is run'
      raise FlagError('model', '', allowed)
    try:
      _contents(told, root / MODEL, record, key, asked)
    except InputError as error:
      told.holds('data and model', False, str(error))
  else:
    told.skip('ids, data and evidence', f'{MODEL}/ is not whole')
  if told.wrong:
    raise InputError(
      f'{path}: {told.wrong} of what was checked do not match, allowed: none'
    )
  say(f'All that was checked matches; not checked: {told.unknown}.')


def _file(told: _Told, path: pathlib.Path, wanted: str | None) -> bool:
  if not path.is_file():
    return told.holds(path.name, False, 'missing')
  same = records.sha256(path.read_bytes()) == wanted
  return told.holds(path.name, same, 'not as it was written')


def _folder(told: _Told, folder: pathlib.Path, record: Record) -> bool:
  """Every file of a checkpoint, and none beside them."""
  if not (folder / 'manifest.json').is_file():
    return told.holds(f'{MODEL}/manifest.json', False, 'missing')
  try:
    wanted = checkpoints.read_manifest(folder)['files_sha256']
  except InputError:
    return told.holds(f'{MODEL}/manifest.json', False, 'not as it was written')
  wanted |= {'manifest.json': record.result.manifest_sha256}
  there = checkpoints.digests(folder)
  wrong = dict.fromkeys(there.keys() - wanted.keys(), 'not of the model')
  for name, sha256 in wanted.items():
    if there.get(name) != sha256:
      wrong[name] = 'not as it was written' if name in there else 'missing'
  for name, why in wrong.items():
    told.holds(f'{MODEL}/{name}', False, why)
  return not wrong and told.holds(f'{MODEL}/, {len(there)} files', True)


def _contents(
  told: _Told, path: pathlib.Path, record: Record, key: bytes, asked: Any
) -> None:
  """Ids, data, chain and numbers."""
  basis = bases.read(path, asked.dataset, asked.archives, asked.model)
  chain, request = basis.chain, record.request
  *_, newest = chain.requests
  state = checkpoints.digest(basis.own.state._asdict())
  told.holds('tensors of model/', state == record.result.state_sha256)
  spent = [*newest, *chain.spent[-1]]
  before = [n for n in basis.rows if n in {*basis.trained, *spent}]
  gone = [n for n in spent if n not in basis.rows]
  count, keyed = len(chain.requests), request.key_check != records.keyed(b'')
  told.says('request', request, number=count, images=len(newest), keyed=keyed)
  other = 'unlearn' if record.method.exact else 'retrain'
  told.holds('decision', request.decision != other, f'{other} was not done')
  left, now = len(basis.trained), basis.fingerprint(basis.trained)
  counts = {'images_before': left + len(spent), 'images_after': left}
  told.says('data after', record.data, after=now, **counts)
  if gone:
    told.skip('data before', f'{len(gone)} forgotten images are not there')
  else:
    told.says('data before', record.data, before=basis.fingerprint(before))
    both = filter(None, (basis.take(before), basis.take(basis.trained)))
    lost = len({np.unique(part.own_labels).size for part in both}) > 1
    told.says('scope', request, scope='whole classes' if lost else 'examples')
  parent = basis.own.manifest.parent_sha256
  told.says('source', record.source, state_sha256=parent)
  _method(told, 'method', record.method, basis.path)
  loading = records.loading(basis.setup.facts.model_sha256 is not None)
  own = {**writing.sentences(record), 'loading': loading}
  told.says('verdict and other sentences', record, **own)
  if records.keyed(key) != request.key_check:
    told.skip('hashes of ids', 'another key, or none')
  else:
    hashes = records.hashes(key, newest)
    told.holds('hashes of the ids', hashes == request.id_hashes)
    after = records.keyed(key, *basis.trained) == record.result.trained_ids
    told.holds('hash of the ids that it may know', after)
    if not gone:
      its = records.keyed(key, *before) == record.source.trained_ids
      told.holds('hash of the ids that the source knew', its)
  _previous(told, pathlib.Path(chain.source), record)
  _evidence(told, basis, record)


def _method(told: _Told, what: str, method: Method, path: pathlib.Path) -> None:
  """How a model was made, as its own files have it."""
  own = writing.made_by(path)
  own['parameters'] = {**method.parameters, **own['parameters']}
  if own['strategy'].partition('(')[0] in FACTORIES:
    own['label'] = parse(own['strategy'])[0].strategy.label
  else:
    told.skip(f'label of the {what}', 'it is that of code of your own')
  told.says(what, method, **own)


def _previous(told: _Told, source: pathlib.Path, record: Record) -> None:
  """The source, and the record before."""
  manifest, before = source / 'manifest.json', source.parent / records.NAME
  for what, path, wanted in (
    ('manifest of the source', manifest, record.source.manifest_sha256),
    ('record before', before, record.previous_record_sha256),
  ):
    if wanted is None:
      continue
    if path.is_file():
      told.holds(what, records.sha256(path.read_bytes()) == wanted)
    else:
      told.skip(what, 'not there any more')


def _evidence(told: _Told, basis: Basis, record: Record) -> None:
  """Every number, from the models and the data that are there."""
  root = basis.path.parent / 'checkpoints'
  beside = next(root.glob('retrain-*'), None)
  retrained = None if beside is None else basis.model(beside)
  source = pathlib.Path(basis.chain.source), record.source.state_sha256
  models = evidence.Models(
    basis.own.state,
    basis.model(*source),
    retrained,
    basis.model(pathlib.Path(basis.chain.origin)),
  )
  its, judged = record.retrained_sha256, record.evidence
  if retrained is not None:
    own = checkpoints.digest(retrained._asdict()) == its
    told.holds('tensors of the Retrain', own)
  elif its is msgspec.UNSET:
    none = judged.retrained is judged.compared is None
    told.holds('no Retrain', none, 'numbers of one that the record lacks')
  _numbers(told, basis, judged, models, 'evidence')
  if (text := record.method.parameters.get('retrain_if')) is None:
    return
  tried, said = record.replaced, []
  if tried is not None:
    judged, said = tried.evidence, tried.broken
    what, sha256 = 'evidence of the model that was replaced', tried.state_sha256
    every = (path for path in root.glob('*') if basis.model(path, sha256))
    if (path := next(every, None)) is None:
      told.skip(what, f'it is not in {root.name}/ any more')
    else:
      there = finished.load(path).state
      own = checkpoints.digest(there._asdict()) == sha256
      told.holds('tensors of the model that was replaced', own)
      _method(told, 'method that was replaced', tried.method, path)
      own_models = models._replace(result=there, retrained=None)
      _numbers(told, basis, judged, own_models, what)
  told.holds('bounds', limits.broken(limits.parse(text), judged) == said)


def _numbers(
  told: _Told,
  basis: Basis,
  said: evidence.Evidence,
  models: evidence.Models,
  what: str,
) -> None:
  """Those of one model, computed again."""
  sets = basis.sets(basis.chain, basis.trained)
  if said.attack == evidence.ATTACK:
    sets = sets._replace(unseen=None, attack=said.attack)
  last = pathlib.Path(basis.chain.source).parent / records.NAME
  then = [own.then for own in said.reversals]
  if last.is_file():
    then = writing.then(records.read(last))
  then += [None] * (len(sets.requests) - 1 - len(then))
  found = evidence.gather(basis.setup.model, sets, models, then)
  wanted, own = dict(records.flat(said)), dict(records.flat(found))
  if own['attack'] != wanted['attack']:
    told.skip('the attack', 'its models of halves are not there, or others are')
    for every in (wanted, own):
      for name in [n for n in every if 'attack' in n]:
        del every[name]
  wrong = [
    f'{name} is {own[name]}, not {value}'
    for name, value in wanted.items()
    if name in own and not _alike(own[name], value)
  ]
  wrong += [f'leaves out {n}' for n in own if n not in wanted]
  missing = sorted(wanted.keys() - own.keys())
  for text in wrong:
    told.holds(what, False, text)
  if not wrong:
    known = len(wanted) - len(missing)
    told.holds(f'{what}, {known} numbers and texts', True)
  if missing:
    few = ', '.join(missing[:3]) + ', …' * (len(missing) > 3)
    told.skip(
      f'{what}, {len(missing)} numbers ({few})',
      'nothing here yields them: images or models are gone, or never were',
    )


def _alike(own: Any, value: Any) -> bool:
  if isinstance(own, float) and isinstance(value, float):
    return math.isclose(own, value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
  return own == value
