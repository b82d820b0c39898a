"""Power: the smallest visible effect, and the documents that would settle a question.

    from lcfbench.analysis.stats import paired
    from lcfbench.analysis.stats.power import smallest_visible
    smallest_visible(paired([1] * 5 + [0] * 59, [0] * 5 + [1] * 2 + [0] * 57))

The effect is asked for beside the noise that was seen: it comes on top of it and brings its own
scatter. Answers that are right or wrong are tested by McNemar's exact test, so its exact power
decides; for 100 answers none of which changed, six must change for p < 0.05 at all.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from lcfbench.analysis.stats.proportions import NORMAL

if TYPE_CHECKING:
    import numpy as np

    from lcfbench.analysis.stats import Counts, Paired

NEVER = 10**18  # documents: no number of them would decide
MANY = 2_000  # changed answers from which the normal approximation will do


def smallest_visible(pair: Counts | Paired, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest difference that as many documents, as noisy as these, would show.

    NaN where none would, be it as large as scores can differ. 0/1 data: of the share of answers
    that changed one half is lost as before, the other half plus the effect is gained (where that is
    more than there are, fewer are lost). Other scores: variance spread² + e − e², as if the effect
    came as whole points; where few differ, no less than counting them needs.
    """
    if not pair.n:
        return math.nan
    counted = _counted(pair.gained + pair.lost, pair.n, alpha, power) if pair.binary or pair.few else 0.0
    if pair.binary or math.isnan(counted):
        return counted
    return max(counted, _normal(pair.spread**2, pair.n, alpha, power))


def needed(spread: float, distance: float, alpha: float = 0.05, power: float = 0.8, sides: int = 2) -> int:
    """Returns the documents that tell a difference from a margin `distance` away; else NEVER."""
    width = (NORMAL.inv_cdf(1 - alpha / sides) + NORMAL.inv_cdf(power)) * spread
    return min(NEVER, max(2, math.ceil((width / distance) ** 2))) if abs(distance) > 1e-9 else NEVER


def mcnemar_power(effect: float, noise: float, n: int, alpha: float = 0.05) -> float:
    """Returns how often McNemar's test finds a gain `effect` where a share `noise` changes too."""
    lost = min(noise, 1 - effect) / 2
    return _power(lost + effect, lost, n, alpha)


@cache
def _counted(changed: int, n: int, alpha: float, power: float) -> float:
    near = _normal(changed / n, n, alpha, power)
    if changed > MANY:
        return near
    if mcnemar_power(1.0, changed / n, n, alpha) < power:
        return math.nan
    low, high = 0.0, min(1.0, 4 * near)
    high = high if mcnemar_power(high, changed / n, n, alpha) >= power else 1.0
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if mcnemar_power(middle, changed / n, n, alpha) >= power else (middle, high)
    return high


def _normal(variance: float, n: int, alpha: float, power: float) -> float:
    """Where e² n = z² (variance + e − e²), a variance that cannot exceed 1 − e²."""
    z2 = (NORMAL.inv_cdf(1 - alpha / 2) + NORMAL.inv_cdf(power)) ** 2
    effect = (z2 + math.sqrt(z2 * z2 + 4 * (n + z2) * z2 * variance)) / (2 * (n + z2))
    return effect if variance + effect <= 1 else math.sqrt(z2 / (n + z2))


def _power(gained: float, lost: float, n: int, alpha: float) -> float:
    import numpy as np
    from scipy.special import bdtrc
    from scipy.stats import binom

    share = min(1.0, gained + lost)
    reach = 8 * math.sqrt(n * share * (1 - share)) + 12
    changed = np.arange(max(0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach)) + 1)
    most = np.minimum(_not_enough(changed, alpha), changed)
    return float((binom.pmf(changed, n, share) * bdtrc(most, changed, gained / share)).sum())


def _not_enough(changed: np.ndarray, alpha: float) -> np.ndarray:
    """Returns, for each number of changed answers, the most gains that are not significant."""
    from scipy.stats import binom

    return binom.isf(alpha / 2, changed, 0.5)
