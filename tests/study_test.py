"""What a stage depends on, who carries it out, and what becomes of it."""

from concurrent import futures
import dataclasses
import functools
import importlib
import inspect
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from typing import Literal, get_args, get_origin, get_type_hints
from unittest import mock

import devices
import helpers
import jax
import numpy as np
import optax
import pytest
import running

from experiments import config, settings
from experiments.report import tables, wording
from experiments.runtime import signals
from experiments.runtime.progress import Silent
from experiments.study import (
  engine,
  planning,
  provenance,
  results,
  stages,
  training,
)
from experiments.study import setup as setups
from experiments.study.stages import Stage, StageFailedError
from experiments.workdir.directory import Workdir
from experiments.workdir.finished import Epoch, Record
from unlearn_jax import parallel, strategies
from unlearn_jax.base import Examples, InputError, Splits
from unlearn_jax.models import FAMILIES
from unlearn_jax.recipes import RECIPES
from unlearn_jax.strategies import FACTORIES

ROOT = pathlib.Path(__file__).parent.parent
STRATEGIES = (
  "retrain, finetune, random_k(js_teacher='retrained'),"
  ' cf_k(learning_rate=0.01, epochs=3)'
)


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def asked(data_file, tmp_path_factory):
  """A study by its flags."""
  folder = tmp_path_factory.mktemp('more')
  (folder / 'ids').write_text('\n'.join(map(str, range(24))))
  larger = f'npz:{helpers.stripes_file(folder, 300)}'
  words = {'IDS': str(folder / 'ids'), 'LARGER': larger}
  common = running.training(
    *(data_file, 'run', '--epochs=2', '--seeds=1', '--degree'),
    *('--max_perturbation=none', '--degree_batch_size=4'),
  )

  def study(**changed):
    told = {'strategies': STRATEGIES, **changed}
    known = {name: words.get(str(v), v) for name, v in told.items()}
    return running.study(*common, **known)

  return study


def planned(study):
  """Every stage of its first run, by what its title has of it."""
  found = planning.plan(study, pathlib.Path('nowhere')).stages
  titles = {re.sub(r'\(.*?\)', '', stage.title): stage for stage in found}
  return {
    title.removeprefix('seed 0 · '): stage
    for title, stage in titles.items()
    if title.startswith('seed 0 ')
  }


# Stages.

BUDGET = {'finetune', 'random_k'}
UNLEARNED = BUDGET | {'cf_k'}
MADE = UNLEARNED | {'retrain'}
FORGETTING = MADE | {'degree'}
# A flag, a value, and which stages depend on it themselves.
DEPENDS = {
  'dataset': ('LARGER', {'source'} | FORGETTING),  # Other examples forgotten.
  'train_subset': (200, {'source'} | FORGETTING),
  'model': ('resnet9', {'source'}),
  'width': (5, {'source'}),
  'dtype': ('bfloat16', {'source'}),
  'recipe': ('standard', {'source'} | MADE),  # It augments.
  'train_epochs': (5, {'source', 'retrain'}),
  'train_learning_rate': (0.02, {'source', 'retrain'}),
  'augment': (True, {'source'} | MADE),
  'batch_size': (12, {'source'} | MADE),
  'forget': ('random(0.2)', FORGETTING),
  'split_seed': (5, FORGETTING),
  'source_seed': (5, {'source'}),
  'unlearn_seed': (5, FORGETTING),
  'heldout': (0.2, FORGETTING),
  'epochs': (3, BUDGET),
  'learning_rate': (0.02, BUDGET),
  'optimizer': ('sgd', UNLEARNED),
  'schedule': ('cosine', UNLEARNED),
  'stop_js_change': (0.5, UNLEARNED),
  'stop_retain_share': (0.5, UNLEARNED),
  'max_perturbation': ('0.5', {'degree'}),
  'cap': ('3', {'degree'}),
  'eta': (0.5, {'degree'}),
  'degree_learning_rate': (0.02, {'degree'}),
  'degree_epochs': (3, {'degree'}),
  'degree_batch_size': (5, {'degree'}),
  'degree_width': (5, {'degree'}),
  'degree_seeds': (6, {'degree'}),
  'degree_limit': (9, {'degree'}),
  **dict.fromkeys(
    ['seeds', 'workers', 'save_seconds', 'num_processes', 'join_seconds'],
    (3, set()),
  ),
  **dict.fromkeys(['device_data_mb', 'process_id'], (1, set())),
  **dict.fromkeys(['data_dir', 'raw_dir', 'workdir'], ('/nowhere', set())),
  **dict.fromkeys(['scheduler', 'coordinator'], ('a:1', set())),
  **dict.fromkeys(['degree', 'degree_unseen'], (False, set())),
  'verbose': (True, set()),
  'engine': ('dask', set()),
}
# Tested on their own: they make other stages.
OTHERS = {
  *(
    'references',
    'seed',
    'strategies',
    'source_dir',
    'retrained_dir',
    'test_fraction',
    'image_size',
    'canaries',
    'patch_size',
  ),
  'tuned',
}
PARENTS = {
  'source': {'source'},
  'retrain': {'source'},
  'finetune': {'source'},
  'cf_k': {'source'},
  'random_k': {'source', 'retrain'},
  'null': {'source'},
}
UNSEEN = ' on unseen images'


def ancestors(name):
  """The stages that one comes after, and itself."""
  kind, _, other = name.removesuffix(UNSEEN).partition(' of ')
  return {name, *PARENTS[other or kind], other or kind}


def names():
  """Of all stages of a run."""
  models = [f'degree of {name}' for name in MADE]
  unseen = [name + UNSEEN for name in models]
  return {'source', *MADE, 'degree of null', *models, *unseen}


def test_every_flag_is_in_the_table():
  assert set(settings.names(config.Study)) == {*DEPENDS, *OTHERS}


@pytest.mark.parametrize('flag', DEPENDS)
def test_a_flag_changes_the_keys_of_what_depends_on_it_only(
  flag, asked, monkeypatch
):
  # By another name, because the images are too small for others.
  monkeypatch.setitem(FAMILIES, 'resnet9', FAMILIES['cnn'])
  value, own = DEPENDS[flag]
  before, after = planned(asked()), planned(asked(**{flag: value}))
  assert set(before) == names()
  missing = {'degree': 'degree', 'degree_unseen': UNSEEN}.get(flag, '-----')
  assert {name for name in before if missing not in name} == set(after)
  for name, stage in after.items():
    changed = stage.depends != before[name].depends
    assert changed == (name.split(' ')[0] in own), name
    redone = changed or bool(own & ancestors(name))
    assert (stage.key != before[name].key) == redone, name


def test_the_first_seed_is_that_of_all_three_purposes(asked):
  plain = planned(asked())
  same = planned(asked(seed=0, split_seed=0, source_seed=0, unlearn_seed=0))
  assert [s.key for s in same.values()] == [s.key for s in plain.values()]
  both = planning.plan(asked(seed=1, seeds=1), pathlib.Path('x'))
  later = planning.plan(asked(seeds=2), pathlib.Path('x')).runs[1]
  assert both.runs[0].source.key == later.source.key
  # Where only the source is the same it is found again, not trained anew.
  other = planning.plan(
    asked(seed=7, source_seed=1, seeds=1), pathlib.Path('x')
  )
  assert other.runs[0].source.path == later.source.path
  for name, stage in both.runs[0].strategies.items():
    assert stage.key == later.strategies[name].key, name


def test_each_bound_has_generators_of_its_own(asked):
  study = asked(max_perturbation='0.25, none', degree_unseen=False)
  (run,) = planning.plan(study, pathlib.Path('x')).runs
  keys = set()
  for bound, pairs in zip((0.25, None), run.degrees, strict=True):
    for stage in pairs.values():
      keys.add(stage.key)
      assert stage.work.keywords['settings'].max_perturbation == bound
      assert stage.depends['settings']['max_perturbation'] == bound
  assert len(keys) == 2 * (1 + len(run.strategies))


def test_keys_are_of_the_data_not_of_where_they_are(asked, data_file, tmp_path):
  copy = tmp_path / 'copy.npz'
  copy.write_bytes(data_file.read_bytes())
  before, after = planned(asked()), planned(asked(dataset=f'npz:{copy}'))
  assert [s.key for s in after.values()] == [s.key for s in before.values()]


def test_studies_share_retrain_whatever_the_fine_tuning(asked):
  others = {'epochs': 9, 'learning_rate': 0.5}, {'strategies': 'cf_k, retrain'}
  keys = {planned(asked(**own))['retrain'].key for own in ({}, *others)}
  assert len(keys) == 1


def another(value):
  """Another value of its type."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 1
  return value / 2 if isinstance(value, float) else None


def every_parameter():
  values = {
    'k': 7,
    'epsilon': 0.25,
    'ratio': 0.125,
    'examples': 9,
    'js_weight': 0.25,
    'learning_rate': 0.125,
    'epochs': 1,
  }
  for name, factory in FACTORIES.items():
    hints = get_type_hints(factory)
    for parameter, own in inspect.signature(factory).parameters.items():
      words = [values.get(parameter, another(own.default))]
      if get_origin(hints[parameter]) is Literal:
        words = [w for w in get_args(hints[parameter]) if w != own.default]
      for word in words:
        yield name, parameter, word


@pytest.mark.parametrize('name, parameter, value', list(every_parameter()))
def test_every_parameter_of_a_strategy_is_in_its_key(
  name, parameter, value, asked
):
  assert value is not None, f'{parameter} needs a value here'
  few = 'k=8, ' if 'k' in inspect.signature(FACTORIES[name]).parameters else ''
  few = '' if parameter == 'k' else few  # Of tensors there are eleven.
  few += 'epsilon=0.5, ' * (parameter == 'change')  # A donor's share.
  text = f'{name}({few}{parameter}={value!r})'
  own = f'retrain, {name}({few}), {text}'
  study = asked(strategies=own, degree=False, heldout=0.2)
  (run,) = planning.plan(study, pathlib.Path('x')).runs
  plain, own = list(run.strategies.values())[1:]
  assert own.key != plain.key and plain.depends['kind'] == 'strategy'
  assert own.depends['training'][parameter] == value


MINE = """
from unlearn_jax.strategies import Strategy, Term, retained

def mine(alpha: float = 0.5, *, epochs: int | None = None):
  '''Trains on D_RE.'''
  return Strategy('Mine', terms=(Term(retained, weight=alpha),), epochs=epochs)
"""


def test_a_strategy_of_ones_own_is_keyed_by_the_text_of_its_file(
  asked, tmp_path, monkeypatch
):
  monkeypatch.syspath_prepend(tmp_path)
  study = asked(strategies='h7_mine:mine(alpha=.25)', degree=False)
  keys = []
  for text in (MINE, MINE, MINE.replace('=alpha', '=2 * alpha')):
    (tmp_path / 'h7_mine.py').write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop('h7_mine', None)
    stage = planned(study)['h7_mine:mine']
    keys.append(stage.key)
    again = pickle.loads(pickle.dumps(stage))  # As a worker has it.
    assert again.key == stage.key and again.work.keywords['chosen'].text == (
      'h7_mine:mine(alpha=0.25)'
    )
  sys.modules.pop('h7_mine')
  assert keys[0] == keys[1] != keys[2]


# What a stage is told.


def test_pixels_are_standardised_by_the_training_images(asked, data_file):
  facts = setups.set_up(asked()).facts
  with np.load(data_file) as arrays:
    pixels, others = (arrays[name] / 255 for name in ('x_train', 'x_test'))
  np.testing.assert_allclose(facts.pixel_mean, [pixels.mean()], rtol=1e-5)
  np.testing.assert_allclose(facts.pixel_std, [pixels.std()], rtol=1e-5)
  assert abs(pixels.mean() - others.mean()) > 1e-4


def test_every_purpose_and_seed_has_a_key_of_its_own():
  purposes = 'split', 'source', 'unlearn', 'degree'
  found = {
    tuple(jax.random.key_data(setups.key_of(what, seed)).tolist())
    for what in purposes
    for seed in (0, 1)
  }
  assert len(found) == 8


def test_every_run_forgets_other_examples(asked):
  study = asked(seeds=3)
  setup = setups.set_up(study)
  drawn = [
    frozenset(setups.ids_of(setup, setups.draw(setup, study, run).forget))
    for run in range(3)
  ]
  assert len(set(drawn)) == 3 and {len(ids) for ids in drawn} == {24}


def test_what_a_source_never_learned_cannot_be_forgotten(asked, tmp_path):
  study = asked()
  setup = setups.set_up(study)
  splits = setups.draw(setup, study, 0)
  setups.require_known(setup, splits, tmp_path)  # One that does not say.
  ids = setups.ids_of(setup, splits.train)
  (tmp_path / 'trained.txt').write_text('\n'.join(ids))
  setups.require_known(setup, splits, tmp_path)
  first, *others = setups.ids_of(setup, splits.forget)
  left = [name for name in ids if name not in (first, others[0])]
  (tmp_path / 'trained.txt').write_text('\n'.join(left))
  said = f'was not trained on {first} and 1 others that are to be forgotten'
  with pytest.raises(InputError, match=said):
    setups.require_known(setup, splits, tmp_path)


class EnoughError(Exception):
  """What was to be seen has been seen."""


@pytest.mark.parametrize('augment', [True, False])
def test_a_strategy_is_told_all_that_it_depends_on(augment, asked, monkeypatch):
  study = asked(
    augment=augment, unlearn_seed=7, learning_rate=0.25, degree=False
  )
  stage = planned(study)['finetune']
  loaded = types.SimpleNamespace(state='M')
  monkeypatch.setattr(stages, 'load', lambda _: loaded)
  look = mock.Mock(side_effect=EnoughError)
  monkeypatch.setattr(training, 'unlearn', look)
  with pytest.raises(EnoughError):
    stage.work(stage, None, Silent())
  (key, model, source, splits, strategy), named = look.call_args
  budget = named['budget']
  own = setups.set_up(study)
  assert (key == setups.key_of('unlearn', 7)).all()
  assert (model, source) == (own.model, 'M')
  assert strategy == stage.work.keywords['chosen'].strategy
  assert budget == study.methods.budget(24) and budget.learning_rate == 0.25
  assert (named['augment'] is not None) == augment
  assert named['recipe'] == study.recipe
  wanted = setups.draw(own, study, 0)
  for part, its in zip(splits[:4], wanted):
    np.testing.assert_array_equal(part.indices, its.indices)


def test_source_and_retrain_follow_schedules_of_their_own_length(
  asked, monkeypatch, tmp_path
):
  told = []

  def adam(rate, steps):
    told.append((rate, steps))
    return optax.adam(rate)

  paper = RECIPES['paper']._replace(optimizer=adam)
  monkeypatch.setitem(RECIPES, 'paper', paper)
  study = asked(train_epochs=2, degree=False, strategies='retrain', seeds=2)
  plan = planning.plan(study, tmp_path)
  Workdir(tmp_path, {}).claim()
  digests = []
  first, second = plan.runs
  for stage in (first.source, first.strategies['retrain'], second.source):
    stages.carry_out(stage, Silent())
    digests.append(stages.load(stage).manifest.state_sha256)
  # Of 240 images 24 are forgotten; 24 are a step.
  assert told[:2] == [(0.01, 2 * 10), (0.01, 2 * 9)]
  assert len(set(digests)) == 3
  assert stages.load(second.source).manifest.seed == 1


# Who carries stages out.


def line(*names, **parents):
  """Stages that do nothing, by name; `parents` says who comes after whom."""
  made = {}
  for name in names:
    its = {own: made[own] for own in parents.get(name, ())}
    required = name.isupper()
    made[name] = Stage(
      *(pathlib.Path('x'), name, name, {'name': name}, None, its),
      required=required,
    )
  return made


def scheduled(made, work, pool):
  """What failed, and what was told of the others."""
  heard = {}
  with pool:
    failed = engine.schedule(
      list(made.values()),
      pool,
      work,
      lambda stage, note: heard.__setitem__(stage.name, note),
    )
  names = {stage.key: name for name, stage in made.items()}
  return {names[key]: why for key, why in failed.items()}, heard


POOLS = [engine.InProcess, functools.partial(futures.ThreadPoolExecutor, 8)]


@pytest.mark.parametrize('pool', POOLS)
def test_every_stage_comes_once_and_after_its_parents(pool):
  made, ended = line(*'abcd', c='ab', d='c'), []

  def work(stage):
    assert {*stage.parents} <= {*ended}
    ended.append(stage.name)
    return f'{stage.name} done'

  failed, heard = scheduled(made, work, pool())
  assert not failed and sorted(ended) == list('abcd')
  assert heard == {name: f'{name} done' for name in 'abcd'}
  if pool is engine.InProcess:
    assert ended == list('abcd')


def test_what_is_independent_is_under_way_at_once():
  both = threading.Barrier(2, timeout=20)
  made = line(*'abc', c='ab')
  failed, _ = scheduled(
    made, lambda s: str(s.name == 'c' or both.wait()), POOLS[1]()
  )
  assert not failed


def test_none_starts_where_retrain_started(monkeypatch, data_file, tmp_path):
  """What is judged by Retrain has not its first weights and batches."""
  asked = running.study(*running.training(data_file, tmp_path / 'run'))
  stage = types.SimpleNamespace(parents={'source': None})
  monkeypatch.setattr(training.stages, 'load', lambda _: mock.Mock())
  drawn = {}
  for text, reference in [
    *(('finetune', 0), ('scratch', 0), ('retrain', 0)),
    *(('retrain', 1), ('retrain', 2)),
  ]:
    with (
      mock.patch.object(training, 'unlearn', side_effect=KeyError) as own,
      pytest.raises(KeyError),
    ):
      (chosen,) = strategies.parse(text)
      how = 0, chosen, reference, (asked, mock.Mock(), mock.Mock())
      training.unlearn_source(stage, None, mock.Mock(), *how)
    drawn[text, reference] = jax.random.key_data(own.call_args[0][0]).tolist()
  assert drawn['finetune', 0] == drawn['scratch', 0]
  own = np.array(drawn['scratch', 0], np.uint32)
  parts = jax.random.split(jax.random.wrap_key_data(own), 8)
  every = [*drawn.values(), *jax.random.key_data(parts).tolist()]
  assert len({*map(tuple, every)}) == 4 + 8


@pytest.mark.parametrize('pool', POOLS)
def test_what_needs_a_stage_that_failed_is_left_out_and_named(pool):
  made, done = line(*'abcde', b='a', c='b', e='d'), []

  def work(stage):
    if stage.name == 'a':
      raise StageFailedError('a diverged')
    done.append(stage.name)
    return ''

  failed, heard = scheduled(made, work, pool())
  assert done == list('de')
  assert failed == {
    'a': 'a diverged',
    'b': 'b: what it needs has failed',
    'c': 'c: what it needs has failed',
  }
  assert set(heard) - {'a'} == set('de')


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('error', [StageFailedError('X'), OSError('disk')])
def test_a_failure_that_nothing_can_be_said_without_is_the_end(pool, error):
  made, done = line('a', 'B', 'c', B='a', c='B'), []

  def work(stage):
    if stage.name == 'B':
      raise error
    done.append(stage.name)
    return ''

  with pytest.raises(type(error), match=str(error)):
    scheduled(made, work, pool())
  assert done == ['a']


def quick(data_file, workdir, *more):
  names = '--strategies=retrain, finetune, top_k(k=3)'
  own = running.training(data_file, workdir, '--train_epochs=4', '--epochs=2')
  return *own, '--seeds=2', names, *more


@pytest.fixture(scope='module')
def finished(data_file, tmp_path_factory):
  """A study that is done, as one process does it: its folder."""
  workdir = tmp_path_factory.mktemp('local') / 'run'
  running.done('unlearn', *quick(data_file, workdir))
  return workdir


def digests(workdir):
  found = {}
  for path in workdir.glob('checkpoints/[!.]*/manifest.json'):
    found[path.parent.name] = json.loads(path.read_text())['state_sha256']
  return found


def numbers(workdir):
  """Of a report, without those that a clock has told."""
  rows = json.loads((workdir / 'report.json').read_text())['rows']
  return {
    (row['strategy'], name): column
    for row in rows
    for name, column in row['values'].items()
    if 'seconds' not in name and name != 'acceleration'
  }


def children(process):
  """Processes that compute for another."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      parent = int((path / 'stat').read_text().rpartition(')')[2].split()[1])
      if parent == process and b'spawn_main' in (path / 'cmdline').read_bytes():
        found.append(int(path.name))
    except OSError:  # It has ended.
      continue
  return sorted(found)


def test_a_cluster_gives_the_same_bits_though_a_worker_is_killed(
  finished, data_file, tmp_path
):
  pytest.importorskip('distributed')
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  more = '--engine=dask', '--workers=2', '--save_seconds=0'
  few = '--strategies=finetune'
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  environment['XLA_FLAGS'] = devices.flags(1)
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  environment['JAX_COMPILATION_CACHE_DIR'] = str(
    jax.config.jax_compilation_cache_dir
  )
  with log.open('w') as out:
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'experiments.unlearn'),
        *quick(data_file, workdir, *more, few),
      ],
      **{'cwd': ROOT, 'env': environment, 'stdout': out, 'stderr': out},
    )
  try:
    end = time.monotonic() + 120
    while len(list(workdir.glob('checkpoints/.*.partial/epoch*'))) < 2:
      assert process.poll() is None, log.read_text()
      assert time.monotonic() < end
      time.sleep(0.01)
    workers = children(process.pid)
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(120) == 0, log.read_text()
  finally:
    process.kill()
    process.wait()
  text = log.read_text()
  assert 'error: ' not in text and 'INFO' not in text, text
  assert len(workers) >= 2 and text.count(' done before') == 0
  ours, theirs = (digests(root) for root in (workdir, finished))
  both = 'source', 'finetune'
  assert ours == {n: d for n, d in theirs.items() if n.split('-')[1] in both}
  assert len(ours) == 4
  ours, theirs = (numbers(root) for root in (workdir, finished))
  for name, values in ours.items():  # Without Retrain there are fewer.
    assert values == theirs[name], name
  assert {name for name, _ in ours} == {*both}
  assert not list(workdir.glob('checkpoints/.*'))


def test_a_scheduler_that_does_not_answer_is_one_line(
  data_file, tmp_path, monkeypatch
):
  pytest.importorskip('distributed')
  monkeypatch.setattr(engine, '_PATIENCE', 1)
  for name in ('tcp://127.0.0.1:9', 'nonsense', '/none.json'):
    own = quick(data_file, tmp_path / name[-1], '--engine=dask')
    text = running.refused('unlearn', *own, f'--scheduler={name}', status=1)
    assert f'--scheduler={name}: no Dask scheduler answers there' in text
    assert 'allowed: its address, or its file' in text


@pytest.mark.parametrize('flag', ['scheduler=tcp://a:1', 'workers=2'])
def test_what_is_of_a_cluster_is_refused_without_one(data_file, tmp_path, flag):
  text = running.refused('unlearn', *quick(data_file, tmp_path), f'--{flag}')
  assert f'--{flag}, allowed: nothing, without --engine=dask' in text


def test_without_dask_it_is_said_how_to_get_it(
  data_file, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'distributed', None)
  own = quick(data_file, tmp_path / 'run', '--engine=dask')
  text = running.refused('unlearn', *own, status=2)
  assert '--engine=dask, allowed: local, or dask after pip install' in text


# From stages to numbers.


def history(*rows):
  return [Epoch(i, 0.5, *row) for i, row in enumerate(rows)]


# Seconds, accuracy on D_UL and on D_RE, bits to the source. The source has 0.5
# on D_RE; the rule holds where JS moves by 0.01 and D_RE is at 0.49.
CURVES = {
  'retrain': history(
    (0.0, 0.3, 0.3, 0.9),
    (30.0, 0.4, 0.4, 0.9),  # Too little is learned.
    (60.0, 0.4, 0.5, 0.895),
    (90.0, 0.4, 0.5, 0.895),
  ),
  'finetune': history(
    (0.0, 0.9, 0.5, 0.0),
    (3.0, 0.8, 0.5, 0.2),  # It moves too much.
    (6.0, 0.8, 0.5, 0.205),
    (9.0, 0.8, 0.5, 0.205),
  ),
  'top_k(k=3)': history(
    (0.0, 0.9, 0.5, 0.0),
    (10.0, 0.8, 0.5, 0.3),
    (20.0, 0.8, 0.5, 0.6),  # It never holds.
  ),
}


@pytest.fixture
def timed(finished, data_file, monkeypatch):
  """A report of the finished study as if those were its curves."""
  plan = planning.plan(running.study(*quick(data_file, finished)), finished)
  records = {
    run.strategies[name].key: Record(rows, 0.25, 4.0, 0.5, {}, 0.0)
    for run in plan.runs
    for name, rows in CURVES.items()
  }
  real = stages.load

  def load(stage):
    model = real(stage)
    record = records.get(stage.key, model.record)
    return dataclasses.replace(model, record=record)

  monkeypatch.setattr(results.stages, 'load', load)

  def report(share=0.98, **errors):
    failed = {}
    for name, run in errors.items():
      failed[plan.runs[run].strategies[name].key] = f'{name} diverged'
    methods = dataclasses.replace(plan.study.methods, stop_retain_share=share)
    study = dataclasses.replace(plan.study, methods=methods)
    own = dataclasses.replace(plan, study=study)
    made = results.report(results.measured(own, failed), 1.0)
    return {row.strategy: row for row in made.rows}, made

  return report


def test_time_runs_from_the_choice_to_the_stop_rule(timed):
  rows, _ = timed()
  seconds = {name: rows[name].values['seconds'] for name in CURVES}
  assert seconds == {
    'retrain': [64, 64],
    'finetune': [10, 10],
    'top_k(k=3)': [24, 24],  # All of it: a lower bound, which is said.
  }
  stops = {name: rows[name].stop_epoch for name in CURVES}
  assert stops == {
    'retrain': [2, 2],
    'finetune': [2, 2],
    'top_k(k=3)': [None, None],
  }
  (warning,) = rows['top_k(k=3)'].warnings
  assert 'the stop rule was not met in 2 of 2' in warning
  assert '≥' in str(tables.table(timed()[1], 'cost'))


def test_without_a_stop_rule_seconds_are_of_all_epochs_and_no_bound(timed):
  # However little the source knows.
  budget = config.Methods(stop_retain_share=1.5).budget(8)
  assert budget.stop_rule(0.5).retain_accuracy == np.inf
  rows, made = timed(share=1.5)
  seconds = {name: rows[name].values['seconds'] for name in CURVES}
  assert seconds == {
    'retrain': [94, 94],
    'finetune': [13, 13],
    'top_k(k=3)': [24, 24],
  }
  assert not any(row.warnings or row.stop_epoch for row in made.rows)
  assert rows['finetune'].values['acceleration'] == [94 / 13] * 2
  cost = tables.table(made, 'cost')
  assert 'Rule met, epoch' not in cost.columns
  shown = str(cost) + tables.csv(made)
  assert not any(sign in shown for sign in ('≥', '≤', '~', 'never'))
  assert 'There is none: every fine-tuning runs all' in made.stop_rule.text
  assert made.stop_rule.text[:-1] in str(wording.how_to_read(made))


def test_speed_up_is_that_of_retrain_over_its_own(timed):
  rows, _ = timed()
  assert rows['finetune'].values['acceleration'] == [6.4, 6.4]
  assert rows['top_k(k=3)'].values['acceleration'] == [64 / 24] * 2
  assert 'acceleration' not in rows['source'].values


def test_paired_differences_are_its_own_minus_the_control_s(timed):
  rows, _ = timed()
  assert rows['top_k(k=3)'].paired['seconds'].mean == 14
  assert not rows['finetune'].paired and not rows['source'].paired
  for name in ('gap_to_retrained', 'test_accuracy', 'mia_auc'):
    own, its = (rows[n].values[name] for n in ('top_k(k=3)', 'finetune'))
    got = rows['top_k(k=3)'].paired[name].mean
    assert got == pytest.approx(np.mean(np.subtract(own, its)))


def test_that_the_process_was_stopped_is_a_warning(
  data_file, tmp_path, monkeypatch
):
  stops = iter([0, *(1 for _ in range(99))])  # In the first stage.
  monkeypatch.setattr(signals, 'continued', lambda: next(stops))
  flags = quick(data_file, tmp_path / 'run', '--strategies=retrain')
  lines = [
    x for x in running.done('unlearn', *flags).split('\n') if 'was st' in x
  ]
  assert lines == [
    'warning: seed 0 · source: its process was stopped meanwhile (Ctrl-Z), and'
    ' its seconds count that'
  ]


def test_a_removed_work_directory_ends_the_run(
  data_file, tmp_path, monkeypatch
):
  workdir, real = tmp_path / 'run', provenance.code

  def removing():
    shutil.rmtree(workdir)
    return real()

  monkeypatch.setattr(provenance, 'code', removing)
  flags = quick(data_file, workdir, '--strategies=retrain')
  told = running.refused('unlearn', *flags)
  assert 'was removed while it was in use; allowed: the same command' in told
  assert not workdir.exists()


def test_a_stage_that_is_a_link_to_nothing_is_refused_at_once(tmp_path):
  stage = Stage(tmp_path, 'seed0-source', 'source', {}, None)
  stage.path.parent.mkdir()
  stage.path.symlink_to(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='is a link to nothing'):
    stage.done()


def test_of_a_seed_that_diverged_there_are_no_means(timed):
  rows, made = timed(finetune=1)
  control, own = rows['finetune'], rows['top_k(k=3)']
  assert control.label == 'Fine-tune only (K = 0) (diverged: 1 of 2 seeds)'
  assert control.values['seconds'] == [10, None]
  assert control.warnings == ['finetune diverged']
  assert control.mean == own.paired == {} and own.mean
  assert made.seeds == [0, 1] and len(control.checkpoints) == 1


def test_a_row_is_held_against_fine_tuning_that_is_guided_as_itself():
  text = 'finetune(js_weight=0.1), finetune, finetune(epochs=3), top_k, cf_k'
  chosen = strategies.parse(
    f"{text}, msg(epochs=3), top_k(js_teacher='retrained')"
  )
  plan = types.SimpleNamespace(study=config.Study(), chosen=chosen)
  controls = [results._control(plan, own).text for own in chosen[3:]]
  plain = ['finetune', 'finetune(epochs=3)', 'finetune']
  assert controls == ['finetune(js_weight=0.1)', *plain]


@pytest.mark.parametrize(
  'name, value',
  [
    *(('version', '9.9'), ('jax', '0.0'), ('device', 'tpu: v9')),
    ('source_sha256', 'ab'),
    *(('threads', 77), ('numerics', 'rbg, highest matmul')),
  ],
)
def test_stages_of_other_code_or_machines_are_a_warning(
  name, value, timed, monkeypatch
):
  _, made = timed()
  assert made.warnings == []
  code = dataclasses.replace(provenance.code(), **{name: value})
  monkeypatch.setattr(provenance, 'code', lambda: code)
  _, made = timed()
  (text,) = made.warnings
  assert text.startswith('8 stages were made by other code or elsewhere')
  assert f'here {value}' in text


# Forget sets that a reader should know of.


def test_cautions_are_said_once_for_seeds_that_are_alike():
  images = np.arange(8, dtype=np.uint8)[:, None]
  images[5:7] = images[0]  # Two copies of the first.
  every = Examples.of(images, np.array([0, 0, 1, 1, 1, 0, 0, 1]))
  train, test = every.take(np.arange(6)), every.take(np.arange(6, 8))
  setup = types.SimpleNamespace(
    dataset=types.SimpleNamespace(class_names=('a', 'b'))
  )
  first = Splits.of(train, np.array([0]), test)
  whole = Splits.of(train, np.array([2, 3, 4]), test)
  alone = whole._replace(unseen=test.take([]))
  found = setups.cautions(setup, {0: first, 1: whole, 2: alone, 3: first})
  assert found == [
    '1 retained and 1 test images equal one that is to be forgotten, which a'
    ' model will go on knowing by them (seeds 0, 3)',
    "nothing is retained of class 'b' (seeds 1, 2)",
    'no attack was made, and the gap leaves it out: the test set has no image'
    ' of a class that is to be forgotten (seed 2)',
  ]
