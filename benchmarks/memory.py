"""Peak memory: of the allocator on a GPU or TPU, of the process on a CPU."""

import contextlib
import pathlib
import resource
from typing import Any

import jax

_STATUS = pathlib.Path('/proc/self/status')


class PeakMemory:
  """Peak memory between this object's making and `read`.

  On a GPU or TPU the allocator says it, from the start of the process on. On
  a CPU it is what the process's peak resident size grew by. That is read
  from /proc where there is one: `getrusage`'s peak starts at the size of the
  *parent* process at the time of its fork.
  """

  def __init__(self, device: jax.Device):
    self._device = device
    with contextlib.suppress(OSError):
      pathlib.Path('/proc/self/clear_refs').write_text('5')
    self._before = _resident('VmRSS')

  def read(self) -> dict[str, Any]:
    """`bytes` and `kind`, in words what they are."""
    statistics = self._device.memory_stats() or {}
    if 'peak_bytes_in_use' in statistics:
      return {
        'bytes': statistics['peak_bytes_in_use'],
        'kind': 'peak_bytes_in_use of the device, data set included',
      }
    return {
      'bytes': _resident('VmHWM') - self._before,
      'kind': "growth of the process's peak resident size over the training,"
      ' data set not included',
    }


def _resident(field: str) -> int:
  """A line of /proc/self/status, in bytes; elsewhere the peak of getrusage."""
  try:
    lines = _STATUS.read_text().splitlines()
  except OSError:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  (line,) = [line for line in lines if line.startswith(field)]
  return 1024 * int(line.split()[1])
