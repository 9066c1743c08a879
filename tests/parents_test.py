"""Wrong parents: checkpoints of other data, sources, forget sets, recipes.

Each is refused by the name of its folder, before anything is computed (see
`fuzzing.BINARIES` for where that would begin) or written.
"""

import shutil

import fuzzing
import jax
import pytest

from unlearn_jax import parallel

COMMON = (
  '--dataset=digits',
  '--width=2',
  '--batch_size=40',
  '--train_learning_rate=0.01',
)
UNLEARN = ('--epochs=1', '--seeds=1', '--k=5', '--sensitivity_examples=40')


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Folders by name: real checkpoints of a net that trains in a second."""
  root = tmp_path_factory.mktemp('parents')

  def run(binary, workdir, *arguments):
    folder = root / workdir / 'checkpoints'
    before = set(folder.iterdir()) if folder.exists() else set()
    status, text = fuzzing.run_binary(
      binary,
      [*COMMON, *arguments, f'--workdir={root / workdir}'],
      whole=True,
    )
    assert status == 0, text
    new = set(folder.iterdir()) - before
    return {path.name.split('-')[1]: path for path in new}

  with parallel.use(jax.devices()[:1]):
    own = ('--train_subset=200', '--train_epochs=8')
    main = run('unlearn', 'own', *own, *UNLEARN, '--strategies=retrain,top_k')
    twin = run('train', 'own', *own, '--source_seed=1', '--subset=retain')
    split = run('train', 'own', *own, '--split_seed=5', '--subset=retain')
    longer = ('--train_subset=200', '--train_epochs=2', '--subset=retain')
    recipe = run('train', 'own', *longer)
    fewer = ('--train_subset=160', '--train_epochs=1', '--subset=retain')
    data = run('train', 'fewer', *fewer)
  return {
    'root': root,
    'source': main['source'],
    'retrain': main['retrain'],
    'top_k': main['top_k'],
    'source of another seed': twin['source'],
    'retrain of another seed': twin['retrain'],
    'retrain of another split': split['retrain'],
    'source of another recipe': recipe['source'],
    'retrain of another recipe': recipe['retrain'],
    'source of other data': data['source'],
    'retrain of other data': data['retrain'],
    'workdir of other data': root / 'fewer',
  }


SOURCE, RETRAINED = '--source_dir={}', '--retrained_dir={}'
WRONG = [
  # A binary, a flag, in words what the flag names, and what is said of it.
  ('unlearn', SOURCE, 'source of other data', 'data_fingerprint='),
  ('unlearn', SOURCE, 'retrain', 'holds a retrain model, allowed: source'),
  ('unlearn', SOURCE, 'top_k', 'holds a top_k model, allowed: source'),
  ('unlearn', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('unlearn', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('unlearn', RETRAINED, 'retrain of other data', 'data_fingerprint='),
  ('unlearn', RETRAINED, 'source', 'forget_sha256=None'),
  ('unlearn', RETRAINED, 'top_k', 'holds a top_k model, allowed: retrain'),
  ('unlearn+', RETRAINED, 'retrain of another seed', 'parent_sha256='),
  ('unlearn', '--workdir={}', 'workdir of other data', 'data_fingerprint='),
  ('train', '--workdir={}', 'workdir of other data', 'data_fingerprint='),
  ('evaluate', SOURCE, 'source of another seed', 'state_sha256='),
  ('evaluate', SOURCE, 'source of other data', 'data_fingerprint='),
  ('evaluate', SOURCE, 'retrain', "strategy='retrain'"),
  ('evaluate', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('evaluate', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('evaluate', RETRAINED, 'retrain of other data', 'data_fingerprint='),
  ('evaluate', RETRAINED, 'top_k', "strategy='top_k'"),
  ('spd_gan', '--source={}', 'source of another seed', 'parent_sha256='),
  ('spd_gan', '--source={}', 'source of other data', 'data_fingerprint='),
  ('spd_gan', '--unlearned={}', 'retrain of other data', 'data_fingerprint='),
  ('spd_gan', RETRAINED, 'retrain of another split', 'forget_sha256='),
  ('spd_gan', RETRAINED, 'retrain of another recipe', 'epochs=2, the source'),
  ('spd_gan', RETRAINED, 'top_k', "strategy='top_k'"),
  ('spd_gan', '--null_dir={}', 'source', 'not the source itself'),
  ('spd_gan', '--null_dir={}', 'top_k', 'a source model; this is top_k'),
  ('spd_gan', '--null_dir={}', 'retrain', 'a source model; this is retrain'),
  ('spd_gan', '--null_dir={}', 'source of other data', 'data_fingerprint='),
  ('spd_gan', '--null_dir={}', 'source of another recipe', 'epochs=2, the'),
  ('spd_gan', '--workdir={}', 'workdir of other data', 'data_fingerprint='),
]
# A Retrain owes nothing to the source: that of another seed will do, except
# where the clock of Retrain is read, which was held against its own source.
RIGHT = [
  ('unlearn', SOURCE, 'source'),
  ('unlearn', SOURCE, 'source of another seed'),
  ('unlearn', RETRAINED, 'retrain'),
  ('unlearn+', RETRAINED, 'retrain'),
  ('evaluate', SOURCE, 'source'),
  ('evaluate', RETRAINED, 'retrain'),
  ('evaluate', RETRAINED, 'retrain of another seed'),
  ('spd_gan', RETRAINED, 'retrain of another seed'),
  ('spd_gan', '--null_dir={}', 'source of another seed'),
]


def told(made, binary, flag, name):
  new = made['root'] / NEW
  own = ['--train_subset=200', '--train_epochs=8', f'--workdir={new}']
  base = {
    'unlearn': [*COMMON, *own, *UNLEARN, '--strategies=retrain,top_k'],
    'train': [*COMMON, *own],
    'evaluate': [f'--checkpoint={made["top_k"]}'],
    'spd_gan': [
      f'--source={made["source"]}',
      f'--unlearned={made["top_k"]}',
      '--batch_size=2',
      f'--workdir={new}',
    ],
  }
  base['unlearn+'] = [*base['unlearn'], f'--source_dir={made["source"]}']
  return [*base[binary], flag.format(made[name])]


NEW = 'a_new_folder'


@pytest.mark.parametrize('binary, flag, name, words', WRONG)
def test_wrong_parents_are_refused(binary, flag, name, words, made):
  arguments = told(made, binary, flag, name)
  with fuzzing.case('parents', made['root']):
    status, text = fuzzing.check_binary(binary.rstrip('+'), arguments)
  assert status in (1, 2) and words in text, text
  assert str(made[name]) in text


@pytest.mark.parametrize('binary, flag, name', RIGHT)
def test_right_parents_are_taken(binary, flag, name, made):
  arguments = told(made, binary, flag, name)
  status, text = fuzzing.check_binary(binary.rstrip('+'), arguments)
  assert status == 0, text
  shutil.rmtree(made['root'] / NEW, ignore_errors=True)
