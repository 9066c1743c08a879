"""What finished stages gave: one small JSON file each, by the stage's key.

An outcome appears all at once, after the checkpoint that it names; a stage is
done if and only if its outcome is there.
"""

from collections.abc import Collection
import json
import pathlib
from typing import Any

from experiments import files
from unlearn_jax.base import InputError, require_file, shown

Outcome = dict[str, Any]

# What an epoch of unlearning measures.
MEASURED = ('forget_accuracy', 'retain_accuracy', 'js_to_source')


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

  def read(self, key: str, needs: Collection[str] = ()) -> Outcome | None:
    """The outcome, or None where the stage is not done.

    Args:
      key: of the stage.
      needs: what it must hold unless it failed; a `history` then also holds
        `MEASURED` in each epoch.

    Raises:
      InputError: the file is damaged.
    """
    path = self._path(key)
    if not path.exists():
      return None
    try:
      require_file(path)
      found = json.loads(path.read_text())
      _check(found, needs)
    except (OSError, ValueError, RecursionError) as error:
      raise InputError(
        f'{path} is damaged ({shown(error)}); allowed: to delete it, its stage'
        ' is then restored from its checkpoint'
      ) from error
    return found

  def write(self, key: str, outcome: Outcome) -> None:
    """Marks a stage as done."""
    files.replace(self._path(key), files.to_json(outcome).encode())

  def _path(self, key: str) -> pathlib.Path:
    return self._folder / f'{key}.json'


def _check(found: Any, needs: Collection[str]) -> None:
  """What every outcome is.

  Raises:
    ValueError: this is something else.
  """
  if not isinstance(found, dict):
    raise ValueError('it is no JSON object')
  for name in ('selection_seconds', 'source_retain_accuracy', 'wall_seconds'):
    if not _is_number(found.get(name, 0.0)):
      raise ValueError(f'{name} is no number')
  if found.get('error'):
    if not isinstance(found['error'], str):
      raise ValueError('its error is no text')
    return
  folder = found.get('folder')
  if not isinstance(folder, str) or not folder.isprintable():
    raise ValueError('it names no folder')
  if folder.startswith('/') or '..' in folder.split('/'):
    raise ValueError('its folder is outside of the work directory')
  for name in ('measured', 'source'):
    if not _holds_numbers(found.get(name, {})):
      raise ValueError(f'{name} holds no numbers')
  for name in {'measured', *needs}:
    if name not in found:
      raise ValueError(f'it has no {name}')
  history = found.get('history', [])
  if not isinstance(history, list) or not all(map(_is_epoch, history)):
    raise ValueError('history is no list of epochs')
  if 'history' in needs:
    if not history or not all(map(_is_measured, history)):
      raise ValueError('an epoch of its history is not whole')

  generators, classes = found.get('generators', [0.0]), found.get('classes', 2)
  if not isinstance(generators, list) or not all(map(_is_number, generators)):
    raise ValueError('generators holds no numbers')
  if not _is_number(classes) or classes < 2:
    raise ValueError('classes is no number of classes')
  titles = found.get('titles', [])
  if not isinstance(titles, list) or not all(
    isinstance(t, str) for t in titles
  ):
    raise ValueError('titles holds no texts')


def _is_epoch(row: Any) -> bool:
  return (
    isinstance(row, dict)
    and {'epoch', 'loss', 'seconds'} <= set(row)
    and isinstance(row['epoch'], int)
    and _holds_numbers(row)
  )


def _is_measured(row: dict[str, Any]) -> bool:
  return all(_is_number(row.get(name)) for name in MEASURED)


def _holds_numbers(values: Any) -> bool:
  """Of each name a number, several, or none."""
  return isinstance(values, dict) and all(
    value is None
    or _is_number(value)
    or (isinstance(value, list) and all(map(_is_number, value)))
    for value in values.values()
  )


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and abs(value) < 1e300
