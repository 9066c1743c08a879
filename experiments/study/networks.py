"""Models of one's own: `FILE.py:Net(width=32)` or `pkg.module:factory(…)`.

A Flax Linen or NNX module, or a function that returns one, or a
`unlearn_jax.Model`. What is named is run, so a manifest names it and no more:
to have it run is what `--model` is for, and the manifest says whether it is
still the same.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import hashlib
import inspect
import pathlib
import re
import sys
import types
from typing import Any, NamedTuple, cast, get_type_hints

from flax import linen as nn
import jax
import jax.numpy as jnp

from unlearn_jax.base import (
  InputError,
  Model,
  require_file,
  shown,
  tensor_paths,
)
from unlearn_jax.models import from_linen
from unlearn_jax.strategies import spelling
from ..workdir.finished import Facts

_NAME = re.compile(r'(?P<home>[^:()]+):(?P<name>\w+)(?P<call>\(.*\))?', re.S)
_KINDS = 'a Flax Linen module, one of NNX that takes rngs, or a Model'


class Own(NamedTuple):
  """A model from outside."""

  name: str  # as it is spelled, without its file's folder and without defaults
  sha256: str  # of its file
  model: Model
  module: bool  # Whether of Linen or NNX, which see pixels in [0, 1].


def stamp(text: str) -> str:
  """Digest of the file that a spelling names, as it is now; '' of others."""
  path = pathlib.Path(text.partition(':')[0])
  if path.suffix != '.py' or not path.is_file():
    return ''
  return hashlib.sha256(path.read_bytes()).hexdigest()


def read(
  text: str,
  num_classes: int,
  image_shape: Sequence[int],
  mean: Sequence[float],
  std: Sequence[float],
) -> Own:
  """The model that a text spells, for such images.

  Parameters `num_classes`, `image_shape`, `mean` and `std` that have no default
  and no value are those of the data. Linen and NNX modules see pixels in
  [0, 1]; all else is their own business.

  Raises:
    InputError: in one line, what the text, the file or the network lacks.
  """
  shape = tuple(image_shape)
  try:
    numbers = num_classes, shape, tuple(mean), tuple(std)
    return _read(text, stamp(text), *numbers)
  except InputError as error:
    raise InputError(f'--model={shown(text)}: {error}') from error
  except Exception as error:  # Whatever that code does.
    raise InputError(
      f'--model={shown(text)}: {_first(error)}; allowed: a network that maps'
      f' float32 [B, {", ".join(map(str, shape))}] to [B, {num_classes}]'
    ) from error


def _first(error: Exception) -> str:
  """Its type and first line."""
  text = str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {shown(text)}'


def again(facts: Facts, text: str | None) -> Own:
  """The model of a manifest, from the code that `--model` names."""
  if text is None:
    raise InputError(
      f'its network is code, which no manifest has run; allowed:'
      f' --model={shown(facts.model)}, with the path of that file'
    )
  numbers = facts.num_classes, facts.image_shape
  own = read(text, *numbers, facts.pixel_mean, facts.pixel_std)
  if (own.name, own.sha256) != (facts.model, facts.model_sha256):
    raise InputError(
      f'--model={shown(text)} is {own.name} of a file with SHA-256'
      f' {own.sha256[:12]}…; allowed: {shown(facts.model)} of that with'
      f' {shown(facts.model_sha256, 12)}, as it was trained'
    )
  return own


@functools.lru_cache(maxsize=8)
def _read(
  text: str,
  stamp: str,
  num_classes: int,
  shape: tuple[int, ...],
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Own:
  """The same as long as the file is."""
  whole = _NAME.fullmatch(text)
  if whole is None:
    raise InputError('allowed: FILE.py:Net(width=32) or module:factory(…)')
  home, attribute, call = whole.groups()
  if home.endswith('.py'):
    kind, stamp = _of_file(pathlib.Path(home), attribute)
    home = pathlib.Path(home).name
  else:
    kind, stamp = spelling.imported(home, attribute, _makes)
  offered = {
    'num_classes': num_classes,
    'image_shape': shape,
    'mean': mean,
    'std': std,
  }
  name, make = f'{home}:{attribute}', _keywords(kind, offered)
  typed = spelling.typed_as(
    name, make, spelling.arguments(name, call or '()', make)
  )
  bound = inspect.signature(make).bind(**typed)
  bound.apply_defaults()
  model, module = _model(name, kind, bound.arguments, shape)
  _check(model, num_classes, shape)
  changed = spelling.spelled(spelling.changes(make, typed))
  return Own(name + changed, stamp, model, module)


def _makes(thing: Any) -> bool:
  return inspect.isfunction(thing) or inspect.isclass(thing)


def _of_file(path: pathlib.Path, name: str) -> tuple[Any, str]:
  """What a file calls by a name, and its digest; run once for each content."""
  require_file(path)
  content = path.read_bytes()
  sha256 = hashlib.sha256(content).hexdigest()
  known = f'{path.stem}_{sha256[:12]}'
  if known not in sys.modules:
    home = types.ModuleType(known)
    home.__file__ = str(path)
    sys.modules[known] = home  # Where dataclasses look for the names of types.
    try:
      exec(compile(content, str(path), 'exec'), vars(home))
      home.__name__ = path.name  # For messages.
    except Exception as error:
      del sys.modules[known]
      raise InputError(
        f'cannot be run: {_first(error)}; allowed: a file of Python'
      ) from error
  return spelling.member(sys.modules[known], name, _makes), sha256


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
  """Of a function, or of what makes a class's instances."""
  if not inspect.isclass(kind):
    return dict(inspect.signature(kind).parameters)
  _, *rest = inspect.signature(kind.__init__).parameters.items()
  return dict(rest)


def _keywords(kind: Any, offered: Mapping[str, Any]) -> Callable[..., Any]:
  """What a user may say of it, in keywords, as the signature of a function."""

  def make() -> None:
    pass

  own, found, kinds = cast(Any, make), [], inspect.Parameter
  linen = inspect.isclass(kind) and issubclass(kind, nn.Module)
  hidden = {'rngs', *(('parent', 'name') if linen else ())}
  for name, each in _parameters(kind).items():
    if each.default is each.empty:
      each = each.replace(default=offered.get(name, each.empty))
    if name not in hidden and each.kind not in (
      kinds.VAR_POSITIONAL,
      kinds.VAR_KEYWORD,
    ):
      found.append(each.replace(kind=kinds.KEYWORD_ONLY))
  own.__signature__ = inspect.Signature(found)
  plain = linen or not inspect.isclass(kind)
  with contextlib.suppress(Exception):  # Names that only a type checker knows.
    own.__annotations__ = get_type_hints(kind if plain else kind.__init__)
  return own


def _model(
  name: str, kind: Any, values: Mapping[str, Any], shape: Sequence[int]
) -> tuple[Model, bool]:
  """The model, and whether a module was made one."""
  if 'rngs' in _parameters(kind):
    from unlearn_jax.models.nnx import from_nnx  # Takes a while.

    made = functools.partial(kind, **values)
    return from_nnx(lambda rngs: made(rngs=rngs), shape, scale=255.0), True
  made = kind(**values)
  if isinstance(made, nn.Module):
    return from_linen(made, shape, scale=255.0), True
  if not isinstance(made, Model):
    raise InputError(
      f'{name} gave {shown(type(made).__name__)}, allowed: {_KINDS}'
    )
  return made, False


def _check(model: Model, classes: int, shape: Sequence[int]) -> None:
  """Refuses what stages could not work with."""
  if model.init is None:
    raise InputError('a Model without init, allowed: one that can be retrained')
  state = jax.eval_shape(model.init, jax.random.key(0))
  paths = tensor_paths(state.params)
  if sorted(model.order) != sorted(paths):
    raise InputError(
      f'a Model of order={shown(model.order)}, allowed: each of its'
      f' {len(paths)} tensors once, in definition order'
    )
  images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
  for train in (False, True):
    apply = functools.partial(lambda t, s, x: model.apply(s, x, t), train)
    logits, carried = jax.eval_shape(apply, state, images)
    if logits.shape != (2, classes):
      raise InputError(
        f'logits {list(logits.shape)} of 2 images of {classes} classes,'
        f' allowed: [2, {classes}]'
      )
    # It raises where there are other tensors.
    jax.tree.map(_alike, state.batch_stats, carried)


def _alike(before: Any, after: Any) -> None:
  if (before.shape, before.dtype) != (after.shape, after.dtype):
    raise InputError(
      f'it is given {before.dtype}{list(before.shape)} and hands on'
      f' {after.dtype}{list(after.shape)}, allowed: what it is given'
    )
