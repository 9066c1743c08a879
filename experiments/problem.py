"""The problem that the flags pose: data, model, and what is to be forgotten."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import os
from typing import Any

import jax
import numpy as np
import optax

from experiments import flags
from unlearn_jax import data, models, parallel
from unlearn_jax.base import (
  Dataset,
  Examples,
  InputError,
  Key,
  Model,
  ModelState,
  Splits,
  shown,
  tensor_paths,
)
from unlearn_jax.data import images, streaming
from unlearn_jax.recipes import RECIPES
from unlearn_jax.strategies import Settings

# Images of each split by which processes see that they have the same data.
_LOOKED_AT = 8


@dataclasses.dataclass(frozen=True)
class Setup:
  """Data and model, the same for every run of one command.

  Attributes:
    values: the parsed flags.
    dataset: its images on the devices if they fit, all else on the host.
    model: the classifier, with the pixel statistics of D inside: a mean and
      a deviation a channel, the same for source and Retrain.
    facts: what every manifest says of the two.
    parameters: how many scalars the model has.
    tensor_sizes: scalars per tensor, in definition order.
    tensors: kind and shape of each tensor and statistic, by its path.
  """

  values: Any
  dataset: Dataset
  model: Model
  facts: dict[str, Any]
  parameters: int
  tensor_sizes: dict[str, int]
  tensors: dict[str, str]


def set_up(values: Any) -> Setup:
  """Loads the data and builds the model that the flags name."""
  try:
    dataset = load(values.dataset, values)
  except InputError as error:
    raise InputError(f'--dataset={values.dataset}: {error}') from error
  if values.train_subset is not None:
    if values.train_subset > dataset.train.size:
      raise flags.FlagError(
        'train_subset', values.train_subset, f'1 to {dataset.train.size}'
      )
    dataset = subset(dataset, values.train_subset)
  # Sums over all images: of several processes one needs to read them.
  mean, std = parallel.by_first(
    lambda: [each.tolist() for each in images.pixel_statistics(dataset.train)]
  )
  # Onto the devices, once for all that follows, if they hold it.
  train, test = (
    part
    if streaming.streams(part)
    else part._replace(images=parallel.replicate(part.images))
    for part in (dataset.train, dataset.test)
  )
  dataset = dataclasses.replace(dataset, train=train, test=test)
  return assemble(
    values,
    dataset,
    {
      'model': values.model,
      'width': values.width or models.FAMILIES[values.model].width,
      'dtype': values.dtype,
      'num_classes': len(dataset.class_names),
      'image_shape': list(dataset.image_shape),
      'pixel_mean': mean,
      'pixel_std': std,
      'dataset': values.dataset,
      'train_subset': values.train_subset,
      'data_fingerprint': dataset.fingerprint,
    },
  )


def load(name: str, values: Any) -> Dataset:
  """The data set of this name, from where the flags say.

  Images that are streamed stay in their file, where that can be mapped. With
  several processes the first loads before the others do: the data may have to
  be prepared, once.

  Raises:
    InputError: it cannot be read, or process 0 has another.
  """
  return _agreed(
    lambda known: data.load(
      name,
      data_dir=values.data_dir,
      raw_dir=values.raw_dir,
      map_beyond=streaming.limit_bytes(),
      known_fingerprint=known,
    )
  )


def subset(dataset: Dataset, size: int) -> Dataset:
  """`data.subset`, hashed by one process for all."""
  return _agreed(
    lambda known: data.subset(dataset, size, known_fingerprint=known)
  )


def _agreed(read: Callable[[str | None], Dataset]) -> Dataset:
  """The same data set in all processes, of which the first hashes it.

  Args:
    read: takes the fingerprint, or None where it is to be computed.

  Raises:
    InputError: it is another one in process 0.
  """
  made: list[Dataset] = []

  def first() -> dict[str, str]:
    made.append(read(None))
    return {'fingerprint': made[0].fingerprint, **_outline(made[0])}

  told = parallel.by_first(first)
  if made:
    return made[0]
  dataset = read(told['fingerprint'])
  for what, digest in _outline(dataset).items():
    if digest != told[what]:
      raise InputError(
        f'{what} differ from those of process 0; allowed is the same data set'
        ' in all processes'
      )
  return dataset


def _outline(dataset: Dataset) -> dict[str, str]:
  """Digests of what tells data sets apart without reading all images."""
  parts = (dataset.train, dataset.test)
  few = [np.linspace(0, p.size - 1, _LOOKED_AT).astype(int) for p in parts]
  contents = {
    'sizes': str([part.images.shape for part in parts]).encode(),
    'class names': _encoded(dataset.class_names),
    'ids': _encoded(dataset.ids.tolist()),
    'labels': b''.join(np.asarray(part.labels).tobytes() for part in parts),
    'images': b''.join(
      np.asarray(part.images[rows]).tobytes() for part, rows in zip(parts, few)
    ),
  }
  return {
    what: hashlib.sha256(content).hexdigest()
    for what, content in contents.items()
  }


def _encoded(names: Sequence[str]) -> bytes:
  return '\0'.join(names).encode('utf-8', 'surrogatepass')


def assemble(values: Any, dataset: Dataset, facts: dict[str, Any]) -> Setup:
  """The `Setup` of a model that `facts` describe."""
  too_large = flags.FlagError(
    'width', facts['width'], 'what has at most 2147483647 parameters'
  )
  if facts['width'] > 2**20:  # Shapes would no longer be numbers of JAX.
    raise too_large
  try:
    model = models.build(
      facts['model'],
      facts['num_classes'],
      facts['image_shape'],
      width=facts['width'],
      mean=facts['pixel_mean'],
      std=facts['pixel_std'],
      dtype=facts.get('dtype', 'float32'),
    )
  except ValueError as error:
    raise InputError(f'{facts["dataset"]}: {error}') from error
  assert model.init is not None
  state = jax.eval_shape(model.init, jax.random.key(0))
  shapes = state.params
  leaves = dict(zip(tensor_paths(shapes), jax.tree.leaves(shapes)))
  sizes = {path: int(leaves[path].size) for path in model.order}
  if sum(sizes.values()) >= 2**31:
    raise too_large
  return Setup(
    values,
    dataset,
    model,
    facts,
    sum(sizes.values()),
    sizes,
    _tensors(state),
  )


def identity(setup: Setup) -> dict[str, Any]:
  """What a work directory belongs to."""
  names = ('data_fingerprint', 'model', 'width')
  return {name: setup.facts[name] for name in names}


def seed_of(values: Any, what: str, run: int) -> int:
  """The seed of one purpose (split, source, unlearn) in run number `run`."""
  own = getattr(values, f'{what}_seed')
  return (values.seed if own is None else own) + run


def key_of(what: str, seed: int) -> Key:
  """The key of one purpose, unlike that of another with the same seed."""
  purposes = ('split', 'source', 'unlearn', 'degree')
  return jax.random.fold_in(jax.random.key(seed), purposes.index(what))


def draw(setup: Setup, run: int) -> Splits:
  """The forget set of run number `run`."""
  values, dataset = setup.values, setup.dataset
  if values.forget_ids is not None:
    try:
      rows = data.read_ids(values.forget_ids, dataset)
      return data.split_forget(None, dataset, ids=rows)
    except InputError as error:
      raise InputError(f'--forget_ids={values.forget_ids}: {error}') from error
  total = dataset.train.size
  if not 0 < round(values.forget_fraction * total) < total:
    raise flags.FlagError(
      'forget_fraction',
      values.forget_fraction,
      f'a share that comes to 1 to {total - 1} of {total} training images',
    )
  split_key = key_of('split', seed_of(values, 'split', run))
  return data.split_forget(split_key, dataset, values.forget_fraction)


def check_sizes(setup: Setup, splits: Splits) -> None:
  """What can only be checked once data and model are known."""
  values = setup.values
  if values.batch_size > splits.retain.size:
    raise flags.FlagError(
      'batch_size',
      values.batch_size,
      f'at most the {splits.retain.size} retained examples',
    )
  most = (2**31 - 1) // (splits.train.size // values.batch_size)
  for name in ('train_epochs', 'epochs'):
    if getattr(values, name, 0) > most:
      allowed = f'at most {most}; steps are counted up to 2147483647'
      raise flags.FlagError(name, getattr(values, name), allowed)


def check_against_model(setup: Setup, settings: Settings) -> None:
  """K against the parameters that the model really has."""
  tensors = len(setup.tensor_sizes)
  most = tensors if settings.granularity == 'leaf' else setup.parameters
  unit = 'tensors' if settings.granularity == 'leaf' else 'parameters'
  if isinstance(settings.k, int) and settings.k > most:
    raise flags.FlagError('k', settings.k, f'1 to {most}, the {unit}')
  if settings.last_k > tensors:
    raise flags.FlagError(
      'last_k', settings.last_k, f'1 to {tensors}, the tensors'
    )
  chosen = settings.k
  if isinstance(chosen, float):
    chosen = max(1, round(chosen * setup.parameters))
  random = max(1, round(settings.ratio * setup.parameters))
  if 'random_top_k' in setup.values.strategies and chosen > random:
    raise flags.FlagError(
      'ratio',
      settings.ratio,
      f'shares of at least K = {chosen} of {setup.parameters} parameters',
    )


def require_fits(
  setup: Setup, state: ModelState, path: str | os.PathLike
) -> None:
  """Refuses a checkpoint whose tensors are not those of the model.

  Args:
    setup: data and model.
    state: what the checkpoint holds.
    path: where it is.

  Raises:
    InputError: other tensors, or of other shapes or kinds.
  """
  wanted, found = setup.tensors, _tensors(state)
  for name in sorted({*wanted, *found}):
    if wanted.get(name) != found.get(name):
      raise InputError(
        f'{path}: its tensor {shown(name)} is {found.get(name, "missing")};'
        f' allowed for {setup.facts["model"]}, width {setup.facts["width"]}:'
        f' {wanted.get(name, "none")}'
      )


def _tensors(state: ModelState) -> dict[str, str]:
  """Kind and shape of each tensor, by its path."""
  leaves = zip(tensor_paths(state), jax.tree.leaves(state))
  return {path: f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def forget_ids(setup: Setup, splits: Splits) -> list[str]:
  """Identifiers of the forget set, in the order of its indices."""
  return [str(i) for i in setup.dataset.ids[np.asarray(splits.forget.indices)]]


def forget_hash(setup: Setup, splits: Splits) -> str:
  """Hex SHA-256 of the identifiers of the forget set."""
  text = '\n'.join(forget_ids(setup, splits))
  return hashlib.sha256(text.encode()).hexdigest()


def recipe(values: Any) -> dict[str, Any]:
  """How source and Retrain are trained."""
  return {
    'optimizer': RECIPES[values.recipe].optimizer.__name__,
    'epochs': values.train_epochs,
    'learning_rate': values.train_learning_rate,
    'batch_size': values.batch_size,
    'augment': values.augment,
  }


def require_recipe(
  settings: dict[str, Any], wanted: dict[str, Any], path: str | os.PathLike
) -> None:
  """Refuses a model that was not trained as the source was.

  Args:
    settings: of the model, from its manifest; may lack any.
    wanted: those of the source.
    path: where the model is.

  Raises:
    InputError: a setting that both name differs.
  """
  for name in ('optimizer', 'epochs', 'learning_rate', 'batch_size', 'augment'):
    own, its = (known.get(name) for known in (settings, wanted))
    if own is not None and its is not None and own != its:
      raise InputError(
        f'{path} was trained with {name}={shown(own)}, the source with'
        f' {shown(its)}; allowed: one recipe for both'
      )


def optimizer(values: Any, examples: Examples) -> optax.GradientTransformation:
  """The recipe's, for a training on these examples."""
  steps = values.train_epochs * (examples.size // values.batch_size)
  return RECIPES[values.recipe].optimizer(values.train_learning_rate, steps)


def describe(setup: Setup, drawn: Sequence[Splits]) -> list[str]:
  """What was loaded and drawn, and a warning where a class is forgotten."""
  dataset = setup.dataset
  height, width, channels = dataset.image_shape
  lines = [
    f'{dataset.name}: {dataset.train.size:,} training and'
    f' {dataset.test.size:,} test images of {height}×{width}×{channels},'
    f' {len(dataset.class_names)} classes',
    f'{setup.facts["model"]}, width {setup.facts["width"]}:'
    f' {setup.parameters:,} parameters in {len(setup.tensor_sizes)} tensors',
  ]
  for run, own in enumerate(drawn):
    ids = forget_ids(setup, own)
    few = ', '.join(map(shown, ids[:3])) + (', …' if len(ids) > 3 else '')
    lines.append(
      f'seed {setup.values.seed + run}: forgetting {len(ids):,} of'
      f' {own.train.size:,} images ({few})'
    )
    for lost in data.classes_lost(own, len(dataset.class_names)):
      lines.append(
        f'warning: class {dataset.class_names[lost]!r} has no retained example'
        f' (seed {setup.values.seed + run})'
      )
  return lines
