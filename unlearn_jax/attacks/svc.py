"""The "MIA efficacy" of unlearning papers: five support vector classifiers."""

from collections.abc import Sequence

import numpy as np
import scipy

from unlearn_jax.attacks import scores
from unlearn_jax.base import Array
from unlearn_jax.data.extras import optional

FEATURES = 'correctness', 'confidence', 'entropy', 'modified_entropy', 'prob'


def svc_efficacy(
  members: tuple[Array, Array],
  others: tuple[Array, Array],
  forget: tuple[Array, Array],
  *,
  features: Sequence[str] = FEATURES,
  compat: bool = False,
) -> dict[str, float]:
  """Share of D_UL that a classifier of members and others calls no member.

  As in SalUn and Sparse Unlearning: SVC(C=3, rbf, gamma='auto') is fitted on
  one feature at a time. The goal is Retrain's value, neither 0.5 nor 1. Time
  grows with the square of the examples: minutes for 20,000.

  Args:
    members: logits `[M, C]` and labels `[M]` of retained examples; theirs are
      the first |test| of D_RE, in the data's order and without augmentation.
    others: those of test examples; where a class was forgotten, without it.
    forget: those of D_UL.
    features: those of `FEATURES` that are wanted.
    compat: repeats their modified entropy: log p in place of log(1 − p), and
      1 − p in place of p for each class that is a label of *any* example.

  Returns:
    Shares in [0, 1] by feature: `correctness`, `confidence` (p_y, which papers
    print), `entropy`, `modified_entropy`, `prob` (all C probabilities). One
    that is the same for all tells nothing: 0, or 1 if others outnumber members.

  Example:
    >>> sure, unsure = np.log([[0.9, 0.1]] * 4), np.log([[0.2, 0.8]] * 4)
    >>> y, mixed = np.zeros(4, int), np.concatenate([sure[:2], unsure[:2]])
    >>> svc_efficacy((sure, y), (unsure, y), (mixed, y))['confidence']
    0.5
  """
  # Takes a second, and few need it.
  svm = optional('sklearn.svm', 'svc_efficacy')

  parts = [_features(*part, compat) for part in (members, others, forget)]
  truth = np.repeat([1, 0], [len(part['prob']) for part in parts[:2]])
  found = {}
  for name in features:
    inside, outside, target = (part[name] for part in parts)
    classifier = svm.SVC(C=3, kernel='rbf', gamma='auto')
    classifier.fit(np.concatenate([inside, outside]), truth)
    found[name] = float(1 - classifier.predict(target).mean())
  return found


def modified_entropy(logits: Array, labels: Array) -> np.ndarray:
  """−(1 − p_y) log p_y − Σ_{c≠y} p_c log(1 − p_c), `[M]`, in nats.

  Song and Mittal, 2021: 0 where the model `[M, C]` is sure of the label and
  right, large where it is sure and wrong.

  Example:
    >>> logits = np.log([[0.8, 0.2], [0.8, 0.2]])
    >>> modified_entropy(logits, [0, 1]).round(5).tolist()
    [0.08926, 2.5751]
  """
  own = scores.true_class_log_probability(logits, labels)
  p = scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
  rows, first = np.arange(len(p)), p.argmax(1)
  with np.errstate(divide='ignore'):
    log_rest = np.log1p(-p)
  # Of the largest, 1 − p may round to 0; its margin has the digits.
  log_rest[rows, first] = -np.logaddexp(
    0, scores.true_class_margin(logits, first)
  )
  terms = p * log_rest
  terms[rows, labels] = -np.expm1(own) * own
  return -terms.sum(1)


def _features(
  logits: Array, labels: Array, compat: bool
) -> dict[str, np.ndarray]:
  """By name, each `[M, number of features]`."""
  p = scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
  modified = modified_entropy(logits, labels)
  if compat:
    log_p = np.log(np.where(p > 0, p, 1e-30))
    is_label = np.isin(np.arange(p.shape[1]), labels)
    modified = -np.sum(np.where(is_label, 1 - p, p) * log_p, axis=1)
  columns = {
    'correctness': p.argmax(1) == np.asarray(labels),
    'confidence': np.exp(scores.true_class_log_probability(logits, labels)),
    'entropy': scipy.special.entr(p).sum(1),
    'modified_entropy': modified,
  }
  return {n: v.astype(float)[:, None] for n, v in columns.items()} | {'prob': p}
