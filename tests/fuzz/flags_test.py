"""Flags of every binary, whatever their values."""

import inspect
import os

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from experiments import settings
from unlearn_jax.base import shown
from unlearn_jax.strategies import FACTORIES

LONG = 'x' * 300


@pytest.fixture(scope='module')
def places(finished, tmp_path_factory):
  """Paths to all kinds of things."""
  root = tmp_path_factory.mktemp('places')
  (root / 'empty').mkdir()
  (root / 'text.txt').write_text('1\n2\n')
  (root / 'bytes').write_bytes(bytes(range(256)))
  (root / 'full').mkdir()
  (root / 'full' / 'thesis.tex').write_text('precious')
  (root / 'loop').symlink_to('loop')
  os.mkfifo(root / 'pipe')
  for name in ('manifest.json', 'workdir.json', 'forget.txt'):
    (root / f'with_{name}').mkdir()
    os.mkfifo(root / f'with_{name}' / name)
  return root


PLACES = (
  *('empty', 'text.txt', 'bytes', 'full', 'loop', 'pipe', 'nothing'),
  *('with_manifest.json', 'with_workdir.json', 'with_forget.txt'),
  *('text.txt/below', 'pipe/below', LONG, 'a/' * 2500, 'nul\0', 'new\nline'),
)
WORDS = (
  *('', ' ', '0', '-1', '1', '2', '7', '0.5', '1e5', '1e-320', '1e400', 'nan'),
  *('inf', '-inf', '1_0', '²', '١', '9' * 30, '9' * 5000, '0x' + 'f' * 5000),
  *('2147483647', '2147483648', 'true', 'None', 'none', '8/255', '1/0'),
  *('1/1e-320', '1/' + '9' * 5000, '\0', '\n', 'a\nb', '\x1b[31mred', '\u2028'),
  *('\u202eabc', 'é', '\udcff', 'x' * 5000, ',', '"a', 'a,b', 'top_k', 'topk'),
  *('resnet18', 'digits', 'cifar10', 'mnist:1.0.0', 'npz:', 'folder:', 'npz'),
  *('npz:\0', 'npz:~nosuchuser/x', 'folder:~nosuchuser', '~nosuchuser/x'),
  *('/dev/null', '/dev/zero', '/dev/tty', '/proc/self/mem', '/dev/null/x'),
  *('npz:/dev/zero', 'folder:/dev', 'http://x', 'bfloat16', 'dask'),
)


def _relative(text):
  """No path of ours: what is made for a work directory stays in a test's."""
  return text.lstrip('/').replace('..', '')


VALUES = st.one_of(
  st.sampled_from(WORDS),
  st.sampled_from(PLACES).map(lambda name: ('', name)),
  st.tuples(st.sampled_from(['npz:', 'folder:']), st.sampled_from(PLACES)),
  st.integers().map(str),
  st.floats().map(str),
  st.text(max_size=20).map(_relative),
)
# Of strategies: parameters, and literals and what is none.
NAMES = {
  name: [*inspect.signature(factory).parameters, 'no_such', '', '**']
  for name, factory in FACTORIES.items()
}
LITERALS = (
  *('5', '.05', '1.5', '0', '-1', '1e400', '1e-320', 'nan', '9' * 400, '²'),
  *('True', 'None', '"x"', "'last'", '"a,b"', '[]', '{"k": 5}', '(1,)', '1j'),
  *('b""', '5 5', 'open("/x")', '__import__("os")', '\0', '(', ')]', '"', ''),
  *('lambda: 0', '-' * 5000 + '1', '(' * 300, '[' * 5000, '9' * 5000),
)
VALUE = st.one_of(st.sampled_from(LITERALS), st.floats().map(repr), st.text())
FOREIGN = ('', 'x', 'os:', 'os:path', 'no.such:f', 'os:getcwd', ':', 'this:x')


@st.composite
def spelled(draw):
  """One of `--strategies`."""
  name = draw(st.sampled_from(sorted(FACTORIES)))
  pair = st.tuples(st.sampled_from(NAMES[name]), VALUE)
  pairs = [
    f'{key}={value}' if key.isalpha() else key + value
    for key, value in draw(st.lists(pair, max_size=2))
  ]
  name = draw(st.one_of(st.just(name), st.just(name), st.sampled_from(FOREIGN)))
  return f'{name}({", ".join(pairs)})'


def given_flags(binary):
  known = st.sampled_from(sorted(settings.names(fuzzing.BINARIES[binary][1])))
  odd = st.sampled_from(
    ['no_such', 'seéd', '', '-', '=', 'noaugment', 'help\0']
  )
  flag = st.tuples(st.one_of(known, known, known, known, odd), VALUES)
  return st.lists(flag, min_size=1, max_size=3)


def several(*values):
  return list(zip(('coordinator', 'num_processes', 'process_id'), values))


def arguments(base, drawn, places):
  made = list(base)
  for name, value in drawn:
    if isinstance(value, tuple):
      kind, place = value
      value = f'{kind}{places}/{place}'
    made.append(f'--{name}={value}')
  return made


def check(binary, base, drawn, places, finished):
  made = arguments(base, drawn, places)
  # Of a flag given twice the last counts; a value of ours is a path in places.
  (workdir,) = [v for n, v in drawn if n == 'workdir'][-1:] or [None]
  path = f'{places}/{workdir[1]}' if isinstance(workdir, tuple) else None
  if path and '\0' in path:
    path = None
  with fuzzing.case(places, finished, workdir=path):
    status, text = fuzzing.check_binary(binary, made)
  if status and len(drawn) == 1:
    ((name, _),) = drawn
    value = made[-1].partition('=')[2]
    said = ' '.join(text.split())
    near = ' '.join(shown(' '.join(value.split()), 20).split())[:20]
    known = name in settings.names(fuzzing.BINARIES[binary][1])
    named = shown(name) if known else 'nknown'
    assert named in said or near in said or not value.isprintable(), text


@given(given_flags('unlearn'))
@example([('seed', '0x' + 'f' * 5000)])
@example(several('h:' + '9' * 5000, '2', '1'))
@example(several('h:²', '2', '1'))
@example([('epochs', '2147483647')])
@example([('width', '1000000')])
@example([('workdir', ('', 'nul\0'))])
@example([('workdir', ('', LONG))])
@example([('workdir', ('', 'with_workdir.json'))])
@example([('dataset', ('npz:', 'pipe'))])
@example([('dataset', ('folder:', 'nul\0'))])
@example([('dataset', 'mnist'), ('data_dir', '~nosuchuser/x')])
@example([('dataset', 'mnist'), ('raw_dir', ('', 'nul\0'))])
@example([('forget', 'ids(/dev/zero)')])
@example([('forget', 'ids(\0)')])
@example([('forget', 'class(' + '(' * 5000 + ')')])
@example([('forget', 'random(' + '9' * 5000 + ')')])
@example([('source_dir', ('', 'with_manifest.json'))])
@example([('degree', 'true'), ('max_perturbation', '1/1e-320')])
@fuzzing.cases(20)
def test_unlearn(places, finished, drawn):
  check('unlearn', fuzzing.quick(finished), drawn, places, finished)


@given(st.lists(spelled(), min_size=1, max_size=2).map(', '.join))
@example('top_k(' + '(' * 5000)
@example('top_k(k=' + '9' * 5000 + ')')
@example('top_k(k=10**10**10)')
@example('top_k(k=5, k=5)')
@example('top_k(**{"k": 5})')
@example('eu_k(k=2), ')
@example('\0(k=1)')
@fuzzing.cases(30)
def test_strategies(places, finished, text):
  drawn = [('strategies', text)]
  check('unlearn', fuzzing.quick(finished), drawn, places, finished)


@pytest.mark.parametrize('binary', ['train', 'evaluate', 'reproduce'])
def test_the_others(binary, places, finished):
  base = {
    'train': fuzzing.quick(finished)[:6],
    'evaluate': [f'--checkpoint={fuzzing.stage(finished, "top_k")}'],
    'reproduce': ['--workdir=reproduction', '--dry_run'],
  }[binary]

  @given(given_flags(binary))
  @example([('workdir', ('', LONG))])
  @example([('workdir', '\udcff')])
  @fuzzing.cases(8)
  def each(drawn):
    check(binary, base, drawn, places, finished)

  each()
