r"""Makes weights from elsewhere a source that every binary takes.

  python -m experiments.adopt --weights=net.safetensors \
      --model='my_model.py:Net(width=32)' --dataset=folder:photos \
      --trained_on=all --recipe=standard --out=prod/

reads safetensors, npz, msgpack or a folder of Orbax, says which tensor is which
of the model, measures the accuracy on test images, and writes a checkpoint for
`experiments.forget --source=`, `unlearn --source_dir=` and `evaluate`.
"""

import dataclasses
import pathlib

from . import config
from .runtime import binary
from .settings import FlagError, setting


@dataclasses.dataclass(frozen=True)
class Adopt:
  """One model."""

  weights: str | None = setting(
    None, 'File (safetensors, npz, msgpack) or folder (Orbax).'
  )
  rename: str | None = setting(
    None,
    r'From names there to names of the model: a/(.*)=b/\1, an expression that'
    ' fits a whole name; several are separated by semicolons.',
  )
  trained_on: str | None = setting(
    None, 'What it was trained on: all, or a file with an id or #row a line.'
  )
  out: str | None = setting(None, 'Where the checkpoint goes.')
  data: config.Data = config.Data()
  network: config.Network = config.Network()
  training: config.Training = config.Training()
  archives: config.Archives = config.Archives()


def main(asked: Adopt) -> None:
  """From a file of weights to a checkpoint."""
  from .study import adoption  # Once the flags are known.

  for name in ('weights', 'out', 'trained_on'):
    if getattr(asked, name) is None:
      allowed = 'all, or a file of ids' if name == 'trained_on' else 'a path'
      raise FlagError(name, '', allowed)
  given = {n: v for n, v in vars(asked.training).items() if v is not None}
  if given and 'recipe' not in given:
    raise FlagError('recipe', '', f'said, where --{next(iter(given))} is')
  adoption.adopt(asked, pathlib.Path(asked.out or ''))


if __name__ == '__main__':
  binary.run(main, Adopt)
