"""The exact test of a margin, against brute force, its own statistic and arithmetic by hand."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from lcfbench.analysis.stats import equivalence_p, paired
from lcfbench.analysis.stats.exact import BETA, ENOUGH, _statistic, count_p, exact_p
from lcfbench.analysis.stats.proportions import mcnemar, p_of, tango_z


def changed(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.zeros(n), np.zeros(n)
    first[:gained], second[gained : gained + lost] = 1, 1
    return first, second


def test_the_statistic_is_tangos_falls_with_the_losses_and_rises_with_the_gains() -> None:
    """The last two make the edge of H0 its worst case."""
    rng = np.random.default_rng(0)
    for n, gained, lost in rng.integers((50, 0, 0), (600, 25, 25), (200, 3)):
        margin = float(rng.uniform(-0.9, 0.9) * rng.choice([1, 0.1, 0.01]))
        assert _statistic(np.array([gained]), np.array([lost]), n, margin)[0] == pytest.approx(
            tango_z(gained, lost, n, margin), abs=1e-9
        )
        more = np.arange(n - gained + 1)
        assert (np.diff(_statistic(np.full(len(more), gained), more, n, margin)) < 1e-9).all()
        assert (np.diff(_statistic(more, np.full(len(more), gained), n, margin)) > -1e-9).all()


@pytest.mark.parametrize("margin", [-0.1, -0.05, -0.02, 0.02, 0.05, 0.1])
@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 3, 20), (1, 4, 30), (2, 9, 25), (0, 0, 20), (1, 1, 28)]
)
def test_against_brute_force(gained: int, lost: int, n: int, margin: float) -> None:
    """Sums all outcomes as extreme as the seen one, over the edge of H0."""
    observed = tango_z(gained, lost, n, margin)
    as_far = [
        (g, x)
        for g, x in itertools.product(range(n + 1), repeat=2)
        if g + x <= n and tango_z(g, x, n, margin) <= observed + 1e-9
    ]
    outcomes = np.array([(g, x, n - g - x) for g, x in as_far])
    worst, possible = 0.0, binomtest(gained + lost, n).proportion_ci(1 - BETA)  # Clopper and Pearson's
    for share in np.linspace(max(abs(margin), possible.low), max(abs(margin), possible.high), 100):
        worst = max(
            worst,
            float(
                multinomial(n, ((share + margin) / 2, (share - margin) / 2, 1 - share)).pmf(outcomes).sum()
            ),
        )
    got = exact_p(gained, lost, n, margin, "less")
    assert got == pytest.approx(worst + BETA, rel=0.01)
    assert got == exact_p(lost, gained, n, -margin, "greater")


def test_with_many_changed_answers_it_is_the_normal_one() -> None:
    assert exact_p(200, 290, 10_000, -0.005, "less") == pytest.approx(
        p_of(tango_z(200, 290, 10_000, -0.005), "less"), abs=0.001
    )


@pytest.mark.parametrize(("margin", "enough"), [(0.02, 149), (0.01, 299)])
@pytest.mark.parametrize("others", [0.0, 0.7])
def test_so_many_identical_answers_show_that_less_is_lost(margin: float, enough: int, others: float) -> None:
    """0.98¹⁴⁹ and 0.99²⁹⁹ are the first below 0.05.

    Scores that are not 0 or 1 prove no more than answers do.
    """
    for n, shown in ((enough - 1, False), (enough, True)):
        same = np.full(n, others)
        pair = paired(same, same)
        assert (
            pair.p(-margin, "greater")
            == pair.p(margin, "less")
            == pytest.approx((1 - margin) ** n, abs=2 * BETA)
        )
        assert (pair.p(-margin, "greater") < 0.05) == (equivalence_p(pair, margin) < 0.05) == shown
        assert pair.p(margin, "greater") > 0.9 and pair.p(margin) == pytest.approx(
            2 * (1 - margin) ** n, abs=4 * BETA
        )
        assert pair.p() == 1


def test_one_score_that_differs_a_little_shows_no_more_than_none() -> None:
    for off in (1e-3, 0.05, -0.05, 1.0):
        a = np.full(148, 0.5 if abs(off) < 1 else 1.0)
        b = a.copy()
        b[0] -= off
        assert equivalence_p(paired(a, b), 0.02) > 0.05, off
    better = np.r_[np.full(12, 0.9), np.full(88, 0.5)]
    assert (
        paired(better, np.full(100, 0.5)).p(-0.01, "greater")
        <= paired(better, np.full(100, 0.5)).p(0, "greater")
        == mcnemar(12, 0) / 2
    )


def test_the_exact_value_only_raises_p_and_only_where_it_matters() -> None:
    assert (
        count_p(0, 7, 200, -0.01, "less")
        == exact_p(0, 7, 200, -0.01, "less")
        > p_of(tango_z(0, 7, 200, -0.01), "less")
    )
    for gained, lost in ((0, 2), (3, 3), (30, 10), (0, 0)):
        for margin, side in itertools.product((-0.05, -0.01, 0.01, 0.05), ("greater", "less")):
            normal = p_of(tango_z(gained, lost, 200, margin), side)
            assert count_p(gained, lost, 200, margin, side) >= normal
            assert normal < 0.2 or count_p(gained, lost, 200, margin, side) == normal
    many = ENOUGH // 2 + 1
    assert count_p(many, many, 2000, 0.02, "less") == p_of(tango_z(many, many, 2000, 0.02), "less")
    assert (
        count_p(3, 1, 200, 1.0, "less") == 0 and count_p(3, 1, 200, -1.0, "less") == 1
    )  # no such loss exists


@pytest.mark.parametrize("n", [134, 149, 200, 268, 300, 500])
@pytest.mark.parametrize("margin", [0.01, 0.02])
@pytest.mark.parametrize("noise", [0.0, 0.005, 0.03])
def test_at_the_limit_it_is_passed_at_most_one_time_in_twenty(n: int, margin: float, noise: float) -> None:
    """The size over all outcomes: the margin is lost, and `noise` is lost and gained besides."""
    shares = (noise, margin + noise, 1 - margin - 2 * noise)
    likely = [
        (g, x)
        for g, x in itertools.product(range(40), range(60))
        if multinomial.pmf((g, x, n - g - x), n, shares) > 1e-5
    ]
    size = sum(
        multinomial.pmf((g, x, n - g - x), n, shares)
        for g, x in likely
        if count_p(g, x, n, -margin, "greater") < 0.05
    )
    assert size <= 0.05


def test_it_costs_milliseconds() -> None:
    exact_p(1, 1, 1000, 0.01, "less")  # imports
    for case in (
        (250, 250, 1000, 0.05),
        (0, 0, 1_000_000, 0.02),
        (250, 250, 1_000_000, 0.00005),
        (200, 290, 10_000, -0.005),
    ):
        began = time.perf_counter()
        exact_p(*case, "less")
        assert time.perf_counter() - began < 0.2
