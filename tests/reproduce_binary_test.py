"""The whole of Section IV on a toy: results, stopping, sharing, bad input."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from absl import flags as absl_flags
import helpers
import jax
import pytest

from experiments import flags, reproduce
from experiments.reproduction import options, paper, presets
from experiments.reproduction import plan as plans
from experiments.reproduction.outlook import Outlook, OutOfTimeError
from experiments.reproduction.presets import PRESETS, Problem, Sweep
from experiments.reproduction.tasks import Tasks
from experiments.tables import markdown_text
from unlearn_jax import parallel
from unlearn_jax.base import InputError
from unlearn_jax.spd_gan import GeneratorSettings

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """A preset of seconds: three classes of noisy stripes, a net of width 4."""
  path = helpers.stripes_file(tmp_path_factory.mktemp('data'))
  problem = Problem(
    f'npz:{path}',
    'cnn',
    5,
    width=4,
    fractions=(0.10, 0.20),
    shows=tuple(paper.ARTEFACTS),
  )
  return dataclasses.replace(
    PRESETS['smoke'],
    name='toy',
    problems=(problem,),
    train_epochs=5,
    train_learning_rate=0.01,
    batch_size=24,
    table_epochs=2,
    curve_epochs=2,
    sensitivity_examples=24,
    ks=(2,),
    # The second diverges, which must not end the plan.
    sweeps=(
      Sweep('λ', 'top_k', ({'js_weight': 0.1}, {'js_weight': 0.0})),
      Sweep('ε', 'top_k', ({'epsilon_top': -1.0}, {'epsilon_top': 3e38})),
    ),
    generator=GeneratorSettings(epochs=1, batch_size=8, width=2),
    degree_rows=('retrain', 'top_k'),
  )


def parsed(*arguments):
  values = absl_flags.FlagValues()
  options.define(values)
  values(['reproduce', *map(str, arguments)])
  return values


def run(toy, *arguments):
  """`experiments.reproduce` with --preset=toy, in this process."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(presets.PRESETS, 'toy', toy)
    patch.setattr(absl_flags, 'FLAGS', parsed('--preset=toy', *arguments))
    reproduce.main()


def measured(root):
  """The numbers of every stage, without its seconds."""
  found = {}
  for path in (root / 'outcomes').iterdir():
    outcome = json.loads(path.read_text())
    history = [
      {k: v for k, v in epoch.items() if k != 'seconds'}
      for epoch in outcome.get('history', [])
    ]
    found[path.name] = (outcome.get('measured'), history)
  return found


@pytest.fixture(scope='module')
def finished(toy, tmp_path_factory):
  root = tmp_path_factory.mktemp('runs') / 'whole'
  with parallel.use(jax.devices()[:1]):
    run(toy, f'--workdir={root}')
  return root


def test_every_artefact_is_on_the_page_with_its_figure(finished):
  text = (finished / 'reproduction.md').read_text()
  web = (finished / 'reproduction.html').read_text()
  for title in paper.ARTEFACTS.values():
    assert f'## {markdown_text(title)}\n' in text
    assert f'<h2>{title}</h2>' in web
  names = ['fig1', 'fig4', 'fig5', 'fig6', 'fig7', 'fig8', 'fig9_20', 'sweeps']
  for suffix in ('png', 'pdf'):
    found = {p.stem for p in (finished / 'figures').glob(f'*.{suffix}')}
    assert found == set(names)
  assert re.findall(r'figures/(\w+)\.png', text) == names
  assert web.count('data:image/png;base64,') == len(names)
  assert 'src="http' not in web and '<script' not in web


def test_table_2_has_our_mean_and_interval_beside_the_papers_number(
  toy, finished
):
  text, made = (finished / 'reproduction.md').read_text(), Tasks(toy)
  for row, label, printed in (
    ('top_k', 'Top-K', '80.14'),
    ('eu_10', 'EU-10', '86.88'),
  ):
    first, second = (
      json.loads((finished / 'outcomes' / f'{key}.json').read_text())
      for key in (
        made.table(toy.problems[0], 0.10, row, seed).key for seed in (0, 1)
      )
    )
    a, b = (100 * o['measured']['forget_accuracy'] for o in (first, second))
    # Student's t with one degree of freedom; s / √2 is half of |a − b|.
    half = 12.7062 * abs(a - b) / 2
    spread = f' ± {half:.1f}' if half else ''
    assert f'| {label} | {(a + b) / 2:.1f}{spread} ({printed}) |' in text


def test_a_diverged_stage_is_reported_and_does_not_end_the_plan(finished):
  facts = json.loads((finished / 'reproduction.json').read_text())
  assert facts['done'] == facts['planned'] == len(facts['stages'])
  text = (finished / 'reproduction.md').read_text()
  assert 'Failed: ' in text and 'diverged' in text


def test_the_same_command_computes_nothing_twice(
  toy, finished, monkeypatch, capsys
):
  files = {p: p.stat().st_mtime_ns for p in finished.rglob('*.npz')}
  before = measured(finished)
  monkeypatch.setattr(
    'experiments.reproduction.bench.Bench.do', lambda *a: pytest.fail('again')
  )
  run(toy, f'--workdir={finished}')
  assert measured(finished) == before
  assert {p: p.stat().st_mtime_ns for p in finished.rglob('*.npz')} == files
  assert 'the rest at most 0:00' in capsys.readouterr().out


def test_stopped_and_gone_on_is_as_uninterrupted(
  toy, finished, tmp_path, monkeypatch, capsys
):
  root, allowed = tmp_path / 'cut', [4]

  def fits(self, key):
    allowed[0] -= 1
    return allowed[0] >= 0

  monkeypatch.setattr(Outlook, 'fits', fits)
  run(toy, f'--workdir={root}', '--only=fig1')
  assert 'Stopped in time' in capsys.readouterr().out
  assert len(measured(root)) == 4
  # The page of an unfinished plan says so.
  facts = json.loads((root / 'reproduction.json').read_text())
  assert facts['done'] == 4 < facts['planned']
  monkeypatch.undo()
  run(toy, f'--workdir={root}', '--only=fig1')
  whole = measured(finished)
  assert measured(root) == {name: whole[name] for name in measured(root)}
  assert len(measured(root)) == facts['planned']


def test_a_stage_cut_off_in_its_midst_goes_on_from_its_last_epoch(
  toy, finished, tmp_path, monkeypatch
):
  root, told = tmp_path / 'cut', []

  def cut(self, epoch):
    if epoch.epoch == 2:
      raise OutOfTimeError('here')

  monkeypatch.setattr(Outlook, 'epoch', cut)
  run(toy, f'--workdir={root}', '--only=fig1')
  (kept,) = root.glob('*/checkpoints/.*.partial/epoch-*')
  assert kept.name == 'epoch-000002'
  monkeypatch.undo()
  monkeypatch.setattr(Outlook, 'epoch', lambda _, epoch: told.append(epoch))
  run(toy, f'--workdir={root}', '--only=fig1')
  assert [epoch.epoch for epoch in told[:4]] == [2, 3, 4, 5]
  assert not list(root.glob('*/checkpoints/.*'))
  whole = measured(finished)
  assert measured(root) == {name: whole[name] for name in measured(root)}


def test_a_stage_saved_but_not_noted_is_not_computed_again(
  toy, finished, tmp_path, monkeypatch
):
  root = tmp_path / 'root'
  shutil.copytree(finished, root)
  # As if it had been killed just before that, by a process that is gone.
  shutil.rmtree(root / 'outcomes')
  shutil.rmtree(root / 'claims')
  for part in ('unlearn', 'training.train'):
    monkeypatch.setattr(
      f'experiments.pipeline.{part}', lambda *a, **k: pytest.fail('again')
    )
  run(toy, f'--workdir={root}', '--only=fig1')
  before, after = measured(finished), measured(root)
  assert len(after) == len(plans.make(toy, ('fig1',)).tasks)
  assert after == {name: before[name] for name in after}


def test_a_dry_run_shows_the_plan_and_writes_nothing(toy, tmp_path, capsys):
  root = tmp_path / 'dry'
  run(toy, f'--workdir={root}', '--dry_run', '--only=fig5')
  out = capsys.readouterr().out
  made = plans.make(toy, ('fig5',))
  for task in made.tasks:
    (line,) = [x for x in out.splitlines() if x.startswith(task.key)]
    assert 'TFLOP' in line and task.title in line
  assert f'{len(made.tasks)} stages, 0 done' in out
  assert not root.exists()


def test_more_seeds_go_on_from_fewer(toy, finished, tmp_path):
  root = tmp_path / 'root'
  shutil.copytree(finished, root)
  before = measured(finished)
  run(toy, f'--workdir={root}', '--only=fig1', '--seeds=3')
  after = measured(root)
  assert {name: after[name] for name in before} == before
  more = len(plans.make(toy, ('fig1',)).tasks) / 2
  assert len(after) == len(before) + more


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--preset=smok', 'did you mean smoke?'),
    ('--only=table3', 'did you mean table'),
    ('--only=', '--only=, allowed: one of table1'),
    ('--seeds=1', '--seeds=1, allowed: 2 to'),
    ('--max_hours=0', '--max_hours=0.0, allowed: above 0'),
    ('--max_hours=nan', '--max_hours=nan, allowed: above 0'),
    ('--worker=0/2', '--worker=0/2, allowed: i/n'),
    ('--worker=3/2', '--worker=3/2, allowed: i/n'),
    ('--worker=one', '--worker=one, allowed: i/n'),
  ],
)
def test_a_bad_flag_is_one_line(flag, message):
  with pytest.raises(flags.FlagError) as error:
    options.read(parsed(flag))
  assert message in str(error.value)


@pytest.mark.parametrize(
  'hours, seconds', [(None, None), (1, 3540.0), (0.1, 324.0)]
)
def test_time_is_kept_for_the_page(hours, seconds):
  flag = [] if hours is None else [f'--max_hours={hours}']
  asked = options.read(parsed(*flag))
  expected = None if seconds is None else pytest.approx(100 + seconds)
  assert options.deadline(asked, 100.0) == expected


def test_two_presets_never_share_a_directory(toy, finished, tmp_path):
  with pytest.raises(flags.FlagError) as error:
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(presets.PRESETS, 'toy', toy)
      options.read(parsed(f'--workdir={finished}', '--preset=smoke'))
  assert str(error.value).startswith('--preset=smoke, allowed: toy, with which')
  (tmp_path / 'somebody.txt').write_text('else')
  with pytest.raises(InputError, match='empty directory or one of this'):
    options.read(parsed(f'--workdir={tmp_path}'))


def test_the_binary_ends_with_status_2_before_anything_is_written(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.reproduce'),
      *(f'--workdir={tmp_path / "root"}', '--worker=2/1'),
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: --worker=2/1, allowed: i/n')
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'root').exists()
