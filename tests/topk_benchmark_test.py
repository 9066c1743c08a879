"""A dry run of `benchmarks.topk`, and what its flags allow."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import record, topk, topk_ways
from benchmarks.topk_ways import CONTROL, FLOOR

ROOT = pathlib.Path(__file__).parent.parent
TOY = '--sizes=20000', '--repeats=2'
SETTINGS = {'ways': [], 'repeats': 3, 'torch': False, 'patience': 10}


@pytest.fixture
def compilation_cache():
  """The benchmark switches it off for its process."""
  yield
  jax.config.update('jax_enable_compilation_cache', True)


@pytest.mark.usefixtures('compilation_cache')
def test_a_toy_run_writes_json(tmp_path, capsys, monkeypatch):
  out = tmp_path / 'topk.json'
  monkeypatch.setattr('sys.argv', ['topk', *TOY, '--no-torch', f'--out={out}'])
  topk.main()
  assert 'ours, NumPy' in capsys.readouterr().out
  result = json.loads(out.read_text())
  assert result['complete'] and result['environment']['jax']
  assert result['environment']['command'].startswith('topk --sizes=20000')
  assert [(c['size'], c['k']) for c in result['cases']] == [
    (20_000, 45),
    (20_000, 1000),
  ]
  for case in result['cases']:
    assert set(case['rounds'][0]) == set(case['ways']) > {FLOOR, CONTROL}
    for name in ('ours, NumPy', 'ours, jit'):
      assert case['ways'][name]['count_off_by'] == 0
      ratio = case['ways'][name]['times_the_floor']
      assert 0 < ratio['min'] <= ratio['median'] <= ratio['max']
    assert case['ways']['ours, jit']['compile_seconds'] > 0
  with pytest.raises(SystemExit):  # Nothing is overwritten.
    topk.main()


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--sizes=10', '1000 or more'),
    ('--sizes=many', '1000 or more'),
    ('--ks=0', 'whole numbers from 1'),
    ('--ks=1.5', 'shares'),
    ('--ks=20001', 'at most N, here 20000'),
    ('--repeats=0', '1 or more'),
    ('--patience=-1', '0 or more'),
  ],
)
def test_wrong_flags_are_named(flag, message, capsys):
  with pytest.raises(SystemExit):
    topk.parse([*TOY, flag])
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('with_torch', [False, True])
def test_every_way_chooses_the_same(with_torch):
  if with_torch:
    pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  leaves = [
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((40, 50), (3000,))
  ]
  found = topk_ways.ways(leaves, 100, with_torch=with_torch)
  assert set(found) <= set(topk_ways.NEEDS)
  assert with_torch == ('torch.topk' in found)
  masks = {
    name: np.concatenate([np.asarray(m).reshape(-1) for m in way()])
    for name, way in found.items()
    if name not in (FLOOR, CONTROL)
  }
  for name, mask in masks.items():
    np.testing.assert_array_equal(mask, masks['ours, NumPy'], name)


@pytest.mark.parametrize('patience, runs', [(1e-9, 1), (1e9, 3)])
def test_a_slow_way_runs_once(patience, runs):
  settings = {**SETTINGS, 'ways': ['NumPy partition'], 'patience': patience}
  case = topk.contest([jnp.ones(2000)], 45, settings)
  assert set(case['ways']) == {CONTROL, 'NumPy partition', FLOOR}
  assert case['ways']['NumPy partition']['runs'] == runs
  assert case['ways'][FLOOR]['runs'] == 3


def test_what_does_not_fit_is_not_run(monkeypatch):
  monkeypatch.setattr(topk, 'free_bytes', lambda: 10**6)
  settings = {**SETTINGS, 'ways': ['argpartition']}
  case = topk.contest([jnp.ones(100_000)], 45, settings)
  reason = case['ways']['NumPy argpartition']['not_run']
  assert reason == 'needs 0 GB, 0 GB are free'
  assert FLOOR in case['rounds'][0]


def markdown(result):
  """Times over the floor as `docs/selection.md` has them."""
  cases = result['cases']
  head = ['way']
  for case in cases:
    exponent = int(math.log10(case['size']))
    size, k = f'{case["size"] / 10**exponent:.3g}·10^{exponent}', case['k_flag']
    head.append(f'N = {size}, K = {k if k >= 1 else f"{100 * k:g} %"}')
  lines = [head, ['---'] + ['---:'] * len(cases)]
  for name in dict.fromkeys(name for case in cases for name in case['ways']):
    lines.append([name, *(cell(case, name) for case in cases)])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def cell(case, name):
  turns = [turn for turn in case['rounds'] if name in turn]
  if not turns:
    return '–'
  if name == FLOOR:
    seconds = np.median([turn[name] for turn in turns])
    return f'{1e9 * seconds / case["size"]:.2g} ns'
  ratio = record.spread([turn[name] / turn[FLOOR] for turn in turns])
  return record.shown(ratio) if len(turns) > 1 else f'{ratio["min"]:.3g}, once'


def test_the_page_on_selection_shows_what_was_measured():
  page = (ROOT / 'docs' / 'selection.md').read_text()
  files = sorted((ROOT / 'results').rglob('topk_benchmark*.json'))
  assert files
  for path in files:
    assert markdown(json.loads(path.read_text())) in page, path
