"""The unlearning degree of a pair of models (Zuo et al., Algorithm 2).

A generator can also tell apart two models that forgot nothing: it writes
labels into the noise. So a degree is scored on images that the generator was
not fitted on, over several generators, and means something only beside that
of other pairs:

    plan = plan_pairs(key, splits)
    own  = pair_degree(plan.key, model, source, unlearned, plan.known, settings)
    null = pair_degree(plan.key, model, source, twin, plan.known, settings)
    calibrated_degree(own.values, null.values)

The twin M' was trained on D as M was, with another seed: it forgot nothing.
M_RE in M_UL's place is the target, and `plan.unseen`, images that no model ever
saw and so none can have forgotten, a second null.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy

from unlearn_jax import metrics, parallel, training
from unlearn_jax.base import (
  Examples,
  InputError,
  Key,
  Model,
  ModelState,
  Splits,
)
from unlearn_jax.calibration import LEVEL
from unlearn_jax.prediction import predict
from unlearn_jax.snapshots import Keeper
from unlearn_jax.spd_gan import (
  MIN_SEEDS,
  GeneratorSettings,
  fit_generator,
  perturb_images,
  predict_perturbed,
)


@dataclasses.dataclass(frozen=True)
class Standing:
  """Two models on one set of images; accuracies in [0, 1].

  Attributes:
    size: number of images.
    source_clean: P(M, D).
    unlearned_clean: P(M_UL, D).
    source_perturbed: P(M, D_p).
    unlearned_perturbed: P(M_UL, D_p).
  """

  size: int
  source_clean: float
  unlearned_clean: float
  source_perturbed: float
  unlearned_perturbed: float

  @property
  def degree(self) -> float:
    """P(M, D_p) − P(M_UL, D_p) (Eq. 14)."""
    return self.source_perturbed - self.unlearned_perturbed

  @property
  def gap(self) -> float:
    """P(M, D) − P(M_UL, D): what no generator is needed for."""
    return self.source_clean - self.unlearned_clean

  @property
  def excess(self) -> float:
    """The degree minus the gap: what the generator adds."""
    return self.degree - self.gap


@dataclasses.dataclass(frozen=True)
class Run:
  """One generator.

  Attributes:
    seed: its number, from 0.
    held_out: on the half that it was not fitted on; *the* degree.
    fitted: on the half that it was fitted on.
    retain: on D_RE.
    test: on the test set.
    pixels: how it changed the held-out half.
    took_off: see `spd_gan.FittedGenerator`.
    history: its training, likewise; empty where it was not kept.
    generator: G itself; None where it was not kept.
  """

  seed: int
  held_out: Standing
  fitted: Standing
  retain: Standing
  test: Standing
  pixels: metrics.PixelChange
  took_off: bool
  history: tuple[training.Epoch, ...] = ()
  generator: Any = None


class Degree(NamedTuple):
  """A pair of models over all generators; `runs` has one a seed."""

  runs: tuple[Run, ...]

  @property
  def values(self) -> list[float]:
    """The degree on the held-out half, one a generator."""
    return [run.held_out.degree for run in self.runs]


class Sets(NamedTuple):
  """Images of a pair's own, and where its four sets lie among them.

  Attributes:
    every: the fitted half, the held-out half, D_RE and test, in this order.
    parts: by the names of `Run`'s fields.
  """

  every: Examples
  parts: dict[str, slice]

  def part(self, name: str) -> Examples:
    """One of the sets: generators are fitted on 'fitted'."""
    rows = self.parts[name]
    return Examples.of(self.every.images[rows], self.every.labels[rows])


class Plan(NamedTuple):
  """What all pairs of one forget set share.

  Attributes:
    key: that generators are drawn from; those with the same seed start alike
      in every pair.
    known: D_UL in two halves.
    unseen: as many test images, which no model ever saw, in two halves.
  """

  key: Key
  known: Sets
  unseen: Sets


def plan_pairs(key: Key, splits: Splits, limit: int = 2048) -> Plan:
  """Which images generators are fitted on and scored on.

  Args:
    key: typed PRNG key; it is consumed.
    splits: D_UL, D_RE and test.
    limit: at most so many images of D_RE and of test, evenly spaced.

  Returns:
    The `Plan`.
  """
  known_key, unseen_key, fit_key = jax.random.split(key, 3)
  count = splits.forget.size
  return Plan(
    fit_key,
    _sets(known_key, splits.forget, count, splits, limit),
    _sets(unseen_key, splits.test, count, splits, limit),
  )


def _sets(
  key: Key, examples: Examples, count: int, splits: Splits, limit: int
) -> Sets:
  """At most `count` of the examples in two halves, and what is beside them."""
  order = np.asarray(jax.random.permutation(key, examples.size))[:count]
  half = len(order) // 2
  chosen = {
    'fitted': examples.take(order[:half]),
    'held_out': examples.take(order[half:]),
    'retain': splits.retain.spread(limit),
    'test': splits.test.spread(limit),
  }
  # Rows of their own, so that one program serves every pair.
  images = np.concatenate(
    [np.asarray(s.images[np.asarray(s.indices)]) for s in chosen.values()]
  )
  labels = np.concatenate([s.own_labels for s in chosen.values()])
  ends = np.cumsum([0, *(s.size for s in chosen.values())])
  parts = {name: slice(*e) for name, e in zip(chosen, zip(ends, ends[1:]))}
  return Sets(Examples.of(images, labels), parts)


def require_measurable(
  model: Model, source: ModelState, splits: Splits, settings: GeneratorSettings
) -> None:
  """Refuses what no degree can be measured of, before it begins.

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
  few = splits.forget.take([0, 1])
  pixels = np.asarray(few.images[few.indices])
  clean, floats = (
    predict(
      model,
      source,
      Examples.of(pixels.astype(dtype), few.own_labels),
      logits=True,
    )
    for dtype in (pixels.dtype, np.float32)
  )
  if not np.allclose(clean, floats, rtol=0.01, atol=0.01):
    raise InputError(
      'the model reads floats in other units than integers; allowed: one unit'
    )
  probabilities = predict(model, source, splits.forget)
  labels, size = splits.forget.own_labels, splits.forget.size
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


@parallel.apart
def pair_degree(
  key: Key,
  model: Model,
  source: ModelState,
  other: ModelState,
  sets: Sets,
  settings: GeneratorSettings,
  *,
  seeds: int = MIN_SEEDS,
  on_epoch: Callable[[int, training.Epoch], None] | None = None,
  keeper: Callable[[int], Keeper] | None = None,
) -> Degree:
  """Several generators against one pair of models, nothing held against it.

  Args:
    key: typed PRNG key, `Plan.key`.
    model: the classifier that both states belong to.
    source: M.
    other: the model in M_UL's place.
    sets: of a `Plan`.
    settings: of the generators.
    seeds: how many generators.
    on_epoch: told of the generator's number and each epoch as it ends.
    keeper: gives who keeps the training of the generator with this number.

  Returns:
    The `Degree`.

  Raises:
    InputError: a training that diverged.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> labels = np.arange(32) % 2
    >>> images = np.full((32, 4, 4, 1), 255) * (1 - labels)[:, None, None, None]
    >>> every = Examples.of(images, labels)
    >>> splits = Splits.of(every, np.arange(16), every)
    >>> model = stateless(lambda w, x: w * (x.mean((1, 2, 3)) - 99)[:, None])
    >>> right = ModelState(np.array([1.0, -1.0]))
    >>> wrong = ModelState(-right.params)
    >>> plan = plan_pairs(jax.random.key(0), splits)
    >>> settings = GeneratorSettings(epochs=1, batch_size=8, width=2)
    >>> with parallel.use(jax.devices()[:1]):
    ...   found = pair_degree(plan.key, model, right, wrong, plan.known,
    ...                       settings)
    >>> found.values
    [1.0, 1.0, 1.0, 1.0, 1.0]
  """
  clean = [predict(model, state, sets.every) for state in (source, other)]
  tell = on_epoch or (lambda seed, epoch: None)
  runs = []
  for seed in range(seeds):
    fitted = fit_generator(
      jax.random.fold_in(key, seed),
      model,
      source,
      other,
      sets.part('fitted'),
      settings,
      num_classes=clean[0].shape[1],
      on_epoch=lambda epoch: tell(seed, epoch),
      keeper=keeper and keeper(seed),
    )
    perturbed = [
      predict_perturbed(model, state, fitted.state, sets.every, settings)
      for state in (source, other)
    ]
    held_out = sets.part('held_out')
    moved = perturb_images(fitted.state, held_out, settings)
    runs.append(
      Run(
        seed=seed,
        **{
          name: _standing([*clean, *perturbed], sets.every.own_labels, part)
          for name, part in sets.parts.items()
        },
        pixels=metrics.pixel_change(np.asarray(held_out.images), moved),
        history=fitted.history,
        took_off=fitted.took_off,
        generator=fitted.state,
      )
    )
  return Degree(tuple(runs))


def _standing(
  predictions: Sequence[np.ndarray], labels: np.ndarray, part: slice
) -> Standing:
  shares = [metrics.accuracy(p[part], labels[part]) for p in predictions]
  return Standing(part.stop - part.start, *shares)
