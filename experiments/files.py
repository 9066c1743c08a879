"""Files that a reader sees whole or not at all."""

import contextlib
import os
import pathlib


def replace(path: str | os.PathLike, data: bytes) -> pathlib.Path:
  """Writes a file through a temporary neighbour, so it is never half there."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Of one name: what a killed process has left is written anew.
  draft = path.with_name(f'.{path.name}.tmp')
  try:
    draft.unlink(missing_ok=True)
    with draft.open('xb') as stream:  # No link that lay there is followed.
      stream.write(data)
    os.replace(draft, path)
  except OSError as error:
    if error.errno:  # A full disk says nothing of the file.
      error.filename = str(path)
    raise
  finally:
    with contextlib.suppress(OSError):  # It is not there, as a rule.
      draft.unlink()
  return path
