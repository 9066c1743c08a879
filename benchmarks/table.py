"""The result of a benchmark on one screen, with rich or without."""

from collections.abc import Callable
import math
from typing import Any

MISSING = '–'
Found = dict[str, Any]


def show(result: dict[str, Any]) -> None:
  """Prints a column a model: the median over rounds, and least–most."""
  settings, machine = result['settings'], result['environment']
  title = (
    f'Training on {machine["device"]}, {settings["dtype"]},'
    f' batch {settings["batch_size"]}, {settings["images"]} images:'
    f' median of {settings["repeats"]} interleaved rounds, least–most'
  )
  header = ['', *result['models']]
  rows = [
    [label, *(_cell(write, found) for found in result['models'].values())]
    for label, write in _ROWS.items()
  ]
  try:
    _rich(title, header, rows)
  except ImportError:
    print(title)
    for row in (header, *rows):
      print(' | '.join(cell.replace('\n', ' ') for cell in row))
  for warning in result['warnings']:
    print(f'warning: {warning}')
  for name, found in result['models'].items():
    if 'error' in found:
      print(f'{name} failed: {found["error"]}')
    for kernel in found.get('profile', {}).get('kernels', []):
      share, kernel_name = 100 * kernel['share'], kernel['name'][:60]
      print(f'{name}: {share:.1f} % of the kernel time in {kernel_name}')


def markdown(result: dict[str, Any]) -> str:
  """The same as a Markdown table: a row a model, the range in brackets."""
  header = ['model', *(label.replace('\n', ' ') for label in _ROWS)]
  lines = [header, ['---', *('---:' for _ in _ROWS)]]
  for name, found in result['models'].items():
    cells = (_cell(write, found) for write in _ROWS.values())
    lines.append([name, *(_bracketed(cell) for cell in cells)])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _bracketed(cell: str) -> str:
  middle, _, spread = cell.partition('\n')
  return f'{middle} ({spread})' if spread else middle


def _rich(title: str, header: list[str], rows: list[list[str]]) -> None:
  import rich
  from rich.table import Table

  table = Table(title=title)
  for name in header:
    table.add_column(name, justify='right' if name else 'left')
  for row in rows:
    table.add_row(*row)
  rich.print(table)


def _cell(write: Callable[[Found], str], found: Found) -> str:
  return write(found) if 'images_per_second' in found else MISSING


def _spread(found: dict[str, float] | None, scale: float = 1) -> str:
  if found is None:
    return MISSING
  middle, low, high = (
    _three(scale * found[key]) for key in ('median', 'min', 'max')
  )
  return f'{middle}\n{low}–{high}'


def _three(value: float | None) -> str:
  """Three significant digits or more, without an exponent."""
  if value is None:
    return MISSING
  magnitude = math.floor(math.log10(abs(value))) if value else 0
  return f'{value:,.{max(0, 2 - magnitude)}f}'


def _percent(share: float | None) -> str:
  return MISSING if share is None else f'{100 * share:.0f} %'


def _seconds(found: Found) -> str:
  cold, cached = (found['compile_seconds'][key] for key in ('cold', 'cached'))
  return f'{_three(cold)} / {_three(cached)}'


def _megabytes(found: Found) -> str:
  peak = found['peak_memory']
  return MISSING if peak is None else f'{peak["bytes"] / 1e6:,.0f}'


_ROWS: dict[str, Callable[[Found], str]] = {
  'images/s': lambda m: _spread(m['images_per_second']['scan']),
  'time, scan/loop': lambda m: _spread(m.get('time_scan_over_loop')),
  'GFLOP/s': lambda m: _spread(m['flops_per_second'], 1e-9),
  'of best matmul': lambda m: _percent(m['share_of_matmul']),
  'compile s,\ncold / cached': _seconds,
  'peak MB': _megabytes,
  'torch images/s': lambda m: _spread(m['images_per_second'].get('torch')),
  'speed, ours/torch': lambda m: _spread(m.get('speed_ours_over_torch')),
}
