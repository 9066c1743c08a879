"""A dry run of `benchmarks.topk`, and what its flags allow."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import topk, topk_ways
from experiments import flags

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run(
    [sys.executable, '-m', 'benchmarks.topk', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )


def test_a_toy_run_writes_json_and_a_plot_and_overwrites_nothing(tmp_path):
  out = tmp_path / 'topk.json'
  done = run('--toy', '--torch=no', f'--out={out}')
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'ours, NumPy' in done.stdout
  result = json.loads(out.read_text())
  assert result['complete'] and result['environment']['versions']['jax']
  assert [(c['size'], c['k']) for c in result['cases']] == [
    (20_000, 45),
    (20_000, 1000),
  ]
  for case in result['cases']:
    assert set(case['rounds'][0]) == set(case['ways'])
    for name in ('ours, NumPy', 'ours, jit'):
      assert case['ways'][name]['count_off_by'] == 0
      assert case['ways'][name]['times_the_floor'] > 0
    assert case['ways']['ours, jit']['compile_seconds'] > 0
  assert out.with_suffix('.png').stat().st_size > 10_000
  again = run('--toy', '--torch=no', f'--out={out}')
  assert again.returncode == 2
  assert 'overwrite' in again.stderr + again.stdout


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--sizes=10', '1000 or more'),
    ('--sizes=many', 'numbers'),
    ('--ks=0', 'whole numbers from 1'),
    ('--ks=1.5', 'shares'),
    ('--repeats=0', '1 or more'),
    ('--patience=0', 'seconds above 0'),
    ('--dtype=float8', 'float32'),
  ],
)
def test_flags(flag, message):
  values = {
    'sizes': ['20000'],
    'ks': ['45'],
    'ways': [],
    'repeats': 1,
    'patience': 10.0,
    'dtype': 'float32',
    'torch': 'no',
    'toy': True,
  }
  name, value = flag.removeprefix('--').split('=')
  kind = type(values[name])
  values[name] = value.split(',') if kind is list else kind(value)
  with pytest.raises(flags.FlagError, match=message):
    topk.settings(types.SimpleNamespace(**values))


def test_every_way_chooses_the_same():
  rng = np.random.default_rng(0)
  leaves = [
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((40, 50), (3000,))
  ]
  torch = topk_ways.torch_is_installed()
  found = topk_ways.ways(leaves, 100, with_torch=torch)
  assert set(found) <= set(topk_ways.NEEDS)
  masks = {
    name: np.concatenate([np.asarray(m).reshape(-1) for m in way()])
    for name, (way, _) in found.items()
    if name not in (topk_ways.FLOOR, 'concatenate + approx_max_k')
  }
  for name, mask in masks.items():
    np.testing.assert_array_equal(mask, masks['ours, NumPy'], name)


@pytest.mark.parametrize('patience, runs', [(1e-9, 1), (1e9, 3)])
def test_a_slow_way_runs_once(patience, runs):
  chosen = {'ways': ['NumPy partition'], 'repeats': 3, 'torch': False}
  case = topk.contest([jnp.ones(2000)], 45, {**chosen, 'patience': patience})
  topk.summarize(case)
  facts = case['ways']['NumPy partition']
  assert facts['runs'] == runs
  first = case['rounds'][0]
  ratios = [t['NumPy partition'] / t[topk.topk_ways.FLOOR] for t in [first]]
  assert runs > 1 or facts['times_the_floor'] == ratios[0]


def test_what_does_not_fit_is_not_run(monkeypatch):
  monkeypatch.setattr(topk, 'free_bytes', lambda: 10**6)
  chosen = {
    'ways': ['argpartition'],
    'repeats': 1,
    'torch': False,
    'patience': 10,
  }
  leaves = [jnp.ones(100_000)]
  case = topk.contest(leaves, 45, chosen)
  reason = case['ways']['NumPy argpartition']['not_run']
  assert reason == 'needs 0 GB, 0 GB are free'
  assert topk_ways.FLOOR in case['rounds'][0]
