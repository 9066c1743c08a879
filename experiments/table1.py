"""Prints the paper's Table I beside ours: how many parameters are perturbed.

  python -m experiments.table1

takes seconds: the models are traced, not computed.
"""

import dataclasses

from .report import rendering
from .report.sections import Section
from .reproduction import paper
from .runtime import binary


@dataclasses.dataclass(frozen=True)
class Table1:
  """There is nothing to be told."""


def section() -> Section:
  """The table below its title."""
  title = 'Parameters perturbed; in brackets the paper’s Table I'
  return Section(title, tables=[paper.table_1()])


def main(asked: Table1) -> None:
  """Prints the table."""
  del asked
  rendering.terminal([section()])


if __name__ == '__main__':
  binary.run(main, Table1)
