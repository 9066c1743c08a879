"""docs/architecture.md and the imports say the same."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'unlearn_jax'


def floors():
  text = (ROOT / 'docs' / 'architecture.md').read_text()
  rows = re.findall(r'^\| (\d) \| `(\w+)` \|', text, re.MULTILINE)
  return {room: int(floor) for floor, room in rows}


def rooms():
  return sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.suffix == '.py' or (path / '__init__.py').exists())
    and path.stem != '__init__'
  )


def imports(room):
  """The rooms that a room imports."""
  path = PACKAGE / room
  files = path.rglob('*.py') if path.is_dir() else [path.with_suffix('.py')]
  found = set()
  for file in files:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        parts = node.module.split('.')
        if parts[0] != 'unlearn_jax':
          continue
        if len(parts) > 1:
          found.add(parts[1])
        else:
          found.update(alias.name for alias in node.names)
      elif isinstance(node, ast.Import):
        for alias in node.names:
          if alias.name.startswith('unlearn_jax.'):
            found.add(alias.name.split('.')[1])
  return found - {room}


def test_every_room_has_a_floor():
  assert rooms() == sorted(floors())


@pytest.mark.parametrize('room', rooms())
def test_imports_go_down(room):
  table = floors()
  climbs = {other for other in imports(room) if table[other] >= table[room]}
  assert not climbs, f'{room} imports {climbs}'


def reproduction_rows():
  text = (ROOT / 'docs' / 'architecture.md').read_text()
  found = re.findall(r'^\| ([a-z]) \| (`.+?`) \|', text, re.MULTILINE)
  return {
    room: row for row, rooms in found for room in re.findall(r'\w+', rooms)
  }


def test_imports_of_the_reproduction_go_up_the_page():
  table = reproduction_rows()
  folder = ROOT / 'experiments' / 'reproduction'
  files = [p for p in folder.glob('*.py') if p.stem != '__init__']
  assert sorted(p.stem for p in files) == sorted(table)
  for path in files:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        if node.module == 'experiments.reproduction':
          found |= {alias.name for alias in node.names}
        elif node.module.startswith('experiments.reproduction.'):
          found.add(node.module.split('.')[2])
    climbs = {other for other in found if table[other] >= table[path.stem]}
    assert not climbs, f'{path.stem} imports {climbs}'


def test_only_parallel_knows_pmap():
  for path in PACKAGE.rglob('*.py'):
    if path.stem != 'parallel':
      assert 'jax.pmap(' not in path.read_text().replace(
        'jax.pmap(axis_name', ''
      ), path


def test_the_library_never_imports_the_binaries_or_prints():
  for path in PACKAGE.rglob('*.py'):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        assert node.func.id != 'print', path
      if isinstance(node, ast.ImportFrom):
        assert not (node.module or '').startswith('experiments'), path


def test_every_public_function_has_an_example():
  import inspect

  import unlearn_jax

  for name in unlearn_jax.__all__:
    thing = getattr(unlearn_jax, name)
    if inspect.isfunction(thing):
      assert '>>> ' in (thing.__doc__ or ''), name


def test_every_main_is_short():
  for path in (ROOT / 'experiments').glob('*.py'):
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and node.name == 'main':
        assert node.end_lineno - node.lineno < 40, path
