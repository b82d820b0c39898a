"""The BCa bootstrap of a mean: an interval and the p-values that belong to it.

    from lcfbench.analysis.stats.bootstrap import bca
    bca(np.random.default_rng(0).beta(0.4, 0.6, 300)).interval(0.95)

Source: Efron 1987 (J Am Stat Assoc 82:171). Up to 300 documents the 10,000 resamples are scipy's.
Above, the quantiles of the bootstrap distribution of a mean have a closed form (Cornish and Fisher
1938), which costs one pass over the data. It is within 1–2 % of the interval's half-width (5 % for
very skewed scores) of 200,000 resamples, where 10,000 of them scatter by 2–5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcfbench.analysis.stats.proportions import NORMAL, Side, root, tail

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
RESAMPLED = 300  # documents up to which we resample
FLOOR = 1 / (RESAMPLES + 1)  # no p-value from resampling is smaller
TIE = 1e-12  # means this near to each other are the same mean, summed in another order


@dataclass(frozen=True)
class BCa:
    """The bootstrap distribution of a mean, its bias correction `z0` and acceleration `a`.

    quantile: normal score w → the mean at probability Φ(w) of that distribution. score: its
    inverse; where several resamples tie at the value, the score of their upper or lower end.
    """

    z0: float
    a: float
    quantile: Callable[[float], float]
    score: Callable[[float, bool], float]

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Both ends of the two-sided interval."""
        z = NORMAL.inv_cdf(0.5 + confidence / 2)
        return self.quantile(self._shifted(-z)), self.quantile(self._shifted(z))

    def p(self, margin: float = 0.0, side: Side = "two-sided") -> float:
        """Returns the smallest level at which the interval leaves `margin` out, at least 1/10,001.

        greater: against H0 mean ≤ margin; less: against H0 mean ≥ margin; two-sided: against H0
        mean = margin.
        """
        if side == "two-sided":
            return min(1.0, 2 * min(self.p(margin, "greater"), self.p(margin, "less")))
        upper = side == "greater"
        z = self._unshifted(self.score(margin, upper))
        return max(FLOOR, tail(-z if upper else z))

    def _shifted(self, z: float) -> float:
        step = self.z0 + z
        room = 1 - self.a * step
        return self.z0 + step / room if room > 0 else math.copysign(math.inf, step)

    def _unshifted(self, w: float) -> float:
        step = w - self.z0
        if math.isinf(step):
            return step
        room = 1 + self.a * step
        return step / room - self.z0 if room > 0 else math.copysign(math.inf, step)


def bca(x: np.ndarray, seed: int = 0) -> BCa:
    """The BCa bootstrap of the mean of x (n,), whose values must not all be equal."""
    import numpy as np

    n, d = len(x), x - x.mean()
    square = float(np.dot(d, d))
    assert n > 1 and square > 0, f"{n} equal values have no bootstrap distribution"
    a = float(np.dot(d * d, d)) / (6 * square**1.5)
    if n > RESAMPLED:
        excess = float(np.dot(d * d, d * d)) * n / square**2 - 3
        return _closed(float(x.mean()), math.sqrt(square) / n, 6 * a, excess / n)
    return _resampled(x, a, seed)


def _resampled(x: np.ndarray, a: float, seed: int) -> BCa:
    import numpy as np
    from scipy.stats import bootstrap

    rng, batch = np.random.default_rng(seed), max(1, 2_000_000 // len(x))
    # "percentile": scipy's BCa would take n jackknife means for the acceleration, known here already
    found = bootstrap(
        (x,), np.mean, n_resamples=RESAMPLES, batch=batch, method="percentile", vectorized=True, rng=rng
    )
    means, mean = np.sort(found.bootstrap_distribution), x.mean()
    below = (np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")) / (2 * len(means))
    last = len(means) - 1

    def quantile(w: float) -> float:
        place = NORMAL.cdf(w) * last
        i = min(int(place), last - 1)
        return float(means[i] + (means[i + 1] - means[i]) * (place - i))

    def score(value: float, upper: bool) -> float:
        i = (
            int(np.searchsorted(means, value + TIE, "right")) - 1
            if upper
            else int(np.searchsorted(means, value - TIE, "left"))
        )
        if not 0 <= i <= last:
            return math.copysign(math.inf, i)
        if abs(means[i] - value) > TIE:  # between two resamples
            i = i if upper else i - 1
            if not 0 <= i < last:
                return math.copysign(math.inf, i)
            return _inverse((i + (value - means[i]) / (means[i + 1] - means[i])) / last)
        return _inverse(i / last)

    return BCa(_inverse(float(below)), a, quantile, score)


def _closed(mean: float, error: float, skewness: float, excess: float) -> BCa:
    """Builds it from the mean, its error, and the mean's own skewness and excess kurtosis."""

    def expansion(w: float) -> float:
        second = excess * (w**3 - 3 * w) / 24 - skewness**2 * (2 * w**3 - 5 * w) / 36
        return w + skewness * (w * w - 1) / 6 + second

    def score(value: float, upper: bool) -> float:
        standard = (value - mean) / error
        return root(lambda w: standard - expansion(w), -8.0, 8.0)

    z0 = root(lambda w: -expansion(w), -1.0, 1.0)
    return BCa(z0, skewness / 6, lambda w: mean + error * expansion(w), score)


def _inverse(probability: float) -> float:
    if 0 < probability < 1:
        return NORMAL.inv_cdf(probability)
    return math.copysign(math.inf, probability - 0.5)
