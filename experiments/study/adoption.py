"""Weights from elsewhere made a checkpoint that other binaries take."""

import dataclasses
import pathlib
from typing import Any

import jax
import msgspec
import numpy as np

from experiments import config
from experiments.runtime.progress import say
from experiments.study import setup as setups
from experiments.study import weights
from experiments.study.setup import Setup
from experiments.workdir import finished
from experiments.workdir.finished import Manifest, Recipe
from unlearn_jax import checkpoints, data
from unlearn_jax.base import Examples, InputError, ModelState, tensor_paths
from unlearn_jax.prediction import predict


def adopt(asked: Any, out: pathlib.Path) -> None:
  """Reads, matches, measures, and then writes.

  Args:
    asked: `experiments.adopt.Adopt`.
    out: folder of the checkpoint, which must not exist.

  Raises:
    InputError: the weights are not those of the model, or a flag is wrong.
  """
  if out.exists():
    raise InputError(f'--out={out} exists; it is never overwritten')
  study = config.Study(
    data=asked.data, network=asked.network, archives=asked.archives
  )
  setup, path = setups.set_up(study), pathlib.Path(asked.weights)
  trained = _trained(setup, asked.trained_on)
  say(*setups.describe(setup, {}))
  state = _state(setup, path, asked.rename)
  for what, part in (('test', setup.dataset.test), ('trained', trained)):
    right = predict(setup.model, state, part).argmax(-1) == part.own_labels
    say(f'{what:7} accuracy {100 * right.mean():.2f} %')
  recipe = None
  if asked.training.recipe is not None:
    recipe = Recipe.of(asked.training.resolved)
  facts = dataclasses.asdict(setup.facts)
  said = Manifest(**facts, strategy='source', recipe=recipe)
  ids = '\n'.join([*setups.ids_of(setup, trained), '']).encode()
  named = msgspec.to_builtins(said) | {'adopted_from': path.name}
  checkpoints.save(out, state, named, {finished.TRAINED: ids})
  say(f'Checkpoint: {out}')


def _trained(setup: Setup, text: str) -> Examples:
  """What the model knows, in the order of the data set."""
  if text == 'all':
    return setup.dataset.train
  try:
    rows = data.read_ids(pathlib.Path(text), setup.dataset)
  except InputError as error:
    raise InputError(f'--trained_on={error}') from error
  return setup.dataset.train.take(np.unique(rows))


def _state(setup: Setup, path: pathlib.Path, rename: str | None) -> ModelState:
  try:
    found = weights.renamed(weights.read(path), rename)
    leaves = jax.tree.leaves(setup.shapes)
    shapes = dict(zip(tensor_paths(setup.shapes), leaves))
    matched = weights.match(shapes, found)
    say(*matched.table(shapes))
    assert setup.model.init is not None
    fresh = setup.model.init(jax.random.key(0))
    return weights.filled(setup.shapes, fresh, found, matched)
  except weights.FlagError:
    raise
  except InputError as error:
    text = str(error).removeprefix(f'{path}: ')
    raise InputError(f'--weights={path}: {text}') from error
