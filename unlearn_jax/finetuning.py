"""Training on weighted terms, and the rule that says when it is done."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Literal, NamedTuple, cast

import numpy as np
import optax

from unlearn_jax import objectives, parallel, timing, training
from unlearn_jax.base import (
  Array,
  Context,
  Examples,
  Mask,
  Model,
  ModelState,
  Params,
  Splits,
  require,
)
from unlearn_jax.data import streaming
from unlearn_jax.divergences import js_divergence
from unlearn_jax.epoch import Step
from unlearn_jax.objectives import Term
from unlearn_jax.prediction import predict

Optimizer = Literal['adam', 'sgd']
Schedule = Literal['constant', 'cosine']

_MOMENTUM = optax.trace(0.9)


class StopRule(NamedTuple):
  """When unlearning counts as done; the same for every strategy.

  Attributes:
    js_change: bits; the mean JS divergence to the source on D_UL has moved by
      at most this much over the last epoch.
    retain_accuracy: the accuracy on D_RE is at least this, in [0, 1].
  """

  js_change: float = 0.01
  retain_accuracy: float = 0.98

  def epoch(self, history: Sequence[training.Epoch]) -> int | None:
    """The position in `history` of the first epoch that meets the rule."""
    for before, now in zip(history, history[1:]):
      moved = abs(
        now.measured['js_to_source'] - before.measured['js_to_source']
      )
      if (
        moved <= self.js_change
        and now.measured['retain_accuracy'] >= self.retain_accuracy
      ):
        return now.epoch
    return None


@dataclasses.dataclass(frozen=True)
class Budget:
  """What an unlearning may cost; the same for every strategy of a table.

  Attributes:
    epochs: the most passes over D_RE; the stop rule may end it before.
    learning_rate: of the optimiser. The paper has 1e-4 for EU-K and CF-K and
      is silent on the others; one rate for all keeps the rows of a table
      comparable.
    batch_size: examples of D_RE a step, over all devices.
    stop_js_change: bits, see `StopRule`.
    stop_retain_share: of the source's accuracy on D_RE that must be reached;
      above 1 the rule never holds.
    optimizer: 'adam'; or 'sgd', with momentum 0.9 and kernels that decay by
      5e-4 (in most of the field all tensors do).
    schedule: 'constant'; or 'cosine', which anneals the rate to 0 at the last
      step, or, where steps are skipped (SCRUB), not all the way.
  """

  epochs: int = 10
  learning_rate: float = 1e-3
  batch_size: int = 128
  stop_js_change: float = 0.01
  stop_retain_share: float = 0.98
  optimizer: Optimizer = 'adam'
  schedule: Schedule = 'constant'

  def stop_rule(self, source_retain_accuracy: float) -> StopRule:
    """The rule, for a source of this accuracy on D_RE."""
    share = self.stop_retain_share if self.stop_retain_share <= 1 else math.inf
    return StopRule(self.stop_js_change, share * source_retain_accuracy)


def optimizer(
  kind: Optimizer,
  schedule: Schedule,
  transform: optax.GradientTransformation | None,
  learning_rate: float,
  steps: int,
) -> optax.GradientTransformation:
  """A budget's optimiser; rates alone that differ share compiled epochs.

  Args:
    kind: see `Budget.optimizer`.
    schedule: see `Budget.schedule`.
    transform: what gradients go through first, or None.
    learning_rate: the highest.
    steps: of the whole training.

  Returns:
    Optax.

  Example:
    >>> made = optimizer('sgd', 'cosine', None, 0.1, 10)
    >>> made.update is optimizer('sgd', 'cosine', None, 0.2, 10).update
    True
  """
  annealed = max(1, steps) if schedule == 'cosine' else None
  return training.descent(_direction(kind, transform, annealed), learning_rate)


@functools.lru_cache(maxsize=64)
def _direction(
  kind: Optimizer,
  transform: optax.GradientTransformation | None,
  annealed: int | None,
) -> optax.GradientTransformation:
  """What a rate is multiplied by, which falls to 0 in so many steps, or not."""
  parts = [] if transform is None else [transform]
  parts += [training.ADAM] if kind == 'adam' else [training.decay, _MOMENTUM]
  if annealed:
    schedule = optax.cosine_decay_schedule(1.0, annealed)
    parts.append(optax.scale_by_schedule(schedule))
  return parts[0] if len(parts) == 1 else optax.chain(*parts)


def monitor(
  model: Model,
  source: ModelState,
  splits: Splits,
  *,
  limit: int = 2048,
) -> Callable[[ModelState], dict[str, float]]:
  """What is measured after each epoch, for the curves and the stop rule.

  Args:
    model: the classifier.
    source: M, whose outputs on D_UL the JS divergence is taken to.
    splits: D_UL and D_RE.
    limit: at most this many examples of each are looked at, evenly spaced
      over the set; the final evaluation always takes all of them.

  Returns:
    `state -> {'forget_accuracy', 'retain_accuracy', 'js_to_source'}`.

  Example:
    >>> import jax.numpy as jnp
    >>> from unlearn_jax.base import stateless
    >>> every = Examples.of(np.eye(4), np.array([0, 1, 0, 1]))
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.eye(4)[:, :2]})
    >>> sorted(monitor(model, source, splits)(source).items())[0]
    ('forget_accuracy', 0.0)
  """
  forget = streaming.gathered(splits.forget.spread(limit))
  retain = streaming.gathered(splits.retain.spread(limit))
  teacher = predict(model, source, forget)

  def measure(state: ModelState) -> dict[str, float]:
    student = predict(model, state, forget)
    return {
      'forget_accuracy': _accuracy(student, forget),
      'retain_accuracy': _accuracy(predict(model, state, retain), retain),
      'js_to_source': float(np.mean(js_divergence(teacher, student))),
    }

  return measure


def _accuracy(probabilities: np.ndarray, examples: Examples) -> float:
  return float((probabilities.argmax(-1) == examples.own_labels).mean())


@parallel.apart
def minimize(
  context: Context,
  start: ModelState,
  terms: Sequence[Term],
  *,
  epochs: int,
  batch_size: int,
  optimizer: optax.GradientTransformation
  | Callable[[int], optax.GradientTransformation],
  penalty: Callable[[Params, Step], Array] | None = None,
  passes: bool = False,
  frozen: frozenset[str] = frozenset(),
  update_mask: Params | None = None,
  mask: Mask | None = None,
  augment: training.Augment | None = None,
  measure: Callable[[ModelState], dict[str, float]] | None = None,
  stop_rule: StopRule | None = None,
  on_epoch: Callable[[training.Epoch], None] | None = None,
  keeper: training.Keeper | None = None,
) -> training.Fit:
  """Trains a model on weighted terms (Algorithm 1, lines 14–19).

  Runs under `jax.pmap(axis_name='batch')`, one compiled call an epoch.

  Args:
    context: whose examples the terms take; batches are drawn from its key.
    start: ω', the edited model; copied, not donated.
    terms: at least one. An epoch is one pass over the examples of the first;
      those of the others are cycled through.
    epochs: the most passes; 0 returns `start`.
    batch_size: examples of the first term a step, over all devices; in a pass
      over fewer than D_RE down to half of it, so that the fewest are missed.
    optimizer: Optax; or what makes it of the number of all steps, the same
      object for the same number.
    penalty: of the parameters, see `objectives.total`.
    passes: whether an epoch passes over the examples of one term after the
      other, under one optimiser.
    frozen: paths of tensors that stay bit-identical.
    update_mask: only these scalars move (Theorem 1), or see `training.fit`;
      None moves all.
    mask: which scalars masked terms reach.
    augment: see `training.fit`.
    measure: see `training.fit`; `monitor` makes the one that `stop_rule`
      needs.
    stop_rule: ends the training once it holds; None runs all epochs.
    on_epoch: told of each epoch as it ends.
    keeper: lets an interrupted training go on, see `training.fit`.

  Returns:
    The `training.Fit`; its `state` is θ.

  Raises:
    ValueError: sizes that do not fit.
    DivergedError: see `training.fit`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from unlearn_jax.base import stateless
    >>> every = Examples.of(jnp.eye(4), [0, 1, 0, 1])
    >>> splits = Splits.of(every, [3], every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.zeros((4, 2))})
    >>> with parallel.use(jax.devices()[:1]):
    ...   context = Context(jax.random.key(0), model, source, splits)
    ...   fit = minimize(context, source, objectives.guided(), epochs=2,
    ...                  batch_size=2, optimizer=optax.adam(1e-3))
    >>> len(fit.history)
    3
  """
  count = len(parallel.devices())

  def size(term: Term, examples: Examples, passed: bool) -> int:
    wanted = int(min(batch_size * (term.share or 1.0), examples.size))
    if passed and examples.size < context.splits.retain.size:
      # Of D_UL, which may be small, a pass misses as few as can be.
      fewer = range(wanted, wanted // 2, -math.gcd(wanted, 8))
      wanted = max(fewer, key=lambda own: examples.size // own * own)
    return max(1, wanted // count) * count

  with timing.Stopwatch() as watch:
    augments = [augment if term.augmented else None for term in terms]
    sets = [term.examples(context) for term in terms]
    sets = [
      own if changes else objectives.once(context.model, own)
      for own, changes in zip(sets, augments)
    ]
  own = []
  for term, examples in zip(terms, sets):
    if term.share is None:
      share = examples.size / sets[0].size
      allowed = 'a number where share is None'
      require('weight', term.weight, not callable(term.weight), allowed)
      weight = share * cast(float, term.weight)
      term = term._replace(share=share, weight=weight)
    own.append(term)
  passed = [passes or not place for place in range(len(own))]
  sizes = list(map(size, own, sets, passed))
  if own[0].examples is objectives.retained:  # Never fewer in silence.
    sizes[0] = batch_size
  ways = zip(sets, sizes) if passes else [(sets[0], sizes[0])]
  steps = sum(examples.size // size for examples, size in ways)
  # What programs depend on, and are shared by.
  parts = tuple(
    t._replace(examples=objectives.retained, share=1.0, augmented=True)
    for t in own
  )
  fit = training.fit(
    context.keys.train,
    context.model,
    start,
    sets,
    epochs=epochs,
    batch_sizes=sizes,
    optimizer=optimizer(epochs * steps) if callable(optimizer) else optimizer,
    loss=objectives.total(parts, penalty),
    passes=passes,
    active=objectives.active(parts, passes),
    frozen=frozen,
    update_mask=update_mask,
    given=mask if any(t.masked for t in terms) else None,
    augment=augments,
    measure=measure,
    stop=(lambda h: stop_rule.epoch(h) is not None) if stop_rule else None,
    on_epoch=on_epoch,
    keeper=keeper,
  )
  return fit._replace(
    preparation_seconds=watch.seconds,
    compile_seconds=fit.compile_seconds + watch.compile_seconds,
  )
