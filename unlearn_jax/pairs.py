"""Two models, and generators that are to tell them apart.

What is fitted on and scored on, and the scores; what they mean takes other
pairs to hold them against, see `degree`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from unlearn_jax import metrics, training
from unlearn_jax.base import Examples, Key, Model, ModelState, Splits
from unlearn_jax.prediction import predict
from unlearn_jax.snapshots import Keeper
from unlearn_jax.spd_gan import (
  GeneratorSettings,
  PixelChange,
  fit_generator,
  perturb_images,
  pixel_change,
  predict_perturbed,
)


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


def labels_of(examples: Examples) -> np.ndarray:
  """int32 `[M]`, in the order of the set."""
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
  labels = np.concatenate([labels_of(s) for s in chosen.values()])
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
  keeper: Callable[[int], Keeper] | None = None,
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
    keeper: gives who keeps the training of the generator with this number.

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
      keeper=keeper and keeper(seed),
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
          name: _standing([*clean, *perturbed], labels_of(sets.every), part)
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
