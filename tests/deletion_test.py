"""A deletion request on photos, from a list of names to a record."""

import contextlib
import dataclasses
import hmac
import io
import json
import pathlib
import re
import shutil
import types

import flax
import helpers
import jax
import msgspec
import numpy as np
import PIL.Image
import pytest
import running
import safetensors
from safetensors.numpy import load
from sklearn.datasets import load_sample_image

from experiments import config, forget
from experiments.deletion import basis as bases
from experiments.deletion import bounds as limits
from experiments.deletion import evidence, ids, writing
from experiments.deletion import record as records
from experiments.report import wording
from experiments.study import canaries, lineage, planning, shadows, training
from experiments.study import setup as setups
from unlearn_jax import attacks, checkpoints, data, parallel
from unlearn_jax.base import Examples, InputError, Model, ModelState
from unlearn_jax.models import cnn
from unlearn_jax.prediction import predict

EACH, SIDE = 20, 8
DOC = pathlib.Path(__file__).parent.parent / 'docs' / 'deploy.md'


def cut_up(folder):
  """Two photos of scikit-learn's in squares: two classes, train and test."""
  for name, short in (('china', 'IMG'), ('flower', 'DSC')):
    photo = PIL.Image.fromarray(load_sample_image(f'{name}.jpg'))
    across = photo.width // SIDE
    places = np.random.default_rng(0).permutation(across * 50)[: 2 * EACH]
    for number, (y, x) in enumerate(map(lambda p: divmod(p, across), places)):
      part = 'train' if number < EACH else 'test'
      path = folder / part / name / f'{short}_{number:04d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      corner = SIDE * int(x), SIDE * int(y)
      square = (*corner, corner[0] + SIDE, corner[1] + SIDE)
      photo.crop(square).save(path)
  return folder


@pytest.fixture(scope='module')
def story(tmp_path_factory):
  """A source, and two requests, the second on the first one's result."""
  root = tmp_path_factory.mktemp('deletion')
  data = f'--dataset=folder:{cut_up(root / "photos")}'
  how = '--width=4', '--batch_size=8', '--train_epochs=4'
  running.done('train', data, f'--workdir={root / "prod"}', *how)
  (root / 'key').write_bytes(bytes(range(32)))
  (root / 'one.csv').write_bytes(
    b'\xef\xbb\xbfwhen,file\r\n1 Nov,IMG_0002.png\r\n\r\n'
    b'2 Nov,flower/DSC_0003.png\r\n3 Nov,IMG_0002.png\r\n'
    + f'4 Nov,{root}/photos/train/china/IMG_0005.png\r\n5 Nov,#7\r\n'.encode()
  )
  (root / 'two.txt').write_text('DSC_0004.png\n\n# why\nchina/IMG_0002.png\n')
  key = f'--key_file={root / "key"}'
  first = running.done(
    'forget',
    *(f'--source={root / "prod"}', f'--ids={root / "one.csv"}', key),
    *('--id_column=file', f'--out={root / "one"}', '--retrain'),
    '--strategy=finetune(epochs=1)',
  )
  second = running.done(
    'forget',
    *(f'--source={root / "one"}', f'--ids={root / "two.txt"}', key),
    f'--out={root / "two"}',
  )
  return root, key, first, second


def record_of(out):
  return json.loads((out / 'record.json').read_text())


def test_a_request_ends_with_a_verdict_and_two_paths(story):
  root, _, first, second = story
  own = record_of(root / 'one')
  lines = first.splitlines()
  assert lines[0] == 'Entries that name an image again, taken once: 1'
  assert lines[-5:-2] == own['verdict'] and len(own['verdict']) == 3
  assert lines[-2].startswith(f'Model: {root / "one" / "model"}')
  assert lines[-1] == f'Record: {root / "one" / "record.json"}'
  assert 'Approximate' in lines[-3] and 'Exact' in second.splitlines()[-3]
  assert 'Images that an earlier request forgot, left out: 1' in second


def test_a_record_names_no_image_and_no_path(story):
  root, *_ = story
  for out in (root / 'one', root / 'two'):
    for name in ('record.json', 'record.html'):
      text = (out / name).read_text()
      assert not re.search(r'\.png|IMG_|china|flower|photos', text)
      assert str(root) not in text and root.name not in text
  own = record_of(root / 'one')
  assert own['request']['images'] == len(own['request']['id_hashes']) == 4
  key = (root / 'key').read_bytes()
  wanted = records.hashes(key, ['china/IMG_0002.png', 'flower/DSC_0003.png'])
  assert {*wanted} <= {*own['request']['id_hashes']}
  assert own['request']['decision'] == 'unlearn' and own['request']['keyed']
  assert own['data']['images_before'] - own['data']['images_after'] == 4
  assert own['evidence']['compared']['gap_to_retrained'] >= 0


def test_what_was_forgotten_is_never_learned_again(story):
  root, *_ = story
  one, two = record_of(root / 'one'), record_of(root / 'two')
  trained = (root / 'two' / 'model' / 'trained.txt').read_text().split()
  forgotten = (root / 'one' / 'model' / 'forget.txt').read_text().split()
  assert len(trained) == 2 * EACH - 5 and not {*trained} & {*forgotten}
  assert (root / 'two' / 'model' / 'forget.txt').read_text() == (
    'flower/DSC_0004.png\n'
  )
  assert two['request']['number'] == 2 and two['request']['earlier'] == 1
  assert two['data']['before'] == one['data']['after']
  (back,) = two['evidence']['reversals']
  assert back['then'] == one['evidence']['result']['forget_accuracy']
  assert back['now'] == two['evidence']['result']['earlier'][0]
  before = records.sha256((root / 'one' / 'record.json').read_bytes())
  assert two['previous_record_sha256'] == before
  # θ₀ is the first source: only there are the two distances alike.
  assert one['evidence']['drift'] == one['evidence']['moved'] > 0
  assert two['evidence']['drift'] != two['evidence']['moved']
  assert len(two['evidence']['result']['all']) == 3
  # It was not prepared.
  assert two['evidence']['canaries'] is None
  assert bases.read_chain(root / 'two' / 'model').canaries == []


def test_evaluate_retains_nothing_that_an_earlier_request_forgot(story):
  root, *_ = story
  own, before = (root / name / 'model' for name in ('two', 'one'))
  family = lineage.read(own, config.Study(source_dir=str(before)), None)
  splits, ids = family.splits, family.setup.dataset.ids
  assert splits.retain.size == 2 * EACH - 5
  assert splits.train.size == 2 * EACH - 4
  gone = (before / 'forget.txt').read_text().split()
  assert len(gone) == 4 and not {*gone} & {*ids[splits.train.indices]}
  asked = f'--checkpoint={own}', f'--source_dir={before}'
  got = json.loads(running.done('evaluate', *asked))
  said = record_of(root / 'two')['evidence']['result']
  for name in ('retain_accuracy', 'forget_accuracy', 'test_accuracy'):
    assert got[name] == pytest.approx(said[name])
  line = running.refused('evaluate', asked[0], f'--source_dir={own}')
  assert 'was made with state_sha256=' in line


def test_attacks_of_the_comparison_see_test_images_of_its_classes(story):
  root, *_ = story
  out, source = root / 'one', next((root / 'prod' / 'checkpoints').iterdir())
  basis = bases.read(out / 'model', None, config.Archives())
  sets = basis.sets(basis.chain, basis.trained)
  unseen = data.class_matched(sets.requests[0], sets.test)
  # Of china 3 are forgotten and of flower 1.
  assert np.bincount(unseen.own_labels).tolist() == [EACH, EACH // 3]
  with parallel.use(jax.devices()[:1]):
    margins = [
      attacks.true_class_margin(
        predict(basis.setup.model, basis.own.state, part, logits=True),
        part.own_labels,
      )
      for part in (sets.requests[0], unseen)
    ]
  wanted = pytest.approx(attacks.auc(*margins))
  assert record_of(out)['evidence']['compared']['mia_auc'] == wanted
  asked = f'--checkpoint={out / "model"}', f'--source_dir={source}'
  assert json.loads(running.done('evaluate', *asked))['mia_auc'] == wanted


def test_the_record_of_an_earlier_format_is_one_line(story, tmp_path):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  path = tmp_path / 'one' / 'record.json'
  own = dataclasses.replace(records.read(path), format=1)
  for name, content in records.contents(own.sealed()).items():
    (path.parent / name).write_bytes(content)
  line = running.refused('verify', f'--record={path}', key)
  assert 'is of format 1, for the version that wrote it; allowed: 2' in line


def test_the_snippet_of_the_docs_loads_the_model(story, monkeypatch):
  root, *_ = story
  text = DOC.read_text()
  code, *_ = re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
  assert len(code.splitlines()) <= 10
  monkeypatch.chdir(root)
  files = sorted((root / 'photos' / 'test').rglob('*.png'))
  images = np.stack([np.asarray(PIL.Image.open(path)) for path in files])
  found = {'images': images}
  code = code.replace('2026-12/', 'one/').replace('width=16', 'width=4')
  with parallel.use(jax.devices()[:1]):
    exec(compile(code, str(DOC), 'exec'), found)
  labels = [['china', 'flower'].index(path.parent.name) for path in files]
  right = np.mean(np.asarray(found['logits']).argmax(1) == labels)
  record = record_of(root / 'one')
  assert right == record['evidence']['result']['test_accuracy']
  assert found['names'] == ['china', 'flower']
  # The record's own lines give the same.
  wanted, facts = found['logits'], load_facts(root / 'one')
  assert facts['pixels'] == '(pixels / 255 - mean) / std'
  net = cnn.CNN(num_classes=2, width=facts['width'])
  more = {'images': images, 'network': net, 'json': json}
  more |= {'flax': flax, 'safetensors': safetensors}
  monkeypatch.chdir('one')
  exec('\n'.join(record['loading']), more)
  np.testing.assert_allclose(more['logits'], wanted, rtol=1e-5, atol=1e-5)


def load_facts(out):
  with safetensors.safe_open(out / 'model.safetensors', 'np') as file:
    return {n: json.loads(text) for n, text in file.metadata().items()}


def test_hashes_are_hmacs_of_the_ids_by_the_key(story):
  root, *_ = story
  key, own = (root / 'key').read_bytes(), record_of(root / 'one')

  def hashed(*names):
    return hmac.new(key, '\n'.join(names).encode(), 'sha256').hexdigest()

  (source,) = (root / 'prod' / 'checkpoints').iterdir()
  knew, knows, forgotten = (
    path.read_text().splitlines()
    for path in (
      source / 'trained.txt',
      root / 'one' / 'model' / 'trained.txt',
      root / 'one' / 'model' / 'forget.txt',
    )
  )
  assert sorted(knew) == sorted([*knows, *forgotten]) and len(forgotten) == 4
  assert own['request']['id_hashes'] == sorted(map(hashed, forgotten))
  assert own['result']['trained_ids'] == hashed(*knows)
  assert own['source']['trained_ids'] == hashed(*knew)


def test_verify_computes_all_of_it_again(story):
  root, key, *_ = story
  for name in ('one', 'two'):
    out = running.done('verify', f'--record={root / name / "record.json"}', key)
    assert out.endswith('All that was checked matches; not checked: 0.\n')
    assert 'DIFFERS' not in out and 'matches      evidence' in out
  out = running.done('verify', f'--record={root / "one" / "record.json"}')
  assert 'not checked  hashes of ids: another key, or none' in out


@pytest.mark.parametrize(
  'name', ['record.json', 'record.html', 'model.safetensors', 'model']
)
def test_verify_names_a_file_in_which_a_byte_was_changed(story, name, tmp_path):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  path = tmp_path / 'one' / name
  every = helpers.files(path) if path.is_dir() else [path]
  for path in every:
    content, own = path.read_bytes(), str(path.relative_to(tmp_path / 'one'))
    if not content:
      continue
    place = content.rfind(b'0.') + 2 if path.suffix == '.json' else -1
    changed = bytearray(content)
    changed[place] ^= 1
    path.write_bytes(changed)
    where = f'--record={tmp_path / "one" / "record.json"}'
    status, out, err = running.run('verify', where, key)
    assert status == 1 and err.count('\n') == 1, path
    assert f'DIFFERS      {own}' in out or own in err, path
    path.write_bytes(content)


def test_verify_finds_what_is_missing_and_what_is_more(story, tmp_path):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  record = f'--record={tmp_path / "one" / "record.json"}'
  (tmp_path / 'one' / 'model' / 'forget.txt').unlink()
  (tmp_path / 'one' / 'model' / 'copy.txt').write_text('x')
  status, out, _ = running.run('verify', record, key)
  assert status == 1 and 'model/forget.txt: missing' in out
  assert 'model/copy.txt: not of the model' in out


def test_a_number_of_the_record_that_no_model_gives_is_named(story, tmp_path):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  path = tmp_path / 'one' / 'record.json'
  own = records.read(path)
  every = own.evidence.result.own  # Sealed anew by a forger.
  first = dataclasses.replace(every['accuracy'], forgotten=0.123)
  every['accuracy'] = first
  for name, content in records.contents(own.sealed()).items():
    (path.parent / name).write_bytes(content)
  status, out, _ = running.run('verify', f'--record={path}', key)
  # The verdict names it, too.
  assert status == 1 and out.count('DIFFERS') == 2
  assert 'DIFFERS      evidence: result.own.accuracy.forgotten is' in out


def _less(own, name):
  """A record without some numbers."""
  found = own.evidence
  (found.monitored if name == 'drift' else found.result.own).pop(name)
  return own


def _with(own, part, **values):
  changed = dataclasses.replace(getattr(own, part), **values)
  return dataclasses.replace(own, **{part: changed})


def _passed_off_as_exact(own):
  own = _with(own, 'method', strategy='retrain', exact=True, label='Retrain')
  own = _with(own, 'request', decision='retrain')
  return dataclasses.replace(own, **writing.sentences(own))


@pytest.mark.parametrize(
  ('out', 'forge', 'said'),
  [
    ('one', lambda own: _less(own, 'confidence'), 'leaves out result.own.conf'),
    ('one', lambda own: _less(own, 'drift'), 'leaves out monitored.drift'),
    (
      'one',
      lambda own: dataclasses.replace(
        _with(own, 'evidence', compared=None, retrained=None),
        retrained_sha256=msgspec.UNSET,
      ),
      'tensors of the Retrain',
    ),
    (
      'two',
      lambda own: _with(own, 'evidence', reversals=[]),
      'leaves out reversals.1.then',
    ),
    (
      'two',
      lambda own: _with(own, 'evidence', compared={'mia_auc': 0.5}),
      'no Retrain: numbers of one that the record lacks',
    ),
    (
      'one',
      _passed_off_as_exact,
      'method: strategy is finetune(epochs=1), not',
    ),
    (
      'one',
      lambda own: _with(own, 'method', seed=7),
      'method: seed is 0, not 7',
    ),
    (
      'one',
      lambda own: _with(own, 'method', label='Retrain'),
      'method: label is Fine-tune',
    ),
    ('one', lambda own: _with(own, 'request', images=9), 'images is 4, not 9'),
    (
      'one',
      lambda own: _with(own, 'request', keyed=False),
      'keyed is True, not',
    ),
    (
      'one',
      lambda own: _with(own, 'request', decision='retrain'),
      'decision: retrain was not done',
    ),
    (
      'one',
      lambda own: _with(own, 'request', scope='whole classes'),
      'scope is examples, not whole classes',
    ),
    (
      'one',
      lambda own: _with(own, 'data', images_after=9),
      'images_after is 36',
    ),
    (
      'one',
      lambda own: dataclasses.replace(own, verdict=['All is forgotten.']),
      'verdict and other sentences: verdict is [',
    ),
    (
      'one',
      lambda own: dataclasses.replace(own, limits=[]),
      'verdict and other sentences: limits is [',
    ),
  ],
)
def test_what_a_forger_changed_is_named(out, forge, said, story, tmp_path):
  root, key, *_ = story
  path = shutil.copytree(root / out, tmp_path / out) / 'record.json'
  own = forge(records.read(path))
  for name, content in records.contents(own.sealed()).items():
    (path.parent / name).write_bytes(content)
  status, told, _ = running.run('verify', f'--record={path}', key)
  assert status == 1 and 'matches      record.json' in told
  assert any('DIFFERS' in t and said in t for t in told.splitlines()), told


def test_the_page_is_that_of_the_record(story, tmp_path):
  root, key, *_ = story
  path = shutil.copytree(root / 'one', tmp_path / 'one') / 'record.json'
  own = records.read(path)

  def told(own):
    other = records.html(own).replace('Approximate', 'Exact')
    own = dataclasses.replace(own, page_sha256=records.sha256(other.encode()))
    own = dataclasses.replace(own, content_sha256=records.digest(own))
    for name, content in records.contents(own).items():
      (path.parent / name).write_bytes(content)
    (path.parent / records.PAGE).write_text(other)
    return running.run('verify', f'--record={path}', key)[1]

  assert 'DIFFERS      what record.html says' in told(own)
  # Pages of another version look otherwise.
  own = _with(own, 'code', source_sha256='0')
  assert 'not checked  what record.html says: another version' in told(own)


def test_the_retrain_of_a_record_is_no_other(story, tmp_path):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  (folder,) = (tmp_path / 'one' / 'checkpoints').glob('retrain-*')
  digest = json.loads((folder / 'manifest.json').read_text())['state_sha256']
  assert record_of(root / 'one')['retrained_sha256'] == digest
  # One that has none says nothing of it, as those of earlier versions.
  assert 'retrained_sha256' not in record_of(root / 'two')
  shutil.rmtree(folder)
  shutil.copytree(root / 'two' / 'model', folder)
  where = f'--record={tmp_path / "one" / "record.json"}'
  status, out, _ = running.run('verify', where, key)
  assert status == 1 and 'DIFFERS      tensors of the Retrain' in out


@pytest.mark.parametrize(
  'part, name, what',
  [
    ('request', 'id_hashes', 'hashes of the ids'),
    ('result', 'trained_ids', 'hash of the ids that it may know'),
    ('source', 'trained_ids', 'hash of the ids that the source knew'),
  ],
)
def test_no_other_ids_can_be_put_into_a_record(
  part, name, what, story, tmp_path
):
  root, key, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  path = tmp_path / 'one' / 'record.json'
  own = records.read(path)
  true = getattr(getattr(own, part), name)
  other = '0' * 64 if isinstance(true, str) else ['0' * 64, *true[1:]]
  changed = dataclasses.replace(getattr(own, part), **{name: other})
  own = dataclasses.replace(own, **{part: changed})

  def said(record, *more):
    for file, content in records.contents(record).items():
      (path.parent / file).write_bytes(content)
    status, out, _ = running.run('verify', f'--record={path}', *more)
    assert status == 1
    return [x.split(maxsplit=1)[1] for x in out.split('\n') if x[:2] == 'DI']

  # Its digest covers them, whoever has the key; sealed anew, the key tells.
  assert said(own)[0] == 'record.json: not as it was written'
  assert said(own.sealed(), key) == [what]


def test_forgotten_photos_may_be_gone(story, tmp_path):
  root, key, *_ = story
  photos = shutil.copytree(root / 'photos', tmp_path / 'photos')
  for name in (root / 'one' / 'model' / 'forget.txt').read_text().split():
    (photos / 'train' / name).unlink()
  data, asked = f'--dataset=folder:{photos}', tmp_path / 'ids.txt'
  record = f'--record={root / "one" / "record.json"}'
  out = running.done('verify', record, data, key)
  assert 'not checked  data before: 4 forgotten images are not there' in out
  asked.write_text('IMG_0009.png\nIMG_0002.png\n')
  out = tmp_path / 'next'
  how = f'--ids={asked}', f'--out={out}', f'--source={root / "one"}', data
  told = running.done('forget', *how, '--strategy=eu_k(k=1, epochs=1)')
  assert 'left out: 1' in told
  own = record_of(out)
  assert own['evidence']['reversals'][0]['now'] is None
  assert not own['request']['keyed']
  assert any('without a key' in line for line in own['limits'])
  # A photo less than that is other data.
  (photos / 'train' / 'china' / 'IMG_0001.png').unlink()
  line = running.refused(
    'forget', *how[:1], f'--out={tmp_path / "x"}', *how[2:]
  )
  assert 'lacks 1 images' in line and 'IMG_0001.png' in line
  assert not (tmp_path / 'x').exists()


def test_the_same_command_says_it_again_and_another_is_refused(story):
  root, key, first, _ = story
  own = (
    *(f'--source={root / "prod"}', f'--ids={root / "one.csv"}', key),
    *('--id_column=file', f'--out={root / "one"}', '--retrain'),
  )
  again = running.done('forget', *own, '--strategy=finetune(epochs=1)')
  assert again.splitlines()[-5:] == first.splitlines()[-5:]
  assert 'retrain  ' not in again
  line = running.refused('forget', *own, '--strategy=finetune(epochs=2)')
  assert f'--out={root / "one"} belongs to request=' in line


def test_all_that_is_unknown_is_named_at_once_with_its_line(story, tmp_path):
  root, *_ = story
  path = tmp_path / 'ids.txt'
  path.write_text('IMG_0002.png\n7\nnobody.png\n#40\ntest/china/IMG_0021.png\n')
  own = f'--source={root / "prod"}', f'--ids={path}', f'--out={tmp_path / "o"}'
  line = running.refused('forget', *own, status=1)
  assert '4 of 5 entries' in line and 'line 2' in line and '#7' in line
  for number, name in ((3, 'nobody'), (4, '#40'), (5, 'test/china')):
    assert re.search(rf"line {number}: '{name}", line)
  assert not (tmp_path / 'o').exists()


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--id_column=name'], 'one of the columns when, file'),
    (['--strategy=retrain, eu_k'], '--strategy='),
    (['--retrain_every=-1'], '--retrain_every=-1'),
    (['--retrain_if=atack>0.6'], 'some of attack>0.5 to 1, test_drop>0 to 100'),
    (['--retrain_if=attack<0.6'], '--retrain_if=attack<0.6, allowed: some of'),
    (
      ['--retrain_if=attack>1'],
      'returned>0 to 100, drift>0, canaries>0 to 1.73; each',
    ),
    (['--retrain_if=drift>1, drift>2'], 'each once'),
    (
      ['--retrain_if=drift>1', '--retrain', '--strategy=finetune'],
      '--retrain=true, allowed: false beside --retrain_if',
    ),
    (['--retrain'], 'another --strategy than retrain itself'),
    (['--decision=unlearn'], '--decision=unlearn'),
    (['--decision=maybe'], 'accept_risk'),
    (['--received=soon'], 'such as 2026-11-30'),
    (['--key_file=/dev/null'], 'is a pipe or a device'),
    (['--source=/no/such'], '--source=/no/such, allowed: a checkpoint'),
  ],
)
def test_what_cannot_be_asked(flags, words, story, tmp_path):
  root, *_ = story
  own = f'--source={root / "prod"}', f'--ids={root / "one.csv"}'
  more = '--id_column=file', f'--out={tmp_path / "out"}', *flags
  assert words in running.refused('forget', *own, *more)
  assert not (tmp_path / 'out').exists()


def test_every_second_request_is_carried_out_by_retrain(story, tmp_path):
  root, key, *_ = story
  ids, due, next_one = (tmp_path / name for name in ('ids.txt', 'b', 'c'))
  ids.write_text('china/IMG_0010.png\n')
  method = '--strategy=finetune(epochs=1)'
  own = [key, f'--ids={ids}', '--retrain_every=2', method]
  # The first since the source was `one`, and not exact.
  first = [*own, f'--source={root / "one"}', f'--out={due}', '--retrain']
  line = running.refused('forget', *first, '--decision=unlearn')
  assert 'another for --retrain_every=2' in line and not due.exists()
  told, record = running.done('forget', *first), record_of(due)
  said = 'by --retrain_every=2 in place of finetune(epochs=1): no weight'
  assert said in told and said in record['verdict'][-1]
  assert 'Request 2 since the last exact model' in told
  assert record['request']['decision'] == 'retrain'
  assert record['method']['strategy'] == 'retrain' and record['method']['exact']
  assert record['method']['parameters']['retrain_every'] == 2
  assert not (due / 'checkpoints').exists()  # It is the Retrain itself.
  gone = (root / 'one' / 'model' / 'forget.txt').read_text().split()
  kept = (due / 'model' / 'trained.txt').read_text().split()
  assert len(kept) == 2 * EACH - 5 and not {*kept} & {*gone}
  # From there on it is counted anew.
  ids.write_text('china/IMG_0011.png\n')
  told = running.done('forget', *own, f'--source={due}', f'--out={next_one}')
  assert 'last exact model: 1; retrain at 2' in told
  record = record_of(next_one)
  assert record['method']['strategy'] == 'finetune(epochs=1)'
  assert 'retrain_every' not in record['method']['parameters']
  assert bases.read_chain(next_one / 'model').inexact == 1


def test_a_model_that_breaks_a_bound_is_replaced_by_retrain(story, tmp_path):
  root, key, *_ = story
  ids, out = tmp_path / 'ids.txt', tmp_path / 'out'
  ids.write_text('china/IMG_0010.png\n')
  own = key, f'--ids={ids}', '--strategy=finetune(epochs=1)'
  where = f'--source={root / "one"}', f'--out={out}', '--decision=unlearn'
  bounds = '--retrain_if=test_drop>99, drift>0.001'
  told, record = running.done('forget', *own, *where, bounds), record_of(out)
  tried = record['replaced']
  (broken,) = tried['broken']
  assert broken['name'] == 'drift' and broken['limit'] == 0.001
  assert broken['value'] == tried['evidence']['drift'] > 0.001
  said = f'finetune(epochs=1) (drift {broken["value"]:.3f} > 0.001)'
  assert f'By retrain, not {said}' in told
  assert f'Exact, by --retrain_if in place of {said}: no weight' in told
  assert said in record['verdict'][-1]
  assert record['request']['decision'] == 'retrain'
  method = record['method']
  assert method['strategy'] == 'retrain' and method['exact']
  assert method['parameters']['in_place_of'] == 'finetune(epochs=1)'
  assert tried['method']['strategy'] == 'finetune(epochs=1)'
  assert wording.say('deletion_not_erased', 'replaced') in record['not_erased']
  assert bases.read_chain(out / 'model').inexact == 0
  page = (out / 'record.html').read_text()
  assert 'What was replaced' in page and 'drift' in page
  # The command again says the same, and trains nothing.
  again = running.done('forget', *own, *where, bounds)
  assert again.splitlines()[-5:] == told.splitlines()[-5:]
  assert 'retrain  ' not in again
  check = f'--record={out / "record.json"}', key
  said = running.done('verify', *check)
  assert 'matches      evidence of the model that was replaced, ' in said
  assert 'matches      tensors of the model that was replaced' in said
  assert 'matches      bounds' in said and said.endswith('not checked: 0.\n')
  # Whoever says that another bound was broken is found out.
  text = (out / 'record.json').read_bytes()
  forged = dataclasses.replace(records.read(out / 'record.json').replaced)
  forged.broken[0] = dataclasses.replace(forged.broken[0], limit=0.002)
  whole = records.read(out / 'record.json')
  for name, content in records.contents(
    dataclasses.replace(whole, replaced=forged).sealed()
  ).items():
    (out / name).write_bytes(content)
  status, said, _ = running.run('verify', *check)
  assert status == 1 and 'DIFFERS      bounds' in said
  for name, content in records.contents(whole.sealed()).items():
    (out / name).write_bytes(content)
  assert (out / 'record.json').read_bytes() == text
  shutil.rmtree(out / 'checkpoints')
  said = running.done('verify', *check)
  assert 'replaced: it is not in checkpoints/ any more' in said


def test_a_model_that_keeps_its_bounds_stays(story, tmp_path):
  root, key, *_ = story
  ids, digests = tmp_path / 'ids.txt', []
  ids.write_text('china/IMG_0010.png\n')
  own = key, f'--ids={ids}', f'--source={root / "one"}'
  for name, bounds in (
    ('bare', ()),
    (
      'kept',
      ('--retrain_if=drift>1000, attack>0.999, returned>99, canaries>1',),
    ),
  ):
    more = f'--out={tmp_path / name}', '--strategy=finetune(epochs=1)', *bounds
    told, record = (
      running.done('forget', *own, *more),
      record_of(tmp_path / name),
    )
    assert record['replaced'] is None and not record['method']['exact']
    assert 'By retrain' not in told and not told.count('[1/1]') > 1
    digests.append(record['result']['state_sha256'])
  assert digests[0] == digests[1]
  assert record['method']['parameters']['retrain_if'].startswith('drift>1000')
  missing = 'Not measured, so held to no bound: canaries.'
  assert missing == record['limits'][0]
  check = f'--record={tmp_path / "kept" / "record.json"}', key
  assert 'matches      bounds' in running.done('verify', *check)
  # Killed between its place and its record: nothing is made again.
  for name in ('record.json', 'record.html'):
    (tmp_path / 'kept' / name).unlink()
  told = running.done('forget', *own, *more)
  assert '[1/1]' not in told
  assert record_of(tmp_path / 'kept')['evidence'] == record['evidence']


def test_a_bound_is_broken_by_all_of_an_interval():
  own = evidence.Monitored
  found = types.SimpleNamespace(
    monitored={'attack': own(0.7, 0.08), 'drift': own(3.0, 0.0)}
  )
  bounds = limits.parse('attack>0.6, drift>2.9, returned>5')
  assert [str(each) for each in limits.broken(bounds, found)] == [
    'attack 0.700 ± 0.080 > 0.6',
    'drift 3.000 > 2.9',
  ]
  # Not all of it.
  bounds = limits.parse('attack>.63,drift>3')
  assert not limits.broken(bounds, found)


def test_what_is_monitored_has_the_intervals_of_textbooks():
  labels = np.zeros(8, int)
  images = np.arange(8, dtype=np.float32)
  part = Examples.of(images[:, None, None, None], labels)

  def apply(state, x, train):
    del train
    right = (x.reshape(len(x)) < state.params['w']).astype(np.float32)
    return np.eye(2)[0] * right[:, None] + np.array([0, 0.5]), {}

  model = Model(apply, None)
  first, result = (ModelState({'w': np.float32(w)}) for w in (8, 5))
  with parallel.use(jax.devices()[:1]):
    sets = evidence.Sets(part, part, [part.take(np.arange(4)), part])
    models = evidence.Models(result, origin=first)
    found = evidence.gather(model, sets, models, [0.25]).monitored
  lost = 100.0 * np.array([0] * 5 + [1] * 3)
  half = 1.96 * lost.std(ddof=1) / np.sqrt(8)
  assert found['test_drop'] == pytest.approx((37.5, half))
  # 1 of 4 then, 4 of 4 now: 2/6 and 5/6 by Agresti and Caffo.
  half = 196 * np.sqrt((2 / 6 * 4 / 6 + 5 / 6 * 1 / 6) / 6)
  assert found['returned'] == pytest.approx((75.0, half))
  assert found['drift'] == (3.0, 0.0)


def test_a_chain_of_an_earlier_version_is_read(tmp_path):
  file = tmp_path / bases.CHAIN
  file.write_text('[[["a"]],"source","origin",1,null,[[]]]')
  chain = bases.read_chain(tmp_path)
  assert chain == bases.Chain([['a']], 'source', 'origin', 1, [], [[]])
  file.write_text('[[["a"]],"source","origin"]')
  with pytest.raises(InputError, match=bases.CHAIN):
    bases.read_chain(tmp_path)


def test_a_record_that_was_changed_is_no_basis(story, tmp_path):
  root, *_ = story
  shutil.copytree(root / 'one', tmp_path / 'one')
  path = tmp_path / 'one' / 'record.json'
  path.write_text(path.read_text().replace('"number": 1', '"number": 7'))
  own = f'--ids={root / "two.txt"}', f'--out={tmp_path / "out"}'
  line = running.refused('forget', f'--source={tmp_path / "one"}', *own)
  assert 'its record is not as it was written' in line


# Names.

KNOWN = ['a/x.png', 'b/x.png', 'b/y.png', 'b/287', '12']


def named(content, tmp_path, earlier=(), column=None):
  path = tmp_path / 'ids'
  path.write_text(content)
  some = {*KNOWN} - {*earlier}
  data = f'folder:{tmp_path}/data'
  return ids.read(path, column, data, KNOWN, some, {*earlier})


@pytest.mark.parametrize(
  ('content', 'found'),
  [
    ('y.png', ['b/y.png']),
    ('b\\y.png\n\n', ['b/y.png']),
    ('data/train/b/x.png', ['b/x.png']),
    ('train/a/x.png\n./b/x.png', ['a/x.png', 'b/x.png']),
    ('287\n12\n#1', ['b/x.png', 'b/287', '12']),
  ],
)
def test_names(content, found, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert named(content, tmp_path).ids == found


def test_a_name_of_several_files_is_none(tmp_path):
  with pytest.raises(InputError, match='one of a/x.png, b/x.png?'):
    named('x.png', tmp_path)


def test_a_column_of_a_table_from_a_spreadsheet(tmp_path):
  content = 'id;note\n"y.png";"a;\nb"\nb/x.png;\n'
  assert named(content, tmp_path, column='id').ids == ['b/x.png', 'b/y.png']


def test_what_was_asked_for_earlier_may_not_be_there_any_more(tmp_path):
  asked = named('y.png\ngone.png\n', tmp_path, ['c/gone.png'])
  assert asked == (['b/y.png'], 0, 1)


# Evidence.


def test_the_null_is_that_of_the_rank_sum_test():
  rng = np.random.default_rng(0)
  logits, others = rng.normal(size=(30, 2)), rng.normal(size=(50, 2))
  zeros = np.zeros(30, int), np.zeros(50, int)
  found = evidence.against(logits, zeros[0], others, zeros[1])
  attack = found[evidence.AUC]
  deviation = np.sqrt((30 + 50 + 1) / (12 * 30 * 50))
  # By lot: two sides of it have 1 in 60.
  assert attack.half_width == pytest.approx(2.394 * deviation, rel=0.05)
  higher = logits[:, :1] - logits[:, 1:] > (others[:, 0] - others[:, 1])
  assert attack.forgotten == pytest.approx(higher.mean())


@pytest.mark.parametrize('few', [1, 2, 3, 5, 10])
def test_few_images_that_no_model_saw_are_rarely_flagged(few, monkeypatch):
  monkeypatch.setattr(evidence, '_LOTS', 300)
  rng, flagged = np.random.default_rng(few), []
  for mean in 1.08, 1.28, 1.64:  # Accuracy .86, .9, .95.
    for _ in range(80):
      logits = np.stack([rng.normal(mean, size=60 + few), np.zeros(60 + few)])
      zeros = np.zeros(few, int), np.zeros(60, int)
      pair = logits.T[:few], zeros[0], logits.T[few:], zeros[1]
      flagged.append(any(c.differs for c in evidence.against(*pair).values()))
  assert np.mean(flagged) <= 0.05


def test_few_images_that_are_known_better_than_any_other_are_flagged():
  others = np.stack([np.linspace(-1, 3, 200), np.zeros(200)], 1)
  zeros = np.zeros(1, int), np.zeros(200, int)
  for top, flagged in ((2.9, False), (3.1, True)):
    found = evidence.against(np.array([[top, 0]]), zeros[0], others, zeros[1])
    # One that is right tells nothing: most are.
    assert not found['accuracy'].differs
    assert found[evidence.AUC].differs == flagged
  # Of five images none is a sixtieth.
  five = evidence.against(
    np.array([[9.0, 0]]), zeros[0], others[:5], zeros[1][:5]
  )
  assert not any(row.differs for row in five.values())


def test_classes_are_held_against_themselves_alone():
  # A class that all models know well, and one that they do not.
  logits = np.array([[9.0, 0], [9, 0], [9, 0], [0, 0]])
  labels = np.array([0, 0, 0, 1])
  others, theirs = np.array([[9.0, 0], [0, 0], [0, 0], [0, 0]]), [0, 1, 1, 1]
  found = evidence.against(logits, labels, others, np.array(theirs))
  assert all(row.difference == 0 and not row.differs for row in found.values())
  assert not evidence.against(logits[:3], labels[:3], others, np.ones(4, int))


def test_images_that_it_knows_less_than_others_stand_out_too():
  """It says who they were, as much as knowing them better does."""
  others = np.random.default_rng(2).normal(size=(50, 2))
  zeros = np.zeros(50, int)
  for shift in (-3, 3):
    logits = others + np.array([shift, 0])
    found = evidence.against(logits, zeros, others, zeros)
    for name, row in found.items():
      assert row.difference * shift > 0 and row.differs, name


@pytest.mark.parametrize('trace', [0.0, 1.0])
def test_models_that_never_saw_an_image_tell_how_hard_it_is(trace):
  rng = np.random.default_rng(1)
  hard = rng.normal(scale=4, size=(2, 100))
  logits = np.stack([hard + np.array([[trace], [0]]), np.zeros((2, 100))], 2)
  unseen = [own + rng.normal(scale=0.3, size=(2, 100)) for own in hard]
  zeros = np.zeros(100, int)
  four = logits[0], zeros, logits[1], zeros
  assert not evidence.against(*four)[evidence.AUC].differs
  found = evidence.against(*four, unseen)
  assert found[evidence.AUC].differs == bool(trace)
  score = [
    attacks.rmia(-np.log1p(np.exp(-z[:, 0])), -np.log1p(np.exp(-phi)))
    for z, phi in zip(logits, unseen)
  ]
  wanted = attacks.auc(*score)
  assert found[evidence.AUC].forgotten == pytest.approx(wanted)


def test_halves_are_told_of_by_who_never_saw_them(tmp_path, monkeypatch):
  numbers = iter(range(4))
  study = running.study(dataset='digits', train_subset=101, workdir=tmp_path)
  setup = setups.set_up(study)
  total, tests = 101, setup.dataset.test.size
  named = types.SimpleNamespace(state=None)
  monkeypatch.setattr(training, 'fitted', lambda *_: named)
  look = np.full(total + tests, 1.0)
  monkeypatch.setattr(shadows, 'look', lambda *_: (look * next(numbers), None))
  source = planning.Planner(study, setup, tmp_path).source(0)
  stage = shadows.halves(source)
  anything = types.SimpleNamespace(part=lambda *_: None, after=id)
  tree = stage.work(stage, anything, anything).tree
  assert stage.key != source.key and tree['phi'].shape == (2, total + tests)
  learned = tree['learned']
  assert learned.sum(1).tolist() == [50] * 4
  assert ((learned[::2] ^ learned[1::2]).sum(1) == 100).all()
  assert (learned[0] != learned[2]).any()
  for pair, phi in enumerate(tree['phi'].astype(int)):
    assert {*phi} == {2 * pair, 2 * pair + 1}
    assert not learned[phi[:total], np.arange(total)].any()
    assert abs((phi[total:] == 2 * pair).mean() - 0.5) < 0.01


def test_a_source_that_was_prepared_is_attacked_by_its_halves(story, tmp_path):
  root, key, *_ = story
  data, work = f'--dataset=folder:{root / "photos"}', tmp_path / 'prod'
  how = '--width=4', '--batch_size=8', '--train_epochs=4'
  more = f'--workdir={work}', '--prepare_for_deletion'
  line = running.refused('train', data, *more, '--batch_size=21', status=2)
  assert line == 'error: --batch_size=21, allowed: at most 20, half of D\n'
  told = running.done('train', data, *how, *more)
  assert 'Canaries that were planted: ' in told
  (folder,) = (work / 'checkpoints').glob('*-unseen-*')
  said = checkpoints.read_manifest(folder)
  assert said['canaries'] == 2 * EACH // 5
  (folder.parent / f'.{folder.name}.partial').mkdir()  # One that was stopped.
  out, ids = tmp_path / 'out', tmp_path / 'ids.txt'
  ids.write_text('DSC_0004.png\nIMG_0002.png\n#7\n')
  asked = f'--source={work}', f'--ids={ids}', key, f'--out={out}'
  running.done('forget', *asked, '--strategy=finetune(epochs=1)')
  record = record_of(out)
  digest = records.sha256((folder / 'manifest.json').read_bytes())
  assert record['evidence']['attack'].endswith(f'SHA-256 {digest}.')
  assert wording.say('deletion_not_erased', 'unseen') in record['not_erased']
  # From the models' own outputs, in the order of the data set.
  basis = bases.read(out / 'model', None, config.Archives())
  sets = basis.sets(basis.chain, basis.trained)
  own, test = sets.requests[0], sets.test
  tree, _ = checkpoints.restore_tree(folder)
  with parallel.use(jax.devices()[:1]):
    z = [
      predict(basis.setup.model, basis.own.state, e, logits=True)
      for e in (own, test)
    ]
  phi = [tree['phi'][:, own.indices], tree['phi'][:, 2 * EACH :]]
  wanted = evidence.against(z[0], own.own_labels, z[1], test.own_labels, phi)
  said = record['evidence']['result']['own'][evidence.AUC]['forgotten']
  assert said == pytest.approx(wanted[evidence.AUC].forgotten)
  bare = evidence.against(z[0], own.own_labels, z[1], test.own_labels)
  assert said != bare[evidence.AUC].forgotten
  where = f'--record={out / "record.json"}', key
  assert running.done('verify', *where).endswith('not checked: 0.\n')
  # Who says that φ is of other images needs another manifest.
  path, manifest = folder / 'trained.txt', folder / 'manifest.json'
  first, second, *rest = path.read_text().split('\n')
  path.write_text('\n'.join([second, first, *rest]))
  status, told, _ = running.run('verify', *where)
  assert status == 1 and 'trained.txt does not have the digest' in told
  forged = json.loads(manifest.read_text())
  forged['files_sha256']['trained.txt'] = records.sha256(path.read_bytes())
  del forged['manifest_sha256']
  text = json.dumps(forged, sort_keys=True).encode()
  manifest.write_text(
    json.dumps({**forged, 'manifest_sha256': records.sha256(text)})
  )
  told = running.done('verify', *where)
  assert 'not checked  the attack: its models of halves' in told
  shutil.rmtree(folder)
  told = running.done('verify', *where)
  assert 'not checked  the attack: its models of halves' in told


def test_each_request_forgets_canaries_of_its_own(story, tmp_path):
  root, key, *_ = story
  photos = shutil.copytree(root / 'photos', tmp_path / 'photos')
  work, ids = tmp_path / 'prod', tmp_path / 'ids.txt'
  how = '--width=4', '--batch_size=8', '--train_epochs=4', '--canaries=24'
  data = f'--dataset=folder:{photos}'
  running.done('train', data, *how, f'--workdir={work}')
  (file,) = work.rglob(canaries.FILE)
  planted = file.read_text().split()
  share = -(-len(planted) // 8)
  basis = bases.read(file.parent, None, config.Archives())
  assert {*basis.canaries([])} <= {*planted}
  # The first that it would take is named itself, so it takes the next.
  first, plain = basis.canaries([])[0], sorted({*basis.rows} - {*planted})[0]
  ids.write_text(f'{first}\n{plain}\n')
  method = f'--ids={ids}', key, '--strategy=finetune(epochs=1)'
  told = running.done(
    'forget', *method, f'--source={work}', f'--out={tmp_path / "a"}'
  )
  record, chain = (
    record_of(tmp_path / 'a'),
    bases.read_chain(tmp_path / 'a/model'),
  )
  (spent,) = chain.spent
  assert len(spent) == share and {*spent} <= {*planted} - {first}
  assert f'Canaries: {share} forgotten too, ' in told
  left = len(planted) - share - 1
  assert record['evidence']['canaries']['forgotten'] == share
  assert record['evidence']['canaries']['left'] == left
  # The user's numbers are of the user's images.
  assert record['request']['images'] == len(record['request']['id_hashes']) == 2
  facts = record['data']
  assert facts['images_before'] - facts['images_after'] == 2 + share
  basis = bases.read(tmp_path / 'a' / 'model', None, config.Archives())
  assert not {*basis.trained} & {first, plain, *spent}
  sets = basis.sets(basis.chain, basis.trained)
  assert [own.size for own in sets.requests] == [2]
  groups = sets.noise.groups
  assert [sets.noise.names[n] for n in groups['forgotten']] == sorted(
    spent, key=basis.chain.canaries.index
  )
  assert groups['never_planted'].size == 24 - len(planted)
  page = (tmp_path / 'a' / 'record.html').read_text()
  assert 'canaries.forgotten.mean' in page and 'other draws' in page
  check = f'--record={tmp_path / "a" / "record.json"}', key
  assert running.done('verify', *check).endswith('not checked: 0.\n')
  # Photos go; who names what was spent is told that it is forgotten.
  (photos / 'train' / plain).unlink()
  (photos / 'train' / first).unlink()
  other = sorted({*basis.rows} - {*planted, plain})[0]
  ids.write_text(f'{spent[0]}\n{other}\n')
  told = running.done(
    'forget', *method, f'--source={tmp_path / "a"}', f'--out={tmp_path / "b"}'
  )
  assert 'Images that an earlier request forgot, left out: 1' in told
  chain = bases.read_chain(tmp_path / 'b' / 'model')
  assert chain.spent[0] == spent and len(chain.spent[1]) == min(share, left)
  assert not {*chain.spent[0]} & {*chain.spent[1]}
  found = record_of(tmp_path / 'b')['evidence']['result']['canaries']
  assert found['all']['images'] == found['forgotten']['images'] + share
  check = f'--record={tmp_path / "b" / "record.json"}', key
  assert 'DIFFERS' not in running.done('verify', *check)
  # An exact method spends none.
  ids.write_text(f'{sorted({*basis.rows} - {*planted, plain, other})[0]}\n')
  more = f'--source={tmp_path / "b"}', f'--out={tmp_path / "c"}'
  told = running.done('forget', *method[:2], *more)
  counts = record_of(tmp_path / 'c')['evidence']['canaries']
  assert 'Canaries' not in told and counts['forgotten'] == 0
  assert counts['left'] == left - len(chain.spent[1])
  basis = dataclasses.replace(basis, trained=[])
  assert basis.canaries([]) == []


def test_the_default_method_is_exact():
  assert forget.Forget().strategy == 'retrain'


def test_a_model_is_the_same_in_both_files(story):
  root, *_ = story
  flat = load((root / 'two' / 'model.safetensors').read_bytes())
  assert {name.partition('/')[0] for name in flat} == {'params', 'batch_stats'}
  with contextlib.redirect_stdout(io.StringIO()):
    state = records.model_facts(root / 'two' / 'model', b'', []).state_sha256
  assert state == record_of(root / 'two')['result']['state_sha256']
