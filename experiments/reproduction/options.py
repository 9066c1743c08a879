"""The flags of `experiments.reproduce`, checked before anything is computed."""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
from typing import Any, NamedTuple

from absl import flags as absl_flags

from experiments import flags, stages
from experiments.reproduction import paper
from experiments.reproduction.claims import workdir
from experiments.reproduction.presets import (
  FIRST_SWEEP_SEED,
  PRESETS,
  Preset,
)
from experiments.reproduction.runner import Worker
from unlearn_jax import parallel
from unlearn_jax.base import InputError


class Options(NamedTuple):
  """What was asked for.

  Attributes:
    root: the work directory; it is this preset's, or it is new.
    preset: with the number of seeds asked for.
    only: the artefacts.
    worker: which one this is.
    owner: of the claims, unlike any other process's.
    max_seconds: after which to stop; None for never.
    dry_run: whether the plan is only shown.
  """

  root: pathlib.Path
  preset: Preset
  only: tuple[str, ...]
  worker: Worker
  owner: str
  max_seconds: float | None
  dry_run: bool


def define(own: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """The flags of this binary."""
  texts = {
    'workdir': (None, 'Where everything goes; one preset a directory.'),
    'preset': ('smoke', f'One of {", ".join(PRESETS)}.'),
    'worker': ('1/1', 'i/n: this is worker i of n that share the directory.'),
    'data_dir': (None, "TFDS directory; default is TFDS's."),
    'raw_dir': (None, 'Archives downloaded by hand.'),
  }
  for name, (default, text) in texts.items():
    absl_flags.DEFINE_string(name, default, text, flag_values=own)
  absl_flags.DEFINE_list(
    'only',
    list(paper.ARTEFACTS),
    f'Of {", ".join(paper.ARTEFACTS)}; default all.',
    flag_values=own,
  )
  absl_flags.DEFINE_integer(
    'seeds',
    None,
    "Of tables and figures; default the preset's.",
    flag_values=own,
  )
  absl_flags.DEFINE_float(
    'max_hours', None, 'Stop before so many hours are over.', flag_values=own
  )
  absl_flags.DEFINE_bool(
    'dry_run', False, 'Print the plan and its cost only.', flag_values=own
  )


def read(values: Any) -> Options:
  """Checks all flags; writes nothing.

  Raises:
    FlagError: the first that is not allowed.
    InputError: a directory that cannot be used.
  """
  if values.preset not in PRESETS:
    allowed = flags.closest(values.preset, list(PRESETS))
    raise flags.FlagError('preset', values.preset, allowed)
  for name in values.only or ['']:
    if name not in paper.ARTEFACTS:
      allowed = flags.closest(name, list(paper.ARTEFACTS))
      raise flags.FlagError('only', name, allowed)
  preset = PRESETS[values.preset]
  if values.seeds is not None:
    if not 2 <= values.seeds <= FIRST_SWEEP_SEED:
      raise flags.FlagError(
        'seeds',
        values.seeds,
        f'2 to {FIRST_SWEEP_SEED}; one seed has no interval',
      )
    preset = dataclasses.replace(preset, seeds=values.seeds)
  hours = values.max_hours
  if hours is not None and not 0 < hours < 1e6:
    raise flags.FlagError('max_hours', hours, 'above 0 and below a million')
  worker = _worker(values.worker)
  for size in (preset.batch_size, preset.generator.batch_size):
    count = len(parallel.devices())
    if size % count:
      raise InputError(
        f'{count} devices, allowed: a number that divides the batches of'
        f' preset {preset.name}, {size} images'
      )
  return Options(
    root=_root(values.workdir, preset),
    preset=preset,
    only=tuple(name for name in paper.ARTEFACTS if name in values.only),
    worker=worker,
    owner=f'{worker.index}-{socket.gethostname()}-{os.getpid()}',
    max_seconds=None if hours is None else 3600 * hours,
    dry_run=values.dry_run,
  )


def deadline(asked: Options, start: float) -> float | None:
  """When the last stage must be over, so that the page is written in time.

  Args:
    asked: what was asked for.
    start: of the command, in seconds.

  Returns:
    A minute before the end, or a tenth of the time if that is less; None for
    never.
  """
  if asked.max_seconds is None:
    return None
  return start + asked.max_seconds - min(60.0, 0.1 * asked.max_seconds)


def _worker(text: str) -> Worker:
  found = re.fullmatch(r'([0-9]{1,9})/([0-9]{1,9})', text)
  if found:
    index, count = map(int, found.groups())
    if 1 <= index <= count:
      return Worker(index, count)
  raise flags.FlagError('worker', text, 'i/n with 1 ≤ i ≤ n, such as 2/8')


def _root(text: str | None, preset: Preset) -> pathlib.Path:
  root = pathlib.Path(text or f'runs/reproduction-{preset.name}')
  workdir(root, {})  # A folder that can be used at all.
  for other in PRESETS.values():
    if other.name != preset.name and root.is_dir() and any(root.iterdir()):
      with contextlib.suppress(InputError):
        stages.Workdir(root, {'preset': other.name})
        raise flags.FlagError(
          'preset',
          preset.name,
          f'{other.name}, with which --workdir={root} was begun',
        )
  identity(root, preset)
  return root


def identity(root: pathlib.Path, preset: Preset) -> stages.Workdir:
  """The work directory as a whole.

  Raises:
    InputError: it is another program's, or cannot be written.
  """
  return workdir(root, {'preset': preset.name})
