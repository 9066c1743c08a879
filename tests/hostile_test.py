"""Reports whose outside strings are hostile: they are shown, and do nothing."""

import html.parser
import re
from unittest import mock

from matplotlib.text import Text
import numpy as np
import pytest
import report_test

from experiments import (
  degree,
  degree_figures,
  figures,
  files,
  kept_pairs,
  report,
  results,
)
from experiments.reproduction import page, plan
from experiments.reproduction.outcomes import Outcomes
from experiments.reproduction.presets import PRESETS
from unlearn_jax.base import shown
from unlearn_jax.spd_gan import GeneratorSettings

NASTY = (
  '<script>alert(1)</script> "><img src=x onerror=alert(2)> \' onload=x '
  '</style></title></pre></td><style>*{display:none}</style> <!-- ]]> &amp; '
  '&#60;b&#62; a|b ``` `code` **x** [l](javascript:alert(3)) $x$ $\\frac{$ \\( '
  '{{7*7}} \n# head\n- item\n\n| a | b |\n\u202eabc\u202c \udcff \x1b[31m end'
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


def in_file(text):
  """As `report.write` encodes what UTF-8 cannot hold."""
  return text.encode('utf-8', 'backslashreplace').decode()


class Strings:
  """Strings from outside, each unlike the others."""

  def __init__(self, nasty):
    self.nasty, self.given = nasty, []

  def __call__(self, tag):
    text = f'{tag} {self.nasty} {tag}' if self.nasty else f'{tag} end {tag}'
    self.given.append(text)
    return text


HOW = ('clean', 'perturbed')
RUN = {
  **{
    part: {
      **{f'{who}_{how}': 0.5 for who in ('source', 'unlearned') for how in HOW},
      **dict.fromkeys(('degree', 'gap', 'excess'), 0.25),
      'size': 8,
    }
    for part in ('held_out', 'fitted', 'retain', 'test')
  },
  'seed': 0,
  'pixels': {'linf': 0.03, 'rms': 0.01, 'psnr': 30.0, 'ssim': 0.9},
  'took_off': False,
  'curve': [
    {'epoch': 0, 'loss': 1.0, 'source_loss': 1.0, 'unlearned_loss': 1.0}
  ],
}
INTERVAL = {'mean': 0.25, 'low': 0.2, 'high': 0.3, 'count': 5}
CALIBRATED = {
  'difference': INTERVAL,
  'p_value': 0.01,
  'verdict': 'separates',
}


def degree_of(string):
  """One entry of `report['degree']`."""
  names = ('degree', 'gap', 'excess', 'fitted', 'retain', 'test', 'unseen')
  row = {
    'strategy': 'top_k',
    'label': string('degree-label'),
    'role': 'method',
    **dict.fromkeys(names, INTERVAL),
    'calibrated': CALIBRATED,
    'took_off': 0,
    'runs': [[RUN]],
    'unseen_runs': [[RUN]],
  }
  return {
    'settings': {'max_perturbation': 8 / 255},
    'generators': 5,
    'seeds': 1,
    'null': {'degree': INTERVAL, 'runs': [[RUN]]},
    'identity': {'runs': [[RUN]]},
    'rows': [row],
  }


def report_of(string):
  """A report with a string from outside wherever one can be."""
  made = report_test.fake_report()
  made['dataset']['name'] = string('dataset')
  made['dataset']['fingerprint'] = string('fingerprint')
  made['command'] = string('command')
  made['stop_rule']['text'] = string('rule')
  made['model']['name'] = string('model')
  made['model']['dtype'] = string('dtype')
  made['config'][string('config-key')] = string('config')
  made['environment']['device'] = string('cpu')
  made['environment']['git_commit'] = string('git')
  made['warnings'] = [string('warning')]
  made['notes'] = [string('note')]
  for row in made['rows']:
    row['label'] = string(row['strategy'])
    row['warnings'] = [string(f'{row["strategy"]}-warning')]
    row['settings'] = {'k': 45}
  made['rows'][4]['settings'] = {string('setting-key'): string('setting')}
  made['degree'] = [degree_of(string)]
  return made


def same_structure(hostile, plain):
  hostile, plain = Reader(hostile), Reader(plain)
  assert hostile.elements == plain.elements
  return words(' '.join(hostile.text))


def same_lines(hostile, plain):
  """Markdown of the same lines, cells and marks."""

  def marks(text):
    block = r'<pre>.*?</pre>|^```json$.*?^```$'
    text = re.sub(block, '', text, flags=re.DOTALL | re.MULTILINE)
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
    blank = figures.blank(1, 1)
    more = dict.fromkeys(('degree_bars_8_255', 'degree_images_8_255'), blank)
    with mock.patch.object(figures, 'DPI', 40):
      paths = report.write(made, tmp_path_factory.mktemp(name), more)
    found.append((string.given, {n: p.read_bytes() for n, p in paths.items()}))
  return found


def test_the_page_has_no_element_of_theirs_and_shows_them_verbatim(written):
  (given, hostile), (_, plain) = written
  text = same_structure(hostile['html'].decode(), plain['html'].decode())
  for string in given:
    # A setting lies in JSON, which has its own way to write quotes.
    if string.startswith('setting'):
      string = string.split()[0]
    assert words(in_file(string)) in text, string[:20]


def test_markdown_has_no_line_of_theirs(written):
  (given, hostile), (_, plain) = written
  same_lines(hostile['markdown'].decode(), plain['markdown'].decode())
  # Command and configuration are HTML there too.
  pattern = re.compile(rb'<pre>.*?</pre>', re.DOTALL)
  blocks = [
    Reader(b''.join(pattern.findall(f['markdown'])).decode())
    for f in (hostile, plain)
  ]
  assert blocks[0].elements == blocks[1].elements


def test_json_reads_back(written):
  (given, hostile), _ = written
  assert b'\x1b' not in hostile['json'] and hostile['json'].isascii()


def parsed_as_formula(figure):
  return [
    text.get_text()
    for text in figure.findobj(Text)
    if text.get_parse_math() and '$x' in text.get_text()
  ]


def test_no_picture_typesets_or_stumbles_over_them():
  made = files.plain(report_of(Strings(NASTY)))
  drawn = [draw(made) for draw in figures.FIGURES.values()]
  bars = [degree_figures.Bar(files.plain(NASTY), [0.1, 0.2], 'method')]
  drawn.append(degree_figures.bars(bars, [0.0, 0.1], 3))
  curves = {
    'pairs': {'unlearned': {'label': files.plain(NASTY), 'runs': [RUN]}}
  }
  drawn.append(degree_figures.curves(curves))
  image = np.zeros((1, 4, 4, 1))
  title = shown(NASTY, 24)
  drawn.append(degree_figures.image_grid(image, image, [title]))
  assert '$' in NASTY and title.isprintable()
  with mock.patch.object(figures, 'DPI', 40):
    for figure in drawn:
      assert figures.png(figure).startswith(b'\x89PNG')
      assert not parsed_as_formula(figure)


def test_a_class_name_is_one_short_line_above_its_image():
  image = np.zeros((1, 4, 4, 1), np.uint8)
  pair = kept_pairs.Pair({}, image, image.astype(np.float32), np.array([0]))
  grid = kept_pairs.grid(pair, [NASTY])
  titles = [axes.get_title() for axes in grid.axes if axes.get_title()]
  assert titles == [shown(NASTY, 24)]
  assert not parsed_as_formula(grid) and figures.png(grid)


def degree_report(string):
  pair = {
    'label': 'x',
    **dict.fromkeys(('degree', 'gap', 'excess'), INTERVAL),
    'took_off': 0,
    'runs': [RUN] * 5,
  }
  found = degree.assemble(
    {name: pair for name in ('unlearned', 'null', 'unseen', 'identity')},
    GeneratorSettings(),
  )
  return {
    **found,
    'command': string('command'),
    'checkpoints': {'source': string('path')},
    'dataset': string('dataset'),
    'environment': {'device': string('cpu')},
    'warnings': [string('warning')],
  }


def test_the_degree_s_own_report(tmp_path):
  texts = []
  for name, nasty in (('hostile', NASTY), ('plain', '')):
    with mock.patch.object(figures, 'DPI', 40):
      paths = degree.write(
        degree_report(Strings(nasty)), figures.blank(1, 1), 3, tmp_path / name
      )
    texts.append(paths['markdown'].read_text('utf-8'))
  same_lines(*texts)
  for text in texts:  # The block of JSON ends where it should.
    fences = [line for line in text.splitlines() if line.startswith('```')]
    assert fences == ['```json', '```']


def test_the_page_of_a_reproduction(tmp_path):
  """What failed, and why, and on which machine: all of it from outside."""
  pages = []
  for name, nasty in (('hostile', NASTY), ('plain', '')):
    string = Strings(nasty)
    wanted = plan.make(PRESETS['smoke'], ('table2',))
    root = tmp_path / name
    outcomes = Outcomes(root)
    for number, task in enumerate(wanted.tasks[:3]):
      outcome = {'title': 'x', 'error': string(f'error-{number}')}
      outcomes.write(task.key, outcome)
    with mock.patch.object(
      results, 'environment', lambda: {'device': string('cpu')}
    ):
      path = page.write(wanted, outcomes, root)
    pages.append((string.given, path, path.with_suffix('.md')))
  (given, hostile, markdown), (_, plain, plain_markdown) = pages
  text = same_structure(hostile.read_text('utf-8'), plain.read_text('utf-8'))
  for string in given:
    if not string.startswith('cpu'):
      assert words(in_file(string)) in text
  same_lines(markdown.read_text('utf-8'), plain_markdown.read_text('utf-8'))


def test_json_of_ours_holds_what_utf_8_cannot():
  assert files.to_json({'a': NASTY}).isascii()
