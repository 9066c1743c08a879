"""The report as data: what report.json holds, and what all pages show."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from unlearn_jax.degree import Run as Generator
from unlearn_jax.metrics import Interval

# The rows that others are held against.
SOURCE, REFERENCE, CONTROL = 'source', 'retrain', 'finetune'
SCRATCH = 'scratch'  # The control that is exact.
NULL = 'null'  # Another Retrain, as far from Retrain as chance alone.
UNJUDGED = 'source', 'reference', NULL  # Roles of what is no strategy.


@dataclass(frozen=True)
class Estimate:
  """A mean over seeds and its 95 % interval, in the metric's own unit."""

  mean: float
  low: float | None = None  # None for a single seed.
  high: float | None = None

  @classmethod
  def of(cls, interval: Interval) -> 'Estimate':
    """The same as a row of a report."""
    return cls(interval.mean, interval.low, interval.high)


@dataclass(frozen=True)
class Curve:
  """A training of one seed, a number an epoch, epoch 0 first."""

  epoch: list[int]
  forget_accuracy: list[float | None]
  retain_accuracy: list[float | None]
  js_to_source: list[float | None]
  seconds: list[float]


@dataclass(frozen=True)
class Row:
  """One strategy over all seeds; a list of numbers has one a seed."""

  strategy: str  # As it is spelled, `top_k(k=0.05)`; 'source' for the source.
  name: str  # Of its factory, `top_k`; 'source' likewise.
  label: str  # What a reader sees.
  # 'source', 'reference', 'null', 'control', 'method' or 'baseline'.
  role: str
  # All of the factory's, and what else it was trained by.
  parameters: dict[str, Any] = field(default_factory=dict)
  # By metric; None where it does not apply.
  values: dict[str, list[float | None]] = field(default_factory=dict)
  # By metric, where every seed has a value; `paired`: minus the control's.
  mean: dict[str, Estimate] = field(default_factory=dict)
  paired: dict[str, Estimate] = field(default_factory=dict)
  control: str = ''  # The row that is; of as many epochs where one is.
  epochs: int | None = None  # At most; None of what trains nothing.
  curves: list[Curve] = field(default_factory=list)  # Of all seeds, or none.
  # When the stop rule held first, None: never; empty where there is no rule.
  stop_epoch: list[int | None] = field(default_factory=list)
  by_tensor: dict[str, float] = field(default_factory=dict)  # Scalars changed.
  warnings: list[str] = field(default_factory=list)
  checkpoints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetFacts:
  """What was learned and forgotten; counts of images."""

  name: str
  train: int
  test: int
  forget: int
  retain: int
  classes: int
  image_shape: list[int]
  fingerprint: str
  heldout: int = 0  # Of the test split, for methods; not among `test`.


@dataclass(frozen=True)
class ModelFacts:
  """The network; sizes are counts of scalars."""

  name: str
  width: int  # Channels of its first layer.
  dtype: str  # Of activations.
  parameters: int
  tensor_sizes: dict[str, int]  # In definition order.
  patch_size: int | None = None  # Of a transformer, in pixels.

  @property
  def wide(self) -> str:
    """' of width 64', where it is a number."""
    patches = f' with patches of {self.patch_size}' if self.patch_size else ''
    return (f' of width {self.width}' if self.width else '') + patches


@dataclass(frozen=True)
class StopRuleFacts:
  """When the clock stopped; `text` says it in words."""

  js_change: float
  retain_share: float
  max_epochs: int
  text: str


@dataclass(frozen=True)
class DegreeRow:
  """The unlearning degree of one strategy, over seeds, or one seed's runs."""

  strategy: str
  label: str
  role: str
  generators: list[list[Generator]]  # By seed.
  unseen: list[list[Generator]]  # On images that no model saw; may be empty.
  degree: Estimate
  gap: Estimate
  excess: Estimate
  unseen_degree: Estimate | None
  difference: Estimate  # Of the degree to the null's.
  p_value: float  # Of a permutation test against the null.
  verdict: str  # 'separates', 'does not separate' or 'cannot tell'.


@dataclass(frozen=True)
class DegreeFacts:
  """The unlearning degrees within one bound, and the null's."""

  max_perturbation: float | None  # L∞, in [0, 1] of the pixel range.
  settings: dict[str, Any]  # Of the generators.
  generators: int  # A pair of models.
  seeds: int
  null: list[list[Generator]]  # Of (M, M′), M′ of another seed.
  null_degree: Estimate
  rows: list[DegreeRow]


@dataclass(frozen=True)
class Report:
  """Everything that report.json holds."""

  command: str
  config: dict[str, Any]  # Every flag, by name.
  environment: dict[str, Any]  # Versions, device and commit.
  dataset: DatasetFacts
  model: ModelFacts
  stop_rule: StopRuleFacts
  seeds: list[int]  # The number of each run.
  rows: list[Row]  # The source first, then in the order of the command.
  tuned: str = ''  # What was tuned elsewhere, and how.
  warnings: list[str] = field(default_factory=list)
  degree: list[DegreeFacts] = field(default_factory=list)
  schema: int = 2

  def row(self, name: str) -> Row | None:
    """The first row of that factory, or None where it was not run."""
    return next((row for row in self.rows if row.name == name), None)

  @property
  def control(self) -> Row | None:
    """Plain fine-tuning (K = 0): with defaults, or else the first."""
    rows = [row for row in self.rows if row.name == CONTROL]
    return min(rows, key=lambda row: row.strategy != CONTROL, default=None)

  def control_of(self, row: Row) -> Row | None:
    """The control that a row is held against."""
    named = (own for own in self.rows if own.strategy == row.control)
    return next(named, self.control)


def to_json(value: Any) -> bytes:
  """Dataclasses as JSON that any parser reads; NaN and infinity become null."""
  plain = _encodable(msgspec.to_builtins(value))
  return msgspec.json.format(msgspec.json.encode(plain), indent=2)


def _encodable(value: Any) -> Any:
  """Without bytes of a path that are no UTF-8."""
  if isinstance(value, dict):
    return {_encodable(key): _encodable(own) for key, own in value.items()}
  if isinstance(value, list | tuple):
    return [_encodable(own) for own in value]
  if isinstance(value, str):
    return value.encode('utf-8', 'backslashreplace').decode()
  return value
