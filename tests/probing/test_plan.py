"""The plan of a probe: it never asks for more time than there is."""

from __future__ import annotations

import pytest

from lcfbench.probing.plan import ALONE, FEWEST_STEPS, MOST_DOCUMENTS, MOST_STEPS, Speeds, plan, replan


def expected(found, speeds: Speeds) -> float:
    fixed = speeds.fixed if found.steps else 0
    return found.baseline_seconds + found.training_seconds + found.final_seconds + fixed


@pytest.mark.parametrize("seconds", [30, 60, 120, 300, 600, 1800, 7200, 86400])
@pytest.mark.parametrize("speed", [0.01, 0.3, 2.0, 20.0, 300.0])
@pytest.mark.parametrize("available", [4, 20, 200, 5000])
def test_a_plan_fits_into_its_time(seconds, speed, available):
    speeds = Speeds(baseline=speed, final=speed / 2, step=2 * speed, dev=speed / 2, fixed=5 * speed)
    found = plan(speeds, seconds=seconds, available=available, examples=True)
    assert 1 <= found.documents <= min(available, MOST_DOCUMENTS)
    assert found.steps == 0 or FEWEST_STEPS <= found.steps <= MOST_STEPS
    fewest = (min(available, 8) + ALONE) * speed  # what is asked in any case
    assert expected(found, speeds) <= max(seconds, fewest)


@pytest.mark.parametrize("available", [1000, 37, 8, 4])
def test_more_time_never_means_less(available):
    speeds = Speeds(baseline=0.5, final=0.3, step=2.0, dev=0.3, fixed=20)
    found = [
        plan(speeds, seconds=60 * m, available=available, examples=True) for m in (1, 5, 10, 30, 60, 600)
    ]
    steps = [f.steps for f in found]
    assert steps == sorted(steps) and found[-1].documents == min(available, MOST_DOCUMENTS)
    assert steps[0] == 0 and steps[-1] == MOST_STEPS


def test_a_limit_holds_and_nothing_is_planned_where_nothing_can_be_learnt():
    speeds = Speeds(baseline=0.5, final=0.3, step=2.0, dev=0.3, fixed=20)
    assert plan(speeds, seconds=600, available=500, examples=True, limit=50).documents == 50
    untrained = plan(speeds, seconds=600, available=500, examples=False)
    assert untrained.steps == 0 and untrained.documents == MOST_DOCUMENTS


@pytest.mark.parametrize("slower", [0.5, 1.0, 1.5, 3.0, 30.0])
def test_a_slower_machine_trains_less(slower):
    speeds = Speeds(baseline=0.5, final=0.3, step=2.0, dev=0.3, fixed=20)
    planned = plan(speeds, seconds=1800, available=500, examples=True)
    took = slower * planned.baseline_seconds
    found, factor = replan(planned, speeds, took=took, seconds=1800 - took)
    assert factor == max(slower, 1.0) and found.documents == planned.documents
    assert found.steps == 0 or FEWEST_STEPS <= found.steps <= planned.steps
    after = factor * (found.training_seconds + found.final_seconds + speeds.fixed)
    assert found.steps == 0 or took + after <= 1800
    if slower <= 1:
        assert found.steps == planned.steps
