"""What README.md shows is what runs."""

import contextlib
import io
import pathlib
import re
import shlex

import jax
import pytest
import running

from experiments import (
  adopt,
  audit,
  config,
  evaluate,
  forget,
  reproduce,
  settings,
  train,
  tune,
  verify,
)
from experiments.study import planning
from unlearn_jax import parallel
from unlearn_jax.strategies import FACTORIES

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```$', TEXT, re.M | re.S)


def test_the_first_two_commands_are_the_two_commands():
  assert blocks('bash')[:2] == [
    "pip install -e '.[experiments]' && python -m experiments.unlearn\n",
    "pip install -e '.[test]' && pytest\n",
  ]


def test_the_library_examples_run():
  first, *more = blocks('python')
  out = io.StringIO()
  with contextlib.redirect_stdout(out), parallel.use(jax.devices()[:1]):
    exec(compile('\n'.join([first, *more]), 'README.md', 'exec'), {})
  said = out.getvalue().splitlines()
  assert 'forget_accuracy' in said[0]
  assert len(said) == 1 + len(more)
  for block in (first, *more):
    assert len([line for line in block.splitlines() if line]) <= 15


def test_the_readme_is_short():
  assert len(TEXT.splitlines()) <= 120


@pytest.mark.parametrize(
  'page',
  ['README.md']
  + [f'docs/{n}.md' for n in ('binaries', 'methods', 'own', 'own-weights')],
)
def test_every_flag_strategy_and_binary_that_is_named_exists(page):
  text = (ROOT / page).read_text()
  kinds = config.Study, train.Train, evaluate.Evaluate, reproduce.Reproduce
  kinds += forget.Forget, verify.Verify, tune.Tune, audit.Audit, adopt.Adopt
  known = {name for kind in kinds for name in settings.names(kind)} | {'help'}
  assert set(re.findall(r'--(\w+)[=`,]', _without_tools(text))) <= known
  for spelled in re.findall(r"--strategies='([^'…]*)'", text):
    names = re.findall(r'(?:^|, )(\w+)(?=[(,]|$)', spelled)
    assert set(names) <= FACTORIES.keys(), names
  for name in set(re.findall(r'experiments\.(\w+)', text)):
    assert (ROOT / 'experiments' / f'{name}.py').exists(), name


def test_the_commands_that_measure_degrees_are_not_refused(tmp_path):
  text = (ROOT / 'docs' / 'unlearning-degree.md').read_text()
  *_, own = text.replace('\\\n', '').split('\n## Run it\n')
  typed = re.findall(r'^python -m experiments.unlearn (.*)$', own, re.M)
  assert len(typed) == 2
  for line in typed:
    study = running.study(*shlex.split(line, comments=True))
    assert planning.plan(study, tmp_path).runs[0].degrees


def _without_tools(text):
  """Without the commands of other programs."""
  return re.sub(r'`(?:pip|pytest|pip-audit|git|docker)[^`]*`', '', text)


@pytest.mark.parametrize(
  'page',
  [
    'README.md',
    'docs/results.md',
    'docs/unlearning-degree.md',
    'docs/reproduction.md',
  ],
)
def test_every_table_of_results_is_one_that_a_run_wrote(page):
  text = (ROOT / page).read_text()
  names = 'Top-K|Random|Retrain|Fine-tune|EU|CF'
  rows = re.findall(rf'^\| (?:\*\*)?(?:{names}).*$', text, re.M)
  written = '\n'.join(
    path.read_text()
    for name in ('report.md', 'reproduction.md')
    for path in (ROOT / 'results').rglob(name)
  )
  assert len(rows) >= 4
  for row in rows:
    assert row in written


def test_every_file_that_is_linked_exists():
  for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), (page, target)
