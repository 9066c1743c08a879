"""What a shadow model costs over its bare epochs, of the bundled problem."""

import pathlib
import tempfile

from benchmarks.record import shown, spread
from experiments import config
from experiments.runtime.progress import Silent
from experiments.study import auditing, stages, study
from experiments.workdir import directory, finished


def ratios(asked: config.Study, root: pathlib.Path, count: int) -> list[float]:
  """Seconds of a stage over those of its epochs, after one that compiles."""
  plan = auditing.plan(asked, auditing.Game('ulira', 64, 1, 4, 0.05), root)
  directory.Workdir(root, study.identity(plan.setup)).claim()
  for stage in (wanted := [*plan.models.values()][: count + 1]):
    stages.carry_out(stage, Silent())
  made = [(finished.manifest(s.path), finished.load(s.path)) for s in wanted]
  return [a.wall_seconds / b.record.history[-1].seconds for a, b in made[1:]]


if __name__ == '__main__':
  own = pathlib.Path(tempfile.mkdtemp())
  print('goal 1.1:', shown(spread(ratios(config.Study(), own, 8))))
