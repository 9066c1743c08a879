"""The stages that measure the unlearning degree of pairs of models."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from unlearn_jax import checkpoints, degree, spd_gan
from unlearn_jax.base import InputError
from unlearn_jax.degree import Run
from unlearn_jax.spd_gan import GeneratorSettings
from ..report import figures
from ..runtime.progress import Progress
from ..workdir import finished
from ..workdir.partials import Partial
from . import setup as setups
from . import stages
from .stages import Output, Stage, StageFailedError

SHOWN = 8  # Images of a grid.


@dataclasses.dataclass(frozen=True)
class Measured:
  """What is kept of a pair of models."""

  generators: list[Run]  # one each, without itself and its training curve
  labels: list[int]  # of the images that are shown


def measure_degree(
  stage: Stage,
  partial: Partial,
  progress: Progress,
  run: int,
  settings: GeneratorSettings,
  unseen: bool,
) -> Output:
  """How far several generators tell a model from its source."""
  study, setup, splits = stages.problem(stage, run)
  source = stages.load(stage.parents['source'])
  other = stages.load(stage.parents['other'])
  key = setups.key_of('degree', study.draws.of('unlearn', run))
  epochs = settings.epochs

  try:
    degree.require_measurable(setup.model, source.state, splits, settings)
    plan = degree.plan_pairs(key, splits, study.generators.degree_limit)
    sets = plan.unseen if unseen else plan.known
    found = degree.pair_degree(
      plan.key,
      setup.model,
      source.state,
      other.state,
      sets,
      settings,
      seeds=study.generators.degree_seeds,
      on_epoch=lambda number, own: progress.after(number * epochs)(own),
      keeper=lambda number: partial.part(number, epochs),
    )
  except InputError as error:
    raise StageFailedError(f'{stage.title}: {error}') from error
  # Numbers, and images before and after the first generator.
  held_out, first = sets.part('held_out'), found.runs[0].generator
  few = held_out.take(np.arange(min(SHOWN, held_out.size)))
  tree = {
    'images': np.asarray(few.images)[np.asarray(few.indices)],
    'perturbed': spd_gan.perturb_images(first, few, settings),
  }
  bare: Any = {'history': (), 'generator': None}
  runs = [dataclasses.replace(own, **bare) for own in found.runs]
  measured = Measured(runs, few.own_labels.tolist())
  manifest = {
    'source_sha256': source.manifest.state_sha256,
    'other_sha256': other.manifest.state_sha256,
    'settings': settings,
  }
  mean = 100 * float(np.mean(found.values))
  note = f'{mean:.1f} points on the held-out half'
  return Output(tree, manifest, finished.contents(measured), note)


def read(stage: Stage) -> Measured:
  """The numbers of a pair that is measured."""
  return finished.read_record(stage.path, Measured)


def grid(stage: Stage, class_names: Sequence[str]) -> Figure:
  """Fig. 4: images that were not fitted on, and what became of them."""
  tree, _ = checkpoints.restore_tree(stage.path)
  labels = [class_names[label] for label in read(stage).labels]
  return figures.image_grid(tree['images'], tree['perturbed'], labels)
