r"""Finds a rate for each method, on forget sets that are not the judged ones.

  python -m experiments.tune --strategies='finetune, scratch, salun' --trials=6
  python -m experiments.unlearn --tuned=runs/digits-cnn/tuned.json \
      --strategies='retrain, finetune, scratch, salun'

Each strategy is run with so many values of one parameter of its own, the same
number for all, on forget sets of seeds of their own with Retrains of their own;
the value with the smallest mean gap to Retrain is written down, of those that
do not damage the model: one with retain accuracy below Retrain's by more than
half a point, and than Retrain's own range over seeds, is taken only if all are.
"""

import dataclasses
from typing import Any

import msgspec
import numpy as np

from unlearn_jax.base import InputError
from unlearn_jax.strategies import Chosen, closest, parse
from . import config, files
from .config import Trial, Tuned
from .runtime import binary
from .settings import FlagError, Range, setting, taken

# Seeds that `experiments.unlearn` does not reach.
FIRST_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Tune(config.Study):
  """A study of the same strategies with several values."""

  trials: int = setting(6, 'Values that are tried of each.', Range(2, 20))
  knob: str = setting(
    'learning_rate', 'The parameter that is tuned, where a strategy has it.'
  )
  lowest: float = setting(3e-4, 'Its smallest value.', Range(0, ends=False))
  highest: float = setting(0.03, 'And its largest.', Range(0, ends=False))


def variants(own: Chosen, asked: Tune) -> list[Chosen]:
  """The strategy with each value that it allows; itself without the knob."""
  if asked.knob not in own.parameters:
    return [own]
  values = np.geomspace(asked.lowest, asked.highest, asked.trials)
  changes = [own.changed | {asked.knob: float(f'{v:.2g}')} for v in values]
  return [parse(own._replace(changed=new).text)[0] for new in changes]


def check(asked: Tune, every: list[Chosen]) -> None:
  """Refuses what no strategy has, and what is for another binary."""
  known = {name for own in every for name in own.parameters}
  if asked.knob not in known:
    raise FlagError('knob', asked.knob, closest(asked.knob, sorted(known)))
  if asked.highest < asked.lowest:
    raise FlagError('highest', asked.highest, f'--lowest={asked.lowest:g} up')
  if asked.degree:
    raise FlagError('degree', 'true', 'only with experiments.unlearn')


def main(asked: Tune) -> None:
  """From strategies to a file of their values."""
  from unlearn_jax import parallel
  from .runtime.progress import say
  from .study import planning, results, study
  from .workdir.directory import Workdir

  chosen, draws = asked.methods.chosen, asked.draws
  check(asked, chosen)
  if draws.seed == config.Seeds().seed:
    draws = dataclasses.replace(draws, seed=FIRST_SEED)
  own = taken(config.Study, asked, draws=draws)
  tried = {c.text: variants(c, asked) for c in chosen if c.name != 'retrain'}
  every = [*parse('retrain'), *(v for own in tried.values() for v in own)]
  root = study.root_of(own)
  plan = planning.plan(own, root, every)
  workdir = Workdir(root, study.identity(plan.setup))
  found = study.compute(own, plan, workdir)
  best: dict[str, list[Trial]] = {}
  for text, several in tried.items():
    known = [t for own in several if (t := trial(found, own.text))]
    if not known:
      raise InputError(f'{text}: no value of {asked.knob} gave a gap')
    best[text] = sorted(known, key=lambda own: (own.damaged, own.gap))
    say(told(best[text][0], several))
  seeds = [draws.of('split', run) for run in range(own.seeds)]
  made = Tuned(asked.knob, seeds, best, results.problem(own))
  content = msgspec.json.format(msgspec.json.encode(made), indent=1)
  path = root / 'tuned.json'
  parallel.by_first(lambda: str(files.replace(path, content)))
  say(f'Tuned: {path}')


def trial(found: Any, text: str) -> Trial | None:
  """What a strategy came to, over the seeds; None where one has no gap."""
  from .report import judging

  gap = found.whole(text, judging.GAP)
  own, its = (found.whole(n, judging.RETAIN) for n in (text, 'retrain'))
  if not gap:
    return None
  return Trial(text, float(np.mean(gap)), judging.lost(own, its))


def told(best: Trial, several: list[Chosen]) -> str:
  """The best of several values, and whether others might be better."""
  ends = {several[0].text, several[-1].text} if len(several) > 1 else ()
  more = ', at an end of its range' if best.strategy in ends else ''
  more += ', damaged at every value' if best.damaged else ''
  return f'{best.strategy}: gap {100 * best.gap:.2f} points{more}'


if __name__ == '__main__':
  binary.run(main, Tune)
