"""Do the statistics keep their promises? The same worlds as benchmarks/statistics_simulation.py, fewer repetitions, seeded."""

from __future__ import annotations

import pytest

from benchmarks import statistics_simulation as simulation


@pytest.mark.parametrize("world", simulation.BINARY, ids=str)
def test_tangos_interval_covers(world: tuple[int, float, float, float]) -> None:
    assert 0.935 <= simulation.tango_coverage(world, 3000).value <= 0.97


@pytest.mark.parametrize(("world", "repetitions"), [((40, 0.3, 0.2), 1000), ((100, 0.6, 0.0), 1500), ((6000, 0.7, 0.1), 1500)], ids=str)
def test_the_bootstrap_interval_covers(world: tuple[int, float, float], repetitions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcfbench.analysis.stats.bootstrap.RESAMPLES", 2000)
    assert 0.925 <= simulation.bca_coverage(world, repetitions).value <= 0.97


def test_few_scores_that_differ_raise_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcfbench.analysis.stats.bootstrap.RESAMPLES", 500)
    assert simulation.rare_alarms(400).value <= 0.05


@pytest.mark.parametrize(("family", "real"), [(6, 0), (6, 2)])
def test_holm_keeps_the_family_wise_error(family: int, real: int) -> None:
    rate = simulation.family_wise(3000, family, real)
    assert 0.01 < rate.value <= 0.05 + 2 * rate.error


@pytest.mark.parametrize(("n", "delta"), [(500, 0.1), (2000, 0.05)])
def test_equivalence_at_the_limit_is_found_at_most_one_time_in_twenty(n: int, delta: float) -> None:
    rate = simulation.equivalence_size(3000, n, delta)
    assert 0.03 < rate.value <= 0.05 + 2 * rate.error


@pytest.mark.parametrize(("n", "family", "repetitions"), [(64, 1, 2000), (500, 1, 2000), (200, 6, 300)])
def test_without_effect_hardly_anything_communicates(n: int, family: int, repetitions: int) -> None:
    assert simulation.communicates(repetitions, 0.0, n, family).value <= 0.05


@pytest.mark.parametrize("n", [100, 300, 1000])
def test_what_is_called_visible_is_seen(n: int) -> None:
    content, rate = simulation.power_at_detectable(2000, n)
    assert 0.03 < content < 0.2 and rate.value == pytest.approx(0.8, abs=0.04)
