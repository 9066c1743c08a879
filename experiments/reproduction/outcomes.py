"""What finished stages gave: one small JSON file each, by the stage's key.

An outcome appears all at once, after the checkpoint that it names; a stage is
done if and only if its outcome is there.
"""

import json
import pathlib
from typing import Any

from experiments import files
from unlearn_jax.base import InputError

Outcome = dict[str, Any]


class Outcomes:
  """The outcomes in a work directory."""

  def __init__(self, root: pathlib.Path):
    """Nothing is written yet."""
    self._folder = root / 'outcomes'

  def done(self, key: str) -> bool:
    """Whether the stage is finished, be it with a failure."""
    return self._path(key).exists()

  def keys(self) -> set[str]:
    """Of all finished stages, by one look at the folder."""
    if not self._folder.exists():
      return set()
    return {path.stem for path in self._folder.glob('[!.]*.json')}

  def read(self, key: str) -> Outcome | None:
    """The outcome, or None where the stage is not done.

    Raises:
      InputError: the file is damaged.
    """
    path = self._path(key)
    try:
      found = json.loads(path.read_text())
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      raise InputError(
        f'{path} is damaged ({error}); allowed: to delete it, its stage is'
        ' then restored from its checkpoint'
      ) from error
    return found

  def write(self, key: str, outcome: Outcome) -> None:
    """Marks a stage as done."""
    files.replace(self._path(key), files.to_json(outcome).encode())

  def _path(self, key: str) -> pathlib.Path:
    return self._folder / f'{key}.json'
