"""Models on disk: Orbax for the arrays, a manifest beside them.

A checkpoint is a folder with `state/` (Orbax), `manifest.json` and whatever
small files belong to it. It appears all at once: it is written under another
name and then renamed. The manifest holds a digest of every other file and of
itself, which are checked, and of the arrays, by which others name the model.

Under `jax.distributed` all processes save together: Orbax writes from each of
them, and when all have written, process 0 adds the rest and renames. They have
to see the same file system. Each restores on its own.
"""

from collections.abc import Mapping
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp

from unlearn_jax import parallel
from unlearn_jax.base import (
  InputError,
  ModelState,
  require_file,
  shown,
  tensor_paths,
)

MANIFEST = 'manifest.json'
_STATE = 'state'
# The manifest's digest of itself.
_OWN = 'manifest_sha256'


@dataclasses.dataclass(frozen=True)
class _Core:
  """What every manifest holds, whatever else is in it."""

  state_sha256: str
  files_sha256: dict[str, str]
  manifest_sha256: str
  format: int = 1


# Of the system's errors, those that say something of what was to be read.
_DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


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
    sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return sha.hexdigest()


def save(
  directory: str | os.PathLike,
  tree: ModelState | dict[str, Any],
  manifest: dict[str, Any],
  files: Mapping[str, bytes] | None = None,
) -> str:
  """Writes a model, or any nested dictionary of arrays: all of it or nothing.

  Args:
    directory: a folder that does not exist yet; its parents are made.
    tree: what is saved.
    manifest: JSON-serialisable facts about it.
    files: further files of the checkpoint, name to content.

  Returns:
    The digest of the tree, which the manifest holds too.

  Raises:
    InputError: `directory` exists, or cannot be written.
  """
  target = pathlib.Path(directory).absolute()
  # What JSON cannot hold is found before anything is written.
  manifest = json.loads(json.dumps(manifest, allow_nan=False))
  tree = tree._asdict() if isinstance(tree, ModelState) else tree
  host = jax.tree.map(np.asarray, tree)
  draft = pathlib.Path(parallel.by_first(lambda: _draft(target)))

  def name() -> str:
    """Once all processes have written: the rest, and the name."""
    for name, content in (files or {}).items():
      (draft / name).write_bytes(content)
    manifest['format'], manifest['state_sha256'] = 1, digest(host)
    manifest['files_sha256'] = digests(draft)
    manifest[_OWN] = _own_digest(manifest)
    text = json.dumps(manifest, indent=2, sort_keys=True)
    (draft / MANIFEST).write_text(text + '\n')
    draft.chmod(0o755)
    draft.rename(target)
    return manifest['state_sha256']

  try:
    with ocp.StandardCheckpointer() as checkpointer:
      saved = parallel.everywhere(host) if parallel.processes() > 1 else host
      checkpointer.save(draft / _STATE, saved)
    parallel.gathered('written')
    return parallel.by_first(name)
  except Exception as error:
    # A full disk is an OSError in one layer of Orbax, a ValueError in another.
    text = (getattr(error, 'strerror', None) or str(error)).partition('\n')[0]
    reason = shown(f'{type(error).__name__}: {text}')
    raise InputError(f'cannot write {target}: {reason}') from error
  finally:
    if parallel.is_first():
      shutil.rmtree(draft, ignore_errors=True)


def _draft(target: pathlib.Path) -> str:
  """A new folder beside `target`, which must not exist."""
  if ':/' in target.as_posix():
    raise InputError(f'cannot write {target}: a URL, allowed: a path')
  if target.exists():
    raise InputError(f'checkpoint {target} exists; it is never overwritten')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix=draft_prefix(target), dir=target.parent)
  except OSError as error:
    raise InputError(f'cannot write {target}: {error.strerror}') from error


def draft_prefix(directory: str | os.PathLike) -> str:
  """How the names of unfinished saves of this checkpoint begin.

  They lie beside it, and stay there if the process is killed.
  """
  return f'.{pathlib.Path(directory).name}-'


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def digests(folder: pathlib.Path) -> dict[str, str]:
  """The digest of every file below a folder."""
  paths = (path for path in folder.rglob('*') if path.is_file())
  return {str(p.relative_to(folder)): _sha256(p) for p in paths}


def _own_digest(manifest: dict[str, Any]) -> str:
  rest = {name: value for name, value in manifest.items() if name != _OWN}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
  """The manifest of a checkpoint.

  Raises:
    InputError: no checkpoint there, or a manifest that is not one, or not as
      it was written.
  """
  path = pathlib.Path(directory) / MANIFEST
  try:
    if not path.exists():
      raise InputError(
        f'{directory} holds no checkpoint: {MANIFEST} is missing; of Orbax,'
        ' msgpack, safetensors and npz experiments.adopt makes one'
      )
    require_file(path)
    manifest = json.loads(path.read_text('utf-8'))
    _require_manifest(manifest, path)
  except InputError:
    raise
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{path} cannot be read: {shown(error)}') from error
  return manifest


def _require_manifest(manifest: Any, path: pathlib.Path) -> None:
  try:
    core = msgspec.convert(manifest, _Core)
  except (msgspec.ValidationError, UnicodeError) as error:
    raise InputError(f'{path} is not a manifest: {shown(error)}') from error
  if core.format != 1:
    raise InputError(f'{path} is of format {core.format}, allowed: 1')
  if core.manifest_sha256 != _own_digest(manifest):
    raise InputError(f'{path} is damaged: it does not have its own digest')


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
  tree, manifest = restore_tree(directory, **expected)
  if 'params' not in tree:
    raise InputError(
      f'{directory} holds {", ".join(sorted(tree))}, allowed: a model'
    )
  state = ModelState(tree['params'], tree.get('batch_stats') or {})
  return state if like is None else _shaped(state, like), manifest


def restore_tree(
  directory: str | os.PathLike, **expected: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
  """`restore` for what is no model."""
  manifest = read_manifest(directory)
  for name, value in expected.items():
    if manifest.get(name) != value:
      raise InputError(
        f'checkpoint {directory} was made with'
        f' {name}={shown(repr(manifest.get(name)))},'
        f' allowed here: {value!r}'
      )
  folder = pathlib.Path(directory).absolute()
  try:
    for name, wanted in manifest['files_sha256'].items():
      if not (folder / name).is_file():
        raise ValueError(f'{name} is missing')
      if _sha256(folder / name) != wanted:
        raise ValueError(f'{name} does not have the digest of the manifest')
    with ocp.StandardCheckpointer(**_alone()) as checkpointer:
      tree = checkpointer.metadata(folder / _STATE).item_metadata.tree
      target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
      return checkpointer.restore(folder / _STATE, target), manifest
  # Orbax raises whatever the damaged layer raises: there is no common type.
  except Exception as error:
    raise refusal(directory, error) from error


def refusal(directory: str | os.PathLike, error: Exception) -> InputError:
  """What to raise from an error that came up while a checkpoint was read."""
  what = 'cannot be read' if _is_passing(error) else 'is damaged'
  reason = shown(str(error).split('\n')[0], 120)
  return InputError(
    f'checkpoint {directory} {what}: {type(error).__name__}: {reason}'
  )


def is_unread(error: Exception) -> bool:
  """Whether a checkpoint was not read for a reason that is none of its own.

  Such as too little memory, or a file system that does not answer: the next
  time it may be read, and nothing is known to be wrong with it.
  """
  return _is_passing(error.__cause__)


def _is_passing(error: BaseException | None) -> bool:
  return isinstance(error, MemoryError) or (
    isinstance(error, OSError) and error.errno not in _DAMAGE
  )


def _alone() -> dict[str, Any]:
  """What has Orbax wait for no other process."""
  if parallel.processes() == 1:
    return {}
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process{own}',
  )
  return {'multiprocessing_options': options}


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
