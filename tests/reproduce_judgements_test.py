"""Verdicts, against cases worked out by hand."""

import dataclasses

import pytest

from experiments.reproduction import (
  cells,
  figure_statements,
  judgements,
  paper,
  sweeping,
  table_statements,
)
from experiments.reproduction.judgements import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
)
from experiments.reproduction.presets import SWEEPS

# Differences 0.40 and 0.42: mean 0.41, half-width 12.706 · 0.01.
ABOVE = ({0: 0.5, 1: 0.62}, {0: 0.1, 1: 0.2})


def verdict(**comparisons):
  return judgements.ordering('fig1', 'a is above b', comparisons)


def test_an_order_holds_where_its_interval_is_above_0():
  found = verdict(a=ABOVE)
  assert found.verdict == REPRODUCED
  assert found.evidence == 'a: 41.0 points [28.3, 53.7], 2 seeds'


def test_an_order_is_refuted_where_one_of_its_intervals_is_below_0():
  found = verdict(a=ABOVE, b=ABOVE[::-1])
  assert found.verdict == NOT_REPRODUCED
  assert found.evidence.startswith('b: −41.0 points')


def test_one_interval_that_contains_0_leaves_it_open():
  # Differences 0.1 and −0.1: mean 0, half-width 12.706 · 0.1.
  level = ({0: 0.2, 1: 0.1}, {0: 0.1, 1: 0.2})
  found = verdict(a=ABOVE, b=level)
  assert found.verdict == UNDECIDED
  assert found.evidence == (
    'b: 0.0 points [−127.1, 127.1], 2 seeds, the least clear of 2'
  )


def test_without_any_spread_nothing_is_decided():
  # Counts of few images are easily off by the same in two seeds.
  for other in ({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25}):
    found = verdict(a=({0: 0.5, 1: 0.5}, other))
    assert found.verdict == UNDECIDED


def test_seeds_are_paired_and_one_is_too_few():
  found = verdict(a=({0: 0.5, 1: 0.6}, {1: 0.1, 2: 0.2}))
  assert (found.verdict, found.evidence) == (
    UNDECIDED,
    'fewer than two seeds of a',
  )
  assert verdict(a=({}, {0: 1.0})).verdict == UNDECIDED


def test_a_missing_comparison_is_not_taken_as_won():
  assert verdict(a=ABOVE, b=({0: 0.5, 1: 0.6}, {})).verdict == UNDECIDED


def test_a_time_that_was_cut_off_wins_nothing():
  above = ({0: 9.0, 1: 9.6}, {0: 1.0, 1: 1.5})
  won, lost = verdict(a=above), verdict(a=above[::-1])
  assert judgements.of_times(won, False, True) == won
  assert judgements.of_times(won, True, False).verdict == UNDECIDED
  assert judgements.of_times(lost, True, False) == lost
  assert judgements.of_times(lost, False, True).verdict == UNDECIDED


def printed(series, widest=5.0, why_not=''):
  return judgements.number('table2', 'x', 80.0, series, widest, '%', why_not)


def test_a_number_is_judged_by_our_interval():
  # 79.9 and 80.1: 80 ± 1.27.
  near = {0: 79.9, 1: 80.1}
  assert printed(near).verdict == REPRODUCED
  assert printed({0: 89.9, 1: 90.1}).verdict == NOT_REPRODUCED
  # It contains 80, but would contain nearly anything.
  assert printed({0: 70.0, 1: 90.0}).verdict == UNDECIDED
  assert printed({0: 80.0}).verdict == UNDECIDED
  assert printed({0: 90.0, 1: 90.0}).verdict == UNDECIDED
  assert printed({0: 80.0, 1: 80.0}).verdict == REPRODUCED
  assert printed({}).verdict == UNDECIDED
  other = printed(near, why_not='another data set')
  assert other.verdict == UNDECIDED
  assert other.evidence.endswith('another data set')


def test_the_best_of_many_ks_is_corrected_for_how_many_there_are():
  zero = {0: 0.0, 1: 0.0, 2: 0.0}
  # 0.10 ± 0.087 by itself: t(0.975, 2) = 4.303, s = 0.035, √3. Of twenty, the
  # half-width is 0.41: t(0.99875, 2) = 19.96.
  gain = {0: 0.065, 1: 0.10, 2: 0.135}
  k, interval = figure_statements.best_k({0: zero, 45: gain})
  assert k == 45
  assert interval.low == pytest.approx(0.1 - 0.0869, abs=1e-3)
  flat = {k: zero for k in range(1, 20)}
  k, interval = figure_statements.best_k({0: zero, **flat, 45: gain})
  assert k == 45 and interval.low == pytest.approx(0.1 - 0.404, abs=5e-3)
  assert figure_statements.best_k({0: zero}) is None


def test_table_1_is_compared_digit_by_digit():
  found = list(table_statements.table_1(None, None))
  assert len(found) == 12
  assert {judgement.verdict for judgement in found} == {REPRODUCED}
  assert table_statements.says('0.558M', 558_999)
  assert not table_statements.says('0.558M', 559_001)


def test_the_papers_own_acceleration_is_the_quotient_of_its_seconds():
  assert paper.acceleration(0.05, 'random_k') == pytest.approx(1190.15 / 135.43)
  assert paper.acceleration(0.05, 'finetune') is None
  assert paper.acceleration(0.07, 'top_k') is None


def points(default, other):
  sweep = dataclasses.replace(SWEEPS[2], options=SWEEPS[2].options[:2])
  columns = [{sweeping.GAP_COLUMN: default}, {sweeping.GAP_COLUMN: other}]
  change = sweeping.tally.difference(other, default)
  return sweep, [
    sweeping.Point('λ 0.1', True, columns[0], None),
    sweeping.Point('λ 0', False, columns[1], change),
  ]


def test_a_default_changes_only_where_another_is_resolvably_closer():
  closer = sweeping.conclusion(*points({0: 0.30, 1: 0.31}, {0: 0.1, 1: 0.12}))
  assert 'λ 0 is closer to Retrain' in closer and 'should change' in closer
  level = sweeping.conclusion(*points({0: 0.3, 1: 0.1}, {0: 0.1, 1: 0.3}))
  assert 'λ 0.1 stays' in level
  farther = sweeping.conclusion(*points({0: 0.1, 1: 0.11}, {0: 0.3, 1: 0.32}))
  assert 'λ 0.1 is confirmed' in farther
  few = sweeping.conclusion(*points({0: 0.1}, {0: 0.3}))
  assert 'not decidable' in few


def test_cells_show_half_of_the_interval():
  # Half-width: 12.706 · s / √2 with s = 0.1 / √2 is 12.706 · 0.05.
  assert cells.shown({0: 0.5, 1: 0.6}, 1, 2) == '0.55 ± 0.64'
  assert cells.shown({0: 45, 1: 45}, 1, 0) == '45'
