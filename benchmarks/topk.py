"""What exact Top-K costs: ours against the usual ways and the floor.

  python -m benchmarks.topk --out=results/cpu/topk_benchmark.json
  python -m benchmarks.topk --sizes=11173962 --ks=45 --torch=no
  JAX_PLATFORMS=cpu python -m benchmarks.topk --toy

All ways of `benchmarks/topk_ways.py` take turns on the same gradients, on one
device, in one process. For each size N and each K:

1. seconds, and their ratio, formed within a round, to the floor: the time to
   read every gradient once (on a CPU by all cores);
2. peak bytes a parameter above the gradients, the mask (1 byte) included: on
   a CPU what the process grows by, elsewhere what XLA plans for the program
   (of PyTorch there, nothing is known);
3. seconds to compile.

N = 11,173,962 is ResNet18, leaf by leaf; every other N is cut into leaves of
at most 10^8. The numbers are normal. A way that needs more memory than there
is does not run, and one that takes longer than --patience runs once, not in
turns; the record says so.

Cost: on two CPU cores, about ten minutes and 20 GB, most of it the peers'.
"""

from collections.abc import Callable, Sequence
import gc
import math
import os
import pathlib
import statistics
from typing import Any

from absl import flags as absl_flags
import jax
import jax.numpy as jnp
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from benchmarks import jax_worker, output, topk_ways
from benchmarks.environment import environment
from benchmarks.memory import PeakMemory
from experiments import binary, figures, files, flags
from unlearn_jax import models
from unlearn_jax.timing import Stopwatch

_RESNET18 = 11_173_962
_SIZES = (1_000_000, _RESNET18, 140_000_000, 1_000_000_000)
_LEAF = 10**8
_TORCH = ('auto', 'yes', 'no')
_DTYPES = ('float32', 'bfloat16')


def define() -> None:
  """The flags of this binary."""
  absl_flags.DEFINE_list('sizes', [str(n) for n in _SIZES], 'N, ascending.')
  absl_flags.DEFINE_list(
    'ks', ['45', '0.05'], 'How many (an int) or which share (a float).'
  )
  absl_flags.DEFINE_list(
    'ways', [], 'Only ways whose name contains one of these; default all.'
  )
  absl_flags.DEFINE_integer('repeats', 5, 'Interleaved rounds.')
  absl_flags.DEFINE_float(
    'patience', 10.0, 'A way that takes more seconds than this runs once.'
  )
  absl_flags.DEFINE_string('dtype', 'float32', 'float32 or bfloat16.')
  absl_flags.DEFINE_string(
    'torch', 'auto', 'Whether PyTorch takes part: auto, yes or no.'
  )
  output.define('JSON file; a plot is put beside it. Default none.')
  absl_flags.DEFINE_bool('toy', False, 'A tiny tree, one round: a dry run.')


def settings(values: Any) -> dict[str, Any]:
  """What is measured; raises `FlagError` for what is not allowed."""
  sizes = _numbers('sizes', values.sizes, int)
  if any(n < 1000 for n in sizes):
    raise flags.FlagError('sizes', ','.join(values.sizes), '1000 or more each')
  ks = _numbers('ks', values.ks, lambda k: float(k) if '.' in k else int(k))
  if any(k <= 0 or (isinstance(k, float) and k > 1) for k in ks):
    allowed = 'whole numbers from 1, and shares in (0, 1]'
    raise flags.FlagError('ks', ','.join(values.ks), allowed)
  if values.repeats < 1:
    raise flags.FlagError('repeats', values.repeats, '1 or more')
  if not values.patience > 0:
    raise flags.FlagError('patience', values.patience, 'seconds above 0')
  for name, words in (('torch', _TORCH), ('dtype', _DTYPES)):
    value = getattr(values, name)
    if value not in words:
      raise flags.FlagError(name, value, flags.closest(value, words))
  if values.torch == 'yes' and not topk_ways.torch_is_installed():
    raise flags.FlagError('torch', 'yes', 'auto or no: torch is not installed')
  return {
    'sizes': [20_000] if values.toy else sizes,
    'ks': ks,
    'ways': list(values.ways),
    'repeats': 1 if values.toy else values.repeats,
    'patience': values.patience,
    'dtype': values.dtype,
    'torch': values.torch != 'no' and topk_ways.torch_is_installed(),
  }


def _numbers(name: str, words: Sequence[str], read: Callable) -> list[Any]:
  try:
    return [read(word) for word in words]
  except ValueError:
    raise flags.FlagError(name, ','.join(words), 'numbers') from None


def gradients(size: int, dtype: str) -> list[jax.Array]:
  """Normal numbers, `size` in all; as ResNet18's leaves where that fits."""
  if size == _RESNET18:
    model = models.build('resnet18', 10, (32, 32, 3))
    assert model.init is not None
    tree = jax.eval_shape(model.init, jax.random.key(0)).params
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
  else:
    whole, rest = divmod(size, _LEAF)
    shapes = [(_LEAF,)] * whole + ([(rest,)] if rest else [])
  rng, leaves = np.random.default_rng(0), []
  for i, shape in enumerate(shapes):
    if jax.default_backend() == 'cpu':
      drawn = jnp.asarray(rng.standard_normal(shape, dtype=np.float32), dtype)
    else:
      drawn = jax.random.normal(jax.random.key(i), shape, dtype)
    leaves.append(jax.block_until_ready(drawn))
  return leaves


def contest(
  leaves: list[jax.Array], k: int | float, chosen: dict[str, Any]
) -> dict[str, Any]:
  """All ways on these gradients: raw rounds, memory, compilation."""
  size = sum(leaf.size for leaf in leaves)
  number = k if isinstance(k, int) else max(1, round(k * size))
  result: dict[str, Any] = {'size': size, 'k': number, 'k_flag': k, 'ways': {}}
  if number > size:
    return {**result, 'error': f'K is {number}, more than N'}
  contestants = {}
  known = topk_ways.ways(leaves, number, with_torch=chosen['torch'])
  for name, (way, compiles) in known.items():
    wanted = chosen['ways']
    if wanted and name != topk_ways.FLOOR:
      if not any(word in name for word in wanted):
        continue
    reason = _too_large(name, size)
    if reason is None:
      result['ways'][name], reason = _try(way, compiles, number, size, name)
    if reason is None:
      contestants[name] = way
    else:
      result['ways'][name] = {'not_run': reason}
  rounds: list[dict[str, float]] = []
  for _ in range(chosen['repeats']):
    turn: dict[str, float] = {}
    for name, way in contestants.items():
      if rounds and rounds[0][name] > chosen['patience']:
        continue
      gc.collect()
      with Stopwatch() as watch:
        watch.wait(way())
      turn[name] = watch.seconds
    rounds.append(turn)
  result['rounds'] = rounds
  return result


def _too_large(name: str, size: int) -> str | None:
  need, free = topk_ways.NEEDS[name] * size, free_bytes()
  if free is None or need < 0.9 * free:
    return None
  return f'needs {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free'


def free_bytes() -> int | None:
  """Memory that can still be taken on the device; None where unknown."""
  statistic = jax.devices()[0].memory_stats() or {}
  if 'bytes_limit' in statistic:
    return statistic['bytes_limit'] - statistic['bytes_in_use']
  try:
    text = pathlib.Path('/proc/meminfo').read_text()
  except OSError:
    return None
  (line,) = [x for x in text.splitlines() if x.startswith('MemAvailable')]
  return 1024 * int(line.split()[1])


def _try(
  way: topk_ways.Way,
  compiles: Callable[[], Any] | None,
  number: int,
  size: int,
  name: str,
) -> tuple[dict[str, Any], str | None]:
  """What one way takes besides time, or why it cannot run."""
  facts: dict[str, Any] = {'compile_seconds': None}
  try:
    if compiles is not None:
      with Stopwatch() as watch:
        memory = compiles().memory_analysis()
      facts['compile_seconds'] = watch.seconds + watch.compile_seconds
      planned = memory.temp_size_in_bytes + memory.output_size_in_bytes
      facts['planned_bytes_per_parameter'] = planned / size
    jax.block_until_ready(way())  # Warms up.
    gc.collect()
    peak = PeakMemory(jax.devices()[0])
    masks = jax.block_until_ready(way())
    if jax.default_backend() == 'cpu':
      facts['peak_bytes_per_parameter'] = peak.read()['bytes'] / size
    if name != topk_ways.FLOOR:
      facts['count_off_by'] = topk_ways.count(masks) - number
  except (RuntimeError, MemoryError) as error:
    return facts, f'failed: {str(error).splitlines()[0][:200]}'
  return facts, None


def summarize(case: dict[str, Any]) -> None:
  """Adds medians and ratios to each way that ran."""
  for name, facts in case['ways'].items():
    turns = [turn for turn in case['rounds'] if name in turn]
    if 'not_run' in facts or not turns:
      continue
    facts['runs'] = len(turns)
    facts['seconds'] = statistics.median(turn[name] for turn in turns)
    facts['times_the_floor'] = statistics.median(
      turn[name] / turn[topk_ways.FLOOR] for turn in turns
    )


def table(result: dict[str, Any]) -> str:
  """One line a way, for people."""
  lines = []
  for case in result['cases']:
    lines.append(f'N = {case["size"]:,}, K = {case["k"]:,}')
    for name, facts in case['ways'].items():
      if 'not_run' in facts:
        lines.append(f'  {name:28} not run: {facts["not_run"]}')
      elif 'seconds' in facts:
        lines.append('  ' + _line(name, facts, case['size']))
  return '\n'.join(lines)


def _line(name: str, facts: dict[str, Any], size: int) -> str:
  memory = facts.get('peak_bytes_per_parameter')
  if memory is None:
    memory = facts.get('planned_bytes_per_parameter')
  compiling, off = facts['compile_seconds'], facts.get('count_off_by')
  cells = [
    f'{1e3 * facts["seconds"]:10.2f} ms',
    f'{1e9 * facts["seconds"] / size:7.2f} ns a parameter',
    f'{facts["times_the_floor"]:7.1f} x floor',
    '' if memory is None else f'{memory:5.1f} B a parameter',
    '' if compiling is None else f'compiled in {compiling:.1f} s',
    f'count off by {off:+,}' if off else '',
  ]
  return ', '.join([f'{name:28}', *filter(None, cells)])


def markdown(result: dict[str, Any]) -> str:
  """Times over the floor as a Markdown table, in brackets ns a parameter."""
  cases = result['cases']
  head = ['way'] + [
    f'N = {_short(case["size"])}, K = {_share(case["k_flag"])}'
    for case in cases
  ]
  lines = [head, ['---'] + ['---:'] * len(cases)]
  for name in dict.fromkeys(name for case in cases for name in case['ways']):
    facts = [case['ways'].get(name, {}) for case in cases]
    cells = [_cell(own, case['size']) for own, case in zip(facts, cases)]
    lines.append([name, *cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _cell(facts: dict[str, Any], size: int) -> str:
  if 'seconds' not in facts:
    return '–'
  nanoseconds = 1e9 * facts['seconds'] / size
  once = '' if facts['runs'] > 1 else ', once'
  return f'{facts["times_the_floor"]:.3g} ({nanoseconds:.2g}{once})'


def _short(size: int) -> str:
  exponent = int(math.log10(size))
  return f'{size / 10**exponent:.3g}·10^{exponent}'


def _share(k: int | float) -> str:
  return str(k) if isinstance(k, int) else f'{100 * k:g} %'


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Seconds over N, both logarithmic, one panel for each K."""
  ks = result['settings']['ks']
  names = list(
    dict.fromkeys(n for case in result['cases'] for n in case['ways'])
  )
  with matplotlib.rc_context(figures.STYLE):
    figure = Figure(figsize=(figures.WIDTH, 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(ks), sharex=True, sharey=True, squeeze=False)[
      0
    ]
    for axes, k in zip(grid, ks):
      cases = [case for case in result['cases'] if case['k_flag'] == k]
      for place, name in enumerate(names):
        points = [
          (case['size'], case['ways'][name]['seconds'])
          for case in cases
          if 'seconds' in case['ways'].get(name, {})
        ]
        if points:
          axes.plot(*zip(*points), label=name, **_look(name, place))
      axes.set(xscale='log', yscale='log', xlabel='N, parameters')
      axes.set_title(f'K = {_share(k)}', loc='left')
      axes.grid()
    grid[0].set_ylabel('seconds')
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper')
  files.replace(path, figures.png(figure))


def _look(name: str, place: int) -> dict[str, Any]:
  """The floor as a dashed line, ours filled, peers open."""
  if name == topk_ways.FLOOR:
    return {'color': figures.BLACK, 'linestyle': '--'}
  own = name.startswith('ours')
  colors = (
    *(figures.BLUE, figures.VERMILLION, figures.GREEN, figures.PURPLE),
    *(figures.ORANGE, figures.SKY, figures.GREY, figures.BLACK),
  )
  return {
    'color': colors[place % len(colors)],
    'marker': 'os^Dv<>P'[place % 8],
    'markerfacecolor': colors[place % len(colors)] if own else 'white',
    'linewidth': 2.0 if own else 1.0,
  }


def run(
  chosen: dict[str, Any], load: list[float], on_progress: Callable
) -> dict[str, Any]:
  """The whole benchmark; `on_progress` is told after each case."""
  jax.config.update('jax_enable_compilation_cache', False)
  result: dict[str, Any] = {
    'settings': chosen,
    'environment': environment(jax_worker.probe(), load),
    'what': (__doc__ or '').strip(),
    'complete': False,
    'cases': [],
  }
  for size in chosen['sizes']:
    leaves = gradients(size, chosen['dtype'])
    for k in chosen['ks']:
      case = contest(leaves, k, chosen)
      summarize(case)
      result['cases'].append(case)
      on_progress(result)
    del leaves
    gc.collect()
  result['complete'] = True
  on_progress(result)
  return result


def main() -> None:
  """Measures, prints a table, writes JSON and a plot where asked for."""
  values, load = absl_flags.FLAGS, list(os.getloadavg())
  chosen = settings(values)
  path = values.out and pathlib.Path(values.out)
  if path and path.suffix != '.json':
    raise flags.FlagError('out', path, 'a .json file')
  picture = path and path.with_suffix('.png')
  for file in (path, picture):
    if file:
      output.require(file, values)
  result = run(chosen, load, lambda so_far: output.write(path, so_far))
  print(table(result))
  if picture:
    plot(result, picture)


if __name__ == '__main__':
  define()
  binary.run(main)
