"""The unlearning degree, and the controls without which it means nothing.

A generator can also tell apart two models that forgot nothing: it writes
labels into the noise. So a degree is scored on images that the generator was
not fitted on, over several generators, and held against two models that
differ in their seed alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy.stats

from unlearn_jax import parallel, training
from unlearn_jax.base import (
  Examples,
  InputError,
  Key,
  Model,
  ModelState,
  Splits,
  tensor_paths,
)
from unlearn_jax.calibration import LEVEL, Calibrated, calibrated_degree
from unlearn_jax.pairs import Degree, labels_of, pair_degree, plan_pairs
from unlearn_jax.prediction import predict
from unlearn_jax.spd_gan import GeneratorSettings

# Fewer generators than this cannot be believed: the degree of one and the
# same pair of models varies by tens of points from one to the next.
MIN_SEEDS = 5


class UnlearningDegree(NamedTuple):
  """The degree of (M, M_UL), with its nulls and its target.

  Attributes:
    unlearned: (M, M_UL).
    retrained: (M, M_RE), the target; None without one.
    null: (M, M'), M' trained on the same data with another seed: it forgot
      nothing.
    unseen: (M, M_UL) with generators fitted and scored on halves of test
      images: no model ever saw these, so none can have forgotten them. (Its
      `test` has the fitted ones among it.)
    identity: (M, M), one generator; exactly 0.
    calibrated: of `unlearned` against `null`.
    calibrated_target: of `retrained` against `null`, or None.
    held_out: the half of D_UL that all but `unseen` are scored on.
  """

  unlearned: Degree
  retrained: Degree | None
  null: Degree
  unseen: Degree
  identity: Degree
  calibrated: Calibrated
  calibrated_target: Calibrated | None
  held_out: Examples


def unlearning_degree(
  key: Key,
  model: Model,
  source: ModelState,
  unlearned: ModelState,
  splits: Splits,
  *,
  null: ModelState,
  retrained: ModelState | None = None,
  settings: GeneratorSettings | None = None,
  seeds: int = MIN_SEEDS,
  limit: int = 2048,
  on_epoch: Callable[[str, int, training.Epoch], None] | None = None,
) -> UnlearningDegree:
  """How far M_UL differs from M on images perturbed for that (Algorithm 2).

  Departs from the paper where its number cannot be believed: the generator
  is fitted on one half of D_UL and scored on the other, several times, within
  a bound, with a cap, and beside pairs of models of which the answer is
  known. Generators with the same seed start alike in every pair.

  Args:
    key: typed PRNG key; it is consumed. It says which half is fitted, how
      generators start and in which order they see the images.
    model: the classifier that all states belong to.
    source: M.
    unlearned: M_UL.
    splits: D_UL, D_RE and test.
    null: M', trained on D as M was, with another seed.
    retrained: M_RE, the target, or None. Nothing is computed twice if it is
      `unlearned`.
    settings: of the generators.
    seeds: generators a pair, 5 or more.
    limit: at most so many images of D_RE and of test, evenly spaced, are
      scored.
    on_epoch: told of the pair's name (a field of `UnlearningDegree`), the
      generator's number and each epoch as it ends, epoch 0 included.

  Returns:
    The `UnlearningDegree`.

  Raises:
    ValueError: fewer than 5 seeds, states of different shapes, a batch that
      does not fit the devices.
    InputError: less than two batches in D_UL or test, a source no better than
      chance, or a training that diverged.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> labels = np.arange(32) % 2
    >>> images = np.full((32, 4, 4, 1), 255) * (1 - labels)[:, None, None, None]
    >>> every = Examples.of(images, labels)
    >>> splits = Splits.of(every, np.arange(16), every)
    >>> model = stateless(lambda w, x: w * (x.mean((1, 2, 3)) - 99)[:, None])
    >>> right = ModelState(np.array([1.0, -1.0]))
    >>> wrong = ModelState(-right.params)
    >>> settings = GeneratorSettings(epochs=1, batch_size=8, width=2)
    >>> with parallel.use(jax.devices()[:1]):
    ...   found = unlearning_degree(jax.random.key(0), model, right, wrong,
    ...                             splits, null=right, settings=settings)
    >>> found.unlearned.values, found.null.values[0], found.calibrated.verdict
    ([1.0, 1.0, 1.0, 1.0, 1.0], 0.0, 'separates')
  """
  settings = GeneratorSettings() if settings is None else settings
  if seeds < MIN_SEEDS:
    raise ValueError(f'seeds={seeds}, allowed: {MIN_SEEDS} or more')
  _require_alike(source, unlearned=unlearned, null=null, retrained=retrained)
  require_measurable(model, source, splits, settings)

  # Two halves of D_UL, and as many images that no model ever saw.
  plan = plan_pairs(key, splits, limit)

  # Each pair: the model in M_UL's place, the images, and how many generators.
  pairs = {
    'unlearned': (unlearned, plan.known, seeds),
    'null': (null, plan.known, seeds),
    'unseen': (unlearned, plan.unseen, seeds),
    'identity': (source, plan.known, 1),
  }
  if retrained is not None and retrained is not unlearned:
    pairs['retrained'] = (retrained, plan.known, seeds)
  degrees = {
    name: pair_degree(
      plan.key,
      model,
      source,
      other,
      sets,
      settings,
      seeds=count,
      on_epoch=_named(on_epoch, name),
    )
    for name, (other, sets, count) in pairs.items()
  }
  if retrained is unlearned:
    degrees['retrained'] = degrees['unlearned']

  # Holding the degree against that of two models that forgot nothing.
  target, zero = degrees.pop('retrained', None), degrees['null'].values
  return UnlearningDegree(
    retrained=target,
    **degrees,
    calibrated=calibrated_degree(
      degrees['unlearned'].values, zero, target and target.values
    ),
    calibrated_target=target and calibrated_degree(target.values, zero),
    held_out=plan.known.held_out,
  )


def _named(
  on_epoch: Callable[[str, int, training.Epoch], None] | None, name: str
) -> Callable[[int, training.Epoch], None]:
  return lambda seed, epoch: on_epoch(name, seed, epoch) if on_epoch else None


def require_measurable(
  model: Model, source: ModelState, splits: Splits, settings: GeneratorSettings
) -> None:
  """Refuses what `unlearning_degree` could not measure, before it begins.

  Args:
    model: the classifier.
    source: M; it must do better on D_UL than a constant answer (p ≤ 0.05).
    splits: D_UL and test, each two batches or more.
    settings: of the generators.

  Raises:
    ValueError: a batch that does not fit the devices.
    InputError: too few examples, or a source no better than chance.
  """
  parallel.per_device(settings.batch_size)
  for name, examples in (('forget', splits.forget), ('test', splits.test)):
    if examples.size < 2 * settings.batch_size:
      raise InputError(
        f'the {name} set has {examples.size} examples; allowed: two batches,'
        f' {2 * settings.batch_size}, or more'
      )
  probabilities = predict(model, source, splits.forget)
  labels, size = labels_of(splits.forget), splits.forget.size
  num_classes = probabilities.shape[1]
  right = int((probabilities.argmax(-1) == labels).sum())
  most = np.bincount(labels, minlength=num_classes).max() / size
  chance = min(1.0, max(most, 1 / num_classes))
  if scipy.stats.binomtest(right, size, chance, 'greater').pvalue > LEVEL:
    raise InputError(
      f'the source has {right} of {size} forgotten examples right, no better'
      f' than chance ({100 * chance:.1f} %); allowed: a model that has learned'
      ' something'
    )


def _require_alike(source: ModelState, **others: ModelState | None) -> None:
  def shapes(state: ModelState) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(tensor_paths(state), map(np.shape, jax.tree.leaves(state))))

  for name, other in others.items():
    if other is not None and shapes(other) != shapes(source):
      raise ValueError(
        f"{name} has tensors or shapes unlike source's; allowed: the same"
      )
