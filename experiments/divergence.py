"""Stages whose numbers stop being finite: named, and the last state kept."""

from collections.abc import Iterator
import contextlib
from typing import Any

import numpy as np

from experiments import partials
from unlearn_jax import training
from unlearn_jax.base import InputError

_ADVICE = 'allowed: smaller learning rates and ε'


class StageDivergedError(InputError):
  """A stage whose numbers stopped being finite; the message is one line."""

  def __init__(self, title: str, epoch: int, learning_rate: float, note: str):
    super().__init__(
      f'{title} diverged in epoch {epoch} at learning rate {learning_rate:g}:'
      f' a loss, a parameter or an output is not finite; {note}'
    )


@contextlib.contextmanager
def named(
  title: str, learning_rate: float, partial: partials.Partial
) -> Iterator[None]:
  """Says which stage it was that diverged in a `with` block.

  Args:
    title: of the stage.
    learning_rate: it was trained with.
    partial: keeps its training, and now the last finite state for good.

  Raises:
    StageDivergedError: the training in the block has diverged.
  """
  try:
    yield
  except training.DivergedError as error:
    note = '; '.join(filter(None, (_ADVICE, partial.last_finite())))
    raise StageDivergedError(title, error.epoch, learning_rate, note) from error


def require_finite(
  title: str, learning_rate: float, record: dict[str, Any]
) -> None:
  """The same for outputs, which may overflow where parameters do not.

  Raises:
    StageDivergedError: a number in the record of a stage is not finite.
  """
  for epoch in record['history']:
    numbers = [value for value in epoch.values() if value is not None]
    if not np.isfinite(numbers).all():
      raise StageDivergedError(title, epoch['epoch'], learning_rate, _ADVICE)
  if not np.isfinite(record.get('perturbation_js', 0.0)):
    raise StageDivergedError(title, 0, learning_rate, _ADVICE)
