"""The studies of Section IV, carried out as one: each stage once."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from unlearn_jax import checkpoints
from unlearn_jax.base import InputError
from .. import config
from ..study import degrees, engine, planning, results
from ..study.planning import Plan
from ..study.results import Results
from ..study.stages import Stage
from ..study.study import identity
from ..workdir.directory import Workdir
from .presets import Name


def planned(
  studies: Mapping[Name, config.Study],
  root: pathlib.Path,
  settings: Mapping[str, Any],
) -> dict[Name, Plan]:
  """The stages of every study, whose `settings` say where and by whom."""
  plans = {}
  for name, study in studies.items():
    own = dataclasses.replace(study, **settings)
    try:
      plans[name] = planning.plan(own, root / name.problem)
    except InputError as error:  # It names a study's flag, not one of ours.
      text = str(error).removeprefix('--')
      raise InputError(f'{name.problem}: {text}') from error
  return plans


def stages(plans: Mapping[Name, Plan]) -> dict[str, Stage]:
  """The stages of all studies by key, each once and after its parents."""
  found: dict[str, Stage] = {}
  for name, plan in plans.items():
    for stage in plan.stages:
      words = [name.problem]
      if stage.depends['kind'] != 'source':  # It serves every share.
        words.append(f'{100 * name.fraction:g} %')
        words += ['no stop'] if name.kind in ('curve', 'k') else []
      title = ' · '.join([*words, stage.title])
      # What fails is named on the page, and the rest is done.
      own = dataclasses.replace(stage, title=title, required=False)
      found.setdefault(stage.key, own)
  return found


def compute(
  wanted: Mapping[str, Stage], plans: Mapping[Name, Plan], workdir: Workdir
) -> dict[Name, Results]:
  """Carries out what is not done, and measures what came out."""
  setups = {name.problem: plan.setup for name, plan in plans.items()}
  held = [Workdir(workdir.root / n, identity(own)) for n, own in setups.items()]
  for own in (workdir, *held):
    own.claim()
  errors: dict[str, str] = {}
  if wanted:
    asked = next(iter(plans.values())).study
    errors = engine.run([*wanted.values()], asked)
  return {name: results.measured(plan, errors) for name, plan in plans.items()}


def stage_records(
  wanted: Mapping[str, Stage], found: Mapping[Name, Results]
) -> list[dict[str, Any]]:
  """Every stage: what it took, or why it failed."""
  errors = {k: e for own in found.values() for k, e in own.errors.items()}
  made = []
  for key, stage in wanted.items():
    own = {'key': key, 'title': stage.title}
    if key in errors:
      own['error'] = errors[key]
    else:
      manifest = checkpoints.read_manifest(stage.path)
      own['wall_seconds'] = manifest['wall_seconds']
    made.append(own)
  return made


def measured_records(found: Mapping[Name, Results]) -> list[dict[str, Any]]:
  """The numbers of every model and pair on every forget set, once."""
  made: dict[tuple[str, float], dict[str, Any]] = {}
  for name, own in found.items():
    for place, run in enumerate(own.plan.runs):
      where = {**name._asdict(), 'seed': run.seed}
      for text, column in own.outcomes.items():
        if (model := column[place]) is not None:
          row = {'key': model.stage.key, 'strategy': text, **where}
          row |= {'measured': model.values, 'history': model.record.history}
          made.setdefault((model.stage.key, name.fraction), row)
      for (text, _), stage in (run.degrees or [{}])[0].items():
        if stage.key not in own.errors:
          row = {'key': stage.key, 'degree_of': text, **where}
          row['generators'] = degrees.read(stage).generators
          made.setdefault((stage.key, name.fraction), row)
  return list(made.values())
