"""`experiments.unlearn --degree`: every strategy's degree, and its words."""

import io
import json
import os
import pathlib
import subprocess
import sys
import types

import fuzzing
import helpers
import jax
import numpy as np
import pytest

from experiments import (
  degree_section,
  degrees,
  flags,
  generator_flags,
  kept_pairs,
  problem,
)
from unlearn_jax import parallel
from unlearn_jax.base import InputError
from unlearn_jax.spd_gan import GeneratorSettings

ROOT = pathlib.Path(__file__).parent.parent
SETS = ('held_out', 'fitted', 'retain', 'test')


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


def arguments(data_file, workdir, seeds):
  return [
    *('--width=4', '--degree', f'--seeds={seeds}'),
    *(f'--dataset=npz:{data_file}', f'--workdir={workdir}'),
    *('--batch_size=24', '--train_epochs=6', '--train_learning_rate=0.01'),
    *('--epochs=1', '--k=5', '--sensitivity_examples=24'),
    *('--strategies=retrain,top_k', '--max_perturbation=8/255,none'),
    *('--degree_epochs=1', '--degree_batch_size=4', '--degree_width=2'),
  ]


def invoke(*told):
  """Runs the binary here, where programs are compiled once: its stdout."""
  out = io.StringIO()
  with parallel.use(jax.devices()[:1]):
    status, err = fuzzing.run_binary(
      'unlearn', arguments(*told), whole=True, out=out
    )
  assert status == 0, err
  return out.getvalue()


def invoke_process(*told):
  """The same as a process of its own."""
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.unlearn', *arguments(*told)],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module', params=[1, 2])
def finished(request, data_file, tmp_path_factory):
  """A finished work directory, with one seed and with two."""
  workdir = tmp_path_factory.mktemp('runs') / 'main'
  out = invoke(data_file, workdir, request.param)
  return workdir, out, request.param


def test_the_report_has_every_pair_at_every_bound(finished):
  workdir, out, seeds = finished
  found = json.loads((workdir / 'report.json').read_text())['degree']
  bounds = [own['settings']['max_perturbation'] for own in found]
  assert bounds == [8 / 255, None]
  for own in found:
    assert [row['strategy'] for row in own['rows']] == ['retrain', 'top_k']
    assert own['seeds'] == len(own['null']['runs']) == seeds
    for (run,) in own['identity']['runs']:
      assert run['held_out']['degree'] == 0
    for row in own['rows']:
      for runs in (row['runs'], row['unseen_runs']):
        assert [len(generators) for generators in runs] == [5] * seeds
      every = [
        [run['held_out']['degree'] for run in generators]
        for generators in row['runs']
      ]
      assert row['degree']['mean'] == pytest.approx(np.mean(every))
      null = own['null']['degree']['mean']
      assert row['calibrated']['difference']['mean'] == pytest.approx(
        row['degree']['mean'] - null
      )
  for name in ('report.md', 'report.html'):
    text = (workdir / name).read_text()
    for words in ('within 8/255', 'without a bound', 'Unseen images'):
      assert words in text
  names = {path.stem for path in (workdir / 'figures').glob('degree*.png')}
  assert names == {
    f'degree_{what}_{bound}'
    for what in ('bars', 'images')
    for bound in ('8_255', 'unbounded')
  }
  html = (workdir / 'report.html').read_text()
  assert html.count('<figure') == 3 + len(names)
  assert out.count('Top-K: its degree') == 2


def test_the_twin_is_the_next_seeds_source_or_trained_for_this(finished):
  workdir, _, seeds = finished
  sources = [p.name for p in (workdir / 'checkpoints').glob('*-source-*')]
  assert sorted(name[:5] for name in sources) == ['seed0', 'seed1']
  nulls = (workdir / 'degrees').glob('*-null-*')
  assert len(list(nulls)) == 2 * seeds


def test_no_pair_is_measured_twice_and_a_damaged_one_is_named(
  finished, data_file
):
  workdir, _, seeds = finished
  kept = sorted((workdir / 'degrees').iterdir())
  stamps = [path.stat().st_mtime_ns for path in kept]
  before = json.loads((workdir / 'report.json').read_text())['degree']
  # Once by a process, whose flags are its own and which finds all of this.
  again = invoke if seeds > 1 else invoke_process
  again(data_file, workdir, seeds)
  assert [path.stat().st_mtime_ns for path in kept] == stamps
  assert sorted((workdir / 'degrees').iterdir()) == kept
  after = json.loads((workdir / 'report.json').read_text())['degree']
  assert after == before
  content = kept[0].read_bytes()
  for broken in (content[:100], b'', b'PK\x03\x04' + bytes(200)):
    kept[0].write_bytes(broken)
    with pytest.raises(InputError, match='is damaged'):
      kept_pairs.read(kept[0])
  kept[0].write_bytes(content)


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'max_perturbation': '8/255,2'}, '--max_perturbation=2.0, allowed: above'),
    ({'max_perturbation': ''}, '--max_perturbation=, allowed: a number'),
    ({'eta': -1.0}, '--eta=-1.0, allowed: 0 or more'),
    ({'cap': '0'}, '--cap=0.0, allowed: nats above 0'),
    ({'degree_seeds': 4}, '--degree_seeds=4, allowed: 5 or more'),
    ({'degree_limit': 0}, '--degree_limit=0, allowed: 1 or more'),
    ({'degree_epochs': 0}, '--degree_epochs=0, allowed: 1 or more'),
    ({'degree_width': 0}, '--degree_width=0, allowed: 1 or more'),
    ({'degree_batch_size': 0}, '--degree_batch_size=0, allowed: a positive'),
    ({'degree_batch_size': 96}, '--degree_batch_size=96, allowed: at most 90'),
    ({'degree_learning_rate': 1.0}, '--degree_learning_rate=1.0, allowed: a'),
    ({'source_dir': 'x'}, '--degree=true, allowed: only with sources that'),
  ],
)
def test_bad_flags_are_named(changed, message):
  values = types.SimpleNamespace(
    dataset='digits',
    data_dir=None,
    raw_dir=None,
    train_subset=None,
    model='cnn',
    width=2,
    dtype='float32',
    forget_ids=None,
    forget_fraction=0.125,
    seed=0,
    split_seed=None,
    source_dir=None,
    max_perturbation='8/255',
    cap='default',
    eta=0.03,
    degree_epochs=1,
    degree_batch_size=8,
    degree_learning_rate=1e-3,
    degree_width=2,
    degree_seeds=5,
    degree_limit=10,
  )
  setup = problem.set_up(values)
  wanted = [GeneratorSettings(epochs=1, batch_size=8, width=2)]
  assert degrees.check(setup) == wanted
  values.max_perturbation = '8/255,8/255'  # Each bound once.
  assert degrees.check(setup) == wanted
  values.max_perturbation = '8/255'
  for name, value in changed.items():
    setattr(values, name, value)
  with pytest.raises(flags.FlagError) as caught:
    degrees.check(setup)
  assert str(caught.value).startswith(message)


def test_one_bound_only_where_two_checkpoints_are_compared():
  values = types.SimpleNamespace(seeds=5, limit=1, max_perturbation='0.1,0.2')
  with pytest.raises(flags.FlagError, match='allowed: one'):
    generator_flags.settings(values)


def pairs_of(*seeds):
  """A pair a seed, whose generators have these degrees."""
  made = []
  for generators in seeds:
    runs = [
      {
        'seed': i,
        'curve': [1, 2],
        'pixels': {'linf': 8 / 255, 'rms': 4 / 255, 'psnr': None, 'ssim': 1.0},
        **{
          part: {
            'degree': value,
            'gap': 0.25,
            'excess': value - 0.25,
            'source_clean': 0.9,
            'source_perturbed': 0.8,
            'unlearned_clean': 0.7,
            'unlearned_perturbed': 0.1,
          }
          for part in SETS
        },
      }
      for i, value in enumerate(generators)
    ]
    found = {'runs': runs, 'took_off': 1}
    made.append(kept_pairs.Pair(found, *(np.zeros(0),) * 3))
  return made


def measured(null, top_k, retrain, unseen):
  return degrees.Measured(
    settings=GeneratorSettings(),
    seeds=2,
    null=pairs_of(*null),
    identity=pairs_of(*([0.0] for _ in null)),
    known={'top_k': pairs_of(*top_k), 'retrain': pairs_of(*retrain)},
    unseen={'top_k': pairs_of(*unseen), 'retrain': pairs_of(*unseen)},
  )


def test_a_summary_by_hand():
  # Of several seeds each counts once, as the mean of its generators.
  several = degree_section.summary(
    measured(
      null=[[0.0, 0.2], [0.1, 0.3], [0.0, 0.0]],
      top_k=[[0.5, 0.7], [0.6, 0.8], [0.3, 0.3]],
      retrain=[[0.6, 0.6], [0.7, 0.7], [0.5, 0.7]],
      unseen=[[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]],
    )
  )
  retrain, top_k = several['rows']
  assert (retrain['strategy'], top_k['strategy']) == ('retrain', 'top_k')
  assert top_k['degree']['mean'] == pytest.approx((0.6 + 0.7 + 0.3) / 3)
  assert top_k['degree']['size'] == 3
  difference = top_k['calibrated']['difference']
  assert difference['mean'] == pytest.approx((0.5 + 0.5 + 0.3) / 3)
  assert top_k['gap']['mean'] == 0.25 and top_k['took_off'] == 3
  assert top_k['unseen']['mean'] == pytest.approx(0.1)
  assert 'curve' not in top_k['runs'][0][0]
  # Of one seed each generator counts.
  one = degree_section.summary(
    measured([[0.0, 0.2]], [[0.5, 0.7]], [[0.6, 0.6]], [[0.6, 0.6]])
  )
  own = one['rows'][1]['degree']
  assert own['size'] == 2 and own['mean'] == pytest.approx(0.6)
  (section,) = degree_section.sections({'degree': [one]})
  assert 'One seed, 2 generators' in section.notes[-1]
  assert 'not resolvably more than on images' in section.sentences[1]
  first, second = section.tables
  assert first[1][-1][0].startswith('Null') and len(first[1]) == 3
  for head, rows in section.tables:
    assert {len(row) for row in rows} == {len(head)}
  assert second[1][1][1:5] == ['90.0 ± 0.0', '80.0 ± 0.0', '70.0 ± 0.0'] + [
    '10.0 ± 0.0'
  ]
  assert degree_section.sections({}) == []


def test_bars_have_a_dot_a_generator_and_the_interval_over_seeds():
  found = degree_section.summary(
    measured(
      null=[[0.0, 0.2], [0.1, 0.3]],
      top_k=[[0.5, 0.7], [0.6, 0.8]],
      retrain=[[0.6, 0.6], [0.7, 0.7]],
      unseen=[[0.0, 0.0], [0.1, 0.1]],
    )
  )
  (axes,) = degree_section.bars(found, 10).axes
  dots = [line.get_xdata() for line in axes.lines if line.get_marker() == 'o']
  np.testing.assert_allclose(dots[1], [50, 70, 60, 80])
  band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
  np.testing.assert_allclose([band.x0, band.x1], [0, 30], atol=1e-9)
