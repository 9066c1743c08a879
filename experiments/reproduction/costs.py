"""What stages will cost: from a short calibration, seconds and FLOPs.

FLOPs are those of `flops`: 6 a multiply-accumulate for training on an image, 2
for predicting one. Seconds are upper estimates, because a stop rule may end a
training at any epoch.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import files, flops, problem, results
from experiments.reproduction import tasks
from experiments.reproduction.presets import Preset, Problem
from experiments.reproduction.tasks import Task
from unlearn_jax import timing, training
from unlearn_jax.base import require_file
from unlearn_jax.prediction import predict

_STEPS = 4  # of a calibration's epoch
_LIMIT = 2048  # images that `finetuning.monitor` looks at, of each set
_JS = 1 / 8  # images of D_UL to one of D_RE, see `finetuning.finetune`
# A training step of a net of which only the last tensors move, over that of
# the whole: the forward pass and little else. 0.44 was measured for ResNet18.
_FROZEN = 0.45
# Of a generator's step over a classifier's: forward and backward through two
# classifiers, weights' gradients left out, and through G.
_GENERATOR = 2.0
_OVERHEAD = 0.5  # seconds to write and to read a checkpoint, and the like


class Rates(NamedTuple):
  """What a problem costs on this machine.

  Attributes:
    train: seconds a training image.
    predict: seconds a predicted image.
    compile: seconds to compile one training program.
    macs: multiply-accumulates of a forward pass of one image.
    images: of D.
    test: test images.
  """

  train: float
  predict: float
  compile: float
  macs: int
  images: int
  test: int


class Cost(NamedTuple):
  """Of a stage.

  Attributes:
    seconds: at most, by the rates.
    flops: of the networks, at most.
  """

  seconds: float
  flops: float


def calibrate(setup: problem.Setup, preset: Preset) -> Rates:
  """Trains a few steps and predicts a few images."""
  dataset = setup.dataset
  size = preset.batch_size
  count = min(_STEPS, dataset.train.size // size) * size
  few = dataset.train.take(np.arange(count))
  fit = training.train(
    jax.random.key(0), setup.model, few, epochs=3, batch_size=size
  )
  first, last = fit.history[1].seconds, fit.history[-1].seconds
  predict(setup.model, fit.state, few)
  with timing.Stopwatch() as watch:
    predict(setup.model, fit.state, few)
  return Rates(
    train=(last - first) / (2 * count),
    predict=watch.seconds / count,
    compile=fit.compile_seconds,
    macs=flops.forward_macs(setup.model, dataset.image_shape),
    images=dataset.train.size,
    test=dataset.test.size,
  )


class Calibration:
  """The rates of each problem, measured once a kind of machine and kept."""

  def __init__(self, root: pathlib.Path, preset: Preset):
    """Nothing is read or measured yet."""
    self._path, self._preset = root / 'calibration.json', preset

  def rates(self, which: Problem, setup: problem.Setup, keep: bool) -> Rates:
    """Of a problem on this machine.

    Args:
      which: the problem.
      setup: its data and model.
      keep: whether to write what was measured into the work directory.
    """
    machine = results.environment()
    name = f'{which.name}, {machine["device"]} × {machine["devices"]}'
    known = self._known()
    if name not in known:
      print(f'calibrating {which.name} …', flush=True)
      known[name] = calibrate(setup, self._preset)._asdict()
      if keep:
        text = json.dumps(known, indent=2, sort_keys=True)
        files.replace(self._path, text.encode())
    return Rates(**known[name])

  def _known(self) -> dict[str, Any]:
    try:  # Measured anew, whatever the matter is.
      require_file(self._path)
      known = json.loads(self._path.read_text())
    except (OSError, ValueError, RecursionError):
      return {}
    if not isinstance(known, dict):
      return {}
    return {name: rates for name, rates in known.items() if _are_rates(rates)}


def _are_rates(values: Any) -> bool:
  return (
    isinstance(values, dict)
    and set(values) == set(Rates._fields)
    and all(
      isinstance(value, int | float) and 0 <= value < 1e18
      for value in values.values()
    )
  )


@dataclasses.dataclass
class Estimator:
  """Costs of tasks in the order in which they are asked for.

  A program is compiled once, so that the first task that needs it pays.

  Attributes:
    rates: by problem.
  """

  rates: dict[Problem, Rates]

  def __post_init__(self) -> None:
    self._compiled: set[Any] = set()

  def cost(self, task: Task) -> Cost:
    """At most what the task takes."""
    rates = self.rates[task.problem]
    estimate = {
      tasks.TRAIN: _train,
      tasks.UNLEARN: _unlearn,
      tasks.DEGREE: _degree,
    }[task.kind]
    trained, predicted, share = estimate(task, rates)
    seconds = trained * rates.train * share + predicted * rates.predict
    signature = (task.problem, task.fraction, task.kind, share)
    if signature not in self._compiled:
      self._compiled.add(signature)
      seconds += rates.compile
    work = rates.macs * (_of_step(share) * trained + 2 * predicted)
    return Cost(seconds + _OVERHEAD, work)


def _of_step(share: float) -> float:
  """FLOPs a multiply-accumulate; a frozen net has the forward pass only."""
  return 2.0 if share == _FROZEN else 6.0 * share


def _train(task: Task, rates: Rates) -> tuple[float, float, float]:
  """(images trained on, images predicted, cost of a step over a plain one)."""
  return task.epochs * rates.images, rates.images + rates.test, 1.0


def _unlearn(task: Task, rates: Rates) -> tuple[float, float, float]:
  forget = round(task.fraction * rates.images)
  retain = rates.images - forget
  seen = min(_LIMIT, forget) + min(_LIMIT, retain)
  predicted = (task.epochs + 2) * seen + rates.images + rates.test
  # BatchNorm is re-estimated for what was perturbed, and for the source.
  predicted += 2 * retain + 2 * min(_LIMIT, rates.test)
  trained = task.epochs * retain
  if tasks.is_frozen(task.row):
    return trained, predicted, _FROZEN
  if tasks.is_guided(task.row):
    predicted += forget
    guided = _JS if task.settings.js_weight > 0 else 0.0
    return trained, predicted, 1.0 + guided
  return trained, predicted, 1.0


def _degree(task: Task, rates: Rates) -> tuple[float, float, float]:
  forget = round(task.fraction * rates.images)
  scored = forget + 2 * task.preset.degree_limit
  # Both models on what each generator makes, and on the images themselves.
  predicted = 2 * scored * (task.preset.generators + 1)
  return task.epochs * forget / 2, predicted, _GENERATOR
