"""Do the statistics keep their promises?

Coverage, false alarms and power of what `lcfbench verdict` says, on worlds whose truth is known.

    python benchmarks/statistics_simulation.py --repetitions 20000 --resampled 2000

Prints a table: what was asked, the world, the rate found (± two standard errors of the simulation)
and what it should be. tests/test_stats_simulation.py runs the same functions with fewer
repetitions.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from lcfbench.analysis.stats import equivalence_p, holm, paired
from lcfbench.analysis.stats.power import smallest_visible
from lcfbench.analysis.stats.proportions import mcnemar, tango
from lcfbench.analysis.verdict import Evidence, Label, judge

# n, P(first right), P(second right), correlation of the two
BINARY = (
    (50, 0.5, 0.5, 0.0),
    (50, 0.9, 0.6, 0.2),
    (100, 0.35, 0.3, 0.5),
    (100, 0.95, 0.9, 0.2),
    (500, 0.6, 0.58, 0.7),
    (1000, 0.3, 0.3, 0.9),
)
# n, share of documents on which both score alike, what the first is better by where it is
SCORES = (
    (40, 0.3, 0.2),
    (100, 0.6, 0.0),
    (100, 0.3, 0.3),
    (300, 0.9, 0.2),
    (1000, 0.5, 0.1),
    (6000, 0.7, 0.1),
)
RARE = (300, 0.98, 0.0)  # two documents of a hundred differ
# n, gained, lost as seen: what a verdict calls visible beside that noise
SEEN = (
    (40, 3, 1),
    (64, 5, 2),
    (64, 0, 0),
    (100, 0, 0),
    (100, 15, 15),
    (200, 15, 9),
    (300, 20, 20),
    (1000, 10, 10),
    (1000, 100, 90),
)
# n, delta, share gained besides what is lost: few answers change
FEW = (
    (134, 0.02, 0.0),
    (149, 0.02, 0.0),
    (200, 0.02, 0.005),
    (268, 0.01, 0.0),
    (300, 0.01, 0.0),
    (300, 0.02, 0.01),
)


class Rate(NamedTuple):
    """A share of `repetitions`, and the standard error of that."""

    value: float
    repetitions: int

    @property
    def error(self) -> float:
        return math.sqrt(max(self.value * (1 - self.value), 1e-4) / self.repetitions)


def counts(
    rng: np.random.Generator, n: int, first: float, second: float, correlation: float, size: int
) -> Iterator[tuple[int, int]]:
    """(gained, lost) of `size` draws of n pairs of answers."""
    both = first * second + correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    cells = (both, first - both, second - both, 1 - first - second + both)
    assert min(cells) >= 0, f"no such correlation: {cells}"
    for _, gained, lost, _ in rng.multinomial(n, cells, size=size):
        yield int(gained), int(lost)


def answers(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two 0/1 vectors with those discordant pairs; the others agree."""
    first, second = np.zeros(n), np.zeros(n)
    first[:gained], second[gained : gained + lost] = 1, 1
    return first, second


def f1_scores(rng: np.random.Generator, n: int, alike: float, better: float) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors shaped like token F1.

    Many 0, many 1, the rest between; `better`: how often the first is right where the second fails.
    """

    def draw() -> np.ndarray:
        kind = rng.random(n)
        return np.where(kind < 0.45, 0.0, np.where(kind < 0.7, 1.0, rng.beta(2, 2, n)))

    first = draw()
    second = np.where(
        rng.random(n) < alike, first, np.where(rng.random(n) < better, draw() * (rng.random(n) < 0.5), draw())
    )
    return first, second


def f1_truth(alike: float, better: float) -> float:
    """The expected difference of `f1_scores`."""
    return (1 - alike) * better * 0.5 * (0.25 + 0.3 * 0.5)


def tango_coverage(world: tuple[int, float, float, float], repetitions: int, seed: int = 0) -> Rate:
    """How often Tango's 95 % interval holds the true difference."""
    n, first, second, _ = world
    interval = cache(lambda gained, lost: tango(gained, lost, n))
    drawn = counts(np.random.default_rng(seed), *world, repetitions)
    held = [low <= first - second <= high for low, high in (interval(*pair) for pair in drawn)]
    return Rate(float(np.mean(held)), repetitions)


def bca_coverage(world: tuple[int, float, float], repetitions: int, seed: int = 0) -> Rate:
    """How often the 95 % interval of scores that are not only 0 and 1 holds the true difference."""
    rng, truth, held = np.random.default_rng(seed), f1_truth(*world[1:]), 0
    for _ in range(repetitions):
        low, high = paired(*f1_scores(rng, *world)).interval()
        held += low <= truth <= high
    return Rate(held / repetitions, repetitions)


def rare_alarms(repetitions: int, seed: int = 0) -> Rate:
    """How often p < 0.05 where few scores differ and nothing is the matter."""
    rng = np.random.default_rng(seed)
    return Rate(
        float(np.mean([paired(*f1_scores(rng, *RARE)).p() < 0.05 for _ in range(repetitions)])), repetitions
    )


def family_wise(repetitions: int, family: int = 6, real: int = 2, n: int = 200, seed: int = 0) -> Rate:
    """How often Holm lets pass at least one of the tests without effect, among `real` that have one."""
    rng, exact = np.random.default_rng(seed), cache(mcnemar)
    none = [list(counts(rng, n, 0.5, 0.5, 0.2, repetitions)) for _ in range(family - real)]
    some = [list(counts(rng, n, 0.7, 0.5, 0.2, repetitions)) for _ in range(real)]
    wrong = 0
    for drawn in zip(*none, *some, strict=True):
        wrong += min(holm([exact(*pair) for pair in drawn])[: family - real]) < 0.05
    return Rate(wrong / repetitions, repetitions)


def equivalence_size(repetitions: int, n: int = 500, delta: float = 0.1, seed: int = 0) -> Rate:
    """How often two one-sided tests find "none within delta" where the difference is delta exactly."""
    drawn = counts(np.random.default_rng(seed), n, 0.5 + delta, 0.5, 0.4, repetitions)
    return Rate(float(np.mean([_equivalence(*pair, n, delta) < 0.05 for pair in drawn])), repetitions)


def equivalence_size_few(repetitions: int, n: int, delta: float, noise: float, seed: int = 0) -> Rate:
    """The same where delta is lost and besides it as good as nothing changes."""
    drawn = changes(np.random.default_rng(seed), n, noise, delta + noise, repetitions)
    return Rate(float(np.mean([_equivalence(*pair, n, delta) < 0.05 for pair in drawn])), repetitions)


def equivalence_family(
    repetitions: int, family: int = 20, n: int = 3000, delta: float = 0.02, noise: float = 0.02, seed: int = 0
) -> Rate:
    """How often Holm lets one "none within delta" pass where all differences are exactly delta."""
    rng = np.random.default_rng(seed)
    drawn = [list(changes(rng, n, noise, delta + noise, repetitions)) for _ in range(family)]
    found = [
        min(holm([_equivalence(*pair, n, delta) for pair in pairs])) < 0.05
        for pairs in zip(*drawn, strict=True)
    ]
    return Rate(float(np.mean(found)), repetitions)


@cache
def _equivalence(gained: int, lost: int, n: int, delta: float) -> float:
    return equivalence_p(paired(*answers(gained, lost, n)), delta)


def changes(
    rng: np.random.Generator, n: int, gained: float, lost: float, size: int
) -> Iterator[tuple[int, int]]:
    """(gained, lost) of `size` draws of n pairs of answers, of which those shares change."""
    for won, less, _ in rng.multinomial(n, (gained, lost, 1 - gained - lost), size=size):
        yield int(won), int(less)


def labelled(
    label: Label, repetitions: int, n: int, gained: float, lost: float, family: int = 1, seed: int = 0
) -> Rate:
    """How often a family of methods, with those shares of changed answers, has one with that label."""
    rng = np.random.default_rng(seed)
    drawn = [list(changes(rng, n, gained, lost, repetitions)) for _ in range(family)]

    @cache
    def found(pairs: tuple[tuple[int, int], ...]) -> bool:
        return any(v.label == label for v in judge([Evidence(*answers(*pair, n)) for pair in pairs]))

    return Rate(
        float(np.mean([found(tuple(sorted(pairs))) for pairs in zip(*drawn, strict=True)])), repetitions
    )


def power_at_visible(repetitions: int, seen: tuple[int, int, int], seed: int = 0) -> tuple[float, Rate]:
    """The smallest effect a verdict calls visible, and how often it is found on top of that noise."""
    n, gained, lost = seen
    effect, noise = smallest_visible(paired(*answers(gained, lost, n))), (gained + lost) / n
    return effect, labelled("communicates", repetitions, n, noise / 2 + effect, noise / 2, seed=seed)


def lines(repetitions: int, resampled: int) -> Iterator[tuple[str, str, Callable[[], Rate], str]]:
    """(what, world, how to find out, what it should be)."""
    for world in BINARY:
        yield (
            "Tango 95 % covers",
            "n={}, {:g} against {:g}, r={:g}".format(*world),
            lambda w=world: tango_coverage(w, repetitions),
            "95",
        )
    for world in (*SCORES, RARE):
        yield (
            "BCa 95 % covers",
            "n={}, {:.0%} alike, {:g} better".format(*world),
            lambda w=world: bca_coverage(w, resampled),
            "95",
        )
    yield (
        "p < 0.05, scores, few differ",
        "n={}, {:.0%} alike, no effect".format(*RARE),
        lambda: rare_alarms(resampled),
        "≤ 5",
    )
    for family, real in ((6, 0), (6, 2), (20, 5)):
        yield (
            "Holm, any false",
            f"{family} tests, {real} real, n=200",
            lambda f=family, r=real: family_wise(repetitions, f, r),
            "≤ 5",
        )
    for delta, n in ((0.1, 500), (0.05, 2000), (0.02, 5000)):
        yield (
            "TOST at the limit",
            f"n={n}, delta {delta:g}",
            lambda d=delta, n=n: equivalence_size(repetitions, n, d),
            "≤ 5",
        )
    for n, delta, noise in FEW:
        shown = f"n={n}, delta {delta:g}, else {noise:.1%} changed either way"
        find = lambda n=n, d=delta, x=noise: equivalence_size_few(repetitions, n, d, x)  # noqa: E731
        yield "TOST at the limit, few changed", shown, find, "≤ 5"
    yield (
        "TOST at the limit, any of 20",
        "n=3000, delta 0.02",
        lambda: equivalence_family(min(repetitions, 5000)),
        "≤ 5",
    )
    for label in ("communicates", "misleads"):
        for n, family in ((64, 1), (500, 1), (200, 20)):
            many = repetitions if family == 1 else min(repetitions, 1000)
            find = lambda x=label, n=n, f=family, m=many: labelled(x, m, n, 0.1, 0.1, f)  # noqa: E731
            yield f"{label}, no effect", f"n={n}, family of {family}", find, "≤ 5"
    for seen in SEEN:
        effect, _ = power_at_visible(1, seen)
        shown = "n={}; {} gained, {} lost; ".format(*seen) + f"effect {100 * effect:.1f} points"
        yield "communicates, visible effect", shown, lambda s=seen: power_at_visible(repetitions, s)[1], "80"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=20_000, help="of what counting suffices for")
    parser.add_argument("--resampled", type=int, default=2_000, help="of what is resampled 10,000 times each")
    args = parser.parse_args()
    began = time.perf_counter()
    print("| what | world | found % | should be % |\n| --- | --- | ---: | ---: |")
    for what, world, find, should in lines(args.repetitions, args.resampled):
        rate = find()
        print(
            f"| {what} | {world} | {100 * rate.value:.1f} ± {200 * rate.error:.1f} | {should} |", flush=True
        )
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
