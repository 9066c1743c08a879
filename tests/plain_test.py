"""What `pip install unlearn_jax` has, without an extra."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tomllib

import devices
import jax
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# Imports as it would be there: `absent` are the top-level names it lacks.
PLAIN = """
import sys


class Without:
  def __init__(self, finder):
    self.finder = finder

  def __getattr__(self, name):
    return getattr(self.finder, name)

  def find_spec(self, name, *more):
    if name.partition('.')[0] not in absent:
      return self.finder.find_spec(name, *more)


sys.meta_path[:] = map(Without, sys.meta_path)
"""
LIBRARY = """
import doctest, importlib, pathlib, pkgutil, re, sys
import numpy as np
import jax
import unlearn_jax as uj
for name in uj.__all__:
  getattr(uj, name)
unused = {'scipy.stats', 'scipy.special'} & sys.modules.keys()
assert not unused, unused

text = pathlib.Path('README.md').read_text()
block = re.search(r'^```python\\n(.*?)^```$', text, re.M | re.S)[1]
space = {}
exec(compile(block, 'README.md', 'exec'), space)
own = uj.evaluate(
  space['model'],
  *(space[name] for name in ('source', 'source', 'splits', 'source')),
)
lacks = {n for n in own if own[n] is None}
lacks = {n for n in lacks if {'retrained'} >= {*uj.METRICS[n].needs}}
assert lacks == {'svc_efficacy', 'svc_gap'}, lacks

from unlearn_jax import attacks, checkpoints, data
checkpoints.save(sys.argv[1], space['result'].state, {})
state, _ = checkpoints.restore(sys.argv[1])
np.testing.assert_array_equal(
  state.params['w1'], space['result'].state.params['w1']
)
for module in pkgutil.iter_modules(attacks.__path__):
  module = importlib.import_module(f'unlearn_jax.attacks.{module.name}')
  done = doctest.testmod(module)
  # One attack is by scikit-learn's classifier.
  assert bool(done.failed) == module.__name__.endswith('.svc'), module
"""
LINES = """
import warnings
import numpy as np
from unlearn_jax import attacks, base, data
from unlearn_jax.attacks import svc
from unlearn_jax.data import local, streaming

part = np.log([[0.9, 0.1]] * 4), np.zeros(4, int)
for call in (
  lambda: data.load('digits'),
  lambda: data.load('mnist'),
  lambda: data.load('folder:' + sys.argv[1]),
  lambda: svc.svc_efficacy(part, part, part),
  lambda: streaming.Stream([np.zeros((4, 1))], [1], 4),
):
  try:
    call()
  except base.InputError as error:
    print(error)
"""


def plain():
  """The distributions of a plain installation."""
  found, ahead = set(), [Requirement(text) for text in PROJECT['dependencies']]
  while ahead:
    need = ahead.pop()
    name, extras = canonicalize_name(need.name), {'', *need.extras}
    if (
      name in found
      or need.marker
      and not any(need.marker.evaluate({'extra': extra}) for extra in extras)
    ):
      continue
    found.add(name)
    ahead += map(Requirement, importlib.metadata.requires(name) or ())
  return found


def run(code, *arguments):
  """Runs it as if nothing else were installed."""
  own, there = plain(), importlib.metadata.packages_distributions()
  own |= {'unlearn-jax'}
  absent = {
    top
    for top, names in there.items()
    if own.isdisjoint(map(canonicalize_name, names))
  } - {'unlearn_jax', 'experiments'}
  assert {'sklearn', 'matplotlib', 'tensorflow_datasets', 'PIL'} <= absent
  assert absent.isdisjoint({'jax', 'flax', 'optax', 'orbax', 'numpy'})
  return subprocess.run(
    [
      sys.executable,
      '-c',
      f'absent = {absent}\n{PLAIN}\n{code}',
      *map(str, arguments),
    ],
    cwd=ROOT,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': devices.flags(1),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    },
    capture_output=True,
    text=True,
  )


def test_the_library_works_without_any_extra(tmp_path):
  done = run(LIBRARY, tmp_path / 'model')
  assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said_in_a_line_with_its_cure(tmp_path):
  for part in ('train', 'test'):
    (tmp_path / part / 'a').mkdir(parents=True)
    (tmp_path / part / 'a' / '0.png').write_bytes(b'1')
  done = run(LINES, tmp_path)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  wanted = {
    'digits': 'sklearn',
    'mnist': 'tensorflow_datasets',
    'images of files': 'PIL',
    'svc_efficacy': 'sklearn',
    'images that are streamed': 'grain',
  }
  assert len(lines) == len(wanted)
  for line, (what, module) in zip(lines, wanted.items()):
    assert line.startswith(f"{what}: No module named '{module}")
    assert line.endswith(
      "allowed: after pip install 'unlearn_jax[experiments]'"
    )


@pytest.mark.parametrize('binary', ['__main__', 'unlearn', 'forget'])
def test_the_binaries_say_what_they_need(binary):
  done = run(f"import runpy; runpy.run_module('experiments.{binary}')")
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.count('\n') == 1
  assert done.stderr.startswith('error: the binaries need filelock, jinja2')
  assert "pip install 'unlearn_jax[experiments]'" in done.stderr
