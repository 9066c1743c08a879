r"""Trains a source model on D, or a retrained reference on D_RE.

  python -m experiments.train --dataset=digits --workdir=runs/mine
  python -m experiments.train --dataset=digits --workdir=runs/mine \
      --subset=retain --forget='random(0.1)'

takes seconds on digits, shows the accuracy on D_UL, D_RE and test, and
prints the checkpoint that `experiments.unlearn --source_dir=` (or
`--retrained_dir=`) takes. In a work directory that `experiments.unlearn`
shares, what one of them trained the other does not train again.
"""

import dataclasses

from unlearn_jax.strategies import parse
from . import config
from .runtime import binary
from .runtime.progress import say
from .settings import FlagError, setting, taken
from .study import canaries, engine, planning, shadows, study
from .study import setup as setups
from .workdir.directory import Workdir


@dataclasses.dataclass(frozen=True)
class Train(config.Problem):
  """One source, or one Retrain."""

  subset: str = setting(
    'all', 'all: the source, on D; retain: Retrain, on D_RE.', ('all', 'retain')
  )
  prepare_for_deletion: bool = setting(
    False,
    'Plant --canaries (by default a fifth of D, at most 2000), and keep what'
    ' models of halves of D say of what they never saw: by both'
    ' experiments.forget attacks. Four times half the training.',
  )


def main(asked: Train) -> None:
  """Trains one model, or finds it trained."""
  which = asked.data
  if asked.prepare_for_deletion and asked.data.canaries is None:
    size = setups.load(asked.data, asked.archives).train.size
    canary_count = min(size // 5, 2000)  # Half get noise, an eighth a request.
    which = dataclasses.replace(which, canaries=canary_count)
  # Of no data set labels are made wrong unless that is said.
  forget = config.Forget(asked.forget.forget or 'random(0.1)')
  whole = taken(config.Study, asked, data=which, forget=forget, seeds=1)
  root = study.root_of(whole)
  chosen = parse('retrain') if asked.subset == 'retain' else []
  plan = planning.plan(whole, root, chosen)
  more = [shadows.halves(plan.runs[0].source)] * asked.prepare_for_deletion
  size, most = whole.recipe.batch_size, plan.setup.dataset.train.size // 2
  if more and size > most:
    raise FlagError('batch_size', size, f'at most {most}, half of D')
  workdir = Workdir(root, study.identity(plan.setup))
  found = study.compute(whole, plan, workdir)
  engine.run(more, whole)
  (run,), name = plan.runs, 'retrain' if chosen else 'source'
  for part in ('forget', 'retain', 'test'):
    (share,) = found.whole(name, f'{part}_accuracy')
    say(f'{part:7} accuracy {100 * share:.2f} %')
  path = run.strategies.get(name, run.source).path
  say(f'Checkpoint: {path}')
  if whole.data.canaries and not chosen:
    say(f'Canaries that were planted: {path / canaries.FILE}')


if __name__ == '__main__':
  binary.run(main, Train)
