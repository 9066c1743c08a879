"""The plan: what is computed for which artefact, and what its key hangs on."""

import dataclasses

import pytest

from experiments.reproduction import paper, plan, tasks
from experiments.reproduction.presets import (
  FIRST_SWEEP_SEED,
  NEVER,
  PRESETS,
)
from experiments.reproduction.tasks import Tasks

SMOKE = PRESETS['smoke']
EVERYTHING = tuple(paper.ARTEFACTS)


def keys(preset, only=EVERYTHING):
  return {task.key: task for task in plan.make(preset, only).tasks}


@pytest.mark.parametrize('name', PRESETS)
def test_each_task_stands_once_and_after_its_parents(name):
  made = plan.make(PRESETS[name], EVERYTHING)
  seen = set()
  for task in made.tasks:
    assert task.key not in seen
    assert all(parent.key in seen for parent in task.parents.values())
    seen.add(task.key)
    assert made.serves[task.key]


def test_more_seeds_only_add_tasks():
  more = keys(dataclasses.replace(SMOKE, seeds=3))
  assert set(keys(SMOKE)) < set(more)


def test_fewer_artefacts_only_leave_tasks_out():
  assert set(keys(SMOKE, ('fig5',))) < set(keys(SMOKE))


def changed(**changes):
  """The kinds and rows of the smoke tasks whose keys change with a preset."""
  before, after = keys(SMOKE), keys(dataclasses.replace(SMOKE, **changes))
  gone = [task for key, task in before.items() if key not in after]
  return {(task.kind, task.row) for task in gone}


def test_a_source_recipe_changes_everything():
  assert len(changed(train_epochs=11)) == len(
    {(t.kind, t.row) for t in keys(SMOKE).values()}
  )


def test_the_generator_changes_degrees_only():
  generator = dataclasses.replace(SMOKE.generator, eta=0.5)
  assert {kind for kind, _ in changed(generator=generator)} == {'degree'}


def test_the_last_k_rate_changes_their_rows_and_what_is_made_of_them():
  rows = {'eu_5', 'eu_10', 'cf_5', 'cf_10'}
  assert changed(last_k_learning_rate=1e-4) == {
    *(('unlearn', row) for row in rows),
    ('degree', 'eu_5'),
  }


def test_nothing_depends_on_what_a_problem_is_shown_in():
  first = SMOKE.problems[0]
  other = dataclasses.replace(first, shows=('table2',), fractions=(0.10,))
  made = Tasks(dataclasses.replace(SMOKE, problems=(other,)))
  own = Tasks(SMOKE)
  assert (
    made.table(other, 0.10, 'top_k', 0).key
    == own.table(first, 0.10, 'top_k', 0).key
  )


@pytest.mark.parametrize('name', PRESETS)
def test_sweeps_and_tables_share_no_seed(name):
  preset = PRESETS[name]
  swept = {t.seed for t in keys(preset, ('sweeps',)).values()}
  others = tuple(a for a in EVERYTHING if a != 'sweeps')
  shown = {t.seed for t in keys(preset, others).values()}
  assert min(swept) == FIRST_SWEEP_SEED and len(swept) == preset.sweep_seeds
  assert max(shown) < FIRST_SWEEP_SEED and len(shown) == preset.seeds


def test_figure_5_has_every_k_in_both_granularities_and_needs_no_retrain():
  preset = PRESETS['paper']
  made = plan.make(preset, ('fig5',)).tasks
  assert not [task for task in made if task.row == 'retrain']
  for fraction in (0.05, 0.10, 0.15, 0.20):
    own = [
      task.settings
      for task in made
      if task.problem.model == 'vgg19'
      and (task.seed, task.fraction, task.row) == (0, fraction, 'top_k')
    ]
    for granularity in ('scalar', 'leaf'):
      found = sorted(s.k for s in own if s.granularity == granularity)
      assert found == list(range(5, 51, 5))
    assert all(settings.stop_retain_share == NEVER for settings in own)


def test_k_is_the_papers_and_the_last_k_rate_too():
  preset = PRESETS['paper']
  made = Tasks(preset)
  ks = {p.model: preset.settings(p).k for p in preset.problems}
  assert ks == {
    'resnet18': 45,
    'vgg19': 30,
    'densenet121': 45,
    'googlenet': 50,
  }
  first = preset.problems[0]
  assert made.table(first, 0.05, 'eu_5', 0).settings.learning_rate == 1e-4
  assert made.table(first, 0.05, 'top_k', 0).settings.learning_rate == 1e-3
  assert made.table(first, 0.05, 'cf_10', 0).settings.last_k == 10


def test_the_paper_presets_ask_for_all_that_the_paper_shows():
  for name in ('paper', 'paper_fast'):
    preset = PRESETS[name]
    assert preset.comparable
    made = plan.make(preset, ('table2',)).tasks
    asked = {(task.fraction, task.row) for task in made if task.seed == 0}
    for fraction, rows in paper.TABLE_2.items():
      assert {(fraction, row) for row in rows} <= asked
      assert (fraction, 'finetune') in asked


def test_a_degrees_null_is_a_source_of_the_tables_with_another_seed():
  made = plan.make(SMOKE, ('fig9',))
  degrees = [task for task in made.tasks if task.kind == tasks.DEGREE]
  assert degrees
  for task in degrees:
    source, other = task.parents['source'], task.parents['other']
    if task.row == tasks.NULL:
      assert (other.kind, other.seed) == ('train', 1 - source.seed)
    else:
      assert (other.row, other.seed) == (task.row, source.seed)
  rows = [task.row for task in degrees]
  assert {rows.count(row) for row in rows} == {SMOKE.seeds}
  assert len({task.key for task in degrees}) == len(degrees)
