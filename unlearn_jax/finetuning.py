"""JS-guided fine-tuning, and the rule that says when unlearning is done."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import parallel, timing, training
from unlearn_jax.base import (
  Batch,
  Examples,
  Key,
  Mask,
  Model,
  ModelState,
  Splits,
)
from unlearn_jax.data import streaming
from unlearn_jax.divergences import js_divergence
from unlearn_jax.prediction import predict


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


@functools.lru_cache(maxsize=16)
def guided_loss(js_weight: float) -> training.Loss:
  """CE(D_RE) + λ · mean over D_UL of JS(teacher ‖ student) (Eq. 10).

  The paper's Eq. 10 lacks the minus sign of the cross-entropy. The student
  sees D_UL with its running statistics, so that D_UL never enters them.

  Args:
    js_weight: λ ≥ 0.

  Returns:
    A `training.Loss` of two batches, D_RE's and D_UL's with its teacher's
    probabilities as `targets`.
  """

  def loss(
    model: Model, state: ModelState, batches: tuple[Batch, ...]
  ) -> tuple[jax.Array, Any]:
    retain, forget = batches
    retain_loss, batch_stats = training.cross_entropy(model, state, (retain,))
    logits, _ = model.apply(state, forget.images, False)
    student = jax.nn.softmax(logits.astype(jnp.float32))
    assert forget.targets is not None
    divergence = js_divergence(forget.targets, student).mean()
    return retain_loss + js_weight * divergence, batch_stats

  return loss


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
    >>> from unlearn_jax.base import stateless
    >>> every = Examples.of(np.eye(4), np.array([0, 1, 0, 1]))
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.eye(4)[:, :2]})
    >>> sorted(monitor(model, source, splits)(source).items())[0]
    ('forget_accuracy', 0.0)
  """
  forget, retain = _spread(splits.forget, limit), _spread(splits.retain, limit)
  teacher = predict(model, source, forget)

  def measure(state: ModelState) -> dict[str, float]:
    student = predict(model, state, forget)
    return {
      'forget_accuracy': _accuracy(student, forget),
      'retain_accuracy': _accuracy(predict(model, state, retain), retain),
      'js_to_source': float(np.mean(js_divergence(teacher, student))),
    }

  return measure


def _spread(examples: Examples, limit: int) -> Examples:
  if examples.size > limit:
    examples = examples.take(
      np.linspace(0, examples.size - 1, limit).round().astype(np.int32)
    )
  return streaming.gathered(examples)


def _accuracy(probabilities: np.ndarray, examples: Examples) -> float:
  labels = np.asarray(examples.labels)[np.asarray(examples.indices)]
  return float((probabilities.argmax(-1) == labels).mean())


def finetune(
  key: Key,
  model: Model,
  state: ModelState,
  splits: Splits,
  *,
  teacher: ModelState | None = None,
  js_weight: float = 0.1,
  epochs: int = 10,
  batch_size: int = 128,
  forget_batch_size: int | None = None,
  optimizer: optax.GradientTransformation | None = None,
  frozen: frozenset[str] = frozenset(),
  update_mask: Mask | None = None,
  augment: training.Augment | None = None,
  measure: Callable[[ModelState], dict[str, float]] | None = None,
  stop_rule: StopRule | None = None,
  on_epoch: Callable[[training.Epoch], None] | None = None,
  keeper: training.Keeper | None = None,
) -> training.Fit:
  """Trains on D_RE, guided by a teacher on D_UL (Algorithm 1, lines 14–19).

  Runs under `jax.pmap(axis_name='batch')`, one compiled call an epoch.

  Args:
    key: typed PRNG key; it is consumed.
    model: the classifier.
    state: ω', the perturbed model; copied, not donated.
    splits: D_RE to train on, D_UL for the JS term.
    teacher: the model whose outputs on D_UL are matched: the paper's is the
      source. None, or λ = 0, leaves the JS term out.
    js_weight: λ ≥ 0.
    epochs: the most passes over D_RE; 0 returns `state`.
    batch_size: examples of D_RE a step, over all devices.
    forget_batch_size: examples of D_UL a step, over all devices; by default
      an eighth of `batch_size`, rounded down to a multiple of the devices.
    optimizer: Optax; Adam at 1e-3 by default.
    frozen: paths of tensors that stay bit-identical.
    update_mask: only these scalars move (Theorem 1); None moves all.
    augment: applied to D_RE's images, see `training.fit`.
    measure: see `training.fit`; `monitor` makes the one that `stop_rule`
      needs.
    stop_rule: ends the training once it holds; None runs all epochs.
    on_epoch: told of each epoch as it ends.
    keeper: lets an interrupted fine-tuning go on, see `training.fit`.

  Returns:
    The `training.Fit`; its `state` is θ.

  Raises:
    ValueError: λ < 0, or sizes that do not fit.

  Example:
    >>> from unlearn_jax.base import stateless
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 0, 1])
    >>> every = Examples.of(x, y)
    >>> splits = Splits.of(every, np.array([3]), every)
    >>> model = stateless(lambda params, x: x @ params['w'])
    >>> source = ModelState({'w': jnp.zeros((4, 2))})
    >>> with parallel.use(jax.devices()[:1]):
    ...   fit = finetune(jax.random.key(0), model, source, splits,
    ...                  teacher=source, epochs=2, batch_size=2)
    >>> len(fit.history)
    3
  """
  if not js_weight >= 0:
    raise ValueError(f'js_weight={js_weight}, allowed: 0 or more')
  loss: training.Loss = training.cross_entropy
  sets, sizes = [splits.retain], [batch_size]
  spent = compile_seconds = 0.0
  if teacher is not None and js_weight > 0:
    count = len(parallel.devices())
    if forget_batch_size is None:
      forget_batch_size = max(1, batch_size // (8 * count)) * count
    with timing.Stopwatch() as watch:
      targets = predict(model, teacher, splits.forget)
    spent, compile_seconds = watch.seconds, watch.compile_seconds
    sets.append(splits.forget._replace(targets=targets))
    sizes.append(forget_batch_size)
    loss = guided_loss(float(js_weight))
  fit = training.fit(
    key,
    model,
    state,
    sets,
    epochs=epochs,
    batch_sizes=sizes,
    optimizer=training.adam(1e-3) if optimizer is None else optimizer,
    loss=loss,
    frozen=frozen,
    update_mask=update_mask,
    augment=augment,
    measure=measure,
    stop=(lambda h: stop_rule.epoch(h) is not None) if stop_rule else None,
    on_epoch=on_epoch,
    spent=spent,
    keeper=keeper,
  )
  return fit._replace(compile_seconds=fit.compile_seconds + compile_seconds)
