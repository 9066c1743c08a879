"""What the outputs of a model say of the images that it was to forget.

There is no Retrain at hand, as a rule, so the forgotten images are held
against held-out ones of the same classes: a model that never saw either treats
them alike.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
from scipy import special, stats

from unlearn_jax import attacks, metrics
from unlearn_jax.base import Dataset, Examples, Model, ModelState, Splits
from unlearn_jax.data import class_matched
from unlearn_jax.evaluation import evaluate
from unlearn_jax.prediction import predict
from ..report.wording import say
from ..study import canaries

# What the tests are, in words.
ATTACK, NULL, THRESHOLD, CANARIES = (
  say('deletion', n) for n in ('attack', 'null', 'threshold', 'canaries')
)
_LOTS = 3000  # Differences by which one is judged, itself among them.
_95 = 1.96  # Standard deviations of a single value.
AUC = 'attack_auc'
_NAMES = 'accuracy', 'confidence', AUC


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Forgotten images against held-out ones of their classes."""

  forgotten: float  # AUC: P(a forgotten image's margin is the larger one)
  held_out: float  # AUC: 0.5
  difference: float
  half_width: float  # of what chance allows, see `NULL`
  differs: bool  # whether the difference is outside of that


@dataclasses.dataclass(frozen=True)
class Known:
  """How well a model knows the noise of some canaries; see `CANARIES`."""

  mean: float  # of `attacks.canary_ranks`
  half_width: float  # of what chance allows, 1.96/√n
  images: int  # n
  differs: bool


@dataclasses.dataclass(frozen=True)
class Measured:
  """One model; None and nothing where images are not there any more."""

  retain_accuracy: float
  test_accuracy: float
  forget_accuracy: float | None
  own: dict[str, Contrast]  # on this request's images
  all: dict[str, Contrast]  # on those of all so far, if there are others
  earlier: list[float | None]  # accuracy on each earlier request
  # Of canaries that this request has forgotten, of those of all requests if
  # there are others, and of what was never planted.
  canaries: dict[str, Known]


@dataclasses.dataclass(frozen=True)
class Canaries:
  """How many a request has spent."""

  forgotten: int
  left: int  # for later requests
  test: str = CANARIES


@dataclasses.dataclass(frozen=True)
class Reversal:
  """Accuracy on an earlier request: as it was made, now, and what came back."""

  then: float | None
  now: float | None
  change: float | None


class Monitored(NamedTuple):
  """A value that can be held to a bound."""

  value: float
  half_width: float  # of its interval; 0 of what is exact


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Of the result, and of what it is held against."""

  result: Measured
  source: Measured | None
  retrained: Measured | None
  # The metrics of `experiments.evaluate`, where there is a Retrain.
  compared: dict[str, float | None] | None
  reversals: list[Reversal]  # of each earlier request
  drift: float | None  # ‖θ − θ₀‖, θ₀ the first source of the chain
  moved: float | None  # ‖θ − the source's‖
  # attack: AUC on what all requests have forgotten; test_drop: points of test
  # accuracy lost against the first source; returned: points of accuracy by
  # which most of an earlier request came back; drift. None that is not there.
  # canaries: mean of those of all requests.
  monitored: dict[str, Monitored]
  canaries: Canaries | None
  attack: str = ATTACK
  null: str = NULL
  threshold: str = THRESHOLD


class Noise(NamedTuple):
  """Canaries, and which of them are looked at."""

  clean: Dataset  # without noise
  names: list[str]  # ids of all, in the order of the data that they were of
  groups: dict[str, np.ndarray]  # places in `names`, of images that are there
  forgotten: int  # by the newest request
  left: int


class Sets(NamedTuple):
  """What is measured on."""

  retain: Examples
  test: Examples
  requests: Sequence[Examples | None]  # the newest last; None: not there
  # φ `[R, n]` by models that never saw these that are there, then of `test`.
  unseen: Sequence[np.ndarray] | None = None
  attack: str = ATTACK
  noise: Noise | None = None


class Models(NamedTuple):
  """Whose outputs; None: not there."""

  result: ModelState
  source: ModelState | None = None
  retrained: ModelState | None = None
  origin: ModelState | None = None  # the first source of the chain


def gather(
  model: Model, sets: Sets, models: Models, then: Sequence[float | None]
) -> Evidence:
  """Measures all that is there; `then`: of each earlier request, in time."""

  def measured(state: ModelState | None) -> Measured | None:
    return None if state is None else _measure(model, state, sets)

  own = _measure(model, models.result, sets)
  compared, forget = None, sets.requests[-1]
  if None not in (models.source, models.retrained, forget):
    assert forget is not None and models.source is not None
    train = sets.retain._replace(
      indices=np.union1d(sets.retain.indices, forget.indices)
    )
    splits = Splits(train, forget, sets.retain, sets.test)
    splits = splits._replace(unseen=class_matched(forget, sets.test))
    states = models.result, models.source, splits, models.retrained
    compared = evaluate(model, *states)
  reversals = [
    Reversal(a, b, None if None in (a, b) else b - a)  # type: ignore[operator]
    for a, b in zip(then, own.earlier)
  ]
  drift = _distance(models.result, models.origin)
  return Evidence(
    own,
    measured(models.source),
    measured(models.retrained),
    compared,
    reversals,
    drift,
    _distance(models.result, models.source),
    _monitored(model, sets, models, own, reversals, drift),
    sets.noise and Canaries(sets.noise.forgotten, sets.noise.left),
    sets.attack,
  )


def _monitored(
  model: Model,
  sets: Sets,
  models: Models,
  own: Measured,
  reversals: Sequence[Reversal],
  drift: float | None,
) -> dict[str, Monitored]:
  found = {} if drift is None else {'drift': Monitored(drift, 0.0)}
  if (attack := (own.all or own.own).get(AUC)) is not None:
    found['attack'] = Monitored(attack.forgotten, attack.half_width)
  if models.origin is not None:
    labels, pair = sets.test.own_labels, (models.origin, models.result)
    first, now = (
      100.0 * (predict(model, state, sets.test).argmax(1) == labels)
      for state in pair
    )
    lost = first - now  # Of one image: they are the same for both models.
    half = _95 * float(lost.std(ddof=1)) / np.sqrt(lost.size)
    found['test_drop'] = Monitored(float(lost.mean()), float(half))
  back = [
    _returned(each, part.size)
    for each, part in zip(reversals, sets.requests)
    if part is not None and each.change is not None
  ]
  if back or not reversals:  # Of nothing nothing comes back.
    none = Monitored(0.0, 0.0)
    found['returned'] = max(back, key=lambda x: x[0] - x[1], default=none)
  noise = own.canaries.get('all') or own.canaries.get('forgotten')
  if noise is not None:
    found['canaries'] = Monitored(noise.mean, noise.half_width)
  return found


def _returned(own: Reversal, size: int) -> Monitored:
  """Points that came back; interval of Agresti and Caffo, for few images."""
  assert own.change is not None
  shares = [
    (size * share + 1) / (size + 2)
    for share in (own.then, own.now)
    if share is not None
  ]
  variance = sum(share * (1 - share) / (size + 2) for share in shares)
  return Monitored(100 * own.change, 100 * _95 * float(np.sqrt(variance)))


def _distance(one: ModelState, other: ModelState | None) -> float | None:
  """L2, of the parameters."""
  if other is None:
    return None
  pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params))
  squares = (
    np.sum(np.square(np.subtract(a, b, dtype=float))) for a, b in pairs
  )
  return float(np.sqrt(sum(squares)))


def _measure(model: Model, state: ModelState, sets: Sets) -> Measured:
  def logits(examples: Examples) -> np.ndarray:
    return predict(model, state, examples, logits=True)

  def accuracy(examples: Examples) -> float:
    return metrics.accuracy(logits(examples), examples.own_labels)

  *earlier, own = sets.requests
  test, its = logits(sets.test), sets.test.own_labels

  def contrasts(parts: Sequence[Examples | None]) -> dict[str, Contrast]:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
      return {}
    labels = np.concatenate([part.own_labels for part in known])
    own, phi = np.concatenate([*map(logits, known)]), sets.unseen
    pair = phi and (np.concatenate(phi[~len(parts) : -1], axis=1), phi[-1])
    return against(own, labels, test, its, pair)

  return Measured(
    retain_accuracy=accuracy(sets.retain),
    test_accuracy=metrics.accuracy(test, its),
    forget_accuracy=None if own is None else accuracy(own),
    own=contrasts([own]),
    all=contrasts(sets.requests) if earlier else {},
    earlier=[None if part is None else accuracy(part) for part in earlier],
    canaries=_known(model, state, sets.noise),
  )


def _known(
  model: Model, state: ModelState, noise: Noise | None
) -> dict[str, Known]:
  if noise is None:
    return {}
  ranks = canaries.ranks(model, state, noise.clean, noise.names)
  found = {}
  for name, places in noise.groups.items():
    if count := places.size:
      mean, half = ranks[places].mean().item(), _95 / math.sqrt(count)
      found[name] = Known(mean, half, count, abs(mean) > half)
  return found


def against(
  logits: np.ndarray,
  labels: np.ndarray,
  others: np.ndarray,
  theirs: np.ndarray,
  unseen: Sequence[np.ndarray] | None = None,
) -> dict[str, Contrast]:
  """Three differences between two sets of images, class by class.

  Args:
    logits: `[M, C]`, of the forgotten images.
    labels: `[M]`.
    others: `[N, C]`, of held-out images.
    theirs: `[N]`, their labels.
    unseen: φ by models that never saw them, `[R, M]` and `[R, N]`, if any.

  Returns:
    Of accuracy, confidence (of the true class) and the attack; none where no
    class has images of both.
  """
  shared = [c for c in np.unique(labels) if (theirs == c).any()]
  if not shared:
    return {}
  rows, log_p = [(labels == c, theirs == c) for c in shared], special.log_expit
  both = zip((logits, others), (labels, theirs), unseen or (None, None))
  columns = (
    (
      z.argmax(1) == y,
      special.expit(margin := attacks.true_class_margin(z, y)),
      margin if phi is None else attacks.rmia(*map(log_p, (margin, phi))),
    )
    for z, y, phi in both
  )
  own, its = (np.stack(three, axis=1, dtype=float) for three in columns)
  return _contrasts(own, its, rows)


def _contrasts(
  own: np.ndarray,
  others: np.ndarray,
  rows: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, Contrast]:
  """Differences of means within classes, weighted by the forgotten images.

  The last column is the attack's: with ranks divided by m + n the difference is
  AUC − ½. For half widths the sets are drawn anew from both, class by class.
  """
  lot = np.random.RandomState(0)  # NumPy keeps its numbers as they are.
  count, means = sum(mine.sum() for mine, _ in rows), np.zeros((2, _LOTS, 3))
  for mine, its in rows:
    both, m, n = np.concatenate([own[mine], others[its]]), mine.sum(), its.sum()
    both[:, 2] = stats.rankdata(both[:, 2]) / (m + n)
    drawn = (lot.permutation(m + n)[:m] for _ in range(_LOTS - 1))
    sums = np.array([both[some].sum(0) for some in (np.arange(m), *drawn)])
    means += m / count * np.stack([sums / m, (both.sum(0) - sums) / n])
  means[..., 2] += 0.5 - means[1, :, 2]
  gaps = np.round(means[0] - means[1], 12)  # Without what rounding adds.
  half = np.sort(np.abs(gaps), axis=0)[-1 - _LOTS // 60]
  columns = *means[:, 0], gaps[0], half, np.abs(gaps[0]) > half
  values = zip(*(column.tolist() for column in columns))
  return {name: Contrast(*own) for name, own in zip(_NAMES, values)}
