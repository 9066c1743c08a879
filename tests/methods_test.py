"""Each method against a plain reference of its steps; what it must hold to."""

import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearn_jax import (
  adversaries,
  data,
  normalization,
  objectives,
  parallel,
  strategies,
  timing,
  training,
)
from unlearn_jax.base import (
  Batch,
  Context,
  Examples,
  InputError,
  ModelState,
  Splits,
  stateless,
)
from unlearn_jax.data import images
from unlearn_jax.finetuning import Budget
from unlearn_jax.objectives import Term, forgotten, retained
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.snapshots import Keeper
from unlearn_jax.strategies import (
  FACTORIES,
  Edit,
  Strategy,
  choosing,
  distilling,
  opposing,
  refreshing,
)
from unlearn_jax.unlearning import unlearn

# Two classes: of another label there is one. A step sees all of each set.
RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3, 3, 1)).astype(np.float32)
SHAPES = {'a': (2, 2, 1, 2), 'b': (8, 4), 'c': (4, 2)}
RATE = 0.1


def weights(seed):
  rng = np.random.default_rng(seed)
  return {
    n: jnp.array(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()
  }


def network(params, x):
  x = jax.lax.conv_general_dilated(
    x, params['a'], (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  return jnp.tanh(x.reshape(len(x), -1) @ params['b'] / 3) @ params['c']


THETA, FRESH = weights(1), weights(2)
Y = np.array(network(THETA, X).argmax(-1), np.int32)
Y[::4] = 1 - Y[::4]
EVERY = Examples.of(X, Y)
SPLITS = Splits.of(EVERY.take(np.arange(20)), np.arange(8), EVERY)
SPLITS = SPLITS._replace(heldout=EVERY.take(np.arange(20, 24)))
XF, YF, XR, YR = X[:8], Y[:8], X[8:20], Y[8:20]
MODEL = stateless(
  network, init=lambda key: ModelState(FRESH), order=('a', 'b', 'c')
)


def sgd(rate, steps):
  return optax.sgd(rate)


def run(
  strategy, epochs=1, batch_size=12, devices=1, budget=None, key=0, **options
):
  """By plain SGD, unless a budget says how."""
  if budget is None:
    strategy = strategy._replace(optimizer=sgd)
    budget = Budget(epochs, RATE, batch_size, 0.0, 2.0)
  with parallel.use(jax.devices()[:devices]):
    return unlearn(
      jax.random.key(key),
      MODEL,
      ModelState(THETA),
      SPLITS,
      strategy,
      budget,
      **options,
    )


def params(strategy, *arguments, **options):
  return run(strategy, *arguments, **options).state.params


def close(got, want, **tolerance):
  tolerance = tolerance or {'rtol': 1e-4, 'atol': 1e-5}
  for name in SHAPES:
    np.testing.assert_allclose(got[name], want[name], **tolerance)


def equal(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


def moved(start, loss, rate=RATE, mask=None):
  """One step of gradient descent."""
  grads = jax.grad(loss)(start)
  if mask is not None:
    grads = jax.tree.map(jnp.multiply, grads, mask)
  return jax.tree.map(lambda w, g: w - rate * g, start, grads)


def ce(w, x, y):
  return -jnp.take_along_axis(
    jax.nn.log_softmax(network(w, x)), jnp.asarray(y)[:, None], 1
  )[:, 0]


def kl(teacher, w, x, t=1.0):
  """T² · Σ p log(p/q) at temperature T, of each example."""
  p = jax.nn.softmax(network(teacher, x) / t)
  q = jax.nn.log_softmax(network(w, x) / t)
  return t**2 * (p * (jnp.log(p) - q)).sum(-1)


# One step against a plain reference.


def neggrad(w):
  up = jnp.minimum(ce(w, XF, YF), math.log(2)).mean()
  return 0.7 * ce(w, XR, YR).mean() - 0.3 * up


def unbounded(w):
  return 0.7 * ce(w, XR, YR).mean() - 0.3 * ce(w, XF, YF).mean()


def sparse(w):
  return ce(w, XR, YR).mean() + 0.1 * sum(
    jnp.abs(leaf).sum() for leaf in jax.tree.leaves(w)
  )


def regun(w):
  p = jax.nn.softmax(network(THETA, X[20:]))
  q = jnp.stack([p[Y[20:] == y].mean(0) for y in range(2)])[YF]
  near = (q * (jnp.log(q) - jax.nn.log_softmax(network(w, XF)))).sum(-1)
  return 0.7 * ce(w, XR, YR).mean() + 0.3 * near.mean()


def bad_teacher(w):
  return kl(THETA, w, XR).mean() + 8 / 12 * kl(FRESH, w, XF).mean()


def shrunk(w):
  slope = jax.grad(lambda x: ce(THETA, x, YF).sum())(jnp.asarray(XF))
  reach = 0.2 * (XF.max() - XF.min())
  there = jnp.clip(XF + reach * jnp.sign(slope), XF.min(), XF.max())
  labels = np.argmax(network(THETA, there), -1)
  assert (labels != YF).any()
  return ce(w, XF, labels).mean()


def amun(w):
  with parallel.use(jax.devices()[:1]):
    near, _ = adversaries.nearest(MODEL, ModelState(THETA), SPLITS.forget)
  own = ce(w, X[:20], Y[:20]).mean()
  return own + 8 / 20 * ce(w, near.images, near.labels).mean()


def plain(w):
  return ce(w, XR, YR).mean()


@pytest.mark.parametrize(
  'strategy, loss, start, batch_size',
  [
    (strategies.scratch(), plain, FRESH, 12),
    (strategies.neggrad_plus(0.7), neggrad, THETA, 12),
    (strategies.neggrad_plus(0.7, bounded=False), unbounded, THETA, 12),
    (strategies.l1_sparse(0.1), sparse, THETA, 12),
    (strategies.regun(0.3), regun, THETA, 12),
    (strategies.bad_teacher(1.0), bad_teacher, THETA, 12),
    (strategies.boundary_shrink(0.2), shrunk, THETA, 8),
    (strategies.amun(), amun, THETA, 20),
    (
      strategies.ct(),
      plain,
      {**THETA, 'a': jnp.transpose(THETA['a'], (1, 0, 2, 3))},
      12,
    ),
    (
      strategies.shrink_perturb(0.3),
      plain,
      {n: 0.3 * THETA[n] + 0.7 * FRESH[n] for n in SHAPES},
      12,
    ),
  ],
)
def test_one_step_by_hand(strategy, loss, start, batch_size):
  result = run(strategy, batch_size=batch_size)
  close(result.perturbed.params, start, rtol=1e-6, atol=0)
  close(result.state.params, moved(start, loss))
  assert abs(result.state.params['b'] - start['b']).max() > 1e-4


def upside_down(key, x):
  del key
  return x[:, ::-1]


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize(
  'strategy, loss, batch_size, names',
  [
    (strategies.bad_teacher(1.0), bad_teacher, 12, ['XF', 'XR']),
    (strategies.regun(0.3), regun, 12, ['XF', 'XR']),  # Held-out ones are not.
    (strategies.amun(), amun, 20, ['X']),  # Its adversaries are not.
  ],
)
def test_one_step_by_hand_on_augmented_images(
  strategy, loss, batch_size, names, devices, monkeypatch
):
  """A teacher speaks of the images that the student sees."""
  found = params(
    strategy, batch_size=batch_size, devices=devices, augment=upside_down
  )
  with pytest.raises(AssertionError):
    close(found, moved(THETA, loss))
  for name in names:
    monkeypatch.setitem(globals(), name, upside_down(0, globals()[name]))
  close(found, moved(THETA, loss))


def fisher(x, y):
  """Means of squared gradients of single examples."""
  grads = [jax.grad(lambda w: ce(w, x[i : i + 1], y[i : i + 1])[0])(THETA)
           for i in range(len(x))]  # fmt: skip
  return {n: np.mean([np.square(g[n]) for g in grads], 0) for n in SHAPES}


def same_as_drawn(context, part, count):
  """The examples that `choosing` looks at."""
  key, _ = jax.random.split(context.keys.choose)
  rows = jax.random.choice(key, part.size, (count,), replace=False)
  rows = np.asarray(part.indices)[np.asarray(rows)]
  return X[rows], Y[rows]


CONTEXT = Context(jax.random.key(0), MODEL, ModelState(THETA), SPLITS)


def test_sfron_climbs_on_d_ul_through_its_mask():
  few = same_as_drawn(CONTEXT, SPLITS.retain, 8)
  ratio = {
    n: f / r for (n, f), r in zip(fisher(XF, YF).items(), fisher(*few).values())
  }
  masks = {n: jnp.asarray(r >= 0.8, jnp.float32) for n, r in ratio.items()}
  assert 0 < sum(m.sum() for m in masks.values()) < 48

  def up(w):
    own = ce(w, XF, YF)
    even = jax.lax.stop_gradient(own**-0.5)
    return -3.0 * (even / even.mean() * own).mean()

  start, clipped = THETA, 0
  for number in range(3):  # m = 2: the second step has no ascent.
    left = (1 + math.cos(math.pi * number / 3)) / 2
    climb = jax.tree.map(jnp.multiply, jax.grad(up)(start), masks)
    share = left if number % 2 == 0 else 0.0
    grads = jax.tree.map(
      lambda g, c, s=share: g + s * c, jax.grad(plain)(start), climb
    )
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    scale = min(1.0, 0.5 / norm)
    clipped += scale < 1
    start = jax.tree.map(lambda w, g, s=scale: w - RATE * s * g, start, grads)
  assert 0 < clipped < 3
  strategy = strategies.sfron(3.0, threshold=0.8, every=2, clip=0.5)
  transform = strategy.transform
  clipped = lambda rate, steps: optax.chain(transform, optax.sgd(rate))  # noqa: E731
  budget = Budget(3, RATE, 12, 0.0, 2.0)
  got = params(strategy._replace(optimizer=clipped), budget=budget)
  close(got, start)


def test_salun_learns_the_other_label_through_its_mask():
  saliency = jax.tree.map(
    jnp.abs, jax.grad(lambda w: ce(w, XF, YF).mean())(THETA)
  )
  every = np.concatenate([saliency[n].ravel() for n in SHAPES])
  least = np.sort(every)[-round(0.3 * len(every))]
  mask = {n: jnp.asarray(saliency[n] >= least, jnp.float32) for n in SHAPES}

  def wrong(w):
    return ce(w, XF, 1 - YF).mean()

  want = THETA
  for _ in range(2):  # A pass over D_UL, then one over D_RE.
    want = moved(moved(want, wrong, mask=mask), plain, mask=mask)
  strategy = strategies.salun(0.3, labels='other')
  got = params(strategy, epochs=2)
  close(got, want)
  for name, chosen in mask.items():
    still = np.asarray(chosen) == 0
    np.testing.assert_array_equal(got[name][still], THETA[name][still])
  gradient = strategies.salun(0.3, labels='other', mask_mode='gradient')
  close(params(gradient, epochs=2), want)


def test_of_salun_a_soft_mask_lets_weights_decay_and_a_hard_one_does_not():
  budget = Budget(2, RATE, 12, 0.0, 2.0, optimizer='sgd')
  still = {}
  for mode in ('hard', 'gradient'):
    strategy = strategies.salun(0.3, mask_mode=mode)
    got = params(strategy, budget=budget)
    still[mode] = sum(int((got[n] == THETA[n]).sum()) for n in SHAPES)
  assert still['hard'] >= 48 - round(0.3 * 48) and still['gradient'] <= 3


def test_random_labels_are_drawn_anew_and_uniform():
  logits = jnp.zeros((3000, 3)).at[:, 1].set(1.0).at[:, 2].set(3.0)
  labels = jnp.tile(jnp.arange(3), 1000)
  losses = {v: float(math.log(1 + math.e + math.e**3) - v) for v in (0, 1, 3)}
  for loss, shares in (
    (opposing._uniform, {v: 1 / 3 for v in losses}),
    (opposing._other, {v: 1 / 3 for v in losses}),
  ):
    batch = Batch(None, labels, None, jax.random.key(5))
    one = np.asarray(loss(logits, batch))
    for value, share in shares.items():
      found = np.isclose(one, losses[value], atol=1e-4).mean()
      assert found == pytest.approx(share, abs=0.04)
    other = loss(logits, batch._replace(key=jax.random.key(6)))
    assert 0.2 < (np.asarray(other) != one).mean() < 0.8
  own = np.asarray(opposing._other(logits, batch))
  right = np.asarray([losses[v] for v in (0, 1, 3)])[np.asarray(labels)]
  assert not np.isclose(own, right, atol=1e-4).any()


def test_a_pass_without_weight_is_skipped_momentum_and_all():
  """SCRUB's passes over D_UL end; then its epochs are passes over D_RE."""
  down = Term(retained)
  early = Term(forgotten, weight=lambda s: jnp.where(s.number < 0, 1.0, 0.0))
  both = Strategy('own', terms=(early, down), passes=True)
  for name in ('sgd', 'adam'):
    rates = []

    def spied(rate, steps, name=name, rates=rates):
      rates.append(steps)
      return optax.adam(rate) if name == 'adam' else optax.sgd(rate, 0.9)

    own = [
      s._replace(optimizer=spied)
      for s in (both, Strategy('own', terms=(down,)))
    ]
    budget = Budget(3, RATE, 12, 0.0, 2.0)
    with_pass, without = (params(s, budget=budget) for s in own)
    close(with_pass, without, rtol=1e-5, atol=1e-6)
    assert rates == [6, 3]


@pytest.mark.parametrize('early', [1, 2])
def test_scrub_goes_away_from_the_source_and_then_towards_it(early):
  def up(w):
    return -kl(THETA, w, XF, 2.0).mean()

  def down(w):
    return 0.5 * kl(THETA, w, XR, 2.0).mean() + 0.7 * plain(w)

  want = THETA
  for epoch in range(3):
    if epoch < early:
      want = moved(want, up)
    want = moved(want, down)
  strategy = strategies.scrub(0.5, 0.7, temperature=2.0, max_epochs=early)
  close(params(strategy, epochs=3), want)


def scrubbed(**more):
  """SCRUB at a rate at which the last of six epochs is not the best."""
  how = {'temperature': 2.0, 'max_epochs': 1, 'learning_rate': 0.5}
  return strategies.scrub(0.5, 0.7, **how, **more)


def error(params, examples):
  found = np.asarray(network(params, examples.images[examples.indices]))
  return (found.argmax(-1) != examples.own_labels).mean()


def test_scrub_goes_back_to_where_d_ul_was_as_unseen_images_are_in_the_end():
  each = [params(scrubbed(), epochs=n) for n in range(1, 7)]
  unseen = data.class_matched(SPLITS.forget, SPLITS.heldout)
  goal = error(each[-1], unseen)
  gaps = [abs(error(own, SPLITS.forget) - goal) for own in each]
  best = max(n for n in range(6) if gaps[n] == min(gaps))
  assert best < 5 and max(gaps) > min(gaps)
  result = run(scrubbed(rewind=True), epochs=6)
  assert result.picked == best + 1 and len(result.history) == 7
  equal(result.state.params, each[best])
  # The way there costs all epochs.
  assert result.seconds >= result.history[-1].seconds
  plainly = run(scrubbed(), epochs=6)
  assert plainly.picked == -1
  equal(plainly.state.params, each[-1])


@pytest.mark.parametrize('last', [1, 3, 6])
def test_scrub_goes_back_to_the_same_bits_after_a_kill(last):
  whole, keeper = run(scrubbed(rewind=True), epochs=6), InMemory(last)
  with pytest.raises(KeyboardInterrupt):
    run(scrubbed(rewind=True), epochs=6, keeper=keeper)
  keeper.last = None
  again = run(scrubbed(rewind=True), epochs=6, keeper=keeper)
  assert again.picked == whole.picked < 6
  equal(again.state, whole.state)
  rows = [
    [own._replace(seconds=0) for own in r.history] for r in (whole, again)
  ]
  assert rows[0] == rows[1]


def test_going_back_without_an_epoch_is_staying():
  result = run(scrubbed(rewind=True), epochs=0)
  equal(result.state.params, THETA)


def test_what_picks_an_epoch_goes_under_pmap():
  one, four = (run(scrubbed(rewind=True), epochs=6, devices=n) for n in (1, 4))
  assert one.picked == four.picked
  close(four.state.params, one.state.params, rtol=1e-3, atol=2e-4)


def test_the_noise_of_noisy_fine_tuning_is_the_run_s_own():
  strategy = strategies.noisy_finetune(0.5)
  own = lambda rate, steps: optax.chain(strategy.transform, optax.sgd(rate))  # noqa: E731

  def noise(key):
    options = {'budget': Budget(1, RATE, 12, 0.0, 2.0), 'key': key}
    plain = strategies.finetune()._replace(optimizer=sgd)
    quiet = params(plain, **options)
    got = params(strategy._replace(optimizer=own), **options)
    return np.concatenate([np.ravel(quiet[n] - got[n]) / RATE for n in SHAPES])

  first, other = noise(0), noise(1)
  for drawn in (first, other):
    assert 0.35 < drawn.std() < 0.65 and abs(drawn.mean()) < 0.25
  assert abs(np.corrcoef(first, other)[0, 1]) < 0.6


def test_ssd_damps_what_matters_to_d_ul_more_than_to_d():
  forget, every = fisher(XF, YF), fisher(X[:20], Y[:20])
  got = params(strategies.ssd(1.2, 0.5), epochs=0)
  chosen = 0
  for n in SHAPES:
    f, d, w = forget[n], every[n], np.asarray(THETA[n])
    want = np.where(f > 1.2 * d, w * np.minimum(0.5 * d / f, 1), w)
    np.testing.assert_allclose(got[n], want, rtol=1e-4)
    assert (np.abs(got[n]) <= np.abs(w)).all()
    chosen += (f > 1.2 * d).sum()
  assert 5 < chosen < 43
  equal(params(strategies.ssd(1e6), epochs=0), THETA)


def test_ssd_of_the_output_norm_needs_no_labels():
  """|∂‖f(x)‖²/∂ω|: α is compared with a ratio, in which ½ cancels."""

  def size(x):
    slopes = [
      jax.grad(lambda w: (network(w, x[i : i + 1]) ** 2).sum())(THETA)
      for i in range(len(x))
    ]
    return {n: np.mean([np.abs(g[n]) for g in slopes], 0) for n in SHAPES}

  forget, every = size(XF), size(X[:20])
  got = params(strategies.ssd(1.05, importance='output_norm'), epochs=0)
  for n in SHAPES:
    f, d, w = forget[n], every[n], np.asarray(THETA[n])
    want = np.where(f > 1.05 * d, w * np.minimum(d / f, 1), w)
    np.testing.assert_allclose(got[n], want, rtol=1e-4)


# Choosing.


def mean_gradient(x, y):
  return jax.grad(lambda w: ce(w, x, y).mean())(THETA)


def test_scores_by_hand():
  retain = same_as_drawn(CONTEXT, SPLITS.retain, 8)
  f, r = mean_gradient(XF, YF), mean_gradient(*retain)
  ff, fr = fisher(XF, YF), fisher(*retain)
  want = {
    'difference': {n: abs(r[n] - f[n]) for n in SHAPES},
    'saliency': {n: abs(f[n] * THETA[n]) for n in SHAPES},
    'fisher_ratio': {n: ff[n] / fr[n] for n in SHAPES},
  }
  with parallel.use(jax.devices()[:1]):
    for kind, scores in want.items():
      got = choosing.scores(CONTEXT, kind)
      close(got, scores, rtol=1e-3, atol=1e-6)
    got = choosing.scores(CONTEXT, 'forget', reduction='mean')
    close(got, {n: abs(f[n]) for n in SHAPES})
    signed = gradient_sensitivity(
      model_objective(MODEL),
      THETA,
      Batch(jnp.asarray(XF), jnp.asarray(YF)),
      {},
      reduction='signed',
    )
  close(signed, f)


SCORES = {
  'a': jnp.array([3.0, 1, 1, 2]).reshape(1, 1, 2, 2),
  'b': jnp.array([5.0, 0.5]),
}


@pytest.mark.parametrize(
  'k, options, a, b',
  [
    (2, {}, [1, 0, 0, 0], [1, 0]),
    (2, {'direction': 'smallest'}, [0, 0, 1, 0], [0, 1]),  # the later of 1, 1
    (1, {'scope': 'leaf'}, [1, 0, 0, 0], [1, 0]),
    (0.5, {'scope': 'leaf'}, [1, 0, 0, 1], [1, 0]),
    (0.5, {'scope': 'leaf', 'direction': 'smallest'}, [0, 1, 1, 0], [0, 1]),
    (3, {'scope': 'leaf', 'direction': 'smallest'}, [0, 1, 1, 1], [1, 1]),
    (0.5, {'leaves': 'conv'}, [1, 0, 0, 1], [0, 0]),
    (1.0, {'leaves': 'last'}, [0, 0, 0, 0], [1, 1]),
    (1.0, {'direction': 'smallest'}, [1, 1, 1, 1], [1, 1]),
  ],
)
def test_who_is_taken(k, options, a, b):
  got = choosing.select(SCORES, SCORES, k, order=('a', 'b'), **options)
  assert np.ravel(got['a']).astype(int).tolist() == a
  assert np.ravel(got['b']).astype(int).tolist() == b


def test_msg_starts_convolutions_afresh_where_both_sets_pull_alike():
  with parallel.use(jax.devices()[:1]):
    scores = choosing.scores(CONTEXT, 'difference')
  order = np.argsort(np.ravel(scores['a']))
  chosen = np.zeros(8, bool)
  chosen[order[: round(0.3 * 8)]] = True
  chosen = chosen.reshape(SHAPES['a'])
  start = {**THETA, 'a': jnp.where(chosen, FRESH['a'], THETA['a'])}
  step = moved(start, plain)
  slow = start['a'] + jnp.where(chosen, 1, 0.1) * (step['a'] - start['a'])
  result = run(strategies.msg())
  equal(result.perturbed.params, start)
  close(result.state.params, {**step, 'a': slow})
  whole = run(strategies.msg(1.0), epochs=0).perturbed.params
  equal(whole, {**THETA, 'a': FRESH['a']})


def test_the_control_of_msg_takes_as_many_of_each_convolution_by_lot():
  msg = strategies.msg()
  lot = strategies.top_k(
    *(0.3, -1.0), sensitivity='random', direction='smallest', scope='leaf',
    leaves='conv', change='reinitialize', grad_scale=0.1, js_teacher='none',
  )  # fmt: skip
  assert (lot.role, msg.role) == ('control', 'method')
  assert lot.terms == msg.terms
  with parallel.use(jax.devices()[:1]):
    own, *drawn = (
      strategy.edit(CONTEXT._replace(key=jax.random.key(seed)))
      for strategy, seed in ((msg, 0), *((lot, seed) for seed in range(6)))
    )
  for edit in drawn:
    for name in SHAPES:
      assert edit.mask[name].sum() == own.mask[name].sum()
      at = np.where(edit.mask[name], FRESH[name], THETA[name])
      np.testing.assert_array_equal(edit.params[name], at)
  seen = {np.asarray(edit.mask['a']).tobytes() for edit in drawn}
  assert len(seen) > 2
  np.testing.assert_array_equal(
    drawn[0].scales['a'], np.where(drawn[0].mask['a'], 1, np.float32(0.1))
  )


def test_what_is_reinitialised_by_lot_is_a_fresh_models():
  strategy = strategies.random_k(0.5, change='reinitialize', js_weight=0.0)
  got = run(strategy, epochs=0).perturbed.params
  fresh = [int((got[n] == FRESH[n]).sum()) for n in SHAPES]
  still = [int((got[n] == THETA[n]).sum()) for n in SHAPES]
  assert sum(fresh) == sum(still) == 24 and min(fresh) > 0


# Adversaries.


def test_adversaries_are_near_in_range_and_of_another_class():
  with parallel.use(jax.devices()[:1]):
    near, radii = adversaries.nearest(
      MODEL, ModelState(THETA), SPLITS.forget, epsilon=0.01
    )
  assert len(near.images) == 8
  reach = XF.max() - XF.min()
  away = np.sqrt(np.square(near.images - XF).sum((1, 2, 3)))
  assert (away <= radii * reach * (1 + 1e-5)).all()
  classes = np.argmax(network(THETA, near.images), -1)
  assert (classes == near.labels).all() and (classes != YF).all()
  assert near.images.min() >= XF.min() and near.images.max() <= XF.max()
  already = np.argmax(network(THETA, XF), -1) != YF
  assert (radii[already] == 0).all() and (away[already] == 0).all()
  assert (radii[~already] > 0).all() and len(set(radii)) > 2
  # No smaller radius did: at half of it the class stays.
  with parallel.use(jax.devices()[:1]):
    program = adversaries._programs(MODEL, 1.0)
    half = np.float32(reach / 2) * radii
    for i in np.flatnonzero(radii > 0.01):
      one, low, high = XF[i : i + 1], float(XF.min()), float(XF.max())
      tried, _ = program.attack(
        *(ModelState(THETA), one, one, YF[i : i + 1], half[i], 50),
        low=low,
        high=high,
      )
      assert np.argmax(network(THETA, tried), -1) == YF[i]


def test_who_is_done_makes_room_and_as_few_sizes_are_compiled(monkeypatch):
  """The same images whether the others are looked at in lots or one by one."""
  every = SPLITS.train

  def found(examples):
    own = adversaries.nearest(MODEL, ModelState(THETA), examples, epsilon=0.01)
    return own[0].images, own[0].labels, own[1]

  with parallel.use(jax.devices()[:1]):
    want = found(every)
    with timing.Stopwatch() as watch:
      fewer = found(every.take(np.arange(every.size - 5)))
    assert watch.compilations == 0
    monkeypatch.setattr(adversaries, '_BATCHES', (1,))
    monkeypatch.setattr(adversaries, '_STEPS', 50)
    for a, b, c in zip(want, found(every), fewer):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
      np.testing.assert_array_equal(a[: len(c)], c)


def test_who_cannot_be_moved_is_left_out():
  """A model that looks at the first pixel's sign only where it is positive."""
  dead = stateless(lambda w, x: jnp.stack(
    [jax.nn.relu(x[:, 0]) * w['s'], 0.1 * jnp.ones(len(x))], -1
  ))  # fmt: skip
  x = np.array([[1.0, 0], [-1, 0], [0.9, 1]], np.float32)
  state = ModelState({'s': jnp.float32(1)})
  every = Examples.of(x, np.array([0, 1, 0]))
  with parallel.use(jax.devices()[:1]):
    near, radii = adversaries.nearest(dead, state, every)
    assert near.labels.tolist() == [1, 1] and (radii > 0).all()
    with pytest.raises(
      ValueError, match='examples: no class moves, allowed: images'
    ):
      adversaries.nearest(dead, state, every.take([1]))


def test_tokens_have_no_images_nearby():
  every = Examples.of(np.arange(6, dtype=np.int32).reshape(3, 2), [0, 1, 0])
  model, state = stateless(lambda w, x: w[x].mean(1)), ModelState(jnp.eye(6))
  for attack in (
    lambda: adversaries.nearest(model, state, every),
    lambda: adversaries.fgsm(model, state, every, 0.1),
  ):
    with pytest.raises(ValueError, match="images='int32', allowed: uint8 or"):
      attack()


def test_images_in_bytes_stay_bytes_to_the_model():
  """Whether it divides floats or leaves them to the caller."""
  images = RNG.integers(0, 256, (6, 2, 2, 1)).astype(np.uint8)
  every = Examples.of(images, np.array([0, 1, 0, 1, 0, 1]))
  state = ModelState({'w': jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)})
  found = []
  for factor in (1.0, 255.0):  # What a float image is multiplied by, inside.

    def apply(w, x, factor=factor):
      whole = jnp.issubdtype(x.dtype, jnp.integer)
      x = jnp.asarray(x, jnp.float32) * (1 if whole else factor) / 255
      return x.reshape(len(x), -1) @ w['w']

    with parallel.use(jax.devices()[:1]):
      model = stateless(apply)
      moved, _ = adversaries.fgsm(model, state, every, 0.1)
      near, _ = adversaries.nearest(model, state, every)
      own = model.apply(state, near.images[near.indices], False)[0]
    # To the model they are what they were found to be.
    np.testing.assert_array_equal(own.argmax(-1), near.labels[near.indices])
    found.append(moved)
    assert np.abs(moved - images.astype(float)).max() == pytest.approx(25.5)
  np.testing.assert_allclose(*found, atol=1e-3)
  strange = stateless(lambda w, x: (x.reshape(len(x), -1) > 3) @ w['w'] + (
    0.0 if jnp.issubdtype(x.dtype, jnp.integer) else 9.0
  ))  # fmt: skip
  with pytest.raises(ValueError, match='other logits of uint8 images'):
    adversaries.fgsm(strange, state, every, 0.1)


# Invariants.


def test_neggrad_plus_of_1_is_fine_tuning_and_of_0_is_ascent():
  plainly = params(strategies.finetune(), epochs=3)
  equal(params(strategies.neggrad_plus(1.0), epochs=3), plainly)
  up = params(strategies.neggrad_plus(0.0, bounded=False), batch_size=8)
  close(up, moved(THETA, lambda w: -ce(w, XF, YF).mean()))


def test_scrub_without_its_parts_is_fine_tuning():
  strategy = strategies.scrub(0.0, 1.0, max_epochs=0)
  plainly = params(strategies.finetune(), epochs=3)
  equal(params(strategy, epochs=3), plainly)


def test_the_first_step_away_from_the_source_has_no_gradient():
  logits = network(THETA, XF)
  batch = Batch(XF, YF, jax.nn.softmax(logits))
  for t in (1.0, 4.0):
    value, slope = jax.value_and_grad(
      lambda z, t=t: distilling._kl(t)(z, batch).sum()
    )(logits)
    assert abs(value) < 1e-5 and abs(slope).max() < 1e-5


def test_a_one_hot_teacher_is_a_label():
  logits = network(FRESH, XF)
  batch = Batch(XF, YF, jnp.eye(2)[YF])
  np.testing.assert_allclose(
    objectives.kl_to_teacher(logits, batch), ce(FRESH, XF, YF), rtol=1e-6
  )


def everything(context):
  source = context.source.params
  return Edit(source, jax.tree.map(lambda w: jnp.ones(w.shape, bool), source))


def nothing(context):
  source = context.source.params
  return Edit(source, jax.tree.map(lambda w: jnp.zeros(w.shape, bool), source))


def test_ct_turns_pixels_wherever_a_library_keeps_them():
  rng = np.random.default_rng(0)
  flax = {
    'a': rng.normal(size=(3, 3, 1, 8)),
    'b': rng.normal(size=(3, 3, 8, 8)),
  }
  own = {n: np.transpose(w, (3, 2, 0, 1)) for n, w in flax.items()}
  for params, axes in ((flax, (0, 1)), (own, (2, 3))):
    context = Context(jax.random.key(0), MODEL, ModelState(params), SPLITS)
    turned = strategies.ct().edit(context).params
    for name, kernel in params.items():
      np.testing.assert_array_equal(turned[name], kernel.swapaxes(*axes))
  assert refreshing._square(own) == [0, 1]


def test_salun_with_every_scalar_is_random_labels():
  budget = Budget(3, RATE, 12, 0.0, 2.0, optimizer='sgd')
  free = strategies.salun(1.0)
  assert free.label == 'Random labels'
  masked = strategies.salun(0.3)._replace(edit=everything)
  equal(params(masked, budget=budget), params(free, budget=budget))


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_with_no_scalar_nothing_moves(name):
  budget = Budget(3, RATE, 12, 0.0, 2.0, optimizer=name)
  strategy = strategies.salun(0.3)._replace(edit=nothing)
  equal(params(strategy, budget=budget), THETA)


def test_sfron_without_power_weights_all_alike():
  loss = FACTORIES['sfron'](power=0.0).terms[1].loss
  logits = network(FRESH, XF)
  got = loss(logits, Batch(XF, YF))
  np.testing.assert_allclose(got, ce(FRESH, XF, YF), rtol=1e-5)


def test_ct_twice_changes_nothing():
  turn = strategies.ct().edit
  once = turn(CONTEXT).params
  again = turn(CONTEXT._replace(source=ModelState(once)))
  equal(again.params, THETA)
  flat = {'w': jnp.ones((3, 3)), 'k': jnp.ones((1, 1, 3, 3))}
  with pytest.raises(ValueError, match='convolutions=0, allowed: a model with'):
    strategies.ct().check(flat, ())


# Small enough for the model; and of two classes only one is the other.
SMALL = {
  'cf_k': {'k': 2},
  'eu_k': {'k': 2},
  'random_top_k': {'k': 2, 'ratio': 0.2},
  'salun': {'labels': 'other'},
}


@pytest.mark.parametrize('name', sorted({*FACTORIES} - {'retrain'}))
def test_without_steps_the_edit_is_all(name):
  strategy = FACTORIES[name](**SMALL.get(name, {}))._replace(epochs=0)
  result = run(strategy)
  equal(result.state.params, result.perturbed.params)
  if result.by_tensor == dict.fromkeys(SHAPES, 0):
    equal(result.state.params, THETA)


@pytest.mark.parametrize(
  'strategy', [strategies.regun(), strategies.scrub(rewind=True)]
)
def test_held_out_images_are_asked_for_in_one_line(strategy):
  without = SPLITS._replace(heldout=None)
  for splits, message in (
    (without, 'splits.heldout=None, allowed: examples that are neither'),
    (
      SPLITS._replace(heldout=EVERY.take(np.flatnonzero(Y == 0))),
      'splits.heldout has none of class 1, allowed: some',
    ),
  ):
    with (
      pytest.raises(InputError, match=message),
      parallel.use(jax.devices()[:1]),
    ):
      unlearn(
        jax.random.key(0), MODEL, ModelState(THETA), splits, strategy,
        Budget(1, RATE, 12),
      )  # fmt: skip


# The machinery.


def seen_by(strategy, epochs, batch_size):
  """Which rows of which set each step saw, by the value of their pixels."""
  seen = []

  def loss(place):
    def own(logits, batch):
      jax.debug.callback(
        lambda rows, p=place: seen.append((p, rows.tolist())),
        batch.images.astype(int).ravel(),
      )
      return logits.sum(-1) * 0

    return own

  x = np.arange(20, dtype=np.float32)[:, None]
  every = Examples.of(x, np.arange(20) % 2)
  splits = Splits.of(every, np.arange(8), every)
  terms = tuple(t._replace(loss=loss(i)) for i, t in enumerate(strategy.terms))
  model = stateless(lambda w, x: x @ w['w'])
  with parallel.use(jax.devices()[:1]):
    unlearn(
      jax.random.key(1), model, ModelState({'w': jnp.zeros((1, 2))}), splits,
      strategy._replace(terms=terms), Budget(epochs, 1e-3, batch_size, 0, 2),
    )  # fmt: skip
    jax.effects_barrier()
  return seen


def test_passes_come_one_after_the_other_and_miss_nobody():
  terms = (Term(forgotten), Term(retained))
  seen = seen_by(Strategy('own', terms=terms, passes=True), 2, 4)
  assert [place for place, _ in seen] == 2 * [0, 0, 1, 1, 1]
  for epoch in (seen[:5], seen[5:]):
    forget = sum((rows for place, rows in epoch if place == 0), [])
    retain = sum((rows for place, rows in epoch if place == 1), [])
    assert sorted(forget) == list(range(8))
    assert sorted(retain) == list(range(8, 20))
  assert seen[:5] != seen[5:]
  # Nor where the size of a batch does not divide those of D_UL.
  few = seen_by(Strategy('own', terms=terms, passes=True), 1, 5)
  assert [place for place, _ in few] == [0, 0, 1, 1]
  assert sorted(few[0][1] + few[1][1]) == list(range(8))


def test_a_weight_of_0_is_not_computed():
  odd = Term(forgotten, weight=lambda s: jnp.where(s.number % 3 == 0, -1.0, 0))
  seen = seen_by(Strategy('own', terms=(Term(retained), odd)), 2, 4)
  assert [place for place, _ in sorted(seen)] == 6 * [0] + 2 * [1]


def test_where_no_term_has_a_weight_nothing_moves_not_even_by_momentum():
  early = Term(retained, weight=lambda s: jnp.where(s.number < 2, 1.0, 0.0))
  strategy = Strategy('own', terms=(early,))
  for name in ('sgd', 'adam'):
    short, long = (
      params(strategy, budget=Budget(n, RATE, 12, 0.0, 2.0, optimizer=name))
      for n in (2, 4)
    )
    equal(short, long)


def test_a_cosine_ends_at_0_and_knows_all_steps():
  strategy = strategies.finetune()
  want = THETA
  for number in range(4):
    rate = RATE * (1 + math.cos(math.pi * number / 4)) / 2
    want = moved(want, plain, rate)
  budget = Budget(4, RATE, 12, 0.0, 2.0, 'sgd', 'cosine')
  bare = lambda rate, steps: optax.sgd(optax.cosine_decay_schedule(rate, steps))  # noqa: E731
  close(params(strategy._replace(optimizer=bare), budget=budget), want)
  # The budget's own: with momentum, and matrices that decay.
  moment, want = jax.tree.map(jnp.zeros_like, THETA), THETA
  for number in range(4):
    rate = RATE * (1 + math.cos(math.pi * number / 4)) / 2
    grads = jax.grad(plain)(want)
    moment = jax.tree.map(
      lambda g, w, m: g + 5e-4 * w + 0.9 * m, grads, want, moment
    )
    want = jax.tree.map(lambda w, m, r=rate: w - r * m, want, moment)
  close(params(strategy, budget=budget), want)


def test_a_cosine_over_few_images_of_d_ul_has_a_step_an_epoch():
  lengths = []
  for epochs in (1, 4):
    budget = Budget(epochs, RATE, 12, 0.0, 2.0, 'sgd', 'cosine')
    own = params(strategies.neggrad_plus(0.0), budget=budget)  # 8 images
    lengths.append(max(np.abs(own[n] - THETA[n]).max() for n in SHAPES))
  assert lengths[1] > 1.5 * lengths[0] > 0


def test_logits_of_half_the_bits_go_through_passes():
  half = stateless(lambda w, x: network(w, x).astype(jnp.bfloat16))
  with parallel.use(jax.devices()[:1]):
    result = unlearn(
      jax.random.key(0), half, ModelState(THETA), SPLITS, strategies.salun(1.0),
      Budget(1, RATE, 12, 0.0, 2.0),
    )  # fmt: skip
  assert all(np.isfinite(leaf).all() for leaf in result.state.params.values())


def test_what_moves_by_a_mask_needs_one():
  strategy = Strategy('Own', terms=(Term(retained),), moves='scalars')
  with pytest.raises(ValueError, match="moves='scalars', allowed: with Edit"):
    run(strategy)


def test_statistics_in_the_end_are_those_of_d_re():
  """Half of NegGrad+'s batches are of D_UL, here of one class."""
  model, splits = helpers.model(), helpers.splits()
  source = training.initialize(jax.random.key(3), model)
  with parallel.use(jax.devices()[:1]):
    own, plainly = (
      unlearn(
        jax.random.key(0), model, source, splits, strategy,
        Budget(1, 1e-3, 16, 0.0, 2.0), augment=images.augment,
      ).state
      for strategy in (
        strategies.neggrad_plus(), strategies.finetune(),
      )
    )  # fmt: skip
    again = [
      normalization.reestimate(
        model, state, splits.retain, augment=images.augment
      ).batch_stats
      for state in (own, plainly)
    ]  # fmt: skip
  equal(own.batch_stats, again[0])
  with pytest.raises(AssertionError):  # As it always was: of its last batches.
    equal(plainly.batch_stats, again[1])


class InMemory(Keeper):
  """Keeps the last snapshot, and ends the training after some epochs."""

  def __init__(self, last):
    self.last, self.kept = last, None

  def load(self, like):
    return self.kept

  def save(self, snapshot):
    self.kept = snapshot._replace(state=jax.tree.map(jnp.copy, snapshot.state))
    if snapshot.course.epoch == self.last:
      raise KeyboardInterrupt


@pytest.mark.parametrize('name', ['salun', 'scrub', 'sfron', 'l1_sparse'])
def test_what_knows_the_step_goes_on_to_the_same_bits(name):
  strategy = FACTORIES[name]()
  budget = Budget(4, RATE, 4, 0.0, 2.0, 'sgd', 'cosine')
  whole = params(strategy, budget=budget)
  keeper = InMemory(2)
  with pytest.raises(KeyboardInterrupt):
    run(strategy, budget=budget, keeper=keeper)
  keeper.last = None
  equal(params(strategy, budget=budget, keeper=keeper), whole)


# One of each kind: images that are made, a penalty, a mask, passes, selection.
@pytest.mark.parametrize(
  'name', ['amun', 'l1_sparse', 'sfron', 'scrub', 'top_k']
)
def test_four_devices_give_the_numbers_of_one(name):
  strategy = FACTORIES[name](**SMALL.get(name, {}))
  budget = Budget(2, 0.01, 12, 0.0, 2.0, optimizer='sgd')
  one, four = (params(strategy, budget=budget, devices=n) for n in (1, 4))
  close(four, one, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('name', sorted({*FACTORIES} - {'retrain'}))
def test_a_network_with_batch_norm_and_bytes_compiles_once(name):
  model, splits = helpers.model(), helpers.splits()
  splits = splits._replace(heldout=splits.test)
  source = training.initialize(jax.random.key(3), model)
  strategy = FACTORIES[name](**SMALL.get(name, {}))
  seen = []
  for seed in (0, 1):
    with timing.Stopwatch() as watch, parallel.use(jax.devices()[:2]):
      result = unlearn(
        jax.random.key(seed), model, source, splits, strategy,
        Budget(2, 1e-3, 16, 0.0, 2.0),
      )  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state))
    seen.append(watch.compilations)
  assert seen[1] == 0
