"""The unlearning degree of one checkpoint, with its null and its target."""

import pathlib

from experiments import config
from experiments.report import degree, rendering
from experiments.report.model import to_json
from experiments.report.sections import Section
from experiments.runtime.progress import Progress
from experiments.study import (
  degrees,
  engine,
  lineage,
  planning,
  provenance,
  results,
)
from experiments.study.degree_results import degrees_within
from experiments.study.lineage import Lineage
from experiments.study.planning import Run
from experiments.workdir.directory import Workdir
from unlearn_jax import parallel
from unlearn_jax.base import shown
from unlearn_jax.strategies import METHOD, REFERENCE


def report(
  family: Lineage,
  null_dir: str | None,
  root: pathlib.Path,
  execution: config.Engine,
) -> None:
  """Measures it, writes degree.{json,md,html} and pictures, and says it."""
  study, digest = family.study, family.own.manifest.state_sha256
  planning.require_two_batches(
    study.generators.degree_batch_size, family.splits
  )
  bounds = study.generators.settings
  workdir = Workdir(root, {'checkpoint': digest})
  source = lineage.stage_of(family.source, 'source')
  own = lineage.stage_of(family.own, 'unlearned')
  others = {'null': lineage.twin(family, null_dir, root), 'unlearned': own}
  labels = {'unlearned': (_label(family), METHOD)}
  reference = family.retrained
  if reference is not None and reference.path != family.own.path:
    others['retrained'] = lineage.stage_of(reference, 'retrained')
    labels['retrained'] = ('Retrain, the target', REFERENCE)
  run = Run(0, family.splits, source, {})
  planner = planning.Planner(study, family.setup, root)
  pairs = [planner.degrees(0, run, others, settings) for settings in bounds]
  parallel.by_first(workdir.claim)
  wanted = [stage for own in pairs for stage in own.values()]
  if others['null'].given is None:
    wanted.insert(0, others['null'])
  progress = Progress(len(wanted), sum(stage.epochs for stage in wanted))
  errors = engine.run(wanted, execution, study.archives, progress)
  for error in errors.values():
    print(f'warning: {error}')
  facts = [
    within
    for settings, own in zip(bounds, pairs)
    if (within := degrees_within(settings, [own], labels, errors))
  ]
  grids = {
    degree.name_of(within, 'images'): degrees.grid(
      own['unlearned', False], family.setup.dataset.class_names
    )
    for within, own in zip(facts, pairs)
    if own['unlearned', False].key not in errors
  }
  classes = len(family.setup.dataset.class_names)
  drawn = {degree.name_of(f, 'bars'): degree.bars(f, classes) for f in facts}
  sections = [
    degree.section(f, degree.name_of(f, 'images') in grids) for f in facts
  ]
  record = {
    'command': results.command(),
    'checkpoint': str(family.own.path),
    'environment': provenance.environment(),
    'degree': facts,
  }
  page = parallel.by_first(
    lambda: str(
      rendering.save(
        root,
        'degree',
        f'Unlearning degree of {_label(family)}',
        f'{shown(family.setup.dataset.name)},'
        f' {family.splits.forget.size:,} images forgotten.',
        sections,
        {**drawn, **grids},
        {'degree.json': to_json(record)},
      )
    )
  )
  rendering.show([Section(own.title, own.sentences) for own in sections])
  print(f'Report: {page}')


def _label(family: Lineage) -> str:
  return shown(family.own.manifest.strategy or 'the unlearned model')
