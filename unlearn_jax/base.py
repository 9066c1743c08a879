"""The types that every other module speaks in.

Words: `source` is the paper's M (parameters ω), `unlearned` its M_UL (θ),
`retrained` its M_RE; `forget` is D_UL, `retain` D_RE, `train` D = D_UL ∪ D_RE.
"""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import stat
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

# The name of the one mapped axis: the data-parallel devices.
AXIS = 'batch'

Params = Any  # A pytree of float arrays.
Mask = Any  # One shaped like it with boolean leaves: true where chosen.
Key = jax.Array  # Typed, as `jax.random.key` makes it.
# `jax.Array`, or a NumPy array where a function says that it takes both.
Array = jax.Array | np.ndarray


class InputError(ValueError):
  """What the user gave cannot be used; the message is one line that says why.

  The binaries print it without a traceback. Everything else is a bug of ours.
  """


def shown(value: Any, most: int = 160) -> str:
  r"""A value on one line of bounded length, whatever is in it.

  Example:
    >>> print(shown('a\nb'), shown('x' * 999, 4))
    a\nb xxxx… (999 characters)
  """
  try:
    text = str(value)
  except ValueError:  # Python does not print integers of any length.
    text = hex(value)
  except RecursionError:
    text = f'a deeply nested {type(value).__name__}'
  tail = f'… ({len(text)} characters)' if len(text) > most else ''
  every = (
    c if c.isprintable() else c.encode('unicode_escape').decode()
    for c in text[:most]
  )
  return ''.join(every) + tail


def require(name: str, value: Any, holds: bool, allowed: str) -> None:
  """Raises a `ValueError` unless an argument is what it has to be.

  Example:
    >>> require('ratio', 2, False, 'above 0 and at most 1')
    Traceback (most recent call last):
    ...
    ValueError: ratio=2, allowed: above 0 and at most 1
  """
  if not holds:
    raise ValueError(f'{name}={shown(repr(value))}, allowed: {allowed}')


def axis_is_bound() -> bool:
  """Whether this is being traced under `pmap` over the device axis."""
  try:
    jax.lax.axis_index(AXIS)
  except NameError:
    return False
  return True


def is_float(leaf: Any) -> bool:
  """Whether a leaf is real numbers; a counter or a PRNG key is none.

  Example:
    >>> is_float(np.ones(2)), is_float(np.arange(2))
    (True, False)
  """
  return jax.numpy.issubdtype(leaf.dtype, np.floating)


def require_floats(name: str, tree: Params) -> None:
  """Raises a `ValueError` unless every leaf of a tree is real numbers.

  Example:
    >>> require_floats('params', {'step': np.int32(3)})
    Traceback (most recent call last):
    ...
    ValueError: params['step'] is int32, allowed: floats
  """
  for path, leaf in zip(tensor_paths(tree), jax.tree.leaves(tree)):
    kind = getattr(leaf, 'dtype', np.dtype(type(leaf)))
    if not jax.numpy.issubdtype(kind, np.floating):
      raise ValueError(f'{name}[{path!r}] is {kind}, allowed: floats')


def require_file(path: str | os.PathLike) -> None:
  """Refuses a path of no file: reading a pipe or a device may never end.

  Raises:
    InputError: it is not there, or is something else.
  """
  try:
    mode = pathlib.Path(path).stat().st_mode
  except FileNotFoundError:
    raise InputError(f'{path}: no such file') from None
  except (OSError, ValueError) as error:  # Of a NUL in it, say.
    why = getattr(error, 'strerror', None) or error
    raise InputError(f'{shown(path)}: cannot be read: {why}') from None
  if stat.S_ISDIR(mode):
    raise InputError(f'{path}: cannot be read: Is a directory')
  if not stat.S_ISREG(mode):
    raise InputError(f'{path}: is a pipe or a device; allowed is a file')


class ModelState(NamedTuple):
  """A trained classifier: source, unlearned and retrained are all this.

  Attributes:
    params: pytree of float arrays.
    batch_stats: pytree of BatchNorm's running statistics and of whatever else
      a network carries along, such as counters and keys; `{}` without any.
  """

  params: Params
  batch_stats: Any = {}


class TrainState(NamedTuple):
  """What training carries from one epoch to the next.

  Attributes:
    model: parameters and BatchNorm statistics.
    opt_state: Optax state, of the trained tensors only.
    key: typed PRNG key that the next epoch is drawn from.
  """

  model: ModelState
  opt_state: optax.OptState
  key: Key


class Batch(NamedTuple):
  """A batch of examples.

  Attributes:
    images: `[B, ...]`, uint8 for image data sets.
    labels: int32 `[B]`.
    targets: float32 `[B, C]` probabilities that a teacher gives, or None.
    key: typed PRNG key of this batch alone, for a loss that draws by lot.
    teacher: a `ModelState` whose outputs on `images` are to be the targets.
  """

  images: Array
  labels: Array
  targets: Array | None = None
  key: Key | None = None
  teacher: ModelState | None = None


class Examples(NamedTuple):
  """A set of examples: the arrays of a whole data set, and which are meant.

  Subsets share `images` and `labels`, so that a split costs one index array.

  Attributes:
    images: `[N, ...]`, uint8 `[N, height, width, channels]` for images; a
      `jax.Array`, a NumPy array, or any host object with `shape`, `dtype`
      and `array[rows]`, such as `np.memmap`.
    labels: int32 `[N]`, each in `[0, C)`.
    indices: int32 `[M]`, the rows that belong to the set, without repeats.
    targets: float32 `[M, C]` probabilities, aligned with `indices`, or None.
    teacher: whose probabilities on the images as augmented are the targets.
  """

  images: Array
  labels: Array
  indices: Array
  targets: Array | None = None
  teacher: ModelState | None = None

  @property
  def size(self) -> int:
    """M, the number of examples in the set."""
    return self.indices.shape[0]

  @property
  def own_labels(self) -> np.ndarray:
    """int32 `[M]` on the host: of the set's examples, in its order."""
    return np.asarray(self.labels)[np.asarray(self.indices)]

  @classmethod
  def of(cls, images: Any, labels: Any) -> 'Examples':
    """All rows of two arrays with the same leading axis.

    Args:
      images: `[N, ...]`, N ≥ 1.
      labels: whole numbers from 0, `[N]` or `[N, 1]`.

    Raises:
      ValueError: others, such as one-hot rows, or another number of them.

    Example:
      >>> Examples.of(np.eye(3), [[0], [1], [1]]).labels.tolist()
      [0, 1, 1]
    """
    images = images if hasattr(images, 'shape') else _array('images', images)
    found, kind = _array('labels', labels), f'{images.dtype}{[*images.shape]}'
    whole = images.ndim > 0 and images.dtype.kind not in 'OUSc'
    require('images', kind, whole, 'numbers [N, ...]')
    if found.ndim == 2 and found.shape[1] == 1:
      found = labels = found[:, 0]
    length = images.shape[0]
    if found.dtype.kind not in 'iu' or found.shape != (length,) or not length:
      raise ValueError(
        f'labels are {found.dtype}{list(found.shape)}, allowed: integers'
        f' [{length or "N ≥ 1"}], one for each row of images'
      )
    for label in (found.min(), found.max()):
      require('labels', int(label), 0 <= label < 2**31, '0 to 2147483647')
    if not isinstance(labels, jax.Array) or labels.dtype != np.int32:
      labels = found.astype(np.int32)
    return cls(images, labels, np.arange(length, dtype=np.int32))

  def take(self, positions: Any) -> 'Examples':
    """Some examples of this set, in the order of `positions`.

    Args:
      positions: integers in `[0, M)`, or a boolean mask `[M]`.

    Raises:
      ValueError: others.
    """
    rows = _rows('positions', positions, self.size)
    targets = None if self.targets is None else self.targets[rows]
    return self._replace(indices=self.indices[rows], targets=targets)

  def spread(self, limit: int) -> 'Examples':
    """At most `limit` of them, evenly spaced over the set."""
    if self.size <= limit:
      return self
    places = np.linspace(0, self.size - 1, limit).round()
    return self.take(places.astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Dataset:
  """An image classification data set in host memory.

  Attributes:
    name: what the user calls it, e.g. `cifar10` or `npz:faces.npz`.
    train: uint8 images `[N, height, width, channels]`, int32 labels `[N]`.
    test: the same for the test split.
    class_names: one per class, in label order; its length is C.
    ids: `[N]`, the stable identifier of each training example (str), in the
      order of `train`; the decimal row number where the source has none.
    fingerprint: hex SHA-256 over images, labels and ids of both splits; two
      data sets with equal fingerprints are equal.
  """

  name: str
  train: Examples
  test: Examples
  class_names: tuple[str, ...]
  ids: np.ndarray
  fingerprint: str

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return tuple(self.train.images.shape[1:])


class Splits(NamedTuple):
  """D and its parts: `forget` and `retain` are disjoint and make up `train`.

  `heldout`, no part of `test`: for methods that need more than D. `truth`: true
  labels of `forget`, int32 `[M]`, where D's are wrong. `unseen`: those of
  `test`, or all, that attacks hold `forget` against.
  """

  train: Examples
  forget: Examples
  retain: Examples
  test: Examples
  heldout: Examples | None = None
  truth: Array | None = None
  unseen: Examples | None = None

  @classmethod
  def of(cls, train: Examples, forget: Array, test: Examples) -> 'Splits':
    """D split by the positions `forget` in `train`; the rest is retained.

    Args:
      train: D, of M examples.
      forget: which are D_UL, but not all: integers in `[0, M)`, each once, or
        a boolean mask `[M]`.
      test: held-out data.

    Raises:
      ValueError: others.

    Example:
      >>> every = Examples.of(np.eye(4), np.arange(4))
      >>> Splits.of(every, np.array([2]), every).retain.indices.tolist()
      [0, 1, 3]
    """
    rows = _rows('forget', forget, train.size)
    values, counts = np.unique(rows, return_counts=True)
    repeated = values[counts > 1].tolist()
    require('forget', repeated[:3], not repeated, 'each example once')
    rest = np.setdiff1d(np.arange(train.size), rows)
    allowed = f'1 to {train.size - 1} of {train.size} examples'
    require('forget', len(rows), 0 < len(rows) < train.size, allowed)
    return cls(train, train.take(rows), train.take(rest), test)


def _array(name: str, given: Any) -> np.ndarray:
  try:
    return np.asarray(given)
  except ValueError:
    raise ValueError(f'{name} are ragged, allowed: an array') from None


def _rows(name: str, given: Any, size: int) -> np.ndarray:
  """int32 row numbers in `[0, size)`; a boolean mask means its true rows."""
  found = _array(name, given)
  if found.dtype == bool and found.shape == (size,):
    return np.flatnonzero(found).astype(np.int32)
  allowed = f'integers from 0 to {size - 1}, or a boolean mask [{size}]'
  if found.ndim != 1 or (found.size and found.dtype.kind not in 'iu'):
    told = f'{found.dtype}{list(found.shape)}'
    raise ValueError(f'{name} are {told}, allowed: {allowed}')
  outside = found[(found < 0) | (found >= size)].tolist()
  require(name, outside[:3], not outside, allowed)
  return found.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Model:
  """A classifier as pure functions, made by `models.build` or by the user.

  Attributes:
    apply: `(state, images, train) -> (logits [B, C], batch_stats)`. With
      `train` true, BatchNorm uses the batch's statistics and returns updated
      running ones; otherwise `batch_stats` comes back as it was.
    init: `key -> ModelState`, freshly initialised; for what starts afresh.
    loss: `(logits [B, C], labels [B]) -> [B]`.
    order: the paths of the tensors of `params` in *definition* order (JAX
      sorts dictionary keys, so it cannot be read off a tree); needed by EU-K
      and CF-K only.
    freeze: `frozen paths -> Model`, whose BatchNorm layers among these keep to
      their running statistics; None where there is nothing to do.
  """

  apply: Callable[[ModelState, Array, bool], tuple[jax.Array, Any]]
  init: Callable[[Key], ModelState] | None = None
  loss: Callable[[Array, Array], jax.Array] = (
    optax.softmax_cross_entropy_with_integer_labels
  )
  order: tuple[str, ...] = ()
  freeze: Callable[[frozenset[str]], 'Model'] | None = None

  def __post_init__(self):
    object.__setattr__(self, 'order', tuple(self.order))


def stateless(
  apply: Callable[[Params, Array], jax.Array], **fields: Any
) -> Model:
  """A `Model` from `apply(params, inputs) -> logits`, without BatchNorm.

  Args:
    apply: pure function from parameters and inputs `[B, ...]` to logits
      `[B, C]`.
    **fields: other fields of `Model`, such as `loss`.

  Returns:
    The model.

  Example:
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> state = ModelState({'w': jax.numpy.eye(2)})
    >>> model.apply(state, jax.numpy.ones((1, 2)), False)[0].tolist()
    [[1.0, 1.0]]
  """
  return Model(_Stateless(apply), **fields)


@dataclasses.dataclass(frozen=True)
class _Stateless:
  """`Model.apply`; equal for one `apply`, so that programs are shared."""

  apply: Callable[[Params, Array], jax.Array]

  def __call__(
    self, state: ModelState, images: Array, train: bool
  ) -> tuple[jax.Array, Any]:
    return self.apply(state.params, images), state.batch_stats


class Context(NamedTuple):
  """All that an unlearning method may look at.

  Attributes:
    key: typed PRNG key of the unlearning, see `keys`.
    model: the classifier.
    source: M, trained on D.
    splits: D_UL, D_RE and held-out data.
    retrained: M_RE, or None where there is none.
  """

  key: Key
  model: Model
  source: ModelState
  splits: Splits
  retrained: ModelState | None = None

  @property
  def keys(self) -> 'Keys':
    """The keys of an unlearning, one a purpose."""
    return Keys(*jax.random.split(self.key, 4))


class Keys(NamedTuple):
  """Typed PRNG keys: to choose, to change, to initialise, and to train."""

  choose: Key
  change: Key
  fresh: Key
  train: Key


def tensor_paths(tree: Params) -> tuple[str, ...]:
  """The '/'-joined path of each leaf, in JAX's (sorted) tree order.

  Example:
    >>> tensor_paths({'dense': {'kernel': 1.0, 'bias': 2.0}})
    ('dense/bias', 'dense/kernel')
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return tuple(
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves
  )
