"""What is left of D_UL: the table of metrics, and one report of a model.

A new metric is one function and one row of `METRICS`; reports in every format
are made from that table.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from unlearn_jax import metrics, parallel
from unlearn_jax.base import Examples, Model, ModelState, Splits
from unlearn_jax.divergences import similarity
from unlearn_jax.evidence import (
  Cost,
  Evidence,
  Predictions,
  loss_attack,
  reference_attack,
  reference_attack_tpr,
  svc_attack,
)
from unlearn_jax.prediction import predict, probabilities, require_classes

# Of `Evidence`; or classes lost of which the test set has some, or a thousand
# test images that D_UL is held against.
Need = Literal[
  'source',
  'retrained',
  'references',
  'cost',
  'truth',
  'lost classes',
  'many others',
]


class Metric(NamedTuple):
  """A row of the table.

  Attributes:
    name: key in reports and files.
    label: what a reader sees.
    measure: `evidence -> value`; None where it does not apply.
    unit: as shown; empty for plain numbers.
    scale: what a value is multiplied with to be in that unit.
    digits: decimals shown.
    better: what a reader should wish for; empty where nothing is better.
    needs: what it looks at beside the model's own predictions.
    of_retrained: whether Retrain's own value says anything.
    shown: 'mean' and interval over seeds, or 'range' of whole numbers.
    docs: one sentence of explanation.
  """

  name: str
  label: str
  measure: Callable[[Evidence], float | None]
  unit: str = ''
  scale: float = 1.0
  digits: int = 0
  better: Literal['', 'nearer to Retrain', 'lower', 'higher'] = ''
  needs: tuple[Need, ...] = ()
  of_retrained: bool = True
  shown: Literal['mean', 'range'] = 'mean'
  docs: str = ''


def _accuracy(part: str) -> Callable[[Evidence], float]:
  def measure(evidence: Evidence) -> float:
    labels = getattr(evidence.splits, part).own_labels
    return metrics.accuracy(getattr(evidence.own, part), labels)

  return measure


def _true_label_accuracy(evidence: Evidence) -> float | None:
  truth = evidence.splits.truth
  if truth is None:
    return None
  return metrics.accuracy(evidence.own.forget, np.asarray(truth))


def _other_test_accuracy(evidence: Evidence) -> float | None:
  splits = evidence.splits
  kept = np.isin(splits.test.own_labels, splits.retain.own_labels)
  if kept.all() or not kept.any():
    return None
  labels = splits.test.own_labels[kept]
  return metrics.accuracy(evidence.own.test[kept], labels)


def _gap(
  names: Sequence[str], needed: str = ''
) -> Callable[[Evidence], float | None]:
  def measure(evidence: Evidence) -> float | None:
    if evidence.retrained is None:
      return None
    both = evidence, evidence._replace(own=evidence.retrained)
    own, its = ({n: METRICS[n].measure(e) for n in names} for e in both)
    # Without it the mean would be of fewer, and pass for what it is not.
    if needed and own[needed] is None:
      return None
    return metrics.gap(own, its, names)

  return measure


def _source_accuracy(evidence: Evidence) -> float:
  """Of the source on D_UL, by which FR and MRR divide."""
  return _accuracy('forget')(evidence._replace(own=evidence.source))


def _forgetting_rate(evidence: Evidence) -> float | None:
  before = _source_accuracy(evidence)
  own = _accuracy('forget')(evidence)
  return metrics.forgetting_rate(before, own) if before else None


def _retention_rate(evidence: Evidence) -> float | None:
  before = _source_accuracy(evidence)
  own = _accuracy('retain')(evidence)
  return metrics.memory_retention_rate(own, before) if before else None


def _similarity(evidence: Evidence) -> float | None:
  if evidence.retrained is None:
    return None
  both = evidence.own.forget, evidence.retrained.forget
  return similarity(*map(probabilities, both))


def _acceleration(evidence: Evidence) -> float | None:
  own, its = evidence.cost, evidence.retrained_cost
  if own is None or its is None:
    return None
  return metrics.acceleration(its.seconds, own.seconds)


def _of_cost(read: Callable[[Cost], float | None]):
  def measure(evidence: Evidence) -> float | None:
    return None if evidence.cost is None else read(evidence.cost)

  return measure


METRICS = {
  metric.name: metric
  for metric in (
    Metric(
      'forget_accuracy',
      'Forget accuracy',
      _accuracy('forget'),
      *('%', 100, 1, 'nearer to Retrain'),
      docs='on D_UL, all of it',
    ),
    Metric(
      'true_label_accuracy',
      'On true labels',
      _true_label_accuracy,
      *('%', 100, 1, 'nearer to Retrain', ('truth',)),
      docs='on D_UL, whose labels are wrong: how often the true one is said',
    ),
    Metric(
      'retain_accuracy',
      'Retain accuracy',
      _accuracy('retain'),
      *('%', 100, 1, 'nearer to Retrain'),
      docs='on D_RE, all of it',
    ),
    Metric(
      'test_accuracy',
      'Test accuracy',
      _accuracy('test'),
      *('%', 100, 1, 'nearer to Retrain'),
      docs='on data that no model has seen',
    ),
    Metric(
      'other_test_accuracy',
      'Test accuracy, other classes',
      _other_test_accuracy,
      *('%', 100, 1, 'nearer to Retrain', ('lost classes',)),
      docs='on test data of classes of which anything is retained',
    ),
    Metric(
      'mia_auc',
      'Attack AUC',
      loss_attack,
      *('0.5 = chance', 1, 3, 'nearer to Retrain'),
      docs='membership inference by the loss, D_UL against test data like it',
    ),
    Metric(
      'rmia_auc',
      'RMIA AUC',
      reference_attack,
      *('0.5 = chance', 1, 3, 'nearer to Retrain', ('references',)),
      docs='robust membership inference (Zarifzadeh et al., ICML 2024, offline,'
      ' a = 0.3), by the likelihood relative to models that never saw D_UL',
    ),
    Metric(
      'rmia_tpr',
      'RMIA TPR at 1 % FPR',
      reference_attack_tpr,
      *('%', 100, 1, 'nearer to Retrain', ('references', 'many others')),
      docs='members that it finds where it accuses 1 % of others; of 1,000'
      ' others or more',
    ),
    Metric(
      'gap_to_retrained',
      'Gap to Retrain',
      _gap(metrics.COMPARED),
      *('points', 100, 2, 'lower', ('retrained',), False),
      docs='mean |difference| to Retrain over the three accuracies and the'
      ' attack AUC',
    ),
    Metric(
      'forgetting_rate',
      'FR',
      _forgetting_rate,
      *('%', 100, 1, 'nearer to Retrain', ('source',)),
      docs='forgetting rate (Zuo et al., Eq. 17), relative to the source on'
      ' D_UL',
    ),
    Metric(
      'memory_retention_rate',
      'MRR',
      _retention_rate,
      *('%', 100, 1, 'nearer to Retrain', ('source',)),
      docs='memory retention rate (Eq. 18): D_RE, relative to the source on'
      ' D_UL',
    ),
    Metric(
      'similarity',
      'Similarity to Retrain',
      _similarity,
      *('%', 100, 1, 'higher', ('retrained',), False),
      docs='1 − mean JS divergence to Retrain on D_UL, in bits',
    ),
    Metric(
      'svc_efficacy',
      'MIA efficacy (SVC)',
      svc_attack,
      *('%', 100, 1, 'nearer to Retrain'),
      docs='as SalUn and others have it: share of D_UL that a classifier of the'
      ' confidence on retained and test images (at most 1,000 each) takes for'
      ' unseen',
    ),
    Metric(
      'svc_gap',
      'AvgGap (SVC)',
      _gap((*metrics.COMPARED[:3], 'svc_efficacy'), 'svc_efficacy'),
      *('points', 100, 2, 'lower', ('retrained',), False),
      docs='as the literature has it: mean |difference| to Retrain over the'
      ' three accuracies and the MIA efficacy; not to be mixed with the gap'
      ' above',
    ),
    Metric(
      'scalars_changed',
      'Scalars changed',
      _of_cost(lambda cost: sum(cost.by_tensor.values())),
      needs=('cost',),
      of_retrained=False,
      docs='before the training',
    ),
    Metric(
      'tensors_changed',
      'Tensors touched',
      _of_cost(lambda cost: sum(n > 0 for n in cost.by_tensor.values())),
      needs=('cost',),
      of_retrained=False,
      docs='tensors in which any scalar was changed',
    ),
    Metric(
      'perturbation_js',
      'Effect left',
      _of_cost(lambda cost: cost.perturbation_js),
      *('bits', 1, 4, '', ('cost',), False),
      docs='by which the change still moved held-out outputs once BatchNorm was'
      ' re-estimated',
    ),
    Metric(
      'stop_epoch',
      'Rule met',
      _of_cost(lambda cost: cost.stop_epoch),
      *('epoch', 1, 0, 'lower', ('cost',)),
      shown='range',
      docs='the first epoch at which the stop rule held',
    ),
    Metric(
      'seconds',
      'Unlearn time',
      _of_cost(lambda cost: cost.seconds),
      *('s', 1, 1, 'lower', ('cost',)),
      docs='until the stop rule held, compilation apart',
    ),
    Metric(
      'compile_seconds',
      'Compile time',
      _of_cost(lambda cost: cost.compile_seconds),
      *('s', 1, 1, 'lower', ('cost',)),
      docs='of compilation',
    ),
    Metric(
      'acceleration',
      'Speed-up',
      _acceleration,
      *('× Retrain', 1, 1, 'higher', ('retrained', 'cost'), False),
      docs='Retrain’s time divided by the strategy’s own',
    ),
  )
}


def measure(evidence: Evidence) -> dict[str, float | None]:
  """Every metric of the table by its name; None where it does not apply."""
  return {name: row.measure(evidence) for name, row in METRICS.items()}


def predict_splits(
  model: Model, state: ModelState, splits: Splits
) -> Predictions:
  """Predicts every example of D_UL, D_RE and the test set."""
  parts: tuple[Examples, ...] = (splits.forget, splits.retain, splits.test)
  return Predictions(*(predict(model, state, p, logits=True) for p in parts))


@parallel.apart
def evaluate(
  model: Model,
  unlearned: ModelState,
  source: ModelState,
  splits: Splits,
  retrained: ModelState | None = None,
  references: Sequence[ModelState] = (),
) -> dict[str, float | None]:
  """Evaluates a model on every example of every split.

  Args:
    model: the classifier that all three states belong to.
    unlearned: M_UL, or any other state: the source's own row is a control.
    source: M.
    splits: D_UL, D_RE and test.
    retrained: M_RE, or None where there is no reference.
    references: more models that never saw D_UL, for RMIA; without them M_RE is
      the only one.

  Returns:
    By the names of `METRICS`, those that need no costs: shares in [0, 1];
    None where one does not apply, such as the gap without `retrained`, and
    `svc_efficacy` and `svc_gap` where scikit-learn is not installed.

  Example:
    >>> import jax.numpy as jnp
    >>> from unlearn_jax.base import stateless
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3])
    >>> every = Examples.of(x, y)
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params)
    >>> knows_all = ModelState(9 * jnp.eye(4))
    >>> knows_3 = ModelState(9 * jnp.eye(4).at[3, 3].set(-1))
    >>> result = evaluate(model, knows_3, knows_all, splits, knows_3)
    >>> result['forgetting_rate'], result['gap_to_retrained']
    (1.0, 0.0)
  """
  require_classes(model, source, splits.train, splits.test)
  evidence = Evidence(
    predict_splits(model, unlearned, splits),
    predict_splits(model, source, splits),
    splits,
    None if retrained is None else predict_splits(model, retrained, splits),
    [predict_splits(model, own, splits) for own in references],
  )
  found = measure(evidence)
  return {n: v for n, v in found.items() if 'cost' not in METRICS[n].needs}
