"""`experiments.spd_gan` as a person meets it: results, repeats, bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from absl import flags as absl_flags
import helpers
import jax
import matplotlib.image
import numpy as np
import pytest

from experiments import (
  degree,
  degree_figures,
  flags,
  pairs,
  preemption,
  spd_gan,
)
from unlearn_jax import checkpoints, data, models, parallel, training
from unlearn_jax.base import InputError
from unlearn_jax.degree import unlearning_degree

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = {
  'optimizer': 'adam',
  'epochs': 8,
  'learning_rate': 0.01,
  'batch_size': 24,
  'augment': False,
}


@pytest.fixture(autouse=True)
def one_device():
  with parallel.use(jax.devices()[:1]):
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with data and the checkpoints source, unlearned and blank."""
  root = tmp_path_factory.mktemp('spd_gan')
  path = helpers.stripes_file(root, train=120, test=40)
  dataset = data.load(f'npz:{path}')
  facts = {
    'model': 'cnn',
    'width': 4,
    'dtype': 'float32',
    'num_classes': 3,
    'image_shape': [6, 6, 1],
    'pixel_mean': [0.5],
    'pixel_std': [0.25],
    'dataset': f'npz:{path}',
    'train_subset': None,
    'data_fingerprint': dataset.fingerprint,
  }
  model = models.build('cnn', 3, (6, 6, 1), width=4)
  with parallel.use(jax.devices()[:1]):
    states = [
      training.train(
        jax.random.key(seed),
        model,
        dataset.train,
        epochs=8,
        batch_size=24,
        optimizer=training.adam(0.01),
      ).state
      for seed in (0, 1)
    ]
  config = {'recipe': RECIPE, 'source_seed': 0}
  own = {**facts, 'strategy': 'source', 'parent_sha256': None}
  digest = checkpoints.save(
    root / 'made' / 'source', states[0], {**own, 'config': config}
  )
  blank = states[0]._replace(
    params=jax.tree.map(np.zeros_like, states[0].params)
  )
  checkpoints.save(root / 'made' / 'blank', blank, {**own, 'config': config})
  forget = {'forget.txt': '\n'.join(map(str, range(30))).encode()}
  unlearned = {**own, 'strategy': 'top_k', 'parent_sha256': digest}
  checkpoints.save(
    root / 'made' / 'unlearned', states[1], unlearned, files=forget
  )
  few = {'forget.txt': b'1\n2\n3\n'}
  checkpoints.save(root / 'made' / 'few', states[1], unlearned, files=few)
  for name, changed in {
    'other_data': {'data_fingerprint': 'f' * 64},
    'four_classes': {'num_classes': 4},
    'larger': {'image_shape': [8, 8, 1]},
    'own_program': {},
    'orphan': {'parent_sha256': None},
  }.items():
    manifest = {**unlearned, **changed, 'strategy': 'source'}
    checkpoints.save(root / 'made' / name, states[1], manifest, files=forget)
  return root


def parse(folder, **changed):
  """The flags of a quick run, as an object of their own."""
  made = folder / 'made'
  given = {
    'source': made / 'source',
    'unlearned': made / 'unlearned',
    'epochs': 2,
    'batch_size': 8,
    'generator_width': 2,
    'limit': 20,
    **changed,
  }
  values = absl_flags.FlagValues()
  spd_gan.define(values)
  values(
    ['spd_gan', *(f'--{k}={v}' for k, v in given.items() if v is not None)]
  )
  return values


@pytest.fixture(scope='module')
def finished(folder):
  workdir = folder / 'main'
  with parallel.use(jax.devices()[:1]):
    return workdir, spd_gan.measure(parse(folder, workdir=workdir))


def test_it_writes_numbers_words_and_pictures(finished, folder):
  workdir, found = finished
  assert sorted(path.name for path in workdir.iterdir()) == sorted(
    ['.lock', 'checkpoints', 'degrees', 'workdir.json', *degree.FILES.values()]
  )
  written = json.loads((workdir / 'degree.json').read_text())
  assert written['sentence'] == found['sentence']
  assert list(found['pairs']) == ['unlearned', 'null', 'unseen', 'identity']
  assert found['checkpoints']['source'] == str(folder / 'made' / 'source')
  for name, pair in found['pairs'].items():
    assert len(pair['runs']) == (1 if name == 'identity' else 5)
    for run in pair['runs']:
      own = run['held_out']
      assert own['size'] == 15
      expected = own['source_perturbed'] - own['unlearned_perturbed']
      assert own['degree'] == pytest.approx(expected)
      assert own['excess'] == pytest.approx(own['degree'] - own['gap'])
      assert [epoch['epoch'] for epoch in run['curve']] == [0, 1, 2]
  assert found['pairs']['identity']['degree']['mean'] == 0
  text = (workdir / 'degree.md').read_text()
  assert found['sentence'].split(':')[0] in text
  for name in ('bars', 'images', 'curves'):
    assert degree.FILES[name] in text
    assert matplotlib.image.imread(workdir / degree.FILES[name]).std() > 0.01


def stamps(workdir):
  """What is kept, and when it was written."""
  kept = [*workdir.glob('checkpoints/*/*'), *workdir.glob('degrees/*')]
  return {path: path.stat().st_mtime_ns for path in kept}


def test_the_null_and_every_pair_are_made_once_and_kept(
  finished, folder, capsys
):
  workdir, before = finished
  (null,) = (workdir / 'checkpoints').iterdir()
  assert null.name.startswith('seed1-source-')
  manifest = checkpoints.read_manifest(null)
  source = checkpoints.read_manifest(folder / 'made' / 'source')
  assert manifest['config']['source_seed'] == 1
  assert manifest['config']['recipe'] == source['config']['recipe']
  assert manifest['state_sha256'] != source['state_sha256']
  written = stamps(workdir)
  after = spd_gan.measure(parse(folder, workdir=workdir))
  assert capsys.readouterr().out.count('done before') == 1 + 4
  assert stamps(workdir) == written
  assert after['pairs'] == before['pairs']


def test_its_numbers_are_the_librarys(finished, folder):
  workdir, found = finished
  values = parse(folder, null_dir=next((workdir / 'checkpoints').iterdir()))
  case = pairs.read(values)
  told = unlearning_degree(
    jax.random.key(values.seed),
    case.setup.model,
    case.source,
    case.unlearned,
    case.splits,
    null=case.null,
    settings=spd_gan.settings_of(values),
    limit=values.limit,
  )
  for name, pair in found['pairs'].items():
    assert degree.pair(name, getattr(told, name)) == pair, name
  assert degree.calibrated(told.calibrated) == found['calibrated']


@pytest.mark.parametrize('calls', [3, 12, 26])
def test_it_goes_on_where_it_was_stopped(
  finished, folder, tmp_path, calls, monkeypatch, capsys
):
  """Each generator is two calls, and a pair's end one; pairs have five."""
  workdir, whole = finished
  null = next((workdir / 'checkpoints').iterdir())
  answers = iter([None] * calls + [signal.SIGTERM])
  monkeypatch.setattr(preemption, 'requested', lambda: next(answers))
  values = parse(folder, null_dir=null, workdir=tmp_path / 'new')
  with pytest.raises(preemption.Stopped) as stopped:
    spd_gan.measure(values)
  pair, call = divmod(calls, 11)
  seed, epoch = call // 2, call % 2 + 1
  assert f'generator{seed}-' in stopped.value.note
  assert f'saved after epoch {epoch} in' in stopped.value.note
  saved = list((tmp_path / 'new' / 'checkpoints').glob('.*.partial'))
  assert len(saved) == seed + 1
  monkeypatch.undo()
  capsys.readouterr()
  found = spd_gan.measure(values)
  text = capsys.readouterr().out
  assert text.count('done before') == pair
  assert text.count('goes on') == 1
  assert f'goes on after epoch {call + 1}/10' in text
  assert found['pairs'] == whole['pairs']
  assert not list((tmp_path / 'new' / 'checkpoints').iterdir())


def test_stopped_at_a_pairs_end_it_has_kept_the_pair(
  finished, folder, tmp_path, monkeypatch, capsys
):
  null = next((finished[0] / 'checkpoints').iterdir())
  answers = iter([None] * 10 + [signal.SIGTERM])
  monkeypatch.setattr(preemption, 'requested', lambda: next(answers))
  values = parse(folder, null_dir=null, workdir=tmp_path / 'new')
  with pytest.raises(preemption.Stopped, match='finished stages are kept'):
    spd_gan.measure(values)
  monkeypatch.undo()
  capsys.readouterr()
  assert spd_gan.measure(values)['pairs'] == finished[1]['pairs']
  text = capsys.readouterr().out
  assert text.count('done before') == 1 and 'goes on' not in text
  assert not list((tmp_path / 'new').glob('checkpoints/*'))


def test_a_twin_beside_the_source_serves_as_the_null(
  finished, folder, tmp_path
):
  (null,) = (finished[0] / 'checkpoints').iterdir()
  made = tmp_path / 'made'
  for name in ('source', 'unlearned'):
    shutil.copytree(folder / 'made' / name, made / name)
  values = parse(tmp_path, null_dir=null)
  assert pairs.read(values).paths['null'] == null
  twin = made / 'twin'
  state, manifest = checkpoints.restore(null)
  manifest['config'] = {'recipe': RECIPE, 'source_seed': 1}
  checkpoints.save(twin, state, manifest)
  values = parse(tmp_path)
  case = pairs.read(values)
  assert case.paths['null'] == twin and case.null is not None


def test_retrain_is_found_beside_or_is_the_unlearned_model(folder, tmp_path):
  made = tmp_path / 'made'
  for name in ('source', 'unlearned'):
    shutil.copytree(folder / 'made' / name, made / name)
  values = parse(tmp_path)
  case = pairs.read(values)
  assert case.retrained is None and 'retrained' not in case.paths
  forgets = spd_gan.problem.forget_hash(case.setup, case.splits)
  own, parent = (case.manifests[n] for n in ('unlearned', 'source'))
  manifest = {
    **{k: v for k, v in own.items() if k not in ('files_sha256',)},
    'strategy': 'retrain',
    'forget_sha256': forgets,
    'parent_sha256': parent['state_sha256'],
  }
  forget = {'forget.txt': (made / 'unlearned' / 'forget.txt').read_bytes()}
  checkpoints.save(made / 'retrain', case.source, manifest, files=forget)
  case = pairs.read(values)
  assert case.paths['retrained'] == made / 'retrain'
  assert case.retrained is not None
  case = pairs.read(parse(tmp_path, unlearned=made / 'retrain'))
  assert case.retrained is case.unlearned
  values = parse(tmp_path, retrained_dir=made / 'unlearned')
  with pytest.raises(InputError, match="allowed here: 'retrain'"):
    pairs.read(values)


@pytest.mark.parametrize(
  'name, value, allowed',
  [
    ('eta', '-0.1', '0 or more'),
    ('max_perturbation', '0', 'above 0 and at most 1, or none'),
    ('max_perturbation', '9/8', 'above 0 and at most 1, or none'),
    ('max_perturbation', 'much', 'a number, a quotient such as 8/255'),
    ('max_perturbation', '1/0', 'a number, a quotient such as 8/255'),
    ('cap', '-1', 'nats above 0'),
    ('cap', 'low', 'a number'),
    ('seeds', 4, '5 or more'),
    ('seed', -1, '0 or more'),
    ('save_seconds', -1, '0 or more'),
    ('limit', 0, '1 or more'),
    ('epochs', 0, '1 or more'),
    ('batch_size', 0, 'a positive multiple'),
    ('batch_size', 16, 'at most 15, half of the forget set'),
    ('generator_width', 0, '1 or more'),
    ('learning_rate', 2, 'above 0 and below 1'),
    ('source', None, 'a folder with a manifest.json'),
    ('unlearned', None, 'a folder with a manifest.json'),
  ],
)
def test_bad_flags_are_named_and_nothing_is_written(
  folder, tmp_path, name, value, allowed
):
  values = parse(folder, workdir=tmp_path / 'new', **{name: value})
  with pytest.raises(flags.FlagError) as caught:
    spd_gan.measure(values)
  text = str(caught.value)
  assert text.startswith(f'--{name}=') and allowed in text
  assert '\n' not in text and not (tmp_path / 'new').exists()


def test_max_perturbation_and_cap_in_words(folder):
  settings = spd_gan.settings_of(parse(folder, max_perturbation='none', cap=3))
  assert settings.max_perturbation is None and settings.cap == 3
  settings = spd_gan.settings_of(parse(folder, cap='none'))
  assert settings.max_perturbation == 8 / 255 and settings.cap is None


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'source': 'blank'}, 'was made with parent_sha256='),
    ({'source': 'blank', 'unlearned': 'orphan'}, 'no better than chance'),
    ({'unlearned': 'other_data'}, 'with data_fingerprint='),
    ({'unlearned': 'four_classes'}, 'num_classes=3, .* with 4; allowed'),
    ({'unlearned': 'larger'}, r'image_shape=\[6, 6, 1\], .* with \[8, 8, 1\]'),
    ({'null_dir': 'four_classes'}, 'num_classes=3, .* with 4; allowed'),
    ({'source': 'nowhere'}, 'holds no checkpoint'),
    ({'unlearned': 'few'}, None),
    ({'unlearned': 'source'}, None),
    ({'source': 'own_program', 'unlearned': 'orphan'}, None),
    ({'null_dir': 'source'}, None),
    ({'null_dir': 'unlearned'}, None),
  ],
)
def test_checkpoints_that_do_not_fit_are_refused_and_nothing_is_written(
  folder, tmp_path, changed, message
):
  given = {name: folder / 'made' / value for name, value in changed.items()}
  values = parse(folder, workdir=tmp_path / 'new', **given)
  error = flags.FlagError if message is None else InputError
  with pytest.raises(error, match=message or 'allowed: ') as caught:
    spd_gan.measure(values)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'new').exists()


def test_results_of_another_pair_are_never_overwritten(finished, folder):
  workdir, _ = finished
  before = (workdir / 'degree.json').read_bytes()
  made = folder / 'made'
  ids = folder / 'ids.txt'
  ids.write_text('\n'.join(map(str, range(30))))
  values = parse(
    folder, workdir=workdir, unlearned=made / 'source', forget_ids=ids
  )
  with pytest.raises(InputError, match='degree.* of another pair of models'):
    spd_gan.measure(values)
  assert (workdir / 'degree.json').read_bytes() == before
  foreign = folder / 'foreign'
  foreign.mkdir()
  (foreign / 'notes.txt').write_text('mine')
  with pytest.raises(InputError, match='allowed: an empty directory'):
    spd_gan.measure(parse(folder, workdir=foreign))
  assert [path.name for path in foreign.iterdir()] == ['notes.txt']


def test_the_command_ends_with_one_line_and_its_status(folder, tmp_path):
  workdir = tmp_path / 'new'
  for more, status, line in (
    ('--eta=-1', 2, 'error: --eta=-1.0, allowed: 0 or more'),
    (f'--source={tmp_path}', 1, f'error: {tmp_path} holds no checkpoint'),
  ):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.spd_gan', f'--workdir={workdir}'),
        f'--unlearned={folder / "made" / "unlearned"}',
        more,
      ],
      cwd=ROOT,
      env={**os.environ, 'XLA_FLAGS': ''},
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == status
    assert done.stderr.startswith(line) and done.stderr.count('\n') == 1
    assert not workdir.exists()


def interval(mean, low, high):
  return {'mean': mean, 'low': low, 'high': high, 'size': 5}


@pytest.mark.parametrize(
  'verdict, words',
  [
    ('separates', 'points on the held-out half, separates from the null:'),
    ('does not separate', 'does not separate from the null:'),
    ('cannot tell', 'cannot be told from the null, nor told to equal it:'),
  ],
)
def test_the_verdict_is_said_in_one_sentence(verdict, words):
  own = {'degree': interval(0.5, 0.4, 0.6), 'gap': interval(0.2, 0.2, 0.2)}
  null = {'degree': interval(0.1, 0.05, 0.15)}
  difference = interval(0.4, 0.3, 0.5)
  found = {
    'pairs': {'unlearned': {**own, 'runs': [0] * 5}, 'null': null},
    'calibrated': {
      'verdict': verdict,
      'p_value': 0.004,
      'difference': difference,
    },
    'calibrated_target': None,
  }
  text = degree.sentence(found)
  assert words in text and text.count('. ') == 0 and text.endswith('.')
  for number in ('50.0 ± 10.0', '10.0 ± 5.0', '40.0 ± 10.0', '0.004', '20.0'):
    assert number in text


def test_bars_show_every_seed_the_null_as_a_band_and_several_strategies():
  shown = [
    degree_figures.Bar('Top-K', [0.5, 0.6, 0.7, 0.6, 0.6], 'method'),
    degree_figures.Bar('EU-K', [0.1, 0.2, 0.1, 0.2, 0.1], 'baseline'),
    degree_figures.Bar('Retrain', [0.7, 0.7, 0.8, 0.7, 0.7], 'reference'),
  ]
  figure = degree_figures.bars(shown, [0.1, 0.3, 0.2, 0.2, 0.15], 10)
  (axes,) = figure.axes
  dots = [line for line in axes.lines if line.get_marker() == 'o']
  for line, bar in zip(dots, shown, strict=True):
    np.testing.assert_allclose(line.get_xdata(), 100 * np.array(bar.values))
  band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
  np.testing.assert_allclose([band.x0, band.x1], [10, 30])
  lengths = [bar.get_width() for bar in axes.patches[1:]]
  np.testing.assert_allclose(lengths, [60, 14, 72])
  assert [t.get_text() for t in axes.get_yticklabels()] == [
    *('Top-K', 'EU-K', 'Retrain')
  ]


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_the_grid_shows_the_difference_times_ten_about_grey(channels):
  images = np.full((2, 4, 4, channels), 100, np.uint8)
  moved = images + np.float32(5)
  figure = degree_figures.image_grid(images, moved, ['cat', 'dog'])
  shown = [axes.images[0].get_array() for axes in figure.axes]
  assert len(shown) == 6
  for array, value in zip(shown, [100, 100, 105, 105, 177.5, 177.5]):
    np.testing.assert_allclose(array, value / 255, rtol=1e-5)
  assert [axes.get_title() for axes in figure.axes[:2]] == ['cat', 'dog']


def test_the_null_follows_the_recipe_of_the_manifest():
  names = {row.optimizer.__name__ for row in pairs.RECIPES.values()}
  assert RECIPE['optimizer'] in names and len(names) == len(pairs.RECIPES)
