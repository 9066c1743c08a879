"""A model of one's own in every binary."""

import json
import pathlib
import re

import flax
from flax import serialization
from flax.traverse_util import flatten_dict
import helpers
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import running
import safetensors
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments import config
from experiments.study import lineage, networks
from experiments.workdir import finished
import unlearn_jax as uj
from unlearn_jax import checkpoints, data, parallel, training
from unlearn_jax.base import Examples

LINEN = """
from flax import linen as nn
import jax.numpy as jnp


class Net(nn.Module):
  num_classes: int
  width: int = 8

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Conv(self.width, (3, 3), strides=2)(x - 0.4)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes)(x)


class Fixed(nn.Module):
  classes: int = 5

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes)(x.reshape(len(x), -1))


def number(width: int = 3):
  return width


def broken(num_classes):
  raise RuntimeError('of mine\\nand more')
"""
NNX = """
from flax import nnx
from unlearn_jax import from_linen
import my_linen


class Net(nnx.Module):
  def __init__(self, image_shape, num_classes, width=8, *, rngs):
    height, wide, channels = image_shape
    size = height * wide * channels
    self.stem = nnx.Linear(size, width, rngs=rngs)
    self.drop = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.stem(x.reshape(len(x), -1)))
    return self.head(self.drop(x))


def model(num_classes, image_shape, mean, std, width: int = 4):
  net = my_linen.Net(num_classes, width)
  return from_linen(net, image_shape, mean=mean, std=std, scale=255)


def unfit(num_classes):
  import dataclasses
  made = model(num_classes, (6, 6, 1), (0.5,), (1.0,))
  return dataclasses.replace(made, order=made.order[1:])
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with the data and both files."""
  root = tmp_path_factory.mktemp('own')
  helpers.stripes_file(root)
  (root / 'my_linen.py').write_text(LINEN)
  (root / 'my_nnx.py').write_text(NNX)
  return root


@pytest.fixture
def here(place, monkeypatch):
  monkeypatch.chdir(place)
  monkeypatch.syspath_prepend(place)
  return place


def flags(model, workdir):
  return (
    *('--dataset=npz:stripes.npz', f'--model={model}'),
    *(f'--workdir={workdir}', '--batch_size=24', '--train_epochs=4'),
    *('--train_learning_rate=0.01', '--forget=random(0.1)'),
  )


def stages(workdir, what):
  return sorted(workdir.glob(f'checkpoints/*{what}*'))


@pytest.mark.parametrize(
  ('model', 'name'),
  [
    ('my_linen.py:Net(width=4)', 'my_linen.py:Net(width=4)'),
    ('./my_linen.py:Net(width=8)', 'my_linen.py:Net'),
    ('my_nnx.py:Net(width=16)', 'my_nnx.py:Net(width=16)'),
    ('my_nnx:model()', 'my_nnx:model'),
  ],
)
def test_any_kind_is_trained_and_evaluated(model, name, here, tmp_path):
  out = running.done('train', *flags(model, tmp_path))
  assert f'{name}: ' in out
  (source,) = stages(tmp_path, 'source')
  said = finished.manifest(source)
  assert (said.model, said.width) == (name, 0) and len(said.model_sha256) == 64
  share = float(re.search(r'test    accuracy ([\d.]+)', out)[1])
  assert share > 70  # Of three classes.
  # From the checkpoint alone: only code that is named is run.
  (here / 'ids.txt').write_text('3\n7\n')
  own = f'--checkpoint={source}', '--forget_ids=ids.txt'
  line = running.refused('evaluate', *own, status=1)
  assert f'allowed: --model={name}' in line and str(source) in line
  found = running.done('evaluate', *own, f'--model={model}')
  test = json.loads(found)['test_accuracy']
  assert 100 * test == pytest.approx(share, abs=0.01)


def test_it_forgets_by_last_layers_in_their_true_order(here, tmp_path):
  model = 'my_nnx.py:Net(width=16)'
  own = (*flags(model, tmp_path), '--seeds=1', '--epochs=1')
  running.done('unlearn', *own, '--strategies=finetune, cf_k(k=2)')
  page = (tmp_path / 'report.md').read_text().replace('\\', '')
  assert f'A {model} (' in page
  (made,), (source,) = (stages(tmp_path, n) for n in ('cf_k', 'source'))
  before, after = (finished.load(path).state.params for path in (source, made))
  for layer in ('stem', 'head'):
    same = (before[layer]['kernel'] == after[layer]['kernel']).all()
    assert same == (layer == 'stem')


def test_changed_code_is_another_model(here, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(LINEN)
  model, work = f'{file}:Net(width=4)', tmp_path / 'work'
  running.done('train', *flags(model, work))
  (source,) = stages(work, 'source')
  own = f'--source_dir={source}', '--seeds=1', '--strategies=finetune'
  file.write_text(LINEN.replace('x - 0.4', 'x - 0.5'))
  # Not the old one's number, though the name is the same.
  running.done('train', *flags(model, work))
  assert len(stages(work, 'source')) == 2
  line = running.refused('unlearn', *flags(model, tmp_path / 'next'), *own)
  assert 'was made with model_sha256=' in line and str(source) in line
  ids = here / 'ids.txt'
  ids.write_text('3\n7\n')
  asked = f'--checkpoint={source}', f'--forget_ids={ids}', f'--model={model}'
  line = running.refused('evaluate', *asked, status=1)
  assert 'of a file with SHA-256' in line and 'as it was trained' in line
  # Elsewhere, but as it was.
  other = tmp_path / 'elsewhere' / 'mine.py'
  other.parent.mkdir()
  other.write_text(LINEN)
  running.done('evaluate', *asked[:2], f'--model={other}:Net(width=4)')


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    ('no_such.py:Net', 'no_such.py: no such file'),
    (
      'my_linen.py:Nett',
      'my_linen.py has no Nett, allowed: did you mean Net? one of',
    ),
    ('my_linen.py:Net(widht=4)', 'no parameter widht, allowed: did you mean w'),
    ("my_linen.py:Net(width='4')", "width='4', allowed: a whole number"),
    ('my_linen.py:Net(4)', 'allowed: my_linen.py:Net(num_classes=3, width=8)'),
    ('my_linen.py:Net(width=f())', 'allowed: Python literals'),
    ('my_linen.py:Fixed', 'logits [2, 5] of 2 images of 3 classes'),
    ('my_linen.py:number', 'gave int, allowed: a Flax Linen module'),
    ('my_linen.py:broken', 'RuntimeError: of mine; allowed: a network'),
    ('my_nnx.py:unfit', 'allowed: each of its 6 tensors once'),
    ('no_such_module:Net', 'cannot be imported: ModuleNotFoundError'),
    ('os:system("true")', 'has no system'),
    ('npz:', 'allowed: FILE.py:Net(width=32) or module:factory(…)'),
    ('cnnn', 'did you mean cnn? one of cnn, densenet121'),
    ('', 'or FILE.py:Net(…) of your own'),
  ],
)
def test_what_is_no_model(model, words, here, tmp_path):
  work = tmp_path / 'work'
  line = running.refused('train', *flags(model, work))
  assert f'--model={model}' in line and words in line, line
  assert not work.exists()


def test_what_is_too_large_is_not_called_a_width(here, tmp_path):
  model = 'my_linen.py:Net(width=9999999999)'
  line = running.refused('train', *flags(model, tmp_path))
  assert f'--model={model}, allowed: what has at most' in line


def test_flags_of_our_models_are_not_those_of_others(here, tmp_path):
  for flag in ('--width=4', '--dtype=bfloat16'):
    line = running.refused(
      'train', *flags('my_linen.py:Net', tmp_path), flag, status=2
    )
    assert flag in line and 'none beside my_linen.py:Net' in line


def test_a_file_that_cannot_be_run_is_one_line(here, tmp_path):
  file = tmp_path / 'bad.py'
  for content in ('def f(:', 'import no_such_module', '1 / 0'):
    file.write_text(content)
    line = running.refused('train', *flags(f'{file}:f', tmp_path / 'w'))
    assert 'cannot be run: ' in line and 'allowed: a file of Python' in line


# Weights from elsewhere.


@pytest.fixture(scope='module')
def trained(place):
  """A network of somebody's, trained without us: its variables."""
  text = f'{place}/my_linen.py:Net(width=4)'
  model = networks.read(text, 3, (6, 6, 1), (0.5,), (0.5,)).model
  with np.load(place / 'stripes.npz') as arrays:
    examples = Examples.of(arrays['x_train'][..., None], arrays['y_train'])
  with parallel.use(jax.devices()[:1]):
    key = jax.random.key(3)
    how = {'epochs': 6, 'batch_size': 24, 'optimizer': training.adam(0.01)}
    fit = training.train(key, model, examples, **how)
  return jax.tree.map(np.asarray, fit.state)


def variables(state):
  """As its own program would save them; nothing of ours in them."""
  stats = state.batch_stats['batch_stats']
  return {'params': state.params, 'batch_stats': stats}


def flat(tree, sep):
  return flatten_dict(tree, sep=sep)


def as_safetensors(tree, folder):
  path = folder / 'net.safetensors'
  save_file({n: np.array(a) for n, a in flat(tree, '.').items()}, path)
  return path


def as_npz(tree, folder):
  bare = {n.partition('/')[2]: a for n, a in flat(tree, '/').items()}
  np.savez(folder / 'net.npz', **bare)
  return folder / 'net.npz'


def as_msgpack(tree, folder):
  both = {'step': np.int32(7), 'opt_state': tree['params'], **tree}
  path = folder / 'net.msgpack'
  path.write_bytes(serialization.to_bytes(both))
  return path


def as_orbax(tree, folder):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / 'orbax', {'model': tree})
  return folder / 'orbax'


def as_steps(tree, folder):
  zeros = jax.tree.map(np.zeros_like, tree)
  with ocp.CheckpointManager(folder / 'steps') as manager:
    for step, own in ((9, zeros), (10, tree)):
      manager.save(step, args=ocp.args.StandardSave(own))
  return folder / 'steps'


NET = '--model=my_linen.py:Net(width=4)', '--dataset=npz:stripes.npz'


@pytest.mark.parametrize(
  'write', [as_safetensors, as_npz, as_msgpack, as_orbax, as_steps]
)
def test_weights_of_any_kind_are_adopted(write, trained, here, tmp_path):
  path = write(variables(trained), tmp_path)
  out = tmp_path / 'prod'
  own = f'--weights={path}', f'--out={out}', '--trained_on=all', *NET
  told = running.done('adopt', *own)
  assert '8 of 10 tensors of the model are there:' in told
  assert 'Begin anew: 2 (batch_stats/lot/count, batch_stats/lot/key)' in told
  share = float(re.search(r'test    accuracy ([\d.]+) %', told)[1])
  assert share > 70 and told.endswith(f'Checkpoint: {out}\n')
  made = finished.load(out)
  for name in ('params', 'batch_stats'):
    tree = getattr(made.state, name)
    tree = tree if name == 'params' else tree['batch_stats']
    jax.tree.map(np.testing.assert_array_equal, tree, variables(trained)[name])
  assert made.manifest.strategy == 'source' and made.manifest.recipe is None
  assert (out / 'trained.txt').read_text().split('\n')[:2] == ['0', '1']
  again = running.refused('adopt', *own, status=1)
  assert 'never overwritten' in again


def test_a_source_without_a_recipe_is_not_retrained_by_default(
  trained, here, tmp_path
):
  path = as_npz(variables(trained), tmp_path)
  (tmp_path / 'known.txt').write_text('\n'.join(map(str, range(5, 240))))
  known = f'--trained_on={tmp_path / "known.txt"}'
  out = tmp_path / 'prod'
  running.done('adopt', f'--weights={path}', f'--out={out}', known, *NET)
  assert (out / 'trained.txt').read_text().split() == [*map(str, range(5, 240))]
  own = *NET, f'--workdir={tmp_path / "w"}', f'--source_dir={out}', '--seeds=1'
  line = running.refused('unlearn', *own, '--strategies=retrain')
  assert '--recipe=' in line and 'does not tell how it was trained' in line
  ids = tmp_path / 'ids.txt'
  ids.write_text('7\n11\n')
  line = running.refused(
    'forget', f'--source={out}', f'--ids={ids}', f'--out={tmp_path / "o"}'
  )
  assert 'experiments.adopt --recipe' in line
  own_ids = f'--checkpoint={out}', f'--forget_ids={ids}'
  found = json.loads(running.done('evaluate', *own_ids, NET[0]))
  assert 0.7 < found['test_accuracy'] <= 1
  # Of what it never knew nothing is to be forgotten.
  (tmp_path / 'never.txt').write_text('2\n')
  line = running.refused(
    'unlearn',
    *own,
    '--strategies=finetune',
    f'--forget=ids({tmp_path}/never.txt)',
  )
  assert 'was not trained on 2' in line
  # Nor is what it never knew retained: Retrain would know more than it.
  more = f'--forget=ids({ids})', '--strategies=finetune'
  line = running.refused('unlearn', *own, *more)
  never = 'was not trained on 5 of 240 training images, such as 0;'
  assert never in line
  # Nor is a model judged by it: of the source itself it is left out, and one
  # that was made from another source of the same weights is refused.
  family = lineage.read(out, config.Study(), str(ids), NET[0].partition('=')[2])
  assert family.splits.retain.size == 233 and family.splits.train.size == 235
  whole = tmp_path / 'whole'
  how = f'--out={whole}', '--trained_on=all', *NET
  running.done('adopt', f'--weights={path}', *how)
  own = *NET, f'--workdir={tmp_path / "v"}', f'--source_dir={whole}'
  running.done('unlearn', *own, '--seeds=1', '--epochs=1', *more)
  (made,) = (tmp_path / 'v' / 'checkpoints').glob('*finetune*')
  asked = f'--checkpoint={made}', NET[0]
  running.done('evaluate', *asked, f'--source_dir={whole}')
  assert never in running.refused('evaluate', *asked, f'--source_dir={out}')


@pytest.mark.parametrize(
  ('spelled', 'units'),
  [('my_linen.py:Net(width=4)', ([0.0], [1.0])), ('my_nnx.py:model', None)],
)
def test_a_deployed_model_says_what_becomes_of_pixels(
  spelled, units, here, tmp_path, monkeypatch
):
  prod, out, ids = (tmp_path / name for name in ('prod', 'out', 'ids.txt'))
  own = [own for own in flags(spelled, prod) if 'forget' not in own]
  running.done('train', *own)
  ids.write_text('7\n11\n')
  asked = f'--source={prod}', f'--ids={ids}', f'--out={out}', own[1]
  running.done('forget', *asked)
  record = json.loads((out / 'record.json').read_text())
  with safe_open(out / 'model.safetensors', 'np') as file:
    facts = {n: json.loads(text) for n, text in file.metadata().items()}
  assert units == (
    None if 'mean' not in facts else (facts['mean'], facts['std'])
  )
  assert ('scaled by the model' in facts['pixels']) == (units is None)
  # The lines of the record, with the model as `--model` makes it.
  splits = data.load('npz:stripes.npz').test
  numbers = len(facts['class_names']), facts['input_size']
  model = networks.read(spelled, *numbers, *_statistics(prod)).model
  found = {'images': splits.images, 'model': model, 'json': json}
  found |= {'safetensors': safetensors, 'flax': flax, 'unlearn_jax': uj}
  monkeypatch.chdir(out)
  with parallel.use(jax.devices()[:1]):
    exec('\n'.join(record['loading']), found)
  right = np.mean(np.asarray(found['logits']).argmax(1) == splits.labels)
  assert right == record['evidence']['result']['test_accuracy']


def test_an_nnx_module_is_deployed_by_the_page(here, tmp_path, monkeypatch):
  """As NNX and as NumPy alone: what the binary said of it."""
  prod, out, ids = (tmp_path / name for name in ('prod', '2026-12', 'ids.txt'))
  own = flags('my_nnx.py:Net(width=16)', prod)[:-1]
  running.done('train', *own)
  ids.write_text('7\n11\n')
  asked = f'--source={prod}', f'--ids={ids}', f'--out={out}', own[1]
  running.done('forget', *asked)
  said = json.loads((out / 'record.json').read_text())['evidence']['result']
  splits = data.load('npz:stripes.npz').test
  page = (pathlib.Path(__file__).parent.parent / 'docs/deploy.md').read_text()
  _, *blocks = re.findall(r'^```python\n(.*?)^```$', page, re.M | re.S)
  monkeypatch.chdir(tmp_path)
  found = []
  for code in blocks:
    names = {'images': splits.images}
    exec(code, names)
    found.append(np.asarray(names['logits']))
    right = np.mean(found[-1].argmax(1) == splits.labels)
    assert right == said['test_accuracy'] > 0.7
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def _statistics(prod):
  (path,) = (prod / 'checkpoints').glob('*-source-*')
  said = finished.manifest(path)
  return said.pixel_mean, said.pixel_std


def test_what_shapes_cannot_tell_is_told(here, tmp_path):
  file, path = tmp_path / 'square.py', tmp_path / 'net.safetensors'
  file.write_text(LINEN.replace('(self.num_classes)(x)', '(3)(x[:, :3])'))
  model = networks.read(f'{file}:Net', 3, (6, 6, 1), (0.5,), (0.5,)).model
  state = model.init(jax.random.key(0))._asdict()
  own = {'/'.join(n): np.asarray(a) for n, a in flatten_dict(state).items()}
  own = {n: a for n, a in own.items() if '/lot/' not in n}
  own['params/fc/weight'] = own.pop('params/Dense_0/kernel')
  save_file(own, path)
  asked = f'--weights={path}', f'--model={file}:Net', NET[1]
  more = '--trained_on=all', f'--out={tmp_path / "o"}'
  rename = '--rename=params/fc/weight=params/Dense_0/kernel'
  told = running.done('adopt', *asked, *more, rename)
  assert told.count('has the same shape in PyTorch') == 1
  assert 'params/fc/weight, now params/Dense_0/kernel' in told
  # Of two tensors of one name neither is the one.
  save_file({**own, 'params.fc.weight': own['params/fc/weight']}, path)
  line = running.refused('adopt', *asked, *more[:1], f'--out={tmp_path / "p"}')
  assert 'params/fc/weight is there twice, allowed: once' in line


def test_names_are_matched_and_what_does_not_fit_is_told(
  trained, here, tmp_path
):
  tree = flat(variables(trained), '/')
  name = {'params': 'module/w', 'batch_stats': 'module/s'}
  other = {
    re.sub('^(params|batch_stats)', lambda m: name[m[1]], n): a
    for n, a in tree.items()
  }
  other['module/w/Dense_7/kernel'] = other.pop('module/w/Dense_0/kernel')
  own = f'--out={tmp_path / "prod"}', '--trained_on=all', *NET

  def weights(**changes):
    path = tmp_path / 'odd.npz'
    np.savez(
      path, **{n: a for n, a in (other | changes).items() if a is not None}
    )
    return f'--weights={path}'

  status, told, line = running.run('adopt', weights(), *own)
  assert status == 1 and '7 of 10 tensors' in told
  assert 'Not used: 1 (module/w/Dense_7/kernel)' in told
  assert 'params/Dense_0/kernel float32[36, 3] is missing; unused: did' in line
  fixed = r'--rename=module/w/Dense_7/(.*)=module/w/Dense_0/\1'
  done = running.done('adopt', weights(), *own, fixed)
  assert 'params/Conv_0/kernel' in done and '← module/w/Conv_0/kernel' in done
  bad = {'module/w/Conv_0/bias': np.zeros(5), 'module/s/BatchNorm_0/var': None}
  own = f'--out={tmp_path / "next"}', *own[1:], fixed
  line = running.refused('adopt', weights(**bad), *own)
  assert 'params/Conv_0/bias is float64[5], allowed: float32[4]' in line
  assert '(1 more: batch_stats/batch_stats/BatchNorm_0/var float32[4]' in line
  for value, words in ((np.nan, 'NaN'), (1, 'int64[4], allowed: float32[4]')):
    broken = {'module/w/Conv_0/bias': np.full(4, value)}
    assert words in running.refused('adopt', weights(**broken), *own)
  twice = {f'ema/w/{n[9:]}': a for n, a in other.items() if '/w/' in n}
  line = running.refused('adopt', weights(**twice), *own[:-1])
  assert 'several times' in line and '--rename=ema/w/(.*)=params/' in line
  for rule, words in (
    ('(=b', 'a/(.*)=b/'),
    ('no_such=b', 'what fits a whole name'),
    ('.*=x', 'each name once'),
  ):
    line = running.refused('adopt', weights(), *own[:-1], f'--rename={rule}')
    assert '--rename=' in line and words in line
  assert not (tmp_path / 'next').exists()


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--weights=no_such'], '--weights=no_such: no such file'),
    (['--weights=ids.txt'], 'allowed: safetensors, an npz, msgpack'),
    (['--weights=.'], 'no _METADATA in it'),
    (['--out='], '--out='),
    (['--trained_on=no_such'], '--trained_on=no_such'),
    (['--train_epochs=4'], '--recipe=, allowed: said, where --train_epochs is'),
  ],
)
def test_what_cannot_be_adopted(flags, words, here, tmp_path):
  (here / 'ids.txt').write_text('3\n7\n')
  own = '--weights=ids.txt', f'--out={tmp_path / "o"}', '--trained_on=all'
  assert words in running.refused('adopt', *own, *NET, *flags)
  assert not (tmp_path / 'o').exists()


def test_no_manifest_has_code_run(trained, here, tmp_path):
  path = as_npz(variables(trained), tmp_path)
  out = tmp_path / 'prod'
  own = f'--weights={path}', f'--out={out}', '--trained_on=all', *NET
  running.done('adopt', *own, '--recipe=paper')
  evil, mark = tmp_path / 'evil.py', tmp_path / 'mark'
  evil.write_text(f'open({str(mark)!r}, "w")\n{LINEN}')
  file = out / 'manifest.json'
  said = json.loads(file.read_text())
  said['model'] = f'{evil}:Net'
  said['model_sha256'] = networks.stamp(said['model'])
  said['manifest_sha256'] = checkpoints._own_digest(said)
  file.write_text(json.dumps(said))
  (tmp_path / 'ids.txt').write_text('3\n')
  ids, went = tmp_path / 'ids.txt', f'--source={out}'
  asked = 'evaluate', f'--checkpoint={out}', f'--forget_ids={ids}'
  for command in (asked, ('forget', went, f'--ids={ids}', '--out=never')):
    assert 'which no manifest has run' in running.refused(*command)
    line = running.refused(*command, NET[0])
    assert 'of a file with SHA-256' in line
  study = *NET, f'--source_dir={out}', f'--workdir={tmp_path / "w"}'
  assert 'was made with model=' in running.refused('unlearn', *study)
  assert not mark.exists()
