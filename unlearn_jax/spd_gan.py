"""SPD-GAN: a generator that tells two classifiers apart (Algorithm 2).

G learns to perturb images such that the source M still has them right and the
unlearned model M_UL has not. What that says about forgetting is another
matter, see `degree`.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unlearn_jax import epoch, models, parallel, training
from unlearn_jax.base import (
  Array,
  Batch,
  Examples,
  InputError,
  Key,
  Model,
  ModelState,
  require,
)
from unlearn_jax.prediction import predict
from unlearn_jax.snapshots import Keeper

# The default cap, and what counts as far off without one, in log C: the
# cross-entropy of chance is 1 of them.
_CHANCES = 2.0
_PIXEL_RANGE = 255.0
_AT_ONCE = 256  # images that are perturbed in a call
# Fewer generators than this cannot be believed: the degree of one and the
# same pair of models varies by tens of points from one to the next.
MIN_SEEDS = 5
_DIVERGED = (
  'the generator diverged: its loss is not finite; allowed: smaller'
  ' learning_rate and eta, or a cap'
)


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
  """How a generator is made and trained.

  Attributes:
    eta: η ≥ 0, the weight of M_UL's cross-entropy (Eq. 13).
    cap: nats; M_UL's cross-entropy of an example counts up to here only,
      since −η·CE is unbounded below and, once it takes off, all that is
      learned. 'default' is 2·log C, twice that of chance; None is the
      paper's, without a cap.
    max_perturbation: L∞ bound of G(x), in (0, 1] of the pixel range; None is
      the paper's, without one (the whole range).
    epochs: passes over the examples, 1 or more.
    batch_size: over all devices.
    learning_rate: Adam's.
    width: channels of G's first layer.
  """

  eta: float = 0.03
  cap: float | Literal['default'] | None = 'default'
  max_perturbation: float | None = 8 / 255
  epochs: int = 20
  batch_size: int = 64
  learning_rate: float = 1e-3
  width: int = 32

  def __post_init__(self):
    cap, bound = self.cap, self.max_perturbation
    nats = not isinstance(cap, str | None) and 0 < cap < math.inf
    whole = bound is None or 0 < bound <= 1
    for name, holds, allowed in (
      ('eta', 0 <= self.eta < math.inf, '0 or more'),
      ('cap', nats or cap in ('default', None), "nats, 'default' or None"),
      ('max_perturbation', whole, 'above 0 and at most 1, or None'),
      ('epochs', self.epochs >= 1, '1 or more'),
      ('batch_size', self.batch_size >= 1, '1 or more'),
      ('learning_rate', 0 < self.learning_rate < 1, 'above 0 and below 1'),
      ('width', self.width >= 1, '1 or more'),
    ):
      require(name, getattr(self, name), holds, allowed)


class FittedGenerator(NamedTuple):
  """A trained G and how it came about.

  Attributes:
    state: G after the last epoch.
    history: one `training.Epoch` an epoch; `loss` is that of Eq. 13 with the
      cap, `measured` has `source_loss` and `unlearned_loss` (mean
      cross-entropies in nats, uncapped) and `capped_share` (of the epoch's
      examples, those whose unlearned cross-entropy was at the cap; without a
      cap, beyond 2·log C). All but the loss are missing at epoch 0.
    took_off: most examples of the last epoch were there: the cap is what
      holds the loss, or nothing does.
  """

  state: ModelState
  history: tuple[training.Epoch, ...]
  took_off: bool


class _Carried(NamedTuple):
  """What a step hands on beside the parameters.

  Attributes:
    batch_stats: of the generator.
    sums: float32 `[epochs, 4]`, of each epoch: steps, and over them the means
      of both cross-entropies and of what is at the cap.
  """

  batch_stats: Any
  sums: jax.Array


@functools.lru_cache(maxsize=32)
def generator_model(
  image_shape: tuple[int, int, int],
  max_perturbation: float | None = 8 / 255,
  width: int = 32,
) -> Model:
  """G as a `Model` from pixels to perturbations, in the same units.

  Args:
    image_shape: (height, width, channels); any size.
    max_perturbation: L∞ bound in (0, 1] of the pixel range; None for all of
      it.
    width: channels of the first layer.

  Returns:
    A `Model` whose `apply` gives float32 `[B, height, width, channels]`, each
    within ±255 · `max_perturbation`; the same object for the same arguments.

  Example:
    >>> generator = generator_model((5, 6, 1), 8 / 255, width=2)
    >>> state = training.initialize(jax.random.key(0), generator)
    >>> noise, _ = generator.apply(state, jnp.zeros((3, 5, 6, 1)), False)
    >>> noise.shape, bool((abs(noise) <= 8).all())
    ((3, 5, 6, 1), True)
  """
  from unlearn_jax.models.generator import Generator  # Only needed here.

  share = 1.0 if max_perturbation is None else max_perturbation
  module = Generator(
    channels=image_shape[-1], width=width, bound=share * _PIXEL_RANGE
  )
  units: Any = {'mean': (0.5,), 'std': (0.5,), 'scale': _PIXEL_RANGE}
  return models.from_linen(module, image_shape, **units)


def _add(images: Array, noise: jax.Array) -> jax.Array:
  """D_p = D_UL + G(D_UL), within the pixel range (Algorithm 2, line 4)."""
  pixels = jnp.asarray(images, jnp.float32)
  return jnp.clip(pixels + noise, 0.0, _PIXEL_RANGE)


@functools.lru_cache(maxsize=32)
def _loss(
  classifier: Model, eta: float, cap: float | None, far: float
) -> training.Loss:
  """CE(M(x + G(x)), y) − η · CE(M_UL(x + G(x)), y) (Eq. 13).

  The second sign of Eq. 12 is a misprint. M and M_UL are what the step is
  given; gradients run through them, in evaluation mode, to the generator alone.
  """

  def loss(
    generator: Model,
    state: ModelState,
    batches: tuple[Batch, ...],
    step: epoch.Step,
  ) -> tuple[jax.Array, Any]:
    params, carried = state
    (batch,) = batches
    own = ModelState(params, carried.batch_stats)
    noise, batch_stats = generator.apply(own, batch.images, True)
    perturbed = _add(batch.images, noise)
    source, unlearned = (
      classifier.loss(classifier.apply(m, perturbed, False)[0], batch.labels)
      for m in step.given
    )
    held = unlearned if cap is None else jnp.minimum(unlearned, cap)
    new = jnp.array(
      [1.0, source.mean(), unlearned.mean(), (unlearned >= far).mean()]
    )
    value = (source - eta * held).mean()
    row = step.number // step.per_epoch
    return value, _Carried(batch_stats, carried.sums.at[row].add(new))

  return loss


def _measure(state: ModelState) -> dict[str, float]:
  """What happened in the last epoch; nothing before the first."""
  sums = np.asarray(state.batch_stats.sums, np.float64)
  done = np.flatnonzero(sums[:, 0])
  if not done.size:
    return {}
  steps, source, unlearned, capped = sums[done[-1]]
  return {
    'source_loss': float(source / steps),
    'unlearned_loss': float(unlearned / steps),
    'capped_share': float(capped / steps),
  }


@parallel.apart
def fit_generator(
  key: Key,
  model: Model,
  source: ModelState,
  unlearned: ModelState,
  examples: Examples,
  settings: GeneratorSettings | None = None,
  *,
  num_classes: int,
  on_epoch: Callable[[training.Epoch], None] | None = None,
  keeper: Keeper | None = None,
) -> FittedGenerator:
  """Trains G against two frozen classifiers (Algorithm 2, lines 1–10).

  Runs under `jax.pmap(axis_name='batch')`, one compiled call an epoch, which
  is the same for every key and every pair of classifiers of one model.

  Args:
    key: typed PRNG key; it is consumed.
    model: the classifier that both states belong to; it standardises pixels
      itself, and runs with its running BatchNorm statistics.
    source: M; its arrays are left alone.
    unlearned: M_UL; likewise.
    examples: images `[N, height, width, channels]` in [0, 255] and labels.
    settings: `GeneratorSettings()` by default.
    num_classes: C.
    on_epoch: told of each epoch as it ends, epoch 0 included.
    keeper: see `training.fit`; what it keeps is without the classifiers, which
      are no part of what is trained.

  Returns:
    The `FittedGenerator`.

  Raises:
    ValueError: a batch that does not fit the devices or the examples.
    InputError: the training diverged.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> model = stateless(lambda w, x: x.reshape(len(x), -1) @ w)
    >>> examples = Examples.of(np.full((8, 4, 4, 1), 99), np.arange(8) % 2)
    >>> state = ModelState(jnp.zeros((16, 2)))
    >>> settings = GeneratorSettings(epochs=2, batch_size=4, width=2)
    >>> from unlearn_jax import parallel
    >>> with parallel.use(jax.devices()[:1]):
    ...   fitted = fit_generator(jax.random.key(0), model, state, state,
    ...                          examples, settings, num_classes=2)
    >>> [round(e.measured['source_loss'], 4) for e in fitted.history[1:]]
    [0.6931, 0.6931]
  """
  settings = GeneratorSettings() if settings is None else settings
  generator = _generator_of(examples, settings)
  chances = _CHANCES * math.log(num_classes)
  cap = chances if settings.cap == 'default' else settings.cap
  far = chances if cap is None else cap
  init_key, fit_key = jax.random.split(key)
  start = training.initialize(init_key, generator)
  sums = jnp.zeros((settings.epochs, 4))
  try:
    fit = training.fit(
      fit_key,
      generator,
      ModelState(start.params, _Carried(start.batch_stats, sums)),
      [examples],
      epochs=settings.epochs,
      batch_sizes=[settings.batch_size],
      optimizer=training.adam(settings.learning_rate),
      loss=_loss(model, float(settings.eta), cap, far),
      given=(source, unlearned),
      measure=_measure,
      on_epoch=on_epoch,
      keeper=keeper,
    )
  except training.DivergedError as error:
    raise InputError(_DIVERGED) from error
  # With a cap, an infinite loss of M_UL does not show in the sum of both.
  measured = [list(epoch.measured.values()) for epoch in fit.history[1:]]
  if not np.isfinite(measured).all():
    raise InputError(_DIVERGED)
  state = ModelState(fit.state.params, fit.state.batch_stats.batch_stats)
  took_off = fit.history[-1].measured['capped_share'] > 0.5
  return FittedGenerator(state, fit.history, took_off)


def _generator_of(examples: Examples, settings: GeneratorSettings) -> Model:
  shape = tuple(examples.images.shape[1:])
  if len(shape) != 3:
    raise ValueError(
      f'images have the shape {shape}, allowed: (height, width, channels)'
    )
  return generator_model(shape, settings.max_perturbation, settings.width)


@functools.lru_cache(maxsize=32)
def _behind(generator: Model, classifier: Model) -> Model:
  """The classifier behind the generator, its state the pair of theirs."""

  def apply(state: ModelState, images: Array, train: bool):
    fitted, own = state.params
    noise, _ = generator.apply(fitted, images, False)
    logits, _ = classifier.apply(own, _add(images, noise), False)
    return logits, state.batch_stats

  return Model(apply)


@parallel.apart
def predict_perturbed(
  model: Model,
  state: ModelState,
  generator: ModelState,
  examples: Examples,
  settings: GeneratorSettings,
) -> np.ndarray:
  """Class probabilities of D_p, G in evaluation mode (Algorithm 2, line 11).

  Args:
    model: the classifier.
    state: M or M_UL.
    generator: G, fitted with `settings`.
    examples: D_UL, or any other M examples.
    settings: G's.

  Returns:
    float32 `[M, C]` on the host.
  """
  whole = _behind(_generator_of(examples, settings), model)
  return predict(whole, ModelState((generator, state)), examples)


@functools.lru_cache(maxsize=32)
def _perturb_program(generator: Model):
  def perturb(state: ModelState, images: Array) -> jax.Array:
    return _add(images, generator.apply(state, images, False)[0])

  return jax.jit(perturb)


@parallel.apart
def perturb_images(
  generator: ModelState,
  examples: Examples,
  settings: GeneratorSettings,
) -> np.ndarray:
  """D_p = D_UL + G(D_UL), clipped to [0, 255] (Algorithm 2, line 11).

  Args:
    generator: G, fitted with `settings`.
    examples: M images.
    settings: G's.

  Returns:
    float32 `[M, height, width, channels]` on the host, in [0, 255], no pixel
    further from the original than 255 · `max_perturbation` up to rounding.

  Example:
    >>> settings = GeneratorSettings(width=2)
    >>> model = generator_model((4, 4, 1), width=2)
    >>> G = training.initialize(jax.random.key(0), model)
    >>> white = Examples.of(np.full((3, 4, 4, 1), 255), np.zeros(3, int))
    >>> perturbed = perturb_images(G, white, settings)
    >>> bool((perturbed <= 255).all() and (perturbed >= 247).all())
    True
  """
  program = _perturb_program(_generator_of(examples, settings))
  generator = jax.tree.map(np.asarray, generator)
  rows = np.asarray(examples.indices)
  size = min(_AT_ONCE, len(rows))
  parts = []
  for first in range(0, len(rows), size):
    chosen = rows[first : first + size]
    # The last batch is filled up, so that one program serves all.
    images = np.asarray(examples.images[np.resize(chosen, size)])
    parts.append(np.asarray(program(generator, images))[: len(chosen)])
  return np.concatenate(parts)
