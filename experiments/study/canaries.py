"""Noise in some training images, by which a model shows what it remembers."""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings import FlagError
from unlearn_jax import attacks, data
from unlearn_jax.base import Dataset, InputError, Model, ModelState

FILE = 'canaries.txt'  # Ids of those that were planted, one a line.
_SEED = 240617216
_SCALE = 48.0  # Of the noise, in 255.
_BATCH = 256


class Drawn(NamedTuple):
  """Images that may get noise, and what coins said before the training."""

  rows: np.ndarray  # `[M]`, in D
  planted: np.ndarray  # `[M]`, booleans


def draw(total: int, count: int) -> Drawn:
  """Images and coins: the same for the same numbers."""
  lots = jax.random.split(jax.random.key(_SEED), 3)
  rows = np.sort(np.asarray(jax.random.permutation(lots[0], total)[:count]))
  return Drawn(rows, np.asarray(jax.random.bernoulli(lots[1], shape=(count,))))


def _noisy(dataset: Dataset, own: Drawn) -> attacks.Planted:
  images = np.asarray(dataset.train.images)[own.rows]
  key = jax.random.split(jax.random.key(_SEED), 3)[2]
  return attacks.plant(key, images, _SCALE)


def plant(dataset: Dataset, count: int) -> Dataset:
  """The data set with noise in about half of `count` images, of which half."""
  if count > dataset.train.size:
    raise FlagError('canaries', count, f'at most the {dataset.train.size} of D')
  own = draw(dataset.train.size, count)
  images = np.array(dataset.train.images)
  noisy = _noisy(dataset, own).images
  images[own.rows[own.planted]] = noisy[own.planted]
  train = dataset.train._replace(images=images)
  told = data.fingerprint(train, dataset.test, dataset.ids)
  return dataclasses.replace(dataset, train=train, fingerprint=told)


def read_out(
  model: Model, state: ModelState, dataset: Dataset, count: int
) -> dict[str, Any]:
  """Whether a model knows the noise; `dataset` is without it.

  z of what was planted, of what was not (the null), and a lower bound of ε for
  training and what came after, None where jax-privacy is not installed.
  """
  own, train = draw(dataset.train.size, count), dataset.train
  images = np.asarray(train.images)[own.rows].astype(np.float32) / 255
  labels, found = train.own_labels[own.rows], []
  for first in range(0, count, _BATCH):
    part = slice(first, first + _BATCH)
    found.append(_gradients(model, state, images[part], labels[part]))
  noise = _noisy(dataset, own).noise
  statistic = attacks.canary_statistic(np.concatenate(found), noise, _SCALE)
  sides = {'planted': own.planted, 'not_planted': ~own.planted}
  inside, outside = (np.nan_to_num(statistic[rows]) for rows in sides.values())
  epsilon = None
  try:
    # A threshold that is fixed beforehand: noise that is known is above it.
    epsilon = attacks.epsilon_one_run(inside, outside, 0.0)
  except InputError as error:
    print(f'canaries: {error}', file=sys.stderr)
  return {'epsilon': epsilon} | {
    name: attacks.canary_test(statistic[rows])._asdict()
    for name, rows in sides.items()
  }


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model: Model, state: ModelState, images, labels) -> jax.Array:
  """Of φ, summed over images, by these."""

  def margins(x: jax.Array) -> jax.Array:
    logits = model.apply(state, x, False)[0].astype(jnp.float32)
    own = jnp.arange(logits.shape[1]) == labels[:, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return jnp.sum(jnp.where(own, logits, 0)) - jnp.sum(others)

  return jax.grad(margins)(images)
