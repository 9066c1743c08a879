"""A study from its configuration to its report."""

import pathlib
import time

from matplotlib.figure import Figure

from experiments import config
from experiments.report import degree
from experiments.report.model import Report
from experiments.runtime.progress import Progress
from experiments.study import degrees, engine, planning, results
from experiments.study import setup as setups
from experiments.study.planning import Plan
from experiments.study.results import Results
from experiments.study.setup import Setup
from experiments.workdir.directory import Identity, Workdir
from unlearn_jax import parallel
from unlearn_jax.strategies import METHOD


def root_of(study: config.Study) -> pathlib.Path:
  """Where results go."""
  if study.workdir is not None:
    return pathlib.Path(study.workdir)
  name = ''.join(c if c.isalnum() else '_' for c in study.data.dataset)
  return pathlib.Path('runs') / f'{name}-{study.network.model}'


def identity(setup: Setup) -> Identity:
  """What a work directory belongs to."""
  facts = setup.facts
  return {
    'data_fingerprint': facts.data_fingerprint,
    'model': facts.model,
    'width': facts.width,
  }


def compute(study: config.Study, plan: Plan, workdir: Workdir) -> Results:
  """Carries out all stages of a plan, and measures what came out."""
  parallel.by_first(workdir.claim)
  lines = setups.describe(plan.setup)
  for run in plan.runs:
    lines.append(setups.describe_forget(plan.setup, run.splits, run.seed))
    for warning in setups.lost_classes(plan.setup, run.splits, run.seed):
      lines.append(f'warning: {warning}')
  print('\n'.join(lines), flush=True)
  wanted = plan.stages
  epochs = sum(stage.epochs for stage in wanted)
  progress = Progress(len(wanted), epochs)
  errors = engine.run(wanted, study.execution, study.archives, progress)
  return results.measured(plan, errors)


def run(study: config.Study) -> tuple[Report, dict[str, Figure]]:
  """Everything that a configuration asks for, not yet written."""
  start, root = time.monotonic(), root_of(study)
  plan = planning.plan(study, root)
  workdir = Workdir(root, identity(plan.setup))
  found = compute(study, plan, workdir)
  report = results.report(found, time.monotonic() - start)
  grids = {}
  for place, facts in enumerate(report.degree):
    # Of the first method, or whatever there is.
    rows = sorted(facts.rows, key=lambda row: row.role != METHOD)
    for row in rows[:1]:
      stage = plan.runs[0].degrees[place][row.strategy, False]
      names = plan.setup.dataset.class_names
      grids[degree.name_of(facts, 'images')] = degrees.grid(stage, names)
  return report, grids
