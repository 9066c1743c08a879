"""The report's files: report.json, report.md, report.html and the pictures."""

import html
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from experiments import figures, files, prose, tables, verdicts, webpage
from experiments.verdicts import Report


def write(
  report: Report, directory: str | os.PathLike
) -> dict[str, pathlib.Path]:
  """Writes every form of the report; each file appears whole or not at all.

  Args:
    report: the dictionary that `experiments.unlearn` makes. NaN becomes null.
    directory: where to; made where missing, older reports replaced.

  Returns:
    Paths by name: `json`, `markdown`, `html` and one for each figure.

  Raises:
    OSError: something cannot be written.
  """
  directory = pathlib.Path(directory)
  report = plain(report)
  pictures = figures.save_all(report, directory / 'figures')
  drawn = {name: path.read_bytes() for name, path in pictures.items()}
  text = {
    'html': ('report.html', webpage.page(report, drawn)),
    'markdown': ('report.md', markdown(report)),
    'json': ('report.json', to_json(report)),
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


def to_json(report: Report) -> str:
  """The report as JSON that any parser reads: NaN and infinity become null."""
  return (
    json.dumps(plain(report), sort_keys=True, indent=2, allow_nan=False) + '\n'
  )


def plain(value: Any) -> Any:
  """The same value in JSON's own types.

  Example:
    >>> plain({'auc': np.float32('nan'), 1: (np.int64(2), None)})
    {'auc': None, '1': [2, None]}
  """
  if isinstance(value, dict):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, list | tuple | set | frozenset):
    return [plain(item) for item in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, bool | int | str):
    return value
  return str(value)


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
  if report.get('notes'):
    parts += ['## Notes\n', tables.markdown_list(report['notes'])]
  parts += ['## How it was run\n', _how_it_was_run(report)]
  return '\n'.join(part for part in parts if part.strip())


def _how_it_was_run(report: Report) -> str:
  """Command, configuration and environment, folded away."""
  setup = {key: report[key] for key in ('config', 'environment', 'dataset')}
  shown = f'{report["command"]}\n\n{json.dumps(setup, indent=2)}'
  return (
    '<details><summary>Command, configuration, environment</summary>\n\n'
    f'<pre>{html.escape(shown, quote=False)}</pre>\n\n</details>\n'
  )
