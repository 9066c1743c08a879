"""The flags that the binaries share, and what they are allowed to be."""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import hashlib
import json
import pathlib
import sys
from typing import Any

from absl import flags

from experiments import cluster, partials
from unlearn_jax import models, parallel
from unlearn_jax.base import shown
from unlearn_jax.recipes import RECIPES
from unlearn_jax.strategies import CHOICES, STRATEGIES, Settings

_DEFAULTS = Settings()
# The modules that define flags for several binaries.
_ROOMS = (__name__, 'experiments.generator_flags')
# Runs behind one number; each costs a source and as many strategies.
_MOST_SEEDS = 1000
_MOST = 2**31 - 1  # of what is counted on the devices


class FlagError(Exception):
  """A flag whose value is not allowed."""

  def __init__(self, name: str, value: Any, allowed: str):
    super().__init__(f'--{name}={shown(value)}, allowed: {allowed}')


def _by(field: str) -> str:
  return 'default ' + ', '.join(
    f'{getattr(recipe, field)} ({name})' for name, recipe in RECIPES.items()
  )


def define_data_and_model() -> None:
  """Which data, which model, where results go, and how the source is made."""
  flags.DEFINE_string(
    'dataset',
    'digits',
    'digits, a TFDS name such as cifar10, npz:FILE or folder:DIR.',
  )
  flags.DEFINE_string('data_dir', None, "TFDS directory; default is TFDS's.")
  flags.DEFINE_string(
    'raw_dir',
    None,
    'Folder with archives downloaded by hand, to prepare a data set from.',
  )
  flags.DEFINE_integer(
    'train_subset', None, 'Use this many training examples only.'
  )
  flags.DEFINE_integer(
    'device_data_mb',
    None,
    'Images of more megabytes (10⁶ bytes) come from the host in blocks;'
    " default: half of a GPU's or TPU's memory, no limit on a CPU.",
  )
  flags.DEFINE_string('model', 'cnn', f'One of {", ".join(models.FAMILIES)}.')
  flags.DEFINE_integer(
    'width', None, "Channels of the first layer; 64 is the paper's ResNet18."
  )
  flags.DEFINE_string(
    'workdir', None, 'Where results go; default runs/DATASET-MODEL.'
  )
  define_save_seconds()
  flags.DEFINE_string(
    'dtype', 'float32', 'Of activations: float32 or bfloat16.'
  )
  flags.DEFINE_string(
    'recipe',
    'paper',
    'How source and Retrain are trained: paper (Adam, nothing augmented, the'
    ' training set remembered) or standard (SGD with momentum, cosine, flips'
    ' and crops). It sets the four flags that follow where they are not given.',
  )
  flags.DEFINE_integer(
    'train_epochs', None, f'Epochs of source and Retrain; {_by("epochs")}.'
  )
  flags.DEFINE_float(
    'train_learning_rate', None, f'Theirs; {_by("learning_rate")}.'
  )
  flags.DEFINE_bool(
    'augment', None, f'Flips and crops in training; {_by("augment")}.'
  )
  flags.DEFINE_integer(
    'batch_size', None, f'Examples a step, all devices; {_by("batch_size")}.'
  )
  flags.DEFINE_float('forget_fraction', 0.1, 'Share of D that is forgotten.')
  flags.DEFINE_string(
    'forget_ids', None, 'File with one example index or id a line.'
  )
  flags.DEFINE_integer('seed', 0, 'First seed; run i adds i to each seed.')
  for name in ('split', 'source', 'unlearn'):
    flags.DEFINE_integer(
      f'{name}_seed', None, f'Seed of the {name} alone; default --seed.'
    )


def define_save_seconds(own: flags.FlagValues = flags.FLAGS) -> None:
  """How often a running training is saved."""
  flags.DEFINE_float(
    'save_seconds',
    partials.SAVE_SECONDS,
    'Seconds from one save of a running training to the next; 0: every epoch.',
    flag_values=own,
  )


def check_save_seconds(values: Any) -> None:
  """The same, of what was given."""
  _require(values, 'save_seconds', lambda v: 0 <= v < float('inf'), '0 or more')


def define_processes() -> None:
  """Which process of a run of several this is."""
  flags.DEFINE_string(
    'coordinator',
    None,
    'host:port of process 0, for a run of several processes. Under srun, mpirun'
    ' and on TPUs of GKE it is found, as are the two flags that follow.',
  )
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
  flags.DEFINE_float(
    'join_seconds', 300.0, 'How long processes wait for each other to start.'
  )


# What may differ between the processes of a run: the last are places.
_OWN = ('coordinator', 'process_id', 'join_seconds', 'data_dir', 'raw_dir')


def _word(values: Any) -> str:
  """The same in all processes whose flags are the same."""
  told = {
    name: shown(values[name].value, 100_000)
    for name in _defined(values)
    if name not in _OWN
  }
  return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def place(values: Any) -> cluster.Place | None:
  """This process's place among several; None where it is the only one.

  Raises:
    FlagError: one of the flags is out of range, or not all are given.
  """
  if 'coordinator' not in values:
    return None
  _require(
    values,
    'join_seconds',
    lambda v: 0 < v < 86400,
    'above 0 and below 86400, in seconds',
  )
  names = ('coordinator', 'num_processes', 'process_id')
  given = [name for name in names if getattr(values, name) is not None]
  for name in names:
    if given and name not in given:
      raise FlagError(name, '', f'a value, because --{given[0]} is given')
  if not given:
    found = cluster.detected(values.join_seconds)
    if found is None:
      return None
    seconds = values.join_seconds
    word = _word(values)
    return dataclasses.replace(found, flags=word, join_seconds=seconds)
  address, count = values.coordinator, values.num_processes
  host, _, port = address.rpartition(':')
  known = port.isascii() and port.isdecimal() and len(port) < 6
  if not (host and known and 0 < int(port) < 65536):
    raise FlagError('coordinator', address, 'host:port of process 0')
  _require(values, 'num_processes', lambda v: 0 < v < 2**16, '1 to 65535')
  _require(values, 'process_id', lambda v: 0 <= v < count, f'0 to {count - 1}')
  if count == 1:
    return None
  return cluster.Place(
    address,
    count,
    values.process_id,
    flags=_word(values),
    join_seconds=values.join_seconds,
  )


def _defined(values: Any) -> list[str]:
  """The flags that this package and the binary itself have defined."""
  modules = values.flags_by_module_dict()
  own = {sys.argv[0], *_ROOMS}
  return sorted(f.name for room in own for f in modules.get(room, []))


def define_unlearning() -> None:
  """Which strategies, how often, and how each of them works."""
  flags.DEFINE_list('strategies', list(STRATEGIES), 'What is compared.')
  flags.DEFINE_integer('seeds', 3, 'Independent runs behind each number.')
  flags.DEFINE_string('source_dir', None, 'Checkpoint of the source model.')
  flags.DEFINE_string('retrained_dir', None, 'Checkpoint of the reference.')
  helps = {
    'k': 'K of Top-K: a count, or a share such as 0.001.',
    'ratio': 'k of Random-k, a share of all parameters.',
    'last_k': 'K of EU-K and CF-K, in tensors.',
    'granularity': 'What K counts: scalar or leaf (tensors).',
    'epsilon_top': 'ε of Top-K and of K random scalars; -1 zeroes.',
    'epsilon_random': 'ε of Random-k and Random-TopK.',
    'rule': 'scale (Eq. 7) or donor (Algorithm 1, line 12).',
    'donor_scope': 'Where donors come from: tensor or tree.',
    'objective': 'Whose gradient: loss or output_norm.',
    'reduction': 'Over examples: mean_abs, mean or single.',
    'sensitivity_examples': 'Examples that the sensitivity averages.',
    'js_weight': 'λ of Eq. 10.',
    'js_teacher': "source (the paper's), retrained or none.",
    'train_mask': 'Scalars that fine-tuning moves: all, or selected (those'
    ' that were chosen; the K = 0 control still moves all).',
    'learning_rate': "Adam's, in every fine-tuning.",
    'epochs': 'The most epochs of fine-tuning.',
    'stop_js_change': 'Stop rule: bits an epoch by which JS may still move.',
    'stop_retain_share': "Stop rule: share of the source's retain accuracy.",
  }
  defines: dict[type, Callable[..., Any]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for name, text in helps.items():
    default = getattr(_DEFAULTS, name)
    if name == 'k':
      flags.DEFINE_string(name, str(default), text)
    else:
      defines[type(default)](name, default, text)


def closest(value: str, allowed: Sequence[str]) -> str:
  """The allowed names, the nearest to `value` first in words."""
  near = difflib.get_close_matches(value, allowed, 1, 0.5)
  hint = f'did you mean {near[0]}? ' if near else ''
  return f'{hint}one of {", ".join(allowed)}'


def check(values: Any) -> None:
  """Takes from the recipe what was not given; all of it must be allowed.

  Raises:
    FlagError: the first shared flag that is out of range.
  """
  if values.model not in models.FAMILIES:
    raise FlagError(
      'model', values.model, closest(values.model, sorted(models.FAMILIES))
    )
  for name, allowed in (('dtype', models.DTYPES), ('recipe', tuple(RECIPES))):
    if getattr(values, name) not in allowed:
      value = getattr(values, name)
      raise FlagError(name, value, closest(value, allowed))
  _complete(values)
  for name in ('width', 'train_subset'):
    _require_count(values, name, 1)
  check_save_seconds(values)
  _require(values, 'device_data_mb', lambda v: v is None or v >= 0, '0 or more')
  _require_count(values, 'train_epochs', 1)
  for name in ('train_learning_rate',):
    _require(values, name, lambda v: 0 < v < 1, 'above 0 and below 1')
  _require(
    values, 'forget_fraction', lambda v: 0 < v < 1, 'above 0 and below 1'
  )
  for name in ('seed', 'split_seed', 'source_seed', 'unlearn_seed'):
    _require(
      values, name, lambda v: v is None or 0 <= v < 2**31, '0 to 2147483647'
    )
  count = len(parallel.devices())
  _require(
    values,
    'batch_size',
    lambda v: v >= 1 and v % count == 0,
    f'a positive multiple of the {count} device(s)',
  )


def _complete(values: Any) -> None:
  recipe = RECIPES[values.recipe]
  given = {
    'train_epochs': recipe.epochs,
    'train_learning_rate': recipe.learning_rate,
    'augment': recipe.augment,
    'batch_size': recipe.batch_size,
  }
  for name, value in given.items():
    if getattr(values, name) is None:
      setattr(values, name, value)


def check_unlearning(values: Any) -> None:
  """The same for the flags of `define_unlearning`."""
  for strategy in values.strategies:
    if strategy not in STRATEGIES:
      raise FlagError(
        'strategies', strategy, closest(strategy, list(STRATEGIES))
      )
  if not values.strategies:
    raise FlagError('strategies', '', closest('', list(STRATEGIES)))
  _k(values.k)
  for name, allowed in CHOICES.items():
    value = getattr(values, name)
    if value not in allowed:
      raise FlagError(name, value, closest(value, allowed))
  for name in ('last_k', 'sensitivity_examples'):
    _require_count(values, name, 1)
  _require_count(values, 'epochs', 0)
  _require(
    values,
    'seeds',
    lambda v: 1 <= v <= _MOST_SEEDS,
    f'1 or more, at most {_MOST_SEEDS}',
  )
  _require(values, 'ratio', lambda v: 0 < v <= 1, 'above 0 and at most 1')
  for name in ('epsilon_top', 'epsilon_random'):
    _require(values, name, lambda v: abs(v) < float('inf'), 'a finite number')
  for name in ('js_weight', 'stop_js_change'):
    _require(values, name, lambda v: 0 <= v < float('inf'), '0 or more')
  _require(
    values, 'stop_retain_share', lambda v: 0 <= v <= 1, 'a share from 0 to 1'
  )
  _require(values, 'learning_rate', lambda v: 0 < v < 1, 'above 0 and below 1')
  if values.js_teacher == 'retrained' and 'retrain' not in values.strategies:
    if values.retrained_dir is None:
      raise FlagError(
        'js_teacher',
        'retrained',
        'only with retrain among --strategies or with --retrained_dir',
      )


def _require(
  values: Any, name: str, holds: Callable[[Any], bool], allowed: str
) -> None:
  value = getattr(values, name)
  if not holds(value):
    raise FlagError(name, value, allowed)


def _require_count(values: Any, name: str, least: int) -> None:
  """A number of things, where it is given, that the devices can count."""
  value = getattr(values, name)
  if value is not None and not least <= value <= _MOST:
    most = '' if value < least else f', at most {_MOST}'
    raise FlagError(name, value, f'{least} or more{most}')


def _k(text: str) -> int | float:
  allowed = 'a whole number from 1, or a share above 0 and at most 1'
  try:
    value: int | float = float(text) if '.' in text else int(text)
  except ValueError:
    raise FlagError('k', text, allowed) from None
  if value <= 0 or (isinstance(value, float) and not value <= 1):
    raise FlagError('k', text, allowed)
  return value


def names() -> list[str]:
  """The flags that the running binary defined, absl's own left out."""
  modules = flags.FLAGS.flags_by_module_dict()
  return [f.name for room in _ROOMS for f in modules.get(room, [])]


def settings(values: Any) -> Settings:
  """The `Settings` that the flags say."""
  names = [field.name for field in dataclasses.fields(Settings)]
  chosen = {name: getattr(values, name) for name in names}
  return Settings(**{**chosen, 'k': _k(values.k)})


def workdir(values: Any) -> pathlib.Path:
  """Where results go."""
  if values.workdir is not None:
    return pathlib.Path(values.workdir)
  name = ''.join(c if c.isalnum() else '_' for c in values.dataset)
  return pathlib.Path('runs') / f'{name}-{values.model}'
