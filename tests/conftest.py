"""Four CPU devices for every test, set before JAX starts its backend.

UNLEARN_JAX_TESTS_ON=cuda takes a GPU in their place: for tests/faults, and for
what tests elsewhere do on one device.
"""

import os
import pathlib
import tempfile

import devices

# Without NPROC the fake devices can starve each other of threads and abort.
os.environ['NPROC'] = '16'
os.environ['JAX_PLATFORMS'] = os.environ.get('UNLEARN_JAX_TESTS_ON', 'cpu')
os.environ['XLA_FLAGS'] = devices.flags(4)

# Both define absl flags when they are imported, and absl's flagsaver forgets
# flags that were defined while it watched.
import array_record.python.array_record_data_source  # noqa: E402, F401
import grain  # noqa: E402, F401
import jax  # noqa: E402
import pytest  # noqa: E402

from unlearn_jax import training  # noqa: E402

# However slow the machine, an epoch is one call, unless a test wants more.
training._CALL_SECONDS = 1e6

# JAX writes its files in place: each of several workers has a cache of its own.
WORKER = os.environ.get('PYTEST_XDIST_WORKER', '')
CACHE = pathlib.Path(tempfile.gettempdir()) / f'unlearn_jax_test_cache{WORKER}'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.hookimpl(optionalhook=True)  # Of pytest-xdist, which is not needed.
def pytest_xdist_make_scheduler(config, log):
  """`pytest -n 2`: a file's tests share what they need, so one worker has them.

  tests/fuzz and tests/faults are one worker's each, because their files start
  from one run. Nobody waits for them at the end: they come in their order, not
  last because they are few.
  """
  from xdist.scheduler import LoadFileScheduling

  config.option.loadscopereorder = False

  class ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid):
      file = nodeid.split('::')[0]
      folder = file.rpartition('/')[0]
      return folder if folder.startswith('tests/') else file

  return ByFile(config, log)


@pytest.fixture(scope='module', autouse=True)
def forget_compiled_programs():
  """Each program maps memory; a whole run's would exceed what Linux allows."""
  yield
  jax.clear_caches()
