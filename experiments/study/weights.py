"""Weights from elsewhere: read, matched to a model's tensors by name."""

from collections.abc import Iterable, Mapping, Sequence
import logging
import pathlib
import re
from typing import Any, NamedTuple
import zipfile

from flax import serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.flax import load

from experiments.settings import FlagError
from unlearn_jax.base import (
  InputError,
  ModelState,
  is_float,
  require_file,
  shown,
  tensor_paths,
)
from unlearn_jax.data import npz
from unlearn_jax.strategies import closest

_KINDS = (
  'safetensors, an npz, msgpack of flax.serialization, or a folder of Orbax'
)
_ITEM = '_METADATA'  # In each folder in which Orbax keeps a tree.
_MOST = 12  # Rows of a table.
# What paths of a model begin with, and what Linen's variables would.
_PARTS = {
  'params/': ('',),
  'batch_stats/batch_stats/': ('batch_stats/', ''),
  'batch_stats/': ('',),
}


class Match(NamedTuple):
  """Which tensor of a file is which of the model."""

  names: dict[str, str]  # in the file, by the path in the model
  anew: list[str]  # counters and keys that the file lacks
  unused: list[str]  # of the file

  def table(self, shapes: Mapping[str, Any]) -> list[str]:
    """In lines, not too many."""
    wide = max(map(len, self.names), default=0)
    rows = [
      f'  {path:{wide}} {_form(shapes[path])} ← {name}'
      for path, name in self.names.items()
    ]
    if len(rows) > _MOST:
      rows[_MOST - 2 :] = [f'  … and {len(rows) - _MOST + 2} more']
    head = f'{len(self.names)} of {len(shapes)} tensors of the model are there'
    for names, what in (
      (self.anew, 'Begin anew'),
      (self.unused, 'Not used'),
    ):
      if names:
        rows.append(f'  {what}: {len(names)} ({_few(names)})')
    return [f'{head}:', *rows]


def _few(names: Sequence[str]) -> str:
  return ', '.join(map(shown, names[:3])) + ', …' * (len(names) > 3)


def _form(leaf: Any) -> str:
  return f'{leaf.dtype}{list(leaf.shape)}'


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a file or folder, by its path with '/'.

  Raises:
    InputError: it is none of the kinds that are known, or damaged.
  """
  try:
    if path.is_dir():
      tree = _orbax(path)
    else:
      require_file(path)
      tree = _file(path)
  except InputError:
    raise
  # Each of the formats has errors of its own.
  except Exception as error:
    first = shown(str(error).strip().split('\n')[0])
    raise InputError(
      f'{path}: {type(error).__name__}: {first}; allowed: {_KINDS}'
    ) from error
  found: dict[str, np.ndarray] = {}
  for name, leaf in zip(tensor_paths(tree), jax.tree.leaves(tree)):
    if hasattr(leaf, 'dtype') and hasattr(leaf, 'shape'):
      # NNX says `kernel/value`, others `layer.kernel`.
      plain = re.sub(r'/(value|raw_value)$', '', name.replace('.', '/'))
      found[plain] = np.asarray(leaf)
  if not found:
    raise InputError(f'{path}: holds no tensors; allowed: {_KINDS}')
  return found


def _file(path: pathlib.Path) -> Any:
  content = path.read_bytes()
  if content[:2] == b'PK':
    with zipfile.ZipFile(path) as archive:
      names = [name.removesuffix('.npy') for name in archive.namelist()]
      return {name: npz.read(archive, name) for name in names}
  if content[8:9] == b'{' and path.suffix != '.msgpack':
    return load(content)
  return serialization.msgpack_restore(content)


def _orbax(folder: pathlib.Path) -> Any:
  """Of a StandardCheckpointer, or the last step of a CheckpointManager."""
  steps = [own for own in folder.iterdir() if own.name.isdecimal()]
  if steps and not (folder / _ITEM).exists():
    folder = max(steps, key=lambda own: int(own.name))
  places = [path.parent for path in sorted(folder.glob(f'**/{_ITEM}'))]
  if not places:
    raise InputError(f'{folder}: no {_ITEM} in it; allowed: {_KINDS}')
  # An item of a manager lacks what a checkpoint of its own has.
  logging.disable(logging.WARNING)
  try:
    return _restored(places)
  finally:
    logging.disable(logging.NOTSET)


def _restored(places: Iterable[pathlib.Path]) -> Any:
  found = {}
  with ocp.StandardCheckpointer() as checkpointer:
    for place in map(pathlib.Path.absolute, places):
      tree = checkpointer.metadata(place).item_metadata.tree
      like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
      found[place.name] = checkpointer.restore(place, like)
  return found if len(found) > 1 else next(iter(found.values()))


def renamed(
  found: Mapping[str, np.ndarray], text: str | None
) -> dict[str, np.ndarray]:
  r"""By other names, as `a/(.*)=b/\1; …` has it: expressions of whole names."""
  names = {name: name for name in found}
  for rule in filter(None, map(str.strip, (text or '').split(';'))):
    pattern, _, wanted = rule.rpartition('=')
    hits = 0
    try:
      for old, name in names.items():
        if own := re.fullmatch(pattern, name):
          names[old], hits = own.expand(wanted), hits + 1
    except (re.error, IndexError) as error:
      raise FlagError('rename', rule, f'a/(.*)=b/\\1 ({error})') from None
    if not hits:
      known = closest(pattern, list(found)[:_MOST])
      raise FlagError('rename', rule, f'what fits a whole name; {known}')
  if len({*names.values()}) < len(names):
    twice = next(n for n in names.values() if [*names.values()].count(n) > 1)
    raise FlagError('rename', text, f'each name once, {shown(twice)} is twice')
  return {names[old]: array for old, array in found.items()}


def match(shapes: Mapping[str, Any], found: Mapping[str, Any]) -> Match:
  """Finds every tensor of a model: by its path, or behind one prefix.

  Args:
    shapes: of the model, by path: `params/…` and `batch_stats/…`.
    found: of the file, by name.

  Raises:
    InputError: several prefixes would do.
  """
  names: dict[str, str] = {}
  left = dict.fromkeys(shapes)
  for part, others in _PARTS.items():
    own = [path for path in left if path.startswith(part)]
    bare = {path: path.removeprefix(part).replace('.', '/') for path in own}
    prefix = _prefix((part, *others), bare.values(), found)
    names |= {p: prefix + b for p, b in bare.items() if prefix + b in found}
    left = {path: None for path in left if path not in bare}
  missing = [path for path in shapes if path not in names]
  anew = [path for path in missing if not is_float(shapes[path])]
  return Match(names, anew, [n for n in found if n not in {*names.values()}])


def _prefix(
  usual: Sequence[str], wanted: Iterable[str], found: Mapping[str, Any]
) -> str:
  """What stands before the names of a part, for as many as can be."""
  counts = dict.fromkeys(usual, 0)
  for end in wanted:
    for name in found:
      if name == end or name.endswith(f'/{end}'):
        start = name[: len(name) - len(end)]
        counts[start] = counts.get(start, 0) + 1
  most = max(counts.values())
  best = [start for start, count in counts.items() if count == most]
  if best[0] not in usual and len(best) > 1:
    raise InputError(
      f'{most} tensors are there several times, behind {_few(best)}; allowed:'
      f' one of them, by --rename={best[0]}(.*)={usual[0]}\\1'
    )
  return best[0]


def filled(
  shapes: ModelState,
  fresh: ModelState,
  found: Mapping[str, np.ndarray],
  matched: Match,
) -> ModelState:
  """The model; counters and keys that are not there are those of `fresh`.

  Raises:
    InputError: a tensor is missing, or of another shape or kind.
  """
  leaves, anew = [], dict(zip(tensor_paths(fresh), jax.tree.leaves(fresh)))
  wrong = []
  for path, form in zip(tensor_paths(shapes), jax.tree.leaves(shapes)):
    if path in matched.names:
      leaf = found[matched.names[path]]
      alike = is_float(leaf) == is_float(form)
      if leaf.shape != form.shape or not alike or leaf.dtype.kind in 'bcOSU':
        wrong.append(f'{path} is {_form(leaf)}, allowed: {_form(form)}')
      elif is_float(leaf) and not np.isfinite(leaf.astype(np.float32)).all():
        wrong.append(f'{path} holds NaN or infinity, allowed: numbers')
      else:
        leaves.append(leaf.astype(form.dtype))
    elif path in matched.anew:
      leaves.append(np.asarray(anew[path]))
    else:
      near = closest(path, matched.unused[:_MOST]) if matched.unused else 'none'
      wrong.append(f'{path} {_form(form)} is missing; unused: {near}')
  if wrong:
    first, *rest = map(shown, wrong, [400] * len(wrong))
    more = f' ({len(rest)} more: {"; ".join(rest)})' if rest else ''
    raise InputError(first + more)
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
