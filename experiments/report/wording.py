"""Which of the words in templates/words.toml apply to a report."""

from typing import Any

from experiments.report.judging import GAP, estimate
from experiments.report.model import REFERENCE, Report
from experiments.report.sections import Picture
from experiments.report.words import WORDS, say


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
    'computed': '' if model.dtype == 'float32' else computed,
  }
  done = say('intro', 'what_was_done', data=data, model=model, **facts)
  compared = 'compared' if report.row(REFERENCE) else 'not_compared'
  return say('intro', compared, done=done, data=data)


def question(report: Report) -> str:
  """What the verdicts answer; empty where there are none."""
  judged = {'method', 'baseline'} & {row.role for row in report.rows}
  return say('intro', 'question') if judged and report.row(REFERENCE) else ''


def how_to_read(report: Report) -> list[tuple[str, str]]:
  """Pairs of a claim in a few words and its explanation."""
  drawn = report.row('random_scalars')
  control = ('drawn' if drawn else 'plain') if report.control else 'none'
  facts = {
    'control': say('control', control, drawn=drawn),
    'rule': report.stop_rule.text.strip().rstrip('.'),
    'intervals': by_seeds(report, 'intervals'),
  }
  claims = WORDS['how_to_read']
  return [(claim, say('how_to_read', claim, **facts)) for claim in claims]


def by_seeds(report: Report, group: str) -> str:
  """What is to be said of intervals, with several seeds or with one."""
  seeds = len(report.seeds)
  return say(group, 'seeds' if seeds > 1 else 'one_seed', seeds=seeds)


def pictures(report: Report) -> list[Picture]:
  """The pictures of `pictures.PICTURES` with what stands below each."""
  seeds = len(report.seeds) > 1
  others = [row for row in report.rows if row.role != 'reference']
  drawn = any(estimate(row, GAP) for row in others)
  distance = 'distance' if seeds else 'distance_one_seed'
  facts = {
    'distance': say('pictures', distance) if drawn else '',
    'bands': say('pictures', 'bands') + ' ' if seeds else '',
    'goal': say('pictures', 'goal') + ' ' if report.row(REFERENCE) else '',
  }
  return [
    Picture(name, say('captions', name, **facts), say('alt', name))
    for name in WORDS['captions']
  ]


def warnings(report: Report) -> list[str]:
  """The report's warnings and those of its rows."""
  rows = (text for row in report.rows for text in row.warnings)
  return [*report.warnings, *rows]
