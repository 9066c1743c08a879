"""What is written down of a request: no image, no name, no path.

Ids are there as keyed hashes only. `record.json` holds the digest of its own
content, and that of the record before it: together they are a chain.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import hmac
import pathlib
from typing import Any

import msgspec

from unlearn_jax.base import InputError, require_file, shown
from ..report import rendering
from ..report.model import to_json
from ..report.sections import Section, Table
from ..settings import FlagError
from ..workdir import finished
from ..workdir.finished import Code
from .bounds import Broken
from .evidence import Evidence

NAME, PAGE = 'record.json', 'record.html'
# Another number, test or wording that `checking` computes is another format.
FORMAT = 2
_KEY_BYTES = 16  # At least.
_LOADED = (
  "file = safetensors.safe_open('model.safetensors', 'np')",
  'flat = {name: file.get_tensor(name) for name in file.keys()}',
  "state = flax.traverse_util.unflatten_dict(flat, sep='/')",
  'facts = {n: json.loads(text) for n, text in file.metadata().items()}',
)
_OURS = (
  "x = (images / 255 - facts['mean']) / facts['std']",
  'logits = network.apply(state, x, train=False)',
)
_OWN = (  # `Model.apply` has the units inside, where there are any.
  'state = unlearn_jax.ModelState(**state)',
  'logits = model.apply(state, images, False)[0]',
)


@dataclasses.dataclass(frozen=True)
class Request:
  """What was asked for."""

  number: int  # in its chain, from 1
  images: int  # that are forgotten
  scope: str  # 'examples', or 'whole classes' where nothing of one is left
  decision: str
  received: str | None  # as the flag says
  started: str  # UTC
  finished: str
  repeated: int  # entries that named an image again
  earlier: int  # images that were left out: an earlier request named them
  keyed: bool  # whether the hashes need a key to be computed
  key_check: str  # hash of nothing: tells another key from other ids
  id_hashes: list[str]  # HMAC-SHA256, sorted


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What the source was trained on, before and after; with the test images."""

  before: str  # fingerprint
  after: str
  images_before: int
  images_after: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
  """A model by its hashes."""

  state_sha256: str  # of its arrays
  manifest_sha256: str  # of its manifest.json, which has those of all files
  trained_ids: str  # HMAC-SHA256 of the ids that it may know
  safetensors_sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Method:
  """How it was done."""

  strategy: str  # as it is spelled
  label: str
  exact: bool  # whether no weight has ever seen a forgotten image
  parameters: dict[str, Any]
  seed: int
  epochs: int  # that were run
  # Of that training, over D_RE and D_UL; None where a strategy mixes them.
  retain_passes: float | None
  forget_passes: float | None
  seconds: float  # of all, those of stopped processes too


@dataclasses.dataclass(frozen=True)
class Replaced:
  """A model that broke a bound, so that an exact retrain took its place."""

  method: Method
  state_sha256: str
  broken: list[Broken]
  evidence: Evidence  # of that model

  def __str__(self) -> str:
    """What it was, and why it was replaced."""
    return f'{self.method.strategy} ({"; ".join(map(str, self.broken))})'


@dataclasses.dataclass(frozen=True)
class Record:
  """All of `record.json`."""

  request: Request
  data: DataFacts
  source: ModelFacts
  result: ModelFacts
  method: Method
  code: Code
  evidence: Evidence
  replaced: Replaced | None  # by what `evidence` is of
  verdict: list[str]
  limits: list[str]
  not_erased: list[str]
  loading: list[str]  # lines of Python, from a file and images to logits
  previous_record_sha256: str | None
  # Of the tensors of the Retrain that `evidence` has; left out if it has none.
  retrained_sha256: str | msgspec.UnsetType = msgspec.UNSET
  page_sha256: str = ''
  content_sha256: str = ''
  format: int = FORMAT

  def sealed(self) -> 'Record':
    """With its digests."""
    own = dataclasses.replace(self, page_sha256=sha256(html(self).encode()))
    return dataclasses.replace(own, content_sha256=digest(own))


def digest(record: Record) -> str:
  """Hex SHA-256 of a record's content, the digest itself left out."""
  bare = dataclasses.replace(record, content_sha256='')
  return sha256(msgspec.json.encode(bare, order='deterministic'))


def read(path: pathlib.Path) -> Record:
  """The content of a file, whatever its digests."""
  try:
    require_file(path)
    return msgspec.json.decode(path.read_bytes(), type=Record)
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{path}: is no record: {shown(error)}') from error


def sha256(content: bytes) -> str:
  """In hex."""
  return hashlib.sha256(content).hexdigest()


def read_key(path: str | None) -> bytes:
  """The key of a file, all its bytes; empty where there is none."""
  if path is None:
    return b''
  try:
    require_file(path)
  except InputError as error:
    raise InputError(f'--key_file={error}') from error
  key = pathlib.Path(path).read_bytes()
  if len(key) < _KEY_BYTES:
    raise FlagError('key_file', path, f'a file of {_KEY_BYTES} bytes or more')
  return key


def keyed(key: bytes, *ids: str) -> str:
  """Hex HMAC-SHA256 of ids, one a line."""
  text = '\n'.join(ids).encode('utf-8', 'surrogatepass')
  return hmac.new(key, text, 'sha256').hexdigest()


def hashes(key: bytes, ids: Iterable[str]) -> list[str]:
  """Of each id, sorted: their order would say something of the data."""
  return sorted(keyed(key, name) for name in ids)


def html(record: Record) -> str:
  """The record as one page to print; without its digests of itself."""
  request, evidence = record.request, record.evidence
  bare: dict[str, Any] = msgspec.to_builtins(record)
  hashes = sha256('\n'.join(bare['request'].pop('id_hashes')).encode())
  bare['request']['SHA-256 of the hashes in record.json'] = hashes
  bare['request']['record before'] = record.previous_record_sha256
  parts = 'request', 'data', 'source', 'result', 'method', 'code'
  pairs = [
    (part.capitalize(), [(n, _shown(v)) for n, v in bare[part].items()])
    for part in parts
  ]
  notes = [evidence.attack, evidence.null, evidence.threshold]
  notes += [] if evidence.canaries is None else [evidence.canaries.test]
  sections = [
    Section('What was found', sentences=record.verdict, kind='verdicts'),
    Section('Evidence', tables=_tables(evidence), notes=notes),
    Section('What it cannot say', sentences=record.limits, kind='warnings'),
    Section('What was not erased', sentences=record.not_erased),
    Section('What was done', pairs=pairs),
    Section(
      'How it is loaded', pairs=[('', [('', n) for n in record.loading])]
    ),
  ]
  if (replaced := record.replaced) is not None:
    own = Section('What was replaced', [str(replaced)])
    own = dataclasses.replace(own, tables=_tables(replaced.evidence))
    sections.insert(2, own)
  intro = f'{request.images} images, decision: {request.decision}.'
  return rendering.html(f'Deletion record {request.number}', intro, sections)


def _shown(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{name}={_shown(own)}' for name, own in value.items())
  if isinstance(value, bool) or not isinstance(value, float):
    return '–' if value is None else str(value)
  return f'{value:.3f}'


def flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  """Every number and text by its path; nothing for what is None."""
  value = msgspec.to_builtins(value)
  if isinstance(value, dict | list):
    pairs = value.items() if isinstance(value, dict) else enumerate(value, 1)
    for key, own in pairs:
      yield from flat(own, f'{name}.{key}' if name else str(key))
  elif value is not None:
    yield name, value


def _tables(evidence: Evidence) -> list[Table]:
  """The models side by side, and what there is beside them."""
  rest = dict(vars(evidence))
  models = {
    n: dict(flat(rest.pop(n))) for n in ('source', 'result', 'retrained')
  }
  names = list(models['result'])
  models = {n: own for n, own in models.items() if own}
  body = [[n, *(_shown(own.get(n)) for own in models.values())] for n in names]
  more = [[n, _shown(v)] for n, v in flat(rest) if not isinstance(v, str)]
  return [Table.of(('', *models), body), Table.of(('', 'value'), more)]


def contents(record: Record) -> dict[str, bytes]:
  """The files of a record; what the other belongs to comes last."""
  return {PAGE: html(record).encode(), NAME: to_json(record)}


def loading(own: bool) -> list[str]:
  """How a model is loaded, ours or one's own; images have values 0 to 255."""
  return [*_LOADED, *(_OWN if own else _OURS)]


def model_facts(
  path: pathlib.Path,
  key: bytes,
  trained: Sequence[str],
  safetensors_sha256: str | None = None,
) -> ModelFacts:
  """The hashes of a checkpoint."""
  return ModelFacts(
    state_sha256=finished.manifest(path).state_sha256,
    manifest_sha256=sha256((path / 'manifest.json').read_bytes()),
    trained_ids=keyed(key, *trained),
    safetensors_sha256=safetensors_sha256,
  )
