"""What evidence says, in sentences."""

from .evidence import AUC, Evidence


def verdict(
  evidence: Evidence, count: int, label: str, exact: bool, why: str = ''
) -> list[str]:
  """What the evidence says, and what it cannot, in three lines or four.

  `why`: by what an exact method took the place of another.
  """
  first, own = f'{count} images, {label}: ', evidence.result.own
  if own:
    right, attack = own['accuracy'], own[AUC]
    first += (
      f'accuracy {100 * right.forgotten:.1f} %, of held-out images of their'
      f' classes {100 * right.held_out:.1f} %; attack AUC'
      f' {attack.forgotten:.3f}, chance is 0.5 ± {attack.half_width:.3f}.'
      f' {_outcome(evidence, exact)}'
    )
  else:
    first += 'no held-out image of their classes, so nothing can be said.'
  accuracies = []
  for part in ('forget', 'retain', 'test'):
    name, models = f'{part}_accuracy', (evidence.source, evidence.result)
    known = [getattr(model, name) for model in models if model is not None]
    numbers = ' → '.join(f'{100 * v:.1f}' for v in known if v is not None)
    accuracies += [f'{part} {numbers} %'] if numbers else []
  last = (
    f'Exact{why}: no weight of this model has seen them. What is not erased'
    ' elsewhere stands in the record.'
    if exact
    else 'Approximate: the attack knows only the outputs, and a weaker trace'
    ' stays unseen. This is evidence, and no guarantee.'
  )
  found = [first, f'Accuracy: {", ".join(accuracies)}.']
  return [*found, *_canaries(evidence, exact), last]


def _canaries(evidence: Evidence, exact: bool) -> list[str]:
  """A line, where an approximate method has forgotten some."""
  count, own = evidence.canaries, evidence.result.canaries.get('forgotten')
  if count is None or exact:
    return []
  if own is None:
    why = 'their images are gone' if count.forgotten else 'none is left'
    return [f'Canaries: {why}, so they can say nothing.']
  first = {} if evidence.source is None else evidence.source.canaries
  before = first.get('forgotten')
  numbers = (
    f'{before.mean:.2f} → {own.mean:.2f}' if before else f'{own.mean:.2f}'
  )
  if own.differs:
    outcome = 'A trace is left.' if own.mean > 0 else 'They stand out.'
  elif before is not None and not before.differs:
    outcome = 'The source shows no trace either: they can say nothing.'
  elif before is not None and before.mean - own.mean < own.half_width:
    outcome = 'They are too few to tell it from the source.'
  else:
    outcome = 'No trace is found.'
  return [
    f'Canaries: {count.forgotten} forgotten too, {count.left} left; known'
    f' {numbers}, chance is 0 ± {own.half_width:.2f}. {outcome}'
  ]


def _outcome(evidence: Evidence, exact: bool) -> str:
  found = {n: row for n, row in evidence.result.own.items() if row.differs}
  names = ', '.join(name.replace('_', ' ') for name in found)
  if not found:
    before = evidence.source
    if before is None or any(row.differs for row in before.own.values()):
      return 'No trace is found.'
    return 'The source shows no trace either: this test can say nothing.'
  if exact:
    return f'That differs ({names}), as about one in 20 may.'
  if all(row.difference > 0 for row in found.values()):
    return f'A trace is left ({names}).'
  return f'They stand out ({names}), which tells who they were.'
