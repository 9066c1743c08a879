"""What both benchmarks share: flags, the machine, spreads, the JSON file."""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shlex
import statistics
import sys
from typing import Any

from experiments import files
from experiments.study import provenance


def parser(description: str | None) -> argparse.ArgumentParser:
  """One with the flags of every benchmark."""
  made = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument('--repeats', type=at_least(1), help='interleaved rounds')
  made.add_argument('--seed', type=at_least(0), default=0)
  made.add_argument(
    '--torch',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='let PyTorch take part where it is installed',
  )
  made.add_argument('--out', type=new_json, help='a new JSON file')
  return made


def at_least(least: float, kind: Callable = int) -> Callable[[str], Any]:
  """Reads a number of this kind that is not below `least`."""

  def read(text: str) -> Any:
    with contextlib.suppress(ValueError):
      if (value := kind(text)) >= least:
        return value
    raise argparse.ArgumentTypeError(f'{text}, allowed: {least} or more')

  return read


def new_json(text: str) -> pathlib.Path:
  """Reads a path that can be written when it is time."""
  path = pathlib.Path(text)
  if path.suffix != '.json' or path.exists() or not path.parent.is_dir():
    raise argparse.ArgumentTypeError(
      f'{text}, allowed: a new .json file in a folder that exists'
    )
  return path


def write(path: pathlib.Path | None, result: dict[str, Any]) -> None:
  """Writes or replaces the JSON file, whole or not at all, if there is one."""
  if path:
    files.replace(path, (json.dumps(result, indent=1) + '\n').encode())


def torch_state(wanted: bool) -> str:
  """Whether PyTorch takes part, in words; says so where it is missing."""
  if not wanted:
    return 'not asked for'
  if importlib.util.find_spec('torch'):
    return 'takes part'
  print('PyTorch is not installed: it takes no part.', file=sys.stderr)
  return 'not installed'


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least and most."""
  middle = statistics.median(values)
  return {'median': middle, 'min': min(values), 'max': max(values)}


def shown(found: dict[str, float]) -> str:
  """A spread in three digits: 'median (least–most)'."""
  return f'{found["median"]:.3g} ({found["min"]:.3g}–{found["max"]:.3g})'


def environment() -> dict[str, Any]:
  """What a work directory says too, and the command and what else ran."""
  installed = importlib.util.find_spec('torch')
  return {
    **provenance.environment(),
    'torch': importlib.metadata.version('torch') if installed else None,
    'load_average': list(os.getloadavg()),
    'command': shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
  }
