"""What made a result: versions, device, threads and commit."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
from typing import Any, cast

import jax

import unlearn_jax
from unlearn_jax import parallel
from ..workdir.finished import Code

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@functools.cache
def code() -> Code:
  """What makes the stages of this process."""
  sha, library = hashlib.sha256(), pathlib.Path(unlearn_jax.__file__).parent
  for root in library, pathlib.Path(__file__).parent:
    for path in sorted(root.rglob('*.py')):
      name = path.relative_to(root)
      if name.parts[0] != 'experiments':  # These are there if installed.
        sha.update(f'{name}\n'.encode() + path.read_bytes())
  first, own = parallel.devices()[0], cast(Any, jax.config)
  kind = first.device_kind
  if first.platform == 'cpu':
    kind = f'{cpu_name()}, {cores()} cores'
  # Of XLA; a CPU's last bits depend on them.
  threads = os.environ.get('NPROC', '')
  precision = own.jax_default_matmul_precision or 'default'
  wide = ', x64' * own.jax_enable_x64
  return Code(
    version=unlearn_jax.__version__,
    commit=_commit(),
    source_sha256=sha.hexdigest(),
    jax=jax.__version__,
    device=f'{first.platform}: {kind}',
    threads=int(threads) if threads.isdecimal() else cores(),
    numerics=f'{own.jax_default_prng_impl}, {precision} matmul{wide}',
  )


def environment() -> dict[str, Any]:
  """Versions, device and commit: what another must know to get the same."""
  devices, made = parallel.devices(), dataclasses.asdict(code())
  return {
    'unlearn_jax': made.pop('version'),
    'git_commit': made.pop('commit'),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    'python': platform.python_version(),
    'platform': devices[0].platform,
    'devices': len(devices),
    'processes': jax.process_count(),
    **made,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def cores() -> int:
  """Those that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_name() -> str:
  """As the kernel says it, otherwise the architecture."""
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text()
    if found := re.search(r'^model name\s*: *(.*\S)', text, re.MULTILINE):
      return found[1]
  return platform.processor() or platform.machine()


def _commit() -> str | None:
  """The commit of the checkout that runs, '+' where it was changed since."""
  here = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', *arguments], cwd=here, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    own = pathlib.Path(__file__).name
    git('ls-files', '--error-unmatch', own)  # Not of what it lies in.
    dirty = '+' if git('status', '--porcelain', '--', '*.py') else ''
    return git('rev-parse', 'HEAD') + dirty
  except (OSError, subprocess.CalledProcessError):
    return None
