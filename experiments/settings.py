"""Settings: dataclass fields from which flags, JSON and keys are made.

A field says its default, its help, and what it may be. All that is made of
that is made here and nowhere else.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import math
import re
import types
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from absl import flags
import msgspec

from unlearn_jax.base import InputError, shown
from unlearn_jax.strategies import closest

T = TypeVar('T')
_MOST = 2**31 - 1  # of what is counted on the devices


class FlagError(InputError):
  """A flag whose value is not allowed."""

  def __init__(self, name: str, value: Any, allowed: str):
    super().__init__(f'--{name}={shown(value)}, allowed: {allowed}')

  def __reduce__(self):
    return InputError, (str(self),)  # As another process sees it.


@dataclasses.dataclass(frozen=True)
class Range:
  """What a number may be; NaN and infinity never are."""

  least: float
  most: float = math.inf
  ends: bool = True  # whether the two may be, too

  def holds(self, value: float) -> bool:
    """Whether the value is inside."""
    if value in (self.least, self.most):
      return self.ends and value < math.inf
    return self.least < value < self.most

  def __str__(self) -> str:
    """As a sentence has it.

    Example:
      >>> print(Range(1), Range(1, 9), Range(0, 1, ends=False), sep='; ')
      1 or more; 1 to 9; above 0 and below 1
    """
    if not self.ends:
      return f'above {self.least} and below {self.most}'
    if self.most == math.inf:
      return f'{self.least} or more'
    return f'{self.least} to {self.most}'


COUNT, WHOLE = Range(1, _MOST), Range(0, _MOST)
SHARE = RATE = Range(0, 1, ends=False)


def setting(
  default: Any, text: str, allowed: Range | tuple[str, ...] | None = None
) -> Any:
  """A field: its default, its help, and what it may be."""
  return dataclasses.field(
    default=default, metadata={'help': text, 'allowed': allowed}
  )


def fields(kind: type) -> Iterator[tuple[str, dataclasses.Field, Any]]:
  """(name, field, type) of every setting of a dataclass, sections flattened."""
  hints = get_type_hints(kind)
  for field in dataclasses.fields(kind):
    if dataclasses.is_dataclass(hints[field.name]):
      yield from fields(hints[field.name])
    else:
      yield field.name, field, hints[field.name]


def define(kind: type, own: flags.FlagValues = flags.FLAGS) -> None:
  """An absl flag for every setting of a dataclass."""
  defines = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for name, field, hint in fields(kind):
    make: Any = defines[_plain(hint)]
    make(name, field.default, field.metadata['help'], flag_values=own)


def _plain(hint: Any) -> type:
  """`int` of `int | None`, `str` of words."""
  if get_origin(hint) is Literal:
    return str
  if get_origin(hint) is types.UnionType:
    (hint,) = [kind for kind in get_args(hint) if kind is not type(None)]
  return hint


def read(kind: type[T], own: flags.FlagValues = flags.FLAGS) -> T:
  """The dataclass that the flags say, every setting checked."""
  values = {}
  for field in dataclasses.fields(kind):  # type: ignore[arg-type]
    hint = get_type_hints(kind)[field.name]
    if dataclasses.is_dataclass(hint):
      values[field.name] = read(hint, own)  # type: ignore[arg-type]
    else:
      values[field.name] = _checked(field, getattr(own, field.name))
  return kind(**values)


def _checked(field: dataclasses.Field, value: Any) -> Any:
  if isinstance(value, str):
    try:
      value.encode()  # As reports and keys have it.
    except UnicodeEncodeError:
      raise FlagError(field.name, value, 'text in UTF-8') from None
    if '://' in value and field.name != 'scheduler':
      raise FlagError(field.name, value, 'no URL, but a path of this machine')
  allowed = field.metadata['allowed']
  if value is None or allowed is None:
    return value
  if isinstance(allowed, Range):
    if not allowed.holds(value):
      raise FlagError(field.name, value, str(allowed))
  else:
    require_word(field.name, value, allowed)
  return value


def require_word(
  name: str, value: str, words: Sequence[str], more: str = ''
) -> None:
  """Raises a `FlagError` unless a flag has one of some values."""
  if value not in words:
    raise FlagError(name, value, closest(value, words) + more)


def pair(name: str, text: str, most: int) -> tuple[int, int]:
  """Two whole numbers above 0, such as `32,48`."""
  found = re.fullmatch(r'\s*(\d{1,9})\s*,\s*(\d{1,9})\s*', text, re.ASCII)
  first, second = map(int, found.groups()) if found else (0, 0)
  if 0 < first <= most and 0 < second <= most:
    return first, second
  raise FlagError(
    name, text, f'two whole numbers from 1 to {most}, as in 32,32'
  )


def number(name: str, text: str, most: float, *words: str) -> Any:
  """A number, a quotient such as 8/255, or one of the words; 'none' is None."""
  if text in words:
    return None if text == 'none' else text
  with contextlib.suppress(ValueError, ArithmeticError):  # Division by 0, say.
    above, _, below = text.partition('/')
    if 0 < (found := float(above) / float(below or 1)) <= most:
      return found
  allowed = f'a number or quotient above 0 and at most {most:g}'
  raise FlagError(name, text, ', or '.join([allowed, *words]))


def taken(kind: type[T], asked: Any, **own: Any) -> T:
  """A dataclass of what `asked` has by the same names, and of what is `own`."""
  every = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
  told = {name: getattr(asked, name) for name in every if hasattr(asked, name)}
  return kind(**{**told, **own})


def names(kind: type) -> list[str]:
  """The flags of a dataclass."""
  return [name for name, _, _ in fields(kind)]


def flat(config: Any) -> dict[str, Any]:
  """Every setting by its flag's name, in JSON's types."""
  found: dict[str, Any] = {}
  for name, value in vars(config).items():
    found |= flat(value) if dataclasses.is_dataclass(value) else {name: value}
  return found


def key(value: Any) -> str:
  """Twelve hex digits of a value in JSON's types, or of dataclasses.

  Example:
    >>> key({'a': 1, 'b': 2.0}) == key({'b': 2.0, 'a': 1})
    True
  """
  text = msgspec.json.encode(value, order='deterministic')
  return hashlib.sha256(text).hexdigest()[:12]
