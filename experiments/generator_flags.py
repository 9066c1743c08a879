"""The flags of generators, which two binaries share, and what they may be."""

from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from experiments import flags
from unlearn_jax import parallel
from unlearn_jax.base import Splits
from unlearn_jax.degree import MIN_SEEDS
from unlearn_jax.spd_gan import GeneratorSettings

_DEFAULTS = GeneratorSettings()
# Which flag says which setting, where both have no name of their own.
NAMES = {
  'epochs': 'epochs',
  'batch_size': 'batch_size',
  'learning_rate': 'learning_rate',
  'width': 'generator_width',
  'seeds': 'seeds',
  'limit': 'limit',
}
# The same beside an unlearning, whose flags have these names already.
BESIDE_UNLEARNING = {name: f'degree_{name}' for name in NAMES}


def define(
  names: Mapping[str, str] = NAMES,
  own: absl_flags.FlagValues = absl_flags.FLAGS,
) -> None:
  """The flags of generators.

  Args:
    names: what the flags are called.
    own: where they are defined.
  """
  absl_flags.DEFINE_string(
    'max_perturbation',
    '8/255',
    "L∞ bound in the pixel range's unit: above 0 and at most 1, or none"
    + (', or several of them.' if names is BESIDE_UNLEARNING else '.'),
    flag_values=own,
  )
  absl_flags.DEFINE_string(
    'cap',
    'default',
    'Nats up to which M_UL’s loss counts; default: 2·log C; or none.',
    flag_values=own,
  )
  absl_flags.DEFINE_float('eta', _DEFAULTS.eta, 'η of Eq. 13.', flag_values=own)
  absl_flags.DEFINE_float(
    names['learning_rate'],
    _DEFAULTS.learning_rate,
    "Adam's, of generators.",
    flag_values=own,
  )
  numbers = {
    'epochs': (_DEFAULTS.epochs, 'Passes over half of the forget set.'),
    'batch_size': (_DEFAULTS.batch_size, 'Images a step, all devices.'),
    'width': (_DEFAULTS.width, "Channels of G's first layer."),
    'seeds': (MIN_SEEDS, f'Generators a pair of models, {MIN_SEEDS} or more.'),
    'limit': (2048, 'At most so many retained and test images are scored.'),
  }
  for name, (default, text) in numbers.items():
    absl_flags.DEFINE_integer(names[name], default, text, flag_values=own)


def define_beside_unlearning() -> None:
  """The same for `experiments.unlearn`, and whether there are any."""
  absl_flags.DEFINE_bool(
    'degree', False, 'Measure the SPD-GAN unlearning degree of each strategy.'
  )
  define(BESIDE_UNLEARNING)


def settings(
  values: Any, names: Mapping[str, str] = NAMES
) -> list[GeneratorSettings]:
  """The `GeneratorSettings` that the flags say, one a bound; all are checked.

  Args:
    values: the parsed flags.
    names: what they are called.

  Raises:
    FlagError: the first that is out of range.
  """
  for name, least in (('seeds', MIN_SEEDS), ('limit', 1)):
    value = getattr(values, names[name])
    if not least <= value < 2**31:
      raise flags.FlagError(names[name], value, f'{least} or more')
  bounds = list(dict.fromkeys(values.max_perturbation.split(',')))
  if len(bounds) > 1 and names is NAMES:
    raise flags.FlagError('max_perturbation', values.max_perturbation, 'one')
  for name in ('epochs', 'batch_size', 'width'):
    value = getattr(values, names[name])
    if value >= 2**31:
      raise flags.FlagError(names[name], value, f'1 to {2**31 - 1}')
  return [_settings(values, bound, names) for bound in bounds]


def require_two_batches(
  values: Any, names: Mapping[str, str], splits: Splits
) -> None:
  """Raises a `FlagError` if half of D_UL or of the test images is no batch."""
  flag, size = names['batch_size'], getattr(values, names['batch_size'])
  for name, examples in (('forget', splits.forget), ('test', splits.test)):
    if 2 * size > examples.size:
      raise flags.FlagError(
        flag, size, f'at most {examples.size // 2}, half of the {name} set'
      )


def _settings(
  values: Any, bound: str, names: Mapping[str, str]
) -> GeneratorSettings:
  flag = names['batch_size']
  try:
    parallel.per_device(getattr(values, flag), 'batch_size')
    return GeneratorSettings(
      eta=values.eta,
      cap=_number('cap', values.cap, ('default', 'none')),
      max_perturbation=_number('max_perturbation', bound, ('none',)),
      **{
        name: getattr(values, names[name])
        for name in ('epochs', 'batch_size', 'learning_rate', 'width')
      },
    )
  except ValueError as error:
    # 'name=value, allowed: …', as a FlagError says it.
    name, _, rest = str(error).partition('=')
    value, _, allowed = rest.partition(', allowed: ')
    allowed = allowed.replace('None', 'none')
    raise flags.FlagError(names.get(name, name), value, allowed) from None


def _number(name: str, text: str, words: tuple[str, ...]) -> Any:
  """A number, a quotient such as 8/255, or one of the words."""
  if text in words:
    return None if text == 'none' else text
  try:
    above, _, below = text.partition('/')
    return float(above) / float(below or 1)
  except (ValueError, ArithmeticError):  # Division by 0 or beyond floats.
    allowed = f'a number, a quotient such as 8/255, or {" or ".join(words)}'
    raise flags.FlagError(name, text, allowed) from None
