"""`experiments.train`, whose process 1 ends itself at a bad moment.

Process 0 is slow to hear of it: its own work fails first.
"""

import os
import signal
import time

from absl import flags as absl_flags
import jax

from experiments import binary, cluster, flags, problem, train, watch
from unlearn_jax import parallel


def at_call(room, name, number, signum):
  """Has the call of that number give process 1 a signal first."""
  function, calls = getattr(room, name), []

  def doomed(*arguments):
    calls.append(arguments)
    if jax.process_index() == 1 and len(calls) == number:
      os.kill(os.getpid(), signum)
    return function(*arguments)

  setattr(room, name, doomed)


MOMENTS = {
  'loading': (problem, 'draw', 1, signal.SIGTERM),
  'saving': (parallel, 'everywhere', 2, signal.SIGKILL),
  'leaving': (cluster, 'leave', 1, signal.SIGKILL),
}
lost = watch.Watch._lost


def slowly(*arguments):
  time.sleep(2)
  lost(*arguments)


if __name__ == '__main__':
  absl_flags.DEFINE_enum('doom', None, [*MOMENTS], 'When it ends.')
  flags.define_data_and_model()
  flags.define_processes()
  train.define()
  absl_flags.adopt_module_key_flags(train)

  def main():
    at_call(*MOMENTS[absl_flags.FLAGS.doom])
    watch.Watch._lost = slowly
    train.main()

  binary.run(main)
