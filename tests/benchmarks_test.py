"""The benchmark measures what it says; how fast anything is, is not tested."""

import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, output, profiles, reliability, table, train
from experiments import flags, flops
from unlearn_jax import models
from unlearn_jax.base import InputError

ROOT = pathlib.Path(__file__).parent.parent
SHAPE = (32, 32, 3)
TORCH = train.torch_is_installed()

# Parameters of the paper's Table I, and GFLOPs of training on one image.
KNOWN = {
  'resnet9': (2_563_522, 0.94),
  'resnet18': (11_173_962, 3.33),
  'vgg19': (20_040_522, 2.39),
  'densenet121': (6_956_298, 5.33),
  'googlenet': (6_166_250, 9.13),
}


@functools.cache
def counted(name):
  """(parameters, MACs) of our network; tracing takes a second."""
  model = models.build(name, 10, SHAPE)
  return flops.parameters(model), flops.forward_macs(model, SHAPE)


@pytest.fixture(scope='module')
def result(tmp_path_factory):
  """A toy run: one step an epoch, so that the order of images is no matter."""
  path = tmp_path_factory.mktemp('benchmark') / 'train.json'
  settings = train.Settings(
    ('cnn',), width=4, batch_size=64, images=64, repeats=1, torch='no'
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XLA_FLAGS', '')
    found = train.measure(settings, lambda so_far: output.write(path, so_far))
  assert json.loads(path.read_text()) == found
  return found


def test_a_toy_run_has_every_figure(result):
  assert result['complete']
  model = result['models']['cnn']
  assert model['images_per_second'].keys() == {'scan', 'loop'}
  for figure in (
    *model['images_per_second'].values(),
    model['time_scan_over_loop'],
    model['flops_per_second'],
  ):
    assert 0 < figure['min'] <= figure['median'] <= figure['max']
  assert model['share_of_matmul'] > 0
  assert model['compile_seconds']['cold'] > 0
  assert model['compile_seconds']['cached'] > 0
  assert model['peak_memory']['bytes'] > 0
  assert model['steady']
  assert model['xla_flops_per_image'] == pytest.approx(
    model['training_flops_per_image'], rel=0.6
  )
  assert len(model['rounds']) == 1
  environment = result['environment']
  assert environment['platform'] == 'cpu'
  assert environment['devices_used'] == 1
  assert {'jax', 'jaxlib', 'flax', 'python'} <= environment['versions'].keys()
  assert len(environment['source_sha256']) == 64
  assert result['torch'] == 'not asked for'


def test_scan_and_loop_do_the_same_training(result):
  model = result['models']['cnn']
  for turn in (model['warm_up'], *model['rounds']):
    assert turn['scan']['loss'] == pytest.approx(turn['loop']['loss'], rel=1e-3)
  assert model['rounds'][0]['scan']['loss'] < model['warm_up']['scan']['loss']


@pytest.mark.parametrize('with_rich', [True, False])
def test_the_table_shows_every_model(result, capsys, monkeypatch, with_rich):
  if not with_rich:
    monkeypatch.setitem(sys.modules, 'rich', None)
  failed = {**result, 'models': {**result['models'], 'x': {'error': 'why'}}}
  table.show(failed)
  out = capsys.readouterr().out
  assert 'images/s' in out and 'cnn' in out and 'x failed: why' in out


@pytest.mark.parametrize('name', KNOWN)
def test_counts_are_the_known_ones(name):
  parameters, macs = counted(name)
  work = flops.training_flops(macs)
  assert (parameters, round(work / 1e9, 2)) == KNOWN[name]


def test_macs_by_hand():
  def apply(state, x, train):
    x = jnp.asarray(x, jnp.float32)
    kernel = jnp.zeros((3, 3, 2, 5))
    y = jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    y = jax.jit(lambda y: y.reshape(1, -1) @ jnp.zeros((80, 7)))(y)
    body = lambda y, _: (y @ jnp.zeros((7, 7)), None)  # noqa: E731
    return jax.lax.scan(body, y, None, 3)[0], {}

  from unlearn_jax.base import Model, ModelState

  model = Model(apply, init=lambda key: ModelState({'w': jnp.zeros(1)}))
  by_hand = 4 * 4 * 5 * 3 * 3 * 2 + 80 * 7 + 3 * 7 * 7
  assert flops.forward_macs(model, (8, 8, 2)) == by_hand


def test_torch_is_reported_as_it_is():
  settings = train.Settings(torch='auto')
  wanted = 'takes part' if TORCH else 'not installed'
  assert train._torch_state(settings) == wanted
  if not TORCH:
    with pytest.raises(flags.FlagError, match='not installed'):
      train.check(train.Settings(torch='yes'))


def test_a_torch_that_does_not_work_is_reported(monkeypatch):
  if not TORCH:
    return  # `test_torch_is_reported_as_it_is` says so.
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  task = {'model': 'cnn', 'width': 4, 'batch_size': 2, 'images': 2}
  task['dtype'] = 'float32'
  with contextlib.ExitStack() as stack:
    settings, facts = train.Settings(torch='auto'), {}
    got = train._start_torch(settings, task, 'gpu', stack, facts)
    assert got is None and 'ended with status 1' in facts['torch']['error']
    assert len(facts['torch']['error'].splitlines()) == 1


@pytest.mark.parametrize('name', KNOWN)
def test_torch_networks_have_the_same_size(name):
  if not TORCH:
    assert train._torch_state(train.Settings()) == 'not installed'
    return
  from benchmarks import torch_models

  net = torch_models.build(name, 10)
  macs = torch_models.forward_macs(net, SHAPE)
  assert (torch_models.parameters(net), macs) == counted(name)


def torch_weights(state):
  """A Flax state under the names, and in the layout, of PyTorch."""
  import torch

  found = {}
  leaves, _ = jax.tree_util.tree_flatten_with_path(tuple(state))
  words = {'kernel': 'weight', 'scale': 'weight'}
  words |= {'mean': 'running_mean', 'var': 'running_var'}
  for path, leaf in leaves:
    *layer, last = jax.tree_util.keystr(
      path[1:], simple=True, separator='.'
    ).split('.')
    array = np.array(leaf)
    if last == 'kernel':
      array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    name = '.'.join([*layer, words.get(last, last)])
    found[name] = torch.from_numpy(array.copy())
  return found


@pytest.mark.parametrize('name', ['cnn', *KNOWN])
def test_torch_networks_give_the_same_logits(name):
  if not TORCH:
    assert train._torch_state(train.Settings()) == 'not installed'
    return
  import torch

  from benchmarks import torch_models

  model = models.build(name, 10, SHAPE, width=8)
  net = torch_models.build(name, 10, width=8).eval()
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: (
      rng.normal(0, 1, leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5
    ).astype(np.float32),
    shapes,
  )
  positive = jax.tree_util.tree_map_with_path(
    lambda path, leaf: abs(leaf) + 0.5 if 'var' in str(path[-1]) else leaf,
    state.batch_stats,
  )
  state = state._replace(batch_stats=positive)
  missing = net.load_state_dict(torch_weights(state), strict=False)
  assert not missing.unexpected_keys
  assert all('num_batches' in key for key in missing.missing_keys)
  images = rng.integers(0, 256, (2, *SHAPE), np.uint8)
  quick = {'xla_backend_optimization_level': '0'}
  apply = jax.jit(
    lambda s, x: model.apply(s, x, False)[0], compiler_options=quick
  )
  with torch.no_grad():
    theirs = net(torch.from_numpy(images)).numpy()
  ours = np.asarray(apply(state, images))
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * ours.std())


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'models': ('resnet1',)}, '--models=resnet1, allowed: did you mean'),
    ({'models': ()}, '--models=, allowed: one of'),
    ({'batch_size': 0}, '--batch_size=0, allowed: 1 or more'),
    ({'width': -1}, '--width=-1, allowed: 1 or more'),
    ({'dtype': 'float16'}, '--dtype=float16, allowed: '),
    ({'torch': 'maybe'}, '--torch=maybe, allowed: did you mean'),
  ],
)
def test_wrong_settings_are_named(wrong, message):
  with pytest.raises(flags.FlagError) as error:
    train.check(train.Settings(**wrong))
  assert str(error.value).startswith(message)


def test_a_batch_fits_into_an_epoch():
  settings = train.resolve(train.Settings(), 'gpu')
  assert (settings.batch_size, settings.images) == (128, 50_000)
  with pytest.raises(flags.FlagError, match='at most the 8 images'):
    train.resolve(train.Settings(images=8, batch_size=9), 'cpu')


def test_nothing_is_overwritten_in_silence(tmp_path):
  def chosen(out, overwrite=False):
    return types.SimpleNamespace(out=str(out), overwrite=overwrite)

  path = train.destination(chosen(tmp_path))
  assert path == tmp_path / 'train_benchmark.json'
  path.write_text('{}')
  for where in (train.destination, output.path):
    assert where(chosen(path, True)) == path
    with pytest.raises(flags.FlagError, match='--overwrite'):
      where(chosen(path))
  with pytest.raises(flags.FlagError, match='a file in a folder that can be'):
    output.path(chosen(path / 'below' / 'mine.json'))
  assert output.path(chosen('')) is None


def test_a_wrong_flag_ends_with_one_line_and_status_2():
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.train', '--repeats=0'],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 2
  assert done.stderr == 'error: --repeats=0, allowed: 1 or more\n'


def trace(tmp_path, events):
  import gzip

  folder = tmp_path / 'plugins' / 'profile' / 'now'
  folder.mkdir(parents=True)
  with gzip.open(folder / 'host.trace.json.gz', 'wt') as file:
    json.dump({'traceEvents': events}, file)
  return tmp_path


def test_kernels_are_summed_over_streams_only(tmp_path):
  def span(tid, name, dur):
    return {'ph': 'X', 'pid': 1, 'tid': tid, 'name': name, 'dur': dur}

  events = [
    {'ph': 'M', 'pid': 1, 'name': 'process_name', 'args': {'name': '/device:'}},
    *(
      {
        'ph': 'M',
        'pid': 1,
        'tid': t,
        'name': 'thread_name',
        'args': {'name': n},
      }
      for t, n in ((1, 'Stream #13'), (2, 'XLA Ops'), (3, 'Stream #14'))
    ),
    *(span(1, 'conv', 30), span(3, 'conv', 30), span(1, 'add', 40)),
    span(2, 'conv', 60),
  ]
  found = profiles.largest_kernels(trace(tmp_path, events), 1)
  assert found['kernel_seconds'] == pytest.approx(100e-6)
  (kernel,) = found['kernels']
  assert (kernel['name'], kernel['calls']) == ('conv', 2)
  assert kernel['share'] == pytest.approx(0.6)


def test_kernels_on_a_cpu_leave_out_what_contains_them(tmp_path):
  events = [
    {'ph': 'X', 'pid': 7, 'name': n, 'dur': 10, 'args': {'hlo_op': n}}
    for n in ('while.3', 'convolution.1', 'fusion.2')
  ]
  found = profiles.largest_kernels(trace(tmp_path, events))
  assert {k['name'] for k in found['kernels']} == {'convolution.1', 'fusion.2'}
  with pytest.raises(ValueError, match='allowed: one with a trace'):
    profiles.largest_kernels(tmp_path / 'plugins')


def test_the_gpu_command_asks_for_every_part(tmp_path):
  class Values:
    parts, toy, overwrite = list(gpu.PARTS), False, False
    cifar_npz = str(tmp_path / 'cifar.npz')

  found = gpu.commands(Values, tmp_path)
  assert list(found) == [
    'bfloat16_512',
    'train_resnet9',
    'train_resnet18',
    'reliability',
    'float32_512',
    'bfloat16_128',
    'float32_128',
  ]
  assert '--batch_size=512' in found['bfloat16_512']
  assert '--profile' in found['bfloat16_512']
  assert '--nocached' in found['float32_128']


def test_the_gpu_command_cuts_off_at_the_deadline():
  done = gpu.run(['timeit', '-n1', '-r1', 'import time; time.sleep(60)'], 1)
  assert done['status'] != 0 and done['seconds'] < 30
  assert done['printed'].endswith('cut off at the deadline')


def test_a_killed_training_is_compared_with_a_whole_one(tmp_path, monkeypatch):
  runs = {'whole': None, 'killed': signal.SIGKILL}
  monkeypatch.setattr(reliability, 'RUNS', runs)
  toy = '--dataset=digits --train_subset=300 --width=2 --train_epochs=6'
  found = reliability.case(toy, '', 1, tmp_path)
  assert found['identical']
  assert found['runs']['killed']['status'] == -signal.SIGKILL
  other = reliability.Training(f'{toy} --seed=1', '', tmp_path).finish()
  assert other != found['runs']['whole']['digest']


def test_a_training_that_fails_is_told_in_its_own_words(tmp_path):
  training = reliability.Training('--dataset=digit', '', tmp_path)
  for run in (training.finish, lambda: training.interrupt(signal.SIGTERM, 1)):
    with pytest.raises(InputError, match='status 1: error: --dataset=digit:'):
      run()
