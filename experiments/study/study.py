"""From what was asked to a page: a study, or the degree of one checkpoint."""

from collections.abc import Callable
import pathlib
import time

from unlearn_jax import parallel
from unlearn_jax.base import shown
from unlearn_jax.strategies import METHOD, REFERENCE, Chosen, Strategy
from .. import config
from ..report import degree, pages, rendering
from ..report.model import to_json
from ..report.sections import Section
from ..runtime.progress import say
from ..workdir import directory
from ..workdir.directory import Identity, Workdir
from . import engine, lineage, planning, provenance, results, stages
from . import setup as setups
from .lineage import Lineage
from .planning import Plan, Run
from .results import Results
from .setup import Setup


def root_of(study: config.Study) -> pathlib.Path:
  """Where results go."""
  if study.workdir is not None:
    return pathlib.Path(study.workdir)
  both = study.data.dataset, study.network.model
  names = (''.join(c if c.isalnum() else '_' for c in own) for own in both)
  return pathlib.Path('runs') / '-'.join(names)


def identity(setup: Setup) -> Identity:
  """What a work directory belongs to."""
  names = 'data_fingerprint', 'model', 'width', 'patch_size'
  found = {name: getattr(setup.facts, name) for name in names}
  return {name: own for name, own in found.items() if own is not None}


def compute(study: config.Study, plan: Plan, workdir: Workdir) -> Results:
  """Carries out all stages of a plan, and measures what came out."""
  parallel.by_first(workdir.claim)
  say(*setups.describe(plan.setup, plan.drawn))
  return results.measured(plan, engine.run(plan.stages, study))


def run(study: config.Study) -> None:
  """Does all that a configuration asks for, and reports on it."""
  start, root = time.monotonic(), root_of(study)
  plan = planning.plan(study, root)
  workdir = Workdir(root, identity(plan.setup))  # Held until all is written.
  found = compute(study, plan, workdir)
  report = results.report(found, time.monotonic() - start)
  images = results.grids(plan, report.degree)
  told = pages.summary(report, study.verbose)
  publish(root, lambda: pages.write(report, root, images), told)


def publish(
  root: pathlib.Path, write: Callable[[], pathlib.Path], told: list[Section]
) -> None:
  """Writes a page, and says what was found, and where models and page are."""
  directory.require_claimed(root)
  path = parallel.by_first(lambda: str(write()))
  rendering.terminal(told)
  say(f'Checkpoints: {root / "checkpoints"}', f'Report: {path}')


def measure_degree(
  family: Lineage, null_dir: str | None, root: pathlib.Path
) -> None:
  """The degree of one checkpoint, with its null and its target.

  Writes degree.{json,md,html} and pictures, and says what was found.
  """
  study, setup, splits = family.study, family.setup, family.splits
  planning.require_two_batches(study.generators.degree_batch_size, splits)
  workdir = Workdir(root, {'checkpoint': family.own.manifest.state_sha256})
  label = shown(family.own.manifest.strategy or 'the unlearned model')
  chosen = [Chosen('unlearned', {}, Strategy(label, METHOD), {})]
  others = {
    'null': lineage.twin(family, null_dir),
    'unlearned': stages.given(family.own, 'unlearned'),
  }
  reference = family.retrained
  if reference is not None and reference.path != family.own.path:
    target = Strategy('Retrain, the target', REFERENCE)
    chosen.append(Chosen('retrained', {}, target, {}))
    others['retrained'] = stages.given(reference, 'retrained')
  planner = planning.Planner(study, setup, root)
  run = Run(0, splits, stages.given(family.source, 'source'), {})
  for settings in study.generators.settings:
    run.degrees.append(planner.degrees(0, run, others, settings))
  plan = Plan(study, setup, chosen, [run])
  parallel.by_first(workdir.claim)
  errors = engine.run(plan.stages, study)
  for error in errors.values():
    say(f'warning: {error}')
  # What was found, as a page.
  found = results.degree_facts(plan, errors)
  drawn = degree.pictures(found, len(setup.dataset.class_names))
  drawn |= results.grids(plan, found)
  sections = [degree.section(own) for own in found]
  record = {
    'command': results.command(),
    'checkpoint': str(family.own.path),
    'environment': provenance.environment(),
    'degree': found,
  }
  intro = (
    f'{shown(setup.dataset.name)}, {splits.forget.size:,} images forgotten.'
  )
  words = 'degree', f'Unlearning degree of {label}', intro
  contents = sections, drawn, {'degree.json': to_json(record)}
  told = [Section(own.title, own.sentences) for own in sections]
  publish(root, lambda: rendering.save(root, *words, *contents), told)
