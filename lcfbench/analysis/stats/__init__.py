"""Intervals and verdicts: how sure a number is, and whether anything was communicated.

    from lcfbench.analysis.stats import verdict
    verdict([1, 1, 0, 1] * 50, [1, 0, 0, 0] * 50).text

Pairs are documents. Scores lie between 0 and 1; those that are only 0 or 1 get exact or score methods, others a seeded bootstrap.
Sources: Wilson 1927; Tango 1998 (Stat Med 17:891, recommended for paired proportions by Fagerland, Lydersen and Laake 2014);
McNemar 1947, exact; BCa: Efron 1987; two one-sided tests: Schuirmann 1987.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Scores: TypeAlias = "Sequence[float] | np.ndarray"
DELTA = 0.02  # differences smaller than this count as none (protocol.md)
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and its confidence interval over `n` documents; NaN where there are none."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """Mean of a − b over `n` pairs with its interval; `p` is McNemar's exact two-sided p (0/1 data only, else NaN)."""

    value: float
    low: float
    high: float
    n: int
    p: float


class Verdict(NamedTuple):
    """Whether the matched message did more than another document's.

    content: matched − deranged. detectable: the smallest content this n could have shown (power 0.8, two-sided 5 %).
    """

    label: Literal["communicates", "does not communicate", "undecided", "untested"]
    text: str
    content: Difference
    matched: float
    deranged: float
    detectable: float


def wilson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of `k` right among `n`; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z, p = _z(confidence), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if k == 0 else max(0.0, low)), (1.0 if k == n else min(1.0, high))


def mean_interval(values: Scores, confidence: float = 0.95) -> Interval:
    """Mean score with its interval: Wilson for 0/1 data, else BCa (10,000 resamples, seeded)."""
    x = _array(values)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    low, high = wilson(float(x.sum()), len(x), confidence) if _binary(x) else _bca(x, confidence)
    return Interval(mean, max(0.0, low), min(1.0, high), len(x))


def paired_difference(a: Scores, b: Scores, confidence: float = 0.95) -> Difference:
    """Mean of a − b, document by document: Tango's score interval for 0/1 data, else BCa over the pairs' differences."""
    x, y = _array(a), _array(b)
    assert len(x) == len(y), f"pairs need equal lengths, got {len(x)} and {len(y)}"
    if not len(x):
        return Difference(math.nan, math.nan, math.nan, 0, math.nan)
    d = x - y
    if not (_binary(x) and _binary(y)):
        return Difference(float(d.mean()), *_bca(d, confidence), len(d), math.nan)
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    return Difference(float(d.mean()), *tango(gained, lost, len(d), confidence), len(d), mcnemar(gained, lost))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test from the two counts of discordant pairs."""
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of (b − c)/n, where b and c count the discordant pairs among n.

    Unlike Wald's it has a width when no pair is discordant: ± z²/(n + z²).
    """
    z = _z(confidence)

    def statistic(delta: float) -> float:  # falls as delta grows
        slope = (2 * n - b + c) * delta - b - c
        q = (math.sqrt(max(0.0, slope * slope + 8 * n * c * delta * (1 - delta))) - slope) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        gap = b - c - n * delta
        return gap / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, gap) if abs(gap) > 1e-12 else 0.0

    return _root(lambda delta: statistic(delta) - z), _root(lambda delta: statistic(delta) + z)


def verdict(matched: Scores, deranged: Scores, delta: float = DELTA) -> Verdict:
    """Whether a method communicates, from the scores of the same documents with their own and with another document's message.

    "communicates": the 95 % interval of content P = matched − deranged lies above 0. "does not communicate": P is equivalent to
    none within `delta` (two one-sided tests at 5 %: the 90 % interval lies within ± delta), or lies below 0. Else "undecided".
    """
    x, y = _array(matched), _array(deranged)
    content, n = paired_difference(x, y), len(x)
    if n == 0:
        return Verdict("untested", "no document was run with another document's message", content, math.nan, math.nan, math.nan)
    ninety = paired_difference(x, y, confidence=0.90)
    spread = max(float((x - y).std()), math.sqrt(1 / n))
    detectable = (_z(0.95) + NormalDist().inv_cdf(0.8)) * spread / math.sqrt(n)
    own, other = f"{100 * x.mean():.1f}", f"{100 * y.mean():.1f}"
    facts = f"matched {own}, deranged {other} (difference {100 * content.value:+.1f}, "
    facts += f"95 % {100 * content.low:+.1f} to {100 * content.high:+.1f}, n={n})"
    label: Literal["communicates", "does not communicate", "undecided", "untested"]
    if content.low > 0:
        label, text = "communicates", f"communicates: {facts}"
    elif content.high < 0:
        label, text = "does not communicate", f"nothing is communicated, its own message does harm: {facts}"
    elif -delta < ninety.low and ninety.high < delta:
        label, text = "does not communicate", f"nothing is communicated (within {100 * delta:g} points): {facts}"
    else:
        shown = f"{n} documents could have shown {100 * detectable:.0f} points or more"
        label, text = "undecided", f"no communication shown, undecided at n={n}: {facts}; {shown}"
    return Verdict(label, text, content, float(x.mean()), float(y.mean()), detectable)


def _bca(x: np.ndarray, confidence: float) -> tuple[float, float]:
    """BCa interval of the mean. All values equal: no spread to resample, so the width that n unanimous 0/1 pairs would have."""
    import numpy as np
    from scipy.stats import bootstrap

    if float(np.ptp(x)) < 1e-12:
        half = tango(0, 0, len(x), confidence)[1]
        return float(x[0]) - half, float(x[0]) + half
    batch = max(1, 4_000_000 // len(x))
    options = {"confidence_level": confidence, "n_resamples": RESAMPLES, "batch": batch, "rng": np.random.default_rng(0)}
    found = bootstrap((x,), np.mean, method="BCa", vectorized=True, **options).confidence_interval
    return float(found.low), float(found.high)


def _root(function: Callable[[float], float]) -> float:
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def _array(values: Scores) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=float)


def _binary(x: np.ndarray) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
