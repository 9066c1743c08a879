"""The report: its page, its files, and its summary on a terminal."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from matplotlib.figure import Figure

from . import degree, figures, rendering, tables, wording
from .model import REFERENCE, Report, to_json
from .sections import Section
from .wording import say


def write(
  report: Report, root: pathlib.Path, grids: Mapping[str, Figure]
) -> pathlib.Path:
  """Writes report.{json,md,html,csv,tex} and its pictures; returns the HTML.

  `grids`: pictures of images, by `degree.name_of`.
  """
  words = wording.title(report), wording.what_was_done(report)
  more: dict[str, bytes | str] = {
    'report.json': to_json(report),
    'report.csv': tables.csv(report),
    'report.tex': rendering.latex(words[0], tables.every(report)),
  }
  pictures = {**drawn(report), **grids}
  return rendering.save(root, 'report', *words, page(report), pictures, more)


def drawn(report: Report) -> dict[str, Figure]:
  """The pictures that `page` shows, by name, but for those of images."""
  found = {n: figures.PICTURES[n](report) for n in figures.names(report)}
  return found | degree.pictures(report.degree, report.dataset.classes)


def page(report: Report) -> list[Section]:
  """What the page shows below its title."""
  question = [say('intro', 'question')] if report.row(REFERENCE) else []
  main, *further = (
    Section(own.title, tables=[dataclasses.replace(own, title='')])
    for own in tables.every(report)
  )
  first, *pictures = (
    own for own in wording.pictures(report) if own.name in figures.names(report)
  )
  verdict, by_strategy = _found(report)
  return _filled(
    verdict,
    Section('On two rulers', pictures=[first]),
    main,
    _warnings(report),
    by_strategy and Section('Strategy by strategy', question, by_strategy),
    Section('Pictures', pictures=pictures),
    Section('How to read this', definitions=wording.how_to_read(report)),
    *further,
    *map(degree.section, report.degree),
    _how_it_was_run(report),
  )


def summary(report: Report, verbose: bool = True) -> list[Section]:
  """What the terminal shows: the verdict, a table, warnings; or all tables."""
  made = tables.every(report)[: None if verbose else 1]
  notes = dict.fromkeys(note for table in made for note in table.notes)
  bare = [dataclasses.replace(table, notes=()) for table in made]
  verdict, by_strategy = _found(report)
  degrees = map(degree.section, report.degree)
  return _filled(
    dataclasses.replace(verdict, title=''),
    Section('', tables=bare, notes=list(notes)),
    verbose and Section('Strategies', sentences=by_strategy, kind='verdicts'),
    *(Section(own.title, sentences=own.sentences) for own in degrees),
    dataclasses.replace(_warnings(report), title=''),
  )


def _filled(*sections: Any) -> list[Section]:
  """Those in which anything stands below the title."""
  alone = ('title', 'kind')
  return [
    s
    for s in sections
    if s and any(v for n, v in vars(s).items() if n not in alone)
  ]


def _found(report: Report) -> tuple[Section, list[str]]:
  """The verdict, and what there is to say of each strategy."""
  brief = wording.brief(report)
  every = [*wording.verdicts(report), *wording.yardsticks(report)]
  verdict = Section('What was found', sentences=brief, kind='verdicts')
  return verdict, [own for own in every if own not in brief]


def _warnings(report: Report) -> Section:
  rows = (text for row in report.rows for text in row.warnings)
  found = [*report.warnings, *rows]
  return Section('Warnings', sentences=found, kind='warnings')


def _how_it_was_run(report: Report) -> Section:
  """Command, configuration and environment, folded away."""
  to_text = json.JSONEncoder(ensure_ascii=False, default=str).encode
  network: dict[str, Any] = dataclasses.asdict(report.model)
  network['tensors'] = len(network.pop('tensor_sizes'))
  groups: dict[str, Mapping[str, Any]] = {
    'Config': report.config,
    'Environment': report.environment,
    'Dataset': dataclasses.asdict(report.dataset),
    'Model': network,
    'Stop rule': dataclasses.asdict(report.stop_rule),
    'Parameters by strategy': {
      f'{own.label}, {own.strategy}': own.parameters
      for own in report.rows
      if own.parameters
    },
  }
  pairs = [('Command', [('', report.command)])]
  for heading, group in groups.items():
    values = [v if isinstance(v, str) else to_text(v) for v in group.values()]
    pairs += [(heading, [*zip(map(str, group), values)])] if group else []
  title = 'How it was run: command, configuration, environment'
  return Section(title, pairs=pairs, kind='details')
