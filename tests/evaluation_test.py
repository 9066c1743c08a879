"""Every metric by hand, the table that all reports read, and the AUC."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax import attacks, evaluation, parallel, training
from unlearn_jax.base import Examples, ModelState, Splits, stateless
from unlearn_jax.calibration import calibrated_degree
from unlearn_jax.evaluation import METRICS, Cost, Evidence, Metric, Predictions
from unlearn_jax.strategies import finetune
from unlearn_jax.unlearning import unlearn

LABELS = np.arange(30, dtype=np.int32) % 3
EVERY = Examples.of(np.zeros((30, 1), np.float32), LABELS)
SPLITS = Splits(
  EVERY.take(np.arange(20)),
  EVERY.take(np.arange(10)),
  EVERY.take(np.arange(10, 20)),
  EVERY.take(np.arange(20, 30)),
)


def one_hot(labels, wrong=0):
  """Sure and right, except on the first `wrong` examples."""
  out = np.full((len(labels), 3), np.log(0.05), np.float32)
  chosen = np.asarray(labels).copy()
  chosen[:wrong] = (chosen[:wrong] + 1) % 3
  out[np.arange(len(labels)), chosen] = np.log(0.9)
  return out


def made(forget, retain, test):
  """Predictions of a model that is wrong on so many of ten in each part."""
  return Predictions(
    one_hot(LABELS[:10], forget),
    one_hot(LABELS[10:20], retain),
    one_hot(LABELS[20:], test),
  )


# Half of D_UL has a wrong label, one less than the true one.
WRONG = SPLITS._replace(truth=(LABELS[:10] + (np.arange(10) < 5)) % 3)
OWN, SOURCE, RETRAINED = made(2, 1, 5), made(1, 0, 4), made(4, 0, 4)
COST = Cost(3.0, 1.5, 2, {'a': 4, 'b': 0, 'c': 1}, 0.125)
EVIDENCE = Evidence(OWN, SOURCE, WRONG, RETRAINED, [RETRAINED], COST,
                    COST._replace(seconds=12.0))  # fmt: skip


def js_where_one_is_wrong():
  p, q = np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.9, 0.05])
  m = (p + q) / 2
  return sum(0.5 * (r * np.log2(r / m)).sum() for r in (p, q))


@pytest.mark.parametrize(
  'name, value',
  [
    ('forget_accuracy', 0.8),
    # Two of the five say the true label, and all of the others.
    ('true_label_accuracy', 0.7),
    ('retain_accuracy', 0.9),
    ('test_accuracy', 0.5),
    # Two of ten forget and five of ten test losses are high, all others
    # equal: P(low, high) + half the ties = 0.8·0.5 + 0.5·(0.8·0.5 + 0.2·0.5).
    ('mia_auc', 0.65),
    # By the reference, wrong on four of each, two members are likelier than
    # all others, six than five and as five, two than one and as four.
    ('rmia_auc', (2 * 10 + 6 * 7.5 + 2 * 3) / 100),
    # Retrain: 0.6, 1.0, 0.6 and an AUC of 0.5.
    ('gap_to_retrained', (0.2 + 0.1 + 0.1 + 0.15) / 4),
    # The source has 0.9 of D_UL right, and all of D_RE.
    ('forgetting_rate', 1 / 9),
    ('memory_retention_rate', 1.0),
    # They differ on two of ten examples.
    ('similarity', 1 - 0.2 * js_where_one_is_wrong()),
    # Sure or not: of the sure there are more members, of the others fewer.
    ('svc_efficacy', 0.2),
    ('svc_gap', (0.2 + 0.1 + 0.1 + 0.2) / 4),
    ('scalars_changed', 5),
    ('tensors_changed', 2),
    ('perturbation_js', 0.125),
    ('stop_epoch', 2),
    ('seconds', 3.0),
    ('compile_seconds', 1.5),
    ('acceleration', 4.0),
  ],
)
def test_every_metric_by_hand(name, value):
  assert METRICS[name].measure(EVIDENCE) == pytest.approx(value, abs=1e-6)


def test_no_metric_escapes():
  (mark,) = test_every_metric_by_hand.pytestmark
  others = {'other_test_accuracy', 'rmia_tpr'}  # Tested below.
  assert {name for name, _ in mark.args[1]} | others == {*METRICS}
  assert set(evaluation.measure(EVIDENCE)) == set(METRICS)


def test_a_perfect_copy_of_retrain_has_no_gap():
  same = evaluation.measure(EVIDENCE._replace(own=RETRAINED))
  assert same['gap_to_retrained'] == 0
  assert same['similarity'] == pytest.approx(1, abs=1e-6)
  for name in ('forget_accuracy', 'mia_auc', 'forgetting_rate'):
    alone = EVIDENCE._replace(own=RETRAINED, retrained=None)
    assert same[name] == METRICS[name].measure(alone)


RARE = {'lost classes', 'many others'}


@pytest.mark.parametrize(
  'name', [name for name, row in METRICS.items() if not RARE & {*row.needs}]
)
def test_a_metric_says_none_without_what_it_needs_and_needs_no_more(name):
  row, missing = METRICS[name], {'retrained': None, 'cost': None}
  for need, changes in (
    ('retrained', {'retrained': None, 'retrained_cost': None}),
    ('references', {'own': RETRAINED, 'references': ()}),
    ('cost', {'cost': None, 'retrained_cost': None}),
    ('truth', {'splits': SPLITS}),
  ):
    found = row.measure(EVIDENCE._replace(**changes))
    assert (found is None) == (need in row.needs), f'{name} without {need}'
  bare = row.measure(
    EVIDENCE._replace(**missing, references=(), retrained_cost=None)
  )
  assert (bare is None) == bool({*row.needs} & {*missing, 'references'})
  worse = EVIDENCE._replace(source=made(7, 7, 7))
  changed = row.measure(worse) != row.measure(EVIDENCE)
  assert changed == ('source' in row.needs), f'{name} and the source'


def test_without_a_right_answer_before_there_is_no_rate():
  got = evaluation.measure(EVIDENCE._replace(source=made(10, 0, 0)))
  assert got['forgetting_rate'] is None and got['memory_retention_rate'] is None


def test_a_rule_that_never_held_has_no_epoch():
  never = EVIDENCE._replace(cost=COST._replace(stop_epoch=None))
  assert METRICS['stop_epoch'].measure(never) is None


def test_every_row_says_what_a_reader_needs_and_what_is_better():
  for name, row in METRICS.items():
    assert row.name == name and row.label and row.docs
    assert (row.unit in ('%', 'points')) == (row.scale == 100)
  assert len({row.label for row in METRICS.values()}) == len(METRICS)
  better = {name: row.better for name, row in METRICS.items()}
  higher = {name for name, word in better.items() if word == 'higher'}
  lower = {name for name, word in better.items() if word == 'lower'}
  assert higher == {'similarity', 'acceleration'}
  assert lower == {
    *('gap_to_retrained', 'svc_gap'),
    *('stop_epoch', 'seconds', 'compile_seconds'),
  }


def test_without_a_class_test_data_are_judged_with_it_and_without():
  labels = np.repeat(np.arange(3), 10)
  every = Examples.of(np.zeros((30, 1)), labels)
  splits = Splits.of(every, np.arange(10), every)  # Nothing is kept of class 0.
  own = Predictions(one_hot(labels[:10], 10), one_hot(labels[10:]),
                    one_hot(labels, 12))  # fmt: skip
  found = evaluation.measure(Evidence(own, own, splits))
  assert found['test_accuracy'] == pytest.approx(18 / 30)
  assert found['other_test_accuracy'] == pytest.approx(18 / 20)
  nobody = splits._replace(unseen=every.take([]))
  found = evaluation.measure(Evidence(own, own, nobody, own))
  assert found['mia_auc'] is found['rmia_auc'] is None
  assert found['gap_to_retrained'] == 0  # Of the other three.


def test_the_papers_attack_learns_the_first_retained_and_no_class_that_is_gone(
  monkeypatch,
):
  """As many of either, in the data's order, and a thousand at most."""
  given, labels = {}, np.repeat(np.arange(3), 600)
  every = Examples.of(np.zeros((1800, 1)), labels)
  rng = np.random.default_rng(0)
  own = Predictions(*(rng.normal(size=(n, 3)) for n in (600, 1200, 1800)))

  def spy(members, others, forget, features):
    given.update(members=members, others=others, forget=forget)
    return dict.fromkeys(features, 0.25)

  monkeypatch.setattr(attacks, 'svc_efficacy', spy)
  sides = {'members': own.retain, 'others': own.test[600:]}
  for size, count in ((1300, 700), (1800, 1000)):
    test = every.take(np.arange(size))
    splits = Splits.of(every, np.arange(600), test)  # All of class 0.
    found = METRICS['svc_efficacy'].measure(Evidence(own, own, splits))
    assert found == 0.25 and len(given['forget'][0]) == 600
    for name, part in sides.items():
      logits, its = given[name]
      np.testing.assert_array_equal(logits, part[:count])
      np.testing.assert_array_equal(its, labels[600 : 600 + count])


def test_rmia_says_how_many_it_finds_where_it_accuses_one_per_cent():
  labels = np.arange(2100, dtype=np.int32) % 3
  every = Examples.of(np.zeros((2100, 1)), labels)
  rows = np.split(np.arange(2100), [100, 1100])
  splits = Splits(every, *map(every.take, rows))
  # Of others none is likelier than to the reference, of members all but 30.
  own = Predictions(*(one_hot(labels[r]) for r in rows))
  its = own._replace(forget=one_hot(labels[:100], 70))
  evidence = Evidence(own, own, splits, references=[its])
  assert METRICS['rmia_tpr'].measure(evidence) == pytest.approx(0.7)
  few = splits._replace(unseen=splits.test.take(np.arange(999)))
  assert METRICS['rmia_tpr'].measure(evidence._replace(splits=few)) is None


def test_a_metric_is_added_by_a_row(monkeypatch):
  def confidence(evidence):
    return float(np.exp(evidence.own.forget.max(1)).mean())

  row = Metric('confidence', 'Confidence', confidence, needs=())
  monkeypatch.setitem(METRICS, row.name, row)
  assert evaluation.measure(EVIDENCE)['confidence'] == pytest.approx(0.9)
  assert list(evaluation.measure(EVIDENCE))[-1] == 'confidence'
  found = evaluation.evaluate(*problem())
  assert found['confidence'] > 0


def problem():
  """Each model is a table of logits; D_UL are the first four of eight."""
  eye = np.eye(12, dtype=np.float32)
  labels = np.arange(12, dtype=np.int32) % 2
  every = Examples.of(eye, labels)
  splits = Splits.of(every.take(np.arange(8)), np.arange(4),
                     every.take(np.arange(8, 12)))  # fmt: skip

  def state(wrong):
    chosen = labels.copy()
    chosen[wrong] = 1 - chosen[wrong]
    return ModelState(jnp.array(4 * np.eye(2)[chosen], jnp.float32))

  model = stateless(lambda params, x: x @ params)
  own, source, retrained = state([0, 4]), state([8]), state([0, 1, 8, 9])
  return model, own, source, splits, retrained


@pytest.mark.parametrize('devices', [1, 4])
def test_evaluate_predicts_every_example_of_every_split(devices):
  with parallel.use(jax.devices()[:devices]):
    got = evaluation.evaluate(*problem())
    alone = evaluation.evaluate(*problem()[:4])
  assert set(got) == {n for n, r in METRICS.items() if 'cost' not in r.needs}
  assert got['forget_accuracy'] == 0.75 and got['retain_accuracy'] == 0.75
  assert got['test_accuracy'] == 1
  assert got['forgetting_rate'] == 0.25 and got['memory_retention_rate'] == 0.75
  # One of four members has the high loss, none of the others has.
  assert got['mia_auc'] == pytest.approx(0.375)
  # Retrain: 0.5, 1, 0.5 and an AUC of 0.5.
  assert got['gap_to_retrained'] == pytest.approx((0.25 * 2 + 0.5 + 0.125) / 4)
  assert 0 < got['similarity'] < 1
  assert {n for n in got if alone[n] is None} == {
    *('gap_to_retrained', 'svc_gap', 'similarity', 'true_label_accuracy'),
    *('rmia_auc', 'rmia_tpr', 'other_test_accuracy'),
  }


# Calibration.


def test_what_one_generator_says_alone_does_not_separate():
  """The ranks are as clear as can be, but the interval contains 0."""
  found = calibrated_degree([0.01, 0.01, 0.01, 0.01, 0.9], [0.0] * 5)
  assert found.p_value == pytest.approx(1 / 252)
  assert found.difference.low < 0 < found.difference.high
  assert found.verdict == 'cannot tell'
  steady = calibrated_degree([0.1, 0.11, 0.1, 0.11, 0.1], [0.0] * 5)
  assert steady.verdict == 'separates' and steady.difference.low > 0


def a_problem(labels, classes):
  examples = Examples.of(np.eye(4, dtype=np.float32), labels)
  model = stateless(
    lambda params, x: x @ params,
    init=lambda key: ModelState(jnp.zeros((4, classes))),
  )
  return model, Splits.of(examples, [0], examples)


@pytest.mark.parametrize(
  'labels, classes, words',
  [
    ([1, 2, 3, 1], 3, 'labels=3, allowed: 0 to 2, the classes'),
    ([0, 1, 0, 1], 1, r'logits float32\[1, 1\], allowed: \[B, C\] of 2'),
    ([0, 1, 0, 1], None, r'logits a tuple, allowed: \[B, C\] of 2'),
  ],
)
def test_what_does_not_fit_the_logits_is_refused(labels, classes, words):
  model, splits = a_problem(labels, classes or 2)
  if classes is None:  # Features beside them.
    apply = model.apply
    both = lambda *given: ((apply(*given)[0], given[1]), None)  # noqa: E731
    model = dataclasses.replace(model, apply=both)
  state = ModelState(jnp.zeros((4, classes or 2)))
  key = jax.random.key(0)
  for call in (
    lambda: evaluation.evaluate(model, state, state, splits),
    lambda: training.train(key, model, splits.train, epochs=1, batch_size=4),
    lambda: unlearn(key, model, state, splits, finetune()),
  ):
    with pytest.raises(ValueError, match=words):
      call()


def test_nothing_to_train_on_or_to_test_by_is_refused():
  model, splits = a_problem([0, 1, 0, 1], 2)
  state, none = ModelState(jnp.zeros((4, 2))), splits.test.take([])
  splits, key = splits._replace(test=none), jax.random.key(0)
  for call in (
    lambda: evaluation.evaluate(model, state, state, splits),
    lambda: training.train(key, model, none, epochs=1, batch_size=1),
    lambda: unlearn(key, model, state, splits, finetune()),
  ):
    with pytest.raises(ValueError, match='examples=0, allowed: 1 or more'):
      call()


def test_the_attack_sees_what_softmax_rounds():
  """Members have logits of 22, the others of 20: both are p = 1 in float32."""
  x = np.repeat([22.0, 20.0], 50).astype(np.float32)[:, None]
  every = Examples.of(x, np.zeros(100, int))
  train, test = every.take(np.arange(50)), every.take(np.arange(50, 100))
  splits = Splits.of(train, np.arange(25), test)
  model = stateless(lambda w, x: jnp.concatenate([w * x, 0 * x], 1))
  state = ModelState(jnp.float32(1))
  found = evaluation.evaluate(model, state, state, splits)
  assert found['mia_auc'] == 1.0
