"""The unlearning degree, and the controls without which it means nothing.

A generator can also tell apart two models that forgot nothing: it writes
labels into the noise. So a degree is scored on images that the generator was
not fitted on, over several generators, and held against two models that
differ in their seed alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.stats

from unlearn_jax import metrics, parallel, training
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
from unlearn_jax.prediction import predict
from unlearn_jax.spd_gan import (
  GeneratorSettings,
  PixelChange,
  fit_generator,
  perturb_images,
  pixel_change,
  predict_perturbed,
)

# Fewer generators than this cannot be believed: the degree of one and the
# same pair of models varies by tens of points from one to the next.
MIN_SEEDS = 5


class Standing(NamedTuple):
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


class Run(NamedTuple):
  """One generator.

  Attributes:
    seed: its number, from 0.
    held_out: on the half that it was not fitted on; *the* degree.
    fitted: on the half that it was fitted on.
    retain: on D_RE.
    test: on the test set.
    pixels: how it changed the held-out half.
    history: its training, see `spd_gan.FittedGenerator`.
    took_off: likewise.
    generator: G itself.
  """

  seed: int
  held_out: Standing
  fitted: Standing
  retain: Standing
  test: Standing
  pixels: PixelChange
  history: tuple[training.Epoch, ...]
  took_off: bool
  generator: ModelState


class Degree(NamedTuple):
  """A pair of models over all generators; `runs` has one a seed."""

  runs: tuple[Run, ...]

  @property
  def values(self) -> list[float]:
    """The degree on the held-out half, one a generator."""
    return [run.held_out.degree for run in self.runs]

  @property
  def interval(self) -> metrics.Interval:
    """Of the degree, over generators."""
    return metrics.mean_interval(self.values)

  @property
  def took_off(self) -> int:
    """In how many runs the loss took off."""
    return sum(run.took_off for run in self.runs)


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


class Sets(NamedTuple):
  """Images of a pair's own, and where its four sets lie among them.

  Attributes:
    every: the fitted half, the held-out half, D_RE and test, in this order.
    parts: by the names of `Run`'s fields.
  """

  every: Examples
  parts: dict[str, slice]

  @property
  def fitted(self) -> Examples:
    """What generators are fitted on."""
    part = self.parts['fitted']
    return Examples.of(self.every.images[part], self.every.labels[part])

  @property
  def held_out(self) -> Examples:
    """What *the* degree is scored on."""
    part = self.parts['held_out']
    return Examples.of(self.every.images[part], self.every.labels[part])


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
  labels, size = _labels(splits.forget), splits.forget.size
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


def _labels(examples: Examples) -> np.ndarray:
  return np.asarray(examples.labels)[np.asarray(examples.indices)]


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
    'retain': _spread(splits.retain, limit),
    'test': _spread(splits.test, limit),
  }
  # Rows of their own, so that one program serves every pair.
  images = np.concatenate(
    [np.asarray(s.images[np.asarray(s.indices)]) for s in chosen.values()]
  )
  labels = np.concatenate([_labels(s) for s in chosen.values()])
  ends = np.cumsum([0, *(s.size for s in chosen.values())])
  parts = {name: slice(*e) for name, e in zip(chosen, zip(ends, ends[1:]))}
  return Sets(Examples.of(images, labels), parts)


def _spread(examples: Examples, limit: int) -> Examples:
  count = min(limit, examples.size)
  return examples.take(
    np.linspace(0, examples.size - 1, count).round().astype(np.int32)
  )


def pair_degree(
  key: Key,
  model: Model,
  source: ModelState,
  other: ModelState,
  sets: Sets,
  settings: GeneratorSettings,
  *,
  seeds: int,
  on_epoch: Callable[[int, training.Epoch], None] | None = None,
) -> Degree:
  """Several generators against one pair of models, nothing held against it.

  `unlearning_degree` is this for all the pairs that a degree needs.

  Args:
    key: typed PRNG key, `Plan.key`.
    model: the classifier that both states belong to.
    source: M.
    other: the model in M_UL's place.
    sets: of a `Plan`.
    settings: of the generators.
    seeds: how many generators.
    on_epoch: told of the generator's number and each epoch as it ends.

  Returns:
    The `Degree`.

  Raises:
    InputError: a training that diverged.
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
      sets.fitted,
      settings,
      num_classes=clean[0].shape[1],
      on_epoch=lambda epoch: tell(seed, epoch),
    )
    perturbed = [
      predict_perturbed(model, state, fitted.state, sets.every, settings)
      for state in (source, other)
    ]
    held_out = sets.held_out
    moved = perturb_images(fitted.state, held_out, settings)
    runs.append(
      Run(
        seed=seed,
        **{
          name: _standing([*clean, *perturbed], _labels(sets.every), part)
          for name, part in sets.parts.items()
        },
        pixels=pixel_change(np.asarray(held_out.images), moved),
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
