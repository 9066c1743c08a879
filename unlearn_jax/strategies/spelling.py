"""Strategies as text: `retrain, finetune, top_k(k=45), my.module:mine(a=.3)`.

A factory's signature says what is allowed. Values are Python literals and are
never evaluated; a module that is named is imported. Models of one's own are
spelled by the same functions.
"""

import ast
from collections.abc import Callable, Mapping
import difflib
import hashlib
import importlib
import inspect
import pathlib
import re
import types
from typing import (
  Any,
  Literal,
  NamedTuple,
  Union,
  get_args,
  get_origin,
  get_type_hints,
)

from unlearn_jax.base import InputError, shown
from unlearn_jax.strategies import (
  distilling,
  opposing,
  perturbing,
  references,
  refreshing,
)
from unlearn_jax.strategies.base import Strategy

Factory = Callable[..., Strategy]
# In the order of a report.
FACTORIES: dict[str, Factory] = {
  factory.__name__: factory
  for factory in (
    references.retrain,
    references.finetune,
    references.scratch,
    perturbing.random_scalars,
    perturbing.top_k,
    perturbing.random_k,
    perturbing.random_top_k,
    references.eu_k,
    references.cf_k,
    refreshing.shrink_perturb,
    perturbing.msg,
    refreshing.ct,
    refreshing.l1_sparse,
    refreshing.noisy_finetune,
    opposing.neggrad_plus,
    opposing.sfron,
    opposing.salun,
    opposing.amun,
    opposing.boundary_shrink,
    distilling.scrub,
    distilling.regun,
    distilling.bad_teacher,
    refreshing.ssd,
  )
}
_NAME = re.compile(
  r'(?:(?P<module>[\w.]+):)?(?P<name>\w+)(?P<call>\(.*\))?', re.S
)
_KINDS = {
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  bool: 'True or False',
  type(None): 'None',
}


class Chosen(NamedTuple):
  """A strategy with its name and its parameters.

  Attributes:
    name: of the factory; of one from outside with its module.
    parameters: all of them, by name, defaults filled in.
    strategy: what the factory made of them.
    changed: those that are not the default's.
    source_sha256: of the file of a factory from outside; None of our own.
  """

  name: str
  parameters: dict[str, Any]
  strategy: Strategy
  changed: dict[str, Any]
  source_sha256: str | None = None

  @property
  def text(self) -> str:
    """As it is spelled, without defaults: `top_k(k=0.05)`."""
    return self.name + spelled(self.changed)

  @property
  def label(self) -> str:
    """What a report calls it: `Top-K (k=0.05)`."""
    tail = f' {spelled(self.changed)}' if self.changed else ''
    return self.strategy.label + tail

  def __reduce__(self):  # Functions of functions are not for another process.
    return _again, (self.text,)


def _again(text: str) -> Chosen:
  return parse(text)[0]


def spelled(parameters: Mapping[str, Any]) -> str:
  """Parameters as they stand behind a name: `(k=0.05)`, or nothing."""
  if not parameters:
    return ''
  return f'({", ".join(f"{n}={v!r}" for n, v in parameters.items())})'


def parse(text: str) -> list[Chosen]:
  """The strategies that a text names, in its order, each once.

  Args:
    text: separated by commas: a name of `FACTORIES`, with parameters as
      Python literals or without, or `module:name(…)` of a factory in a module
      of one's own.

  Returns:
    One `Chosen` a strategy.

  Raises:
    InputError: a name, parameter, type or value that is not allowed; the
      message is one line that says what is.

  Example:
    >>> [chosen.label for chosen in parse('finetune, top_k(k=.05, epsilon=1)')]
    ['Fine-tune only (K = 0)', 'Top-K (k=0.05, epsilon=1.0)']
  """
  found: dict[str, Chosen] = {}
  for part in _parts(text):
    chosen = _chosen(part)
    found.setdefault(chosen.text, chosen)
  if not found:
    raise InputError(f'no strategy, allowed: {", ".join(FACTORIES)}')
  return list(found.values())


def _parts(text: str) -> list[str]:
  """Split at the commas before which no bracket and no string is open."""
  parts = ['']
  for piece in text.split(','):
    try:
      call = re.sub(r'^\s*[\w.]+:', '', parts[-1]).strip()
      ast.parse(call or '0', mode='eval')
      parts.append(piece)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      parts[-1] += f',{piece}'
  return [part.strip() for part in parts if part.strip()]


def _chosen(part: str) -> Chosen:
  whole = _NAME.fullmatch(part)
  if whole is None:
    raise InputError(
      f'{shown(part)} is no strategy, allowed: name, name(parameter=literal) or'
      ' module:name(…)'
    )
  module, name = whole['module'], whole['name']
  source = None
  if module is None:
    if name not in FACTORIES:
      raise InputError(
        f'{shown(name)} is no strategy, allowed: {closest(name, FACTORIES)}'
      )
    factory = FACTORIES[name]
  else:
    factory, source = imported(module, name)
    name = f'{module}:{name}'
  given = arguments(name, whole['call'] or '()', factory)
  return make(name, factory, given, source)


def make(
  name: str,
  factory: Factory,
  given: Mapping[str, Any],
  source_sha256: str | None = None,
) -> Chosen:
  """A strategy of a factory, its parameters checked.

  Raises:
    InputError: a parameter of another type, or one that the factory refuses.
  """
  typed, defaults = typed_as(name, factory, given), _defaults(factory)
  try:
    strategy = factory(**typed)
  except (ValueError, TypeError) as error:
    raise InputError(f'{name}: {error}') from error
  if not isinstance(strategy, Strategy):
    raise InputError(
      f'{name} returned {shown(type(strategy).__name__)}, allowed: a Strategy'
    )
  changed = changes(factory, typed)
  parameters = {**defaults, **typed}
  return Chosen(name, parameters, strategy, changed, source_sha256)


def _defaults(factory: Callable[..., Any]) -> dict[str, Any]:
  every = inspect.signature(factory).parameters.items()
  return {n: own.default for n, own in every if own.default is not own.empty}


def changes(
  factory: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
  """Those of some parameters that are not the default's, in their order."""
  names, defaults = inspect.signature(factory).parameters, _defaults(factory)
  return {
    key: given[key]
    for key in names
    if key in given and (key not in defaults or given[key] != defaults[key])
  }


def typed_as(
  name: str, factory: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
  """Parameters of the types that a factory's hints say, or an `InputError`."""
  hints = _hints(factory)
  return {
    key: _typed(f'{name}: {key}', value, hints.get(key, Any))
    for key, value in given.items()
  }


def imported(
  module: str,
  name: str,
  fits: Callable[[Any], bool] = inspect.isfunction,
) -> tuple[Any, str]:
  """A factory from outside, and the digest of the file that it is from."""
  try:
    home = importlib.import_module(module)
  except Exception as error:  # Whatever that module does when imported.
    raise InputError(
      f'{shown(module)} cannot be imported: {type(error).__name__}:'
      f' {shown(error)}; allowed: a module on the path of Python'
    ) from error
  factory = member(home, name, fits)
  # Modules within Python itself name files that are not there.
  file = pathlib.Path(inspect.getsourcefile(factory) or '')
  content = file.read_bytes() if file.is_file() else b''
  return factory, hashlib.sha256(content).hexdigest()


def member(home: Any, name: str, fits: Callable[[Any], bool]) -> Any:
  """What a module calls by a name; an `InputError` names the nearest."""
  found = getattr(home, name, None)
  if not fits(found):
    known = [n for n, value in vars(home).items() if fits(value)]
    raise InputError(
      f'{home.__name__} has no {shown(name)}, allowed: {closest(name, known)}'
    )
  return found


def arguments(
  name: str, call: str, factory: Callable[..., Any]
) -> dict[str, Any]:
  """Literals by parameter, of a text such as `(k=0.05)`."""
  try:
    tree = ast.parse(f'f{call}', mode='eval').body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
      raise ValueError('more than one call is not allowed')
    values = [ast.literal_eval(argument) for argument in tree.args]
    named = {
      str(keyword.arg): ast.literal_eval(keyword.value)
      for keyword in tree.keywords
      if keyword.arg is not None
    }
    if len(named) != len(tree.keywords):
      raise ValueError('** is not allowed')
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
    raise InputError(
      f'{name}{shown(call)}, allowed: Python literals, as in'
      f' {signature(name, factory)}'
    ) from None
  parameters = inspect.signature(factory).parameters
  for key in named:
    if key not in parameters:
      raise InputError(
        f'{name} has no parameter {shown(key)}, allowed:'
        f' {closest(key, parameters) if parameters else "none"}'
      )
  try:
    bound = inspect.signature(factory).bind(*values, **named)
  except TypeError as error:
    raise InputError(
      f'{name}{shown(call)}: {error}, allowed: {signature(name, factory)}'
    ) from None
  return dict(bound.arguments)


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
  try:
    return get_type_hints(factory)
  except Exception:  # Names that only a type checker knows.
    return {}


def _typed(name: str, value: Any, hint: Any) -> Any:
  """The value as the hint has it; any, where the hint is of another kind."""
  if get_origin(hint) is Literal:
    if value not in get_args(hint):
      allowed = closest(str(value), [str(word) for word in get_args(hint)])
      raise InputError(f'{name}={shown(repr(value))}, allowed: {allowed}')
    return value
  several = get_origin(hint) in (Union, types.UnionType)
  kinds = get_args(hint) if several else (hint,)
  if not all(kind in _KINDS for kind in kinds):
    return value
  allowed = ' or '.join(_KINDS[kind] for kind in kinds)
  if type(value) is int and abs(value) >= 2**63:
    # No float may hold it, and Python does not print any.
    raise InputError(f'{name}={shown(value)}, allowed: {allowed} of 64 bits')
  if type(value) in kinds:
    return value
  if type(value) is int and float in kinds:
    return float(value)
  raise InputError(f'{name}={shown(repr(value))}, allowed: {allowed}')


def closest(value: str, allowed: Any) -> str:
  """The allowed names, the nearest to `value` first in words.

  Example:
    >>> closest('topk', ['top_k', 'finetune'])
    'did you mean top_k? one of top_k, finetune'
  """
  near = difflib.get_close_matches(value, list(allowed), 1, 0.5)
  hint = f'did you mean {near[0]}? ' if near else ''
  return f'{hint}one of {", ".join(allowed)}'


def signature(name: str, factory: Callable[..., Any]) -> str:
  """A factory as `--help` shows it: `eu_k(k=5, learning_rate=None, …)`."""
  parts = [
    key if p.default is p.empty else f'{key}={p.default!r}'
    for key, p in inspect.signature(factory).parameters.items()
  ]
  return f'{name}({", ".join(parts)})'
