"""`experiments.train`, whose process 1 kills itself in its second save.

Process 0 is slow to hear of it: the save fails there first.
"""

import os
import signal
import time

from absl import flags as absl_flags
import jax

from experiments import binary, flags, train, watch
from unlearn_jax import parallel

everywhere, lost = parallel.everywhere, watch.Watch._lost
saves = []


def doomed(tree):
  saves.append(tree)
  if jax.process_index() == 1 and len(saves) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return everywhere(tree)


def slowly(*arguments):
  time.sleep(2)
  lost(*arguments)


if __name__ == '__main__':
  parallel.everywhere, watch.Watch._lost = doomed, slowly
  flags.define_data_and_model()
  flags.define_processes()
  train.define()
  absl_flags.adopt_module_key_flags(train)
  binary.run(train.main)
