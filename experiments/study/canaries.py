"""Noise in some training images, by which a model shows what it remembers."""

from collections.abc import Sequence
import dataclasses
import sys
from typing import Any

import jax
import numpy as np

from unlearn_jax import attacks, data
from unlearn_jax.base import Dataset, Examples, Model, ModelState
from unlearn_jax.prediction import predict
from ..settings import FlagError

FILE = 'canaries.txt'  # Ids of those that were planted, one a line.
_SEED = 240617216
_SCALE = 48.0  # Of the noise, in 255.
_BATCH = 512
_DECOYS = 19  # Other draws of noise, among which a model has to find its own.


def _lots() -> jax.Array:
  """Keys of what is chosen, of coins, and of noise: the same ever since."""
  return jax.random.split(jax.random.key(_SEED), 3)


def chosen(dataset: Dataset, count: int) -> list[str]:
  """Ids of the images that may get noise, of a data set that is whole."""
  total = dataset.train.size
  if count > total:
    raise FlagError('canaries', count, f'at most the {total} of D')
  rows = np.asarray(jax.random.permutation(_lots()[0], total)[:count])
  return dataset.ids[np.sort(rows)].astype(str).tolist()


def planted(names: Sequence[str]) -> np.ndarray:
  """What coins say of `chosen` images, `[M]`: it depends on their number."""
  return np.asarray(jax.random.bernoulli(_lots()[1], shape=(len(names),)))


def in_turn(names: Sequence[str]) -> list[str]:
  """Those of `chosen` images that have noise, in an order drawn by lot."""
  own = np.array(names)[planted(names)]
  return np.random.default_rng(_SEED).permutation(own).tolist()


def there(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
  """Rows of `chosen` images, `[M]`; −1 where one is not there any more."""
  rows = {str(name): row for row, name in enumerate(dataset.ids)}
  return np.array([rows.get(name, -1) for name in names])


def _noisy(dataset: Dataset, rows: np.ndarray, number: int = 0) -> np.ndarray:
  """These with noise, `[M, ...]`, by their place; `number`: 0, or a decoy's."""
  key = jax.random.fold_in(_lots()[2], number) if number else _lots()[2]
  images = np.asarray(dataset.train.images)[rows]
  return attacks.plant(key, images, _SCALE).images


def plant(dataset: Dataset, names: Sequence[str]) -> Dataset:
  """The data set with noise in about half of the `chosen` images."""
  rows, images = there(dataset, names), np.array(dataset.train.images)
  own = planted(names) & (rows >= 0)
  images[rows[own]] = _noisy(dataset, rows)[own]
  train = dataset.train._replace(images=images)
  told = data.fingerprint(train, dataset.test, dataset.ids)
  return dataclasses.replace(dataset, train=train, fingerprint=told)


def ranks(
  model: Model, state: ModelState, dataset: Dataset, names: Sequence[str]
) -> np.ndarray:
  """How well a model tells the noise of `chosen` images from other noise.

  `[M]`, see `attacks.canary_ranks`; of an image that is not there it means
  nothing. `dataset` is without noise.
  """
  rows, most = there(dataset, names), min(_BATCH, len(names))
  labels, phi = dataset.train.own_labels[rows], []
  for number in range(1 + _DECOYS):
    part = Examples.of(_noisy(dataset, rows, number), labels)
    logits = predict(model, state, part, batch_size=most, logits=True)
    phi.append(attacks.true_class_margin(logits, labels))
  return attacks.canary_ranks(phi[0], np.stack(phi[1:]))


def read_out(
  model: Model, state: ModelState, dataset: Dataset, count: int
) -> dict[str, Any]:
  """Whether a model knows the noise; `dataset` is without it.

  z of what was planted, of what was not (the null), and a lower bound of ε for
  training and what came after, None without jax-privacy or one of the two.
  """
  names = chosen(dataset, count)
  statistic, own = ranks(model, state, dataset, names), planted(names)
  inside, outside = statistic[own], statistic[~own]
  epsilon = None
  try:
    # A threshold that is fixed beforehand: noise that is known is above it.
    epsilon = attacks.epsilon_one_run(inside, outside, 0.0)
  except ValueError as error:
    print(f'canaries: {error}', file=sys.stderr)
  sides = {'planted': inside, 'not_planted': outside}
  return {'epsilon': epsilon} | {
    name: attacks.canary_test(side)._asdict() for name, side in sides.items()
  }
