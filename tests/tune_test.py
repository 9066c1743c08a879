"""Rates that are found on forget sets of their own, and wrong labels."""

import dataclasses
import json
import re

import helpers
import msgspec
import pytest
import running

from experiments import config, tune
from experiments.config import Trial, Tuned
from experiments.study import results, study
from unlearn_jax.base import InputError
from unlearn_jax.strategies import parse


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  return helpers.stripes_file(tmp_path_factory.mktemp('data'))


def quick(data_file, workdir, *more):
  return running.training(
    *(data_file, workdir, '--forget=mislabelled(0.1)', '--epochs=2'),
    *('--schedule=cosine', '--stop_retain_share=2', *more),
  )


@pytest.fixture(scope='module')
def tuned(data_file, tmp_path_factory):
  """What tuning wrote and said, and where."""
  workdir = tmp_path_factory.mktemp('tuned')
  told = '--strategies=retrain, finetune, scratch, ssd'
  more = '--seeds=2', '--trials=3', '--lowest=1e-4', '--highest=0.01'
  out = running.done('tune', *quick(data_file, workdir, told, *more))
  return workdir, out, json.loads((workdir / 'tuned.json').read_text())


def test_each_is_tried_at_as_many_values_and_the_nearest_to_retrain_wins(tuned):
  _, out, found = tuned
  assert found['knob'] == 'learning_rate' and found['seeds'] == [1000, 1001]
  assert list(found['tried']) == ['finetune', 'scratch', 'ssd']
  for text, trials in found['tried'].items():
    order = [(trial['damaged'], trial['gap']) for trial in trials]
    assert order == sorted(order) and len(order) == (1 if text == 'ssd' else 3)
    gaps = [gap for _, gap in order]
    assert f'{trials[0]["strategy"]}: gap {100 * gaps[0]:.2f} points' in out
  rates = {t['strategy'] for t in found['tried']['finetune']}
  assert rates == {
    f'finetune(learning_rate={rate})' for rate in (0.0001, 0.001, 0.01)
  }
  assert 'seed 1000 · retrain' in out and 'seed 1001 · source' in out


def test_a_rate_that_ruins_the_model_does_not_win_by_its_low_gap(
  data_file, tmp_path, monkeypatch
):
  """Of fine-tuning one value of three is whole, from scratch none is."""

  class Found:
    def whole(self, text, metric):
      rate = re.search('learning_rate=([0-9.e-]+)', text)
      place = (1e-4, 1e-3, 1e-2).index(float(rate[1])) if rate else None
      if metric == 'gap_to_retrained':
        return [0.3 - 0.1 * place] * 2
      if text == 'retrain':
        return [0.90, 0.92]
      return [0.90 if text.startswith('finetune') and not place else 0.5] * 2

  monkeypatch.setattr(study, 'compute', lambda *_: Found())
  told = '--strategies=finetune, scratch'
  more = '--seeds=2', '--trials=3', '--lowest=1e-4', '--highest=0.01'
  out = running.done('tune', *quick(data_file, tmp_path, told, *more))
  found = json.loads((tmp_path / 'tuned.json').read_text())['tried']
  tried = [(t['strategy'], t['damaged']) for t in found['finetune']]
  assert tried == [
    ('finetune(learning_rate=0.0001)', False),
    ('finetune(learning_rate=0.01)', True),
    ('finetune(learning_rate=0.001)', True),
  ]
  assert found['scratch'][0]['strategy'] == 'scratch(learning_rate=0.01)'
  assert (
    'scratch(learning_rate=0.01): gap 10.00 points, at an end of its' in out
  )


def test_what_was_tuned_is_run_and_said(tuned, data_file, tmp_path):
  workdir, _, found = tuned
  file = workdir / 'tuned.json'
  told = '--strategies=retrain, finetune, scratch, ct'
  own = quick(data_file, tmp_path / 'run', told, f'--tuned={file}')
  out = running.done('unlearn', *own, '--seeds=2', '--verbose')
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  best = [found['tried'][name][0]['strategy'] for name in (
    'finetune', 'scratch'
  )]  # fmt: skip
  names = [row['strategy'] for row in report['rows']]
  assert names == ['source', 'retrain', *best, 'ct']
  said = 'at most 3 values each, forget sets of seeds 1000, 1001'
  assert said in ' '.join(out.split()) and said in report['tuned']
  assert found['problem']['train_epochs'] == 6
  assert 'tuned on another problem' not in out
  # Without a stop rule nothing is cut off.
  assert 'never' not in out and '≥' not in out and 'stop rule was' not in out
  assert report['stop_rule']['text'].startswith('There is none: every')
  # Of the labels that were given, and of the true ones.
  for row in report['rows']:
    given, true = (
      row['values'][f'{name}_accuracy'] for name in ('forget', 'true_label')
    )
    assert all(a + b <= 1 + 1e-6 for a, b in zip(given, true))
  retrained, scratch = report['rows'][1], report['rows'][3]
  assert max(retrained['values']['forget_accuracy']) < 0.5
  assert min(retrained['values']['true_label_accuracy']) > 0.5
  # Read back from its checkpoint, labels and all.
  path = scratch['checkpoints'][1]
  got = json.loads(running.done('evaluate', f'--checkpoint={path}'))
  for metric in ('forget_accuracy', 'true_label_accuracy', 'gap_to_retrained'):
    wanted = scratch['values'][metric][1]
    assert got[metric] == pytest.approx(wanted, abs=1e-6)


def test_what_was_tuned_on_another_problem_is_said(tmp_path):
  file = tmp_path / 'tuned.json'
  own = config.Study(methods=config.Methods(tuned=str(file)))
  tried = {'top_k': [Trial('top_k(k=7)', 0.1)]}
  file.write_bytes(msgspec.json.encode(Tuned('k', [5], tried)))
  assert not results.tuned_elsewhere(own)  # An old file does not say.
  there = results.problem(own)
  file.write_bytes(msgspec.json.encode(Tuned('k', [5], tried, there)))
  assert not results.tuned_elsewhere(own)
  other = dataclasses.replace(own, training=config.Training(train_epochs=7))
  (line,) = results.tuned_elsewhere(other)
  assert '(train_epochs 30 there, 7 here)' in line
  budget = config.Methods(tuned=str(file), epochs=2, stop_retain_share=2.0)
  (line,) = results.tuned_elsewhere(dataclasses.replace(own, methods=budget))
  assert '(epochs 10 there, 2 here; stop_retain_share 0.98 there, 2.0' in line
  other = dataclasses.replace(own, data=config.Data('cifar10', 500))
  (line,) = results.tuned_elsewhere(other)
  for differs in (
    'dataset digits there, cifar10 here',
    'train_subset None there, 500 here',
    'train_learning_rate 0.003 there, 0.001 here',
    'forget mislabelled(0.1) there, random(0.1) here',
  ):
    assert differs in line


def test_no_seed_is_judged_that_was_tuned_on(tuned, data_file, tmp_path):
  file = tuned[0] / 'tuned.json'
  own = quick(data_file, tmp_path / 'run', f'--tuned={file}', '--seed=999')
  line = running.refused('unlearn', *own, '--seeds=2', status=2)
  allowed = 'allowed: seeds that nothing was tuned on, unlike 1000'
  assert f'--seed=999, {allowed}' in line
  own = quick(data_file, tmp_path / 'run', f'--tuned={file}', '--seed=5')
  line = running.refused('unlearn', *own, '--split_seed=1000', status=2)
  assert f'--split_seed=1000, {allowed}' in line
  assert not (tmp_path / 'run').exists()


def test_what_it_cannot_tune_is_one_line(data_file, tmp_path):
  own = quick(data_file, tmp_path / 'run', '--knob=ratio', '--highest=2')
  line = running.refused('tune', *own, '--strategies=random_k')
  assert 'random_k: ratio=2.0, allowed: above 0 and at most 1' in line


@pytest.mark.parametrize(
  'flag, said',
  [
    (
      '--knob=learning',
      '--knob=learning, allowed: did you mean learning_rate?',
    ),
    ('--highest=1e-5', '--highest=1e-05, allowed: --lowest=0.0003 up'),
    ('--degree', '--degree=true, allowed: only with experiments.unlearn'),
    ('--trials=1', '--trials=1, allowed: 2 to 20'),
    ('--lowest=0', '--lowest=0.0, allowed: '),
    ('--optimizer=adm', '--optimizer=adm, allowed: did you mean adam?'),
    ('--schedule=cos', '--schedule=cos, allowed: '),
  ],
)
def test_a_bad_flag_is_one_line(flag, said, data_file, tmp_path):
  line = running.refused('tune', *quick(data_file, tmp_path / 'r', flag))
  assert said in line
  assert not (tmp_path / 'r').exists()


def test_values_are_spread_evenly_by_ratio():
  asked = tune.Tune(trials=4, lowest=1e-3, highest=1.0, knob='alpha')
  (own,) = parse('neggrad_plus(bounded=False)')
  got = [v.parameters['alpha'] for v in tune.variants(own, asked)]
  assert got == [0.001, 0.01, 0.1, 1.0]
  assert all(not v.parameters['bounded'] for v in tune.variants(own, asked))
  (bare,) = parse('ct')
  assert tune.variants(bare, asked) == [bare]


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'truncated'),
    (b'[]', 'Expected `object`'),
    (b'{"knob": "a", "seeds": [1], "tried": {"x": []}}', 'length >= 1'),
    (b'{"knob": "a", "seeds": ["b"], "tried": {}}', 'Expected `int`'),
    (b'\xff\xfe', 'malformed'),
  ],
)
def test_another_file_is_refused_in_one_line(content, said, tmp_path):
  file = tmp_path / 'tuned.json'
  file.write_bytes(content)
  with pytest.raises(InputError, match=said) as refused:
    config.Methods(tuned=str(file)).chosen  # noqa: B018
  assert 'allowed: a file of experiments.tune' in str(refused.value)
  assert '\n' not in str(refused.value)


def test_of_several_trials_the_first_counts(tmp_path):
  file = tmp_path / 'tuned.json'
  tried = {'top_k': [Trial('top_k(k=7)', 0.1), Trial('top_k(k=9)', 0.2)]}
  file.write_bytes(msgspec.json.encode(Tuned('k', [5], tried)))
  methods = config.Methods('retrain, top_k, top_k(k=1)', tuned=str(file))
  texts = [own.text for own in methods.chosen]
  assert texts == ['retrain', 'top_k(k=7)', 'top_k(k=1)']
