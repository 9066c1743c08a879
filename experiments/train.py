"""Trains a source model on D, or a retrained reference on D_RE.

  python -m experiments.train --dataset=digits --workdir=runs/mine
  python -m experiments.train --dataset=digits --workdir=runs/mine \
      --subset=retain --forget_fraction=0.1

takes seconds on digits, shows the accuracy on D_UL, D_RE and test, and
prints the checkpoint that `experiments.unlearn --source_dir=` (or
`--retrained_dir=`) takes. In a work directory that `experiments.unlearn`
shares, what one of them trained the other does not train again.
"""

import dataclasses

from absl import flags as absl_flags

from experiments import binary, flags, pipeline, problem, stages
from experiments.progress import Progress
from unlearn_jax import parallel
from unlearn_jax.evaluation import compare
from unlearn_jax.strategies import Settings

SUBSETS = ('all', 'retain')


def define() -> None:
  """The flags of this binary alone."""
  absl_flags.DEFINE_string(
    'subset', 'all', 'all: the source, on D; retain: Retrain, on D_RE.'
  )


def main() -> None:
  """Trains one model, or finds it trained."""
  values = absl_flags.FLAGS
  flags.check(values)
  if values.subset not in SUBSETS:
    allowed = flags.closest(values.subset, SUBSETS)
    raise flags.FlagError('subset', values.subset, allowed)
  setup = problem.set_up(values)
  workdir = stages.Workdir(
    flags.workdir(values), problem.identity(setup), values.save_seconds
  )
  splits = problem.draw(setup, 0)
  problem.check_sizes(setup, splits)
  parallel.by_first(workdir.claim)
  wanted = 1 + (values.subset == 'retain')
  progress = Progress(wanted, wanted * values.train_epochs)
  source = pipeline.source_stage(setup, workdir, splits, 0, progress)
  before = pipeline.source_predictions(source, splits)
  stage, predictions = source, before
  if values.subset == 'retain':
    settings = dataclasses.replace(Settings(), batch_size=values.batch_size)
    stage = pipeline.strategy_stage(
      'retrain', setup, workdir, splits, source, None, settings, 0, progress
    )
    predictions = stage.predictions
  result = compare(predictions, before, splits)
  for part in ('forget', 'retain', 'test'):
    share = getattr(result, f'{part}_accuracy')
    print(f'{part:7} accuracy {100 * share:.2f} %')
  print(f'Checkpoint: {stage.path}')


if __name__ == '__main__':
  flags.define_data_and_model()
  flags.define_processes()
  define()
  binary.run(main)
