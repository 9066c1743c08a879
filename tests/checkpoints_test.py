import errno
import json
import pathlib
import shutil
from typing import NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from unlearn_jax import checkpoints, training
from unlearn_jax.base import InputError, ModelState


@pytest.fixture
def state():
  return training.initialize(jax.random.key(0), helpers.model())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path, state):
  digest = checkpoints.save(
    tmp_path / 'a' / 'b', state, {'model': 'tiny'}, files={'ids.txt': b'1\n'}
  )
  got, manifest = checkpoints.restore(tmp_path / 'a' / 'b', model='tiny')
  assert jax.tree.structure(got) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  written = set(manifest.pop('files_sha256'))
  found = helpers.files(tmp_path / 'a' / 'b')
  assert written | {'manifest.json'} == {
    str(path.relative_to(tmp_path / 'a' / 'b')) for path in found
  }
  assert len(manifest.pop('manifest_sha256')) == 64
  facts = {'format': 1, 'state_sha256': digest}
  assert manifest == {'model': 'tiny', **facts}
  assert (tmp_path / 'a' / 'b' / 'ids.txt').read_text() == '1\n'
  assert [p.name for p in (tmp_path / 'a').iterdir()] == ['b']


def test_bfloat16_and_no_statistics(tmp_path):
  state = ModelState({'w': jnp.arange(3, dtype=jnp.bfloat16)})
  checkpoints.save(tmp_path / 'a', state, {})
  got, _ = checkpoints.restore(tmp_path / 'a')
  assert got.params['w'].dtype == jnp.bfloat16
  assert got.batch_stats == {}
  assert got.params['w'].tolist() == [0, 1, 2]


def test_other_structures_come_back_with_a_pattern(tmp_path):
  class Params(NamedTuple):
    w: np.ndarray
    b: tuple[np.ndarray, np.ndarray]

  state = ModelState(Params(np.ones(2), (np.zeros(1), np.full(3, 2.0))))
  checkpoints.save(tmp_path / 'a', state, {})
  got, _ = checkpoints.restore(tmp_path / 'a', state)
  assert jax.tree.structure(got) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  other = ModelState({'w': np.ones(2)})
  with pytest.raises(InputError, match='allowed: the same'):
    checkpoints.restore(tmp_path / 'a', other)


def test_a_changed_extra_file_is_found(tmp_path, state):
  checkpoints.save(tmp_path / 'a', state, {}, files={'record.json': b'{1}'})
  (tmp_path / 'a' / 'record.json').write_bytes(b'{2}')
  with pytest.raises(InputError, match='record.json does not have the digest'):
    checkpoints.restore(tmp_path / 'a')


def test_nothing_is_overwritten(tmp_path, state):
  checkpoints.save(tmp_path / 'a', state, {})
  with pytest.raises(InputError, match='exists; it is never overwritten'):
    checkpoints.save(tmp_path / 'a', state, {})


def test_a_manifest_that_does_not_serialise_leaves_nothing(tmp_path, state):
  with pytest.raises(ValueError):
    checkpoints.save(tmp_path / 'a', state, {'loss': float('nan')})
  assert not list(tmp_path.iterdir())


def test_another_models_checkpoint_is_refused(tmp_path, state):
  checkpoints.save(tmp_path / 'a', state, {'model': 'tiny', 'width': 4})
  with pytest.raises(InputError, match="model='tiny', allowed here: 'cnn'"):
    checkpoints.restore(tmp_path / 'a', model='cnn')


@pytest.mark.parametrize('harm', helpers.HARMS)
def test_harm_to_any_file_is_found_and_the_file_named(tmp_path, state, harm):
  checkpoints.save(tmp_path / 'a', state, {}, files={'record.json': b'{1}'})
  names = [p.relative_to(tmp_path / 'a') for p in helpers.files(tmp_path / 'a')]
  assert len(names) > 5
  for number, name in enumerate(names):
    folder = tmp_path / str(number)
    shutil.copytree(tmp_path / 'a', folder)
    helpers.HARMS[harm](folder / name)
    with pytest.raises(InputError) as error:
      checkpoints.restore(folder)
    assert name.name in str(error.value)
    assert '\n' not in str(error.value)


def test_every_flipped_byte_of_a_manifest_is_found(tmp_path, state):
  checkpoints.save(tmp_path / 'a', state, {'settings': {'rate': 0.1}})
  path = tmp_path / 'a' / checkpoints.MANIFEST
  content = path.read_bytes()
  for place in range(len(content)):
    for bit in (1, 32):
      harmed = bytearray(content)
      harmed[place] ^= bit
      path.write_bytes(harmed)
      try:
        assert json.loads(harmed) == json.loads(content)
      except (ValueError, AssertionError):
        with pytest.raises(InputError):
          checkpoints.read_manifest(tmp_path / 'a')
  path.write_bytes(content)
  checkpoints.restore(tmp_path / 'a')


def full_disk(*_, **__):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path, state):
  checkpoints.save(tmp_path / 'a', state, {})
  path = tmp_path / 'a' / checkpoints.MANIFEST
  manifest = json.loads(path.read_text()) | {'format': 2}
  manifest['manifest_sha256'] = checkpoints._own_digest(manifest)
  path.write_text(json.dumps(manifest))
  with pytest.raises(InputError, match='is of format 2, allowed: 1'):
    checkpoints.restore(tmp_path / 'a')


@pytest.mark.parametrize(
  'target, name',
  [
    (ocp.StandardCheckpointer, 'save'),
    (pathlib.Path, 'write_bytes'),
    (pathlib.Path, 'write_text'),
    (pathlib.Path, 'rename'),
  ],
)
def test_a_full_disk_leaves_what_was_there(
  tmp_path, state, monkeypatch, target, name
):
  checkpoints.save(tmp_path / 'a', state, {})
  with monkeypatch.context() as patch:
    patch.setattr(target, name, full_disk)
    with pytest.raises(InputError, match='cannot write .*No space left') as e:
      checkpoints.save(tmp_path / 'b', state, {}, files={'ids.txt': b'1'})
  assert '\n' not in str(e.value)
  assert [path.name for path in tmp_path.iterdir()] == ['a']
  checkpoints.restore(tmp_path / 'a')


@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '{"model": 1'])
def test_a_broken_manifest_is_named(tmp_path, text):
  (tmp_path / checkpoints.MANIFEST).write_text(text)
  with pytest.raises(InputError, match=checkpoints.MANIFEST):
    checkpoints.restore(tmp_path)


def test_a_folder_without_checkpoint_is_named(tmp_path):
  with pytest.raises(InputError, match='holds no checkpoint.*adopt makes one'):
    checkpoints.restore(tmp_path)


def test_an_unwritable_place_is_named(state):
  with pytest.raises(InputError, match='cannot write /proc/nowhere'):
    checkpoints.save(pathlib.Path('/proc/nowhere'), state, {})


def test_a_url_makes_no_folder(tmp_path, state, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match='a URL, allowed: a path'):
    checkpoints.save('gs://bucket/it', state, {})
  assert not list(tmp_path.iterdir())


def test_the_digest_sees_paths_types_and_shapes():
  trees = [
    {'a': np.zeros(4, np.float32)},
    {'b': np.zeros(4, np.float32)},
    {'a': np.zeros((2, 2), np.float32)},
    {'a': np.zeros(2, np.float64)},
  ]
  assert len({checkpoints.digest(tree) for tree in trees}) == 4
  json.dumps([checkpoints.digest(tree) for tree in trees])
