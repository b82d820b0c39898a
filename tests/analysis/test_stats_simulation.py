"""The statistics keep their promises in simulated worlds; few repetitions, seeded."""

from __future__ import annotations

import pytest

from benchmarks import statistics_simulation as simulation
from lcfbench.analysis.verdict import Label


@pytest.mark.parametrize("world", simulation.BINARY, ids=str)
def test_tangos_interval_covers(world: tuple[int, float, float, float]) -> None:
    assert 0.935 <= simulation.tango_coverage(world, 3000).value <= 0.97


@pytest.mark.parametrize(
    ("world", "repetitions"),
    [((40, 0.3, 0.2), 500), ((100, 0.6, 0.0), 1000), ((6000, 0.7, 0.1), 600)],
    ids=str,
)
def test_the_bootstrap_interval_covers(
    world: tuple[int, float, float], repetitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    rate = simulation.equivalence_size(800, n, delta)
    assert 0.03 < rate.value <= 0.05 + 2 * rate.error


@pytest.mark.parametrize("world", simulation.FEW, ids=str)
def test_equivalence_is_as_careful_where_few_answers_change(world: tuple[int, float, float]) -> None:
    rate = simulation.equivalence_size_few(5000, *world)
    assert rate.value <= 0.05 + 2 * rate.error


def test_equivalence_over_a_family_is_wrong_at_most_one_time_in_twenty() -> None:
    rate = simulation.equivalence_family(1000, n=1000, noise=0.005)
    assert 0.005 < rate.value <= 0.05 + 2 * rate.error


@pytest.mark.parametrize("label", ["communicates", "misleads"])
@pytest.mark.parametrize(("n", "family", "repetitions"), [(64, 1, 2000), (500, 1, 300), (200, 20, 60)])
def test_without_effect_hardly_anything_communicates_or_misleads(
    label: Label, n: int, family: int, repetitions: int
) -> None:
    rate = simulation.labelled(label, repetitions, n, 0.1, 0.1, family)
    assert rate.value <= 0.025 + 2 * rate.error  # one side each


@pytest.mark.parametrize("seen", simulation.SEEN[:-1], ids=str)
def test_what_is_called_visible_is_seen(seen: tuple[int, int, int]) -> None:
    effect, rate = simulation.power_at_visible(2000, seen)
    assert 0.01 < effect < 0.3 and 0.78 <= rate.value <= 0.84
