"""Files that a reader sees whole or not at all."""

import contextlib
import os
import pathlib
import re
import uuid


def replace(path: str | os.PathLike, data: bytes) -> pathlib.Path:
  """Writes a file through a temporary neighbour, so it is never half there."""
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
  """Removes what a process that was killed in `replace` has left."""
  for path in folder.glob('.*.tmp'):
    if re.fullmatch(r'\..+\.[0-9a-f]{12}\.tmp', path.name, re.DOTALL):
      with contextlib.suppress(OSError):  # Whatever it is, it is not ours.
        path.unlink()
