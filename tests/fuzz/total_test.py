"""How many cases there were; the last file of this folder."""

import pathlib

import fuzzing
import pytest


def test_a_run_promises_two_thousand_cases():
  assert sum(fuzzing.CASES.values()) >= 2000


@pytest.mark.parametrize('kind', fuzzing.CASES)
def test_as_many_cases_ran_as_promised(kind, request):
  """Of a whole run of this folder each kind, of a part what there was."""
  own = {path.name for path in pathlib.Path(__file__).parent.glob('*_test.py')}
  whole = own <= {item.path.name for item in request.session.items}
  if not whole and not fuzzing.ran[kind]:
    pytest.skip('only part of the folder is run')
  assert fuzzing.ran[kind] >= fuzzing.MORE * fuzzing.CASES[kind]
