"""The largest kernels of a `jax.profiler` trace, without further packages."""

import collections
import gzip
import json
import pathlib
from typing import Any

# Loops and calls contain what is listed beside them.
_CONTAINERS = ('while', 'call', 'conditional')


def largest_kernels(folder: str | pathlib.Path, count: int = 3) -> dict:
  """Where the device's time went.

  Args:
    folder: what `jax.profiler.start_trace` was given.
    count: how many kernels are named.

  Returns:
    `kernel_seconds`, the sum over all kernels (streams and threads run side by
    side, so it can exceed the wall time), and `kernels`: `name`, `where`
    in the program where that is known, `calls`, `seconds` and `share` of that
    sum, largest first.

  Raises:
    ValueError: no trace in the folder.
  """
  files = sorted(pathlib.Path(folder).glob('plugins/profile/*/*.trace.json.gz'))
  if not files:
    raise ValueError(f'folder={str(folder)!r}, allowed: one with a trace')
  with gzip.open(files[-1], 'rt') as file:
    events = json.load(file)['traceEvents']
  seconds: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  where: dict[str, str] = {}
  for event in _kernels(events):
    details = event.get('args', {})
    text = details.get('tf_op') or details.get('long_name') or ''
    where.setdefault(event['name'], str(text)[:200])
    seconds[event['name']] += event.get('dur', 0) / 1e6
    calls[event['name']] += 1
  total = sum(seconds.values())
  return {
    'kernel_seconds': total,
    'kernels': [
      {
        'name': n,
        'where': where[n],
        'calls': calls[n],
        'seconds': s,
        'share': s / (total or 1),
      }
      for n, s in seconds.most_common(count)
    ],
  }


def _kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """One event per kernel launch on a GPU or TPU, per operation on a CPU."""
  processes, threads = {}, {}
  for event in events:
    if event.get('ph') == 'M' and event.get('name') == 'process_name':
      processes[event['pid']] = event['args']['name']
    if event.get('ph') == 'M' and event.get('name') == 'thread_name':
      threads[event['pid'], event['tid']] = event['args']['name']
  spans = [event for event in events if event.get('ph') == 'X']
  # Beside the streams stand lines that say the same in other words.
  for line in ('Stream', 'XLA Ops'):
    found = [
      event
      for event in spans
      if '/device:' in processes.get(event['pid'], '')
      and threads.get((event['pid'], event.get('tid')), '').startswith(line)
    ]
    if found:
      return found
  return [
    event
    for event in spans
    if 'hlo_op' in event.get('args', {})
    and not event['name'].startswith(_CONTAINERS)
  ]
