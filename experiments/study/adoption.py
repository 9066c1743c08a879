"""Weights from elsewhere made a checkpoint that other binaries take.

They are read, matched by name to the tensors of a model, and measured.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import logging
import pathlib
import re
from typing import Any
import zipfile

from flax import serialization
import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from safetensors.flax import load

from unlearn_jax import checkpoints, data, models
from unlearn_jax.base import (
  Examples,
  InputError,
  ModelState,
  is_float,
  require_file,
  shown,
  tensor_paths,
)
from unlearn_jax.data import npz
from unlearn_jax.prediction import predict
from unlearn_jax.strategies import closest
from .. import config
from ..runtime.progress import say
from ..settings import FlagError, taken
from ..workdir import finished
from ..workdir.finished import Manifest, Recipe
from . import setup as setups
from .setup import Setup

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


def adopt(asked: Any, out: pathlib.Path) -> None:
  """Reads, matches, measures, and then writes a folder `out`."""
  if out.exists():
    raise InputError(f'--out={out} exists; it is never overwritten')
  setup = setups.set_up(taken(config.Study, asked))
  path = pathlib.Path(asked.weights)
  trained = _trained(setup, asked.trained_on)
  say(*setups.describe(setup, {}))
  try:
    found = _turned_round(setup, _renamed(_read(path), asked.rename))
    state = _matched(setup, *found)
  except FlagError:
    raise
  except InputError as error:
    text = str(error).removeprefix(f'{path}: ')
    raise InputError(f'--weights={path}: {text}') from error
  for what, part in (('test', setup.dataset.test), ('trained', trained)):
    right = predict(setup.model, state, part).argmax(-1) == part.own_labels
    say(f'{what:7} accuracy {100 * right.mean():.2f} %')
  recipe = None
  if asked.training.recipe is not None:
    recipe = Recipe.of(asked.training.resolved)
  facts = dataclasses.asdict(setup.facts)
  said = Manifest(**facts, strategy='source', recipe=recipe)
  ids = '\n'.join([*setups.ids_of(setup, trained), '']).encode()
  named = msgspec.to_builtins(said) | {'adopted_from': path.name}
  checkpoints.save(out, state, named, {finished.TRAINED: ids})
  say(f'Checkpoint: {out}')


def _trained(setup: Setup, text: str) -> Examples:
  """What the model knows, in the order of the data set."""
  if text == 'all':
    return setup.dataset.train
  try:
    rows = data.read_ids(pathlib.Path(text), setup.dataset)
  except InputError as error:
    raise InputError(f'--trained_on={error}') from error
  return setup.dataset.train.take(np.unique(rows))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a file or folder, by its path with '/'."""
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
      if plain in found:
        raise InputError(
          f'{path}: {shown(plain)} is there twice, allowed: once'
        )
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
  found = {}
  # An item of a manager lacks what a checkpoint of its own has.
  logging.disable(logging.WARNING)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      for place in map(pathlib.Path.absolute, places):
        tree = checkpointer.metadata(place).item_metadata.tree
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
        found[place.name] = checkpointer.restore(place, like)
  finally:
    logging.disable(logging.NOTSET)
  return found if len(found) > 1 else next(iter(found.values()))


def _renamed(
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
  for old, new in names.items():
    shape, kernel = found[old].shape, new.endswith('kernel')
    square = shape[1:] and shape == (*shape[2:], shape[1], shape[0])
    if square and kernel and old.endswith('weight'):
      say(
        f'warning: {shown(old)}, now {shown(new)}, has the same shape in'
        " PyTorch's order of axes: nothing but the accuracy below says whether"
        ' it was transposed'
      )
  return {names[old]: array for old, array in found.items()}


def _turned_round(
  setup: Setup, found: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """A transformer by timm's names in ours, and what these were."""
  family = models.FAMILIES.get(setup.facts.model)
  if family is None or family.patch_size is None:
    return {**found}, {}
  from unlearn_jax.models.vit import from_pytorch  # Only where it is needed.

  turned: dict[str, np.ndarray] = {}
  were: dict[str, str] = {}
  for name, array in found.items():
    own, turned_array = from_pytorch(name, array)
    if own in turned:
      raise InputError(
        f'{shown(name)} and {shown(were[own])} are one tensor, allowed: once'
      )
    turned[own], were[own] = turned_array, name
  return turned, were


def _matched(
  setup: Setup, found: Mapping[str, np.ndarray], were: Mapping[str, str]
) -> ModelState:
  """The model with the tensors of a file; says which is which.

  `were` are the names that some of them have in the file.

  Counters and keys that are not there begin anew.

  Raises:
    InputError: a tensor is missing, or of another shape or kind, or several
      would do.
  """
  forms = dict(zip(tensor_paths(setup.shapes), jax.tree.leaves(setup.shapes)))
  names = _names(forms, found)
  assert setup.model.init is not None
  fresh = jax.tree.leaves(setup.model.init(jax.random.key(0)))
  used = {*names.values()}
  unused = [were.get(name, name) for name in found if name not in used]
  leaves, anew, wrong = [], [], []
  for (path, form), own in zip(forms.items(), fresh):
    if path in names:
      own = found[names[path]]
      alike = is_float(own) == is_float(form) and own.dtype.kind not in 'bcOSU'
      if own.shape != form.shape or not alike:
        why = ''
        if path.endswith('/pos_embed') and own.shape[2:] == form.shape[2:]:
          why = ', as many positions: of images and patches of other sizes'
          why += ' none are interpolated'
        wrong.append(f'{path} is {_form(own)}, allowed: {_form(form)}{why}')
      elif is_float(own) and not np.isfinite(own.astype(np.float32)).all():
        wrong.append(f'{path} holds NaN or infinity, allowed: numbers')
    elif is_float(form):
      near = closest(path, unused[:_MOST]) if unused else 'none'
      wrong.append(f'{path} {_form(form)} is missing; unused: {near}')
    else:
      anew.append(path)
    leaves.append(own)
  wide = max(map(len, names), default=0)
  rows = [
    f'  {p:{wide}} {_form(forms[p])} ← {were.get(n, n)}'
    for p, n in names.items()
  ]
  if len(rows) > _MOST:
    rows[_MOST - 2 :] = [f'  … and {len(rows) - _MOST + 2} more']
  say(f'{len(names)} of {len(forms)} tensors of the model are there:', *rows)
  for what, few in (('Begin anew', anew), ('Not used', unused)):
    if few:
      say(f'  {what}: {len(few)} ({_few(few)})')
  if wrong:
    first, *rest = (shown(text, 400) for text in wrong)
    more = f' ({len(rest)} more: {"; ".join(rest)})' if rest else ''
    raise InputError(first + more)
  kept = [
    np.asarray(own, form.dtype) for own, form in zip(leaves, forms.values())
  ]
  return jax.tree.unflatten(jax.tree.structure(setup.shapes), kept)


def _names(
  forms: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, str]:
  """Of each path of a model the name in a file, behind one prefix a part.

  The prefix is what stands before the names of a part, for as many as can be.
  """
  names: dict[str, str] = {}
  left = [*forms]
  for part, others in _PARTS.items():
    own = [path for path in left if path.startswith(part)]
    bare = {path: path.removeprefix(part).replace('.', '/') for path in own}
    left = [path for path in left if path not in bare]
    usual = part, *others
    counts = dict.fromkeys(usual, 0)
    for end, name in itertools.product(bare.values(), found):
      if name == end or name.endswith(f'/{end}'):
        start = name.removesuffix(end)
        counts[start] = counts.get(start, 0) + 1
    most = max(counts.values())
    prefix, *rest = (start for start, n in counts.items() if n == most)
    if prefix not in usual and rest:
      raise InputError(
        f'{most} tensors are there several times, behind'
        f' {_few([prefix, *rest])}; allowed: one of them, by'
        f' --rename={prefix}(.*)={part}\\1'
      )
    names |= {p: prefix + b for p, b in bare.items() if prefix + b in found}
  return names


def _few(names: Sequence[str]) -> str:
  return ', '.join(map(shown, names[:3])) + ', …' * (len(names) > 3)


def _form(leaf: Any) -> str:
  return f'{leaf.dtype}{list(leaf.shape)}'
