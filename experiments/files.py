"""Files that a reader sees whole or not at all."""

import os
import pathlib
import uuid


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
  finally:
    draft.unlink(missing_ok=True)
  return path
