"""Vision transformers: what they compute, learn, and take of timm's files."""

import functools
import math
import re

import helpers
import jax
import numpy as np
import pytest
import running
from safetensors.numpy import save_file

from experiments.workdir import finished
import unlearn_jax as uj
from unlearn_jax import data, models, parallel, training
from unlearn_jax.base import ModelState, tensor_paths
from unlearn_jax.data import images as pixels
from unlearn_jax.models import vit

HEADS, WIDTH, PATCH, CLASSES = 3, 12, 2, 3
erf = np.vectorize(math.erf)


def timms(shape, depth, seed=0):
  """A file's arrays in PyTorch's axes, all of them away from where they start.

  `shape` is that of an image: (height, width, channels).
  """
  rng = np.random.default_rng(seed)
  high, wide, channels = shape
  tokens = 1 + high // PATCH * (wide // PATCH)
  sizes = {
    'patch_embed.proj.weight': (WIDTH, channels, PATCH, PATCH),
    'patch_embed.proj.bias': (WIDTH,),
    'cls_token': (1, 1, WIDTH),
    'pos_embed': (1, tokens, WIDTH),
    'norm.weight': (WIDTH,),
    'norm.bias': (WIDTH,),
    'head.weight': (CLASSES, WIDTH),
    'head.bias': (CLASSES,),
  }
  for i in range(depth):
    for layer, (out, into) in {
      'attn.qkv': (3 * WIDTH, WIDTH),
      'attn.proj': (WIDTH, WIDTH),
      'mlp.fc1': (4 * WIDTH, WIDTH),
      'mlp.fc2': (WIDTH, 4 * WIDTH),
    }.items():
      sizes[f'blocks.{i}.{layer}.weight'] = (out, into)
      sizes[f'blocks.{i}.{layer}.bias'] = (out,)
    for norm in ('norm1', 'norm2'):
      sizes[f'blocks.{i}.{norm}.weight'] = (WIDTH,)
      sizes[f'blocks.{i}.{norm}.bias'] = (WIDTH,)
  return {
    name: rng.normal(0, 0.4, size).astype(np.float32)
    for name, size in sizes.items()
  }


def by_hand(own, images):
  """Logits by loops over tokens and heads, in float64; images as they are."""
  own = {name: array.astype(np.float64) for name, array in own.items()}

  def linear(x, name):
    return x @ own[f'{name}.weight'].T + own[f'{name}.bias']

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6
    )
    return x * own[f'{name}.weight'] + own[f'{name}.bias']

  def attention(x, name):
    q, k, v = np.split(linear(x, f'{name}.qkv'), 3, -1)
    seen, size = np.zeros_like(x), WIDTH // HEADS
    for head in range(HEADS):
      part = slice(head * size, (head + 1) * size)
      for token in range(len(x)):
        raw = np.exp(k[:, part] @ q[token, part] / math.sqrt(size))
        seen[token, part] = raw / raw.sum() @ v[:, part]
    return linear(seen, f'{name}.proj')

  def perceptron(x, name):
    x = linear(x, f'{name}.fc1')
    return linear(x * (1 + erf(x / math.sqrt(2))) / 2, f'{name}.fc2')

  found = []
  for image in images.astype(np.float64):
    tokens = [own['cls_token'][0, 0]]
    for top in range(0, image.shape[0], PATCH):
      for left in range(0, image.shape[1], PATCH):
        part = image[top : top + PATCH, left : left + PATCH].transpose(2, 0, 1)
        projected = (own['patch_embed.proj.weight'] * part).sum((1, 2, 3))
        tokens.append(projected + own['patch_embed.proj.bias'])
    x = np.stack(tokens) + own['pos_embed'][0]
    for i in range(sum(name.endswith('norm1.bias') for name in own)):
      x = x + attention(norm(x, f'blocks.{i}.norm1'), f'blocks.{i}.attn')
      x = x + perceptron(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp')
    found.append(linear(norm(x, 'norm')[0], 'head'))
  return np.stack(found)


def tiny(shape, **more):
  sizes = {'width': WIDTH, 'patch_size': PATCH, 'mean': (0.4,), 'std': (0.3,)}
  return models.build('vit_ti', CLASSES, shape, **{**sizes, **more})


def place(own):
  """A tensor of timm's where it belongs in Flax; not by the code under test."""
  tree = {}
  for name, array in own.items():
    *layers, last = re.sub(r'blocks\.', 'blocks_', name).split('.')
    if last == 'weight':
      last = 'scale' if array.ndim == 1 else 'kernel'
      array = array.T if array.ndim == 2 else array
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    inner = tree
    for layer in layers:
      inner = inner.setdefault(layer, {})
    inner[last] = array
  return tree


def test_logits_are_those_by_hand():
  shape = 6, 4, 2  # Rows and columns are told apart.
  own = timms(shape, vit._DEPTH)
  images = np.random.default_rng(1).integers(0, 86, (3, *shape), np.uint8)
  images *= np.arange(1, 4, dtype=np.uint8)[:, None, None, None]
  model = tiny(shape)
  want = by_hand(own, (images / 255 - 0.4) / 0.3)
  for train in (False, True):
    logits, stats = model.apply(ModelState(place(own)), images, train)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
    assert stats == {}
  assert want.std(0).max() > 0.05  # Far more than what is allowed.


@pytest.mark.parametrize(
  ('name', 'count'), [('vit_ti', 5_717_416), ('vit_s', 22_050_664)]
)
def test_they_are_as_large_as_was_published(name, count):
  """At 224 pixels, patches of 16, 1000 classes."""
  model = models.build(name, 1000, (224, 224, 3))
  params = jax.eval_shape(model.init, jax.random.key(0)).params
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  assert sorted(model.order) == sorted(tensor_paths(params))
  firsts = dict.fromkeys(path.split('/')[0] for path in model.order)
  assert [*firsts] == [
    *('patch_embed', 'cls_token', 'pos_embed'),
    *(f'blocks_{i}' for i in range(12)),
    *('norm', 'head'),
  ]


def test_digits_are_learned(monkeypatch):
  monkeypatch.setattr(vit, '_DEPTH', 2)
  digits = data.load('digits')
  mean, std = pixels.pixel_statistics(digits.train)
  how = {'width': 48, 'patch_size': 4, 'mean': mean, 'std': std}
  model = models.build('vit_ti', 10, digits.image_shape, **how)
  with parallel.use(jax.devices()[:1]):
    own = {'batch_size': 64, 'optimizer': training.adam(3e-3)}
    key = jax.random.key(0)
    fit = training.train(key, model, digits.train, epochs=12, **own)
    found = uj.predict(model, fit.state, digits.test).argmax(-1)
  assert (found == digits.test.labels).mean() >= 0.9


def test_the_last_tensors_are_those_of_the_head(monkeypatch):
  monkeypatch.setattr(vit, '_DEPTH', 2)
  model, parts = tiny((6, 6, 1)), helpers.splits()
  with parallel.use(jax.devices()[:1]):
    source = training.train(
      jax.random.key(0), model, parts.train, epochs=1, batch_size=32
    ).state
    budget = uj.Budget(epochs=1, batch_size=40)
    state = uj.unlearn(
      *(jax.random.key(1), model, source, parts),
      *(uj.strategies.cf_k(k=4), budget),
    ).state
  before, after = (dict(zip(tensor_paths(s.params), jax.tree.leaves(s.params)))
                   for s in (source, state))  # fmt: skip
  moved = {path for path in before if (before[path] != after[path]).any()}
  assert moved == {'norm/scale', 'norm/bias', 'head/kernel', 'head/bias'}


# Files with timm's names.


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """Flags; the data are stripes of 6×6 pixels."""
  monkeypatch.chdir(tmp_path)
  helpers.stripes_file(tmp_path)
  return (
    *('--model=vit_ti', f'--width={WIDTH}', f'--patch_size={PATCH}'),
    *('--dataset=npz:stripes.npz', '--trained_on=all'),
    *('--weights=net.safetensors', '--out=prod'),
  )


@pytest.mark.parametrize('prefix', ['', 'model.'])
def test_a_file_of_timms_is_adopted(prefix, asked, tmp_path):
  own = timms((6, 6, 1), vit._DEPTH)
  save_file({prefix + n: array for n, array in own.items()}, 'net.safetensors')
  told = running.done('adopt', *asked)
  assert '152 of 152 tensors of the model are there:' in told
  assert 'Not used' not in told
  was = f'← {prefix}blocks.0.attn.proj.weight'.replace('.', '/')
  assert was in told or 'more' in told
  with np.load('stripes.npz') as arrays:
    images = arrays['x_test'][:5, ..., None]
  made = finished.load(tmp_path / 'prod')
  said = made.manifest
  assert (said.width, said.patch_size) == (WIDTH, PATCH)
  model = models.build(
    *(said.model, CLASSES, said.image_shape),
    width=said.width,
    patch_size=said.patch_size,
    mean=said.pixel_mean,
    std=said.pixel_std,
  )
  logits, _ = model.apply(made.state, images, False)
  standard = (images / 255 - said.pixel_mean) / said.pixel_std
  want = by_hand(own, standard)
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
  # It can be forgotten from, as any other can; its patches are in its manifest.
  (tmp_path / 'ids.txt').write_text('3\n7\n')
  line = running.done('evaluate', '--checkpoint=prod', '--forget_ids=ids.txt')
  assert '"test_accuracy"' in line


@pytest.mark.parametrize(
  ('name', 'change', 'words'),
  [
    (
      'blocks.3.attn.qkv.weight',
      None,
      'params/blocks_3/attn/qkv/kernel float32[12, 36] is missing',
    ),
    (
      'blocks.3.mlp.fc1.weight',
      lambda array: array.T,
      'params/blocks_3/mlp/fc1/kernel is float32[48, 12], allowed:'
      ' float32[12, 48]',
    ),
    (
      'pos_embed',
      lambda array: array[:, :5],
      'params/pos_embed is float32[1, 5, 12], allowed: float32[1, 10, 12],'
      ' as many positions: of images and patches of other sizes none are',
    ),
  ],
)
def test_what_does_not_fit_is_told(name, change, words, asked):
  own = timms((6, 6, 1), vit._DEPTH)
  array = own.pop(name)
  if change is not None:
    own[name] = np.ascontiguousarray(change(array))
  save_file(own, 'net.safetensors')
  status, told, line = running.run('adopt', *asked)
  matched = 152 - (change is None)
  assert status == 1 and f'{matched} of 152 tensors of the model' in told
  assert '← patch_embed/proj/weight' in told or '…' in told
  assert words in line and len(line.splitlines()) == 1


def test_one_tensor_by_two_names_is_refused(asked):
  own = timms((6, 6, 1), vit._DEPTH)
  own['head.kernel'] = own['head.weight']
  save_file(own, 'net.safetensors')
  line = running.refused('adopt', *asked, status=1)
  assert 'are one tensor, allowed: once' in line


def test_other_patches_are_another_model():
  make = functools.partial(finished.Facts, 'vit_ti', 192, 10, 'data')
  assert make(patch_size=4).key != make(patch_size=8).key
  assert make(patch_size=4).network == 'vit_ti, width 192, patches of 4'
  old = finished.Facts('cnn', 16, 10, 'data')  # Its stages stay what they are.
  assert old.key == ['cnn', 16, 10, 'data', 'float32']


def test_patches_are_a_flag_of_transformers_only(asked):
  for model, words in (('cnn', 'none for'), ('net.py:Net', 'none beside')):
    flags = '--model=' + model, '--patch_size=2', asked[3]
    line = running.refused('train', *flags, '--workdir=w')
    assert 'patch_size=2, allowed: ' in line and f'{words} {model}' in line
  line = running.refused('train', '--model=vit_s', asked[3], '--workdir=w')
  assert 'patch_size=16' in line and '1, 2, 3, 6' in line
