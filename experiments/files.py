"""Files that a reader sees whole or not at all."""

import os
import pathlib


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
  draft = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    draft.write_bytes(data)
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)
  return path
