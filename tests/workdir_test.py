"""What lies in a work directory, and who may be at it."""

import contextlib
import errno
import gc
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import filelock
import helpers
import jax
import numpy as np
import pytest
import running

from experiments.runtime import signals
from experiments.study import stages
from experiments.workdir import partials
from experiments.workdir.directory import Workdir
from unlearn_jax import checkpoints, parallel, snapshots, training
from unlearn_jax.base import InputError

ROOT = pathlib.Path(__file__).parent.parent
MODEL, SPLITS = helpers.model(), helpers.splits()


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


# One run at a time, in a directory of its own.

CLAIM = """
import pathlib, sys
from experiments.workdir.directory import Workdir
held = Workdir(pathlib.Path(sys.argv[1]), {'data': 'digits'})
held.claim()
print('taken', flush=True)
sys.stdin.read()
"""


def claimed(root, **identity):
  own = Workdir(root, identity or {'data': 'digits'})
  own.claim()
  return own


def test_a_second_run_is_told_who_is_at_it_until_it_is_gone(tmp_path):
  root = tmp_path / 'run'
  first = subprocess.Popen(
    [sys.executable, '-c', CLAIM, str(root)],
    **dict.fromkeys(('stdin', 'stdout'), subprocess.PIPE),
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  try:
    assert first.stdout.readline() == b'taken\n'
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    with pytest.raises(InputError) as refused:
      claimed(root)
    assert re.fullmatch(
      rf'--workdir={re.escape(str(root))} is in use by process {first.pid} on'
      r' \S+ since \d{4}-\d\d-\d\dT[\d:]+[+-][\d:]+; allowed: another'
      r' --workdir, or this one once that run has ended',
      str(refused.value),
    )
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before
  finally:
    first.kill()
    first.communicate()
  claimed(root)  # Whatever became of it, the directory is free.


def test_a_file_system_without_locks_holds_nobody_up(tmp_path, monkeypatch):
  mine = claimed(tmp_path)
  with pytest.raises(InputError, match='in use by process'):
    claimed(tmp_path)
  del mine  # It is let go with the object that claimed it.
  mine = claimed(tmp_path)  # noqa: F841

  refuse = mock.Mock(side_effect=NotImplementedError)
  monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
  claimed(tmp_path)


def test_a_directory_of_another_problem_is_refused(tmp_path):
  claimed(tmp_path, data='digits', width=4)
  before = helpers.files(tmp_path)
  slow = Workdir(tmp_path / 'new', {'data': 'digits'})
  for wrong in ({'width': 5}, {'width': None}, {'width': '4'}):
    with pytest.raises(InputError) as refused:
      Workdir(tmp_path, {'data': 'digits', **wrong})
    assert str(refused.value) == (
      f'--workdir={tmp_path} belongs to width=4, this run has'
      f' width={wrong["width"]}; allowed: another --workdir'
    )
  assert helpers.files(tmp_path) == before
  claimed(tmp_path / 'new', data='mnist')  # Meanwhile.
  with pytest.raises(InputError, match='belongs to data=mnist'):
    slow.claim()


@pytest.mark.parametrize('name', ['.unlearn_jax.lock', '.unlearn_jax.holder'])
def test_no_link_is_followed(name, tmp_path):
  theirs, root = tmp_path / 'theirs', tmp_path / 'run'
  theirs.write_text('precious')
  root.mkdir()
  (root / name).symlink_to(theirs)
  with pytest.raises(InputError, match='an empty directory or one of this'):
    Workdir(root, {'data': 'digits'})
  # One that is laid there later.
  (root / name).unlink()
  claimed(root)
  (root / name).unlink()
  (root / name).symlink_to(theirs)
  with contextlib.suppress(InputError):
    claimed(root)
  assert theirs.read_text() == 'precious'


@pytest.mark.parametrize('name', ['thesis.tex', '.lock', 'report.json'])
def test_a_folder_with_other_things_in_it_is_left_alone(name, tmp_path):
  (tmp_path / name).write_text('precious')
  with pytest.raises(InputError, match='an empty directory or one of this'):
    Workdir(tmp_path, {'data': 'digits'})
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == 'precious'
  # One that comes later is left alone, too.
  claimed(tmp_path / 'run')
  shutil.copy(tmp_path / name, tmp_path / 'run' / '.lock')
  claimed(tmp_path / 'run')
  assert (tmp_path / 'run' / '.lock').read_text() == 'precious'


@pytest.mark.parametrize('text', ['', '{', '[]', '{"data": []}', '[' * 9999])
def test_a_broken_identity_is_no_identity(text, tmp_path):
  claimed(tmp_path)
  (tmp_path / 'workdir.json').write_text(text)
  with pytest.raises(InputError, match='workdir.json is missing or broken'):
    Workdir(tmp_path, {'data': 'digits'})


def test_what_a_killed_claim_left_is_no_obstacle(tmp_path):
  for name in ('.unlearn_jax.lock', '.workdir.json.tmp'):
    (tmp_path / name).write_text('{')
  claimed(tmp_path)
  assert not list(tmp_path.glob('.*.tmp'))


@pytest.mark.parametrize(
  'place',
  ['/proc/nowhere', '/dev/null/run', 'a' * 5000, 'nul\0', 'file', 'a\\b'],
)
def test_where_nothing_can_be_written_is_one_line(place, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError) as refused:
    claimed(tmp_path / place)
  text = str(refused.value)
  assert text.startswith('--workdir=') and '\n' not in text
  assert ', allowed: a directory that can be written (' in text


# Saves of a stage that is not finished.


def train(keeper=None, epochs=4):
  return training.train(
    jax.random.key(3),
    MODEL,
    SPLITS.train,
    epochs=epochs,
    batch_size=16,
    keeper=keeper,
  )


def partial(tmp_path, save_seconds=0.0, told=None, done=None):
  return partials.Partial(
    tmp_path / 'seed0-source-abc',
    save_seconds,
    (told if told is not None else []).append,
    (done if done is not None else []).append,
  )


def saved(tmp_path):
  return sorted(path.name for path in tmp_path.glob('.*.partial/*'))


def assert_same(one, other):
  leaves, others = jax.tree.leaves(one.state), jax.tree.leaves(other.state)
  for a, b in zip(leaves, others, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def whole():
  return train()


def test_another_process_goes_on_to_the_same_bits(tmp_path, whole):
  train(partial(tmp_path), epochs=3)
  assert saved(tmp_path) == ['epoch-000002', 'epoch-000003']
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [3]


@pytest.mark.parametrize('error', [MemoryError(), OSError(errno.EMFILE, 'Too')])
def test_a_save_that_cannot_be_read_now_is_kept(
  error, tmp_path, whole, monkeypatch
):
  train(partial(tmp_path), epochs=3)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, '_sha256', mock.Mock(side_effect=error))
    with pytest.raises(InputError, match='epoch-000003 cannot be read: '):
      train(partial(tmp_path))
  assert_same(train(partial(tmp_path)), whole)


def test_a_damaged_save_falls_back_to_the_one_before(tmp_path, whole, capsys):
  kept = partial(tmp_path)
  train(kept, epochs=3)
  newest, pristine = kept.folder / 'epoch-000003', tmp_path / 'pristine'
  names = [path.relative_to(newest) for path in helpers.files(newest)]
  kept.folder.rename(pristine)
  # Each harm to each file: checkpoints_test.
  for name, harm in zip(names, itertools.cycle(helpers.HARMS)):
    shutil.rmtree(kept.folder, ignore_errors=True)
    shutil.copytree(pristine, kept.folder)
    helpers.HARMS[harm](newest / name)
    capsys.readouterr()
    told = []
    again = train(partial(tmp_path, told=told), epochs=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('warning: ') and str(newest) in line, line
    assert name.name in line, line
    assert told == [2]
    assert again.history[-1].loss == whole.history[3].loss


def test_without_a_whole_save_of_its_own_it_starts_anew(
  tmp_path, whole, capsys
):
  train(partial(tmp_path), epochs=3)
  for file in helpers.files(tmp_path):
    helpers.flip(file)
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [] and len(capsys.readouterr().err.splitlines()) == 2
  assert sum(name.startswith('unfit-') for name in saved(tmp_path)) == 2
  # That of another stage is not taken.
  (tmp_path / '.seed0-source-abc.partial').rename(tmp_path / '.other.partial')
  train(partials.Partial(tmp_path / 'other', 0.0), epochs=1)
  assert 'made with stage=' in capsys.readouterr().err


def test_a_save_that_does_not_fit_is_kept_and_taken_where_it_does(
  tmp_path, whole, capsys
):
  train(partial(tmp_path), epochs=3)
  with jax.default_prng_impl('rbg'):
    train(partial(tmp_path), epochs=1)
  assert len(capsys.readouterr().err.splitlines()) == 2
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [3] and 'fit' not in capsys.readouterr().err


def test_what_a_killed_save_left_is_swept(tmp_path):
  train(partial(tmp_path), epochs=1)
  folder = tmp_path / '.seed0-source-abc.partial'
  (folder / '.epoch-000002-x1y2').mkdir()
  (folder / '.epoch-000002-x1y2' / 'half').write_bytes(b'1')
  (tmp_path / '.seed0-source-abc-x1y2').mkdir()
  train(partial(tmp_path), epochs=1)
  assert saved(tmp_path) == ['epoch-000001']
  assert [path.name for path in tmp_path.iterdir()] == [folder.name]
  (tmp_path / '.seed0-source-other-x1y2').mkdir()
  partial(tmp_path).remove()  # All of its own, and nothing else.
  assert [p.name for p in tmp_path.iterdir()] == ['.seed0-source-other-x1y2']


@pytest.fixture
def clock(monkeypatch):
  own = helpers.Clock()
  monkeypatch.setattr(partials, 'time', own)
  return own


def epochs_saved(clock, monkeypatch, kept, cost):
  """The epochs, 10 s each, after which there is a save of `cost` seconds."""
  found, real = [], snapshots.save

  def slow(path, packed, facts):
    found.append(packed.course.epoch)
    clock.now += cost
    return real(path, packed, facts)

  class Ten:
    def load(self, like):
      return kept.load(like)

    def save(self, snapshot):
      clock.now += 10
      kept.save(snapshot)

  monkeypatch.setattr(snapshots, 'save', slow)
  train(Ten(), epochs=12)
  return found


@pytest.mark.parametrize(
  'seconds, cost, epochs',
  [
    (30.0, 0.1, [3, 6, 9, 12]),
    (30.0, 2.0, [3, 8]),  # Two seconds in each 50 are four per cent.
    (0.0, 2.0, list(range(1, 13))),
  ],
)
def test_saves_are_as_far_apart_as_was_asked_for_and_not_dear(
  seconds, cost, epochs, tmp_path, clock, monkeypatch
):
  kept = partial(tmp_path, seconds)
  assert epochs_saved(clock, monkeypatch, kept, cost) == epochs
  again = partial(tmp_path, 0.0)
  train(again, epochs=12)
  # So many seconds had gone by when the last save began.
  assert again.wall_seconds == 10 * epochs[-1] + cost * (len(epochs) - 1)


def test_who_is_asked_to_stop_saves_its_step_first(
  tmp_path, monkeypatch, whole
):
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  answers = iter([None] * 9 + [signal.SIGINT])
  monkeypatch.setattr(signals, 'requested', lambda: next(answers))
  with pytest.raises(signals.Stopped) as stopped:
    train(partial(tmp_path, 1e9))
  # Of six steps in each epoch, the tenth.
  assert 'is saved after step 4 of epoch 2 in' in stopped.value.note
  assert saved(tmp_path) == ['epoch-000001-step-000000004']
  manifest = json.loads(next(tmp_path.rglob('manifest.json')).read_text())
  assert (manifest['epoch'], manifest['step']) == (1, 4)
  monkeypatch.undo()
  told, done = [], []
  monkeypatch.setattr(training, '_CALL_SECONDS', 0.0)
  assert_same(train(partial(tmp_path, 0.0, told, done)), whole)
  assert told == [1]
  assert done[0] == 1 + 5 / 6 and all(epochs % 1 for epochs in done)


def test_a_full_disk_ends_nothing_and_harms_nothing(
  tmp_path, monkeypatch, whole, capsys
):
  train(partial(tmp_path), epochs=2)

  class Full(checkpoints.ocp.StandardCheckpointer):
    def save(self, directory, *_, **__):
      directory.mkdir()
      (directory / 'half').write_bytes(b'half')
      raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.ocp, 'StandardCheckpointer', Full)
    assert_same(train(partial(tmp_path)), whole)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert all('No space left on device' in line for line in lines)
  assert all(line.endswith('goes on without this save') for line in lines)
  assert saved(tmp_path) == ['epoch-000001', 'epoch-000002']
  told = []
  assert_same(train(partial(tmp_path, told=told)), whole)
  assert told == [2]


# A checkpoint of other data, of another source, forget set or recipe.

COMMON = '--width=2', '--batch_size=24', '--train_learning_rate=0.01'
DATA = 'own', 'other'
UNLEARN = '--epochs=1', '--seeds=1', '--strategies=retrain, top_k(k=5)'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Folders by name: real checkpoints of a net that trains in a second."""
  root = tmp_path_factory.mktemp('parents')
  for name in DATA:
    (root / name).mkdir()
    path = helpers.stripes_file(root / name)
  with np.load(path) as arrays:
    turned = {name: own[..., ::-1] for name, own in arrays.items()}
  np.savez(path, **turned)  # What is turned is of another fingerprint.
  own, other = (f'--dataset=npz:{root / n}/stripes.npz' for n in DATA)

  def run(binary, workdir, *arguments):
    folder = root / workdir / 'checkpoints'
    before = set(folder.iterdir()) if folder.exists() else set()
    running.done(binary, *COMMON, *arguments, f'--workdir={root / workdir}')
    new = set(folder.iterdir()) - before
    return {path.name.split('-')[1]: path for path in new}

  main = run('unlearn', 'run', own, *UNLEARN, '--train_epochs=6')
  retain = ('train', 'run', own, '--subset=retain', '--train_epochs=6')
  twin = run(*retain, '--source_seed=1')
  split = run(*retain, '--split_seed=5')
  recipe = run(*retain[:-1], '--train_epochs=2')
  data = run('train', 'fewer', other, '--subset=retain', '--train_epochs=1')
  return {
    'root': root,
    'own': (own, '--train_epochs=6'),
    'source': main['source'],
    'retrain': main['retrain'],
    'top_k': main['top_k'],
    'source of another seed': twin['source'],
    'retrain of another seed': twin['retrain'],
    'retrain of another split': split['retrain'],
    'source of another recipe': recipe['source'],
    'retrain of another recipe': recipe['retrain'],
    'source of other data': data['source'],
    'retrain of other data': data['retrain'],
    'workdir of other data': root / 'fewer',
  }


SOURCE, RETRAINED = '--source_dir={}', '--retrained_dir={}'
NULL, WORKDIR = '--null_dir={}', '--workdir={}'
WRONG = [
  # A binary, a flag, in words what the flag names, and what is said of it.
  ('unlearn', SOURCE, 'source of other data', 'data_fingerprint='),
  ('unlearn', SOURCE, 'retrain', 'holds a retrain model, allowed: source'),
  ('unlearn', SOURCE, 'top_k', 'holds a top_k(k=5) model, allowed: source'),
  ('unlearn', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('unlearn', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('unlearn', RETRAINED, 'retrain of other data', 'data_fingerprint='),
  ('unlearn', RETRAINED, 'source', 'forget_sha256=None'),
  ('unlearn', RETRAINED, 'top_k', 'holds a top_k(k=5) model, allowed: retrain'),
  ('unlearn+', RETRAINED, 'retrain of another seed', 'parent_sha256='),
  ('unlearn', WORKDIR, 'workdir of other data', 'data_fingerprint='),
  ('train', WORKDIR, 'workdir of other data', 'data_fingerprint='),
  ('evaluate', SOURCE, 'source of another seed', 'state_sha256='),
  ('evaluate', SOURCE, 'source of other data', 'data_fingerprint='),
  # The source may be the model of an earlier request, whatever made that.
  ('evaluate', SOURCE, 'retrain', 'state_sha256='),
  ('evaluate', SOURCE, 'top_k', 'state_sha256='),
  ('evaluate', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('evaluate', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('evaluate', RETRAINED, 'retrain of other data', 'data_fingerprint='),
  ('evaluate', RETRAINED, 'top_k', "strategy='top_k(k=5)'"),
  ('degree', SOURCE, 'source of another seed', 'state_sha256='),
  ('degree', SOURCE, 'source of other data', 'data_fingerprint='),
  ('degree', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('degree', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('degree', RETRAINED, 'top_k', "strategy='top_k(k=5)'"),
  ('degree', NULL, 'source', 'not the source itself'),
  ('degree', NULL, 'top_k', "strategy='top_k(k=5)'"),
  ('degree', NULL, 'retrain', "strategy='retrain'"),
  ('degree', NULL, 'source of other data', 'data_fingerprint='),
  ('degree', NULL, 'source of another recipe', 'epochs=2, the source'),
  ('degree', WORKDIR, 'workdir of other data', 'belongs to checkpoint='),
]


def told(made, binary, flag, name):
  new = made['root'] / 'new'
  unlearn = *COMMON, *made['own'], *UNLEARN, f'--workdir={new}'
  evaluate = (f'--checkpoint={made["top_k"]}',)
  own = {
    'unlearn': ('unlearn', *unlearn),
    'unlearn+': ('unlearn', *unlearn, f'--source_dir={made["source"]}'),
    'train': ('train', *COMMON, *made['own'], f'--workdir={new}'),
    'evaluate': ('evaluate', *evaluate),
    'degree': (
      *('evaluate', *evaluate, '--degree', f'--workdir={new}'),
      '--degree_batch_size=2',
    ),
  }
  return *own[binary], flag.format(made[name])


@pytest.mark.parametrize('binary, flag, name, words', WRONG)
def test_wrong_parents_are_refused_by_name(binary, flag, name, words, made):
  before = helpers.files(made['root'])
  line = running.refused(*told(made, binary, flag, name))
  assert words in line and str(made[name]) in line, line
  assert 'allowed' in line or 'the source with' in line
  assert helpers.files(made['root']) == before


@pytest.mark.parametrize(
  'fact, value', [('pixel_mean', [0.125]), ('dtype', 'bfloat16')]
)
@pytest.mark.parametrize('binary', ['unlearn', 'evaluate'])
def test_a_source_that_sees_other_pixels_is_refused(
  binary, fact, value, made, tmp_path
):
  other = tmp_path / 'other'
  shutil.copytree(made['source'], other)
  path = other / checkpoints.MANIFEST
  manifest = json.loads(path.read_text()) | {fact: value}
  manifest['manifest_sha256'] = checkpoints._own_digest(manifest)
  path.write_text(json.dumps(manifest))
  line = running.refused(
    *told({**made, 'other': other}, binary, SOURCE, 'other')
  )
  assert f'{other} was made with {fact}={value!r}, allowed here: ' in line


# A Retrain owes nothing to the source: that of another seed will do, except
# where the clock of Retrain is read, which was held against its own source.
RIGHT = [
  ('unlearn', SOURCE, 'source'),
  ('unlearn', SOURCE, 'source of another seed'),
  ('unlearn', RETRAINED, 'retrain'),
  ('unlearn+', RETRAINED, 'retrain'),
  ('evaluate', SOURCE, 'source'),
  ('evaluate', RETRAINED, 'retrain'),
  ('evaluate', RETRAINED, 'retrain of another seed'),
  ('degree', RETRAINED, 'retrain of another seed'),
  ('degree', NULL, 'source of another seed'),
]


@pytest.mark.parametrize('binary, flag, name', RIGHT)
def test_right_parents_are_taken(binary, flag, name, made, monkeypatch):
  begun = []

  def begin(stage, *_):
    begun.append(stage)
    raise InputError('begun')

  monkeypatch.setattr(stages, 'carry_out', begin)
  arguments = told(made, binary, flag, name)
  if binary == 'evaluate':
    running.done(*arguments)
  else:
    assert running.refused(*arguments) == 'error: begun\n' and begun
  shutil.rmtree(made['root'] / 'new', ignore_errors=True)


# What is beside a finished model.


@pytest.mark.parametrize(
  'file, harm',
  [
    ('record.json', 'flipped'),
    ('logits.npz', 'cut'),
    ('manifest.json', 'flipped'),
    ('forget.txt', 'missing'),
  ],
)
def test_a_damaged_stage_is_named(file, harm, made, tmp_path):
  root = tmp_path / 'run'
  shutil.copytree(made['root'] / 'run', root)
  folder = root / 'checkpoints' / made['top_k'].name
  helpers.HARMS[harm](folder / file)
  own = *COMMON, *made['own'], *UNLEARN, f'--workdir={root}'
  line = running.refused('unlearn', *own, status=1)
  assert str(folder) in line and 'remove that folder' in line, line
  assert not list(root.glob('checkpoints/.*'))
  shutil.rmtree(folder)
  gc.collect()  # What the error still held.
  running.done('unlearn', *own)  # What was said is true.


@pytest.mark.parametrize('name', ['gs://bucket/x', 's3://b', 'a\\b', '\udcff'])
def test_a_place_that_cannot_hold_it_is_refused_before_anything(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match='^--workdir=.*, allowed: a directory'):
    Workdir(pathlib.Path(name), {})
  assert not [*tmp_path.iterdir()]
