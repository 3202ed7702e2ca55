"""Runs that are killed, stopped or diverge continue, as those that were left alone."""

import pytest

from tests.faults import divergence, kills


@pytest.mark.slow
@pytest.mark.parametrize("scenario", kills.SCENARIOS)
def test_runs_that_are_hit_end_in_the_same_bits(scenario, tmp_path):
    counts, found = kills.run(tmp_path, 8, seed=1, scenarios=[scenario])
    assert sum(counts.values()) >= 8
    assert not found


@pytest.mark.slow
def test_the_way_back_of_a_run_that_diverged_works(tmp_path):
    divergence.run(tmp_path, trials=2)
