"""Exact p-values for 0/1 scores, where a normal approximation would promise too much.

    from lcfbench.analysis.stats.exact import exact_p
    exact_p(gained=0, lost=7, n=200, margin=-0.01, side="less")     # lost more than 1 point?
    exact_p(gained=0, lost=0, n=149, margin=-0.02, side="greater")  # lost less than 2? 0.98¹⁴⁹

Tango's score statistic is only nearly normal: with a dozen answers changed it rejects a true
difference in up to 9 of 100 checks that promise 5. So the statistic only orders the outcomes here,
and the p-value is the largest probability, over all shares of changed answers that the data leave
possible, of an outcome at least as far out (Suissa and Shuster 1991; Hsueh, Liu and Chen 2001; the
confidence set for the share: Berger and Boos 1994, whose error is added).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lcfbench.analysis.stats.proportions import Side, p_of, sign_test, tango_z

if TYPE_CHECKING:
    import numpy as np

ENOUGH = 500  # changed answers from which the normal approximation holds its promise
CLOSE = 0.2  # a p-value above needs no exact digits: nothing is decided there
BETA = 1e-6  # error of the confidence set for the share of changed answers
GRID = 80
IMPROBABLE = 1e-13


def count_p(gained: int, lost: int, n: int, margin: float, side: Side) -> float:
    """The p-value of (gained − lost)/n against `margin`, as `Paired.p`.

    Margin 0: the binomial's, exact. Else Tango's, raised to the exact one where up to 500 answers
    changed and it is below 0.2.
    """
    if margin == 0:
        return sign_test(gained, lost, side)
    if side == "two-sided":
        return min(
            1.0,
            2 * min(count_p(gained, lost, n, margin, "greater"), count_p(gained, lost, n, margin, "less")),
        )
    p = p_of(tango_z(gained, lost, n, margin), side)
    exact = p < CLOSE and gained + lost <= ENOUGH and abs(margin) < 1
    return max(p, exact_p(gained, lost, n, margin, side)) if exact else p


@cache
def exact_p(gained: int, lost: int, n: int, margin: float, side: Side) -> float:
    """Returns p against "E (gained − lost)/n is at least `margin`" (less) or at most (greater)."""
    assert side != "two-sided" and -1 < margin < 1, (
        f"one side and a margin within (−1, 1), not {side} and {margin}"
    )
    if side == "greater":
        return exact_p(lost, gained, n, -margin, "less")
    import numpy as np
    from scipy.special import bdtrc, betaincinv, gammaln, xlog1py, xlogy
    from scipy.stats import binom

    changed = gained + lost
    low = betaincinv(changed, n - changed + 1, BETA / 2) if changed else 0.0
    high = betaincinv(changed + 1, n - changed, 1 - BETA / 2) if changed < n else 1.0
    if margin > high:  # so many would have changed that all gained or not, it would have been seen
        return BETA
    # at a given share the edge of H0 is its worst case: gains raise the statistic, losses lower it
    shares = np.linspace(max(abs(margin), low), max(abs(margin), high), GRID)[:, None]
    gain, loss = (shares + margin) / 2, (shares - margin) / 2
    first, last = binom.ppf(IMPROBABLE, n, gain[0, 0]), binom.isf(IMPROBABLE, n, gain[-1, 0])
    gains = np.arange(max(0, int(first)), int(last) + 1)
    fewest = _fewest(gains, float(_statistic(np.array([gained]), np.array([lost]), n, margin)[0]), n, margin)
    possible = fewest <= n - gains
    gains, fewest = gains[possible], fewest[possible]
    chance = np.exp(
        gammaln(n + 1)
        - gammaln(gains + 1)
        - gammaln(n - gains + 1)
        + xlogy(gains, gain)
        + xlog1py(n - gains, -gain)
    )
    row, column = np.nonzero(chance > IMPROBABLE)
    tails = bdtrc(fewest[column] - 1, n - gains[column], np.minimum(1.0, loss[row, 0] / (1 - gain[row, 0])))
    tails[fewest[column] == 0] = 1.0
    return min(1.0, float(np.bincount(row, chance[row, column] * tails, minlength=1).max()) + BETA)


def _fewest(gains: np.ndarray, observed: float, n: int, margin: float) -> np.ndarray:
    """Returns the fewest losses as extreme as observed for each number of gains, n − gains + 1 for none."""
    import numpy as np

    below, fewest = np.full(len(gains), -1), n - gains + 1
    while (fewest - below > 1).any():
        middle = np.maximum(0, (below + fewest) // 2)
        out = _statistic(gains, middle, n, margin) <= observed + 1e-9
        below, fewest = (
            np.where(out, below, np.maximum(middle, below)),
            np.where(out, np.minimum(middle, fewest), fewest),
        )
    return fewest


def _statistic(gained: np.ndarray, lost: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Tango's z of the difference (gained − lost)/n against `margin`, elementwise; margin ≠ 0."""
    import numpy as np

    slope = (2 * n - gained + lost) * margin - gained - lost
    q = (np.sqrt(np.maximum(0.0, slope * slope + 8.0 * n * lost * margin * (1 - margin))) - slope) / (4 * n)
    return (gained - lost - n * margin) / np.sqrt(n * (2 * q + margin * (1 - margin)))
