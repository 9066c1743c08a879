"""One command for all binaries: `unlearn-jax forget --ids=…`.

The same as `python -m experiments.forget --ids=…` in the repository, from any
folder: what is installed is `unlearn_jax.experiments`, and an `experiments` of
the user's own is not in its way. Modules of the folder where it is called are
found, as `--model` and `--strategies` name them.
"""

import ast
import pathlib
import runpy
import sys

_FOLDER = pathlib.Path(__file__).parent
# In the order in which a user meets them.
BINARIES = (
  *('unlearn', 'train', 'adopt', 'tune', 'evaluate', 'audit'),
  *('forget', 'verify', 'reproduce', 'table1'),
)


def main() -> None:
  """Runs the binary that the first argument names, or lists all."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('-h', '--help'):
    print('usage: unlearn-jax COMMAND [--flag=value …]\n')
    print('\n'.join(f'  {name:10} {_first_line(name)}' for name in BINARIES))
    print('\nunlearn-jax COMMAND --help lists the flags of one.')
    return
  if name not in BINARIES:
    allowed = ', '.join(BINARIES)
    print(f'error: {name!r} is no command, allowed: {allowed}', file=sys.stderr)
    raise SystemExit(2)
  del sys.argv[1]
  sys.path.append('')  # Modules of the user's own, but last.
  runpy.run_module(f'{__package__}.{name}', run_name='__main__', alter_sys=True)


def _first_line(name: str) -> str:
  text = (_FOLDER / f'{name}.py').read_text('utf-8')
  return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]


if __name__ == '__main__':
  main()
