"""A model of one's own in every binary."""

import json
import re

import helpers
import pytest
import running

from experiments.workdir import finished

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
    ('my_linen.py:Nett', 'has no Nett, allowed: did you mean Net? one of'),
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
