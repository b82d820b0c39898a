"""The exact test of a loss, against brute force and against the statistic it is built on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import multinomial

from lcfbench.analysis.stats.exact_drop import BETA, _statistic, exact_drop_p
from lcfbench.analysis.stats.proportions import p_of, tango_z


def test_the_statistic_is_tangos_and_falls_with_the_losses() -> None:
    rng = np.random.default_rng(0)
    for n, gained, lost in rng.integers((50, 0, 0), (3000, 25, 25), (100, 3)):
        margin = float(rng.uniform(0.001, 0.2))
        assert _statistic(np.array([gained]), np.array([lost]), n, margin)[0] == pytest.approx(tango_z(gained, lost, n, -margin), abs=1e-9)
        losses = np.arange(n - gained + 1)
        assert (np.diff(_statistic(np.full(len(losses), gained), losses, n, margin)) < 1e-9).all()


@pytest.mark.parametrize(("gained", "lost", "n", "margin"), [(0, 3, 20, 0.05), (1, 4, 30, 0.02), (2, 9, 25, 0.1), (0, 0, 20, 0.1)])
def test_against_brute_force(gained: int, lost: int, n: int, margin: float) -> None:
    observed = tango_z(gained, lost, n, -margin)
    as_bad = [(g, x) for g, x in itertools.product(range(n + 1), repeat=2) if g + x <= n and tango_z(g, x, n, -margin) <= observed + 1e-9]
    worst = 0.0
    for share in np.linspace(margin, 1, 400):
        law = multinomial(n, ((share - margin) / 2, (share + margin) / 2, 1 - share))
        worst = max(worst, float(sum(law.pmf((g, x, n - g - x)) for g, x in as_bad)))
    assert exact_drop_p(gained, lost, n, margin) == pytest.approx(worst + BETA, rel=0.01)


def test_with_many_changed_answers_it_is_the_normal_one() -> None:
    assert exact_drop_p(200, 290, 10_000, 0.005) == pytest.approx(p_of(tango_z(200, 290, 10_000, -0.005), "less"), abs=0.001)
