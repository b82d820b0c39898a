"""The exact p-value of "no more than this was lost", for answers that are right or wrong.

    from lcfbench.analysis.stats.exact_drop import exact_drop_p
    exact_drop_p(gained=0, lost=7, n=200, margin=0.01)

Tango's score statistic is only nearly normal: with a dozen answers changed it rejects a loss of exactly the margin in up to 9 of 100 checks
that promise 5. So the statistic only orders the outcomes here, and the p-value is the largest probability, over all shares of changed
answers that the data leave possible, of an outcome at least as bad (Suissa and Shuster 1991; Hsueh, Liu and Chen 2001; the confidence set
for the share: Berger and Boos 1994, whose error is added).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ENOUGH = 500  # changed answers from which the normal approximation holds its promise
BETA = 1e-6  # error of the confidence set for the share of changed answers
GRID = 80


@cache
def exact_drop_p(gained: int, lost: int, n: int, margin: float) -> float:
    """Against H0 "(lost − gained)/n is at most `margin`", 0 < margin < 1, in expectation; small means: more was lost."""
    import numpy as np
    from scipy.special import bdtrc
    from scipy.stats import beta, binom

    changed = gained + lost
    low = beta.ppf(BETA / 2, changed, n - changed + 1) if changed else 0.0
    high = beta.ppf(1 - BETA / 2, changed + 1, n - changed) if changed < n else 1.0
    shares = np.linspace(max(margin, low), max(margin, high), GRID)
    gains = np.arange(int(binom.ppf(1 - 1e-12, n, (shares[-1] - margin) / 2)) + 1)  # those that are not improbable
    observed = float(_statistic(np.array([gained]), np.array([lost]), n, margin)[0])
    # of each number of gains, the fewest losses at least as bad as what was seen: the statistic falls with the losses
    below, fewest = np.full(len(gains), -1), n - gains + 1
    while (fewest - below > 1).any():
        middle = (below + fewest) // 2
        bad = _statistic(gains, middle, n, margin) <= observed + 1e-9
        below, fewest = np.where(bad, below, np.maximum(middle, below)), np.where(bad, np.minimum(middle, fewest), fewest)
    worst = 0.0
    for share in shares:
        loses, gains_share = (share + margin) / 2, (share - margin) / 2
        tails = np.where(fewest > 0, bdtrc(np.maximum(fewest - 1, 0), n - gains, min(1.0, loses / (1 - gains_share))), 1.0)
        tails[fewest > n - gains] = 0.0
        worst = max(worst, float((binom.pmf(gains, n, gains_share) * tails).sum()))
    return min(1.0, worst + BETA)


def _statistic(gained: np.ndarray, lost: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Tango's z of the difference (gained − lost)/n against −margin, elementwise."""
    import numpy as np

    slope = -(2 * n - gained + lost) * margin - gained - lost
    q = (np.sqrt(slope * slope + 8.0 * n * lost * -margin * (1 + margin)) - slope) / (4 * n)
    return (gained - lost + n * margin) / np.sqrt(n * (2 * q - margin * (1 + margin)))
