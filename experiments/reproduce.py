"""Regenerates Section IV of the paper: Tables I and II, Figures 1 and 4 to 9.

  python -m experiments.reproduce --workdir=runs/smoke --preset=smoke

writes `reproduction.md`, `reproduction.html`, `reproduction.json` and
`figures/` into the work directory, and says row by row what was reproduced:
minutes on 2 CPU cores. Run again, it goes on where it was; --dry_run lists
the stages, and --engine=dask lets a cluster carry them out (docs/clusters.md).
"""

import dataclasses
import pathlib

from unlearn_jax.strategies import closest
from . import config
from .reproduction import computing, page, paper, presets
from .reproduction.presets import FIRST_SWEEP_SEED, PRESETS
from .reproduction.series import Numbers
from .runtime import binary
from .runtime.progress import say
from .settings import FlagError, Range, setting
from .workdir.directory import Workdir


@dataclasses.dataclass(frozen=True)
class Reproduce:
  """What of Section IV, how large, and where."""

  workdir: str | None = setting(
    None, 'Where everything goes; default runs/reproduction-PRESET.'
  )
  preset: str = setting(
    'smoke', f'One of {", ".join(PRESETS)}.', tuple(PRESETS)
  )
  only: str = setting(
    ','.join(paper.ARTEFACTS), 'Of these, separated by commas; default all.'
  )
  seeds: int | None = setting(
    None,
    "Of tables and figures; default the preset's. One seed has no interval.",
    Range(2, FIRST_SWEEP_SEED),
  )
  dry_run: bool = setting(False, 'List the stages only.')
  archives: config.Archives = config.Archives()
  execution: config.Engine = config.Engine()

  @property
  def artefacts(self) -> tuple[str, ...]:
    """Those that are wanted, in the order of the page."""
    named = [name.strip() for name in self.only.split(',')]
    for name in named:
      if name not in paper.ARTEFACTS:
        raise FlagError('only', name, closest(name, paper.ARTEFACTS))
    return tuple(name for name in paper.ARTEFACTS if name in named)


def main(asked: Reproduce) -> None:
  """From a preset to a page."""
  preset, only = PRESETS[asked.preset], asked.artefacts
  if asked.seeds is not None:
    preset = dataclasses.replace(preset, seeds=asked.seeds)
  root = pathlib.Path(asked.workdir or f'runs/reproduction-{preset.name}')
  workdir = Workdir(root, {'preset': preset.name})
  own = {'archives': asked.archives, 'execution': asked.execution}
  plans = computing.planned(presets.studies(preset, only), root, own)
  wanted = computing.stages(plans)
  if asked.dry_run:
    for key, stage in wanted.items():
      say(f'{key}  {"done" if stage.done() else "":4}  {stage.title}')
    done = sum(stage.done() for stage in wanted.values())
    say(f'{len(wanted)} stages, {done} done')
    return
  found = computing.compute(wanted, plans, workdir)
  say(f'Page: {page.write(Numbers(preset, only, found), wanted, root)}')


if __name__ == '__main__':
  binary.run(main, Reproduce)
