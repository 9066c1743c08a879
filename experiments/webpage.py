"""The report as one HTML file that needs nothing else: no network, no script.

Every string that is not written in this file passes `html.escape`.
"""

import base64
from collections.abc import Iterable, Mapping
from html import escape
import json
import re
from typing import Any

from experiments import degree_section, figures, prose, tables, verdicts
from experiments.verdicts import CONTROL, Report

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1.25rem 4rem;
  background: #fff; color: #1a1a1a;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: .5rem 0 .75rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; break-after: avoid; }
p, li, dd, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
ul { padding-left: 1.2rem; }
.verdicts { border-left: 4px solid #0072b2; padding: .1rem 0 .1rem 1rem; }
.warnings { border-left: 4px solid #d55e00; padding: .1rem 0 .1rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .38rem .55rem; text-align: right; vertical-align: top;
  white-space: nowrap; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom;
  white-space: normal; }
thead small { display: block; font-weight: normal; color: #444; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; white-space: normal; min-width: 8.5rem; }
tr.control > * { background: #fff3d6; }
tr.reference > * { background: #eef3f7; }
.notes { font-size: .85rem; color: #333; padding-left: 0; list-style: none; }
dt { font-weight: 600; margin-top: .7rem; break-after: avoid; }
dd { margin: 0; }
figure { margin: 1.75rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #333; margin-top: .4rem; }
details { margin-top: 2.25rem; }
summary { font-weight: 600; cursor: pointer; }
pre { background: #f5f5f5; padding: .7rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .8rem; }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { font-weight: normal; color: #444; width: 14rem; }
@media print {
  @page { margin: 1.5cm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: .22rem .3rem; }
  tbody th { min-width: 0; }
  .scroll { overflow: visible; }
  tr, li, dd { break-inside: avoid; }
  tr.control > *, tr.reference > * { print-color-adjust: exact; }
  figure img { max-height: 23cm; width: auto; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
ALT = {
  'gap_to_retrain': 'Bar chart of each strategy’s gap to Retrain',
  'accuracy_curves': 'Forget and retain accuracy by epoch, a panel a strategy',
  'perturbed_by_layer': 'Share of each tensor’s scalars that was perturbed',
}
PIXELS_PER_INCH = 128  # At which a figure's smallest print is still legible.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
  """The whole page.

  Args:
    report: the report, in JSON's types.
    pictures: PNG bytes by figure name, embedded in this order.
  """
  found = verdicts.verdicts(report)
  body = [
    f'<h1>{escape(prose.title(report))}</h1>',
    f'<p>{_text(prose.what_was_done(report))}</p>',
    '<h2>What was found</h2>',
    f'<p>{_text(prose.question(report))}</p>',
    f'<div class="verdicts">{_list(found + verdicts.yardsticks(report))}</div>',
    _table(report, 'main'),
    _list(
      [tables.interval_note(report), *tables.footnotes(report, 'main')], 'notes'
    ),
    _warnings(report),
    '<h2>How to read this</h2>',
    _definitions(report),
    '<h2>Pictures</h2>',
    *_figures(
      {n: (ALT[n], text) for n, text in prose.captions(report).items()},
      pictures,
    ),
    _table(report, 'paper'),
    _table(report, 'cost'),
    _list(tables.footnotes(report, 'cost'), 'notes'),
    *(_section(own, pictures) for own in degree_section.sections(report)),
    _notes(report),
    _setup(report),
  ]
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(prose.title(report))}</title>\n'
    f'<style>{STYLE}</style>\n</head>\n<body>\n'
    + '\n'.join(part for part in body if part)
    + '\n</body>\n</html>\n'
  )


def _text(text: str) -> str:
  """Escaped prose in which no line breaks inside a quantity."""
  safe = escape(str(text)).replace('K = 0', 'K&nbsp;=&nbsp;0')
  safe = re.sub(r'(?<=\d,) (?=[−\d])', '&nbsp;', safe)
  return re.sub(r'(?<=\d) (?=%|points|seeds)', '&nbsp;', safe)


def _list(lines: Iterable[str], kind: str = '') -> str:
  items = ''.join(f'<li>{_text(line)}</li>\n' for line in lines)
  attribute = f' class="{kind}"' if kind else ''
  return f'<ul{attribute}>\n{items}</ul>' if items else ''


def _table(report: Report, part: str) -> str:
  title, _ = tables.PARTS[part]
  head = [('Strategy', '')]
  head += [(c.header, c.unit) for c in tables.columns(report, part)]
  kinds = {CONTROL: 'control', 'retrain': 'reference'}
  body = [
    (line[0], line[1:], kinds.get(row['strategy'], ''))
    for row, line in zip(report['rows'], tables.cells(report, part))
  ]
  return f'<h2>{escape(title)}</h2>\n{_rows(head, body)}'


def _rows(
  head: Iterable[tuple[str, str]],
  body: Iterable[tuple[str, list[str], str]],
) -> str:
  """A table: names and units of columns; label, cells and class of rows."""
  first, *others = (
    f'<th scope="col">{escape(name)}'
    + (f' <small>{escape(unit)}</small>' if unit else '')
    + '</th>'
    for name, unit in head
  )
  lines = (
    f'<tr class="{kind}"><th scope="row">{_text(label)}</th>'
    + ''.join(f'<td>{_text(cell)}</td>' for cell in cells)
    + '</tr>\n'
    for label, cells, kind in body
  )
  return (
    '<div class="scroll"><table>\n'
    f'<thead><tr>{first}{"".join(others)}</tr></thead>\n'
    f'<tbody>\n{"".join(lines)}</tbody></table></div>'
  )


def _warnings(report: Report) -> str:
  found = prose.warnings(report)
  if not found:
    return ''
  return f'<h2>Warnings</h2>\n<div class="warnings">{_list(found)}</div>'


def _notes(report: Report) -> str:
  notes = report.get('notes')
  return f'<h2>Notes</h2>\n{_list(notes)}' if notes else ''


def _definitions(report: Report) -> str:
  items = (
    f'<dt>{_text(claim)}</dt><dd>{_text(why)}</dd>\n'
    for claim, why in prose.how_to_read(report)
  )
  return f'<dl>\n{"".join(items)}</dl>'


def _figures(
  named: Mapping[str, tuple[str, str]], pictures: Mapping[str, bytes]
) -> list[str]:
  """Figures by name, each with its alternative text and its caption."""
  found = []
  for name, (alt, caption) in named.items():
    data = pictures[name]
    encoded = base64.b64encode(data).decode('ascii')
    width = int.from_bytes(data[16:20], 'big') * PIXELS_PER_INCH // figures.DPI
    caption = _text(caption)
    found.append(
      f'<figure id="{name}">\n<img width="{width}" alt="{escape(alt)}" '
      f'src="data:image/png;base64,{encoded}">\n'
      + (f'<figcaption>{caption}</figcaption>\n' if caption else '')
      + '</figure>'
    )
  return found


def _section(
  section: degree_section.Section, pictures: Mapping[str, bytes]
) -> str:
  named = {name: (text, text) for name, text in section.pictures.items()}
  shown = [
    _rows(
      [(name, '') for name in head], [(line[0], line[1:], '') for line in rows]
    )
    for head, rows in section.tables
  ]
  return '\n'.join(
    [
      f'<h2>{escape(section.title)}</h2>',
      f'<div class="verdicts">{_list(section.sentences)}</div>',
      *shown,
      _list(section.notes, 'notes'),
      *_figures(named, pictures),
    ]
  )


def _setup(report: Report) -> str:
  tables_ = ''.join(
    f'<h3>{name.replace("_", " ").capitalize()}</h3>\n{_pairs(report[name])}'
    for name in ('config', 'environment', 'dataset', 'model', 'stop_rule')
  )
  settings = {
    row['label']: row['settings'] for row in report['rows'] if row['settings']
  }
  return (
    '<details><summary>How it was run: command, configuration, environment'
    f'</summary>\n<pre>{escape(str(report["command"]))}</pre>\n{tables_}'
    f'<h3>Settings by strategy</h3>\n{_pairs(settings)}</details>'
  )


def _pairs(values: Mapping[str, Any]) -> str:
  def shown(value: Any) -> str:
    if isinstance(value, str):
      return value
    return json.dumps(value, ensure_ascii=False)

  lines = ''.join(
    f'<tr><th scope="row">{escape(str(key))}</th>'
    f'<td>{escape(shown(value))}</td></tr>\n'
    for key, value in values.items()
  )
  return f'<table class="pairs"><tbody>\n{lines}</tbody></table>\n'
