"""`benchmarks.train` measures what it says; how fast it is, is not tested."""

import contextlib
import functools
import json
import pathlib
import re
import subprocess

import helpers
import jax
import numpy as np
import pytest
import running

from benchmarks import record, shadows, train
from unlearn_jax import models, parallel, strategies

ROOT = pathlib.Path(__file__).parent.parent
ANCHOR = ROOT / 'benchmarks' / 'anchor.sh'
# One step an epoch, so that the order of images is no matter.
TOY = '--width=2 --batch_size=8 --images=8 --repeats=2 --seed=1'.split()


@functools.cache
def toy(*arguments):
  settings = vars(train.parse([*TOY, *arguments]))
  settings.pop('out')
  return train.measure(settings)


def test_a_toy_run_has_every_figure():
  result = toy('--no-torch')
  assert [set(turns) for turns in result['rounds']] == [
    {'scan', 'loop', 'again'}
  ] * 2
  for key in ('time_scan_over_loop', 'time_again_over_scan'):
    assert 0 < result[key]['min'] <= result[key]['median'] <= result[key]['max']
  assert result['images_per_second'].keys() == {'scan', 'loop', 'again'}
  assert result['speed_scan_over_torch'] is None
  assert result['torch'] == 'not asked for'
  assert result['settings']['seed'] == 1
  environment = result['environment']
  assert environment['platform'] == 'cpu'
  assert {'jax', 'jaxlib', 'flax', 'python'} <= environment.keys()
  assert len(environment['source_sha256']) == 64
  assert environment['command'] and environment['load_average']
  assert json.loads(json.dumps(result)) == result


def test_scan_and_loop_do_the_same_training():
  first, second = toy('--no-torch')['rounds']
  # Epochs of `scan` and `again` are 3 to 6, those of `loop` 2 and 3.
  assert second['loop']['loss'] == pytest.approx(
    first['scan']['loss'], rel=1e-3
  )
  assert second['loop']['loss'] < first['loop']['loss']
  assert second['again']['loss'] < second['scan']['loss']


def test_the_table_shows_every_ratio():
  shown = train.table(toy('--no-torch'))
  for text in ('speed scan over torch', 'time again over scan', 'not asked'):
    assert text in shown


def test_a_missing_torch_is_told_in_one_line(monkeypatch, capsys):
  monkeypatch.setattr(record.importlib.util, 'find_spec', lambda name: None)
  assert record.torch_state(True) == 'not installed'
  assert capsys.readouterr().err == (
    'PyTorch is not installed: it takes no part.\n'
  )


def test_torch_takes_part():
  pytest.importorskip('torch')
  result = toy()
  assert result['torch'] == 'takes part'
  assert result['speed_scan_over_torch']['min'] > 0
  first, second = (turns['torch']['loss'] for turns in result['rounds'])
  assert second < first


def test_a_torch_that_does_not_work_is_told_in_one_line(monkeypatch):
  pytest.importorskip('torch')
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  settings = {'torch': True, 'images': 2, 'width': 2, 'dtype': 'float32'}
  result = {'parameters': 1, 'settings': {**settings, 'seed': 0}}
  with contextlib.ExitStack() as stack:
    assert train._start_torch(result, stack) is None
  assert result['torch'].startswith('failed: ')
  assert len(result['torch'].splitlines()) == 1


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


def test_both_networks_give_the_same_logits():
  torch = pytest.importorskip('torch')
  from benchmarks import torch_worker

  # Random weights, none zero; variances above 0.
  model = models.build('resnet18', 10, train.IMAGE_SHAPE, width=8)
  rng = np.random.default_rng(0)

  def weights(path, leaf):
    if 'var' in str(path[-1]):
      return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
    scale = np.prod(leaf.shape[:-1]) ** -0.5
    return rng.normal(0, scale, leaf.shape).astype(np.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  state = jax.tree_util.tree_map_with_path(weights, shapes)
  net = torch_worker.ResNet18(10, 8).eval()
  missing = net.load_state_dict(torch_weights(state), strict=False)
  assert not missing.unexpected_keys
  assert all('num_batches' in key for key in missing.missing_keys)

  images = rng.integers(0, 256, (2, *train.IMAGE_SHAPE), np.uint8)
  apply = jax.jit(
    lambda s, x: model.apply(s, x, False)[0],
    compiler_options={'xla_backend_optimization_level': '0'},
  )
  with torch.no_grad():
    theirs = net(torch.from_numpy(images)).numpy()
  ours = np.asarray(apply(state, images))
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * ours.std())


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--batch_size=0', '0, allowed: 1 or more'),
    ('--width=two', 'two, allowed: 1 or more'),
    ('--images=7', 'allowed: at most --images'),
    ('--dtype=float16', 'invalid choice'),
    ('--out=mine.txt', 'mine.txt, allowed: a new .json file'),
    ('--out=pyproject.toml', 'allowed: a new .json file'),
    ('--out=nowhere/mine.json', 'in a folder that exists'),
  ],
)
def test_wrong_flags_are_named(flag, message, capsys):
  with pytest.raises(SystemExit) as ended:
    train.parse([*TOY, flag])
  assert ended.value.code == 2
  assert message in capsys.readouterr().err


def test_the_page_on_performance_shows_what_was_measured():
  page = (ROOT / 'docs' / 'performance.md').read_text()
  for name in ('cpu/train_benchmark.json', 'h100/bfloat16_512.json'):
    result = json.loads((ROOT / 'results' / name).read_text())
    assert result['environment']['git']['commit'][:12] in page
    for model, found in result['models'].items():
      ratios = (found['speed_ours_over_torch'], found['time_scan_over_loop'])
      cells = ' | '.join(map(record.shown, ratios))
      assert f'| {model} | {cells} |' in page


def test_the_anchor_refuses_other_sizes_and_names_strategies_that_exist():
  made = subprocess.run(
    [ANCHOR, 'huge', '/nowhere'], capture_output=True, text=True
  )
  assert made.returncode == 2
  assert made.stderr == 'error: SIZE=huge, allowed: toy, hard, cpu, gpu\n'
  own = ANCHOR.read_text().replace('\\\n', '')
  texts = dict(
    re.findall(r"^(controls|curve|every)=['\"](.*)['\"]$", own, re.M)
  )
  text = texts['every'].replace('$curve', texts['curve'])
  text = text.replace('$controls', texts['controls']).replace('%', '4')
  chosen = strategies.parse(text)
  assert len(chosen) == 20
  # But for what trains nothing.
  epochs = {each.name: each.parameters.get('epochs') for each in chosen}
  assert epochs.pop('ssd', 4) is None and set(epochs.values()) == {4}


def test_a_shadow_takes_longer_than_its_epochs(tmp_path):
  data_file = helpers.stripes_file(tmp_path)
  flags = running.training(data_file, tmp_path / 'run')
  with parallel.use(jax.devices()[:1]):
    found = shadows.ratios(running.study(*flags), tmp_path / 'run', 2)
  assert len(found) == 2 and min(found) > 1
