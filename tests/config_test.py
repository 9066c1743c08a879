"""Flags, dataclasses, JSON and keys are one and the same."""

import pickle
import re

from absl import flags
import msgspec
import pytest
import running

from experiments import (
  adopt,
  config,
  evaluate,
  reproduce,
  settings,
  table1,
  train,
  tune,
)
from experiments.config import Study
from experiments.runtime import help
from experiments.settings import Range
from unlearn_jax import recipes
from unlearn_jax.base import InputError
from unlearn_jax.strategies import FACTORIES, signature

KINDS = (
  Study,
  train.Train,
  evaluate.Evaluate,
  reproduce.Reproduce,
  table1.Table1,
  tune.Tune,
  adopt.Adopt,
)
# Texts, of which data, disk or network say whether they are allowed.
FREE = {
  *('data_dir', 'raw_dir', 'dataset', 'forget', 'source_dir'),
  *('retrained_dir', 'workdir', 'scheduler', 'coordinator', 'tuned'),
}
# Texts with a grammar of their own, each tested below.
PARSED = {'image_size', 'model', 'strategies', 'max_perturbation', 'cap'}


def wrong_values():
  """A flag, a value that is not allowed, and what is said to be."""
  found = []
  for name, field, hint in settings.fields(Study):
    allowed, kind = field.metadata['allowed'], settings._plain(hint)
    if isinstance(allowed, Range):
      beyond = 1 if allowed.ends else 0
      outside = [allowed.least - beyond, allowed.most + beyond]
      if kind is float:
        outside = [outside[0], 'nan', 'inf', '-inf']
      found += [(name, value, str(allowed)) for value in outside]
      what = 'a whole number' if kind is int else 'a number'
      found += [(name, 'many', what), (name, '', what)]
    elif allowed:
      found += [(name, word, f'one of {allowed[0]}, ') for word in ('x', '')]
    elif kind is bool:
      found += [(name, 'maybe', 'true or false')]
    else:
      assert name in FREE | PARSED, name
      if name != 'scheduler':
        found += [(name, 'gs://bucket/it', 'no URL, but a path of this ')]
  return found


@pytest.mark.parametrize('name, value, allowed', wrong_values())
def test_what_is_not_allowed_is_one_line_that_says_what_is(
  name, value, allowed, tmp_path
):
  told = f'--workdir={tmp_path / "run"}', f'--{name}={value}'
  line = running.refused('unlearn', *told, status=2)
  assert f'--{name}=' in line and str(value) in line, line
  if allowed:
    assert f', allowed: {allowed}' in line or '? one of' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('kind', KINDS)
def test_every_setting_has_a_help_a_flag_and_its_default(kind):
  own = flags.FlagValues()
  settings.define(kind, own)
  own([kind.__name__])
  assert settings.read(kind, own) == kind()
  names = settings.names(kind)
  assert len(set(names)) == len(names) and set(names) == set(own)
  for name, field, _ in settings.fields(kind):
    words = field.metadata['help']
    assert len(words) > 5 and words.endswith(('.', 'standard)')), name
    assert own[name].help == words and own[name].default == field.default


def changed(name):
  """A value of a flag of `Study` that is allowed and not the default."""
  field, hint = next((f, h) for n, f, h in settings.fields(Study) if n == name)
  allowed, kind = field.metadata['allowed'], settings._plain(hint)
  if kind is bool:
    return not field.default
  if kind is str:
    return next((w for w in allowed or ['x'] if w != field.default), None)
  if field.default not in (None, 0):
    return field.default + 1 if kind is int else field.default / 2
  return 7 if kind is int else 0.25


@pytest.mark.parametrize('name', settings.names(Study))
def test_a_flag_sets_its_own_field_only_and_is_in_json_by_its_name(name):
  value, plain = changed(name), settings.flat(Study())
  study = running.study(**{name: value})
  assert settings.flat(study) == {**plain, name: value}
  assert list(plain) == settings.names(Study)
  text = msgspec.json.encode(settings.flat(study))
  assert msgspec.json.decode(text) == {**plain, name: value}
  assert settings.key(study) != settings.key(Study())
  # Processes of a run may differ in what no result depends on, only.
  own = {
    row
    for kind in (config.Archives, config.Engine, config.Processes)
    for row in settings.names(kind)
  }
  same = config.agreed(study) == config.agreed(Study())
  assert same == (name in own)


def test_keys_are_of_values_not_of_their_order():
  assert settings.key({'a': 1, 'b': [2.0]}) == settings.key(
    {'b': [2.0], 'a': 1}
  )
  assert settings.key({'a': 1}) != settings.key({'a': 2})
  assert settings.key({'a': 1}) != settings.key({'b': 1})
  assert re.fullmatch('[0-9a-f]{12}', settings.key(Study()))


def test_wrong_labels_are_a_default_of_the_bundled_problem_alone():
  alone = running.study()
  assert alone.forgotten == 'mislabelled(0.1)'
  assert alone.recipe == recipes.RECIPES['digits']
  given = {'dataset': 'cifar10', 'source_dir': 'x', 'forget': 'random(0.1)'}
  for name, value in given.items():
    own = running.study(**{name: value})
    assert own.forgotten == 'random(0.1)'
    assert own.recipe == recipes.RECIPES['paper']


def test_a_recipe_gives_way_to_what_is_given():
  assert running.study(forget='random(0.1)').recipe == recipes.RECIPES['paper']
  own = running.study(recipe='standard', augment=False, train_epochs=3)
  wanted = recipes.RECIPES['standard']._replace(augment=False, epochs=3)
  assert own.recipe == wanted and wanted.learning_rate == 0.1


def test_settings_of_the_generators_are_what_the_flags_say():
  study = running.study(
    max_perturbation='8/255, none,8/255,.5',
    cap='1.5',
    eta=0.25,
    degree_learning_rate=0.125,
    degree_epochs=3,
    degree_batch_size=5,
    degree_width=7,
  )
  found = study.generators.settings
  assert [own.max_perturbation for own in found] == [8 / 255, None, 0.5]
  for own in found:
    assert (own.cap, own.eta, own.learning_rate) == (1.5, 0.25, 0.125)
    assert (own.epochs, own.batch_size, own.width) == (3, 5, 7)
  assert running.study(cap='none').generators.settings[0].cap is None
  assert running.study().generators.settings[0].cap == 'default'


@pytest.mark.parametrize(
  'flag, allowed',
  [
    ('max_perturbation=0', 'above 0 and at most 1, or none'),
    ('max_perturbation=nan', 'above 0 and at most 1, or none'),
    ('max_perturbation=8/255,2', 'above 0 and at most 1, or none'),
    ('max_perturbation=', 'above 0 and at most 1, or none'),
    ('max_perturbation=1/0', 'above 0 and at most 1, or none'),
    ('cap=0', 'above 0 and at most 1e+06, or default, or none'),
    ('cap=inf', 'above 0 and at most 1e+06, or default, or none'),
    ('cap=low', 'above 0 and at most 1e+06, or default, or none'),
  ],
)
def test_bad_bounds_and_caps_are_named(flag, allowed):
  name, value = flag.split('=')
  with pytest.raises(settings.FlagError) as refused:
    assert running.study(**{name: value}).generators.settings
  assert str(refused.value).startswith(f'--{name}=')
  assert str(refused.value).endswith(f'allowed: a number or quotient {allowed}')
  # Another process sees the same line.
  again = pickle.loads(pickle.dumps(refused.value))
  assert isinstance(again, InputError) and str(again) == str(refused.value)


@pytest.mark.parametrize(
  'text, words',
  [
    ('topk', 'did you mean top_k?'),
    ('', 'no strategy, allowed: retrain'),
    ('top_k(k=0)', 'a whole number from 1, or a share'),
    ('top_k(k=many)', 'Python literals, as in top_k(k=45'),
    ('top_k(k=__import__("os"))', 'Python literals'),
    ("top_k(k='5')", 'k='),
    ('top_k(epsilom=5)', 'did you mean epsilon?'),
    ('top_k(k=99999)', 'the scalars'),
    ('random_k(change="Scale")', 'did you mean scale?'),
    ('random_k(ratio=nan)', 'Python literals'),
    ('random_k(ratio=1.5)', 'above 0 and at most 1'),
    ('random_top_k(ratio=0.0001)', 'shares of at least K = 45'),
    ('eu_k(k=99)', 'tensors'),
    ('finetune(js_weight=-0.1)', 'js_weight'),
    ('finetune(learning_rate=1)', 'above 0 and below 1'),
    ('finetune(epochs=-1)', '0 or more'),
    ('finetune(js_teacher="retrained")', 'beside retrain'),
    ('no_such_module:mine', 'a module on the path of Python'),
    ('os:nothing', 'os has no nothing'),
    ('os.path:join("a")', 'allowed: a Strategy'),
    ('finetune)', 'is no strategy'),
  ],
)
def test_a_strategy_that_cannot_be_is_one_line(text, words, tmp_path):
  line = running.refused(
    'unlearn', f'--strategies={text}', f'--workdir={tmp_path / "run"}'
  )
  assert line.startswith('error: --strategies') and words in line, line
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_is_what_matters_then_every_flag_then_every_factory(flag):
  status, out, err = running.run('unlearn', flag, '--no_such_flag')
  assert (status, err) == (0, '')
  about, rest = out.split('\nWhat matters:\n')
  assert 'python -m experiments.unlearn' in about
  first, rest = rest.split('\nThis command:\n')
  every, factories = rest.split('\n--strategies:\n')
  for name in ('dataset', 'model', 'forget', 'strategies', 'seeds', 'epochs'):
    assert f'--{name} ' in first
  for name in settings.names(Study):
    assert len(re.findall(rf'^  --(\[no\])?{name} ', every, re.M)) == 1, name
  words = ' '.join(factories.split())
  for name, factory in FACTORIES.items():
    first = factory.__doc__.splitlines()[0]
    assert f'{signature(name, factory)}: {first}' in words
  assert '--logtostderr' not in out and '--helpfull' in out


def test_help_of_a_group_is_a_line_of_80_columns():
  known = set()
  for name, (_, kind) in running.KINDS.items():
    status, out, _ = running.run(name, '--help')
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for flag in settings.names(kind):
      assert re.search(rf'^  --(\[no\])?{flag} ', out, re.M), flag
    known |= {*settings.names(kind)}
  known |= {*settings.names(reproduce.Reproduce)}
  groups = [{f[2:] for f in flags.split()} for _, flags, _ in help.FIRST]
  assert all(group <= known for group in groups)


def test_help_is_whole_where_the_terminal_is_narrow(monkeypatch):
  wide = help.text('x', Study).split()
  monkeypatch.setenv('COLUMNS', '62')
  narrow = help.text('x', Study)
  assert narrow.split() == wide
  *_, own = narrow.partition('This command:')
  assert max(map(len, own.splitlines())) <= 62
