"""Carrying a plan out: order, sharing, stopping in time, going on."""

import dataclasses
import threading

import pytest

from experiments.reproduction import plan, runner
from experiments.reproduction.bench import Bench
from experiments.reproduction.claims import Claims
from experiments.reproduction.costs import Cost, Estimator, Rates
from experiments.reproduction.outcomes import Outcomes
from experiments.reproduction.outlook import (
  LostError,
  Outlook,
  OutOfTimeError,
)
from experiments.reproduction.presets import PRESETS
from experiments.reproduction.runner import Worker
from unlearn_jax.base import InputError
from unlearn_jax.training import Epoch

ONLY = ('fig1', 'fig9')
SMOKE = PRESETS['smoke']
PLAN = plan.make(SMOKE, ONLY)
ALONE = Worker()


class Clock:
  """A clock that only work moves on."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self):
    return self.seconds


class FakeBench:
  """Does a task in ten seconds, two epochs, and remembers which."""

  def __init__(self, root, clock=None):
    self.outcomes, self.clock = Outcomes(root), clock or Clock()
    self.did, self.lock = [], threading.Lock()

  def do(self, task, progress):
    for parent in task.parents.values():
      assert self.outcomes.done(parent.key)
    progress.begin('', 2)
    for epoch in range(3):
      self.clock.seconds += 5.0 if epoch else 0.0
      progress.epoch(Epoch(epoch, 0.0, 0.0, {}))
    progress.end('')
    with self.lock:
      self.did.append(task.key)
    measured = {'number': int(task.key, 16)}
    return {'title': task.title, 'folder': 'x', 'measured': measured}


def costs(seconds=10.0):
  return {task.key: Cost(seconds, 1e9) for task in PLAN.tasks}


def run(root, bench, deadline=None, worker=ALONE, estimate=10.0):
  left = {task.key for task in runner.pending(PLAN, bench)}
  own = {key: cost for key, cost in costs(estimate).items() if key in left}
  outlook = Outlook(
    own, len(PLAN.tasks), worker.count, deadline, now=bench.clock
  )
  claims = Claims(root / 'claims', f'worker{worker.index}')
  return runner.run(PLAN, bench, claims, outlook, worker, poll=0.01)


def test_a_plan_is_done_once_and_in_order(tmp_path):
  bench = FakeBench(tmp_path)
  assert run(tmp_path, bench)
  assert sorted(bench.did) == sorted(task.key for task in PLAN.tasks)
  again = FakeBench(tmp_path)
  assert run(tmp_path, again) and not again.did


def test_several_workers_share_a_plan_and_do_nothing_twice(tmp_path):
  benches = [FakeBench(tmp_path) for _ in range(3)]
  ended = []

  def work(index):
    worker = Worker(index + 1, 3)
    ended.append(run(tmp_path, benches[index], worker=worker))

  threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert ended == [True] * 3
  did = [key for bench in benches for key in bench.did]
  assert sorted(did) == sorted(task.key for task in PLAN.tasks)


def test_it_stops_before_the_deadline_and_goes_on_to_the_same(tmp_path):
  whole = FakeBench(tmp_path / 'whole')
  assert run(tmp_path / 'whole', whole)
  cut = FakeBench(tmp_path / 'cut')
  assert not run(tmp_path / 'cut', cut, deadline=35.0)
  assert cut.clock() == 30.0 and len(cut.did) == 3  # A fourth ends at 40.
  after = FakeBench(tmp_path / 'cut')
  assert run(tmp_path / 'cut', after)
  assert cut.did + after.did == whole.did
  for task in PLAN.tasks:
    first, second = (b.outcomes.read(task.key) for b in (whole, after))
    assert first['measured'] == second['measured']


def test_seconds_of_earlier_processes_count(tmp_path, monkeypatch):
  do = FakeBench.do
  assert run(tmp_path / 'fresh', FakeBench(tmp_path / 'fresh'))
  monkeypatch.setattr(
    FakeBench, 'do', lambda *given: {**do(*given), 'wall_seconds': 99.0}
  )
  assert run(tmp_path / 'resumed', FakeBench(tmp_path / 'resumed'))
  for task in PLAN.tasks:
    fresh, resumed = (
      Outcomes(tmp_path / name).read(task.key)['wall_seconds']
      for name in ('fresh', 'resumed')
    )
    assert fresh < 10 and resumed == 99


def test_a_stage_that_takes_longer_than_it_was_thought_is_cut_off(tmp_path):
  bench = FakeBench(tmp_path)
  # Thought to take 1 s; its second epoch would end at 10 s.
  assert not run(tmp_path, bench, deadline=8.0, estimate=1.0)
  assert bench.clock() == 5.0 and not bench.did
  again = FakeBench(tmp_path)
  assert run(tmp_path, again)  # Its claim was given back.


def test_what_stages_took_corrects_what_is_expected(tmp_path):
  bench = FakeBench(tmp_path)
  # Each is thought to take 4 s and takes 10: a third does not fit into 28 s.
  assert not run(tmp_path, bench, deadline=28.0, estimate=4.0)
  assert len(bench.did) == 2


def test_a_failed_parent_fails_its_children_without_computing(tmp_path):
  bench = Bench(tmp_path, SMOKE)
  child = next(task for task in PLAN.tasks if task.parents)
  bench.outcomes.write(child.parents['source'].key, {'error': 'diverged'})
  found = bench.do(child, Outlook(costs(), 1))
  assert found == {'title': child.title, 'error': 'its source failed'}


def test_a_damaged_outcome_is_named(tmp_path):
  outcomes = Outcomes(tmp_path)
  assert outcomes.read('k') is None and not outcomes.done('k')
  outcome = {'folder': 'x', 'measured': {'value': 1.5}}
  outcomes.write('k', outcome)
  assert outcomes.read('k') == outcome
  (tmp_path / 'outcomes' / 'k.json').write_text('{')
  with pytest.raises(InputError, match='k.json is damaged'):
    outcomes.read('k')


def test_the_outlook_counts_down():
  clock, (a, b, *_) = Clock(), PLAN.tasks
  outlook = Outlook(
    {a.key: Cost(10, 0), b.key: Cost(30, 0)}, 2, deadline=100.0, now=clock
  )
  assert outlook.remaining() == 40
  outlook.start(a.key, 'a', lambda: False)
  clock.seconds = 4.0
  assert outlook.remaining() == 36
  clock.seconds = 20.0  # Twice as long as estimated.
  outlook.finish()
  assert outlook.remaining() == 60
  assert outlook.fits(b.key)  # 20 + 60 ≤ 100
  clock.seconds = 41.0
  assert not outlook.fits(b.key)
  outlook.done_elsewhere(b.key)
  assert outlook.remaining() == 0


def test_an_epoch_that_would_end_too_late_or_is_anothers_ends_the_stage():
  clock, task = Clock(), PLAN.tasks[0]
  outlook = Outlook({task.key: Cost(1, 0)}, 1, deadline=10.0, now=clock)
  outlook.start(task.key, 'a', lambda: clock() == 5.0)
  clock.seconds = 4.0
  outlook.epoch(Epoch(0, None, 0.0, {}))
  clock.seconds = 5.0
  with pytest.raises(LostError):
    outlook.epoch(Epoch(1, None, 0.0, {}))
  clock.seconds = 8.0  # The last took 4 s: 8 + 4 > 10.
  with pytest.raises(OutOfTimeError):
    outlook.epoch(Epoch(2, None, 0.0, {}))


def test_costs_by_hand():
  problem = dataclasses.replace(SMOKE.problems[0], fractions=(0.5,))
  preset = dataclasses.replace(SMOKE, problems=(problem,), train_epochs=2)
  rates = Rates(
    train=0.1, predict=0.01, compile=7.0, macs=10, images=100, test=20
  )
  made = plan.Tasks(preset)
  estimator = Estimator({problem: rates})
  # 2 epochs of 100 images; 120 predicted; compilation; 0.5 s to save it.
  first = estimator.cost(made.source(problem, 0))
  assert first.seconds == pytest.approx(20 + 1.2 + 7 + 0.5)
  assert first.flops == 10 * (6 * 200 + 2 * 120)
  # The same program serves another seed.
  second = estimator.cost(made.source(problem, 1))
  assert second.seconds == pytest.approx(20 + 1.2 + 0.5)
  # Only the last tensors train: a forward pass, and little else.
  frozen = estimator.cost(made.table(problem, 0.5, 'cf_5', 0))
  whole = estimator.cost(made.table(problem, 0.5, 'top_k', 0))
  assert frozen.seconds < whole.seconds and frozen.flops < whole.flops


def test_the_plan_is_shown_with_its_sums():
  lines = runner.describe(PLAN, costs(90.0), workers=2)
  count = len(PLAN.tasks)
  assert len([line for line in lines if '1:30' in line]) == count
  own = [k for k in costs() if 'fig1' in PLAN.serves[k]]
  assert f'fig1: {len(own)} stages' in '\n'.join(lines)
  assert lines[-2].startswith(f'preset smoke: {count} stages, 0 done')
  assert lines[-1].startswith('shared by 2 workers')
