"""Manifests, unfinished saves, outcomes and claims with anything in them."""

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

from experiments import partials, stages
from experiments.reproduction import costs, tally
from experiments.reproduction.claims import Claim, Claims
from experiments.reproduction.outcomes import Outcomes
from experiments.reproduction.presets import PRESETS
from unlearn_jax import checkpoints, snapshots, training
from unlearn_jax.base import TrainState

DEEP, HUGE = '@deep@', '@huge@'
JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(max_size=8),
  st.sampled_from(
    [
      *(10**400, -1, 2**63, 1e308, '', '..', '../../../etc/passwd', '\0', '\n'),
      *(
        '/dev/zero',
        '\ud800',
        'x' * 9999,
        [],
        {},
        [[]],
        {'a': None},
        DEEP,
        HUGE,
      ),
      *('source', 'retrain', 'digits', 'npz:/dev/zero', 'folder:/', 'resnet18'),
    ]
  ),
)


@st.composite
def mutations(draw):
  """How JSON is changed: where, each step a number; to what; and what then."""
  changes = st.lists(
    st.tuples(
      st.lists(st.integers(0, 99), min_size=1, max_size=4),
      st.sampled_from(['set', 'set', 'delete', 'rename', 'add']),
      JUNK,
    ),
    max_size=3,
  )
  return draw(changes), draw(
    st.sampled_from(['sealed', 'sealed', 'old', 'as is'])
  )


def mutate(base, changes):
  value = copy.deepcopy(base)
  for steps, kind, junk in changes:
    holder = value
    for number, step in enumerate(steps):
      keys = list(holder) if isinstance(holder, dict) else range(len(holder))
      if not keys:
        break
      key = keys[step % len(keys)]
      deeper = holder[key]
      if number < len(steps) - 1 and isinstance(deeper, dict | list) and deeper:
        holder = deeper
        continue
      if kind == 'set':
        holder[key] = junk
      elif kind == 'delete':
        del holder[key]
      elif isinstance(holder, dict):
        moved = holder.pop(key) if kind == 'rename' else junk
        holder[f'{junk}'] = moved
      break
  return value


def written(value, how='as is'):
  """As a manifest: with a digest of its own, or without any as in 0.1.0."""
  value = dict(value)
  if how == 'old':
    value.pop('files_sha256', None)
    value.pop('manifest_sha256', None)
  elif how == 'sealed':
    value['manifest_sha256'] = checkpoints._own_digest(value)
  text = json.dumps(value)
  text = text.replace(f'"{DEEP}"', '[' * 100000).replace(
    f'"{HUGE}"', '9' * 5000
  )
  return text.encode()


CONTENT = st.one_of(
  mutations(), mutations(), mutations(), mutations(), st.binary(max_size=40)
)


def content_of(base, drawn):
  if isinstance(drawn, bytes):
    return drawn
  return written(mutate(base, drawn[0]), drawn[1])


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return fuzzing.fresh(tmp_path_factory.mktemp('manifests'))


def changed(stage, folder, content, name='manifest.json'):
  """The checkpoint of a stage with another manifest, the rest by links."""
  for path in stage.iterdir():
    if path.name != name:
      (folder / path.name).symlink_to(path)
  (folder / name).write_bytes(content)
  return folder


def manifest_of(stage):
  return json.loads((stage / 'manifest.json').read_text())


@given(CONTENT)
@example(b'[' * 100000)
@example(b'{"state_sha256": ' + b'9' * 5000 + b'}')
@example(b'{"state_sha256": NaN}')
@example(b'{"state_sha256": "0", "files_sha256": {"../../a": "0"}}')
@example(b'{"state_sha256": "0", "files_sha256": ["a"]}')
@fuzzing.profile('manifests')
def test_a_manifest(folders, finished, drawn):
  stage = fuzzing.stage(finished, 'source')
  content = content_of(manifest_of(stage), drawn)
  folder = changed(stage, next(folders), content)
  with fuzzing.case('manifests', folder, stage):
    for read in (checkpoints.read_manifest, checkpoints.restore, stages.load):
      why = fuzzing.refused(read, folder)
      if why is not None:
        fuzzing.check_line(why)
        assert str(folder) in why


@pytest.mark.parametrize('name', ['manifest.json', 'record.json'])
def test_a_pipe_is_not_waited_for(name, tmp_path, finished):
  stage = fuzzing.stage(finished, 'source')
  content = written(manifest_of(stage), 'old')
  folder = changed(stage, tmp_path, content)
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with fuzzing.case('manifests', folder):
    assert 'is a pipe or a device' in fuzzing.refused(stages.load, folder)


# Of each way in which a binary is told of a checkpoint: whose manifest is
# changed, and which flags name it.
ROLES = {
  'evaluate': ('top_k', 'evaluate', ['--checkpoint=@']),
  'evaluate source': ('source', 'evaluate', ['--source_dir=@']),
  'evaluate retrained': ('retrain', 'evaluate', ['--retrained_dir=@']),
  'degree': ('top_k', 'spd_gan', ['--unlearned=@']),
  'degree source': ('source', 'spd_gan', ['--source=@']),
  'degree null': ('source', 'spd_gan', ['--null_dir=@']),
  'degree retrained': ('retrain', 'spd_gan', ['--retrained_dir=@']),
  'unlearn': ('source', 'unlearn', ['--source_dir=@']),
  'unlearn retrained': ('retrain', 'unlearn', ['--retrained_dir=@']),
}


@given(st.sampled_from(sorted(ROLES)), mutations())
@example('evaluate', ([([3], 'set', {})], 'old'))
@fuzzing.profile('checkpoints of binaries')
def test_a_checkpoint_that_a_flag_names(folders, finished, role, drawn):
  name, binary, told = ROLES[role]
  stage = fuzzing.stage(finished, name)
  content = content_of(manifest_of(stage), drawn)
  check_named(binary, told, changed(stage, next(folders), content), finished)


def check_named(binary, told, folder, finished):
  top_k = fuzzing.stage(finished, 'top_k')
  base = {
    'evaluate': [f'--checkpoint={top_k}'],
    'spd_gan': [
      f'--source={fuzzing.stage(finished, "source")}',
      f'--unlearned={top_k}',
      f'--retrained_dir={fuzzing.stage(finished, "retrain")}',
      '--batch_size=2',
      '--workdir=degree_of_fuzz',
    ],
    'unlearn': fuzzing.quick(finished),
  }[binary]
  flags = [text.replace('@', str(folder)) for text in told]
  with fuzzing.case('checkpoints of binaries', folder, finished):
    return fuzzing.check_binary(binary, [*base, *flags])


ENTRIES = [
  *(
    'state_sha256',
    'files_sha256',
    'config',
    'settings',
    'strategy',
    'dataset',
  ),
  *('parent_sha256', 'forget_sha256', 'data_fingerprint', 'train_subset'),
  *('model', 'dtype', 'width', 'num_classes', 'image_shape', 'pixel_mean'),
  'pixel_std',
]


@pytest.mark.parametrize('role', ['evaluate', 'degree source', 'unlearn'])
@pytest.mark.parametrize('entry', ENTRIES)
def test_each_entry_missing_and_of_another_kind(role, entry, folders, finished):
  name, binary, told = ROLES[role]
  stage = fuzzing.stage(finished, name)
  for value in (None, 7, -1, [None], {'a': 1}, 'x', 2**70):
    manifest = {**manifest_of(stage), entry: value}
    if value is None:
      del manifest[entry]
    folder = changed(stage, next(folders), written(manifest, 'sealed'))
    check_named(binary, told, folder, finished)


def test_tensors_of_another_model_behind_a_fitting_manifest(finished, tmp_path):
  """They are refused by name, before a program is made of them."""
  stage = fuzzing.stage(finished, 'source')
  state, manifest = checkpoints.restore(stage)
  other = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 1)), state)
  del manifest['files_sha256'], manifest['manifest_sha256']
  checkpoints.save(tmp_path / 'other', other, manifest)
  for role in ('degree null', 'unlearn'):
    _, binary, told = ROLES[role]
    status, text = check_named(binary, told, tmp_path / 'other', finished)
    assert status == 1 and 'its tensor' in text, (role, text)
    assert str(tmp_path / 'other') in text


# ------------------------------------------------------------ Partial saves.


@pytest.fixture(scope='module')
def training_state():
  model = training.initialize(jax.random.key(0), helpers.model())
  return TrainState(model, (), jax.random.key(1))


@pytest.fixture(scope='module')
def saved(tmp_path_factory, training_state):
  """A save of an unfinished stage named 'stage'."""
  path = tmp_path_factory.mktemp('saved') / 'epoch-000001'
  history = (
    snapshots.Epoch(0, None, 0.0, {'a': 0.5}),
    snapshots.Epoch(1, 0.5, 1.0, {'a': 0.5}),
  )
  course = snapshots.Course(history, 0.5, 3, losses=(0.5, 0.25), seconds=1.0)
  packed = snapshots.pack(snapshots.Snapshot(training_state, course))
  facts = {'stage': 'stage', 'epoch': 1, 'wall_seconds': 1.0}
  snapshots.save(path, packed, facts).result()
  return path


@given(st.sampled_from(['manifest.json', snapshots.COURSE]), CONTENT)
@example(snapshots.COURSE, b'[' * 100000)
@example(snapshots.COURSE, b'{"history": [], "compile_seconds": 0, "steps": 1}')
@example(
  snapshots.COURSE,
  b'{"history": [{"epoch": "1", "loss": 0, "seconds": 0, "measured": {}}],'
  b' "compile_seconds": 0, "steps": 1, "losses": []}',
)
@fuzzing.profile('partial saves')
def test_a_partial_save(folders, saved, training_state, name, drawn):
  root = next(folders)
  folder = root / '.stage.partial' / 'epoch-000001'
  folder.mkdir(parents=True)
  base = json.loads((saved / name).read_text())
  content = content_of(base, drawn)
  if (
    name == snapshots.COURSE
  ):  # Whoever plants a file can plant its digest too.
    content = content_of(
      base, drawn if isinstance(drawn, bytes) else (drawn[0], '')
    )
    manifest = written(manifest_of(saved), 'old')
    changed(saved, folder, content, name)
    (folder / 'manifest.json').unlink()
    (folder / 'manifest.json').write_bytes(manifest)
  else:
    changed(saved, folder, content)
  said = io.StringIO()
  with fuzzing.case('partial saves', saved), contextlib.redirect_stderr(said):
    partial = partials.Partial(root / 'stage')
    found = partial.load(training_state)
  if found is None:
    fuzzing.check_line(said.getvalue())
    assert said.getvalue().startswith('warning: ')
  else:
    assert found.course.epoch is not None and not said.getvalue()


# ---------------------------------------------------- Outcomes and claims.

OUTCOME = {
  'title': 'seed 0 · top_k',
  'folder': 'problem/checkpoints/stage',
  'history': [
    {
      'epoch': epoch,
      'loss': 0.5,
      'seconds': 1.0,
      'forget_accuracy': 0.5,
      'retain_accuracy': 0.5,
      'js_to_source': 0.1,
    }
    for epoch in range(2)
  ],
  'selection_seconds': 1.0,
  'source_retain_accuracy': 0.5,
  'measured': {'forget_accuracy': 0.5, 'gap': None},
  'source': {'forget_accuracy': 0.5},
  'wall_seconds': 1.0,
}


@given(CONTENT)
@example(b'[]')
@example(b'[' * 100000)
@example(([([1], 'set', '../../x')], 'old'))
@example(([([2, 0, 5], 'delete', 0)], 'old'))
@example(([([2, 0, 5], 'set', None)], 'sealed'))
@example(([([1], 'set', '\ud800')], 'sealed'))
@fuzzing.profile('outcomes')
def test_an_outcome(folders, drawn):
  root = next(folders)
  (root / 'outcomes').mkdir()
  path = root / 'outcomes' / 'key.json'
  if not isinstance(drawn, bytes):
    drawn = drawn[0], 'old'
  path.write_bytes(content_of(OUTCOME, drawn))
  found = None

  def read():
    nonlocal found
    found = Outcomes(root).read('key', tally.NEEDS['unlearn'])

  with fuzzing.case('outcomes', root):
    why = fuzzing.refused(read)
    if why is not None:
      fuzzing.check_line(why)
      assert str(path) in why
    elif not found.get('error'):
      assert (root / found['folder']).resolve().is_relative_to(root.resolve())
      preset = PRESETS['smoke']
      tally.stop_epoch(found, preset)
      for epoch in range(3):
        tally.at_epoch(epoch, 'forget_accuracy')(found)
      for read_number in (tally.measured, tally.of_source):
        read_number('forget_accuracy')(found)


NAMES = st.one_of(
  st.sampled_from(['key.0', 'key.1', 'key.x', 'key.', 'key.²', 'key.-1']),
  st.text(
    st.characters(codec='utf-8', exclude_characters='/\0'), max_size=6
  ).map(lambda text: f'key.{text}'),
  st.just('key.' + '9' * 200),
)
MACHINE = ['host']
CLAIM = st.one_of(
  st.binary(max_size=20),
  JUNK.map(lambda junk: written({'': junk})),
  st.tuples(JUNK, JUNK).map(
    lambda both: json.dumps(['owner', both[0], both[1]]).encode()
  ),
  st.sampled_from(['pipe', 'folder']),
)


@given(st.dictionaries(NAMES, CLAIM, max_size=3))
@example({'key.x': b''})
@example({'key.0': b'5'})
@example({'key.0': 'pipe'})
@example({'key.0': b'["owner", ["host"], "1"]'})
@example({'key.0': b'["owner", ["host"], ' + b'9' * 40 + b']'})
@fuzzing.profile('claims')
def test_a_claim(folders, monkeypatch, planted):
  from experiments.reproduction import claims

  monkeypatch.setattr(claims, '_machine', lambda: MACHINE)
  root = next(folders)
  for name, content in planted.items():
    with contextlib.suppress(FileExistsError):
      if content == 'pipe':
        os.mkfifo(root / name)
      elif content == 'folder':
        (root / name).mkdir()
      else:
        (root / name).write_bytes(content)
  before = fuzzing.snapshot(root)
  with fuzzing.case('claims'):
    claim = Claims(root, 'me').take('key')
  assert claim is None or isinstance(claim, Claim)
  assert before.items() <= fuzzing.snapshot(root).items()


@pytest.mark.parametrize(
  'text', ['[]', '5', '[' * 100000, '{"a": 1}', '{"a": {"train": "x"}}', '\xff']
)
def test_damaged_rates_are_measured_anew(text, tmp_path):
  (tmp_path / 'calibration.json').write_text(text)
  found = costs.Calibration(tmp_path, PRESETS['smoke'])._known()
  assert found == {}
