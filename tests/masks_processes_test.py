"""Two processes with four devices each choose what one device would."""

import os
import pathlib
import socket
import subprocess
import sys

import devices
import numpy as np

TESTS = pathlib.Path(__file__).parent

WORKER = """
import sys
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

process, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(
  f'127.0.0.1:{port}',
  2,
  process,
  coordinator_bind_address=f'127.0.0.1:{port}',
  initialization_timeout=60,
)
assert len(jax.devices()) == 8, jax.devices()

from unlearn_jax import masks

rng = np.random.default_rng(0)
dense = {
  'a': np.round(rng.standard_normal((16, 30, 8)), 1).astype('f'),
  'b': np.round(rng.standard_normal((5, 24)), 1).astype('f'),
  'c': np.round(rng.standard_normal(7), 1).astype('f'),
}
specs = {
  'a': PartitionSpec('x', None, 'y'),
  'b': PartitionSpec(None, ('x', 'y')),
  'c': PartitionSpec(),
}
key = jax.random.key(3)
CHOICES = {
  'top': lambda g: masks.topk_mask(g, g, 400),
  'leaf': lambda g: masks.topk_mask(g, g, 0.1, scope='leaf'),
  'random': lambda g: masks.randomk_mask(key, g, 400),
  'both': lambda g: masks.random_topk_mask(key, g, g, 400, 45),
}
FOUND = {name: choose(dense) for name, choose in CHOICES.items()}
for axis_type, names in (
  (AxisType.Auto, ('top', 'both')),
  (AxisType.Explicit, ('leaf', 'random')),
):
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(axis_type,) * 2)
  sharded = {
    name: jax.make_array_from_callback(
      x.shape, NamedSharding(mesh, specs[name]), lambda i, x=x: x[i]
    )
    for name, x in dense.items()
  }
  with jax.set_mesh(mesh):
    for choose, expected in ((CHOICES[n], FOUND[n]) for n in names):
      outside = axis_type == AxisType.Auto
      found = (choose if outside else jax.jit(choose))(sharded)
      for name, mask in found.items():
        whole = np.asarray(expected[name])
        for shard in mask.addressable_shards:
          np.testing.assert_array_equal(shard.data, whole[shard.index])
np.savez(
  f'{out}/{process}.npz',
  **{
    f'{way}-{name}': np.asarray(mask)
    for way, masks_found in FOUND.items()
    for name, mask in masks_found.items()
  },
)
"""


def start(process, port, out):
  environment = {
    **os.environ,
    'XLA_FLAGS': devices.flags(4),
    'JAX_PLATFORMS': 'cpu',
    'NPROC': '8',
    'PYTHONPATH': str(TESTS.parent),
  }
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, str(process), str(port), str(out)],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_choose_what_one_device_would(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  started = [start(i, port, tmp_path) for i in range(2)]
  for process in started:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
  with np.load(tmp_path / '0.npz') as one, np.load(tmp_path / '1.npz') as two:
    assert one.files == two.files
    for name in one.files:
      np.testing.assert_array_equal(one[name], two[name])
    count = sum(one[f'top-{leaf}'].sum() for leaf in 'abc')
    assert count == 400
