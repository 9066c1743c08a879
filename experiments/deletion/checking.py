"""All that a record says, computed again from the files that are there."""

import dataclasses
import math
import pathlib
from typing import Any

from safetensors.numpy import load

from unlearn_jax import checkpoints
from unlearn_jax.base import InputError, ModelState, shown
from ..report.model import to_json
from ..runtime.progress import say
from ..settings import FlagError
from ..study import setup as setups
from ..workdir import finished
from . import basis as bases
from . import bounds as limits
from . import evidence
from . import record as records
from .basis import MODEL, TENSORS, Basis
from .record import Record

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
    raise InputError(
      f'--record={path}: is of format {record.format}, which the version that'
      f' wrote it verifies; allowed: {records.FORMAT}'
    )
  own = path.read_bytes() == to_json(record)
  own &= records.digest(record) == record.content_sha256
  told.holds(path.name, own, 'not as it was written')
  _file(told, root / records.PAGE, record.page_sha256)
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
  manifest = folder / 'manifest.json'
  if not manifest.is_file():
    return told.holds(f'{MODEL}/manifest.json', False, 'missing')
  wrong = {}
  if records.sha256(manifest.read_bytes()) != record.result.manifest_sha256:
    wrong['manifest.json'] = 'not as it was written'
  try:
    wanted = checkpoints.read_manifest(folder)['files_sha256']
  except InputError:
    return told.holds(f'{MODEL}/manifest.json', False, 'not as it was written')
  there = {
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file() and path != manifest
  }
  wrong |= dict.fromkeys(there - wanted.keys(), 'not of the model')
  for name, sha256 in wanted.items():
    if name not in there:
      wrong[name] = 'missing'
    elif records.sha256((folder / name).read_bytes()) != sha256:
      wrong[name] = 'not as it was written'
  for name, why in wrong.items():
    told.holds(f'{MODEL}/{name}', False, why)
  return not wrong and told.holds(f'{MODEL}/, {len(there) + 1} files', True)


def _contents(
  told: _Told, path: pathlib.Path, record: Record, key: bytes, asked: Any
) -> None:
  """Ids, data, chain and numbers."""
  basis = bases.read(path, asked.dataset, asked.archives, asked.model)
  chain, request = basis.chain, record.request
  *_, newest = chain.requests
  state = checkpoints.digest(basis.own.state._asdict())
  told.holds('tensors of model/', state == record.result.state_sha256)
  told.holds('number of the request', len(chain.requests) == request.number)
  told.holds(
    'data after', basis.fingerprint(basis.trained) == record.data.after
  )
  spent = [*newest, *(chain.spent[-1] if chain.spent else ())]
  before = [n for n in basis.rows if n in {*basis.trained, *spent}]
  gone = [n for n in spent if n not in basis.rows]
  if gone:
    told.skip('data before', f'{len(gone)} forgotten images are not there')
  else:
    same = basis.fingerprint(before) == record.data.before
    told.holds('data before', same)
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
  retrained = _model(basis, next(iter(sorted(root.glob('retrain-*'))), None))
  source = pathlib.Path(basis.chain.source), record.source.state_sha256
  models = evidence.Models(
    basis.own.state,
    _model(basis, *source),
    retrained,
    _model(basis, pathlib.Path(basis.chain.origin)),
  )
  if retrained is not None:
    its = checkpoints.digest(retrained._asdict())
    told.holds('tensors of the Retrain', its == record.retrained_sha256)
  _numbers(told, basis, record.evidence, models, 'evidence')
  if (text := record.method.parameters.get('retrain_if')) is None:
    return
  tried, judged, said = record.replaced, record.evidence, []
  if tried is not None:
    judged, said = tried.evidence, tried.broken
    what, there = 'evidence of the model that was replaced', None
    for path in sorted(root.glob('*')):
      there = there or _model(basis, path, tried.state_sha256)
    if there is None:
      told.skip(what, f'it is not in {root.name}/ any more')
    else:
      own = checkpoints.digest(there._asdict()) == tried.state_sha256
      told.holds('tensors of the model that was replaced', own)
      own_models = models._replace(result=there, retrained=None)
      _numbers(told, basis, judged, own_models, what)
  told.holds('bounds', limits.broken(limits.parse(text), judged) == said)


def _model(
  basis: Basis, path: pathlib.Path | None, sha256: str = ''
) -> ModelState | None:
  """A model that is there, and is the one of a digest if there is one."""
  try:
    if path is None or finished.manifest(path).state_sha256 != sha256 != '':
      return None
    return setups.load_model(basis.setup, path).state
  except InputError:
    return None


def _numbers(
  told: _Told,
  basis: Basis,
  said: evidence.Evidence,
  models: evidence.Models,
  what: str,
) -> None:
  """Those of one model, computed again."""
  sets = basis.sets(basis.chain, basis.trained)
  then = [own.then for own in said.reversals]
  found = evidence.gather(basis.setup.model, sets, models, then)
  wanted, own = dict(records.flat(said)), dict(records.flat(found))
  if own['attack'] != wanted['attack']:
    told.skip('the attack', 'its models of halves are not there, or others are')
    wanted = {n: v for n, v in wanted.items() if 'attack' not in n}
  differ = [
    f'{name} is {own[name]}, not {value}'
    for name, value in wanted.items()
    if name in own and not _alike(own[name], value)
  ]
  missing = wanted.keys() - own.keys()
  for text in differ:
    told.holds(what, False, text)
  if not differ:
    known = len(wanted) - len(missing)
    told.holds(f'{what}, {known} numbers and texts', True)
  if missing:
    few = ', '.join(sorted(missing)[:3]) + ', …' * (len(missing) > 3)
    told.skip(
      f'{what}, {len(missing)} numbers ({few})',
      'their images or models are not there any more, or not whole',
    )


def _alike(own: Any, value: Any) -> bool:
  if isinstance(own, float) and isinstance(value, float):
    return math.isclose(own, value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
  return own == value
