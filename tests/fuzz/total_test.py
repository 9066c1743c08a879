"""How many cases there were; the last file of this folder."""

import fuzzing
import pytest


def test_a_run_promises_two_thousand_cases():
  assert sum(fuzzing.CASES.values()) >= 2000


@pytest.mark.parametrize('kind', fuzzing.CASES)
def test_as_many_cases_ran_as_promised(kind):
  if not fuzzing.ran[kind]:
    pytest.skip('its file was not run')
  assert fuzzing.ran[kind] >= fuzzing.MORE * fuzzing.CASES[kind]
