"""What README.md shows is what runs."""

import contextlib
import io
import pathlib
import re

import jax
import pytest

from unlearn_jax import parallel
from unlearn_jax.strategies import STRATEGIES

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```$', TEXT, re.M | re.S)


def test_the_first_two_commands_are_the_two_commands():
  assert blocks('bash')[:2] == [
    'pip install -e . && python -m experiments.unlearn\n',
    "pip install -e '.[test]' && pytest\n",
  ]


def test_the_library_example_runs():
  (code,) = blocks('python')
  out = io.StringIO()
  with contextlib.redirect_stdout(out), parallel.use(jax.devices()[:1]):
    exec(compile(code, 'README.md', 'exec'), {})
  assert out.getvalue().startswith('Evaluation(forget_accuracy=')
  lines = [line.strip() for line in code.splitlines()]
  assert len([x for x in lines if x and not x.startswith('#')]) <= 20


def test_every_flag_and_strategy_that_is_named_exists():
  from experiments import flags, generator_flags

  source = pathlib.Path(flags.__file__).read_text()
  source += pathlib.Path(generator_flags.__file__).read_text()
  train = (ROOT / 'experiments' / 'train.py').read_text()
  evaluate = (ROOT / 'experiments' / 'evaluate.py').read_text()
  for name in set(re.findall(r'`--(\w+)', TEXT)) - {'help'}:
    seeds = name.removesuffix('_seed') if name.endswith('_seed') else None
    known = f"'{name}'" in source + train + evaluate
    assert known or (seeds and f"'{seeds}'" in source), name
  for name in STRATEGIES:
    assert name in TEXT


@pytest.mark.parametrize(
  'page', ['README.md', 'docs/unlearning-degree.md', 'docs/reproduction.md']
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
  assert len(rows) >= 6
  for row in rows:
    assert row in written


def test_every_file_that_is_linked_exists():
  for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), (page, target)
