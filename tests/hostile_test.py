"""Reports whose outside strings are hostile: they are shown, and do nothing."""

import csv
import dataclasses
import html.parser
import io
import re
from unittest import mock

from matplotlib.figure import Figure
from matplotlib.text import Text
import msgspec
import numpy as np
import pytest
import report_test
from rich.console import Console

from experiments.report import (
  degree,
  figures,
  model,
  pages,
  rendering,
  tables,
)
from experiments.report.sections import Section, Table
from experiments.runtime import progress
from unlearn_jax import metrics
from unlearn_jax.base import shown
from unlearn_jax.degree import Standing

NASTY = (
  '<script>alert(1)</script> "><img src=x onerror=alert(2)> \' onload=x '
  '</style></title></pre></td><style>*{display:none}</style> <!-- ]]> &amp; '
  '&#60;b&#62; a|b ``` `code` **x** [l](javascript:alert(3)) $x$ $\\frac{$ \\( '
  '{{7*7}} {% raw %} \\end{document} \\input{/etc/passwd} ^^41 #1 ~ %\n# head'
  '\n- item\n\n| a | b |\n\u202eabc\u202c \udcff \x1b[31m\x9b31m \a [bold]x end'
)


class Reader(html.parser.HTMLParser):
  """What a browser makes of a page: elements with attributes, and text."""

  def __init__(self, page):
    super().__init__()
    self.elements, self.text = [], []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    # Of pictures the bytes differ, with what is written in them.
    values = [(k, v) for k, v in attrs if k not in ('src', 'width', 'alt')]
    self.elements.append((tag, tuple(values), tuple(k for k, _ in attrs)))

  def handle_data(self, data):
    self.text.append(data)

  def handle_comment(self, data):
    raise AssertionError(data)


def words(text):
  return ' '.join(text.replace('\xa0', ' ').split())


class Strings:
  """Strings from outside, each unlike the others."""

  def __init__(self, nasty):
    self.nasty, self.given = nasty, []

  def __call__(self, tag):
    text = f'{tag} {self.nasty} {tag}' if self.nasty else f'{tag} end {tag}'
    self.given.append(text)
    return text


def facts_of(string, unseen=True):
  """The degree of one strategy, two seeds of three generators."""

  def seeds(level):
    return [[generator(level + s / 100, n) for n in range(3)] for s in (0, 1)]

  def generator(level, number):
    found = Standing(4, 0.9, 0.88, 0.8, 0.8 - level)
    pixels = metrics.PixelChange(linf=0.03, rms=0.01)
    return model.Generator(number, *[found] * 4, pixels, False)

  found = [model.Estimate(x, x - 0.02, x + 0.02) for x in (0.3, 0.02, 0.28)]
  row = model.DegreeRow(
    *('top_k', string('degree-label'), 'method', seeds(0.3)),
    *(seeds(0.29) if unseen else [], *found),
    *(found[0] if unseen else None, found[0], 0.01, 'separates'),
  )
  null = seeds(0.05)
  return model.DegreeFacts(8 / 255, {}, 3, 2, null, found[1], [row])


def report_of(string):
  """A report with a string from outside wherever one can be."""
  made = report_test.report_of()
  rows = [
    dataclasses.replace(
      row,
      strategy=string(f'{row.strategy}-spelled'),
      label=string(row.strategy),
      parameters={string('parameter-key'): string('parameter')},
      warnings=[string('row-warning')],
    )
    for row in made.rows
  ]
  sizes = {string(path): size for path, size in made.model.tensor_sizes.items()}
  return dataclasses.replace(
    made,
    rows=rows,
    command=string('command'),
    config={string('config-key'): string('config')},
    environment={'device': string('cpu')},
    dataset=dataclasses.replace(made.dataset, name=string('dataset')),
    model=dataclasses.replace(
      made.model, name=string('model'), dtype=string('d'), tensor_sizes=sizes
    ),
    stop_rule=dataclasses.replace(made.stop_rule, text=string('rule')),
    warnings=[string('warning')],
    degree=[facts_of(string)],
  )


def same_lines(hostile, plain):
  """Markdown of the same lines, cells and marks."""

  def marks(text):
    text = re.sub(r'<pre>.*?</pre>', '', text, flags=re.DOTALL)
    found = []
    for line in text.splitlines():
      assert '$' not in line and '<script' not in line and '<img' not in line
      bare = re.sub(r'\\[\\`*_\[\]|#~]', '', line)
      found.append((bare[:2], len(re.findall(r'[|*`\[\]<>]', bare))))
    return found

  assert marks(hostile) == marks(plain)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The same report with hostile and with plain strings: strings, files."""
  found = []
  for name, nasty in (('hostile', NASTY), ('plain', '')):
    string = Strings(nasty)
    made = report_of(string)
    grid = {degree.name_of(made.degree[0], 'images'): Figure(figsize=(1, 1))}
    with mock.patch.object(figures, 'DPI', 40):
      paths = report_test.write(made, tmp_path_factory.mktemp(name), grid)
    data = {form: path.read_bytes() for form, path in paths.items()}
    found.append((string.given, data, made, paths))
  return found


def test_the_page_has_no_element_of_theirs_and_shows_them_verbatim(written):
  (given, hostile, *_), (_, plain, *_) = written
  first, second = (Reader(f['html'].decode()) for f in (hostile, plain))
  assert first.elements == second.elements
  text = words(' '.join(first.text))
  for string in given:
    # A parameter lies in JSON, which has its own way to write quotes; of
    # tensors and spellings only some are shown.
    if not re.match('parameter|layer|.*-spelled', string):
      string = string.encode('utf-8', 'backslashreplace').decode()
      assert words(string) in text, string[:20]


def test_markdown_has_no_line_of_theirs(written):
  (_, hostile, *_), (_, plain, *_) = written
  same_lines(hostile['md'].decode(), plain['md'].decode())
  assert not re.search(rb'[\x00-\x08\x0b-\x1f]', hostile['md'])
  # Command and configuration are HTML there too.
  pattern = re.compile(rb'<pre>.*?</pre>', re.DOTALL)
  first, second = (
    Reader(b''.join(pattern.findall(f['md'])).decode())
    for f in (hostile, plain)
  )
  assert first.elements == second.elements


def test_json_reads_back(written):
  (_, hostile, _, paths), _ = written
  assert b'\x1b' not in hostile['json']
  back = msgspec.json.decode(paths['json'].read_bytes(), type=model.Report)
  assert back.dataset.name.startswith('dataset <script>')


def test_csv_has_as_many_fields_and_no_formula(written):
  made = written[0][2]
  for lead in '=+-@':
    made.rows[0] = dataclasses.replace(made.rows[0], label=f'{lead}cmd()\n"x",')
    lines = list(csv.reader(io.StringIO(tables.csv(made))))
    assert {len(line) for line in lines} == {9 + 3}
    assert lines[1][1].startswith("'") and '\n' not in lines[1][1]
  assert not any(c in tables.csv(made) for c in '\x1b\x9b\a\u202e')


def test_latex_compiles_and_has_no_command_of_theirs(written, tmp_path):
  (_, hostile, _, paths), (_, plain, *_) = written
  first, second = (
    re.findall(r'\\(?:begin|end|input|def)\b|&|\\\\', re.sub(r'\\&', '', text))
    for text in (hostile['tex'].decode(), plain['tex'].decode())
  )
  assert first == second
  report_test.compiled(paths['tex'], tmp_path)


@pytest.mark.parametrize('width', [40, 80, 120, None])
def test_the_terminal_obeys_none_of_them(written, width):
  text = report_test.on_terminal(written[0][2], width)
  assert all(c.isprintable() or c == '\n' for c in text)
  assert '[bold]x' in text and '[31m' in text
  file = io.StringIO()
  more = {'width': width, 'force_terminal': True} if width else {}
  sections = pages.page(written[0][2])
  rendering.terminal(sections, Console(file=file, color_system=None, **more))
  assert all(c.isprintable() or c == '\n' for c in file.getvalue())


def test_a_table_of_judgements_colours_verdicts_and_nothing_else():
  head = ['The paper says', 'Verdict', 'By']

  def page(text):
    body = [[text, 'reproduced', text], [text, 'not reproduced', text]]
    body.append([text, 'not decidable', text])
    section = Section(text, [text], [text], [Table.of(head, body)], [text])
    more = Section('x', kind='details', pairs=[(text, [('', text)])])
    return text, text, [section, more]

  first, second = (Reader(rendering.html(*page(t))) for t in (NASTY, 'x'))
  assert first.elements == second.elements
  cells = [dict(attrs) for tag, attrs, _ in first.elements if tag == 'td']
  classes = [cell.get('class') for cell in cells]
  verdicts = ['reproduced', 'not-reproduced', None]
  assert classes[::2] == verdicts and set(classes[1::2]) == {None}
  made = [rendering.markdown(*page(text)) for text in (f'x {NASTY}', 'x x')]
  same_lines(*made)
  folded = rendering.markdown('', '', [Section(NASTY, ['x'], kind='details')])
  (line,) = (line for line in folded.splitlines() if 'alert(1)' in line)
  assert line.endswith('end</summary>') and '$' not in line


def test_no_picture_typesets_or_stumbles_over_them():
  made = report_of(Strings(NASTY))
  image = np.zeros((1, 4, 4, 1))
  drawn = list(pages.drawn(made).values())
  drawn.append(figures.image_grid(image, image, [NASTY]))
  titles = [a.get_title() for a in drawn[-1].axes if a.get_title()]
  assert titles == [shown(NASTY, 24)]
  assert len(drawn) == len(figures.names(made)) + 2
  with mock.patch.object(figures, 'DPI', 40):
    for figure in drawn:
      assert figures.encoded(figure, 'x', 'x.png').startswith(b'\x89PNG')
      for text in figure.findobj(Text):
        assert not (text.get_parse_math() and '$x' in text.get_text())


def test_the_degree_says_nothing_of_unseen_images_that_were_not_measured():
  known, without = (
    degree.section(facts_of(Strings(''), unseen)) for unseen in (True, False)
  )
  assert 'not resolvably more' in known.sentences[0]
  assert 'nseen' in str(known.tables) and 'nseen' in str(known.notes)
  assert 'nseen' not in str(without) and 'no model saw' not in str(without)
  (columns, (line, *_)) = known.tables[0].columns, known.tables[0].lines
  cells = dict(zip(columns[1:], line.cells))
  assert cells['Degree, points'] == '30.0 ± 2.0' and cells['p'] == '0.010'
  assert cells['Plain gap'] == '2.0 ± 2.0' and cells['Took off'] == '0 of 6'
  bars = degree.bars(facts_of(Strings('')), 10)
  assert bars.axes[0].get_xlim()[1] > 90


def test_no_line_of_a_run_reaches_the_terminal_with_escapes(capsys):
  running = progress.Progress(1, 1)
  progress.say(f'Report: {NASTY}')
  running.begin(f'seed 0 · {NASTY}', 1)
  running.skip(f'seed 0 · {NASTY}', 1, 'done before')
  running.end(NASTY)
  out = capsys.readouterr().out
  assert out.count('\n') == 3
  assert all(c.isprintable() for c in out.replace('\n', ''))
