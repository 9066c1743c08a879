"""Canaries: planted by `train`, kept from nobody's data, read by `evaluate`."""

import dataclasses
import json
import sys
from unittest import mock

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running

from experiments.deletion import bounds as limits
from experiments.deletion import evidence
from experiments.deletion.writing import verdict
from experiments.study import canaries
from unlearn_jax import checkpoints, parallel, training
from unlearn_jax.base import Dataset, Examples, Model, ModelState


def dataset(count=120, side=24):
  """Grey images with labels by lot: noise is all there is to learn."""
  rng = np.random.default_rng(0)
  images = rng.integers(118, 138, (count, side, side, 1)).astype(np.uint8)
  labels = rng.integers(0, 3, count)
  part = Examples.of(images, labels)
  ids = np.array([str(i) for i in range(count)])
  return Dataset('grey', part, part, ('a', 'b', 'c'), ids, 'print')


def linear():
  def apply(state, x, train):
    del train
    x = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1) - 0.5
    return x.reshape(len(x), -1) @ state.params['w'], {}

  return Model(apply, lambda key: ModelState({'w': jnp.zeros((576, 3))}))


def coins(clean, count):
  """Ids that may get noise, and the rows of those that do."""
  names = canaries.chosen(clean, count)
  return names, [
    int(n) for n, own in zip(names, canaries.planted(names)) if own
  ]


def test_noise_is_planted_where_coins_say_so():
  clean = dataset()
  names, own = coins(clean, 60)
  planted = canaries.plant(clean, names)
  moved = np.any(planted.train.images != clean.train.images, axis=(1, 2, 3))
  assert np.flatnonzero(moved).tolist() == own
  assert 15 < len(own) < 45 and len({*names}) == 60
  assert planted.fingerprint != clean.fingerprint
  assert np.array_equal(planted.train.labels, clean.train.labels)
  again = canaries.plant(clean, names).fingerprint
  assert again == planted.fingerprint


def test_a_model_that_learned_the_noise_shows_it_and_retrain_does_not():
  clean, model = dataset(), linear()
  names, own = coins(clean, 60)
  planted = canaries.plant(clean, names)
  rest = np.setdiff1d(np.arange(120), own)
  read = {}
  with parallel.use(jax.devices()[:1]):
    for name, rows in (('source', np.arange(120)), ('retrain', rest)):
      state = training.train(
        jax.random.key(0),
        model,
        planted.train.take(rows),
        epochs=20,
        batch_size=20,
      ).state
      read[name] = canaries.read_out(model, state, clean, 60)
  assert read['source']['planted']['z'] > 6
  assert abs(read['source']['not_planted']['z']) < 4
  assert abs(read['retrain']['planted']['z']) < 4
  used = sum(read['source'][n]['used'] for n in ('planted', 'not_planted'))
  assert used == 60


def test_canaries_of_which_no_coin_plants_any_have_no_epsilon(
  monkeypatch, capsys
):
  clean, model = dataset(), linear()
  monkeypatch.setitem(sys.modules, 'jax_privacy.auditing', mock.Mock())
  assert not canaries.planted(canaries.chosen(clean, 1)).any()
  with parallel.use(jax.devices()[:1]):
    state = model.init(jax.random.key(0))
    found = canaries.read_out(model, state, clean, 1)
  assert found['epsilon'] is found['planted']['z'] is None
  assert found['not_planted']['used'] == 1
  assert 'canaries: members.shape=(0,), allowed: ' in capsys.readouterr().err


def test_a_record_holds_what_was_forgotten_against_what_was_never_planted():
  clean, model, part = dataset(), linear(), {}
  names = canaries.chosen(clean, 60)
  whole, own = canaries.plant(clean, names), canaries.planted(names)
  spent = canaries.in_turn(names)[:16]
  assert {*spent} <= {*np.array(names)[own]} and spent != sorted(spent)
  kept = np.setdiff1d(np.arange(120), canaries.there(clean, [*spent, '0']))
  states = {}
  with parallel.use(jax.devices()[:1]):
    for name, rows in (('source', np.arange(120)), ('retrain', kept)):
      how = {'epochs': 20, 'batch_size': 20}
      part = whole.train.take(rows)
      states[name] = training.train(jax.random.key(0), model, part, **how).state
    places = {
      'forgotten': np.flatnonzero(np.isin(names, spent)),
      'never_planted': np.flatnonzero(~own),
    }
    noise = evidence.Noise(clean, names, places, 16, int(own.sum()) - 16)
    one = whole.train.take(np.array([0]))
    sets = evidence.Sets(part, whole.test, [one], noise=noise)
    found = {
      name: evidence.gather(
        model, sets, evidence.Models(state, states['source']), []
      )
      for name, state in states.items()
    }
  before, after = (found[name].result.canaries for name in states)
  assert before['forgotten'].differs and before['forgotten'].mean > 0.8
  assert not after['forgotten'].differs and after['forgotten'].images == 16
  assert after['forgotten'].half_width == pytest.approx(1.96 / 4)
  assert abs(before['never_planted'].mean) < 0.6
  assert found['retrain'].source.canaries == before
  lines = {
    name: verdict(own, 1, 'Mine', False)[2] for name, own in found.items()
  }
  left = f'Canaries: 16 forgotten too, {int(own.sum()) - 16} left; known '
  assert all(line.startswith(left) for line in lines.values())
  assert lines['source'].endswith('A trace is left.')
  assert lines['retrain'].endswith('No trace is found.')
  assert f'{before["forgotten"].mean:.2f} → ' in lines['retrain']
  # What is within chance of the source's value is not told from it.
  near = dataclasses.replace(
    after['forgotten'], mean=before['forgotten'].mean - 0.3
  )
  near = dataclasses.replace(
    found['retrain'].result, canaries={'forgotten': near}
  )
  near = dataclasses.replace(found['retrain'], result=near)
  said = verdict(near, 1, 'Mine', False)[2]
  assert said.endswith('They are too few to tell it from the source.')
  # It can be held to a bound, and of what is spent nothing can be said.
  bounds = limits.parse('canaries>0')
  assert limits.broken(bounds, found['source'])
  assert not limits.broken(bounds, found['retrain'])
  bare = dataclasses.replace(
    found['source'],
    canaries=evidence.Canaries(0, 0),
    result=dataclasses.replace(found['source'].result, canaries={}),
  )
  said = verdict(bare, 1, 'Mine', False)[2]
  assert said == 'Canaries: none is left, so they can say nothing.'
  assert len(verdict(bare, 1, 'Mine', True)) == 3


def test_noise_stays_with_its_image_when_others_are_gone():
  clean = dataset()
  names = canaries.chosen(clean, 60)
  whole = canaries.plant(clean, names)
  gone = np.setdiff1d(np.arange(120), canaries.there(clean, names[:7]))
  fewer = dataclasses.replace(
    clean,
    train=Examples.of(clean.train.images[gone], clean.train.labels[gone]),
    ids=clean.ids[gone],
  )
  again = canaries.plant(fewer, names)
  assert np.array_equal(again.train.images, whole.train.images[gone])
  assert (canaries.there(fewer, names) < 0).tolist() == [True] * 7 + [
    False
  ] * 53


def test_train_plants_and_evaluate_reads(tmp_path):
  flags = running.training(helpers.stripes_file(tmp_path), tmp_path / 'run')
  out = running.done('train', *flags, '--canaries=40')
  (file,) = (tmp_path / 'run').rglob(canaries.FILE)
  assert str(file) in out
  assert checkpoints.read_manifest(file.parent)['canaries'] == 40
  ids, (_, own) = file.read_text().split(), coins(dataset(240), 40)
  assert ids == [*map(str, own)]
  more = f'--checkpoint={file.parent}', f'--forget_ids={file}'
  found = json.loads(running.done('evaluate', *more))['canaries']
  assert found['planted']['used'] == len(ids)
  assert found['not_planted']['used'] == 40 - len(ids)
  # What was planted is a data set of its own: the clean one is another.
  more = f'--source_dir={file.parent}', '--strategies=finetune', '--seeds=1'
  asked = f'--forget=ids({file})', '--recipe=paper', '--epochs=1'
  line = running.refused('unlearn', *flags[:1], *flags[2:], *asked, *more)
  assert 'was made with canaries=40, allowed here: 0' in line
  out = tmp_path / 'out'
  own = *flags[:1], *flags[2:], '--canaries=40', f'--workdir={out}'
  running.done('unlearn', *own, *asked, *more)
  (path,) = (out / 'checkpoints').glob('seed0-finetune-*')
  parents = f'--checkpoint={path}', f'--source_dir={file.parent}'
  found = json.loads(running.done('evaluate', *parents))['canaries']
  assert found['planted']['used'] == len(ids)


def test_more_canaries_than_images_are_one_line(tmp_path):
  flags = running.training(helpers.stripes_file(tmp_path), tmp_path / 'run')
  line = running.refused('train', *flags, '--canaries=241', status=2)
  assert '--canaries=241, allowed: at most the 240 of D' in line
