"""What docs/ shows is what runs, and what there is."""

import ast
import contextlib
import importlib.util
import inspect
import io
import pathlib
import re

import helpers
import jax

import unlearn_jax
from unlearn_jax import attacks, parallel, strategies, training
from unlearn_jax.base import Context

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
NOTEBOOKS = sorted((DOCS / 'notebooks').glob('*.py'))


def _site():
  path = DOCS / 'site' / 'build.py'
  spec = importlib.util.spec_from_file_location('site_build', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


site = _site()


def said(notebook):
  """What a notebook prints, a line each, as its page has it."""
  with parallel.use(jax.devices()[:1]):
    page = site.rendered(notebook.read_text(), run=True)
  return re.findall(r'^```text\n(.*?)^```$', page, re.M | re.S)


def number(words, line):
  return float(re.search(rf'{words} +(-?\d\.\d+)', line)[1])


class SeenError(Exception):
  pass


class Unseen:
  def __getattr__(self, name):
    raise SeenError(name)


def sees_d_ul(strategy, context):
  try:
    strategy.edit(context)
    sets = [term.examples(context) for term in strategy.terms]
    return any(own is context.splits.forget for own in sets)
  except SeenError:
    return True


def test_what_needs_d_ul_or_held_out_data_is_what_the_page_says():
  model, splits = helpers.model(), helpers.splits()
  splits = splits._replace(forget=Unseen(), heldout=splits.test)
  source = training.initialize(jax.random.key(0), model)
  context = Context(jax.random.key(1), model, source, splits)
  found = 0
  for line in (DOCS / 'methods.md').read_text().splitlines():
    names, *cells = line.strip('| ').split(' | ')
    if len(cells) < 6 or not {*cells[1:3]} <= {'yes', 'no'}:
      continue
    for own in strategies.parse(', '.join(re.findall('`(.+?)`', names))):
      needs = sees_d_ul(own.strategy, context), own.strategy.needs_heldout
      assert needs == tuple(c == 'yes' for c in cells[1:3]), own.text
      found += 1
  assert found > 20


def test_ten_minutes_are_enough_to_forget():
  _, rulers, methods = said(DOCS / 'notebooks' / 'forget_in_ten_minutes.py')
  source, retrain = rulers.splitlines()
  tuned, fresh, scratch = methods.splitlines()
  assert number('forget_accuracy', source) > 0.9
  assert number('forget_accuracy', retrain) < 0.05
  # What the text says of them.
  assert number('mia_auc', tuned) > 0.9
  for line in fresh, scratch:
    assert number('gap_to_retrained', line) < 0.1, line


def test_the_method_of_the_notebook_is_found_out_by_the_attack_alone():
  notebook = DOCS / 'notebooks' / 'add_a_method_and_audit_it.py'
  _, accuracies, attacked, _ = said(notebook)
  _, null, own = accuracies.splitlines()
  for part in ('forget', 'retain', 'test'):
    assert abs(number(part, own) - number(part, null)) < 0.05
  _, null, own = attacked.splitlines()
  assert number('95 %', own) > number('to', null)


def test_every_notebook_is_run():
  text = pathlib.Path(__file__).read_text()
  assert len(NOTEBOOKS) == 2 and all(path.name in text for path in NOTEBOOKS)


def test_own_data_model_method_and_metric_run():
  text = (DOCS / 'own.md').read_text()
  blocks = re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
  out, space = io.StringIO(), {}
  try:
    with contextlib.redirect_stdout(out), parallel.use(jax.devices()[:1]):
      for block in blocks:
        exec(compile(block, 'own.md', 'exec'), space)
  finally:
    added = unlearn_jax.METRICS.pop('doubt', None)
  sizes, named, *_, last = out.getvalue().splitlines()
  assert (sizes, named) == ('20 180 100', "('0', '1') 20 3")
  assert added and 0 < ast.literal_eval(last)['doubt'] <= 0.7  # log 2


def public():
  """(module, name, what) of all that users may name."""
  own, more = set(unlearn_jax.__all__), set(strategies.__all__)
  for module, names in ((unlearn_jax, own), (strategies, more - own)):
    for name in sorted(names):
      yield module, name, getattr(module, name)
  for name, what in vars(attacks).items():
    if not name.startswith('_') and not inspect.ismodule(what):
      yield attacks, name, what


def test_every_public_name_is_on_the_page_of_the_api_with_words_of_its_own():
  text, missing = (DOCS / 'api.md').read_text(), []
  blocks = re.split(r'^\.\. currentmodule:: (\S+)$', text, flags=re.M)
  shown = {
    (module, name)
    for module, block in zip(blocks[1::2], blocks[2::2])
    for name in re.findall(r'^\.\. auto\w+:: (\w+)$', block, re.M)
  }
  for module, name, what in public():
    if inspect.ismodule(what):
      assert any(home == what.__name__ for home, _ in shown), name
      continue
    words = f'`{name}`' in text and not callable(what)  # Roles, a table.
    if (module.__name__, name) not in shown and not words:
      missing.append(f'{module.__name__}.{name} is not in docs/api.md')
    # A NamedTuple or dataclass without one has its signature.
    docs = what.__doc__ or ''
    if callable(what) and (not docs.strip() or docs.startswith(f'{name}(')):
      missing.append(f'{module.__name__}.{name} has no docstring')
  assert not missing


def test_the_site_has_all_that_its_pages_link_to(tmp_path):
  staged = set(site.stage(tmp_path, run=False))
  assert {'README.md', 'results/cpu/digits/report.md'} <= staged
  home = (tmp_path / 'index.md').read_text()
  assert '](docs/' not in home and '](methods.md)' in home
  for page in tmp_path.rglob('*.md'):
    for words in re.findall(r'\]\(([^)#\s]+)', page.read_text()):
      there = page.parent / words
      assert words.startswith('http') or there.is_file(), (page, words)


def test_the_contents_name_every_page():
  named = (DOCS / 'site' / 'nav.md').read_text().split()
  named = {re.sub('[<>]', '', word) for word in named}
  pages = [*DOCS.glob('*.md'), *NOTEBOOKS]
  own = {str(p.relative_to(DOCS).with_suffix('')) for p in pages}
  assert own <= named
