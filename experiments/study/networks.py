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
import importlib.util
import inspect
import pathlib
import re
import sys
import types
from typing import Any, NamedTuple, get_type_hints

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.workdir.finished import Facts
from unlearn_jax.base import (
  InputError,
  Model,
  require_file,
  shown,
  tensor_paths,
)
from unlearn_jax.models import from_linen
from unlearn_jax.strategies import spelling

_NAME = re.compile(r'(?P<home>[^:()]+):(?P<name>\w+)(?P<call>\(.*\))?', re.S)
_KINDS = 'a Flax Linen module, an NNX module or an unlearn_jax.Model'
# Of modules, the digest of the file when it was first looked at.
_FIRST: dict[str, str] = {}


class Own(NamedTuple):
  """A model from outside."""

  name: str  # as it is spelled, without its file's folder and without defaults
  sha256: str  # of its file
  model: Model


def stamp(text: str) -> str:
  """Digest of the file that a spelling names, as it is now; '' of others."""
  home, colon, _ = text.partition(':')
  file: pathlib.Path | None = pathlib.Path(home)
  if not home.endswith('.py'):
    with contextlib.suppress(Exception):
      found = importlib.util.find_spec(home) if colon else None
      file = pathlib.Path(found.origin) if found and found.origin else None
  if colon and file and file.is_file():
    return hashlib.sha256(file.read_bytes()).hexdigest()
  return ''


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
  offered = {
    'num_classes': num_classes,
    'image_shape': tuple(image_shape),
    'mean': tuple(mean),
    'std': tuple(std),
  }
  try:
    return _read(text, stamp(text), tuple(offered.items()))
  except InputError as error:
    raise InputError(f'--model={shown(text)}: {error}') from error


def again(facts: Facts, text: str | None) -> Model:
  """The model of a manifest, from the code that `--model` names."""
  if text is None:
    raise InputError(
      f'its network is code, which no manifest has run; allowed:'
      f' --model={shown(facts.model)}, with the path of that file'
    )
  own = read(
    text,
    facts.num_classes,
    facts.image_shape,
    facts.pixel_mean,
    facts.pixel_std,
  )
  if (own.name, own.sha256) != (facts.model, facts.model_sha256):
    raise InputError(
      f'--model={shown(text)} is {own.name} of a file with SHA-256'
      f' {own.sha256[:12]}…; allowed: {shown(facts.model)} of that with'
      f' {shown(facts.model_sha256, 12)}, as it was trained'
    )
  return own.model


@functools.lru_cache(maxsize=8)
def _read(text: str, sha256: str, offered: tuple[tuple[str, Any], ...]) -> Own:
  whole = _NAME.fullmatch(text)
  if whole is None:
    raise InputError('allowed: FILE.py:Net(width=32) or module:factory(…)')
  home, attribute = whole['home'], whole['name']
  if home.endswith('.py'):
    kind, sha256 = _of_file(pathlib.Path(home), attribute)
    home = pathlib.Path(home).name
  else:
    kind, sha256 = spelling.imported(home, attribute, _makes)
    if _FIRST.setdefault(home, sha256) != sha256:
      raise InputError('its file has changed meanwhile; allowed: a new process')
  name, make = f'{home}:{attribute}', _keywords(kind, dict(offered))
  given = spelling.arguments(name, whole['call'] or '()', make)
  typed = spelling.typed_as(name, make, given)
  bound = inspect.signature(make).bind(**typed)
  bound.apply_defaults()
  changed = spelling.spelled(spelling.changes(make, typed))
  classes, shape = dict(offered)['num_classes'], dict(offered)['image_shape']
  try:
    model = _model(name, kind, dict(bound.arguments), shape)
    _check(model, classes, shape)
  except InputError:
    raise
  except Exception as error:  # Whatever that code does.
    first = shown(str(error).strip().split('\n')[0])
    raise InputError(
      f'{type(error).__name__}: {first}; allowed: a network that maps float32'
      f' [B, {", ".join(map(str, shape))}] to logits [B, {classes}]'
    ) from error
  return Own(name + changed, sha256, model)


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
    except BaseException as error:
      del sys.modules[known]
      if not isinstance(error, Exception):
        raise
      first = shown(str(error).split('\n')[0])
      raise InputError(
        f'cannot be run: {type(error).__name__}: {first}; allowed: a file of'
        ' Python'
      ) from error
  return spelling.member(sys.modules[known], name, _makes), sha256


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
  """Of a function, or of what makes a class's instances."""
  if not inspect.isclass(kind):
    return dict(inspect.signature(kind).parameters)
  _, *rest = inspect.signature(kind.__init__).parameters.items()
  return dict(rest)


def _keywords(
  kind: Callable[..., Any], offered: Mapping[str, Any]
) -> Callable[..., Any]:
  """The same with what a user may say of it as its signature, in keywords."""
  linen = inspect.isclass(kind) and issubclass(kind, nn.Module)
  hidden = {'rngs', *(('parent', 'name') if linen else ())}

  def make(**given: Any) -> Any:
    return kind(**given)

  own: Any = make
  own.__signature__ = inspect.Signature(
    [
      parameter.replace(
        kind=parameter.KEYWORD_ONLY,
        default=offered.get(name, parameter.empty)
        if parameter.default is parameter.empty
        else parameter.default,
      )
      for name, parameter in _parameters(kind).items()
      if name not in hidden
      and parameter.kind
      not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
  )
  typed: Any = kind if linen or not inspect.isclass(kind) else kind.__init__
  with contextlib.suppress(Exception):  # Names that only a type checker knows.
    own.__annotations__ = get_type_hints(typed)
  return own


def _model(
  name: str,
  kind: Callable[..., Any],
  values: Mapping[str, Any],
  shape: Sequence[int],
) -> Model:
  if 'rngs' in _parameters(kind):
    from unlearn_jax.models.nnx import from_nnx  # Takes a while.

    return from_nnx(lambda rngs: kind(**values, rngs=rngs), shape, scale=255.0)
  made = kind(**values)
  if isinstance(made, Model):
    return made
  if isinstance(made, nn.Module):
    return from_linen(made, shape, scale=255.0)
  raise InputError(
    f'{name} gave {shown(type(made).__name__)}, allowed: {_KINDS}; one of NNX'
    ' takes rngs'
  )


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
    logits, carried = jax.eval_shape(
      lambda s, x, train=train: model.apply(s, x, train), state, images
    )
    if logits.shape != (2, classes):
      raise InputError(
        f'logits {list(logits.shape)} of 2 images of {classes} classes,'
        f' allowed: [2, {classes}]'
      )
    same = jax.tree.map(
      lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
      *(state.batch_stats, carried),
    )
    if not all(jax.tree.leaves(same)):
      raise InputError(
        'what it carries along changes its form in a call, allowed: the same'
        f' tensors (train={train})'
      )
