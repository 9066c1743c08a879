"""Flags of every binary, whatever their values."""

import os
import subprocess
import sys

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from unlearn_jax.base import shown

ROOT = fuzzing.pathlib.Path(__file__).parent.parent.parent
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
  *('', ' ', '0', '-1', '1', '2', '3', '7', '0.5', '1.5', '1e5', '1e-320'),
  *('1e308', '1e400', 'nan', 'inf', '-inf', 'NaN', '1_0', '²', '١', '0b1'),
  *('9' * 30, '9' * 5000, '0x' + 'f' * 5000, '2147483647', '2147483648'),
  *('9223372036854775808', 'true', 'None', 'none', 'null', '8/255', '1/0'),
  *('1/1e-320', '1/99999999999', '1/' + '9' * 5000, '\0', '\n', 'a\nb', '\r'),
  *('\x1b[31mred', '\u202eabc', '\u2028', 'é', '\udcff', 'x' * 5000, ','),
  *('"', '"a', 'a,b', 'top_k', 'topk', 'retrain,retrain', 'resnet18', 'cnn'),
  *('digits', 'cifar10', 'mnist:1.0.0', 'npz:', 'folder:', 'npz:\0', 'npz'),
  *('npz:~nosuchuser/x', 'folder:~nosuchuser', '~nosuchuser/x', 'mnist/x'),
  *('/dev/null', '/dev/zero', '/dev/tty', '/proc/self/mem', '/dev/null/x'),
  *('npz:/dev/zero', 'folder:/dev', 'http://x', 'gs://x', 'bfloat16', 'smoke'),
)


def names_of(binary):
  own = fuzzing.defined(fuzzing.BINARIES[binary][0])
  return sorted(name for name in own if name != 'undefok')


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


def given_flags(binary):
  known = st.sampled_from(names_of(binary))
  flag = st.tuples(known, VALUES)
  odd = st.one_of(
    st.sampled_from(['no_such', 'seéd', '', '-', '=', 'noaugment', 'help\0']),
    st.text(max_size=8).map(lambda text: f'xy{text}'),
  )
  return st.lists(
    st.one_of(flag, flag, flag, flag, st.tuples(odd, VALUES)),
    min_size=1,
    max_size=3,
  )


def several(coordinator, count, index):
  values = zip(
    ('coordinator', 'num_processes', 'process_id'),
    (coordinator, count, index),
  )
  return list(values)


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
  with fuzzing.case(f'flags of {binary}', places, finished, workdir=path):
    status, text = fuzzing.check_binary(binary, made)
  # What a file of flags holds is named, not the file.
  if status and len(drawn) == 1 and drawn[0][0] != 'flagfile':
    ((name, _),) = drawn
    value = made[-1].partition('=')[2]
    said = ' '.join(text.split())
    near = ' '.join(shown(' '.join(value.split()), 20).split())[:20]
    named = shown(name) if name in names_of(binary) else 'nknown'
    assert named in said or near in said or not value.isprintable(), text
  return status, text


@given(given_flags('unlearn'))
@example([('seed', '0x' + 'f' * 5000)])
@example(several('h:' + '9' * 5000, '2', '1'))
@example(several('h:²', '2', '1'))
@example(several('h:1', '0x' + 'f' * 5000, '1'))
@example(several('h:1', '2', '9' * 5000))
@example(several('h:1', '2', '1') + [('seed', '0x' + 'f' * 5000)])
@example([('seeds', '9' * 9)])
@example([('train_epochs', '9' * 30)])
@example([('epochs', '2147483647')])
@example([('width', '9' * 18)])
@example([('width', '1000000')])
@example([('workdir', ('', 'nul\0'))])
@example([('workdir', ('', LONG))])
@example([('workdir', ('', 'a/' * 2500))])
@example([('workdir', ('', 'with_workdir.json'))])
@example([('dataset', ('npz:', 'pipe'))])
@example([('dataset', ('folder:', 'nul\0'))])
@example([('dataset', 'npz:~nosuchuser/x')])
@example([('dataset', 'mnist'), ('data_dir', '~nosuchuser/x')])
@example([('dataset', 'mnist'), ('data_dir', ('', 'nul\0'))])
@example([('dataset', 'mnist'), ('raw_dir', '~nosuchuser/x')])
@example([('forget_ids', ('', 'pipe'))])
@example([('source_dir', ('', 'with_manifest.json'))])
@example([('source_dir', ('', LONG))])
@example([('flagfile', ('', 'pipe'))])
@example([('flagfile', ('', 'bytes'))])
@example([('degree', 'true'), ('max_perturbation', '1/1e-320')])
@example([('dataset', '\x1b[31mred')])
@fuzzing.profile('flags of unlearn')
def test_unlearn(places, finished, drawn):
  check('unlearn', fuzzing.quick(finished), drawn, places, finished)


@given(given_flags('train'))
@example([('workdir', '\udcff')])
@fuzzing.profile('flags of train')
def test_train(places, finished, drawn):
  base = [a for a in fuzzing.quick(finished)[:6]]
  check('train', base, drawn, places, finished)


@given(given_flags('evaluate'))
@example([('checkpoint', ('', 'with_manifest.json'))])
@fuzzing.profile('flags of evaluate')
def test_evaluate(places, finished, drawn):
  base = [f'--checkpoint={fuzzing.stage(finished, "top_k")}']
  check('evaluate', base, drawn, places, finished)


@given(given_flags('spd_gan'))
@example([('generator_width', '9' * 30)])
@example([('workdir', ('', LONG))])
@fuzzing.profile('flags of spd_gan')
def test_spd_gan(places, finished, drawn):
  base = [
    f'--source={fuzzing.stage(finished, "source")}',
    f'--unlearned={fuzzing.stage(finished, "top_k")}',
    '--batch_size=2',
    '--workdir=degree',
  ]
  check('spd_gan', base, drawn, places, finished)


@given(given_flags('reproduce'))
@example([('worker', '1/' + '9' * 5000)])
@example([('max_hours', 'inf')])
@example([('workdir', ('', LONG))])
@example([('workdir', ('', 'with_workdir.json'))])
@fuzzing.profile('flags of reproduce')
def test_reproduce(places, finished, drawn):
  base = ['--workdir=reproduction', '--dry_run']
  check('reproduce', base, drawn, places, finished)


@pytest.mark.parametrize(
  'binary, drawn',
  [
    ('unlearn', [('seed', '0x' + 'f' * 5000)]),
    ('unlearn', [('dataset', ('npz:', 'pipe'))]),
    ('unlearn', [('workdir', ('', 'new\nline/x')), ('k', 'a\nb')]),
    ('evaluate', [('checkpoint', ('', 'with_manifest.json'))]),
    ('train', [('workdir', '/dev/null/\udcff')]),
  ],
)
def test_a_process_says_the_same(binary, drawn, places, finished):
  """The cases above run in this process: five of them in one of their own."""
  base = [] if binary == 'evaluate' else fuzzing.quick(finished)[:6]
  made = arguments(base, drawn, places)
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{binary}', *made],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (done.returncode, done.stderr) == fuzzing.check_binary(binary, made)
  assert done.returncode and not done.stdout
