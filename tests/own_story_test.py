"""One's own photos, network and weights, from a folder to a checked record."""

import importlib.util
import json
import pathlib
import re

from flax.traverse_util import flatten_dict, unflatten_dict
import helpers
import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import running
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from unlearn_jax import data, models, parallel, training

EACH, SIDE = 16, 12
DOC = pathlib.Path(__file__).parent.parent / 'docs' / 'own-weights.md'
# As the page has it.
NET, _ = re.findall(r'^```python\n(.*?)^```$', DOC.read_text(), re.M | re.S)


def cut_up(folder):
  """Photos of scikit-learn's, in pieces of all sizes, PNG and JPEG."""
  rng = np.random.default_rng(0)
  for name in ('china', 'flower'):
    photo = PIL.Image.fromarray(load_sample_image(f'{name}.jpg'))
    for number in range(2 * EACH):
      part = 'train' if number < EACH else 'test'
      kind = 'jpg' if number % 2 else 'png'
      path = folder / part / name / f'{name[0]}{number:02d}.{kind}'
      path.parent.mkdir(parents=True, exist_ok=True)
      wide, high = rng.integers(SIDE, 3 * SIDE, 2).tolist()
      left = int(rng.integers(0, photo.width - wide))
      top = int(rng.integers(0, photo.height - high))
      photo.crop((left, top, left + wide, top + high)).save(path)
  (folder / 'train' / 'china' / 'Thumbs.db').write_bytes(b'\0')
  (folder / '__MACOSX').mkdir()
  return folder


def theirs(place):
  """Their program: it trains a network, and saves it without us."""
  spec = importlib.util.spec_from_file_location('theirs', place / 'net.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  net = module.Net(num_classes=2, width=6)
  photos = data.load(f'folder:{place}/photos', image_size=(SIDE, SIDE))
  model = models.from_linen(net, photos.image_shape, scale=255)
  with parallel.use(jax.devices()[:1]):
    how = {'epochs': 20, 'batch_size': 8, 'optimizer': training.adam(0.01)}
    state = training.train(jax.random.key(1), model, photos.train, **how).state
  both = flatten_dict(state._asdict(), sep='.')
  save_file(
    {n: np.array(a) for n, a in both.items()}, place / 'net.safetensors'
  )
  return net


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  root = tmp_path_factory.mktemp('story')
  cut_up(root / 'photos')
  (root / 'net.py').write_text(NET)
  (root / 'one.csv').write_bytes(b'id;why\r\nc00.png;a\r\nflower/f01.jpg;b\r\n')
  (root / 'two.txt').write_text('c02.png\nf03.jpg\n')
  (root / 'key').write_bytes(bytes(range(32)))
  return root


def test_the_whole_story(place, monkeypatch):
  monkeypatch.chdir(place)
  net = theirs(place)
  model, photos = '--model=net.py:Net(width=6)', '--dataset=folder:photos'
  key = '--key_file=key'
  own = (
    *('--weights=net.safetensors', model, photos, '--trained_on=all'),
    *('--recipe=paper', '--train_epochs=20', '--batch_size=8', '--out=prod'),
  )
  line = running.refused('adopt', *own)
  assert re.search(r'allowed is \d+x\d+ like .*, or --image_size=H,W', line)
  told = running.done('adopt', *own, f'--image_size={SIDE},{SIDE}')
  assert 'Entries that are no images, skipped: 2 ' in told
  assert '10 of 10 tensors of the model are there:' in told
  said = dict(re.findall(r'^(test|trained) +accuracy ([\d.]+) %', told, re.M))
  assert float(said['test']) > 60 and float(said['trained']) > 80

  first = '--source=prod', '--ids=one.csv', '--id_column=id', key
  line = running.refused('forget', *first, '--out=one')
  assert 'allowed: --model=net.py:Net(width=6)' in line
  running.done('forget', *first, '--out=one', model)
  record = json.loads(pathlib.Path('one/record.json').read_text())
  assert record['request']['images'] == 2 and record['method']['exact']

  # Whoever uses the model needs the network, and nothing of ours.
  with safe_open('one/model.safetensors', 'np') as file:
    flat = {name: file.get_tensor(name) for name in file.keys()}
    facts = {n: json.loads(text) for n, text in file.metadata().items()}
  assert facts['model'] == 'net.py:Net(width=6)'
  assert facts['class_names'] == ['china', 'flower']
  height, width, _ = facts['input_size']
  images, labels = [], []
  for path in sorted(pathlib.Path('photos/test').rglob('*.*')):
    image = PIL.Image.open(path).convert('RGB')
    images.append(np.asarray(PIL.ImageOps.fit(image, (width, height))))
    labels.append(facts['class_names'].index(path.parent.name))
  pixels = (np.stack(images) / 255 - facts['mean']) / facts['std']
  logits = net.apply(unflatten_dict(flat, sep='/'), pixels, train=False)
  share = (np.asarray(logits).argmax(-1) == labels).mean()
  assert share == record['evidence']['result']['test_accuracy']

  check = '--record=one/record.json', key, model
  out = running.done('verify', *check)
  assert 'DIFFERS' not in out and out.endswith('not checked: 0.\n')
  line = running.refused('verify', '--record=one/record.json', key, status=2)
  assert 'allowed: net.py:Net(width=6), with the path of its file' in line

  # A second request on top, and then one byte is changed.
  again = '--source=one', '--ids=two.txt', key, '--out=two', model
  running.done('forget', *again, '--strategy=finetune(epochs=1)')
  check = '--record=two/record.json', key, model
  assert 'DIFFERS' not in running.done('verify', *check)
  helpers.flip(pathlib.Path('two/model.safetensors'))
  status, out, _ = running.run('verify', *check)
  assert status == 1 and 'DIFFERS      model.safetensors' in out
