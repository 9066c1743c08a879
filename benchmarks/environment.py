"""Where and on what a benchmark ran: as much as another run needs."""

import datetime
import hashlib
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

from benchmarks.workers import ROOT
from experiments import machine


def environment(probed: dict[str, Any], load: list[float]) -> dict[str, Any]:
  """Device, host, versions, and which source was measured.

  Args:
    probed: what `benchmarks.jax_worker` answers to `probe`.
    load: the load averages before the start.
  """
  versions = {'python': platform.python_version(), **probed['versions']}
  return {
    'platform': probed['platform'],
    'device': machine.cpu_name()
    if probed['platform'] == 'cpu'
    else probed['device'],
    'devices_present': probed['devices'],
    'devices_used': 1,
    'host': {
      'system': platform.platform(),
      'cpu': machine.cpu_name(),
      'cores': machine.cores(),
      'load_average': load,
    },
    'versions': versions,
    'git': git(),
    'source_sha256': source_digest(),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
  }


def git() -> dict[str, Any] | None:
  """The commit, and whether files differ from it; None outside of git."""

  def ask(*arguments: str) -> str:
    return subprocess.run(
      ['git', *arguments],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    return {
      'commit': ask('rev-parse', 'HEAD'),
      'dirty': bool(ask('status', '--porcelain')),
    }
  except (OSError, subprocess.CalledProcessError):
    return None


def source_digest() -> str:
  """SHA-256 over all that a benchmark runs, for a tree without git."""
  digest = hashlib.sha256()
  for folder in ('unlearn_jax', 'experiments', 'benchmarks'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      digest.update(str(path.relative_to(ROOT)).encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()
