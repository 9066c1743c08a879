"""The words of templates/words.toml, and which of them apply to a report."""

import pathlib
import tomllib
from typing import Any

from . import judging
from .judging import GAP, estimate
from .model import NULL, REFERENCE, SCRATCH, SOURCE, UNJUDGED, Report, Row
from .sections import Picture

_FILE = pathlib.Path(__file__).parent / 'templates' / 'words.toml'
WORDS: dict[str, Any] = tomllib.loads(_FILE.read_text('utf-8'))


def say(group: str, name: str, **facts: Any) -> str:
  """A text on one line, with what stands in braces filled in."""
  return ' '.join(WORDS[group][name].split()).format(**facts)


def title(report: Report) -> str:
  """One line: what was forgotten, from which model."""
  return say('intro', 'title', data=report.dataset, model=report.model)


def what_was_done(report: Report) -> str:
  """Data set, forget set, model and seeds, in two sentences."""
  data, model, seeds = report.dataset, report.model, len(report.seeds)
  computed = f', activations in {model.dtype}'
  facts: dict[str, Any] = {
    'share': 100 * data.forget / max(1, data.train),
    'shape': ' × '.join(map(str, data.image_shape)),
    'times': 'once' if seeds == 1 else f'with {seeds} seeds',
    'tensors': len(model.tensor_sizes),
    'apart': f', {data.heldout:,} for methods alone' * bool(data.heldout),
    'computed': '' if model.dtype == 'float32' else computed,
  }
  done = say('intro', 'what_was_done', data=data, model=model, **facts)
  compared = 'compared' if report.row(REFERENCE) else 'not_compared'
  return say('intro', compared, done=done, data=data)


def how_to_read(report: Report) -> list[tuple[str, str]]:
  """Pairs of a claim in a few words and its explanation."""
  drawn = report.row('random_scalars')
  control = ('drawn' if drawn else 'plain') if report.control else 'none'
  others = report.config.get('references')
  facts = {
    'control': say('control', control, drawn=drawn),
    'rule': report.stop_rule.text.strip().rstrip('.'),
    'intervals': by_seeds(report, 'intervals'),
    'references': _references(report),
    'null': say('rmia_null', 'measured' if others else 'none'),
  }
  claims = dict(WORDS['how_to_read'])
  if not any(row.mean.get('rmia_auc') for row in report.rows):
    del claims['RMIA.']
  return [(claim, say('how_to_read', claim, **facts)) for claim in claims]


def _references(report: Report) -> str:
  count = report.config.get('references') or 0
  others = 'other Retrains of each seed, which never saw it'
  return f'{count} {others}' if count else 'Retrain, which never saw it'


def by_seeds(report: Report, group: str) -> str:
  """What is to be said of intervals, with several seeds or with one."""
  seeds = len(report.seeds)
  return say(group, 'seeds' if seeds > 1 else 'one_seed', seeds=seeds)


def pictures(report: Report) -> list[Picture]:
  """The pictures of `figures.PICTURES` with what stands below each."""
  seeds = len(report.seeds) > 1
  facts = {
    'few': say('pictures', 'several' if seeds else 'few'),
    'bands': say('pictures', 'bands') + ' ' if seeds else '',
    'goal': say('pictures', 'goal') + ' ' if report.row(REFERENCE) else '',
  }
  return [
    Picture(name, say('captions', name, **facts), say('alt', name))
    for name in WORDS['captions']
  ]


def verdicts(report: Report) -> list[str]:
  """One sentence a method or baseline: is it closer to Retrain than K = 0?"""
  # Nothing is claimed where the interval of the paired difference contains 0.
  judged = [row for row in report.rows if row.role in ('method', 'baseline')]
  reference, control = report.row(REFERENCE), report.control
  if judged and not (reference and control):
    missing = 'plain fine-tuning (K = 0)' if reference else 'Retrain'
    return [say('verdicts', 'none', missing=missing)]
  pairs = [(row, report.control_of(row)) for row in judged]
  return [_verdict(row, own) for row, own in pairs if own]


def _verdict(row: Row, control: Row) -> str:
  facts: dict[str, Any] = {'label': row.label, 'control': control.label}
  plain = control.epochs == row.epochs and not _guided(control)
  facts['plain'] = 'plain fine-tuning' if plain else control.label
  if estimate(control, GAP) is None and estimate(row, GAP):
    return say('verdicts', 'unknown_control', **facts)
  difference = estimate(row, judging.GAP_MINUS)
  if difference is None:
    return say('verdicts', 'unknown', **facts)
  mean, low, high = difference.mean, difference.low, difference.high
  facts['side'] = 'closer to' if mean < 0 else 'farther from'
  facts['mean'] = judging.number(100 * abs(mean), 2)
  if low is None or high is None:
    return say('verdicts', 'one_seed', **facts)
  kind = 'undecided' if low <= 0 <= high else 'decided'
  if high < 0:
    mean, low, high = -mean, -high, -low
  numbers = [judging.number(100 * share, 2) for share in (mean, low, high)]
  seeds = len(row.values[GAP])
  return say('verdicts', kind, numbers=numbers, seeds=seeds, **facts)


def yardsticks(report: Report) -> list[str]:
  """How far from Retrain the source and K = 0 are, and who is no nearer."""
  # Who is no closer than the source has not been shown to forget anything,
  # whatever its forget accuracy.
  source = report.row(SOURCE)
  unproven = [
    row.label
    for row in report.rows
    if source and estimate(source, GAP) and row.role not in UNJUDGED
    if not estimate(row, GAP)
    or (difference := judging.paired_difference(row, source))
    and difference.high is not None
    and difference.high >= 0
  ]
  found = {'scale': _scale(report), 'unproven': ', '.join(unproven)}
  found |= _worth(report) | {'tuned': report.tuned}
  return [say('yardsticks', n, rows=own) for n, own in found.items() if own]


def brief(report: Report) -> list[str]:
  """The verdict in two lines."""
  if not (report.row(REFERENCE) and report.control):
    return verdicts(report)[:1]
  found = {'scale': _scale(report)} | _worth(report)
  return [say('yardsticks', n, rows=own) for n, own in found.items() if own]


def _scale(report: Report) -> str:
  named, own = {'the untouched source': report.row(SOURCE)}, report.control
  plain = 'plain fine-tuning (K = 0)'
  named |= {own.label if own and _guided(own) else plain: own}
  named |= {'a second Retrain': report.row(NULL)}
  return ', '.join(
    f'{name} {judging.plus_minus(gap, 100, 2)}'
    for name, row in named.items()
    if (gap := estimate(row, GAP))
  )


def _guided(control: Row) -> bool:
  return 'js_weight' in control.strategy  # Which is 0 by default.


def _worth(report: Report) -> dict[str, str]:
  """Who is nearer to Retrain than K = 0, and no farther than from scratch."""
  judged = [r for r in report.rows if r.role in ('method', 'baseline')]
  tried = [r for r in report.rows if r.name == SCRATCH and estimate(r, GAP)]
  if not any(estimate(r, judging.GAP_MINUS) for r in judged):
    return {}
  if not tried or len(report.seeds) == 1:
    return {} if tried else {'no_scratch': SCRATCH}
  # Of the same budget, at its best rate.
  best: dict[str, Row] = {}
  for row in judged:
    same = [r for r in tried if row.epochs in (None, r.epochs)]
    if same:
      best[row.strategy] = min(same, key=lambda own: own.mean[GAP].mean)
  if not best:
    return {'no_scratch': SCRATCH}
  found = [
    row.label
    for row in judged
    if not judging.damaged(row, report.row(REFERENCE))
    and (gain := estimate(row, judging.GAP_MINUS))
    and (gain.high is not None and gain.high < 0)
    and (scratch := best.get(row.strategy))
    and (loss := judging.paired_difference(row, scratch))
    and (loss.low is not None and loss.low <= 0)
  ]
  against = dict.fromkeys(own.label for own in best.values())
  return {'useful' if found else 'useless': ', '.join(found or against)}
