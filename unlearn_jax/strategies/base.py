"""A strategy as data: one edit of the weights, then weighted terms."""

from collections.abc import Callable, Sequence
import functools
import inspect
from typing import Any, Literal, NamedTuple

import optax

from unlearn_jax import training
from unlearn_jax.base import Array, Context, Mask, ModelState, Params, require
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import Teacher, Term, guided

METHOD, CONTROL = 'method', 'control'
BASELINE, REFERENCE = 'baseline', 'reference'


class Edit(NamedTuple):
  """The edited weights, and which of them were chosen.

  Attributes:
    params: like the source's; the very same object where nothing changed.
    mask: boolean tree, true where chosen; None where nothing was.
    scales: float tree that each update of the training is multiplied by; None
      for 1.
  """

  params: Params
  mask: Mask | None = None
  scales: Params | None = None


def keep(context: Context) -> Edit:
  """Edits nothing."""
  return Edit(context.source.params)


class Strategy(NamedTuple):
  """How a model is made to forget.

  Attributes:
    label: what a report calls it.
    role: METHOD, BASELINE, CONTROL or REFERENCE.
    edit: changes the source's weights; BatchNorm's statistics are estimated
      anew on D_RE afterwards, by the caller.
    terms: what is minimised then; (): nothing is trained.
    penalty: `(params, step) -> scalar`, added to the terms; the same object
      each time.
    passes: whether an epoch is a pass over the examples of each term, one
      after the other; else one over those of the first, the others beside it.
    transform: what gradients go through before the budget's optimiser, the
      same object each time; None for nothing. One in `optimizer`, or the
      recipe's, does without.
    moves: 'all'; the mask's 'scalars' only; or its 'tensors', all others
      staying bit-identical with their BatchNorm statistics.
    follows: 'budget': epochs and rate of the fine-tuning, ended by the stop
      rule; 'recipe': those by which the source was trained, to the end.
    optimizer: `(learning rate, steps in all) -> Optax`, with the same `update`
      each time, see `training.descent`; None is the budget's, or the recipe's.
    learning_rate: in place of the budget's.
    epochs: likewise.
    needs_retrained: whether `Context.retrained` has to be there.
    pick: `(context, models after epochs 0, 1, …) -> epoch`, whose model is
      kept; None for the last. All of them stay on the devices meanwhile, and
      a training that was stopped is done again from its start.
    needs_heldout: whether `Splits.heldout` has to, with D_UL's classes.
    check: `(params, order) -> None`: raises a `ValueError` if the strategy
      does not fit a model of these shapes, before anything is computed.
  """

  label: str
  role: str = METHOD
  edit: Callable[[Context], Edit] = keep
  terms: tuple[Term, ...] = ()
  penalty: Callable[[Params, Step], Array] | None = None
  passes: bool = False
  transform: optax.GradientTransformation | None = None
  moves: Literal['all', 'scalars', 'tensors'] = 'all'
  follows: Literal['budget', 'recipe'] = 'budget'
  optimizer: Callable[[float, int], optax.GradientTransformation] | None = None
  learning_rate: float | None = None
  epochs: int | None = None
  needs_retrained: bool = False
  pick: Callable[[Context, Sequence[ModelState]], int] | None = None
  needs_heldout: bool = False
  check: Callable[[Any, tuple[str, ...]], None] | None = None


def fresh(context: Context) -> ModelState:
  """A freshly initialised model, the same one throughout an unlearning."""
  return training.initialize(context.keys.fresh, context.model)


def guidance(js_weight: float, js_teacher: Teacher) -> dict[str, Any]:
  """Fields of a strategy that trains by `objectives.guided`."""
  return {
    'terms': guided(js_weight, js_teacher),
    'needs_retrained': js_teacher == 'retrained',
    'needs_heldout': js_teacher == 'heldout',
  }


def trained(factory: Callable[..., Strategy]) -> Callable[..., Strategy]:
  """Lets a factory also be told the rate and the epochs of its training.

  Example:
    >>> @trained
    ... def mine(alpha: float = 1.0) -> Strategy:
    ...   return Strategy('Mine')
    >>> mine(alpha=2.0, epochs=3).epochs
    3
  """

  @functools.wraps(factory)
  def made(
    *values: Any,
    learning_rate: float | None = None,
    epochs: int | None = None,
    **named: Any,
  ) -> Strategy:
    rate_holds = learning_rate is None or 0 < learning_rate < 1
    allowed = 'above 0 and below 1, or None'
    require('learning_rate', learning_rate, rate_holds, allowed)
    holds = epochs is None or 0 <= epochs < 2**31
    require('epochs', epochs, holds, '0 or more, or None')
    strategy = factory(*values, **named)
    return strategy._replace(learning_rate=learning_rate, epochs=epochs)

  own, more = inspect.signature(factory), inspect.Parameter
  added = [
    more(name, more.KEYWORD_ONLY, default=None, annotation=kind)
    for name, kind in _TRAINING.items()
  ]
  parameters = [*own.parameters.values(), *added]
  made.__signature__ = own.replace(parameters=parameters)  # type: ignore
  made.__annotations__ = {**factory.__annotations__, **_TRAINING}
  made.__doc__ = f'{inspect.cleandoc(factory.__doc__ or "")}\n{_TRAINED}'
  return made


_TRAINING = {'learning_rate': float | None, 'epochs': int | None}
_TRAINED = """
Also takes `learning_rate` and `epochs`, of the training; None is the budget's.
A number out of range is a `ValueError`.
"""
