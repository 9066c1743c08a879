"""Audits of many models: what they draw, find, keep and refuse."""

import dataclasses
import json
import pickle
import types

import helpers
import jax
import msgspec
import numpy as np
import pytest
import running

from experiments.report import audit as page
from experiments.report.model import Estimate
from experiments.settings import FlagError
from experiments.study import auditing, shadows
from experiments.study import setup as setups
from unlearn_jax import attacks, checkpoints

QUICK = '--train_epochs=10', '--strategies=finetune(epochs=1), retrain'
GAME = '--shadows=8', '--targets=2', '--requests=4'
NET = """
from flax import linen as nn


class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1) * {})
"""


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


def flags(data_file, workdir, *more):
  own = running.training(data_file, workdir, '--forget=mislabelled(0.2)')
  return *own, *QUICK, *more


@pytest.fixture(scope='module')
def audited(data_file, tmp_path_factory):
  """What an audit by shadow models wrote and said, and where."""
  workdir = tmp_path_factory.mktemp('audit') / 'run'
  out = running.done('audit', *flags(data_file, workdir, *GAME))
  return workdir, out, json.loads((workdir / 'audit.json').read_text())


def drawn(count, total=41, size=3, requests=3, seed=0):
  every = attacks.shadow_draws(jax.random.key(seed), total, size, requests)
  return [next(every) for _ in range(count)]


def test_each_example_is_in_as_often_as_another():
  made, learned = drawn(40), np.zeros(41, int)
  forgotten = np.zeros(41, int)
  for own in made:
    assert len(own.rows) == 20 and len(own.requests) == 3
    every = np.concatenate(own.requests)
    assert len(set(every.tolist())) == 9 and set(every) <= set(own.rows)
    assert all(np.all(np.diff(rows) > 0) for rows in (own.rows, *own.requests))
    learned[own.rows] += 1
    forgotten[every] += 1
  # Of two models after each other each learns what the other does not.
  for a, b in zip(made[::2], made[1::2]):
    assert not set(a.rows.tolist()) & set(b.rows.tolist())
  assert learned.min() >= 18 and learned.max() == 20
  assert forgotten.sum() == 360 and np.ptp(forgotten) <= 2
  # By lot, and whatever comes after.
  assert np.array_equal(drawn(3)[2].requests, made[2].requests)
  assert not np.array_equal(drawn(1, seed=1)[0].rows, made[0].rows)
  assert not np.array_equal(made[0].rows, made[2].rows)


def test_requests_are_no_sorted_leftovers():
  """Sets are drawn by lot: none holds what another would hold less of."""
  own = drawn(1, total=4000, size=500, requests=3)[0]
  means = [rows.mean() / 4000 for rows in own.requests]
  assert all(abs(mean - 0.5) < 0.06 for mean in means)


def test_no_target_is_a_shadow(data_file, tmp_path):
  """Of one number they learn other halves, forget other sets, by other keys."""
  study = running.study(*flags(data_file, tmp_path))
  splits = setups.draw(setups.set_up(study), study, 0)
  both = [shadows.Which(kind, 0, 4) for kind in ('shadow', 'target')]
  shadow, target = (shadows.drawn(study, splits, which) for which in both)
  assert len(shadow.rows) == len(target.rows) == 120
  assert 30 < len(np.intersect1d(shadow.rows, target.rows)) < 90
  for one, other in zip(shadow.requests, target.requests):
    assert len(one) == 24 and len(np.intersect1d(one, other)) < 12
  for purpose in (0, 1, 4, 1001):  # To train, and to forget each.
    one, other = (shadows._key(0, which, purpose) for which in both)
    assert (jax.random.key_data(one) != jax.random.key_data(other)).any()


def test_the_attack_finds_what_was_never_forgotten_and_nothing_in_retrain(
  audited,
):
  _, out, found = audited
  rows = {row['role']: row for row in found['rows']}
  assert [*rows] == ['source', 'reference', 'control']
  assert found['mislabelled'] == 48 and found['slice'] == 12
  assert found['request'] == 24 and found['models'] == 8
  # Wrong labels are what has to be remembered: the slice finds them.
  assert found['mislabelled_slice'] >= 9
  source, null = (rows[n]['attacks'] for n in ('source', 'reference'))
  assert source['slice']['auc'] > 0.85 and source['forget']['auc'] > 0.55
  assert source['slice']['auc'] > null['slice']['auc'] + 0.1
  # Who learned a label prefers it more than who never saw the image: an attack
  # by sides that are swapped would have the same AUC.
  for own in rows['source']['phi'].values():
    assert np.mean(own['inside']) > np.mean(own['outside']) + 1
  accuracy = rows['source']['accuracy']
  assert accuracy['forget'] > rows['reference']['accuracy']['forget'] + 0.1
  assert abs(null['forget']['auc'] - 0.5) < 0.1
  # 2 targets, 4 requests, 24 images each; 120 images unseen in each.
  assert (null['forget']['members'], null['forget']['others']) == (192, 960)
  assert null['retain']['members'] == 2 * 4 * 96
  assert source['forget']['members'] == source['retain']['members'] == 240
  # 4 · 24 · 8 images are forgotten: 3.2 shadow models each.
  assert null['forget']['fewest_in'] >= 2
  # Models, not the 4 requests of each.
  assert null['forget']['fewest_out'] == 4
  assert source['forget']['fewest_in'] == null['retain']['fewest_in'] == 4
  for row in found['rows']:
    forget = row['attacks']['forget']
    mean = np.mean(forget['targets'])
    assert forget['interval']['mean'] == pytest.approx(mean)
    assert forget['roc'][-1] == [1, 1]
    assert len(row['phi']) == 10
  gap = rows['control']['attacks']['forget']['minus_null']['mean']
  pairs = zip(*(rows[n]['attacks']['forget']['targets'] for n in (
    'control', 'reference'
  )))  # fmt: skip
  assert gap == pytest.approx(np.mean([a - b for a, b in pairs]))
  assert 'Retrain, the null' in out and 'unseen by 4 or more' in out


def test_without_an_interval_nothing_is_concluded(audited):
  own = msgspec.convert(audited[2], page.Audit)
  row = next(row for row in own.rows if row.role == 'control')
  said = page._found(row, own.null)
  assert 'told apart from Retrain' in said
  lone = {
    name: dataclasses.replace(attack, minus_null=Estimate(0.4))
    for name, attack in row.attacks.items()
  }
  said = page._found(dataclasses.replace(row, attacks=lone), own.null)
  assert 'so nothing can be concluded' in said and 'told apart' not in said


def test_what_one_model_is_told_is_what_its_stage_kept(audited):
  """Status and φ belong together: by the margins of one stage alone."""
  workdir, _, found = audited
  (path,) = (workdir / 'checkpoints').glob('target0-retrain-*')
  tree, manifest = checkpoints.restore_tree(path)
  assert tree['phi'].shape == tree['right'].shape == (4, 300)
  assert manifest['depends']['strategy'] == 'retrain'
  targets = found['rows'][1]['phi'].values()
  inside = sum(len(own['target_inside']) for own in targets)
  outside = sum(len(own['target_outside']) for own in targets)
  assert 0 < inside <= 20 and 0 < outside <= 80
  for own in targets:  # Each value is one that some target gave.
    assert len(own['inside']) >= 2 and len(own['outside']) == 16


def test_the_page_says_what_attacker_null_and_numbers_are(audited):
  workdir, _, found = audited
  page = (workdir / 'audit.html').read_text()
  for words in (
    'What the attacker knows.',
    'What the null is.',
    'What was not tested.',
    'TPR at 0.1 % FPR',
    'Nothing forgotten (as trained)',
  ):
    assert words in page
  assert page.count('data:image/png') == 1 + len(found['rows'])
  text = (workdir / 'audit.md').read_text()
  # 1,000 non-members are needed for ten alarms at 1 %: there are 960.
  (line,) = [x for x in text.splitlines() if x.startswith('| Retrain | 0')][:1]
  assert line.split('|')[5].strip() == line.split('|')[6].strip() == '–'
  assert (workdir / 'figures' / 'roc.png').stat().st_size > 10_000


def test_a_non_member_is_one_however_often_its_model_is_asked():
  """4 requests to 4 targets with 300 unseen images each: 1,200, not 4,800."""

  def row(role, others):
    tpr = {f'{rate:g}': 0.5 for rate in page.RATES}
    sides = 0.5, tpr, 400, others, 8, 8, [[1.0, 1.0]]
    own = page.Attack(0.5, [0.5] * 4, None, None, *sides)
    accuracy = dict.fromkeys(('forget', 'retain', 'test'), 1.0)
    groups = dict.fromkeys(('forget', 'slice', 'retain'), own)
    return page.Row(role, role, role, accuracy, groups)

  for others, shown in ((1200, '– 50.0 50.0'), (960, '– – 50.0')):
    rows = [row('source', others), row('reference', 4 * others)]
    names = 'a command', {}, {}, 'ulira', 'digits', 'cnn'
    made = page.Audit(*names, 600, 30, 4, 64, 4, 0, rows)
    for line in page._attacked(made, 'forget').lines:
      assert ' '.join(line.cells[3:6]) == shown, line.label


def test_a_second_run_trains_nothing_and_a_new_strategy_only_itself(
  audited, data_file
):
  workdir, _, found = audited
  before = {*(workdir / 'checkpoints').iterdir()}
  own = *flags(data_file, workdir, *GAME), '--strategies=retrain, random_k'
  out = running.done('audit', *own)
  new = {*(workdir / 'checkpoints').iterdir()} - before
  assert len(new) == 10 and all('random_k' in path.name for path in new)
  assert out.count('done before') == 20
  again = json.loads((workdir / 'audit.json').read_text())
  assert again['rows'][1]['attacks'] == found['rows'][1]['attacks']
  # What trains a source elsewhere is none of them.
  assert not [path for path in before if path.name.startswith('seed')]


def test_a_slice_that_no_target_can_judge_is_one_line(audited, data_file):
  workdir, _, found = audited
  own = flags(data_file, workdir, '--shadows=8', '--requests=4', '--targets=1')
  line = running.refused('audit', *own, '--slice=0.001', status=2)
  assert '--slice=0.001, allowed: more, or more --targets: of its 1 im' in line
  kept = json.loads((workdir / 'audit.json').read_text())
  assert kept['slice'] == found['slice']


def test_changed_code_has_other_shadows(data_file, tmp_path):
  file, keys = tmp_path / 'mine.py', []
  own = f'--dataset=npz:{data_file}', f'--model={file}:Net', *QUICK[1:]
  game = auditing.Game('ulira', 8, 2, 4, 0.05)
  for scale in (1, 2):
    file.write_text(NET.format(scale))
    study = running.study(*own, '--forget=random(0.2)', '--batch_size=24')
    plan = auditing.plan(study, game, tmp_path)
    keys.append({stage.key for stage in plan.stages})
  assert len(keys[0]) == len(keys[1]) and not keys[0] & keys[1]


def test_what_is_hardly_retained_is_refused_before_anything_is_trained(
  data_file, tmp_path
):
  own = running.training(data_file, tmp_path, '--forget=random(0.9)')
  study = running.study(*own, *QUICK, '--batch_size=4')
  game = auditing.Game('ulira', 8, 2, 1, 0.05)
  with pytest.raises(FlagError, match='and retained after 0 requests'):
    auditing.plan(study, game, tmp_path)


def test_many_models_against_many_retrains(data_file, tmp_path):
  own = flags(data_file, tmp_path / 'run', '--attack=ensemble', '--shadows=5')
  out = running.done('audit', *own)
  found = json.loads((tmp_path / 'run' / 'audit.json').read_text())
  rows = {row['role']: row for row in found['rows']}
  null, source = rows['reference'], rows['source']
  # Of wrong labels: those who learned them differ, a second Retrain does not.
  assert null['forgetting_score'] > source['forgetting_score']
  assert null['klom']['forget'][0] < source['klom']['forget'][0] - 1
  assert 0 < null['klom']['forget'][0]  # Alike ensembles are not at 0.
  assert found['request'] == 48 and found['models'] == 5
  assert 'Retrain against Retrain, the null' in out
  names = [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert sum('retrain' in name for name in names) == 10 and len(names) == 20
  for row in found['rows']:
    assert row['final_score'] <= 1.2 * row['forgetting_score']
  assert 0 < null['final_score'] and null['accuracy']['forget'] < 0.5


def test_an_ensembles_final_score_by_hand(monkeypatch):
  """Of images 0 to 3 of D, 1 forgotten, and of two test images."""
  right = {  # By retained, retained, retained and test, test.
    'retrain': [1, 1, 1, 1, 0],
    'again': [1, 1, 1, 0, 0.5],
    'source': [1, 1, 0, 1, 1],
    'tune': [1, 0.5, 0, 0.5, 0],
  }
  # ε̂ = log 2 on the forgotten image, F = ½; what is retained does not count.
  phi = {n: np.zeros((4, 6)) for n in right}
  phi['retrain'][:, 1], phi['tune'][:, 1] = [0, 1.5, 2.5, 3.5], [1, 2, 3, 4]
  phi['tune'][:, 0], phi['again'][:, 1] = 9, [0, 1.5, 2.5, 3.5]
  seen = {}
  for name, shares in right.items():
    own = np.insert(shares, 1, 1.0) * 4 > np.arange(4)[:, None]
    seen[name] = auditing._Seen(phi[name], own, np.zeros((4, 4)))
  monkeypatch.setattr(auditing, '_seen', lambda plan, stages, kind: stages)
  part = types.SimpleNamespace
  plan = part(
    splits=part(
      train=part(size=4, indices=np.arange(4)),
      forget=part(indices=np.array([1])),
      test=part(size=2),
    ),
    models=seen['source'],
    made={name: own for name, own in seen.items() if name != 'source'},
  )
  every = [
    part(text=name, label=name, strategy=part(role=name))
    for name in ('source', 'retrain', 'tune')
  ]
  source, null, tune = auditing._ensembles(plan, every)
  assert (null.forgetting_score, tune.forgetting_score) == (1, 0.5)
  assert source.forgetting_score == source.final_score == 0
  # Retrain has 1 and ½, the other ensemble of it 1 and ¼, tune ½ and ¼.
  assert (null.final_score, tune.final_score) == (0.5, 0.5 * 0.5 * 0.5)
  assert null.klom['forget'][0] == 0 < tune.klom['forget'][0]
  # One of three retained images differs, in every model.
  assert tune.klom['retain'][0] == pytest.approx(np.log(1e5) / 3)


def test_no_more_is_drawn_than_a_half_holds():
  with pytest.raises(ValueError, match='size · requests=21, allowed: 1 to 20'):
    next(attacks.shadow_draws(jax.random.key(0), 41, 7, 3))


@pytest.mark.parametrize(
  'flag, said',
  [
    ('--attack=lira', '--attack=lira, allowed: '),
    ('--shadows=4', '--shadows=4, allowed: more, or more --requests: the'),
    ('--requests=9', '--requests=9, allowed: so many disjoint sets of 24'),
    ('--forget=class(0)', '--forget=class(0), allowed: random(SHARE) or mis'),
    ('--batch_size=99', '--batch_size=99, allowed: at most the 96 images'),
    ('--slice=1', '--slice=1.0, allowed: above 0 and below 1'),
    (
      "--strategies=top_k(js_teacher='retrained')",
      ', allowed: none that Retrain teaches',
    ),
  ],
)
def test_a_bad_flag_is_one_line(flag, said, data_file, tmp_path):
  own = *flags(data_file, tmp_path / 'r', *GAME), flag
  assert said in running.refused('audit', *own, status=2)
  assert not (tmp_path / 'r').exists()


def test_a_stage_travels_to_a_worker(data_file, tmp_path):
  asked = running.study(*flags(data_file, tmp_path))
  for attack in ('ulira', 'ensemble'):
    game = auditing.Game(attack, 8, 2, 4, 0.05)
    plan = auditing.plan(asked, game, tmp_path)
    models = 10 if attack == 'ulira' else 8
    ways = 3 if attack == 'ulira' else 4
    assert len({stage.key for stage in plan.stages}) == models * ways
    for stage in plan.stages[:3]:
      assert pickle.loads(pickle.dumps(stage)).key == stage.key


def test_a_reference_of_ones_own_is_run_as_it_is(
  data_file, tmp_path, monkeypatch
):
  """One that forgets nothing knows what was trained."""
  (tmp_path / 'lazy.py').write_text(
    'from unlearn_jax import Strategy\n\n\ndef still() -> Strategy:\n'
    '  """Leaves all as it is."""\n'
    "  return Strategy('Still', 'reference', epochs=0)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  own = flags(data_file, tmp_path / 'run', '--attack=ensemble', '--shadows=3')
  running.done('audit', *own, '--strategies=lazy:still')
  found = json.loads((tmp_path / 'run' / 'audit.json').read_text())
  source, still = (row['accuracy']['forget'] for row in found['rows'])
  # BatchNorm is estimated anew. Retrain is right on less than half.
  assert abs(still - source) < 0.05 and still > 0.6
