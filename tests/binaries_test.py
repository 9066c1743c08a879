"""The binaries as a person meets them: results, repeats, and bad input."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from absl import flags as absl_flags
from absl.testing import flagsaver
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
  binary,
  cluster,
  divergence,
  evaluate,
  files,
  flags,
  generator_flags,
  preemption,
  train,
  unlearn,
)
from unlearn_jax.strategies import STRATEGIES

ROOT = pathlib.Path(__file__).parent.parent

flags.define_data_and_model()
flags.define_unlearning()
generator_flags.define_beside_unlearning()
train.define()
absl_flags.DEFINE_string('checkpoint', None, 'As experiments.evaluate has it.')


def invoke(monkeypatch, capsys, main, *arguments):
  """Runs a binary here: (exit status, stdout, stderr)."""
  monkeypatch.setattr(sys, 'argv', ['binary', *map(str, arguments)])
  capsys.readouterr()
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
    binary.run(main)
  out, err = capsys.readouterr()
  return end.value.code or 0, out, err


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  """Ten-pixel images of three classes: trained in a second."""
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


def quick(data_file, workdir, *more):
  return (
    f'--dataset=npz:{data_file}',
    f'--workdir={workdir}',
    '--width=4',
    '--batch_size=24',
    '--train_epochs=6',
    '--train_learning_rate=0.01',
    '--epochs=2',
    '--k=5',
    '--sensitivity_examples=24',
    *more,
  )


@pytest.fixture(scope='module')
def finished(data_file, tmp_path_factory):
  """A work directory in which the main job has run, its stdout, its report."""
  workdir = tmp_path_factory.mktemp('runs') / 'main'
  environment = {**os.environ, 'XLA_FLAGS': ''}
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.unlearn',
      *quick(data_file, workdir, '--seeds=2'),
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((workdir / 'report.json').read_text())
  return workdir, done.stdout, report


@pytest.fixture(autouse=True)
def one_device():
  """As in the subprocess, so that stages are the same."""
  import jax

  from unlearn_jax import parallel

  with parallel.use(jax.devices()[:1]):
    yield


def test_the_report_has_every_row_and_number(finished):
  workdir, out, report = finished
  assert [row['strategy'] for row in report['rows']] == ['source', *STRATEGIES]
  for row in report['rows']:
    values = row['values']
    for name in ('forget_accuracy', 'retain_accuracy', 'test_accuracy'):
      assert all(0 <= value <= 1 for value in values[name])
    if row['strategy'] == 'retrain':
      assert values['gap_to_retrained'] == [0, 0]
      assert values['acceleration'] == [1, 1]
    if row['strategy'] == 'source':
      assert values['forgetting_rate'] == [0, 0]
    for name, interval in row['mean'].items():
      assert interval['mean'] == pytest.approx(np.mean(values[name]))
    if row['role'] in ('method', 'baseline'):
      differences = np.subtract(
        values['gap_to_retrained'],
        report['rows'][2]['values']['gap_to_retrained'],
      )
      got = row['paired']['gap_to_retrained']['mean']
      assert got == pytest.approx(differences.mean())
  assert report['rows'][2]['strategy'] == 'finetune'
  assert report['seeds'] == [0, 1]
  assert report['config']['seeds'] == 2
  assert 'Top-K' in out and 'Random-TopK' in out
  for name in ('report.md', 'report.html'):
    assert 'Top-K' in (workdir / name).read_text()
  assert len(list(workdir.glob('figures/*.png'))) == 3


def test_the_same_command_does_nothing_twice(
  finished, data_file, monkeypatch, capsys
):
  workdir, _, before = finished
  folders = sorted((workdir / 'checkpoints').iterdir())
  status, out, _ = invoke(
    monkeypatch, capsys, unlearn.main, *quick(data_file, workdir, '--seeds=2')
  )
  assert status == 0
  assert out.count('done before') == 2 * (1 + len(STRATEGIES))
  assert sorted((workdir / 'checkpoints').iterdir()) == folders
  after = json.loads((workdir / 'report.json').read_text())
  assert after['rows'] == before['rows']


def test_a_changed_flag_redoes_what_depends_on_it(
  finished, data_file, monkeypatch, capsys
):
  workdir = finished[0]
  folders = set((workdir / 'checkpoints').iterdir())
  arguments = quick(data_file, workdir, '--seeds=1', '--epsilon_top=-0.5')
  status, out, _ = invoke(monkeypatch, capsys, unlearn.main, *arguments)
  assert status == 0
  new = {
    path.name.rsplit('-', 1)[0]
    for path in set((workdir / 'checkpoints').iterdir()) - folders
  }
  assert new == {'seed0-top_k', 'seed0-random_scalars'}
  assert out.count('done before') == 1 + len(STRATEGIES) - 2


def test_evaluate_gives_the_numbers_of_the_report_again(
  finished, monkeypatch, capsys
):
  workdir, _, report = finished
  folders = workdir / 'checkpoints'
  for name in ('random_k', 'retrain'):
    (folder,) = folders.glob(f'seed1-{name}-*')
    status, out, err = invoke(
      monkeypatch, capsys, evaluate.main, f'--checkpoint={folder}'
    )
    assert status == 0, err
    got = json.loads(out)
    (row,) = [r for r in report['rows'] if r['strategy'] == name]
    for metric, value in got.items():
      assert value == pytest.approx(row['values'][metric][1], abs=1e-6)


def test_evaluate_equals_the_stages_own_predictions(
  finished, monkeypatch, capsys
):
  from unlearn_jax import data

  workdir = finished[0]
  (folder,) = (workdir / 'checkpoints').glob('seed0-eu_k-*')
  _, out, _ = invoke(
    monkeypatch, capsys, evaluate.main, f'--checkpoint={folder}'
  )
  manifest = json.loads((folder / 'manifest.json').read_text())
  dataset = data.load(manifest['dataset'])
  rows = data.read_ids(folder / 'forget.txt', dataset)
  with np.load(folder / 'predictions.npz', allow_pickle=False) as predictions:
    chosen = predictions['forget'].argmax(-1)
  accuracy = (chosen == dataset.train.labels[rows]).mean()
  assert json.loads(out)['forget_accuracy'] == pytest.approx(accuracy)


def test_train_shares_its_stages_and_feeds_unlearn(
  finished, data_file, tmp_path, monkeypatch, capsys
):
  workdir = finished[0]
  common = [a for a in quick(data_file, workdir) if 'epochs=2' not in a]
  common = [a for a in common if not a.startswith(('--k=', '--sens'))]
  status, out, err = invoke(monkeypatch, capsys, train.main, *common)
  assert status == 0, err
  assert 'done before' in out
  source = re.search(r'Checkpoint: (.*)', out)[1]
  status, out, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'other', '--seeds=1'),
    f'--source_dir={source}',
    '--strategies=finetune',
  )
  assert status == 0, err
  assert f'from {source}' in out
  assert not list((tmp_path / 'other' / 'checkpoints').glob('*source*'))


def test_recipe_and_dtype_are_kept_with_the_model(
  data_file, tmp_path, monkeypatch, capsys
):
  def checkpoint(*more):
    status, out, err = invoke(
      monkeypatch,
      capsys,
      train.main,
      f'--dataset=npz:{data_file}',
      f'--workdir={tmp_path / "run"}',
      '--width=4',
      '--batch_size=24',
      '--train_epochs=2',
      *more,
    )
    assert status == 0, err
    return pathlib.Path(re.search('Checkpoint: (.*)', out)[1])

  plain = checkpoint()
  other = checkpoint('--recipe=standard', '--dtype=bfloat16')
  assert plain != other
  settings = json.loads((other / 'manifest.json').read_text())
  assert settings['dtype'] == 'bfloat16'
  assert settings['settings'] == {
    'optimizer': 'momentum',
    'epochs': 2,
    'learning_rate': 0.1,
    'batch_size': 24,
    'augment': True,
  }
  # A flag that is given counts for more than the recipe.
  kept = checkpoint('--recipe=standard', '--noaugment')
  settings = json.loads((kept / 'manifest.json').read_text())
  assert settings['settings']['augment'] is False
  # The same choices find the same model.
  assert checkpoint('--recipe=standard', '--dtype=bfloat16') == other


def test_streamed_data_give_the_model_of_resident_data(
  data_file, tmp_path, monkeypatch, capsys
):
  digests = []
  for place, megabytes in (('resident', 1), ('streamed', 0)):
    status, out, err = invoke(
      monkeypatch,
      capsys,
      train.main,
      *quick(data_file, tmp_path / place)[:1],
      f'--workdir={tmp_path / place}',
      '--width=4',
      '--batch_size=24',
      '--train_epochs=2',
      f'--device_data_mb={megabytes}',
    )
    assert status == 0, err
    folder = pathlib.Path(re.search('Checkpoint: (.*)', out)[1])
    manifest = json.loads((folder / 'manifest.json').read_text())
    accuracies = re.findall('accuracy .*', out)
    digests.append((manifest['state_sha256'], accuracies))
  assert digests[0] == digests[1]


def test_train_makes_the_retrained_reference(
  data_file, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / 'run'
  common = [
    a
    for a in quick(data_file, workdir)
    if not a.startswith(('--k=', '--sens', '--epochs'))
  ]
  status, out, err = invoke(
    monkeypatch, capsys, train.main, *common, '--subset=retain'
  )
  assert status == 0, err
  retrained = re.search(r'Checkpoint: (.*)', out)[1]
  assert 'retrain' in retrained
  status, out, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, workdir, '--seeds=1', '--strategies=finetune'),
    f'--retrained_dir={retrained}',
  )
  assert status == 0, err
  report = json.loads((workdir / 'report.json').read_text())
  assert [row['strategy'] for row in report['rows']] == [
    'source',
    'retrain',
    'finetune',
  ]
  # Another forget set's reference is refused, and nothing is written.
  before = sorted(workdir.rglob('*'))
  status, _, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, workdir, '--seeds=1', '--strategies=finetune'),
    f'--retrained_dir={retrained}',
    '--split_seed=5',
  )
  assert status == 1
  assert 'forget_sha256' in err
  assert sorted(workdir.rglob('*')) == before


def test_another_kind_of_checkpoint_is_refused(
  finished, data_file, tmp_path, monkeypatch, capsys
):
  (other,) = (finished[0] / 'checkpoints').glob('seed0-random_k-*')
  for flag in ('source_dir', 'retrained_dir'):
    status, _, err = invoke(
      monkeypatch,
      capsys,
      unlearn.main,
      *quick(data_file, tmp_path / 'run', '--seeds=1'),
      f'--{flag}={other}',
    )
    untouched(tmp_path, status, err, 1, 'holds a random_k model, allowed: ')


def test_evaluate_refuses_other_parents_and_another_forget_set(
  finished, tmp_path, monkeypatch, capsys
):
  folders = finished[0] / 'checkpoints'
  (own,) = folders.glob('seed0-random_k-*')
  (source,) = folders.glob('seed1-source-*')
  (retrained,) = folders.glob('seed1-retrain-*')
  file = tmp_path / 'forget.txt'
  file.write_text('1\n')
  for flag, status, line in (
    (f'--source_dir={source}', 1, 'state_sha256'),
    (f'--retrained_dir={retrained}', 1, 'forget_sha256'),
    (f'--retrained_dir={own}', 1, "strategy='random_k'"),
    (f'--forget_ids={file}', 2, 'has its own'),
  ):
    got, _, err = invoke(
      monkeypatch, capsys, evaluate.main, f'--checkpoint={own}', flag
    )
    assert (got, err.count('\n')) == (status, 1), err
    assert line in err


def test_a_stop_flag_dates_retrain_anew_without_training_it(
  finished, data_file, monkeypatch, capsys
):
  arguments = quick(data_file, finished[0], '--seeds=1', '--strategies=retrain')
  status, out, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *arguments,
    '--stop_js_change=1',
    '--stop_retain_share=0',
  )
  assert status == 0, err
  assert out.count('done before') == 2
  report = json.loads((finished[0] / 'report.json').read_text())
  assert report['rows'][1]['stop_epoch'] == [1]


def test_what_diverges_is_named_while_the_others_go_on(
  data_file, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / 'run'
  arguments = quick(
    data_file,
    workdir,
    '--seeds=2',
    '--strategies=retrain,finetune,random_k,cf_k',
    '--epsilon_random=1e38',
  )
  status, out, err = invoke(monkeypatch, capsys, unlearn.main, *arguments)
  assert status == 0, err
  lines = [line for line in out.splitlines() if 'diverged in epoch' in line]
  assert any(
    'seed 0 · random_k diverged in epoch 1 at learning rate 0.001: ' in line
    for line in lines
  ), out
  stages = [path.name for path in (workdir / 'checkpoints').glob('[!.]*')]
  assert sorted({name.split('-')[1] for name in stages}) == [
    'cf_k',
    'finetune',
    'retrain',
    'source',
  ]
  report = json.loads((workdir / 'report.json').read_text())
  rows = {row['strategy']: row for row in report['rows']}
  failed = rows['random_k']
  assert failed['label'] == 'Random-k (diverged: 2 of 2 seeds)'
  assert (failed['values'], failed['mean'], failed['curves']) == ({}, {}, [])
  assert len(failed['warnings']) == 2
  assert rows['cf_k']['paired']['gap_to_retrained']
  for name in ('report.md', 'report.html'):
    text = (workdir / name).read_text().replace('&nbsp;', ' ')
    assert 'Random-k (diverged: 2 of 2 seeds)' in text
    assert 'diverged in epoch 1 at learning rate 0.001' in text


def test_one_seed_that_diverges_leaves_no_mean(
  data_file, tmp_path, monkeypatch, capsys
):
  """The control: no other row may be compared with what is left of it."""
  from experiments import pipeline

  real = pipeline.strategy_stage

  def second_fails(name, setup, workdir, splits, *rest):
    if name == 'finetune' and rest[3] == 1:
      raise divergence.StageDivergedError('seed 1 · finetune', 3, 0.5, 'x')
    return real(name, setup, workdir, splits, *rest)

  monkeypatch.setattr(pipeline, 'strategy_stage', second_fails)
  workdir = tmp_path / 'run'
  arguments = quick(
    data_file, workdir, '--seeds=2', '--strategies=retrain,finetune,cf_k'
  )
  status, out, err = invoke(monkeypatch, capsys, unlearn.main, *arguments)
  assert status == 0, err
  report = json.loads((workdir / 'report.json').read_text())
  rows = {row['strategy']: row for row in report['rows']}
  control = rows['finetune']
  assert control['label'].endswith('(diverged: 1 of 2 seeds)')
  assert control['values']['test_accuracy'][0] > 0
  assert control['values']['test_accuracy'][1] is None
  assert control['mean'] == rows['cf_k']['paired'] == {}
  assert rows['cf_k']['mean']['gap_to_retrained']
  assert (
    'CF-K: no verdict, because Fine-tune only'
    in (workdir / 'report.md').read_text()
  )


def test_a_source_or_retrain_that_diverges_ends_the_run(
  data_file, tmp_path, monkeypatch, capsys
):
  import optax

  from experiments import problem

  def breaks_after(steps):
    return lambda *_: optax.scale_by_schedule(
      lambda step: jnp.where(step < steps, 0.0, jnp.inf)
    )

  for name, epochs in (('source', 3), ('retrain', 1)):
    real = problem.optimizer
    if name == 'source':
      # Ten steps an epoch.
      monkeypatch.setattr(problem, 'optimizer', breaks_after(25))
    else:
      monkeypatch.setattr(
        problem,
        'optimizer',
        lambda values, examples: (
          real(values, examples) if examples.size == 240 else breaks_after(0)()
        ),
      )
    status, _, err = invoke(
      monkeypatch,
      capsys,
      unlearn.main,
      *quick(data_file, tmp_path / name, '--seeds=1', '--strategies=retrain'),
    )
    assert (status, err.count('\n')) == (1, 1), err
    assert f'seed 0 · {name} diverged in epoch {epochs} at' in err
    assert 'learning rate 0.01' in err
    monkeypatch.setattr(problem, 'optimizer', real)
    if name == 'source':
      assert 'the last finite state, after epoch 2, is kept in' in err
      (kept,) = (tmp_path / name / 'checkpoints').glob('.*/epoch-*')
      assert kept.name == 'epoch-000002'
    assert not (tmp_path / name / 'report.json').exists()


def test_a_damaged_stage_is_named(
  finished, data_file, tmp_path, monkeypatch, capsys
):
  import shutil

  workdir = tmp_path / 'copy'
  shutil.copytree(finished[0], workdir)
  (folder,) = (workdir / 'checkpoints').glob('seed0-finetune-*')
  (folder / 'record.json').write_text('{}')
  status, _, err = invoke(
    monkeypatch, capsys, unlearn.main, *quick(data_file, workdir, '--seeds=1')
  )
  assert (status, err.count('\n')) == (1, 1), err
  assert 'is damaged' in err and 'record.json' in err


# Bad input: one line, the right status, and nothing on disk.

BAD_FLAGS = {
  '--model=resnet_18': 'did you mean resnet18?',
  '--strategies=topk': 'did you mean top_k?',
  '--strategies=': 'one of retrain',
  '--k=0': 'a whole number from 1',
  '--k=-3': 'a whole number from 1',
  '--k=many': 'a whole number from 1',
  '--k=1.5': 'a share above 0 and at most 1',
  '--k=99999999': '1 to ',
  '--ratio=0': 'above 0 and at most 1',
  '--ratio=1.01': 'above 0 and at most 1',
  '--ratio=nan': 'above 0 and at most 1',
  '--ratio=0.0001': 'shares of at least K',
  '--k=0.5': 'shares of at least K',
  '--last_k=0': '1 or more',
  '--last_k=99': '1 to 11, the tensors',
  '--forget_fraction=0': 'above 0 and below 1',
  '--forget_fraction=1': 'above 0 and below 1',
  '--forget_fraction=0.001': 'a share that comes to 1 to 239 of 240',
  '--device_data_mb=-1': '0 or more',
  '--save_seconds=-1': '0 or more',
  '--save_seconds=nan': '0 or more',
  '--dtype=float16': 'did you mean bfloat16?',
  '--recipe=standart': 'did you mean standard?',
  '--batch_size=0': 'a positive multiple',
  '--batch_size=100000': 'at most the ',
  '--seeds=0': '1 or more',
  '--seed=-1': '0 to 2147483647',
  '--epochs=-1': '0 or more',
  '--epochs=two': 'epochs',
  '--train_epochs=0': '1 or more',
  '--width=0': '1 or more',
  '--train_subset=0': '1 or more',
  '--train_subset=241': '1 to 240',
  '--learning_rate=0': 'above 0',
  '--js_weight=-0.1': '0 or more',
  '--js_weight=nan': '0 or more',
  '--js_teacher=me': 'source, retrained, none',
  '--epsilon_top=inf': 'a finite number',
  '--granularity=tensor': 'scalar, leaf',
  '--rule=Scale': 'did you mean scale?',
  '--stop_retain_share=2': 'a share from 0 to 1',
  '--no_such_flag=1': 'no_such_flag',
  'stray': "'stray' is not a flag",
}


def untouched(tmp_path, status, err, wanted, line):
  assert status == wanted, err
  assert len(err.strip().splitlines()) == 1, err
  assert err.startswith('error: ')
  assert 'Traceback' not in err
  assert line in err, err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flag', BAD_FLAGS)
def test_bad_flags(flag, data_file, tmp_path, monkeypatch, capsys):
  status, _, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'run'),
    flag,
  )
  untouched(tmp_path, status, err, 2, BAD_FLAGS[flag])
  if flag.startswith('--') and 'no_such' not in flag and 'k=0.5' not in flag:
    name, value = flag[2:].split('=')
    assert name in err and value in err, err


def test_a_batch_that_the_devices_cannot_share(
  data_file, tmp_path, monkeypatch, capsys
):
  import jax

  from unlearn_jax import parallel

  with parallel.use(jax.devices()):
    status, _, err = invoke(
      monkeypatch,
      capsys,
      unlearn.main,
      *quick(data_file, tmp_path / 'run'),
      '--batch_size=27',
    )
  untouched(
    tmp_path, status, err, 2, '--batch_size=27, allowed: a positive multiple'
  )


@pytest.mark.parametrize(
  'text, line',
  [
    ('1\n500\n', ':2: '),
    ('1\n2\n1\n', ':3: '),
    ('1\nx7\n', ':2: '),
    ('', 'forget'),
    ('# none\n\n', 'forget'),
  ],
)
def test_bad_forget_ids(text, line, data_file, tmp_path, monkeypatch, capsys):
  file = tmp_path / 'forget.txt'
  file.write_text(text)
  status, _, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'run'),
    f'--forget_ids={file}',
  )
  untouched(tmp_path, status, err, 1, line)
  assert f'--forget_ids={file}: ' in err


BAD_DATA = {
  '--dataset=cifar11': 'cifar10',
  '--dataset=npz:/no/such.npz': '/no/such.npz',
  '--dataset=folder:/no/such': '/no/such',
  '--forget_ids=/no/such.txt': '/no/such.txt',
  '--source_dir=/no/such': '--source_dir=/no/such',
  '--model=resnet18': 'sides of at least 8 pixels',
}


@pytest.mark.parametrize('flag', BAD_DATA)
def test_bad_data(flag, data_file, tmp_path, monkeypatch, capsys):
  status, _, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'run', f'--data_dir={tmp_path}'),
    flag,
  )
  untouched(tmp_path, status, err, 1, BAD_DATA[flag])
  assert flag.split('=')[1].split(':')[-1] in err


def test_a_source_of_another_model_is_refused(
  finished, data_file, tmp_path, monkeypatch, capsys
):
  (source,) = (finished[0] / 'checkpoints').glob('seed0-source-*')
  status, _, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'run'),
    '--width=5',
    f'--source_dir={source}',
  )
  untouched(tmp_path, status, err, 1, 'width=4, allowed here: 5')


def test_a_workdir_of_another_configuration_is_refused(
  finished, data_file, monkeypatch, capsys
):
  workdir = finished[0]
  before = sorted(workdir.rglob('*'))
  status, _, err = invoke(
    monkeypatch, capsys, unlearn.main, *quick(data_file, workdir), '--width=5'
  )
  assert status == 1
  assert 'belongs to width=4, this run has width=5' in err
  assert sorted(workdir.rglob('*')) == before


@pytest.mark.parametrize('place', ['/proc/nowhere', '/dev/null/run'])
def test_an_unwritable_workdir_is_refused(
  place, data_file, monkeypatch, capsys
):
  status, _, err = invoke(
    monkeypatch, capsys, unlearn.main, *quick(data_file, place)
  )
  assert status == 1
  assert err.startswith(f'error: --workdir={place}, allowed: a directory')


def test_a_folder_with_other_things_in_it_is_refused(
  data_file, tmp_path, monkeypatch, capsys
):
  (tmp_path / 'thesis.tex').write_text('precious')
  status, _, err = invoke(
    monkeypatch, capsys, unlearn.main, *quick(data_file, tmp_path)
  )
  assert status == 1
  assert 'an empty directory or one of this program' in err
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_disk_that_takes_no_more_is_one_line(tmp_path, monkeypatch, capsys):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  status, _, err = invoke(
    monkeypatch, capsys, lambda: files.replace(tmp_path / 'report.md', b'')
  )
  path = tmp_path / 'report.md'
  assert (status, err) == (1, f'error: {path}: No space left on device\n')


@pytest.mark.parametrize('several', [False, True])
def test_another_error_of_the_system_is_our_bug(several, monkeypatch, capsys):
  def broken():
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))

  left = []
  monkeypatch.setattr(sys, 'argv', ['binary'])
  monkeypatch.setattr(cluster, 'several', lambda: several)
  monkeypatch.setattr(cluster, 'leave', left.append)
  with pytest.raises(OSError, match='Bad file descriptor'):
    binary.run(broken)
  # The others would wait for one that waits at its own end.
  assert left == [1] * several


def test_where_another_process_stops_first_this_one_was_stopped_too(
  monkeypatch, capsys
):
  def main():
    with preemption.deferred():
      signal.raise_signal(signal.SIGTERM)
      raise jax.errors.JaxRuntimeError('Connection closed by peer')

  monkeypatch.setattr(cluster, 'several', lambda: True)
  status, _, err = invoke(monkeypatch, capsys, main)
  assert status == 143 and 'Connection' not in err


def test_a_class_that_is_forgotten_whole_is_a_warning(
  data_file, tmp_path, monkeypatch, capsys
):
  with np.load(data_file) as arrays:
    rows = np.flatnonzero(arrays['y_train'] == 1)
  file = tmp_path / 'forget.txt'
  file.write_text('\n'.join(map(str, rows)))
  status, out, err = invoke(
    monkeypatch,
    capsys,
    unlearn.main,
    *quick(data_file, tmp_path / 'run', '--seeds=1', '--strategies=finetune'),
    f'--forget_ids={file}',
  )
  assert status == 0, err
  assert "warning: class '1' has no retained example" in out
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert report['warnings']


def test_bad_evaluate_arguments(tmp_path, monkeypatch, capsys):
  status, _, err = invoke(monkeypatch, capsys, evaluate.main)
  assert (status, err.count('\n')) == (2, 1)
  status, _, err = invoke(
    monkeypatch, capsys, evaluate.main, f'--checkpoint={tmp_path}'
  )
  assert (status, err.count('\n')) == (1, 1)
  assert 'holds no checkpoint' in err
