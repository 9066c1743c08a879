"""What the paper says, and what our numbers say to that."""

from collections.abc import Callable, Iterator

from experiments.reproduction import figure_statements, table_statements
from experiments.reproduction.judgements import Judgement
from experiments.reproduction.presets import Problem
from experiments.reproduction.tally import Tally

_JUDGES: dict[str, Callable[[Tally, Problem], Iterator[Judgement]]] = {
  'table1': table_statements.table_1,
  'table2': table_statements.table_2,
  'fig1': figure_statements.figure1,
  'fig5': figure_statements.figure5,
  'fig6': figure_statements.figure6,
  'fig7': figure_statements.figure7,
  'fig8': figure_statements.figure8,
  'fig9': figure_statements.figure9,
}


def judge(results: Tally) -> list[Judgement]:
  """Every row of the page, in the order of the artefacts."""
  found: list[Judgement] = []
  for artefact in results.plan.only:
    for problem in results.preset.problems:
      if artefact in problem.shows and artefact in _JUDGES:
        found += _JUDGES[artefact](results, problem)
  return found
