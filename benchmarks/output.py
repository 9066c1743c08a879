"""The JSON file of a benchmark, which can be written before anything runs."""

import json
import pathlib
from typing import Any

from absl import flags as absl_flags

from experiments import files, flags


def define(out: str = 'JSON file; default none.') -> None:
  """The flags --out, with this help, and --overwrite."""
  absl_flags.DEFINE_string('out', None, out)
  absl_flags.DEFINE_bool('overwrite', False, 'Replace what is there.')


def path(values: Any) -> pathlib.Path | None:
  """What `--out` names, None without it.

  Raises:
    FlagError: as in `require`.
  """
  if not values.out:
    return None
  require(found := pathlib.Path(values.out), values)
  return found


def require(file: pathlib.Path, values: Any) -> None:
  """Makes the folder of a file that `--out` means.

  Raises:
    FlagError: the file is there and may not be replaced, or the folder cannot
      be made.
  """
  if file.is_dir() or (file.exists() and not values.overwrite):
    raise flags.FlagError('out', file, 'a new file, or --overwrite')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    allowed = f'a file in a folder that can be made: {error.strerror}'
    raise flags.FlagError('out', file, allowed) from None


def write(file: pathlib.Path | None, record: dict[str, Any]) -> None:
  """Writes or replaces it; does nothing without one."""
  if file:
    text = json.dumps(record, indent=1) + '\n'
    files.replace(file, text.encode())
