"""The pins of the repository say what pyproject.toml allows."""

import pathlib
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']


def needs(*lists):
  """What they name, and what the extras that they name do."""
  found = [Requirement(text) for own in lists for text in own]
  for need in [need for need in found if need.name == PROJECT['name']]:
    found.remove(need)
    found += needs(*map(EXTRAS.get, need.extras))
  return found


ALLOWED = needs(PROJECT['dependencies'], EXTRAS['test'])


def pins(name):
  lines = (ROOT / name).read_text().splitlines()
  found = [re.fullmatch(r'([\w.-]+)==(\S+)', x) for x in lines if x[0] != '#']
  assert all(found)
  return {canonicalize_name(m[1]): Version(m[2]) for m in found}


@pytest.mark.parametrize('name', ['constraints.txt', 'constraints-lowest.txt'])
def test_everything_that_is_needed_is_pinned_to_what_is_allowed(name):
  pinned = pins(name)
  also = needs(EXTRAS['docs'] if name == 'constraints.txt' else ())
  for need in (*ALLOWED, *also):
    assert pinned[canonicalize_name(need.name)] in need.specifier, need


def test_the_lowest_are_the_lowest():
  pinned = pins('constraints-lowest.txt')
  for need in ALLOWED:
    (bound,) = need.specifier
    assert pinned[canonicalize_name(need.name)] == Version(bound.version), need
