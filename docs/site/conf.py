"""How Sphinx makes the site; docs/site/build.py calls it."""

import re

project = html_title = 'unlearn_jax'
html_theme = 'furo'
html_copy_source = html_show_copyright = False
html_static_path = ['static']
html_css_files = ['site.css']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_heading_anchors = 4
suppress_warnings = ['toc.not_included']  # The reports that pages link to.
default_role = 'code'  # As docstrings mean `it`.
autodoc_member_order = 'bysource'
maximum_signature_line_length = 70
napoleon_use_ivar = True
python_use_unqualified_type_names = True


def setup(app):
  """Docstrings are Markdown here and there, and METRICS is a table."""
  app.connect('autodoc-process-docstring', _docstring, priority=1)
  app.connect('autodoc-process-signature', _signature)


def _signature(app, what, name, thing, options, signature, returns):
  # A default such as <function adam at 0x…> is no Python.
  plain = re.sub(r'\([^()]*<[^()]*\)|<[^<>]*>', '...', signature or '')
  return plain or None, returns


def _docstring(app, what, name, thing, options, lines):
  if name == 'unlearn_jax.METRICS':
    rows = [[f'`{own.name}`', own.label, own.docs] for own in thing.values()]
    lines[:] = ['The table of metrics, by name.', '', *_table(rows)]
  text = re.sub(
    r'^\|(?P<head>.*)\n\|-.*\n(?P<rows>(?:.+\n)*)',
    lambda found: '\n'.join(_table(_cells(found['rows']))) + '\n',
    '\n'.join([*lines, '']),
    flags=re.M,
  )
  # Outside of `code` a bar and a last _ mean themselves.
  parts = re.split(r'(`[^`]*`)', text)
  parts[::2] = [re.sub(r'\||(?<=\w)_(?!\w)', r'\\\g<0>', p) for p in parts[::2]]
  lines[:] = ''.join(parts).splitlines()


def _cells(rows):
  joined = re.sub(r'\n(?!\|)', ' ', rows.rstrip())
  # A bar between two words is a column's; |x| is an absolute value.
  return [re.split(r' \| ', row.strip('| ')) for row in joined.splitlines()]


def _table(rows):
  yield from ('.. list-table::', '')
  for first, *rest in rows:
    yield f'   * - {first}'
    yield from (f'     - {cell}' for cell in rest)
  yield ''
