"""How often `lcfbench check` fails, passes and cannot say, when the truth is known. Prints tables, then one JSON line.

    python benchmarks/gate_simulation.py --repetitions 5000

Noise: a share of the documents (discordance) changes its answer between two runs, as another machine or batch size makes it; without a
drop as many get better as get worse. With a drop of `drop`, more get worse. Families are cells of one check; each has the same truth.
tests/test_gate_simulation.py runs the same functions with fewer repetitions.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from lcfbench.analysis.gate import Outcome, Shift, decide, score_shift, time_shift

MAX_DROP = 0.01


class Rates(NamedTuple):
    """Shares of all checks: exit 1, exit 0; the rest are inconclusive."""

    failed: float
    passed: float


def simulate(
    n: int,
    discordance: float,
    drop: float,
    cells: int = 1,
    repetitions: int = 1000,
    graded: bool = False,
    max_drop: float = MAX_DROP,
    seed: int = 0,
) -> Rates:
    """Checks of `cells` cells of `n` documents each. drop: the true loss, at most `discordance`. graded: scores between 0 and 1."""
    rng = np.random.default_rng([seed, n, round(1e4 * discordance), round(1e4 * drop), cells])
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    assert gained >= 0, "a drop needs at least as many documents that change"
    family = []
    for _ in range(repetitions):
        if graded:
            family.append([_graded(rng, n, discordance, drop, max_drop) for _ in range(cells)])
        else:
            counts = rng.multinomial(n, (lost, gained, 1 - lost - gained), size=cells)
            family.append([_binary(int(a), int(b), n, max_drop) for a, b, _ in counts])
    return _rates(family)


def simulate_times(n: int, spread: float, slowdown: float, limit: float, repetitions: int = 1000, seed: int = 0) -> Rates:
    """Checks of times of `n` documents. spread: standard deviation of the log ratio from document to document."""
    rng = np.random.default_rng([seed, n, round(1e4 * slowdown)])
    before = rng.lognormal(5, 0.3, (repetitions, n))
    now = before * (1 + slowdown) * rng.lognormal(0, spread, (repetitions, n))
    return _rates([[time_shift(now[i], before[i], limit)] for i in range(repetitions)])


def size(n: int, discordance: float, drop: float, cells: int = 1, max_drop: float = MAX_DROP) -> float:
    """The exact probability that a check fails, summed over all outcomes (Holm's first step: the smallest p below 5 % / cells)."""
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    alone = 0.0
    for losses in range(int(binom.ppf(1e-7, n, lost)), int(binom.ppf(1 - 1e-7, n, lost)) + 1):
        low, high = -1, int(binom.ppf(1 - 1e-7, n - losses, gained / (1 - lost))) + 1
        while high - low > 1:  # p grows with the gains
            middle = (low + high) // 2
            low, high = (middle, high) if _binary(losses, middle, n, max_drop).p < 0.05 / cells else (low, middle)
        alone += binom.pmf(losses, n, lost) * binom.cdf(low, n - losses, gained / (1 - lost))
    return float(1 - (1 - alone) ** cells)


def _rates(families: list[list[Shift]]) -> Rates:
    outcomes = [decide(shifts) for shifts in families]
    failed = [Outcome.WORSE in seen for seen in outcomes]
    passed = [all(one is Outcome.OK for one in seen) for seen in outcomes]
    return Rates(float(np.mean(failed)), float(np.mean(passed)))


@cache
def _binary(lost: int, gained: int, n: int, max_drop: float) -> Shift:
    """Only the counts matter; 60 % of the rest are right."""
    rest = n - lost - gained
    base, new = np.zeros(n), np.zeros(n)
    base[:lost] = 1
    new[lost : lost + gained] = 1
    base[lost + gained : lost + gained + int(0.6 * rest)] = new[lost + gained : lost + gained + int(0.6 * rest)] = 1
    return score_shift(new, base, max_drop)


def _graded(rng: np.random.Generator, n: int, discordance: float, drop: float, max_drop: float) -> Shift:
    """Like token F1: scores in (0, 1), of which a share moves by a tenth or so, on the average by −drop."""
    base = rng.uniform(0.3, 0.7, n)
    moved = rng.random(n) < discordance
    return score_shift(base + moved * (rng.normal(0, 0.1, n) - drop / discordance), base, max_drop)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5000)
    repetitions, began = parser.parse_args().repetitions, time.perf_counter()
    results = []
    print(f"{repetitions:,} checks a line; the limit is {100 * MAX_DROP:g} pt; shares of checks in %\n")
    print("| documents a cell | cells | changed answers | true drop | fails (1) | passes (0) | cannot say (3) |")
    print("| ---: " * 7 + "|")
    for cells in (1, 6):
        for n in (200, 1000, 5000):
            for discordance in (0.02, 0.05, 0.10):
                for drop in (0.0, MAX_DROP, 0.02, 0.05):
                    if drop <= discordance:
                        got = simulate(n, discordance, drop, cells, repetitions)
                        results.append({"n": n, "cells": cells, "discordance": discordance, "drop": drop, **got._asdict()})
                        print(f"| {n:,} | {cells} | {100 * discordance:g} % | {100 * drop:g} pt | {_row(got)} |")
    print("\nGraded scores (3 in 10 documents move), one cell; a tenth of the checks\n")
    for n in (200, 1000):
        for drop in (0.0, MAX_DROP, 0.02):
            got = simulate(n, 0.3, drop, 1, max(100, repetitions // 10), graded=True)
            results.append({"n": n, "graded": True, "drop": drop, **got._asdict()})
            print(f"| {n:,} | 1 | 30 % | {100 * drop:g} pt | {_row(got)} |")
    print("\nTime to the first token, limit 10 %, times of a document vary by 3 %\n")
    for n in (5, 20):
        for slowdown in (0.0, 0.05, 0.10, 0.15, 0.20):
            got = simulate_times(n, 0.03, slowdown, 0.10, repetitions)
            results.append({"timed": n, "slowdown": slowdown, **got._asdict()})
            print(f"| {n} | 1 | | {100 * slowdown:g} % slower | {_row(got)} |")
    print(json.dumps({"seconds": round(time.perf_counter() - began, 1), "repetitions": repetitions, "results": results}))


def _row(got: Rates) -> str:
    return " | ".join(f"{100 * x:.1f}" for x in (got.failed, got.passed, 1 - got.failed - got.passed))


if __name__ == "__main__":
    main()
