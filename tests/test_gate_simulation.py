"""How often the gate is wrong, by simulation: seeded, on the decision functions themselves. benchmarks/gate_simulation.py does more of it."""

from __future__ import annotations

import pytest

from benchmarks.gate_simulation import Rates, simulate, simulate_times, size

REPETITIONS = 800
SLACK = 0.02  # of 800 at 5 %, three standard errors are .023; the test's own rate is below the nominal one


@pytest.mark.parametrize(("n", "discordance"), [(100, 0.05), (200, 0.012), (200, 0.02), (200, 0.05), (500, 0.012), (500, 0.02)])
def test_a_loss_at_the_limit_fails_at_most_once_in_twenty_exactly(n: int, discordance: float) -> None:
    for cells in (1, 6):  # Tango's statistic taken for normal: up to 9 %
        assert size(n, discordance, drop=0.01, cells=cells) <= 0.05
        assert size(n, discordance, drop=0.0, cells=cells) <= 0.013


@pytest.mark.parametrize("cells", [1, 6])
@pytest.mark.parametrize("n", [200, 1000, 5000])
@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.10])
def test_noise_alone_fails_hardly_ever_and_a_loss_at_the_limit_at_most_once_in_twenty(n: int, discordance: float, cells: int) -> None:
    nothing = simulate(n, discordance, drop=0.0, cells=cells, repetitions=REPETITIONS)
    assert nothing.failed <= 0.02
    limit = simulate(n, discordance, drop=0.01, cells=cells, repetitions=REPETITIONS)
    assert limit.failed <= 0.05 + SLACK
    assert limit.passed <= (0.05 if cells == 1 else 0.01) + SLACK


def test_what_it_finds() -> None:
    assert simulate(5000, 0.05, drop=0.02, repetitions=200).failed > 0.85
    assert simulate(2000, 0.10, drop=0.05, repetitions=100).failed > 0.95
    assert simulate(200, 0.05, drop=0.02, repetitions=400).failed < 0.5  # too few documents, and it says so
    assert simulate(5000, 0.05, drop=0.0, repetitions=REPETITIONS).passed > 0.9
    assert simulate(200, 0.05, drop=0.0, repetitions=REPETITIONS).passed < 0.5


def test_graded_scores() -> None:
    for n, repetitions, slack in ((150, 60, 0.085), (6000, 400, 0.033)):  # resampled, closed form; three standard errors at 5 %
        at_limit = simulate(n, 0.3, drop=0.01, repetitions=repetitions, graded=True)
        assert at_limit.failed <= 0.05 + slack and at_limit.passed <= 0.05 + slack
    assert simulate(6000, 0.3, drop=0.02, repetitions=100, graded=True).failed > 0.9


def test_times() -> None:
    at_limit: Rates = simulate_times(5, 0.03, slowdown=0.10, limit=0.10, repetitions=2000)
    assert 0.03 < at_limit.failed < 0.07 and 0.03 < at_limit.passed < 0.07
    assert simulate_times(5, 0.03, slowdown=0.0, limit=0.10, repetitions=500).passed > 0.95
    assert simulate_times(5, 0.03, slowdown=0.25, limit=0.10, repetitions=500).failed > 0.95
