"""The simulation of a plan on many workers, against cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.scale_simulation import WAYS, Plan, Service, World, curves, files, ideal, play_pool, slowness

CALM = World(slow=0.0)
FREE = Service((2.0,), load=7.0, setup=0.0, append=0.0, hand=0.0, opening=0.0, seal=0.0, gather=0.0)


@pytest.mark.parametrize("workers", [1, 3, 7, 16])
@pytest.mark.parametrize("batches", [1, 6, 7, 50])
def test_the_makespan_of_one_even_run_is_the_ceiling(workers: int, batches: int) -> None:
    plan = Plan(1, batches * 16, 16, block=1)
    expected = 7.0 + math.ceil(batches / workers) * 2.0
    got = play_pool(plan, FREE, workers, CALM)
    assert got.makespan == pytest.approx(expected) and got.preemptions == 0
    assert got.used == pytest.approx(2.0 * batches / (workers * expected))
    assert WAYS["shards"](plan, FREE, workers, CALM).makespan == pytest.approx(expected)
    assert WAYS["runs"](plan, FREE, workers, CALM).makespan == pytest.approx(7.0 + 2.0 * batches)


def test_whole_runs_are_dealt_out() -> None:
    got = WAYS["runs"](Plan(10, 160, 16), FREE, 4, CALM)
    assert got.makespan == pytest.approx(7.0 + math.ceil(10 / 4) * 10 * 2.0)


def test_one_process_that_writes_bounds_the_pool() -> None:
    """With more workers than it can serve, the makespan is its own work."""
    plan = Plan(4, 1600, 16, block=1)
    slow = Service((2.0,), 7.0, 0.0, append=0.05, hand=0.2, opening=1.0, seal=3.0, gather=0.0)
    writing = 6400 * 0.05 + 400 * 0.2 + 4 * 4.0
    got = play_pool(plan, slow, 256, CALM)
    assert writing <= got.makespan - 7.0 <= writing * 1.02 and got.writing > 0.97
    assert play_pool(plan, slow, 1, CALM).makespan == pytest.approx(7.0 + 400 * 2.0 + writing)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_numbers(way: str) -> None:
    rough = World(preempted=40.0, seed=3)
    plan = Plan(6, 640, 16, block=3)
    service = Service((1.0, 2.0, 5.0), 3.0, 0.5, 0.001, 0.002, 0.1, 0.4, 0.01)
    first, again = (WAYS[way](plan, service, 8, rough) for _ in range(2))
    assert first == again and first.preemptions > 0
    assert first.makespan > WAYS[way](plan, service, 8, CALM).makespan >= ideal(plan, service, 8)
    assert 0 < first.used <= 1


def test_a_preempted_worker_loses_its_batch_and_no_other() -> None:
    """Every batch is counted once: the useful time is that of all batches."""
    plan = Plan(3, 480, 16, block=5)
    got = play_pool(plan, FREE, 4, World(slow=0.0, preempted=15.0, away=1.0))
    assert got.preemptions > 5
    assert got.used * 4 * got.makespan == pytest.approx(90 * 2.0, rel=0.12)


def test_slow_workers_are_few_and_bounded() -> None:
    factors = slowness(1000, World())
    assert 0.02 < (factors > 1).mean() < 0.09 and factors.min() == 1 and factors.max() <= 10


def test_files_and_curves() -> None:
    plan = Plan(10, 160, 16)
    assert files(plan, "pool", 64) == files(plan, "shards", 1) == 30 and files(plan, "shards", 64) == 320
    lines = curves(plan, FREE, {"even": CALM}, [1.0])
    assert {line["way"] for line in lines} == set(WAYS) and min(line["over"] for line in lines) >= 1
