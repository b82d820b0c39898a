"""Exact and score methods for one proportion, and for two on the same documents. Pure arithmetic.

    from lcfbench.analysis.stats.proportions import tango
    tango(7, 1, 21)

Sources: Wilson 1927; Tango 1998 (Stat Med 17:891, recommended for paired proportions by Fagerland,
Lydersen and Laake 2014); McNemar 1947, exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["two-sided", "greater", "less"]
NORMAL = NormalDist()


def wilson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of `k` right among `n`; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z, p = two_sided_z(confidence), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if k == 0 else max(0.0, low)), (1.0 if k == n else min(1.0, high))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test from the two counts of discordant pairs."""
    return sign_test(b, c, "two-sided")


def sign_test(gained: int, lost: int, side: Side) -> float:
    """Returns the binomial tail (p = ½) of the gains, of the losses, or twice the smaller."""
    from scipy.special import (
        bdtr,  # a third of the time that importing scipy.stats takes; tests hold it against binomtest
    )

    n = gained + lost
    tails = {"greater": (lost,), "less": (gained,), "two-sided": (gained, lost)}[side]
    p = min(float(bdtr(k, n, 0.5)) for k in tails) if n else 1.0
    return min(1.0, p * (2 if side == "two-sided" else 1))


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of (b − c)/n, where b and c count the discordant pairs among n.

    Unlike Wald's it has a width when no pair is discordant: ± z²/(n + z²).
    """
    z = two_sided_z(confidence)
    return root(lambda m: tango_z(b, c, n, m) - z, -1.0, 1.0), root(
        lambda m: tango_z(b, c, n, m) + z, -1.0, 1.0
    )


def tango_z(b: int, c: int, n: int, margin: float) -> float:
    """The score statistic of H0 (b − c)/n = margin; falls as the margin grows."""
    gap = b - c - n * margin
    slope = (2 * n - b + c) * margin - b - c
    q = (math.sqrt(max(0.0, slope * slope + 8 * n * c * margin * (1 - margin))) - slope) / (4 * n)
    variance = n * (2 * q + margin * (1 - margin))
    if abs(margin) < 1 and variance > 1e-15:
        return gap / math.sqrt(variance)
    return math.copysign(math.inf, gap) if abs(gap) > 1e-12 else 0.0


def unanimous(value: float, n: int, confidence: float) -> tuple[float, float]:
    """Returns, for n equal values, the interval that n unanimous 0/1 pairs would have."""
    half = two_sided_z(confidence) ** 2 / (n + two_sided_z(confidence) ** 2)
    return value - half, value + half


def root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 between low and high; the nearer end where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def tail(z: float) -> float:
    """Probability of a standard normal above z."""
    return math.erfc(z / math.sqrt(2)) / 2


def p_of(z: float, side: Side) -> float:
    """The p-value of a standard normal statistic."""
    return {"greater": tail(z), "less": tail(-z), "two-sided": 2 * tail(abs(z))}[side]


def two_sided_z(confidence: float) -> float:
    return NORMAL.inv_cdf(0.5 + confidence / 2)
