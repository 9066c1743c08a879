"""Makes a trained model forget, in every way of the paper, and reports on it.

  python -m experiments.unlearn

trains a source and a retrained reference on scikit-learn's digits, unlearns a
tenth of the training images with each strategy and writes a report. It took
64 s on 2 shared CPU cores and ended with `Report: runs/digits-cnn/report.html`
and the sentences that results/cpu/digits/report.md begins with. With --degree
it measures the SPD-GAN unlearning degree of each strategy as well.
"""

import time

from absl import flags as absl_flags
import rich

from experiments import (
  binary,
  degree_section,
  degrees,
  flags,
  generator_flags,
  pipeline,
  problem,
  report,
  results,
  stages,
  tables,
)
from unlearn_jax import parallel


def main() -> None:
  """From flags to a report."""
  start = time.monotonic()
  values = absl_flags.FLAGS
  flags.check(values)
  flags.check_unlearning(values)
  setup = problem.set_up(values)
  workdir = stages.Workdir(
    flags.workdir(values), problem.identity(setup), values.save_seconds
  )
  every = degrees.check(setup) if values.degree else []
  runs = pipeline.runs(setup, workdir)
  measured = degrees.measure(setup, runs, workdir, every) if every else []
  result = results.report(setup, runs, time.monotonic() - start)
  if measured:
    result['degree'] = [degree_section.summary(found) for found in measured]
  names = setup.dataset.class_names
  more = degree_section.pictures(measured, names)
  parallel.by_first(lambda: bool(report.write(result, workdir.root, more)))
  rich.print(tables.rich_summary(result))
  for section in degree_section.sections(result):
    print('\n'.join([f'\n{section.title}', *section.sentences]))
  print(f'Report: {workdir.root / "report.html"}')


if __name__ == '__main__':
  flags.define_data_and_model()
  flags.define_unlearning()
  flags.define_processes()
  generator_flags.define_beside_unlearning()
  binary.run(main)
