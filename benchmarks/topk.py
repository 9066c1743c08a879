"""What exact Top-K costs: ours against the usual ways and the floor.

  python -m benchmarks.topk --out=results/cpu/topk_benchmark.json
  python -m benchmarks.topk --sizes=11173962 --ks=45 --no-torch
  JAX_PLATFORMS=cpu python -m benchmarks.topk --sizes=20000   # a dry run

All ways of `benchmarks/topk_ways.py` take turns on the same gradients, on one
device, in one process. For each size N and each K:

1. seconds, and their ratio, formed within a round, to the floor: the time to
   read every gradient once (on a CPU by all cores). The floor is measured
   twice a round; the second over the first is the control.
2. on a CPU, what the process grows by at its peak in bytes a parameter, the
   mask (1 byte) included; less at a small N, which the allocator has at hand;
3. seconds to compile.

N = 11,173,962 is ResNet18, leaf by leaf; every other N is cut into leaves of
at most 10^8. The numbers are normal. A way that needs more memory than there
is does not run, and one that takes longer than --patience runs once, not in
turns; the record says so.

Cost: on two CPU cores, about ten minutes and 20 GB, most of it the peers'.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import gc
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, topk_ways
from benchmarks.topk_ways import CONTROL, FLOOR
from unlearn_jax import models
from unlearn_jax.timing import Stopwatch

_RESNET18 = 11_173_962
_SIZES = [1_000_000, _RESNET18, 140_000_000, 1_000_000_000]
_LEAF = 10**8


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The flags; ends the program for what is not allowed."""
  parser = record.parser(__doc__)
  sizes = _each(record.at_least(1000))
  parser.add_argument('--sizes', type=sizes, default=_SIZES)
  parser.add_argument('--ks', type=_each(_k), default=[45, 0.05])
  parser.add_argument(
    '--ways', type=_each(str), default=[], help='only those with such a name'
  )
  parser.add_argument('--patience', type=record.at_least(0, float), default=10)
  values = parser.parse_args(arguments)
  values.repeats = values.repeats or 5
  most, least = max(values.ks), min(values.sizes)
  if most > least:
    parser.error(f'argument --ks: {most}, allowed: at most N, here {least}')
  return values


def _each(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
  return lambda text: [read(word) for word in text.split(',')]


def _k(text: str) -> int | float:
  """How many (an int) or which share (a float)."""
  try:
    k: int | float = float(text) if '.' in text else int(text)
  except ValueError:
    k = 0
  if not 0 < k or (isinstance(k, float) and k > 1):
    raise argparse.ArgumentTypeError(
      f'{text}, allowed: whole numbers from 1, and shares in (0, 1]'
    )
  return k


def gradients(size: int, seed: int) -> list[jax.Array]:
  """Normal numbers, `size` in all; as ResNet18's leaves where that fits."""
  if size == _RESNET18:
    model = models.build('resnet18', 10, (32, 32, 3))
    assert model.init is not None
    tree = jax.eval_shape(model.init, jax.random.key(0)).params
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
  else:
    whole, rest = divmod(size, _LEAF)
    shapes = [(_LEAF,)] * whole + ([(rest,)] if rest else [])
  rng = np.random.default_rng(seed)
  drawn = (rng.standard_normal(shape, np.float32) for shape in shapes)
  return jax.block_until_ready([jnp.asarray(x) for x in drawn])


def contest(
  leaves: list[jax.Array], k: int | float, settings: dict[str, Any]
) -> dict[str, Any]:
  """All ways on these gradients: raw rounds, memory, compilation, ratios."""
  size = sum(leaf.size for leaf in leaves)
  number = k if isinstance(k, int) else max(1, round(k * size))
  case: dict[str, Any] = {'size': size, 'k': number, 'k_flag': k, 'ways': {}}

  # What each takes besides time, and whether it can run at all.
  contestants = {}
  found = topk_ways.ways(leaves, number, with_torch=settings['torch'])
  for name, way in found.items():
    words, always = settings['ways'], name in (FLOOR, CONTROL)
    if words and not always and not any(word in name for word in words):
      continue
    facts = case['ways'][name] = _try(name, way, number, size)
    if 'not_run' not in facts:
      contestants[name] = way

  rounds: list[dict[str, float]] = []
  for _ in range(settings['repeats']):
    turn: dict[str, float] = {}
    for name, way in contestants.items():
      slow = rounds and rounds[0][name] > settings['patience']
      if slow and name != FLOOR:
        continue
      gc.collect()
      with Stopwatch() as watch:
        watch.wait(way())
      turn[name] = watch.seconds
    rounds.append(turn)
  case['rounds'] = rounds
  for name in contestants:
    case['ways'][name] |= _ratios(rounds, name)
  return case


def free_bytes() -> int | None:
  """Memory that can still be taken on the device; None where unknown."""
  statistic = jax.devices()[0].memory_stats() or {}
  if 'bytes_limit' in statistic:
    return statistic['bytes_limit'] - statistic['bytes_in_use']
  return _kilobytes('/proc/meminfo', 'MemAvailable')


def _kilobytes(file: str, field: str) -> int | None:
  """A line of a file in /proc, in bytes; None where there is none."""
  try:
    lines = pathlib.Path(file).read_text().splitlines()
  except OSError:
    return None
  (line,) = [line for line in lines if line.startswith(field)]
  return 1024 * int(line.split()[1])


def _try(
  name: str, way: topk_ways.Way, number: int, size: int
) -> dict[str, Any]:
  """What one way takes besides time, or why it cannot run."""
  need, free = topk_ways.NEEDS[name] * size, free_bytes()
  if free is not None and need >= 0.9 * free:
    reason = f'needs {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free'
    return {'not_run': reason}
  facts: dict[str, Any] = {}
  try:
    with Stopwatch() as watch:
      watch.wait(way())
    facts['compile_seconds'] = watch.compile_seconds
    gc.collect()
    with contextlib.suppress(OSError):  # The peak starts anew.
      pathlib.Path('/proc/self/clear_refs').write_text('5')
    before = _kilobytes('/proc/self/status', 'VmRSS')
    masks = jax.block_until_ready(way())
    peak = _kilobytes('/proc/self/status', 'VmHWM')
    if jax.default_backend() == 'cpu' and before and peak:
      facts['bytes_per_parameter'] = (peak - before) / size
    if name not in (FLOOR, CONTROL):
      facts['count_off_by'] = topk_ways.count(masks) - number
  except (RuntimeError, MemoryError) as error:
    facts['not_run'] = f'failed: {str(error).splitlines()[0][:200]}'
  return facts


def _ratios(rounds: list[dict[str, float]], name: str) -> dict[str, Any]:
  """Seconds, and the ratio to the floor, over the rounds a way ran in."""
  turns = [turn for turn in rounds if name in turn]
  ratios = [turn[name] / turn[FLOOR] for turn in turns]
  return {
    'runs': len(turns),
    'seconds': statistics.median(turn[name] for turn in turns),
    'times_the_floor': record.spread(ratios),
  }


def table(result: dict[str, Any]) -> str:
  """One line a way, for people."""
  lines = []
  for case in result['cases']:
    lines.append(f'N = {case["size"]:,}, K = {case["k"]:,}')
    for name, facts in case['ways'].items():
      lines.append(f'  {name:24} {_line(facts, case["size"])}')
  return '\n'.join(lines)


def _line(facts: dict[str, Any], size: int) -> str:
  if 'not_run' in facts:
    return f'not run: {facts["not_run"]}'
  memory, off = facts.get('bytes_per_parameter'), facts.get('count_off_by')
  compiling = facts['compile_seconds']
  cells = [
    f'{record.shown(facts["times_the_floor"]):24} x floor',
    f'{1e9 * facts["seconds"] / size:7.2f} ns a parameter',
    '' if memory is None else f'{memory:4.1f} B',
    f'compiled in {compiling:.1f} s' if compiling > 0.05 else '',
    f'count off by {off:+,}' if off else '',
  ]
  return ', '.join(filter(None, cells))


def run(settings: dict[str, Any], out: pathlib.Path | None) -> dict[str, Any]:
  """The whole benchmark; `out`, if any, is written after each case."""
  jax.config.update('jax_enable_compilation_cache', False)
  result: dict[str, Any] = {
    'what': (__doc__ or '').strip(),
    'settings': settings,
    'environment': record.environment(),
    'torch': record.torch_state(settings['torch']),
    'complete': False,
    'cases': [],
  }
  settings = {**settings, 'torch': result['torch'] == 'takes part'}
  for size in settings['sizes']:
    leaves = gradients(size, settings['seed'])
    for k in settings['ks']:
      result['cases'].append(contest(leaves, k, settings))
      record.write(out, result)
    del leaves
  result['complete'] = True
  record.write(out, result)
  return result


def main() -> None:
  """Measures, prints a table, writes JSON where asked for."""
  settings = vars(parse())
  out = settings.pop('out')
  print(table(run(settings, out)))


if __name__ == '__main__':
  main()
