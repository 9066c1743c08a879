"""What made a result: versions, device, threads and commit."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from experiments.workdir.finished import Code
import unlearn_jax
from unlearn_jax import parallel

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@functools.cache
def code() -> Code:
  """What makes the stages of this process."""
  return Code(
    version=unlearn_jax.__version__,
    commit=_commit(),
    source_sha256=_source(),
    jax=jax.__version__,
    device=device(),
    threads=cores(),
  )


def _source() -> str:
  """Hex SHA-256 over the library's files, by their names."""
  sha = hashlib.sha256()
  root = pathlib.Path(unlearn_jax.__file__).parent
  for path in sorted(root.rglob('*.py')):
    if not path.stem.endswith('_test'):
      sha.update(f'{path.relative_to(root)}\n'.encode() + path.read_bytes())
  return sha.hexdigest()


def environment() -> dict[str, Any]:
  """Versions, device and commit: what another must know to get the same."""
  devices = parallel.devices()
  return {
    **{name: _version(name) for name in ('unlearn_jax', *_LIBRARIES)},
    'python': platform.python_version(),
    'platform': devices[0].platform,
    'device': device(),
    'devices': len(devices),
    'processes': jax.process_count(),
    'threads': cores(),
    'git_commit': code().commit,
    'source_sha256': code().source_sha256,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def device() -> str:
  """Platform and kind of the devices."""
  first = parallel.devices()[0]
  kind = first.device_kind
  if first.platform == 'cpu':
    kind = f'{cpu_name()}, {cores()} cores'
  return f'{first.platform}: {kind}'


def cores() -> int:
  """Those that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_name() -> str:
  """As the kernel says it, otherwise the architecture."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    text = ''
  for line in text.splitlines():
    if line.startswith('model name'):
      return line.split(':', 1)[1].strip()
  return platform.processor() or platform.machine()


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'  # It is run from a clone.


@functools.cache
def _commit() -> str | None:
  """The commit of the checkout that runs, '+' where it was changed since."""
  here = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', *arguments], cwd=here, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    dirty = '+' if git('status', '--porcelain', '--', '*.py') else ''
    return git('rev-parse', 'HEAD') + dirty
  except (OSError, subprocess.CalledProcessError):
    return None
