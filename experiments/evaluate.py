"""Computes the numbers of a checkpoint again, from the checkpoint alone.

  python -m experiments.evaluate --checkpoint=WORKDIR/checkpoints/seed0-top_k-…

prints JSON, `{"forget_accuracy": …, "gap_to_retrained": …}`, after one pass
over the data. The manifest names data set, model and parents; the source and
the retrained reference are found beside the checkpoint, or named by flags.
With --degree it measures instead how far generators (SPD-GAN, Algorithm 2) can
tell the model from its source, held against M′, the source's twin of another
seed: it is found beside the source, or named. The report goes to --workdir.
"""

import dataclasses
import json
import pathlib
from typing import Any

from unlearn_jax.evaluation import evaluate
from . import config
from .runtime import binary
from .settings import FlagError, setting, taken
from .study import canaries, lineage, setup


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """One checkpoint."""

  checkpoint: str | None = setting(None, 'The model to evaluate.')
  source_dir: str | None = setting(None, 'M, if not beside it.')
  retrained_dir: str | None = setting(None, 'M_RE, if not beside it.')
  forget_ids: str | None = setting(None, 'D_UL, if not beside it.')
  degree: bool = setting(False, 'Measure the SPD-GAN unlearning degree.')
  null_dir: str | None = setting(
    None, 'M′: as the source, of another seed; if not beside the source.'
  )
  generators: config.Generators = config.Generators()
  model: str | None = setting(None, config.CODE)
  archives: config.Archives = config.Archives()
  workdir: str | None = setting(
    None, 'Where a degree goes; default runs/degree-CHECKPOINT.'
  )
  execution: config.Engine = config.Engine()
  processes: config.Processes = config.Processes()


def main(asked: Evaluate) -> None:
  """From a checkpoint to its numbers, as JSON on stdout; or to its degree."""
  if asked.checkpoint is None:
    raise FlagError('checkpoint', '', 'a folder with a manifest.json')
  path = pathlib.Path(asked.checkpoint)
  study = taken(config.Study, asked)
  family = lineage.read(path, study, asked.forget_ids, asked.model)
  if asked.degree:
    from .study import study as studies  # Draws pictures.

    root = pathlib.Path(asked.workdir or f'runs/degree-{path.absolute().name}')
    studies.measure_degree(family, asked.null_dir, root)
    return
  found: dict[str, Any] = evaluate(
    family.setup.model,
    family.own.state,
    family.source.state,
    family.splits,
    family.retrained.state if family.retrained else None,
    [own.state for own in family.references],
  )
  # Canaries are held against the images as they were before.
  if count := family.study.data.canaries:
    which = dataclasses.replace(family.study.data, canaries=0)
    how = family.own.state, setup.load(which, asked.archives), count
    found['canaries'] = canaries.read_out(family.setup.model, *how)
  print(json.dumps(found, indent=2))


if __name__ == '__main__':
  binary.run(main, Evaluate)
