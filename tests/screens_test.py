"""The report in a browser: three widths, light and dark; nothing overflows.

SCREENS=DIR keeps the pictures, to be looked at.
"""

import html
import io
import json
import os
import pathlib
import re
import shutil
import subprocess

from matplotlib import image
import msgspec
import numpy as np
import pytest

from experiments.report import model, pages

ROOT = pathlib.Path(__file__).parent.parent
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')

# Of the framed page: headless windows are never narrower than 500 px.
MEASURE = """<script>addEventListener('load', () => {
  const width = innerWidth, box = e => e.getBoundingClientRect();
  const scrolled = e => e.closest('.scroll, pre');
  const all = [...document.querySelectorAll('body *')];
  const gap = all.find(e => e.tagName == 'TH' && /^Gap to/.test(e.innerText));
  const color = getComputedStyle(document.body);
  parent.postMessage({
    width, whole: document.documentElement.scrollWidth,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    outside: all.filter(e => !scrolled(e) && box(e).right > width + 1)
      .map(e => e.tagName + ' ' + e.className),
    cut: all.filter(e => e.tagName == 'TD' && e.scrollWidth > e.clientWidth + 1)
      .map(e => e.innerText),
    gap: box(gap).right, ruler: box(document.querySelector('img')).top,
    retrain: box(document.querySelector('tr.reference')).bottom,
    broken: [...document.images].filter(e => !e.naturalWidth).length,
    colors: [color.color, color.backgroundColor],
  }, '*');
})</script></body>"""
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe src="{page}" width="{width}" height="1600"></iframe>
<script>addEventListener('message', event => {{
  document.body.dataset.found = JSON.stringify(event.data);
}})</script>"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """The report of results/cpu/digits, as this code writes it."""
  text = (ROOT / 'results' / 'cpu' / 'digits' / 'report.json').read_bytes()
  report = msgspec.json.decode(text, type=model.Report)
  path = pages.write(report, tmp_path_factory.mktemp('report'), {})
  text = path.read_text().replace('</body>', MEASURE)
  # The page forbids scripts, but for ours.
  free = "default-src 'none'; script-src 'unsafe-inline'"
  assert "default-src 'none'" in text
  path.write_text(text.replace("default-src 'none'", free))
  return path


def seen(page, width, dark):
  """What a page says of itself, and its picture `[height, width, 3]`."""
  name = f'{width}-{"dark" if dark else "light"}'
  frame, shot = page.parent / f'{name}.html', page.parent / f'{name}.png'
  frame.write_text(FRAME.format(page=page.name, width=width))
  done = subprocess.run(
    [
      *(BROWSER, '--headless', '--no-sandbox', '--disable-gpu'),
      *('--hide-scrollbars', '--virtual-time-budget=5000', '--dump-dom'),
      *(f'--screenshot={shot}', f'--window-size={max(width, 500)},1687'),
      f'--user-data-dir={page.parent / "browser"}',
      f'--blink-settings=preferredColorScheme={0 if dark else 1}',
      frame.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  found = re.search('data-found="([^"]*)"', done.stdout)
  assert found, done.stderr[-2000:]
  if kept := os.environ.get('SCREENS'):
    shutil.copy(shot, pathlib.Path(kept, f'{page.parent.name}-{name}.png'))
  pixels = image.imread(io.BytesIO(shot.read_bytes()))
  return json.loads(html.unescape(found[1])), pixels[:1600, :width, :3]


def luminance(color):
  parts = np.array([float(x) for x in re.findall(r'[\d.]+', color)[:3]]) / 255
  linear = np.where(parts > 0.04, ((parts + 0.055) / 1.055) ** 2.4, parts / 13)
  return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize(
  'width, height', [(390, 844), (800, 1280), (1280, 720)]
)
def test_the_report_fits_a_screen(page, width, height, dark):
  found, pixels = seen(page, width, dark)
  assert (found['width'], found['dark']) == (width, dark)
  assert found['whole'] <= width
  assert not found['outside'] and not found['cut'] and not found['broken']
  # Seen without being scrolled to.
  assert found['gap'] <= width and found['ruler'] < height
  assert found['retrain'] <= height or width < 1280
  ink, paper = map(luminance, found['colors'])
  high, low = max(ink, paper), min(ink, paper)
  assert (high + 0.05) / (low + 0.05) > 7  # WCAG AAA.
  assert (ink > paper) == dark
  # The picture is of this page: paper, and ink upon it.
  assert (np.median(pixels) < 0.3) == dark
  assert pixels.std() > 0.05


def test_what_overflows_would_be_seen(page, tmp_path):
  wide = tmp_path / 'report.html'
  shutil.copytree(page.parent / 'figures', tmp_path / 'figures')
  text = page.read_text()
  bar = '<div class="wide" style="width: 500px">x</div>'
  wide.write_text(text.replace('</h1>', f'</h1>{bar}', 1))
  found, _ = seen(wide, 390, False)
  assert found['whole'] > 390 and 'DIV wide' in found['outside']
