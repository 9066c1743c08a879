"""What a record says of a request that was carried out."""

import dataclasses
import datetime
import pathlib
from typing import Any

import msgspec

from unlearn_jax import data
from unlearn_jax.base import Examples
from unlearn_jax.objectives import forgotten, retained
from ..report.wording import WORDS, say
from ..study import provenance
from ..workdir import finished
from . import bounds as limits
from . import evidence
from . import record as records
from .record import DataFacts, Method, Record, Replaced, Request
from .request import EXACT, Plan


def replaced(
  made: Plan, found: evidence.Evidence, broken: list[limits.Broken]
) -> Replaced:
  """What is written down of a model that broke a bound."""
  state_sha256 = finished.manifest(made.stages[0].path).state_sha256
  return Replaced(_method(made, None), state_sha256, broken, found)


def record(
  made: Plan,
  found: evidence.Evidence,
  tried: Replaced | None,
  started: str,
  tensors_sha256: str,
) -> Record:
  """All that is written down, without the digests of itself."""
  basis, key, kept = made.basis, made.key, made.kept
  path, before = made.stages[0].path, None
  if basis.record is not None:
    previous = basis.path.parent / records.NAME
    before = records.sha256(previous.read_bytes())
  its = [finished.manifest(own.path).state_sha256 for own in made.stages[1:]]
  bare = Record(
    _request(made, tried, started),
    DataFacts(
      before=basis.fingerprint(basis.trained),
      after=basis.fingerprint(kept),
      images_before=len(basis.trained),
      images_after=len(kept),
    ),
    records.model_facts(basis.path, key, basis.trained),
    records.model_facts(path, key, kept, tensors_sha256),
    _method(made, tried),
    provenance.code(),
    found,
    tried,
    *([], [], []),
    records.loading(basis.setup.facts.model_sha256 is not None),
    before,
    next(iter(its), msgspec.UNSET),
  )
  return dataclasses.replace(bare, **sentences(bare))


def then(before: Record | None) -> list[float | None]:
  """The accuracy on each earlier request, when that was carried out."""
  if before is None:
    return []
  every = [own.then for own in before.evidence.reversals]
  return [*every, before.evidence.result.forget_accuracy]


def _request(made: Plan, tried: Replaced | None, started: str) -> Request:
  asked, named, key = made.asked, made.named, made.key
  classes = len(made.basis.setup.dataset.class_names)
  lost = data.classes_lost(made.splits, classes)
  decision = asked.decision or ('retrain' if made.exact else 'unlearn')
  if tried is not None and decision == 'unlearn':
    decision = 'retrain'
  return Request(
    number=len(made.chain.requests),
    images=len(named.ids),
    scope='whole classes' if lost else 'examples',
    decision=decision,
    received=asked.received,
    started=started,
    finished=now(),
    repeated=named.repeated,
    earlier=named.earlier,
    keyed=bool(key),
    key_check=records.keyed(key),
    id_hashes=records.hashes(key, named.ids),
  )


def _method(made: Plan, tried: Replaced | None) -> Method:
  own, asked = made_by(made.stages[0].path), made.asked
  parameters = own.pop('parameters')
  if made.instead_of is not None:
    parameters['retrain_every'] = asked.retrain_every
    parameters['in_place_of'] = made.instead_of
  elif asked.retrain_if and (tried is not None or not made.exact):
    parameters['retrain_if'] = asked.retrain_if
  if tried is not None:
    parameters['in_place_of'] = tried.method.strategy
  retain, forget = _passes(made, own['epochs'])
  return Method(
    label=made.chosen.strategy.label,
    parameters=parameters,
    retain_passes=retain,
    forget_passes=forget,
    **own,
  )


def made_by(path: pathlib.Path) -> dict[str, Any]:
  """Fields of a `Method`, as the files of what it made have them."""
  said, history = finished.manifest(path), finished.load(path).record.history
  text = said.strategy or ''
  return {
    'strategy': text,
    'exact': text.partition('(')[0] in EXACT,
    'parameters': dict(said.parameters),
    'seed': said.seed,
    'epochs': history[-1].epoch,
    'seconds': said.wall_seconds,
  }


def sentences(record: Record) -> dict[str, Any]:
  """What a record says in words, by field, of what the others hold."""
  method, found, tried = record.method, record.evidence, record.replaced
  how, exact, why, bounds = method.parameters, method.exact, '', ''
  if tried is not None:
    why = f', by --retrain_if in place of {tried}'
  elif 'in_place_of' in how:
    every = how.get('retrain_every')
    why = f', by --retrain_every={every} in place of {how["in_place_of"]}'
  else:
    bounds = how.get('retrain_if', '')
  held = limits.parse(bounds) if bounds else {}
  missing = ', '.join(name for name in held if name not in found.monitored)
  told = found, record.request.images, method.label, exact, why
  # Of texts that are there only sometimes, whether they are.
  limit = {
    'unmeasured': bool(missing),
    'weights': not exact,
    'outputs': not exact,
    'unkeyed': not record.request.keyed,
  }
  left = {
    'unseen': found.attack != evidence.ATTACK,
    'replaced': tried is not None,
  }
  return {
    'verdict': verdict(*told),
    'limits': [
      say('deletion_limits', name, unmeasured=missing)
      for name in WORDS['deletion_limits']
      if limit.get(name, True)
    ],
    'not_erased': [
      say('deletion_not_erased', name)
      for name in WORDS['deletion_not_erased']
      if left.get(name, True)
    ],
  }


def verdict(
  found: evidence.Evidence, count: int, label: str, exact: bool, why: str = ''
) -> list[str]:
  """What the evidence says, and what it cannot, in three lines or four.

  `why`: by what an exact method took the place of another.
  """
  first, own = 'unmatched', found.result.own
  facts: dict[str, object] = {'count': count, 'label': label}
  if own:
    first, accuracy = 'own', own['accuracy']
    facts['right'] = f'{100 * accuracy.forgotten:.1f}'
    facts['others'] = f'{100 * accuracy.held_out:.1f}'
    facts |= {'attack': own[evidence.AUC], 'outcome': _outcome(found, exact)}
  accuracies = []
  for part in ('forget', 'retain', 'test'):
    name, models = f'{part}_accuracy', (found.source, found.result)
    known = [getattr(model, name) for model in models if model is not None]
    numbers = ' → '.join(f'{100 * v:.1f}' for v in known if v is not None)
    accuracies += [f'{part} {numbers} %'] if numbers else []
  return [
    say('deletion_verdicts', first, **facts),
    f'Accuracy: {", ".join(accuracies)}.',
    *_canaries(found, exact),
    say('deletion_verdicts', 'exact' if exact else 'approximate', why=why),
  ]


def _canaries(found: evidence.Evidence, exact: bool) -> list[str]:
  """A line, where an approximate method has forgotten some."""
  count, own = found.canaries, found.result.canaries.get('forgotten')
  if count is None or exact:
    return []
  if own is None:
    return [say('deletion_canaries', 'gone' if count.forgotten else 'none')]
  source, outcome = found.source, 'no_trace'
  before = None if source is None else source.canaries.get('forgotten')
  if own.differs:
    outcome = 'trace' if own.mean > 0 else 'stand_out'
  elif before is not None and not before.differs:
    outcome = 'nor_source'
  elif before is not None and before.mean - own.mean < own.half_width:
    outcome = 'too_few'
  facts = {
    'count': count,
    'known': (f'{before.mean:.2f} → ' if before else '') + f'{own.mean:.2f}',
    'half': own.half_width,
    'outcome': say('deletion_canaries', outcome),
  }
  return [say('deletion_canaries', 'own', **facts)]


def _outcome(found: evidence.Evidence, exact: bool) -> str:
  told = {n: row for n, row in found.result.own.items() if row.differs}
  names = ', '.join(name.replace('_', ' ') for name in told)
  source, outcome = found.source, 'stand_out'
  if not told:
    shows = source is None or any(row.differs for row in source.own.values())
    outcome = 'no_trace' if shows else 'nor_source'
  elif exact:
    outcome = 'by_chance'
  elif all(row.difference > 0 for row in told.values()):
    outcome = 'trace'
  return say('deletion_verdicts', outcome, names=names)


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


def now() -> str:
  """In UTC, as records have it."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
