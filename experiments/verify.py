r"""Computes all that a deletion record says again, from the files.

  python -m experiments.verify --record=2026-12/record.json \
      --dataset=folder:photos --key_file=secret.bin

prints a line for each thing that matches, does not, or could not be checked,
and ends with exit status 1 if something does not match.
"""

import dataclasses

from . import config
from .runtime import binary
from .settings import setting


@dataclasses.dataclass(frozen=True)
class Verify:
  """One record, beside its model."""

  record: str | None = setting(
    None, 'The record.json of an experiments.forget.'
  )
  dataset: str | None = setting(None, 'Its data, if they have moved.')
  model: str | None = setting(None, config.CODE)
  key_file: str | None = setting(None, 'The secret of the hashes.')
  archives: config.Archives = config.Archives()


def main(asked: Verify) -> None:
  """From a record to what is true of it."""
  from .deletion import checking  # Once the flags are known.

  checking.check(asked)


if __name__ == '__main__':
  binary.run(main, Verify)
