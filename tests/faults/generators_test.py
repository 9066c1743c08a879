"""`experiments.spd_gan`, ended while a generator is trained."""

import json
import os
import re
import signal

import processes
import pytest

TRAINING = (
  '--dataset=digits',
  '--train_subset=600',
  '--width=4',
  '--batch_size=60',
  '--train_epochs=8',
  '--train_learning_rate=0.01',
)
GENERATORS = (
  '--epochs=3',
  '--batch_size=12',
  '--generator_width=2',
  '--limit=100',
  '--save_seconds=0',
)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def binary(cache):
  return processes.Binary('experiments.spd_gan', cache)


@pytest.fixture(scope='module')
def arguments(cache, tmp_path_factory):
  """The flags of a run: M, its twin M′, and Retrain in M_UL's place."""
  root = tmp_path_factory.mktemp('models')
  train = processes.Binary('experiments.train', cache)
  for name, more in (('own', '--subset=retain'), ('twin', '--source_seed=1')):
    workdir, log = root / name, root / f'{name}.log'
    status, text = train.finish(log, *TRAINING, more, f'--workdir={workdir}')
    assert status == 0, text
  (source,) = root.glob('own/checkpoints/*-source-*')
  (retrained,) = root.glob('own/checkpoints/*-retrain-*')
  (twin,) = root.glob('twin/checkpoints/*')
  flags = f'--source={source}', f'--unlearned={retrained}', f'--null_dir={twin}'
  return (*flags, *GENERATORS)


@pytest.fixture(scope='module')
def whole(binary, arguments, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  log = workdir.with_suffix('.log')
  status, text = binary.finish(log, *arguments, f'--workdir={workdir}')
  assert status == 0, text
  return json.loads((workdir / 'degree.json').read_text())


@pytest.mark.parametrize(
  'number, status', [(signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_it_goes_on_to_the_same_numbers(
  binary, arguments, whole, tmp_path, number, status
):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  own = (*arguments, f'--workdir={workdir}')
  process = binary.start(log, *own)
  # In the midst of the second pair, when its second generator is there.
  processes.wait_for(
    lambda: any(workdir.glob('checkpoints/.null-generator1-*/epoch-*')),
    process,
  )
  os.kill(process.pid, number)
  process.join(60)
  assert process.exitcode == status, log.read_text()
  if number == signal.SIGTERM:
    assert re.fullmatch(
      r'stopped by SIGTERM: null-generator\d-\w+ is saved after epoch \d in'
      r' \S+; the same command goes on from there',
      log.read_text().splitlines()[-1],
    )
  got, text = binary.finish(log, *own)
  assert got == 0, text
  assert re.search(r'degree of unlearned +done before', text)
  assert re.search(r'degree of null +goes on after epoch (\d+)/15', text), text
  found = json.loads((workdir / 'degree.json').read_text())
  for name in ('pairs', 'calibrated', 'calibrated_target', 'sentence'):
    assert found[name] == whole[name]
  assert not list(workdir.glob('checkpoints/.*'))


def test_two_processes_stop_together_and_have_the_numbers_of_one(
  binary, arguments, tmp_path
):
  one, two, log = tmp_path / 'one', tmp_path / 'two', tmp_path / 'log'
  status, text = binary.finish(
    log, *arguments, f'--workdir={one}', **processes.devices(4)
  )
  assert status == 0, text
  own = (*arguments, f'--workdir={two}')
  pair = processes.Pair(binary, tmp_path, *own)
  processes.wait_for(
    lambda: any(two.glob('checkpoints/.null-generator1-*/epoch-*')),
    pair.processes[0],
  )
  os.kill(pair.processes[1].pid, signal.SIGTERM)
  assert pair.wait(60) == [143, 143], pair.texts()
  assert 'stopped by SIGTERM: null-generator' in pair.texts()[0]
  pair = processes.Pair(binary, tmp_path, *own)
  assert pair.wait() == [0, 0], pair.texts()
  first, second = pair.texts()
  assert re.search(r'degree of null +goes on after epoch (\d+)/15', first), (
    first
  )
  assert not second
  single, several = (
    json.loads((root / 'degree.json').read_text())['pairs']
    for root in (one, two)
  )
  assert list(single) == list(several)
  # Of 30 images one may fall on the other side: sums are in another order.
  for name, mine in single.items():
    for run, its in zip(mine['runs'], several[name]['runs'], strict=True):
      degree = run['held_out']['degree']
      assert its['held_out']['degree'] == pytest.approx(degree, abs=0.04)
      for epoch, other in zip(run['curve'][1:], its['curve'][1:], strict=True):
        assert other == pytest.approx(epoch, rel=1e-3)
