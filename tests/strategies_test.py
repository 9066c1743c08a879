"""Strategies as data and as text: factories, their parameters, spelling."""

import hashlib
import inspect
import math
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import parallel, strategies
from unlearn_jax.base import Examples, InputError, ModelState, Splits, stateless
from unlearn_jax.finetuning import Budget
from unlearn_jax.recipes import Recipe
from unlearn_jax.strategies import FACTORIES, parse
from unlearn_jax.unlearning import unlearn

# A problem in which every choice counts: among other things the tensor with
# the largest gradient is another one by each objective and each reduction.
_RNG = np.random.default_rng(30)
X = _RNG.normal(size=(24, 3, 3, 1)).astype(np.float32)
Y = _RNG.integers(0, 3, 24).astype(np.int32)
SHAPES = {'a': (2, 2, 1, 2), 'b': (8, 4), 'c': (4, 3)}


def weights(seed):
  rng = np.random.default_rng(seed)
  return ModelState(
    {n: jnp.array(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}
  )


def network(params, x):
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  x = jax.lax.conv_general_dilated(
    x, params['a'], (1, 1), 'VALID', dimension_numbers=dimensions
  )
  return jnp.tanh(x.reshape(len(x), -1) @ params['b'] / 3) @ params['c']


# The source is right about half of them.
Y[::2] = np.argmax(network(weights(33).params, X[::2]), -1)
EVERY = Examples.of(X, Y)
SPLITS = Splits.of(EVERY.take(np.arange(20)), np.arange(8), EVERY)
SPLITS = SPLITS._replace(heldout=EVERY)
MODEL = stateless(network, init=lambda key: weights(99), order=('a', 'b', 'c'))


def run(strategy, budget=None, **options):
  options = {
    'retrained': weights(2),
    'seed': 0,
    'source': weights(33),
    **options,
  }
  budget = budget or Budget(1, 0.05, 6, 0.0, optimizer='sgd')
  with parallel.use(jax.devices()[:1]):
    return unlearn(
      jax.random.key(options.pop('seed')),
      MODEL,
      options.pop('source'),
      SPLITS,
      strategy,
      budget,
      recipe=Recipe(lambda rate, steps: optax.sgd(rate), 1, 0.1, 6, False),
      **options,
    )


def numbers(result):
  leaves = jax.tree.leaves((result.state.params, result.perturbed.params))
  return np.concatenate([np.ravel(leaf) for leaf in leaves])


# Every parameter of every factory.

OTHERS = {
  'alpha': {
    'neggrad_plus': [0.5, 0.0, 1.0],
    'sfron': [1.0],
    'scrub': [0.5, 0.0],
    'ssd': [1.5],
  },
  'clip': [0.01],
  'epochs': [0, 3],
  'epsilon': [0.25],
  'every': [1],
  'examples': [1],
  'gamma': {'scrub': [0.5], 'l1_sparse': [0.1]},
  'grad_scale': [0.5],
  'js_weight': [0.0, 2.0],
  'k': {'eu_k': [1, 3], 'cf_k': [1, 3], 'random_top_k': [0.2], None: [4, 0.2]},
  'lam': [0.3],
  'learning_rate': [0.02],
  'max_epochs': [0, 1],
  'power': [0.0, 2.0],
  'ratio': [0.5, 1.0],
  'share': [0.6],
  'shrink': [0.0, 0.9],
  'sigma': [1.0],
  'steps': [1],
  'temperature': [1.0],
  'threshold': [0.0, 3.0],
  'weight': [0.2],
}
# Small enough for the model, or such that all matters; otherwise the defaults.
BASE = {
  'amun': {'epsilon': 0.01},
  'cf_k': {'k': 2},
  'eu_k': {'k': 2},
  'finetune': {'js_weight': 0.1},
  'msg': {'ratio': 0.7},
  'neggrad_plus': {'alpha': 0.3},
  'random_k': {'ratio': 0.3},
  'random_scalars': {'k': 3},
  'random_top_k': {'k': 2, 'ratio': 0.2},
  'salun': {'ratio': 0.3},
  'scrub': {'epochs': 2},
  'sfron': {'alpha': 5.0},
  'ssd': {'alpha': 1.1},
  'top_k': {'k': 3},
}
PARAMETERS = [
  (name, parameter)
  for name, factory in FACTORIES.items()
  for parameter in inspect.signature(factory).parameters
  # The model has no BatchNorm; here the last epoch is the best: in methods_test
  # SCRUB goes back.
  if parameter not in ('batch_norm', 'rewind')
]


def alternatives(name, parameter):
  hint = typing.get_type_hints(FACTORIES[name])[parameter]
  if typing.get_origin(hint) is typing.Literal:
    default = inspect.signature(FACTORIES[name]).parameters[parameter].default
    return [value for value in typing.get_args(hint) if value != default]
  if hint is bool:
    return [
      not inspect.signature(FACTORIES[name]).parameters[parameter].default
    ]
  found = OTHERS[parameter]
  return found.get(name, found.get(None)) if isinstance(found, dict) else found


def test_a_donors_share_has_to_be_given():
  """What scales by default to 0 would be 2ω − ω_j of a donor."""
  with pytest.raises(
    ValueError, match=r'1.0, allowed: 0 to 1, the share, with'
  ):
    FACTORIES['top_k'](change='donor')
  FACTORIES['top_k'](change='donor', epsilon=1.0)
  FACTORIES['random_k'](change='tree_donor')


@pytest.mark.parametrize('name, parameter', PARAMETERS)
def test_every_value_of_every_parameter_changes_the_result(name, parameter):
  base = BASE.get(name, {})
  if parameter == 'change':  # A donor's share.
    base = {**base, 'epsilon': 0.5}
  seen = {'the default': numbers(run(FACTORIES[name](**base)))}
  for value in alternatives(name, parameter):
    got = numbers(run(FACTORIES[name](**{**base, parameter: value})))
    for other, those in seen.items():
      same = got.shape == those.shape and (got == those).all()
      assert not same, f'{name}: {parameter}={value!r} does as {other}'
    seen[repr(value)] = got


@pytest.mark.parametrize(
  'parameter, values',
  [
    ('k', [0, -1, 0.0, 1.5, math.nan, math.inf, True]),
    ('epsilon', [math.nan, math.inf, -math.inf]),
    ('ratio', [0, 1.1, -0.1, math.nan]),
    ('examples', [0, -1]),
    ('js_weight', [-0.1, math.nan, math.inf]),
    ('learning_rate', [0, 1, -0.1, math.nan]),
    ('epochs', [-1, 2**31]),
    ('alpha', [-0.1, math.nan, math.inf]),
    ('gamma', [-0.1, math.nan, math.inf]),
    ('grad_scale', [-0.1, 1.1, math.nan]),
    ('lam', [0, math.nan, math.inf]),
    ('max_epochs', [-1]),
    ('power', [-0.1, math.nan, math.inf]),
    ('threshold', [-0.1, math.nan, math.inf]),
    ('clip', [0, math.nan, math.inf]),
    ('every', [0]),
    ('share', [0, 1.1, math.nan]),
    ('shrink', [-0.1, 1.1, math.nan]),
    ('sigma', [0, math.nan, math.inf]),
    ('steps', [0]),
    ('temperature', [0, math.nan, math.inf]),
    ('weight', [0, 1, math.nan]),
  ],
)
def test_values_out_of_range_are_refused_by_every_factory(parameter, values):
  known = [f for n, f in FACTORIES.items() if (n, parameter) in PARAMETERS]
  assert known
  for factory in known:
    for value in values:
      if factory.__name__ in ('eu_k', 'cf_k') and value in (
        1.5,
        math.inf,
        True,
      ):
        continue  # Their K is a whole number; its type is the spelling's.
      with pytest.raises(ValueError, match=f'{parameter}=.*, allowed: '):
        factory(**{parameter: value})


def test_the_table_is_in_the_order_of_a_report():
  assert list(FACTORIES)[:3] == ['retrain', 'finetune', 'scratch']
  made = {name: factory() for name, factory in FACTORIES.items()}
  roles = {name: strategy.role for name, strategy in made.items()}
  others = {n: role for n, role in roles.items() if role != 'method'}
  assert others == {
    'retrain': 'reference',
    **dict.fromkeys(['finetune', 'scratch', 'random_scalars'], 'control'),
    **dict.fromkeys(['eu_k', 'cf_k'], 'baseline'),
  }
  assert {n for n, s in made.items() if s.follows == 'recipe'} == {'retrain'}
  assert {n for n, s in made.items() if s.moves == 'tensors'} == {
    'eu_k',
    'cf_k',
  }
  assert len({strategy.label for strategy in made.values()}) == len(made)


@pytest.mark.parametrize('name', FACTORIES)
def test_programs_are_shared_between_strategies_of_one_factory(name):
  """The same objects for the same arguments, or each would compile anew."""
  one, other = FACTORIES[name](), FACTORIES[name]()
  for a, b in zip(one.terms, other.terms, strict=True):
    assert (a.loss, a.weight) == (b.loss, b.weight)
  same = (one.penalty, one.transform) == (other.penalty, other.transform)
  assert same and one.optimizer == other.optimizer


# Spelling.


def test_several_strategies_and_several_variants_of_one():
  found = parse(
    ' retrain, top_k ,top_k(k=.05,epsilon=1),top_k(k = 45) ,eu_k(3)'
  )
  assert [c.text for c in found] == [
    *('retrain', 'top_k', 'top_k(k=0.05, epsilon=1.0)', 'eu_k(k=3)')
  ]
  assert [c.label for c in found] == [
    *('Retrain', 'Top-K', 'Top-K (k=0.05, epsilon=1.0)', 'EU-K (k=3)')
  ]
  variant = found[2]
  assert variant.parameters['k'] == 0.05 and variant.parameters['epsilon'] == 1
  assert set(variant.parameters) == set(
    inspect.signature(strategies.top_k).parameters
  )
  assert type(variant.parameters['epsilon']) is float
  assert variant.source_sha256 is None and variant.name == 'top_k'


def test_the_order_of_parameters_does_not_matter():
  (one,) = parse('top_k(epsilon=1, k=5), top_k(5, 1.0), top_k(k=5, epsilon=1)')
  assert one.text == 'top_k(k=5, epsilon=1.0)'


def drawn(rng, hint):
  """A random literal that a hint allows."""
  if typing.get_origin(hint) is typing.Literal:
    return str(rng.choice(typing.get_args(hint)))
  kinds = typing.get_args(hint) or (hint,)
  kind = kinds[rng.integers(len(kinds))]
  if kind is bool:
    return bool(rng.integers(2))
  if kind is int:
    return int(rng.integers(1, 9))
  return None if kind is type(None) else float(1 - rng.random()) * 0.999


# What whole tensors can be chosen with.
WHOLE = {'scope': 'tree', 'leaves': 'all'}


@pytest.mark.parametrize('name', FACTORIES)
def test_texts_and_pickles_come_back_as_the_same_strategy(name):
  rng, factory = np.random.default_rng(0), FACTORIES[name]
  hints = typing.get_type_hints(factory)
  names = list(inspect.signature(factory).parameters)
  for _ in range(50):
    chosen = [n for n in names if rng.random() < 0.5]
    given = {n: drawn(rng, hints[n]) for n in chosen}
    if given.get('granularity') == 'leaf':
      given |= {n: d for n, d in WHOLE.items() if n in given}
    if 'donor' in given.get('change', ''):
      given['epsilon'] = 0.5
    text = f'{name}({", ".join(f"{n}={v!r}" for n, v in given.items())})'
    (found,) = parse(text)
    (again,) = parse(found.text)
    assert again.text == found.text and again.label == found.label
    assert again.parameters == found.parameters
    assert {**found.parameters, **given} == found.parameters
    copy = pickle.loads(pickle.dumps(found))
    assert (copy.text, copy.parameters) == (found.text, found.parameters)
    assert copy.strategy.label == factory().label


@pytest.mark.parametrize(
  'inner',
  [
    *('k=__import__("os").getpid()', 'k=f"{1}"', 'k=[i for i in (1,)]'),
    *('**{"k": 1}', '*[1]', 'k=1 if True else 2', 'k=lambda: 1', 'k:=3'),
    *('k=open', 'k=1 + 1', 'k=3**9', 'k=1, k=2', '1, k=2', '1, 2, 3', '\0'),
    *('k=' + '-' * 100_000 + '1', 'k=' + '(' * 9_000 + '1' + ')' * 9_000),
    *('k=' + '[' * 90 + ']' * 90, 'k=1)(2', 'k=1).x(k=2', 'k=3) + top_k(4'),
    *('k=' + '9' * 5000, 'k=0x' + 'f' * 5000, 'epsilon=0x' + 'f' * 300),
    *('k="\udcff"', 'k=\u202e1', 'k=1 for k in [1]', 'k=(yield)', 'k=...'),
  ],
)
def test_nothing_but_literals_is_read_and_nothing_is_evaluated(inner):
  with pytest.raises(InputError, match='allowed: ') as error:
    parse(f'top_k({inner})')
  message = str(error.value)
  assert '\n' not in message and len(message) < 900 and message.isprintable()


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'no strategy, allowed: retrain, finetune'),
    (' , ,', 'no strategy, allowed: retrain'),
    (
      'topk',
      'topk is no strategy, allowed: did you mean top_k. one of retrain',
    ),
    ('TopK(k=3)', 'TopK is no strategy, allowed: '),
    ('top_k(kk=1)', 'top_k has no parameter kk, allowed: did you mean k.'),
    ('retrain(k=1)', 'retrain has no parameter k, allowed: none'),
    ('top_k(k="3")', "top_k: k='3', allowed: a whole number or a number"),
    ('top_k(k=True)', 'top_k: k=True, allowed: a whole number'),
    ('top_k(k=None)', 'top_k: k=None, allowed: '),
    ('top_k(k=1e999)', 'k=inf, allowed: a whole number from 1, or a share'),
    ('top_k(k=-3)', 'k=-3, allowed: a whole number from 1'),
    ('eu_k(k=True)', 'eu_k: k=True, allowed: a whole number'),
    ('eu_k(k=1.0)', 'eu_k: k=1.0, allowed: a whole number'),
    ('eu_k(epochs=1.5)', 'epochs=1.5, allowed: a whole number or None'),
    ('top_k(moves="leaf")', "moves='leaf', allowed: one of all, scalars"),
    ('top_k(reduction="meanabs")', 'allowed: did you mean mean_abs. one of'),
    ('top_k(granularity=["leaf"])', "granularity=.'leaf'., allowed: "),
    ('top_k(k=1', 'is no strategy, allowed: name, name.parameter=literal.'),
    ('top_k)', 'is no strategy, allowed: name'),
    ('top_k[0]', 'is no strategy, allowed: name'),
    ('finetune(js_weight=-1)', 'finetune: js_weight=-1.0, allowed: 0 or more'),
    ('no_such:mine', 'no_such cannot be imported: ModuleNotFoundError'),
    ('.base:mine', 'cannot be imported: TypeError'),
    ('os:getcwd', 'os has no getcwd, allowed: '),
    ('os.path:join("a")', 'os.path:join returned str, allowed: a Strategy'),
  ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(text, message):
  with pytest.raises(InputError, match=message) as error:
    parse(text)
  assert '\n' not in str(error.value)


# Of one's own.

MINE = """
from unlearn_jax.objectives import Term, retained
from unlearn_jax.strategies import Strategy

def mine(alpha: float, beta: int = 2, *, words: tuple = ()) -> Strategy:
  if alpha > 1:
    raise ValueError(f'alpha={alpha}, allowed: at most 1')
  return Strategy('Mine', terms=(Term(retained, weight=alpha),), epochs=beta)

def number() -> int:
  return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A module outside, new for each test."""
  name = f'outside_{tmp_path.name.strip("_")}'
  (tmp_path / f'{name}.py').write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path / f'{name}.py'


def test_a_factory_from_a_module_outside(module):
  text = f'{module.stem}:mine(alpha=1, words=("a,b", ")"))'
  (found,) = parse(text)
  assert found.text == f"{module.stem}:mine(alpha=1.0, words=('a,b', ')'))"
  assert found.label == "Mine (alpha=1.0, words=('a,b', ')'))"
  assert found.parameters == {'alpha': 1.0, 'beta': 2, 'words': ('a,b', ')')}
  assert found.strategy.epochs == 2 and found.strategy.role == 'method'
  assert parse(found.text)[0].text == found.text
  assert pickle.loads(pickle.dumps(found)).source_sha256 == found.source_sha256


def test_the_digest_is_that_of_the_file_as_it_is_now(module):
  text = f'{module.stem}:mine(0.5)'
  before = parse(text)[0].source_sha256
  assert before == hashlib.sha256(MINE.encode()).hexdigest()
  module.write_text(MINE + '# changed\n')
  after = parse(text)[0].source_sha256
  assert after == hashlib.sha256(module.read_bytes()).hexdigest() != before


@pytest.mark.parametrize(
  'call, message',
  [
    ('mine', 'missing a required argument: .alpha., allowed: .*mine.alpha, '),
    ('mine(2)', 'mine: alpha=2.0, allowed: at most 1'),
    ('mine(alpha="a")', "mine: alpha='a', allowed: a number"),
    ('number', 'number returned int, allowed: a Strategy'),
    (
      'mien(1)',
      'has no mien, allowed: did you mean mine. one of retained, mine, number',
    ),
    ('Strategy', 'has no Strategy, allowed: one of retained, mine, number'),
    ('retained', 'takes|missing a required argument'),
  ],
)
def test_what_is_wrong_with_ones_own_is_named(module, call, message):
  with pytest.raises(InputError, match=message) as error:
    parse(f'{module.stem}:{call}')
  assert '\n' not in str(error.value)


def test_a_module_that_breaks_is_named(module):
  module.write_text('raise KeyError("a\\nb")')
  with pytest.raises(InputError, match='cannot be imported: KeyError') as error:
    parse(f'{module.stem}:mine')
  assert '\n' not in str(error.value)
