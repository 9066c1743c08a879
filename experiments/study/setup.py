"""The problem that a configuration poses: data, model, what is forgotten."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

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
from unlearn_jax.data import images, near, streaming
from .. import config
from ..report.wording import say
from ..settings import FlagError, pair
from ..workdir import finished
from ..workdir.finished import Facts, Finished
from . import canaries, networks

_PURPOSES = ('split', 'source', 'unlearn', 'degree', 'audit', 'halves')
# What two models must have in common to be compared.
COMMON = (
  *('model', 'model_sha256', 'width', 'patch_size', 'dtype', 'num_classes'),
  *('canaries', 'pixel_mean', 'pixel_std', 'data_fingerprint'),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """Data and model, the same for every run of a study."""

  # Its images on the devices if they fit, all else on the host.
  dataset: Dataset
  # The classifier, with the pixel statistics of D inside: a mean and a
  # deviation a channel, the same for source and Retrain.
  model: Model
  facts: Facts  # what every manifest says of the two
  shapes: ModelState  # shapes and kinds of its arrays
  # Mean and deviation by which the network gets pixels / 255 standardised; None
  # of a `Model` of one's own: it gets them from 0 to 255.
  units: tuple[list[float], list[float]] | None

  @property
  def tensor_sizes(self) -> dict[str, int]:
    """Scalars per tensor, in definition order."""
    params = self.shapes.params
    leaves = dict(zip(tensor_paths(params), jax.tree.leaves(params)))
    return {path: int(leaves[path].size) for path in self.model.order}


def set_up(study: config.Study) -> Setup:
  """Loads the data and builds the model, or gives those of the last call."""
  stamp = networks.stamp(study.network.model)
  return _set_up(study.data, study.network, study.archives, stamp)


@functools.lru_cache(maxsize=8)
def _set_up(
  which: config.Data,
  network: config.Network,
  archives: config.Archives,
  stamp: str,
) -> Setup:
  """The same as long as the code of the network is."""
  width, (name, sha256) = network.channels, (network.model, None)
  dataset, mean, std = _placed(which, archives)
  family = models.FAMILIES.get(network.model)
  if not width:
    classes, shape = len(dataset.class_names), dataset.image_shape
    name, sha256, *_ = networks.read(name, classes, shape, mean, std)
  return assemble(
    dataset,
    Facts(
      model=name,
      model_sha256=sha256,
      width=width,
      patch_size=network.patch_size or (family and family.patch_size),
      dtype=network.dtype,
      num_classes=len(dataset.class_names),
      image_shape=list(dataset.image_shape),
      pixel_mean=mean,
      pixel_std=std,
      data_fingerprint=dataset.fingerprint,
      **{**vars(which), 'canaries': which.canaries or 0},
    ),
    network.model,
  )


@functools.lru_cache(maxsize=2)
def _placed(
  which: config.Data, archives: config.Archives
) -> tuple[Dataset, list[float], list[float]]:
  """The data set, on the devices if they hold it, and its pixel statistics."""
  dataset = load(which, archives)
  # Sums over all images: of several processes one needs to read them.
  mean, std = parallel.by_first(
    lambda: [each.tolist() for each in images.pixel_statistics(dataset.train)]
  )
  train, test = (
    part
    if streaming.streams(part)
    else part._replace(images=parallel.replicate(part.images))
    for part in (dataset.train, dataset.test)
  )
  return dataclasses.replace(dataset, train=train, test=test), mean, std


def load(which: config.Data, archives: config.Archives) -> Dataset:
  """The data set, from where the flags say.

  Images that are streamed stay in their file, where that can be mapped. With
  several processes the first loads before the others do: the data may have to
  be prepared, once.
  """

  @functools.cache
  def read() -> Dataset:
    text = which.image_size
    size = None if text is None else pair('image_size', text, 4096)
    try:
      dataset = data.load(
        which.dataset,
        data_dir=archives.data_dir,
        raw_dir=archives.raw_dir,
        map_beyond=streaming.limit_bytes(),
        test_fraction=which.test_fraction,
        image_size=size,
      )
    except InputError as error:
      raise InputError(f'--dataset={which.dataset}: {error}') from error
    most = which.train_subset
    if most is not None and most > dataset.train.size:
      raise FlagError('train_subset', most, f'1 to {dataset.train.size}')
    dataset = dataset if most is None else data.subset(dataset, most)
    if not (count := which.canaries):
      return dataset
    return canaries.plant(dataset, canaries.chosen(dataset, count))

  told = parallel.by_first(lambda: read().fingerprint)
  if read().fingerprint != told:
    raise InputError(
      f'--dataset={which.dataset}: its data differ from those of process 0;'
      ' allowed is the same data set in all processes'
    )
  return read()


def assemble(dataset: Dataset, facts: Facts, code: str | None = None) -> Setup:
  """The `Setup` of a model that `facts` describe; `code`: one of one's own."""
  name = 'width' if facts.width else 'model'
  too_large = FlagError(
    name, getattr(facts, name), 'what has at most 2147483647 parameters'
  )
  if facts.width > 2**20:  # Shapes would no longer be numbers of JAX.
    raise too_large
  units: Any = (facts.pixel_mean, facts.pixel_std)
  try:
    if facts.model_sha256 is not None:
      own, channels = networks.again(facts, code), len(facts.pixel_mean)
      units = ([0.0] * channels, [1.0] * channels) if own.module else None
      model = own.model
    elif code not in (None, facts.model):
      raise FlagError('model', code, f'{facts.model}, as it was trained')
    else:
      model = models.build(
        facts.model,
        facts.num_classes,
        facts.image_shape,
        width=facts.width,
        patch_size=facts.patch_size,
        mean=facts.pixel_mean,
        std=facts.pixel_std,
        dtype=facts.dtype,
      )
  except InputError:
    raise
  except ValueError as error:
    raise InputError(f'{facts.dataset}: {error}') from error
  assert model.init is not None
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  setup = Setup(dataset, model, facts, shapes, units)
  if sum(setup.tensor_sizes.values()) >= 2**31:
    raise too_large
  return setup


def of_manifest(
  path: pathlib.Path, dataset: Dataset, code: str | None, name: str = ''
) -> Setup:
  """Data, by another `name` if it has one now, and the model of a manifest."""
  said = finished.manifest(path)
  classes, shape = len(dataset.class_names), list(dataset.image_shape)
  finished.require(path, num_classes=classes, image_shape=shape)
  names = [field.name for field in dataclasses.fields(Facts)]
  facts = Facts(**{name: getattr(said, name) for name in names})
  try:
    if {len(said.pixel_mean), len(said.pixel_std)} != {shape[-1]}:
      raise InputError('pixel_mean and pixel_std, allowed: one a channel')
    facts = dataclasses.replace(facts, dataset=name or facts.dataset)
    return assemble(dataset, facts, code)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error


def data_of(said: Facts, dataset: str | None = None) -> config.Data:
  """Which data a manifest means, or those that have moved to `dataset`."""
  kept = said.train_subset, said.test_fraction, said.image_size, said.canaries
  return config.Data(dataset or said.dataset, *kept)


def network_of(said: Facts, code: str | None) -> config.Network:
  """As flags say it; `code` is what they call a model of one's own."""
  sizes = said.width or None, said.patch_size
  return config.Network(code or said.model, *sizes, said.dtype)


def _tensors(state: ModelState) -> dict[str, str]:
  """Kind and shape of each tensor, by its path."""
  leaves = zip(tensor_paths(state), jax.tree.leaves(state))
  return {path: f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def load_model(setup: Setup, path: pathlib.Path, **expected: Any) -> Finished:
  """A checkpoint, refused if it is of another problem or not as expected."""
  said = finished.manifest(path)  # One from elsewhere may say no statistics.
  known = [name for name in COMMON if getattr(said, name) != []]
  facts = {name: getattr(setup.facts, name) for name in known}
  finished.require(path, **facts, **expected)
  model = finished.load(path)
  wanted, found = _tensors(setup.shapes), _tensors(model.state)
  for name in sorted({*wanted, *found}):
    if wanted.get(name) != found.get(name):
      raise InputError(
        f'{path}: its tensor {shown(name)} is {found.get(name, "missing")};'
        f' allowed for {setup.facts.network}:'
        f' {wanted.get(name, "none")}'
      )
  return model


def key_of(what: str, seed: int) -> Key:
  """The key of one purpose, unlike that of another with the same seed."""
  return jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(what))


def draw(setup: Setup, study: config.Study, run: int) -> Splits:
  """The forget set of run number `run`."""
  key = key_of('split', study.draws.of('split', run))
  try:
    dataset, heldout = data.set_aside(setup.dataset, study.heldout)
    return data.forget_set(key, dataset, study.forgotten, heldout)
  except InputError as error:
    raise InputError(f'--forget={study.forgotten}: {error}') from error


def read_forget(
  setup: Setup,
  path: pathlib.Path,
  labels: Sequence[int] = (),
  class_matched: bool = True,
  heldout: float = 0.0,
) -> Splits:
  """The forget set that a file names, with the labels that it was given."""
  try:
    rows = data.read_ids(path, setup.dataset)
    dataset, apart = data.set_aside(setup.dataset, heldout)
    splits = data.split_forget(None, dataset, ids=rows)
    splits = splits._replace(heldout=apart)
    if not class_matched:
      splits = splits._replace(unseen=None)
    if not labels:
      return splits
    most = len(setup.dataset.class_names)
    if len(labels) != len(rows) or not all(0 <= n < most for n in labels):
      raise InputError(
        f'its manifest has {len(labels)} labels, allowed: one'
        f' below {most} for each of {len(rows)} examples'
      )
    return data.relabelled(splits, labels)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error


def given_labels(splits: Splits) -> list[int]:
  """Of the forget set, where these are not the true ones."""
  return [] if splits.truth is None else splits.forget.own_labels.tolist()


def require_known(setup: Setup, splits: Splits, path: pathlib.Path) -> None:
  """Refuses a source, where it says what it learned, that lacks some of D.

  What it never learned it cannot forget; and Retrain would learn, and models be
  judged by, what the source never saw.
  """
  if not (file := path / finished.TRAINED).exists():
    return
  known = data.read_ids(file, setup.dataset)
  never = np.setdiff1d(np.asarray(splits.train.indices), known)
  lost = np.intersect1d(never, np.asarray(splits.forget.indices))
  if lost.size:
    raise InputError(
      f'{path} was not trained on {shown(str(setup.dataset.ids[lost[0]]))} and'
      f' {lost.size - 1} others that are to be forgotten; allowed: what is in'
      f' its {finished.TRAINED}'
    )
  if never.size:
    raise InputError(
      f'{path} was not trained on {never.size:,} of {splits.train.size:,}'
      f' training images, such as {shown(str(setup.dataset.ids[never[0]]))};'
      f' allowed: a --dataset of those in its {finished.TRAINED}, or'
      ' experiments.forget, which knows'
    )


def ids_of(setup: Setup, examples: Examples) -> list[str]:
  """Identifiers, in the order of the indices."""
  return [str(i) for i in setup.dataset.ids[np.asarray(examples.indices)]]


def forget_hash(setup: Setup, splits: Splits) -> str:
  """Hex SHA-256 of the identifiers of the forget set."""
  text = '\n'.join(ids_of(setup, splits.forget))
  return hashlib.sha256(text.encode()).hexdigest()


def titled(setup: Setup) -> str:
  """The data set as a title has it: `npz:photos.npz`, without the way there."""
  kind, colon, path = setup.dataset.name.partition(':')
  return f'{kind}{colon}{pathlib.PurePath(path).name}' if colon else kind


def describe(setup: Setup, drawn: Mapping[int, Splits]) -> list[str]:
  """What was loaded, and what each seed forgets, in lines."""
  dataset, facts = setup.dataset, setup.facts
  height, width, channels = dataset.image_shape
  sizes = setup.tensor_sizes
  lines = [
    f'{shown(dataset.name)}: {dataset.train.size:,} training and'
    f' {dataset.test.size:,} test images of {height}×{width}×{channels},'
    f' {len(dataset.class_names)} classes',
    f'{facts.network}: {sum(sizes.values()):,} parameters in {len(sizes)}'
    ' tensors',
  ]
  lines += left_out(setup)
  apart = {dataset.test.size - own.test.size for own in drawn.values()} - {0}
  lines += [f'Test images that methods alone see: {n:,}' for n in apart]
  for seed, splits in drawn.items():
    ids = ids_of(setup, splits.forget)
    few = ', '.join(map(shown, ids[:3])) + (', …' if len(ids) > 3 else '')
    lines.append(
      f'seed {seed}: forgetting {len(ids):,} of {splits.train.size:,} images'
      f' ({few})'
    )
  return lines + [f'warning: {text}' for text in cautions(setup, drawn)]


def left_out(setup: Setup) -> list[str]:
  """A line on what lies among the images of a folder and is none."""
  count = data.litter(setup.facts.dataset)
  what = f'skipped: {count} (Thumbs.db, .DS_Store, __MACOSX or the like)'
  return [f'Entries that are no images, {what}'] if count else []


def cautions(setup: Setup, drawn: Mapping[int, Splits]) -> list[str]:
  """What to know of forget sets beforehand, a line for seeds that are alike."""
  names = setup.dataset.class_names
  seeds_of: dict[str, list[str]] = {}
  for seed, splits in drawn.items():
    lost, said = data.classes_lost(splits, len(names)), []
    if lost:
      few = ', '.join(shown(repr(names[c])) for c in lost[:3])
      few += f', … ({len(lost)} in all)' if len(lost) > 3 else ''
      said.append(f'nothing is retained of class {few}')
    if splits.unseen is not None and not splits.unseen.size:
      said.append(say('warnings', 'unmatched'))
    streamed = any(map(streaming.streams, (splits.train, splits.test)))
    if not streamed and any(counts := data.copies(splits)):
      said.append(say('warnings', 'copies', counts=counts))
    if not streamed and any(alike := near.near_copies(splits) or ()):
      said.append(say('warnings', 'near_copies', counts=alike))
    for text in said:
      seeds_of.setdefault(text, []).append(str(seed))
  return [
    f'{text} (seed{"s" * (len(own) > 1)} {", ".join(own)})'
    for text, own in seeds_of.items()
  ]
