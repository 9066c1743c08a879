"""Manifests, records, predictions, unfinished saves: anything in them."""

import contextlib
import copy
import io
import json
import os

import fuzzing
import helpers
from hypothesis import example, given
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from experiments.workdir import finished as stages
from experiments.workdir.partials import Partial
from unlearn_jax import checkpoints, snapshots, training
from unlearn_jax.base import TrainState

MANIFEST, COURSE = 'manifest.json', snapshots.COURSE
FILES = (MANIFEST, stages.RECORD, stages.PREDICTIONS)
DEEP, HUGE = '@deep@', '@huge@'
ODD = (
  *(10**400, -1, 2**63, 1e308, '', '..', '../../../etc/passwd', '\0', '\n'),
  *('/dev/zero', '\ud800', 'x' * 9999, [], {}, [[]], {'a': None}, [7], None),
  *(DEEP, HUGE, 'source', 'retrain', 'npz:/dev/zero', 'resnet18', True),
)
JUNK = st.one_of(
  st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=8)
)
CHANGES = st.lists(
  st.tuples(
    st.integers(0, 999), st.sampled_from(['set', 'set', 'delete', 'add']), JUNK
  ),
  min_size=1,
  max_size=3,
)
CONTENT = st.one_of(CHANGES, CHANGES, CHANGES, st.binary(max_size=40))


def entries(value):
  """(holder, key) of everything in JSON."""
  keys = list(value) if isinstance(value, dict) else range(len(value))
  for key in keys:
    yield value, key
    if isinstance(value[key], dict | list):
      yield from entries(value[key])


def mutate(base, changes):
  """Changes JSON: at which entry, how, and what is put there."""
  value = copy.deepcopy(base)
  for place, kind, junk in changes:
    every = list(entries(value)) or [({}, 0)]
    holder, key = every[place % len(every)]
    if kind == 'delete':
      holder.pop(key, None) if isinstance(holder, dict) else holder.pop(key)
    elif kind == 'add' and isinstance(holder, dict):
      holder[f'{junk}'] = junk
    else:
      holder[key] = junk
  return value


def written(value):
  text = json.dumps(value).replace(f'"{DEEP}"', '[' * 100000)
  return text.replace(f'"{HUGE}"', '9' * 5000).encode()


def sealed(manifest):
  """With a digest of its own, so that what it says is looked at."""
  with contextlib.suppress(Exception):
    manifest['manifest_sha256'] = checkpoints._own_digest(manifest)
  return written(manifest)


def changed(stage, folder, name, drawn):
  """A stage with another file, the rest by links, and digests that fit."""
  content, old = drawn, (stage / name).read_bytes()
  if not isinstance(drawn, bytes) and name == stages.PREDICTIONS:
    content = old[: -drawn[0][0]]
  elif not isinstance(drawn, bytes):
    write = sealed if name == MANIFEST else written
    content = write(mutate(json.loads(old), drawn))
  for path in stage.iterdir():
    if path.name not in (name, MANIFEST):
      (folder / path.name).symlink_to(path)
  (folder / name).write_bytes(content)
  if name != MANIFEST:
    manifest = manifest_of(stage)
    manifest['files_sha256'][name] = checkpoints._sha256(folder / name)
    (folder / MANIFEST).write_bytes(sealed(manifest))
  return folder


def manifest_of(stage):
  return json.loads((stage / MANIFEST).read_text())


@given(st.sampled_from(FILES), CONTENT)
@example(MANIFEST, b'[' * 100000)
@example(MANIFEST, b'{"files_sha256": {"../../a": "0"}}')
@example(MANIFEST, [(0, 'set', float('nan'))])
@example(stages.RECORD, b'[' * 100000)
@example(stages.RECORD, b'{"history": [' + b'9' * 5000 + b']}')
@example(stages.RECORD, b'{"history": [{"epoch": "1"}]}')
@fuzzing.cases(30)
def test_a_finished_stage(folders, finished, name, drawn):
  stage = fuzzing.stage(finished, 'source')
  folder = changed(stage, next(folders), name, drawn)
  with fuzzing.case(folder, stage):
    for read in (checkpoints.read_manifest, stages.manifest, stages.load):
      why = fuzzing.refused(read, folder)
      if why is not None:
        fuzzing.check_line(why)
        assert str(folder) in why


@pytest.mark.parametrize('name', FILES)
def test_a_pipe_is_not_waited_for(name, tmp_path, finished):
  folder = changed(fuzzing.stage(finished, 'source'), tmp_path, name, b'')
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with fuzzing.case(folder):
    why = fuzzing.refused(stages.load, folder)
    assert 'is a pipe or a device' in why or f'{name} is missing' in why


# Of each way in which a binary is told of a checkpoint: whose manifest is
# changed, and which flags name it.
ROLES = {
  'own': ('top_k', 'evaluate', ['--checkpoint=@']),
  'source': ('source', 'evaluate', ['--source_dir=@']),
  'retrained': ('retrain', 'evaluate', ['--retrained_dir=@']),
  'null': ('source', 'evaluate', ['--null_dir=@', '--degree']),
  'given source': ('source', 'unlearn', ['--source_dir=@']),
  'given retrained': ('retrain', 'unlearn', ['--retrained_dir=@']),
}


def check_named(role, folder, finished):
  _, binary, told = ROLES[role]
  base = fuzzing.quick(finished)
  if binary == 'evaluate':
    base = [
      f'--checkpoint={fuzzing.stage(finished, "top_k")}',
      f'--source_dir={fuzzing.stage(finished, "source")}',
      f'--retrained_dir={fuzzing.stage(finished, "retrain")}',
      *('--degree_batch_size=2', '--workdir=degree_of_fuzz'),
    ]
  flags = [text.replace('@', str(folder)) for text in told]
  with fuzzing.case(folder, finished):
    return fuzzing.check_binary(binary, [*base, *flags])


@given(st.sampled_from(sorted(ROLES)), CHANGES)
@example('given retrained', [(0, 'set', '\ud800')])
@fuzzing.cases(12)
def test_a_checkpoint_that_a_flag_names(folders, finished, role, drawn):
  stage = fuzzing.stage(finished, ROLES[role][0])
  check_named(role, changed(stage, next(folders), MANIFEST, drawn), finished)


def test_each_entry_missing_or_of_another_kind(folders, finished):
  """By turns: which entry it is makes a difference, hardly the two at one."""
  stage = fuzzing.stage(finished, 'source')
  for number, entry in enumerate(manifest_of(stage)):
    manifest = manifest_of(stage) | {entry: ([None], 'x')[number % 4 // 2]}
    if number % 2:
      del manifest[entry]
    content = sealed(manifest)
    folder = changed(stage, next(folders), MANIFEST, content)
    check_named('source', folder, finished)


def test_tensors_of_another_model_behind_a_fitting_manifest(finished, tmp_path):
  """They are refused by name, before a program is made of them."""
  state, manifest = checkpoints.restore(fuzzing.stage(finished, 'source'))
  other = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 1)), state)
  for entry in ('depends', 'files_sha256', 'manifest_sha256'):
    del manifest[entry]
  checkpoints.save(tmp_path / 'other', other, manifest)
  for role in ('null', 'given source'):
    status, text = check_named(role, tmp_path / 'other', finished)
    assert status == 1 and 'its tensor' in text, (role, text)
    assert str(tmp_path / 'other') in text


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A save of an unfinished stage named 'stage', and its state."""
  model = training.initialize(jax.random.key(0), helpers.model())
  state = TrainState(model, (), jax.random.key(1))
  path = tmp_path_factory.mktemp('saved') / 'epoch-000001'
  first = snapshots.Epoch(0, None, 0.0, {'a': 0.5})
  history = (first, snapshots.Epoch(1, 0.5, 1.0, {'a': 0.5}))
  course = snapshots.Course(history, 0.5, 3, losses=(0.5, 0.25), seconds=1.0)
  packed = snapshots.pack(snapshots.Snapshot(state, course))
  facts = {'stage': 'stage', 'epoch': 1, 'wall_seconds': 1.0}
  snapshots.save(path, packed, facts)
  return path, state


@given(st.sampled_from([MANIFEST, COURSE]), CONTENT)
@example(COURSE, b'[' * 100000)
@example(COURSE, b'[[], 0, 1]')
@example(COURSE, b'[[["1", 0, 0, {}]], 0, 1, [], 0]')
@example(COURSE, b'[[[1, 0, 0, {}]], 0, 1, [' + b'9' * 5000 + b'], 0]')
@fuzzing.cases(20)
def test_an_unfinished_save(folders, saved, name, drawn):
  root, (stage, state) = next(folders), saved
  folder = root / '.stage.partial' / 'epoch-000001'
  folder.mkdir(parents=True)
  changed(stage, folder, name, drawn)
  said = io.StringIO()
  with fuzzing.case(stage), contextlib.redirect_stderr(said):
    found = Partial(root / 'stage', 0.0).load(state)
  if found is None:
    fuzzing.check_line(said.getvalue())
    assert said.getvalue().startswith('warning: ')
  else:
    assert found.course.epoch is not None and not said.getvalue()
