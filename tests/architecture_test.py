"""docs/architecture.md and the imports say the same."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import unlearn_jax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {'unlearn_jax': r'\d+', 'experiments': '[a-z]'}
# Lines of Python, and of one module.
MOST = {'unlearn_jax': 13_720, 'experiments': 11_175, 'benchmarks': 950}
MOST_OF_ONE = 450
# Of our modules that the main job loads before its flags are known.
MOST_AT_START = 45


def modules(package):
  """Every module of a package by its dotted name."""
  found = {}
  for path in sorted((ROOT / package).rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    found[name] = path
  return found


ALL = {
  name: path
  for package in (*PACKAGES, 'benchmarks')
  for name, path in modules(package).items()
}


def imports(name):
  """The modules that a module of ours imports, inside of functions too."""
  found, path = set(), ALL[name]
  # `from . import x` counts from the package.
  package = name if path.stem == '__init__' else name.rpartition('.')[0]
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      home = node.module or ''
      if node.level:
        above = package.rsplit('.', node.level - 1)[0]
        home = f'{above}.{home}'.rstrip('.')
      for alias in node.names:
        inner = f'{home}.{alias.name}'
        found.add(inner if inner in ALL else home)
  return {own for own in found if own in ALL and own != name}


def test_the_binaries_depend_on_no_package_called_experiments():
  """Installed they are `unlearn_jax.experiments`, beside the user's own."""
  for name, path in modules('experiments').items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        homes = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        homes = [node.module or ''] * (not node.level)
      else:
        continue
      assert 'experiments' not in {own.split('.')[0] for own in homes}, name


def test_all_that_is_there_is_installed():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  setup, found, left = project['tool']['setuptools'], set(), []
  inner = {'experiments': 'unlearn_jax.experiments'}
  assert setup['package-dir'] == {own: name for name, own in inner.items()}
  for top in PACKAGES:
    for path in (ROOT / top).rglob('*'):
      folder = path.parent
      while not (folder / '__init__.py').exists():
        folder = folder.parent
      package = '.'.join(folder.relative_to(ROOT).parts)
      package = package.replace(top, inner.get(top, top), 1)
      found.add(package)
      own = setup['package-data'].get(package, [])
      is_data = path.is_file() and path.suffix not in ('.py', '.pyc')
      if is_data and path not in {p for o in own for p in folder.glob(o)}:
        left.append(path)
  assert not left
  assert sorted(found) == setup['packages']


def floors(package):
  """What the page says: floors in order, by room."""
  text = (ROOT / 'docs' / 'architecture.md').read_text()
  row = rf'^\| ({PACKAGES[package]}) \| (`\w+`(?:, `\w+`)*) \|'
  found = {}
  for floor, rooms in re.findall(row, text, re.MULTILINE):
    for room in re.findall(r'\w+', rooms):
      assert room not in found, f'{room} is on two floors'
      found[room] = int(floor) if floor.isdigit() else ord(floor)
  return found


def room(name):
  """'data' of 'unlearn_jax.data.images'; '' of a package itself."""
  return (name.split('.') + [''])[1]


@pytest.mark.parametrize('package', PACKAGES)
def test_every_room_has_a_floor(package):
  rooms = {room(name) for name in modules(package)} - {''}
  assert sorted(rooms) == sorted(floors(package))


@pytest.mark.parametrize('package', PACKAGES)
def test_imports_go_down(package):
  table, climbs = floors(package), []
  for name in modules(package):
    for other in imports(name):
      if other.split('.')[0] == package and room(other) != room(name):
        if not table.get(room(other), -1) < table.get(room(name), -1):
          climbs.append(f'{name} imports {other}')
  assert not climbs


@pytest.mark.parametrize('package', [*PACKAGES, 'benchmarks'])
def test_no_modules_import_each_other(package):
  names = modules(package)
  graph = {name: imports(name) & set(names) for name in names}
  while free := [name for name, own in graph.items() if not own]:
    for name in free:
      del graph[name]
    for own in graph.values():
      own -= set(free)
  # What is left imports in a circle, or what does so.
  circle = {
    name for name in graph if any(name in own for own in graph.values())
  }
  assert not circle


def attributes(tree):
  """Dotted names as they are written, 'jax.random.key'."""
  for node in ast.walk(tree):
    parts = []
    while isinstance(node, ast.Attribute):
      parts.append(node.attr)
      node = node.value
    if parts and isinstance(node, ast.Name):
      yield '.'.join([node.id, *reversed(parts)])
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield from re.findall(r'\bjax(?:lib)?(?:\.\w+)*\._\w+', node.value)


def hidden(name):
  parts = name.split('.')
  ours = {'jax', 'jaxlib', 'jnp', 'flax', 'optax', 'orbax', 'ocp', 'nn'}
  return parts[0] in ours and any(
    part.startswith('_') and not part.endswith('__') for part in parts[1:]
  )


@pytest.mark.parametrize('name', ALL)
def test_nothing_private_of_jax_is_used(name):
  tree = ast.parse(ALL[name].read_text())
  assert not [own for own in attributes(tree) if hidden(own)]


def test_what_is_private_would_be_found():
  lines = 'import jax._src.core', 'from jax._src import xla', 'jax.a._b()'
  for line in (*lines, "f('jax._src.config')", 'from jax import _src'):
    assert any(map(hidden, attributes(ast.parse(line)))), line
  assert not any(map(hidden, attributes(ast.parse('self._x; jax.__name__'))))


def test_only_parallel_knows_pmap():
  for name, path in ALL.items():
    if name != 'unlearn_jax.parallel':
      assert 'jax.pmap' not in attributes(ast.parse(path.read_text())), name


@pytest.mark.parametrize('name', modules('unlearn_jax'))
def test_the_library_prints_nothing_and_knows_no_binary(name):
  tree = ast.parse(ALL[name].read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id != 'print'
  named = {own.split('.')[0] for own in attributes(tree)}
  assert not named & {'experiments', 'benchmarks', 'absl', 'flags'}


def test_every_public_function_has_an_example():
  for name in unlearn_jax.__all__:
    thing = getattr(unlearn_jax, name)
    if inspect.isfunction(thing):
      assert '>>> ' in (thing.__doc__ or ''), name


def test_every_main_fits_on_a_screen():
  mains = []
  for path in (ROOT / 'experiments').glob('*.py'):
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and node.name == 'main':
        mains.append(path.stem)
        assert node.end_lineno - node.lineno < 40, path
  wanted = {'unlearn', 'train', 'tune', 'evaluate', 'reproduce', 'table1'}
  wanted |= {'adopt', 'audit', 'forget', 'verify'}
  assert wanted <= set(mains)


@pytest.mark.parametrize('package', MOST)
def test_a_package_can_be_read(package):
  lines = {
    name: len(path.read_text().splitlines())
    for name, path in modules(package).items()
  }
  assert sum(lines.values()) <= MOST[package]
  assert not {n: size for n, size in lines.items() if size > MOST_OF_ONE}


def test_the_main_job_loads_few_modules_before_it_knows_its_flags():
  code = (
    'import sys, experiments.unlearn\n'
    "own = [m for m in sys.modules if m.split('.')[0] in"
    " ('experiments', 'unlearn_jax')]\n"
    'print(len(own))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) <= MOST_AT_START
