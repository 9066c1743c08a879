"""Models on disk: Orbax for the arrays, a manifest beside them.

A checkpoint is a folder with `state/` (Orbax), `manifest.json` and whatever
small files belong to it. It appears all at once: it is written under another
name and then renamed.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from unlearn_jax.base import InputError, ModelState, tensor_paths

MANIFEST = 'manifest.json'


def digest(tree: Any) -> str:
  """Hex SHA-256 over the paths, types, shapes and bytes of a tree's arrays.

  Example:
    >>> digest({'w': np.zeros(2)}) == digest({'w': np.zeros((2, 1))})
    False
  """
  sha = hashlib.sha256()
  leaves = dict(zip(tensor_paths(tree), jax.tree.leaves(tree)))
  for path, leaf in sorted(leaves.items()):
    array = np.asarray(leaf)
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(np.ascontiguousarray(array).tobytes())
  return sha.hexdigest()


def save(
  directory: str | os.PathLike,
  state: ModelState,
  manifest: dict[str, Any],
  files: Mapping[str, bytes] | None = None,
) -> str:
  """Writes a model, all of it or nothing.

  Args:
    directory: a folder that does not exist yet; its parents are made.
    state: what is saved.
    manifest: JSON-serialisable facts about it.
    files: further files of the checkpoint, name to content.

  Returns:
    The digest of the state, which the manifest holds too.

  Raises:
    InputError: `directory` exists, or cannot be written.
  """
  target = pathlib.Path(directory).absolute()
  if target.exists():
    raise InputError(f'checkpoint {target} exists; it is never overwritten')
  host = jax.tree.map(np.asarray, state)
  extra = dict(files or {})
  manifest = {
    **manifest,
    'state_sha256': digest(host),
    'files_sha256': {name: _sha256(extra[name]) for name in sorted(extra)},
  }
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    parent = tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent)
  except OSError as error:
    raise InputError(f'cannot write {target}: {error.strerror}') from error
  draft = pathlib.Path(parent)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(draft / 'state', host._asdict())
    for name, content in extra.items():
      (draft / name).write_bytes(content)
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    (draft / MANIFEST).write_text(text + '\n')
    draft.chmod(0o755)
    draft.rename(target)
  except OSError as error:
    raise InputError(f'cannot write {target}: {error.strerror}') from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return manifest['state_sha256']


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
  """The manifest of a checkpoint.

  Raises:
    InputError: no checkpoint there, or a manifest that is not one.
  """
  path = pathlib.Path(directory) / MANIFEST
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(
      f'{directory} holds no checkpoint: {MANIFEST} is missing'
    ) from None
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read: {error}') from error
  if not isinstance(manifest, dict) or 'state_sha256' not in manifest:
    raise InputError(f'{path} is not a manifest: it names no state_sha256')
  return manifest


def restore(
  directory: str | os.PathLike,
  like: ModelState | None = None,
  **expected: Any,
) -> tuple[ModelState, dict[str, Any]]:
  """Reads a model back, and refuses one that is damaged or another's.

  Args:
    directory: where `save` put it.
    like: a state of the same structure, for parameters that are not nested
      dictionaries and lists: Orbax gives NamedTuples back as dictionaries.
    **expected: entries of the manifest and the values that they must have.

  Returns:
    (state with host arrays, manifest).

  Raises:
    InputError: missing, damaged, or an expected entry that differs.
  """
  manifest = read_manifest(directory)
  for name, value in expected.items():
    if manifest.get(name) != value:
      raise InputError(
        f'checkpoint {directory} was made with {name}={manifest.get(name)!r},'
        f' allowed here: {value!r}'
      )
  path = pathlib.Path(directory).absolute() / 'state'
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.metadata(path).item_metadata.tree
      target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
      restored = checkpointer.restore(path, target)
    state = ModelState(restored['params'], restored.get('batch_stats') or {})
    found = digest(jax.tree.map(np.asarray, state))
    for name, wanted in manifest.get('files_sha256', {}).items():
      if _sha256((path.parent / name).read_bytes()) != wanted:
        raise ValueError(f'{name} does not have the digest of the manifest')
  # Orbax raises whatever the damaged layer raises: there is no common type.
  except Exception as error:
    reason = str(error).split('\n')[0][:120]
    raise InputError(
      f'checkpoint {directory} is damaged: {type(error).__name__}: {reason}'
    ) from error
  if found != manifest['state_sha256']:
    raise InputError(
      f'checkpoint {directory} is damaged: its arrays do not have the digest'
      ' that its manifest names'
    )
  return state if like is None else _shaped(state, like), manifest


def _shaped(state: ModelState, like: ModelState) -> ModelState:
  leaves = dict(zip(tensor_paths(state), jax.tree.leaves(state)))
  paths = tensor_paths(like)
  if set(paths) != set(leaves):
    raise InputError(
      f'like has the tensors {sorted(paths)}, the checkpoint'
      f' {sorted(leaves)}; allowed: the same'
    )
  structure = jax.tree.structure(like)
  return jax.tree.unflatten(structure, [leaves[path] for path in paths])
