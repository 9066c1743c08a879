"""The report's files: report.json, report.md, report.html and the pictures."""

from collections.abc import Mapping
import html
import json
import os
import pathlib

from matplotlib.figure import Figure

from experiments import (
  degree_section,
  figures,
  files,
  prose,
  tables,
  verdicts,
  webpage,
)
from experiments.verdicts import Report


def write(
  report: Report,
  directory: str | os.PathLike,
  more: Mapping[str, Figure] | None = None,
) -> dict[str, pathlib.Path]:
  """Writes every form of the report; each file appears whole or not at all.

  Args:
    report: the dictionary that `experiments.unlearn` makes. NaN becomes null.
    directory: where to; made where missing, older reports replaced.
    more: further figures that a section of the report names.

  Returns:
    Paths by name: `json`, `markdown`, `html` and one for each figure.

  Raises:
    OSError: something cannot be written.
  """
  directory = pathlib.Path(directory)
  report = files.plain(report)
  pictures = figures.save_all(report, directory / 'figures', more)
  drawn = {name: path.read_bytes() for name, path in pictures.items()}
  text = {
    'html': ('report.html', webpage.page(report, drawn)),
    'markdown': ('report.md', markdown(report)),
    'json': ('report.json', files.to_json(report)),
  }
  return pictures | {
    form: files.replace(
      directory / name, content.encode('utf-8', 'backslashreplace')
    )
    for form, (name, content) in text.items()
  }


def read(path: str | os.PathLike) -> Report:
  """Reads a report.json, or the one in a directory.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no report of ours, or of a later schema.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / 'report.json'
  report = json.loads(path.read_text('utf-8'))
  if not isinstance(report, dict) or report.get('schema') != 1:
    raise ValueError(f'{path}: not a report of schema 1')
  return report


def markdown(report: Report) -> str:
  """The report as GitHub Markdown; pictures are linked from `figures/`."""
  text = tables.markdown_text
  found = verdicts.verdicts(report) + verdicts.yardsticks(report)
  notes = [tables.interval_note(report), *tables.footnotes(report, 'main')]
  parts = [
    f'# {text(prose.title(report))}\n',
    f'{text(prose.what_was_done(report))}\n',
    f'{text(prose.question(report))}\n',
    tables.markdown_list(found),
    tables.markdown_table(report),
    tables.markdown_list(notes),
  ]
  warnings = prose.warnings(report)
  if warnings:
    parts += ['## Warnings\n', tables.markdown_list(warnings)]
  parts.append('## How to read this\n')
  parts.append(
    ''.join(
      f'- **{text(claim)}** {text(why)}\n'
      for claim, why in prose.how_to_read(report)
    )
  )
  for name, caption in prose.captions(report).items():
    if caption:
      parts.append(f'![{text(caption)}](figures/{name}.png)\n')
  for part in ('paper', 'cost'):
    parts.append(f'## {text(tables.PARTS[part][0])}\n')
    parts.append(tables.markdown_table(report, part))
  parts.append(tables.markdown_list(tables.footnotes(report, 'cost')))
  for section in degree_section.sections(report):
    parts += _section(section)
  if report.get('notes'):
    parts += ['## Notes\n', tables.markdown_list(report['notes'])]
  parts += ['## How it was run\n', _how_it_was_run(report)]
  return '\n'.join(part for part in parts if part.strip())


def _section(section: degree_section.Section) -> list[str]:
  text = tables.markdown_text
  return [
    f'## {text(section.title)}\n',
    tables.markdown_list(section.sentences),
    *(tables.markdown_rows(head, rows) for head, rows in section.tables),
    tables.markdown_list(section.notes),
    *(
      f'![{text(caption)}](figures/{name}.png)\n'
      for name, caption in section.pictures.items()
    ),
  ]


def _how_it_was_run(report: Report) -> str:
  """Command, configuration and environment, folded away."""
  setup = {key: report[key] for key in ('config', 'environment', 'dataset')}
  shown = f'{report["command"]}\n\n{json.dumps(setup, indent=2)}'
  return (
    '<details><summary>Command, configuration, environment</summary>\n\n'
    f'<pre>{html.escape(shown, quote=False)}</pre>\n\n</details>\n'
  )
