"""Regenerates Section IV of the paper: Tables I and II, Figures 1 and 4 to 9.

  python -m experiments.reproduce --workdir=runs/smoke --preset=smoke

writes `reproduction.md`, `reproduction.html` and `figures/` into the work
directory, and says row by row what was reproduced. Run again, it goes on where
it was. `--dry_run` prints the plan and what it costs; see docs/clusters.md for
several machines that share one plan.
"""

import time

from absl import flags as absl_flags

from experiments import binary
from experiments.reproduction import options, page, plan, runner
from experiments.reproduction.bench import Bench
from experiments.reproduction.claims import Claims
from experiments.reproduction.costs import Calibration
from experiments.reproduction.outlook import Outlook


def main() -> None:
  """From flags to a page, as far as time allows."""
  start = time.monotonic()
  values = absl_flags.FLAGS
  asked = options.read(values)
  wanted = plan.make(asked.preset, asked.only)
  bench = Bench(asked.root, asked.preset, values.data_dir, values.raw_dir)
  if not asked.dry_run:
    workdir = options.identity(asked.root, asked.preset)
    workdir.claim(shared=True)  # As long as it is kept; workers share it.
  left = runner.pending(wanted, bench)
  costs = runner.estimate(
    left, bench, Calibration(asked.root, asked.preset), not asked.dry_run
  )
  lines = runner.describe(wanted, costs, asked.worker.count)
  if asked.dry_run:
    print('\n'.join(lines))
    return
  print(lines[-1], flush=True)
  deadline = options.deadline(asked, start)
  outlook = Outlook(costs, len(wanted.tasks), asked.worker.count, deadline)
  claims = Claims(asked.root / 'claims', asked.owner)
  done = runner.run(wanted, bench, claims, outlook, asked.worker)
  path = page.write(wanted, bench.outcomes, asked.root)
  if not done:
    print('Stopped in time; the same command goes on.')
  print(f'Page: {path}')


if __name__ == '__main__':
  options.define()
  absl_flags.adopt_module_key_flags(options)  # Those that --help shows.
  binary.run(main)
