"""Intervals and tests for scores, differences of scores, and numbers of documents.

    from lcfbench.analysis.stats import paired
    pair = paired([1, 1, 0, 1] * 50, [1, 0, 0, 0] * 50)
    pair.value, pair.interval(), pair.p()

Pairs are documents. Scores lie between 0 and 1; those that are only 0 or 1 get exact or score
methods, others a seeded bootstrap. Sources: Wilson 1927; Tango 1998 (Stat Med 17:891, recommended
for paired proportions by Fagerland, Lydersen and Laake 2014); McNemar 1947, exact; few changed
answers: Suissa and Shuster 1991, exact; BCa: Efron 1987; two one-sided tests: Schuirmann 1987; Holm
1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lcfbench.analysis.stats.bootstrap import FLOOR, TIE, BCa, bca
from lcfbench.analysis.stats.exact import count_p
from lcfbench.analysis.stats.proportions import Side, tango, unanimous, wilson

if TYPE_CHECKING:
    import numpy as np

Scores: TypeAlias = "Sequence[float] | np.ndarray"
DELTA = 0.02  # differences smaller than this count as none
FEW = 20  # documents that differ, below which counting them says more than resampling


class Interval(NamedTuple):
    """A mean and its confidence interval over `n` documents; NaN where there are none."""

    value: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """Mean of a − b over `n` pairs, its interval, and the two-sided p against no difference."""

    value: float
    low: float
    high: float
    n: int
    p: float


class Counts(NamedTuple):
    """What is left of a `Paired` without its scores: all that power needs. Fields as there."""

    value: float
    n: int
    spread: float
    binary: bool
    gained: int
    lost: int
    few: bool


class Paired:
    """Two score vectors of the same documents; `paired` makes one.

    Whatever needs resampling is done once.

    value: mean of a − b. n: documents. spread: standard deviation of a − b (ddof 1; 0 for fewer
    than two). binary: both hold only 0 and 1. gained, lost: documents where a, where b scores more.
    few: fewer than 20 of them.
    """

    def __init__(self, a: Scores, b: Scores) -> None:
        x, y = _array(a), _array(b)
        assert x.shape == y.shape and x.ndim == 1, f"pairs need equal lengths, got {x.shape} and {y.shape}"
        self.n = len(x)
        self._d = x - y
        self.value = float(self._d.mean()) if self.n else math.nan
        self.spread = float(self._d.std(ddof=1)) if self.n > 1 else 0.0
        self.binary = _binary(x) and _binary(y)
        self.gained, self.lost = int((self._d > TIE).sum()), int((self._d < -TIE).sum())
        self.few = self.gained + self.lost < FEW

    @property
    def counts(self) -> Counts:
        """What may be kept of many pairs at once: it holds no scores."""
        return Counts(self.value, self.n, self.spread, self.binary, self.gained, self.lost, self.few)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns both ends: Tango's score interval for 0/1 data, else BCa; NaN without documents.

        Where fewer than 20 documents differ, resampling those few is too sure of itself (three that
        agree would be significant), so the interval also covers Tango's, scaled to the largest of
        their differences.
        """
        if not self.n:
            return math.nan, math.nan
        ends = [
            tuple(scale * end for end in tango(self.gained, self.lost, self.n, confidence))
            for scale in self._scales
        ]
        if not self.binary:
            ends.append(
                self._scatter.interval(confidence)
                if self._scatter
                else unanimous(self.value, self.n, confidence)
            )
        return min(low for low, _ in ends), max(high for _, high in ends)

    def p(self, margin: float = 0.0, side: Side = "two-sided") -> float:
        """Returns p against H0 difference = margin, ≤ margin ("greater") or ≥ margin ("less").

        It goes with `interval`: at an end of the interval it is 1 − confidence, or more where
        counts are tested exactly: at margin 0 (by the binomial; two-sided: McNemar's test) and
        wherever up to 500 answers changed. 149 answers of which none changed are the fewest that
        show a loss below 2 points: 0.98¹⁴⁹ < 0.05. Scores of which few differ show no more than the
        same counts of whole points, nor more than if they were all equal.
        """
        if not self.n:
            return math.nan
        ps = [count_p(self.gained, self.lost, self.n, margin / scale, side) for scale in self._scales]
        if not self.binary:
            ps.append(
                self._scatter.p(margin, side)
                if self._scatter
                else max(FLOOR, count_p(0, 0, self.n, margin - self.value, side))
            )
            if self.few and margin:
                ps.append(min(count_p(0, 0, self.n, margin, side), self.p(0.0, side)))
        return max(ps)

    @cached_property
    def _scatter(self) -> BCa | None:
        """None where counts, or a single value shared by all, say all there is."""
        import numpy as np

        return None if self.binary or float(np.ptp(self._d)) < TIE else bca(self._d)

    @cached_property
    def _scales(self) -> tuple[float, ...]:
        """What one document that differs is worth, where counting them is part of the answer."""
        if self.binary:
            return (1.0,)
        return (float(abs(self._d).max()),) if self.few and self.gained + self.lost else ()


def paired(a: Scores, b: Scores) -> Paired:
    """The scores of the same documents, in the same order, under two conditions."""
    return Paired(a, b)


def mean_interval(values: Scores, confidence: float = 0.95) -> Interval:
    """Returns the mean score with its interval: Wilson's for 0/1 data, else BCa."""
    import numpy as np

    x = _array(values)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if _binary(x):
        low, high = wilson(float(x.sum()), len(x), confidence)
    else:
        low, high = (
            unanimous(mean, len(x), confidence) if float(np.ptp(x)) < TIE else bca(x).interval(confidence)
        )
    return Interval(mean, max(0.0, low), min(1.0, high), len(x))


def paired_difference(a: Scores, b: Scores, confidence: float = 0.95) -> Difference:
    """Mean of a − b, document by document, with its interval and p."""
    return difference(paired(a, b), confidence)


def difference(pair: Paired, confidence: float = 0.95) -> Difference:
    """The same from a pair that exists already."""
    return Difference(pair.value, *pair.interval(confidence), pair.n, pair.p())


def equivalence_p(pair: Paired, delta: float = DELTA) -> float:
    """Returns p of two one-sided tests against "the difference is delta or more, either way"."""
    return max(pair.p(-delta, "greater"), pair.p(delta, "less"))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; NaN stays NaN and does not count as a test."""
    adjusted, highest = list(map(float, ps)), 0.0
    tested = sorted((i for i, p in enumerate(adjusted) if not math.isnan(p)), key=lambda i: adjusted[i])
    for rank, i in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * adjusted[i]))
        adjusted[i] = highest
    return adjusted


def _array(values: Scores) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=float)


def _binary(x: np.ndarray) -> bool:
    return bool(((x == 0) | (x == 1)).all())
