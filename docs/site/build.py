"""Builds the pages: python docs/site/build.py [--run], into build/site.

README.md is the first page; the scripts of docs/notebooks are pages, with what
they print if they are run. What a page links to outside of docs/, be it a
report, a picture or a file of the sources, becomes a part of the site, so that
links that work in the repository work there too; whatever does not is an error.
"""

import argparse
import contextlib
import io
import os
import pathlib
import re
import shutil
import sys
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_LINK = re.compile(r'(?<=\]\()[^)#\s]+')
_CELL = re.compile(r'^# %%(?: \[(markdown)\])?\n', re.M)


def rendered(script: str, run: bool) -> str:
  """A percent script as Markdown, with what its cells print if it is run."""
  space: dict[str, Any] = {}
  _, *cells = _CELL.split(script)
  parts = []
  for kind, text in zip(cells[::2], cells[1::2]):
    if kind:
      parts.append(re.sub(r'^# ?', '', text.strip(), flags=re.M))
      continue
    parts.append(f'```python\n{text.strip()}\n```')
    if run:
      said = io.StringIO()
      with contextlib.redirect_stdout(said):
        exec(compile(text, 'a cell', 'exec'), space)
      parts += [f'```text\n{said.getvalue()}```'] * bool(said.getvalue())
  return '\n\n'.join(parts) + '\n'


def place(path: str) -> str:
  """Where the site has a file of the repository."""
  if path.startswith('docs/notebooks/'):
    return path.removeprefix('docs/').removesuffix('.py') + '.md'
  return 'index.md' if path == 'README.md' else path.removeprefix('docs/')


def linked(path: str, text: str) -> dict[str, str]:
  """The files of the repository that a page links to, by its words."""
  home, found = os.path.dirname(path), {}
  for words in _LINK.findall(text):
    target = os.path.normpath(os.path.join(home, words))
    if (ROOT / target).is_file():
      found[words] = target
  return found


def stage(pages: pathlib.Path, run: bool) -> list[str]:
  """Writes the pages, and all that they link to, and so on; says which."""
  own = [*ROOT.glob('docs/*.md'), *ROOT.glob('docs/notebooks/*.py')]
  wanted = ['README.md', *(str(p.relative_to(ROOT)) for p in sorted(own))]
  for path in wanted:  # It grows.
    there = pages / place(path)
    there.parent.mkdir(parents=True, exist_ok=True)
    if there.suffix != '.md':
      shutil.copyfile(ROOT / path, there)
      continue
    text = (ROOT / path).read_text()
    text = rendered(text, run) if path.endswith('.py') else text
    found = linked(path, text)
    there.write_text(_moved(text, found, os.path.dirname(place(path)) or '.'))
    wanted += [target for target in found.values() if target not in wanted]
  with (pages / 'index.md').open('a') as index:
    index.write((HERE / 'nav.md').read_text())
  return wanted


def _moved(text: str, found: dict[str, str], home: str) -> str:
  def to(words: re.Match[str]) -> str:
    target = found.get(words[0])
    return os.path.relpath(place(target), home) if target else words[0]

  return _LINK.sub(to, text)


def main() -> int:
  """Stages the pages, and has Sphinx make a site of them."""
  from sphinx.cmd.build import build_main  # Of the extra `docs`.

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--run', action='store_true', help='run the notebooks')
  pages, out = ROOT / 'build' / 'pages', ROOT / 'build' / 'site'
  for folder in (pages, out):
    shutil.rmtree(folder, ignore_errors=True)
  stage(pages, parser.parse_args().run)
  how = '--fail-on-warning', '--keep-going', '--fresh-env', '--quiet'
  return build_main([*how, f'--conf-dir={HERE}', str(pages), str(out)])


if __name__ == '__main__':
  sys.exit(main())
