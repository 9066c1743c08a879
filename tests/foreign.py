"""One network by Haiku and by Equinox: BatchNorm, Dropout, a linear layer."""

import equinox as eqx
import haiku as hk
import jax

import unlearn_jax as uj

SHAPE = 6, 6, 1


def haiku_function(rate):
  def net(x, is_training):
    x = hk.Conv2D(4, 3, name='z')(x)
    norm = hk.BatchNorm(True, True, decay_rate=0.9, name='a')
    x = jax.nn.relu(norm(x, is_training))
    if is_training:
      x = hk.dropout(hk.next_rng_key(), rate, x)
    return hk.Linear(3, name='b')(x.mean((1, 2)))

  return hk.transform_with_state(net)


class Equinox(eqx.Module):
  z: eqx.nn.Conv2d
  a: eqx.nn.BatchNorm
  drop: eqx.nn.Dropout
  b: eqx.nn.Linear

  def __init__(self, rate, key):
    one, two = jax.random.split(key)
    self.z = eqx.nn.Conv2d(1, 4, 3, padding=1, key=one)
    how = {'mode': 'batch', 'momentum': 0.9}
    self.a = eqx.nn.BatchNorm(4, axis_name='any', **how)
    self.drop = eqx.nn.Dropout(rate)
    self.b = eqx.nn.Linear(4, 3, key=two)

  def __call__(self, x, state, *, key=None):
    x, state = self.a(self.z(x), state)
    x = self.drop(jax.nn.relu(x), key=key)
    return self.b(x.mean((1, 2))), state


def haiku(rate=0.5):
  return uj.from_haiku(haiku_function(rate), SHAPE, scale=255)


def equinox(rate=0.5):
  return uj.from_equinox(lambda key: Equinox(rate, key), SHAPE, scale=255)
