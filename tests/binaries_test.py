"""The binaries as a person meets them: results, repeats, and bad input."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal

import filelock
import helpers
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

from experiments.runtime import signals
from experiments.workdir import finished as kept
from unlearn_jax import checkpoints, data
from unlearn_jax.recipes import RECIPES

MINE = """
from unlearn_jax.strategies import METHOD, Strategy, Term, retained

def mine(alpha: float = 0.5):
  '''Trains on D_RE, and that by alpha.'''
  return Strategy('Mine', METHOD, terms=(Term(retained, weight=alpha),))
"""
# As somebody types them: the row's name, its label, and its folder's name.
STRATEGIES = {
  'retrain': ('retrain', 'Retrain', 'retrain'),
  'finetune': ('finetune', 'Fine-tune only (K = 0)', 'finetune'),
  'top_k(k=3)': ('top_k(k=3)', 'Top-K (k=3)', 'top_k'),
  'top_k(k=0.05, epsilon=1)': (
    'top_k(k=0.05, epsilon=1.0)',
    'Top-K (k=0.05, epsilon=1.0)',
    'top_k',
  ),
  'h7_own.method:mine(alpha=.3)': (
    'h7_own.method:mine(alpha=0.3)',
    'Mine (alpha=0.3)',
    'h7_own.method.mine',
  ),
}
DEGREE = (
  *('--degree_epochs=1', '--degree_batch_size=4', '--degree_width=2'),
  '--max_perturbation=none',
)


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


def quick(data_file, workdir, *more):
  names = f'--strategies={", ".join(STRATEGIES)}'
  return running.training(
    data_file, workdir, '--epochs=2', '--seeds=2', names, *more
  )


@pytest.fixture(scope='module')
def main(data_file, tmp_path_factory):
  """A work directory in which the main job has run, its stdout, its report."""
  own, workdir = (tmp_path_factory.mktemp('own') / n for n in ('code', 'run'))
  (own / 'h7_own').mkdir(parents=True)
  (own / 'h7_own' / 'method.py').write_text(MINE)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(own)
    out = running.done('unlearn', *quick(data_file, workdir))
    yield workdir, out, report_of(workdir)


def report_of(workdir):
  return json.loads((workdir / 'report.json').read_text())


def folder(workdir, name, seed=0):
  """The first finished stage of this name."""
  return next(iter(workdir.glob(f'checkpoints/seed{seed}-{name}-*')))


def stages(workdir):
  return {path.name for path in (workdir / 'checkpoints').iterdir()}


# The main job.


def test_each_strategy_has_a_row_a_label_and_a_stage_a_seed(main):
  workdir, out, report = main
  rows = report['rows'][1:]
  found = [(row['strategy'], row['label']) for row in rows]
  assert found == [own[:2] for own in STRATEGIES.values()]
  for row, (*_, name) in zip(rows, STRATEGIES.values()):
    for seed, path in enumerate(row['checkpoints']):
      assert re.fullmatch(
        rf'seed{seed}-{name}-[0-9a-f]{{12}}', pathlib.Path(path).name
      )
      assert kept.manifest(pathlib.Path(path)).strategy == row['strategy']
    assert len(row['checkpoints']) == len(row['curves']) == 2
    assert row['strategy'] in out
  assert len(stages(workdir)) == 2 * (1 + len(STRATEGIES))
  assert rows[-1]['parameters']['alpha'] == 0.3
  assert report['config']['seeds'] == 2 and report['seeds'] == [0, 1]


def test_numbers_are_what_they_are_said_to_be(main):
  rows = {row['strategy']: row for row in main[2]['rows']}
  for row in rows.values():
    for name, interval in row['mean'].items():
      assert interval['mean'] == pytest.approx(np.mean(row['values'][name]))
  assert rows['source']['values']['forgetting_rate'] == [0, 0]
  assert rows['top_k(k=3)']['values']['scalars_changed'] == [3, 3]
  assert rows['finetune']['values']['scalars_changed'] == [0, 0]
  for name in ('source', 'finetune', 'retrain'):  # Seeds differ in all.
    paths = [folder(main[0], name, seed) for seed in (0, 1)]
    assert len({kept.manifest(path).state_sha256 for path in paths}) == 2
    if name != 'source':
      assert len({(path / 'forget.txt').read_text() for path in paths}) == 2


def test_every_output_is_there_and_names_the_strategies(main):
  workdir, out, _ = main
  for name in ('report.md', 'report.html', 'report.csv', 'report.tex'):
    assert 'Mine' in (workdir / name).read_text(), name
  where = f'Checkpoints: {workdir / "checkpoints"}\n'
  assert out.endswith(f'{where}Report: {workdir / "report.html"}\n')
  assert len(list(workdir.glob('figures/*.png'))) == 2
  title, *_ = (workdir / 'report.md').read_text().splitlines()
  assert ' npz:stripes.npz images ' in title  # No path.


def test_the_same_command_does_nothing_twice(main, data_file):
  workdir, _, before = main
  written = {
    path: path.stat().st_mtime_ns
    for path in helpers.files(workdir / 'checkpoints')
  }
  out = running.done('unlearn', *quick(data_file, workdir))
  assert out.count('done before') == 2 * (1 + len(STRATEGIES))
  assert {path: path.stat().st_mtime_ns for path in written} == written
  assert report_of(workdir)['rows'] == before['rows']


@pytest.mark.parametrize(
  'flags, kinds',
  [
    (['--epochs=1'], {'finetune', 'top_k', 'h7_own.method.mine'}),
    (['--unlearn_seed=9', '--strategies=finetune'], {'finetune'}),
    (['--strategies=retrain, finetune, cf_k(k=2)'], {'cf_k'}),
  ],
)
def test_changed_flags_redo_what_depends_on_them(flags, kinds, main, data_file):
  workdir = main[0]
  before = stages(workdir)
  running.done('unlearn', *quick(data_file, workdir, '--seeds=1'), *flags)
  new = {name.rsplit('-', 1)[0] for name in stages(workdir) - before}
  assert new == {f'seed0-{kind}' for kind in kinds}


def test_a_stop_flag_dates_retrain_anew_without_training_it(main, data_file):
  more = '--seeds=1', '--strategies=retrain', '--stop_js_change=1'
  own = quick(data_file, main[0], *more, '--stop_retain_share=0')
  assert running.done('unlearn', *own).count('done before') == 2
  assert report_of(main[0])['rows'][1]['stop_epoch'] == [1]


def test_a_class_that_is_forgotten_whole_is_a_warning(
  main, data_file, tmp_path
):
  with np.load(data_file) as arrays:
    rows = np.flatnonzero(arrays['y_train'] == 1)
  file = tmp_path / 'forget.txt'
  file.write_text('\n'.join(map(str, rows)))
  source = folder(main[0], 'source')
  own = quick(data_file, tmp_path / 'run', '--strategies=finetune')
  more = f'--forget=ids({file})', f'--source_dir={source}'
  out = running.done('unlearn', *own, *more)
  told = "warning: nothing is retained of class '1' (seeds 0, 1)\n"
  # Before anything is trained, and with the report.
  before, _, after = out.partition('\n[1/')
  assert before.count(told.strip()) == after.count(told) == 1
  assert len(report_of(tmp_path / 'run')['warnings']) == 1
  named = folder(tmp_path / 'run', 'finetune') / 'forget.txt'
  assert sorted(map(int, named.read_text().split())) == rows.tolist()


def test_what_diverges_is_named_while_the_others_go_on(
  main, data_file, tmp_path
):
  shutil.copytree(main[0], tmp_path / 'run')  # The sources are there.
  names = 'finetune, top_k(k=3, epsilon=1e38), cf_k(k=2)'
  own = quick(data_file, tmp_path / 'run', f'--strategies={names}')
  out = running.done('unlearn', *own)
  assert 'warning: seed 0 · top_k(k=3, epsilon=1e+38) diverged in epoch' in out
  rows = {row['name']: row for row in report_of(tmp_path / 'run')['rows']}
  failed = rows['top_k']
  assert failed['label'].endswith('(diverged: 2 of 2 seeds)')
  assert (failed['values'], failed['mean'], failed['curves']) == ({}, {}, [])
  assert len(failed['warnings']) == 2 and rows['cf_k']['mean']
  for name in ('report.md', 'report.html'):
    text = (tmp_path / 'run' / name).read_text().replace('\xa0', ' ')
    assert '(diverged: 2 of 2 seeds)' in text and 'diverged in epoch' in text


@pytest.mark.parametrize('name', ['source', 'retrain'])
def test_a_source_or_retrain_that_diverges_ends_the_run(
  name, data_file, tmp_path, monkeypatch
):
  def breaks(rate, steps):
    # Ten steps an epoch on D, nine on D_RE.
    after = {60: 25 if name == 'source' else 60, 54: 0}[steps]
    return optax.scale_by_schedule(
      lambda step: jnp.where(step < after, 0.0, jnp.inf)
    )

  paper = RECIPES['paper']._replace(optimizer=breaks)
  monkeypatch.setitem(RECIPES, 'paper', paper)
  own = quick(data_file, tmp_path / 'run', '--strategies=retrain', '--seeds=1')
  line = running.refused('unlearn', *own, status=1)
  epoch = {'source': 3, 'retrain': 1}[name]
  assert line.startswith(f'error: seed 0 · {name} diverged in epoch {epoch}: ')
  assert 'allowed: smaller learning rates' in line
  assert not (tmp_path / 'run' / 'report.json').exists()


# One model.


def test_train_shares_the_stages_of_unlearn_and_feeds_it(
  main, data_file, tmp_path
):
  workdir = main[0]
  before = stages(workdir)
  found = {}
  for subset in ('all', 'retain'):
    own = running.training(data_file, workdir, f'--subset={subset}')
    out = running.done('train', *own)
    assert 'done before' in out and stages(workdir) == before
    found[subset] = re.search(r'Checkpoint: (.*)', out)[1]
    name = {'all': 'source', 'retain': 'retrain'}[subset]
    (row,) = [r for r in main[2]['rows'] if r['strategy'] == name]
    for part in ('forget', 'retain', 'test'):
      value = 100 * row['values'][f'{part}_accuracy'][0]
      assert f'{part:7} accuracy {value:.2f} %' in out
  assert found['all'] == str(folder(workdir, 'source'))
  more = '--seeds=1', '--strategies=finetune', '--epochs=1'
  own = quick(data_file, tmp_path / 'run', *more)
  given = f'--source_dir={found["all"]}', f'--retrained_dir={found["retain"]}'
  running.done('unlearn', *own, *given)
  rows = report_of(tmp_path / 'run')['rows']
  assert [row['strategy'] for row in rows] == ['source', 'retrain', 'finetune']
  for row, own in zip(rows[:2], main[2]['rows']):
    for name in ('test_accuracy', 'mia_auc'):
      assert row['values'][name] == own['values'][name][:1]
  assert {name.split('-')[1] for name in stages(tmp_path / 'run')} == {
    'finetune'
  }


def test_a_retrain_is_trained_as_the_source_was_that_is_given(
  main, data_file, tmp_path
):
  source, run = folder(main[0], 'source'), tmp_path / 'run'
  own = f'--dataset=npz:{data_file}', '--width=4', f'--workdir={run}'
  more = '--epochs=1', '--seeds=1', f'--source_dir={source}'
  running.done('unlearn', *own, *more, '--strategies=retrain')
  made = kept.manifest(folder(run, 'retrain'))
  assert made.recipe == kept.manifest(source).recipe
  assert (
    made.state_sha256 == kept.manifest(folder(main[0], 'retrain')).state_sha256
  )
  asked = *own, *more, '--strategies=finetune, retrain', '--train_epochs=3'
  line = running.refused('unlearn', *asked, status=2)
  assert '--train_epochs=3, allowed: 6, as the source was trained' in line
  # Of one that does not say, it has to be said.
  foreign = tmp_path / 'foreign'
  state, manifest = checkpoints.restore(source)
  for entry in ('depends', 'files_sha256', 'manifest_sha256', 'recipe'):
    del manifest[entry]
  checkpoints.save(foreign, state, manifest)
  own = *own, *more[:2], f'--source_dir={foreign}', '--strategies=retrain'
  line = running.refused('unlearn', *own, status=2)
  assert f'--recipe=, allowed: said: {foreign} does not tell how' in line
  running.done('unlearn', *own, '--recipe=paper', '--train_epochs=1')


def trained(*arguments):
  out = running.done('train', *arguments)
  return kept.manifest(pathlib.Path(re.search('Checkpoint: (.*)', out)[1]))


def test_the_manifest_says_how_a_model_was_trained(data_file, tmp_path):
  own = running.training(
    data_file, tmp_path, '--recipe=standard', '--noaugment'
  )
  said = trained(*own, '--train_epochs=1', '--dtype=bfloat16')
  assert (said.dtype, said.strategy, said.seed) == ('bfloat16', 'source', 0)
  assert said.recipe == kept.Recipe('momentum', 1, 0.01, 24, False)


def test_a_source_learns_the_labels_that_its_data_have(tmp_path):
  own = '--train_epochs=1', '--width=2', f'--workdir={tmp_path}'
  said = trained('--dataset=digits', *own)
  assert said.recipe.learning_rate == 1e-3  # The paper's.
  retrain = trained('--dataset=digits', '--subset=retain', *own)
  assert said.given_labels == retrain.given_labels == []
  assert retrain.parent_sha256 == said.state_sha256


def test_streamed_data_give_the_model_of_resident_data(
  main, data_file, tmp_path
):
  said = trained(*running.training(data_file, tmp_path), '--device_data_mb=0')
  resident = kept.manifest(folder(main[0], 'source'))
  assert said.state_sha256 == resident.state_sha256


# One checkpoint.


@pytest.mark.parametrize('name', ['source', 'retrain', 'top_k(k=3)'])
def test_evaluate_gives_the_numbers_of_the_report_again(name, main):
  (row,) = [r for r in main[2]['rows'] if r['strategy'] == name]
  path = row['checkpoints'][1]
  more = []
  if name == 'source':  # It belongs to no forget set of its own.
    ids = folder(main[0], 'finetune', 1) / 'forget.txt'
    more = [f'--forget_ids={ids}']
  got = json.loads(running.done('evaluate', f'--checkpoint={path}', *more))
  assert {'forget_accuracy', 'mia_auc', 'similarity'} <= set(got)
  # Ids alone do not say that they were drawn from all classes alike.
  drawn = {'mia_auc', 'rmia_auc', 'gap_to_retrained'}
  for metric in {*got} - (drawn if name == 'source' else set()):
    wanted = row['values'].get(metric, [None, None])[1]
    assert got[metric] == pytest.approx(wanted, abs=1e-6), metric


def test_references_judge_retrain_too_and_evaluate_finds_them(
  main, data_file, tmp_path
):
  own = '--seeds=1', '--strategies=retrain, finetune', '--epochs=1'
  forget = '--forget=class(1, 0.5)'
  args = *quick(data_file, tmp_path, *own), forget
  out = running.done('unlearn', *args, '--references=2')
  assert out.count('retrain, reference ') == 2
  found = {row['strategy']: row for row in report_of(tmp_path)['rows']}
  for name, row in found.items():
    assert 0 <= row['values']['rmia_auc'][0] <= 1
    if name != 'source':
      path = row['checkpoints'][0]
      got = json.loads(running.done('evaluate', f'--checkpoint={path}'))
      for metric in ('mia_auc', 'rmia_auc', 'gap_to_retrained'):
        wanted = row['values'].get(metric, [None])[0]
        assert got[metric] == pytest.approx(wanted, abs=1e-6), metric
  models = {row['checkpoints'][0] for row in found.values()}
  others = [kept.load(p) for p in (tmp_path / 'checkpoints').iterdir()]
  digests = {own.manifest.state_sha256 for own in others}
  assert len(digests) == len(others) == len(models) + 1
  # One of the references has a row of its own: how far chance alone leads.
  assert [*found] == ['source', 'retrain', 'null', 'finetune']
  assert found['null']['values']['gap_to_retrained'][0] > 0
  assert not found['null']['paired'] and not found['null']['curves']
  # By itself alone Retrain is not judged.
  rows = {row['strategy']: row for row in main[2]['rows']}
  assert 'rmia_auc' not in rows['retrain']['values']
  assert 'rmia_auc' in rows['finetune']['values']


@pytest.fixture(scope='module')
def degree(main, data_file):
  """The degrees of seed 0 as `unlearn` measures them."""
  more = '--seeds=1', '--degree', '--strategies=retrain, top_k(k=3)', *DEGREE
  out = running.done('unlearn', *quick(data_file, main[0]), *more)
  (found,) = report_of(main[0])['degree']
  return found, out


def generators(found):
  """Of each row, and of the null, without what a clock has told."""
  rows = {row['strategy']: row['generators'] for row in found['rows']}
  rows |= {f'{r["strategy"]} unseen': r['unseen'] for r in found['rows']}
  return {**rows, 'null': found['null']}


def test_the_report_has_every_degree_and_its_null(main, degree):
  workdir = main[0]
  found, out = degree
  assert [row['strategy'] for row in found['rows']] == ['retrain', 'top_k(k=3)']
  assert found['settings']['max_perturbation'] is None
  for own in generators(found).values():
    assert [len(runs) for runs in own] == [5]
  for row in found['rows']:
    held_out = [run['held_out'] for run in row['generators'][0]]
    every = [
      own['source_perturbed'] - own['unlearned_perturbed'] for own in held_out
    ]
    assert row['degree']['mean'] == pytest.approx(np.mean(every))
    difference = row['degree']['mean'] - found['null_degree']['mean']
    assert row['difference']['mean'] == pytest.approx(difference)
  # M′ is the source of the next seed, which was there.
  assert 'seed 1 · source' in out and out.count('done before') == 4
  names = {path.stem for path in (workdir / 'figures').glob('degree*.png')}
  assert names == {'degree_bars_unbounded', 'degree_images_unbounded'}


def one_degree(main, workdir, *more, run=running.done):
  path = f'--checkpoint={main[2]["rows"][3]["checkpoints"][0]}'
  own = '--degree', path, f'--workdir={workdir}', *DEGREE
  return run('evaluate', *own, *more)


def measured(workdir):
  record = json.loads((workdir / 'degree.json').read_text())
  found = generators(record['degree'][0])
  assert found.pop('retrained')  # Of the names that `of_unlearn` has.
  return {name: runs for name, runs in found.items() if runs}


def of_unlearn(found):
  """What `evaluate --degree` of that strategy has to find."""
  own = generators(found)
  return {
    'unlearned': own['top_k(k=3)'],
    'unlearned unseen': own['top_k(k=3) unseen'],
    'retrained unseen': own['retrain unseen'],
    'null': own['null'],
  }


def test_evaluate_measures_the_degree_of_unlearn_and_goes_on(
  main, degree, tmp_path, monkeypatch
):
  # Each generator is one epoch, a save at its end, and another of the pair.
  answers = iter([None] * 12 + [signal.SIGTERM])
  with monkeypatch.context() as patch:
    patch.setattr(signals, 'requested', lambda: next(answers))
    status, _, err = one_degree(main, tmp_path / 'run', run=running.run)
  assert status == 128 + signal.SIGTERM and err.startswith('stopped by SIGTERM')
  assert list(tmp_path.glob('run/checkpoints/*'))
  out = one_degree(main, tmp_path / 'run')
  assert 'done before' in out or 'goes on after' in out
  assert measured(tmp_path / 'run') == of_unlearn(degree[0])
  assert not list(tmp_path.glob('run/checkpoints/.*'))
  assert not list(tmp_path.glob('run/checkpoints/*source*'))  # It was found.
  for name in ('degree.md', 'degree.html'):
    assert 'the null' in (tmp_path / 'run' / name).read_text(), name
  again = one_degree(main, tmp_path / 'run')
  assert again.count('done before') == 5
  # Where another model is measured, nothing is overwritten.
  other = folder(main[0], 'finetune')
  line = one_degree(
    main, tmp_path / 'run', f'--checkpoint={other}', run=running.refused
  )
  assert 'belongs to checkpoint=' in line


def test_the_null_is_found_or_named(main, degree, tmp_path):
  alone, twin = tmp_path / 'alone', folder(main[0], 'source', 1)
  for row in (0, 1, 3):  # Without the twin, and the model itself at last.
    path = pathlib.Path(main[2]['rows'][row]['checkpoints'][0])
    shutil.copytree(path, alone / path.name)
  more = f'--checkpoint={alone / path.name}', '--nodegree_unseen'
  known = {n: v for n, v in of_unlearn(degree[0]).items() if ' ' not in n}
  told = one_degree(main, tmp_path / 'run', *more, run=running.refused)
  assert '--null_dir=, allowed: a source of another seed' in told
  assert not (tmp_path / 'run').exists()
  out = one_degree(main, tmp_path / 'run', f'--null_dir={twin}', *more)
  assert '· source' not in out and 'done before' not in out
  assert measured(tmp_path / 'run') == known


# Held-out data.


@pytest.fixture(scope='module')
def held(main, data_file, tmp_path_factory):
  """The same job where main has run, with a fifth of its test images apart."""
  workdir = tmp_path_factory.mktemp('held') / 'run'
  shutil.copytree(main[0], workdir)
  names = (
    '--strategies=retrain, finetune, regun, scrub(rewind=True),'
    ' finetune(js_teacher="heldout")'
  )
  args = *quick(data_file, workdir, names, '--seeds=1'), '--references=1'
  out = running.done('unlearn', *args, '--heldout=0.2')
  return workdir, out, report_of(workdir)


def test_what_is_held_out_is_said_and_no_test_image(held, main):
  _, out, report = held
  before, after = main[2]['dataset'], report['dataset']
  assert (before['test'], before['heldout']) == (60, 0)
  assert (after['test'], after['heldout']) == (48, 12)
  assert 'Test images that methods alone see: 12' in out
  page = (held[0] / 'report.md').read_text()
  assert '48 more for testing, 12 for methods alone)' in page
  assert 'for methods alone' not in (main[0] / 'report.md').read_text()


def test_only_sources_are_the_same_whatever_is_held_out(held, main, data_file):
  own, before = stages(held[0]) - stages(main[0]), stages(main[0])
  assert len(own) == 6 and not any('source' in name for name in own)
  assert before < stages(held[0])
  (row,) = [r for r in held[2]['rows'] if r['name'] == 'source']
  # Of kept outputs on all test images those of the others.
  path = pathlib.Path(row['checkpoints'][0])
  with np.load(path / 'logits.npz') as kept, np.load(data_file) as raw:
    found, labels = kept['test'].argmax(-1), raw['y_test']
  said = json.loads((path / 'manifest.json').read_text())
  assert len(found) == 60 and not said['heldout']
  dataset = data.load(f'npz:{data_file}')
  judged = data.set_aside(dataset, 0.2)[0].test.indices
  accuracy = (found == labels)[judged].mean()
  assert row['values']['test_accuracy'] == [pytest.approx(accuracy)]


@pytest.mark.parametrize(
  'name',
  [
    *('retrain', 'finetune', 'regun', 'scrub(rewind=True)'),
    "finetune(js_teacher='heldout')",
  ],
)
def test_evaluate_knows_what_was_held_out(name, held):
  # Beside it are those of a run that held nothing out.
  (row,) = [r for r in held[2]['rows'] if r['strategy'] == name]
  (path,) = row['checkpoints']
  got = json.loads(running.done('evaluate', f'--checkpoint={path}'))
  assert {'test_accuracy', 'mia_auc', 'rmia_auc'} <= {*got}
  for metric, value in got.items():
    wanted = row['values'].get(metric, [None])[0]
    assert value == pytest.approx(wanted, abs=1e-6), metric


def test_a_retrain_of_other_held_out_images_is_judged_by_these(
  held, main, data_file, tmp_path
):
  names = '--strategies=finetune', '--seeds=1', '--heldout=0.2'
  given = f'--retrained_dir={folder(main[0], "retrain")}'
  running.done('unlearn', *quick(data_file, tmp_path, *names), given)
  values = [
    row['values']
    for report in (report_of(tmp_path), held[2])
    for row in report['rows']
    if row['name'] == 'retrain'
  ]
  for metric in ('test_accuracy', 'mia_auc', 'forget_accuracy'):
    assert values[0][metric] == pytest.approx(values[1][metric], abs=1e-6)


@pytest.mark.parametrize('name', ['regun', "top_k(k=3, js_teacher='heldout')"])
def test_what_needs_held_out_images_is_refused_without(
  name, data_file, tmp_path
):
  own = quick(data_file, tmp_path / 'run', f'--strategies=retrain, {name}')
  said = f'--heldout=0.0, allowed: above 0 and at most 0.9, for {name} needs'
  assert said in running.refused('unlearn', *own, status=2)
  assert said[:58] in running.refused('tune', *own, status=2)
  flags = f'--dataset=npz:{data_file}', f'--strategies={name}'
  audit = running.refused('audit', *flags, status=2)
  assert f'{name}, allowed: none that needs held-out images' in audit
  paths = [f'--{flag}={tmp_path / "run"}' for flag in ('source', 'ids', 'out')]
  forget = running.refused('forget', *paths, f'--strategy={name}', status=2)
  assert f'{name}, allowed: one that needs no held-out images' in forget
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('share', ['-0.1', '0.95', 'nan'])
def test_a_share_that_cannot_be_held_out(share, data_file, tmp_path):
  own = quick(data_file, tmp_path / 'run', f'--heldout={share}')
  said = f'--heldout={share}, allowed: 0 to 0.9'
  assert said in running.refused('unlearn', *own, status=2)


# Bad input: one line, the right status, and nothing on disk.

BAD_FLAGS = {
  '--batch_size=100000': 'at most the 216 retained examples',
  '--train_subset=241': '1 to 240',
  '--width=2000000': 'at most 2147483647 parameters',
  '--degree_batch_size=99': 'at most 12, half of the forget set',
  '--source_dir=x': '--degree=true, allowed: only with sources that',
  '--no_such_flag=1': 'no_such_flag',
  'stray': "'stray' is not a flag, allowed: --name=value",
}


@pytest.mark.parametrize('flag', BAD_FLAGS)
def test_bad_flags(flag, main, data_file, tmp_path):
  words = BAD_FLAGS[flag]
  if flag == '--source_dir=x':
    flag = f'--source_dir={folder(main[0], "source")}'
  own = quick(data_file, tmp_path / 'run', '--degree', flag)
  assert words in running.refused('unlearn', *own, status=2)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['unlearn', 'train'])
def test_a_directory_that_is_in_use_is_left_alone(name, data_file, tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  with filelock.FileLock(workdir / '.unlearn_jax.lock'):
    own = running.training(data_file, workdir)
    line = running.refused(name, *own, status=1)
  assert f'--workdir={workdir} is in use' in line
  assert len(helpers.files(workdir)) <= 1  # The lock.


def test_a_batch_that_the_devices_cannot_share(data_file, tmp_path):
  own = quick(data_file, tmp_path / 'run', '--batch_size=27')
  line = running.refused('unlearn', *own, status=2, devices=4)
  assert '--batch_size=27, allowed: a positive multiple of the 4' in line
  assert not (tmp_path / 'run').exists()


BAD_DATA = {
  '--dataset=cifar11': 'cifar10',
  '--dataset=npz:/no/such.npz': '/no/such.npz',
  '--forget=ids(/no/such.txt)': '/no/such.txt: no such file',
  '--forget=random(0.001)': '0.001 of 240 training examples is 0; allowed is',
  '--forget=clas(1)': '--forget=clas(1): clas(1), allowed: random(SHARE), ',
  '--source_dir=/no/such': '--source_dir=/no/such: ',
  '--model=resnet18': 'sides of at least 8 pixels',
  '--flagfile=/no/such': '/no/such',
}


@pytest.mark.parametrize('flag', BAD_DATA)
def test_bad_data(flag, data_file, tmp_path):
  own = quick(data_file, tmp_path / 'run', f'--data_dir={tmp_path}', flag)
  line = running.refused('unlearn', *own)
  assert BAD_DATA[flag] in line
  assert not (tmp_path / 'run').exists()


def test_no_pipe_of_flags_is_waited_for(data_file, tmp_path):
  os.mkfifo(tmp_path / 'flags')
  pipe = tmp_path / 'flags'
  for told in ([f'--flagfile={pipe}'], ['--flagfile', str(pipe)]):
    own = quick(data_file, tmp_path / 'run', *told)
    line = running.refused('unlearn', *own, status=2)
    assert 'flags: is a pipe or a device; allowed is a file' in line


def test_bad_arguments_of_evaluate(main, tmp_path):
  line = running.refused('evaluate', status=2)
  assert '--checkpoint=, allowed: a folder with a manifest.json' in line
  line = running.refused('evaluate', f'--checkpoint={tmp_path}', status=1)
  assert 'holds no checkpoint' in line
  own = folder(main[0], 'finetune')
  ids = f'--forget_ids={own / "forget.txt"}'
  line = running.refused('evaluate', f'--checkpoint={own}', ids, status=2)
  assert 'has its own' in line
  source = folder(main[0], 'source')
  line = running.refused('evaluate', f'--checkpoint={source}', status=2)
  assert '--forget_ids=' in line and 'has none' in line


def test_any_path_can_be_used(main, data_file, tmp_path):
  place = tmp_path / '-n\nm,* $(touch x) -rf \'"ä☠%s{0}\x1b[31m<b>'
  place.mkdir()
  copy = place / 'data.npz'
  shutil.copy(data_file, copy)
  shutil.copytree(folder(main[0], 'source'), place / 'source')
  more = '--seeds=1', '--strategies=finetune', '--epochs=1'
  own = quick(copy, place / 'run', *more, f'--source_dir={place / "source"}')
  out = running.done('unlearn', *own)
  assert 'Report: ' in out
  path = folder(place / 'run', 'finetune')
  shutil.copytree(place / 'source', path.parent / 'source')
  got = json.loads(running.done('evaluate', f'--checkpoint={path}'))
  (row,) = report_of(place / 'run')['rows'][1:]
  assert got['test_accuracy'] == row['values']['test_accuracy'][0]


def test_a_disk_that_takes_no_more_is_one_line(
  main, data_file, tmp_path, monkeypatch
):
  def full(path, *_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  shutil.copytree(main[0], tmp_path / 'run')
  monkeypatch.setattr(os, 'replace', full)
  own = quick(data_file, tmp_path / 'run')
  line = running.refused('unlearn', *own, status=1)
  assert re.search(r'run/\S+: No space left on device\n$', line)
