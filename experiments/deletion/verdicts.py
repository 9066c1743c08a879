"""What evidence says, in sentences."""

from ..report.wording import say
from .evidence import AUC, Evidence


def verdict(
  evidence: Evidence, count: int, label: str, exact: bool, why: str = ''
) -> list[str]:
  """What the evidence says, and what it cannot, in three lines or four.

  `why`: by what an exact method took the place of another.
  """
  first, own = 'unmatched', evidence.result.own
  facts: dict[str, object] = {'count': count, 'label': label}
  if own:
    first, accuracy = 'own', own['accuracy']
    facts['right'] = f'{100 * accuracy.forgotten:.1f}'
    facts['others'] = f'{100 * accuracy.held_out:.1f}'
    facts |= {'attack': own[AUC], 'outcome': _outcome(evidence, exact)}
  accuracies = []
  for part in ('forget', 'retain', 'test'):
    name, models = f'{part}_accuracy', (evidence.source, evidence.result)
    known = [getattr(model, name) for model in models if model is not None]
    numbers = ' → '.join(f'{100 * v:.1f}' for v in known if v is not None)
    accuracies += [f'{part} {numbers} %'] if numbers else []
  return [
    say('deletion_verdicts', first, **facts),
    f'Accuracy: {", ".join(accuracies)}.',
    *_canaries(evidence, exact),
    say('deletion_verdicts', 'exact' if exact else 'approximate', why=why),
  ]


def _canaries(evidence: Evidence, exact: bool) -> list[str]:
  """A line, where an approximate method has forgotten some."""
  count, own = evidence.canaries, evidence.result.canaries.get('forgotten')
  if count is None or exact:
    return []
  if own is None:
    return [say('deletion_canaries', 'gone' if count.forgotten else 'none')]
  source, outcome = evidence.source, 'no_trace'
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


def _outcome(evidence: Evidence, exact: bool) -> str:
  found = {n: row for n, row in evidence.result.own.items() if row.differs}
  names = ', '.join(name.replace('_', ' ') for name in found)
  source, outcome = evidence.source, 'stand_out'
  if not found:
    shows = source is None or any(row.differs for row in source.own.values())
    outcome = 'no_trace' if shows else 'nor_source'
  elif exact:
    outcome = 'by_chance'
  elif all(row.difference > 0 for row in found.values()):
    outcome = 'trace'
  return say('deletion_verdicts', outcome, names=names)
