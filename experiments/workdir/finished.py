"""A finished stage on disk: model, manifest, record and predictions."""

import dataclasses
import functools
import io
import pathlib
from typing import Any, TypeVar

import msgspec
import numpy as np

from unlearn_jax import checkpoints, recipes
from unlearn_jax.base import InputError, ModelState, require_file, shown
from unlearn_jax.evaluation import Predictions

T = TypeVar('T')
FORGET, TRAINED = 'forget.txt', 'trained.txt'  # An id a line.
REFERENCE = 'reference'  # A Retrain by which attacks judge.
RECORD, PREDICTIONS = 'record.json', 'logits.npz'


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a source or a Retrain was trained."""

  optimizer: str
  epochs: int
  learning_rate: float
  batch_size: int
  augment: bool

  @classmethod
  def of(cls, recipe: recipes.Recipe) -> 'Recipe':
    """What is kept of it: the optimiser's name in its place."""
    return cls(recipe.optimizer.__name__, *recipe[1:])


@dataclasses.dataclass(frozen=True)
class Code:
  """What made a stage."""

  version: str  # of the package
  # Of the checkout, '+' where it was changed since; None elsewhere.
  commit: str | None
  source_sha256: str  # over the files of the library and of stages
  jax: str  # its version
  device: str  # kind and number
  threads: int  # that the process could use
  numerics: str = ''  # settings of JAX by which numbers differ


@dataclasses.dataclass(frozen=True)
class Facts:
  """What every manifest says of data and model."""

  model: str
  width: int
  num_classes: int
  data_fingerprint: str
  image_shape: list[int] = dataclasses.field(default_factory=list)
  pixel_mean: list[float] = dataclasses.field(default_factory=list)
  pixel_std: list[float] = dataclasses.field(default_factory=list)
  dataset: str = ''
  train_subset: int | None = None
  test_fraction: float | None = None
  image_size: str | None = None  # as --image_size says it
  canaries: int = 0  # Images that coins added noise to, or did not.
  dtype: str = 'float32'
  # Of the file of a model of one's own; None of ours.
  model_sha256: str | None = None
  patch_size: int | None = None  # of a transformer

  @property
  def network(self) -> str:
    """As a person calls it: `cnn, width 16`."""
    patches = f', patches of {self.patch_size}' if self.patch_size else ''
    width = f', width {self.width}' if self.width else ''
    return self.model + width + patches

  @property
  def key(self) -> list[object]:
    """What a trained model depends on."""
    own = [self.model, self.width, self.num_classes, self.data_fingerprint]
    return [*own, self.dtype, *([self.patch_size] if self.patch_size else [])]


@dataclasses.dataclass(frozen=True)
class Manifest(Facts):
  """What a manifest says of a stage; a foreign one may lack all of it."""

  strategy: str | None = None  # as it is spelled, 'source' or REFERENCE
  recipe: Recipe | None = None  # of source and Retrain
  # Of the strategy.
  parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
  parent_sha256: str | None = None  # of the source's tensors
  forget_sha256: str | None = None  # of the ids of the forget set
  # Of the forget set, in the order of its rows, where they are wrong.
  given_labels: list[int] = dataclasses.field(default_factory=list)
  # Whether attacks hold it against test images of its classes, or all of them.
  class_matched: bool = False
  heldout: float = 0.0  # share of the test images that nothing is judged by
  seed: int | None = None  # of source or unlearning
  state_sha256: str = ''  # of its own tensors
  code: Code | None = None  # what made it
  wall_seconds: float = 0.0  # that went into it, those of killed processes too
  # Whether somebody stopped the process meanwhile.
  stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Epoch:
  """A row of a training's curve; see `snapshots.Epoch`."""

  epoch: int
  loss: float | None
  seconds: float
  forget_accuracy: float | None = None
  retain_accuracy: float | None = None
  js_to_source: float | None = None


@dataclasses.dataclass(frozen=True)
class Record:
  """How a model came about."""

  history: list[Epoch]  # its curve, epoch 0 first; empty for a foreign model
  compile_seconds: float = 0.0  # of compilation
  selection_seconds: float = 0.0  # before the clock of the history starts
  # Of the source, which the stop rule refers to.
  source_retain_accuracy: float = 0.0
  # Scalars that were changed, by tensor.
  by_tensor: dict[str, int] = dataclasses.field(default_factory=dict)
  perturbation_js: float = 0.0  # bits by which that moved held-out outputs


@dataclasses.dataclass(frozen=True)
class Finished:
  """A model that is there."""

  path: pathlib.Path  # its checkpoint
  state: ModelState  # the model
  manifest: Manifest  # what is said of it
  record: Record  # how it came about
  # Of every example of every split; of a source, all of D lies in `retain`, in
  # the order of the data set. None where another program has made the model.
  predictions: Predictions | None


def contents(record: Any, **arrays: np.ndarray) -> dict[str, bytes]:
  """The files of a stage beside its checkpoint."""
  # Numbers of NumPy are numbers, too.
  text = msgspec.json.encode(record, enc_hook=lambda number: number.item())
  found = {RECORD: msgspec.json.format(text, indent=1)}
  if arrays:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    found[PREDICTIONS] = buffer.getvalue()
  return found


@functools.lru_cache(maxsize=16)
def load(path: pathlib.Path) -> Finished:
  """Reads a finished model."""
  state, said = checkpoints.restore(path)
  if not (path / RECORD).exists() and 'depends' not in said:
    return Finished(path, state, manifest(path), Record([]), None)
  record = read_record(path, Record)
  if PREDICTIONS not in said['files_sha256']:  # It kept probabilities.
    return Finished(path, state, manifest(path), record, None)
  try:
    require_file(path / PREDICTIONS)
    with np.load(path / PREDICTIONS, allow_pickle=False) as arrays:
      predictions = Predictions(*(arrays[n] for n in Predictions._fields))
  # zipfile, NumPy and missing-key errors have no common type but this.
  except Exception as error:
    raise checkpoints.refusal(path, error) from error
  return Finished(path, state, manifest(path), record, predictions)


def manifest(path: pathlib.Path) -> Manifest:
  """What the manifest of a checkpoint says, its types checked."""
  found = checkpoints.read_manifest(path)
  try:
    return msgspec.convert(found, Manifest)
  except (msgspec.MsgspecError, UnicodeError) as error:
    raise InputError(f'{path}: manifest.json: {shown(error)}') from error


def require(path: pathlib.Path, **expected: Any) -> None:
  """Refuses a checkpoint whose manifest says something else."""
  said = manifest(path)
  for name, value in expected.items():
    if (own := getattr(said, name)) != value:
      raise InputError(
        f'checkpoint {path} was made with {name}={shown(repr(own))},'
        f' allowed here: {value!r}'
      )


def read_record(path: pathlib.Path, kind: type[T]) -> T:
  """The record of a finished stage."""
  try:
    require_file(path / RECORD)
    return msgspec.json.decode((path / RECORD).read_bytes(), type=kind)
  except (OSError, ValueError, RecursionError) as error:
    raise checkpoints.refusal(path, error) from error
