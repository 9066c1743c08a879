"""Files that a reader sees whole or not at all, and JSON that any reads."""

import contextlib
import json
import math
import os
import pathlib
import re
from typing import Any
import uuid

import numpy as np


def replace(path: str | os.PathLike, data: bytes) -> pathlib.Path:
  """Writes a file through a temporary neighbour, so it is never half there.

  Args:
    path: what to create or replace; its directory is made where missing.
    data: the whole content.

  Returns:
    The path.

  Raises:
    OSError: it cannot be written; the old file is then still there.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Unlike that of another machine too, where process ids may be the same.
  draft = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.tmp')
  try:
    draft.write_bytes(data)
    os.replace(draft, path)
  except OSError as error:
    if error.errno:  # A full disk says nothing of the file.
      error.filename = str(path)
    raise
  finally:
    with contextlib.suppress(OSError):  # It is not there, as a rule.
      draft.unlink()
  return path


def sweep(folder: pathlib.Path) -> None:
  """Removes what a process that was killed in `replace` has left.

  Args:
    folder: one that nobody else writes into; its own folders are let be.
  """
  for path in folder.glob('.*.tmp'):
    if re.fullmatch(r'\..+\.[0-9a-f]{12}\.tmp', path.name, re.DOTALL):
      with contextlib.suppress(OSError):  # Whatever it is, it is not ours.
        path.unlink()


def to_json(value: Any) -> str:
  """A value as JSON that any parser reads: NaN and infinity become null."""
  return (
    json.dumps(plain(value), sort_keys=True, indent=2, allow_nan=False) + '\n'
  )


def plain(value: Any) -> Any:
  """The same value in JSON's own types.

  Example:
    >>> plain({'auc': np.float32('nan'), 1: (np.int64(2), None)})
    {'auc': None, '1': [2, None]}
  """
  if isinstance(value, dict):
    return {plain(str(key)): plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, list | tuple | set | frozenset):
    return [plain(item) for item in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, bool | int):
    return value
  # A path can hold bytes that are no UTF-8.
  return str(value).encode('utf-8', 'backslashreplace').decode()
