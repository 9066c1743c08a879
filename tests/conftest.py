"""Four CPU devices for every test, set before JAX starts its backend."""

import os
import pathlib
import tempfile

# Without NPROC the fake devices can starve each other of threads and abort.
os.environ['NPROC'] = '16'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'

# Both define absl flags when they are imported, and absl's flagsaver forgets
# flags that were defined while it watched.
import array_record.python.array_record_data_source  # noqa: E402, F401
import grain  # noqa: E402, F401
import jax  # noqa: E402
import pytest  # noqa: E402

CACHE = pathlib.Path(tempfile.gettempdir()) / 'unlearn_jax_test_cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module', autouse=True)
def forget_compiled_programs():
  """Each program maps memory; a whole run's would exceed what Linux allows."""
  yield
  jax.clear_caches()
