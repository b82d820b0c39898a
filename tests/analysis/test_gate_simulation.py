"""How often the gate is wrong, by simulation: seeded, on the decision functions themselves.

benchmarks/gate_simulation.py does more of it.
"""

from __future__ import annotations

from typing import Literal

import pytest

from benchmarks.gate_simulation import FEW_CHANGED, Rates, simulate, simulate_times, size
from lcfbench.analysis.gate import score_shift


@pytest.mark.parametrize(
    ("n", "discordance"), [(100, 0.05), (200, 0.012), (200, 0.02), (200, 0.05), (500, 0.012), (500, 0.02)]
)
def test_a_loss_at_the_limit_fails_at_most_once_in_twenty_exactly(n: int, discordance: float) -> None:
    for cells in (1, 6):  # Tango's statistic taken for normal: up to 9 %
        assert size(n, discordance, drop=0.01, cells=cells) <= 0.05
        assert size(n, discordance, drop=0.0, cells=cells) <= 0.013


@pytest.mark.parametrize(("n", "limit", "discordance"), FEW_CHANGED)
def test_a_loss_at_the_limit_passes_at_most_once_in_twenty_exactly_however_few_answers_change(
    n, limit, discordance
) -> None:
    assert (
        size(n, discordance, drop=limit, max_drop=limit, end="passes") <= 0.05
    )  # Tango's bound: 6.8 % at 268
    assert size(n, discordance, drop=limit, max_drop=limit) <= 0.05


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.10])
@pytest.mark.parametrize(
    ("n", "cells", "repetitions"), [(200, 1, 800), (200, 6, 600), (1000, 6, 200), (5000, 1, 60)]
)
def test_noise_alone_fails_hardly_ever_and_a_loss_at_the_limit_at_most_once_in_twenty(
    n, cells, repetitions, discordance
) -> None:
    slack = 4 * (0.05 * 0.95 / repetitions) ** 0.5  # standard errors; the exact rates are below
    nothing = simulate(n, discordance, drop=0.0, cells=cells, repetitions=repetitions)
    assert nothing.failed <= 0.02
    limit = simulate(n, discordance, drop=0.01, cells=cells, repetitions=repetitions)
    assert limit.failed <= 0.05 + slack
    assert limit.passed <= (0.05 if cells == 1 else 0.01) + slack


def test_what_it_finds() -> None:
    assert simulate(5000, 0.05, drop=0.02, repetitions=60).failed > 0.85
    assert simulate(2000, 0.10, drop=0.05, repetitions=40).failed > 0.95
    assert simulate(200, 0.05, drop=0.02, repetitions=400).failed < 0.5  # too few documents, and it says so
    assert simulate(5000, 0.05, drop=0.0, repetitions=60).passed > 0.8  # 93 % of many more
    assert simulate(200, 0.05, drop=0.0, repetitions=400).passed < 0.5


@pytest.mark.parametrize(
    ("lost", "gained", "n", "limit"),
    [(1, 0, 300, 0.01), (2, 2, 300, 0.01), (3, 3, 140, 0.02), (5, 0, 140, 0.02)],
)
def test_so_many_documents_would_decide(lost: int, gained: int, n: int, limit: float) -> None:
    """Exact power of the number that is printed, and of two thirds of it."""
    enough = score_shift(
        [0.0] * lost + [1.0] * (n - lost), [1.0] * lost + [0.0] * gained + [1.0] * (n - lost - gained), limit
    ).enough()
    truth = {"discordance": (lost + gained) / n, "drop": (lost - gained) / n, "max_drop": limit}
    end: Literal["fails", "passes"] = "passes" if truth["drop"] < limit else "fails"
    assert (
        enough is not None
        and size(enough, **truth, end=end) > 0.75 > size(2 * enough // 3, **truth, end=end) - 0.03
    )


def test_graded_scores() -> None:
    for n, repetitions, slack in (
        (150, 60, 0.085),
        (6000, 400, 0.033),
    ):  # resampled, closed form; three standard errors at 5 %
        at_limit = simulate(n, 0.3, drop=0.01, repetitions=repetitions, graded=True)
        assert at_limit.failed <= 0.05 + slack and at_limit.passed <= 0.05 + slack
    assert simulate(6000, 0.3, drop=0.02, repetitions=100, graded=True).failed > 0.9


def test_times() -> None:
    """The machine varies by 5 % from run to run, a document by 3 %."""
    for runs in (3, 8):
        at_limit: Rates = simulate_times(runs, slowdown=0.10, repetitions=2500)
        assert 0.033 < at_limit.failed < 0.067 and 0.033 < at_limit.passed < 0.067  # four standard errors
        assert simulate_times(runs, slowdown=0.0, repetitions=1000).failed <= 0.005
    assert simulate_times(8, slowdown=0.20, repetitions=500).failed > 0.65
    assert simulate_times(12, slowdown=0.20, repetitions=500).failed > 0.85
    assert simulate_times(3, slowdown=0.50, repetitions=500).failed > 0.9
    for runs in (1, 2):
        assert (
            simulate_times(runs, slowdown=0.5, repetitions=50)
            == simulate_times(runs, slowdown=0.0, repetitions=50)
            == Rates(0.0, 0.0)
        )


def test_another_session_is_taken_for_slower_code() -> None:
    """A speed baseline belongs in the same job: runs of one session share its speed."""
    assert simulate_times(8, slowdown=0.10, session=0.05, repetitions=1000).failed > 0.15
