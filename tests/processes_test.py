"""Two processes with two devices each give the numbers of one with four."""

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
import numpy as np

process, count, port, out = (*map(int, sys.argv[1:4]), sys.argv[4])
if count > 1:
  jax.distributed.initialize(
    f'127.0.0.1:{port}',
    count,
    process,
    coordinator_bind_address=f'127.0.0.1:{port}',
    initialization_timeout=60,
  )
assert len(jax.devices()) == 4, jax.devices()

import helpers
from streaming_test import OnHost
from unlearn_jax import evaluation, normalization, prediction, strategies
from unlearn_jax import training, unlearning
from unlearn_jax.data import streaming
from unlearn_jax.finetuning import Budget

model, splits = helpers.model(), helpers.splits()
source = training.train(
  jax.random.key(0), model, splits.train, epochs=3, batch_size=16
).state
strategy, budget = strategies.top_k(5, examples=30), Budget(1, 1e-3, 16)
result = unlearning.unlearn(
  jax.random.key(1), model, source, splits, strategy, budget
)
predictions = evaluation.predict_splits(model, result.state, splits)

# Each of two processes reads the rows of its own devices only.
images = OnHost(splits.train.images)
train = splits.train._replace(images=images if count > 1 else images._array)
with streaming.limit(0 if count > 1 else None):
  state = training.train(
    jax.random.key(0), model, train, epochs=1, batch_size=16
  ).state
  assert images.taken == (48 if count > 1 else 0), images.taken
  state = normalization.reestimate(model, state, train, batch_size=16)
  streamed = prediction.predict(model, state, train, batch_size=16)
leaves = jax.tree.leaves((result.state, predictions, state, streamed))
np.savez(f'{out}/{count}-{process}.npz', *map(np.asarray, leaves))
"""


def start(process, count, port, out):
  environment = {
    **os.environ,
    'XLA_FLAGS': devices.flags(4 // count),
    'JAX_PLATFORMS': 'cpu',
    'NPROC': '8',
    'PYTHONPATH': f'{TESTS}{os.pathsep}{TESTS.parent}',
  }
  arguments = [str(process), str(count), str(port), str(out)]
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, *arguments],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_equal_one(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  started = [start(i, 2, port, tmp_path) for i in range(2)]
  started.append(start(0, 1, port, tmp_path))
  for process in started:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
  runs = []
  for name in ('1-0', '2-0', '2-1'):
    with np.load(tmp_path / f'{name}.npz', allow_pickle=False) as arrays:
      runs.append([arrays[key] for key in arrays.files])
  for one, first, second in zip(*runs, strict=True):
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(one, first, rtol=2e-3, atol=2e-4)
