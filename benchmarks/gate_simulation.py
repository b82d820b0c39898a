"""How often `lcfbench check` fails, passes and cannot say, when the truth is known.

Prints tables, then one JSON line.

    python benchmarks/gate_simulation.py --repetitions 5000

Noise: a share of the documents (discordance) changes its answer between two runs, as another
machine or batch size makes it; without a drop as many get better as get worse. With a drop of
`drop`, more get worse. Families are cells of one check; each has the same truth. Times vary from
document to document and, all together, from run to run; a whole session may be slower too, which no
check can see. tests/test_gate_simulation.py runs the same functions with fewer repetitions.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import binom

from lcfbench.analysis.gate import Outcome, Shift, decide, score_shift
from lcfbench.analysis.gate.times import time_shift

MAX_DROP = 0.01
# documents, limit, share of changed answers; the first lose all they change
FEW_CHANGED = (
    *((149, 0.02, 0.02), (268, 0.01, 0.01), (299, 0.01, 0.01), (474, 0.01, 0.01), (1000, 0.01, 0.01)),
    *((200, 0.02, 0.03), (300, 0.01, 0.015), (500, 0.01, 0.02), (1000, 0.01, 0.02)),
)


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
    """Checks of `cells` cells of `n` documents each.

    drop: the true loss, at most `discordance`. graded: scores between 0 and 1.
    """
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


def simulate_times(
    runs: int,
    slowdown: float,
    limit: float = 0.10,
    machine: float = 0.05,
    documents: int = 5,
    spread: float = 0.03,
    session: float = 0.0,
    repetitions: int = 1000,
    seed: int = 0,
) -> Rates:
    """Checks of times of `runs` runs a side with `documents` documents each.

    Standard deviations of log times: machine, what all documents of one run share; spread, of each
    document; session, what all runs of one side share, as when the baseline is of another day.
    """
    rng = np.random.default_rng([seed, runs, documents, round(1e4 * slowdown), round(1e4 * session)])
    texts = rng.lognormal(5, 0.3, (repetitions, runs, documents))

    def timed(factor: float) -> np.ndarray:
        busy = rng.normal(0, session, (repetitions, 1, 1)) + rng.normal(0, machine, (repetitions, runs, 1))
        return texts * factor * np.exp(busy + rng.normal(0, spread, texts.shape))

    before, now = timed(1.0), timed(1 + slowdown)
    return _rates(
        [[time_shift(list(zip(now[i], before[i], strict=True)), limit)] for i in range(repetitions)]
    )


def size(
    n: int,
    discordance: float,
    drop: float,
    cells: int = 1,
    max_drop: float = MAX_DROP,
    end: Literal["fails", "passes"] = "fails",
) -> float:
    """The exact probability that a check fails or passes, summed over all outcomes.

    fails: some cell's p is below 5 % / cells (Holm's first step). passes: all cells are surely not
    worse.
    """
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    alone = 0.0
    for losses in range(int(binom.ppf(1e-7, n, lost)), int(binom.ppf(1 - 1e-7, n, lost)) + 1):
        share, low = gained / (1 - lost), -1
        high = int(binom.ppf(1 - 1e-7, n - losses, share)) + 1 if gained else 1
        while high - low > 1:  # with more gains it fails less and passes more
            middle = (low + high) // 2
            shift = _binary(losses, middle, n, max_drop)
            low, high = (
                (middle, high)
                if (shift.p < 0.05 / cells if end == "fails" else not shift.sure)
                else (low, middle)
            )
        below = binom.cdf(low, n - losses, share)
        alone += binom.pmf(losses, n, lost) * (below if end == "fails" else 1 - below)
    return float(1 - (1 - alone) ** cells if end == "fails" else alone**cells)


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
    base[lost + gained : lost + gained + int(0.6 * rest)] = new[
        lost + gained : lost + gained + int(0.6 * rest)
    ] = 1
    return score_shift(new, base, max_drop)


def _graded(rng: np.random.Generator, n: int, discordance: float, drop: float, max_drop: float) -> Shift:
    """Like token F1.

    Scores in (0, 1), of which a share moves by a tenth or so, on the average by −drop.
    """
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
    print(
        "| documents a cell | cells | changed answers | true drop | fails (1) | passes (0) | cannot say (3) |"
    )
    print("| ---: " * 7 + "|")
    for cells in (1, 6):
        for n in (200, 1000, 5000):
            for discordance in (0.02, 0.05, 0.10):
                for drop in (0.0, MAX_DROP, 0.02, 0.05):
                    if drop <= discordance:
                        got = simulate(n, discordance, drop, cells, repetitions)
                        results.append(
                            {
                                "n": n,
                                "cells": cells,
                                "discordance": discordance,
                                "drop": drop,
                                **got._asdict(),
                            }
                        )
                        print(
                            f"| {n:,} | {cells} | {100 * discordance:g} % | {100 * drop:g} pt | {_row(got)} |"
                        )
    print("\nGraded scores (3 in 10 documents move), one cell; a tenth of the checks\n")
    for n in (200, 1000):
        for drop in (0.0, MAX_DROP, 0.02):
            got = simulate(n, 0.3, drop, 1, max(100, repetitions // 10), graded=True)
            results.append({"n": n, "graded": True, "drop": drop, **got._asdict()})
            print(f"| {n:,} | 1 | 30 % | {100 * drop:g} pt | {_row(got)} |")
    print("\nA true loss of exactly the limit, few changed answers, one cell; exact\n")
    print("| documents | limit | changed answers | fails (1) | passes (0) |\n| ---: " + "| ---: " * 4 + "|")
    for n, limit, discordance in FEW_CHANGED:
        fails, passes = (size(n, discordance, limit, 1, limit, end) for end in ("fails", "passes"))
        results.append(
            {
                "n": n,
                "max_drop": limit,
                "discordance": discordance,
                "drop": limit,
                "fails": fails,
                "passes": passes,
            }
        )
        print(
            f"| {n:,} | {100 * limit:g} pt | {100 * discordance:g} % | "
            f"{100 * fails:.2f} | {100 * passes:.2f} |"
        )
    print(
        "\nTime to the first token, limit 10 %, 5 documents: documents vary by 3 %, runs by 5 %, "
        "sessions by the third column\n"
    )
    print(
        "| runs a side | truly slower | sessions vary | fails (1) | passes (0) | cannot say (3) |\n| ---: "
        + "| ---: " * 5
        + "|"
    )
    for runs, session in ((1, 0.0), (3, 0.0), (5, 0.0), (8, 0.0), (12, 0.0), (5, 0.05)):
        for slowdown in (0.0, 0.10, 0.20, 0.30):
            got = simulate_times(runs, slowdown, session=session, repetitions=repetitions)
            results.append({"runs": runs, "session": session, "slowdown": slowdown, **got._asdict()})
            print(f"| {runs} | {100 * slowdown:g} % | {100 * session:g} % | {_row(got)} |")
    print(
        json.dumps(
            {"seconds": round(time.perf_counter() - began, 1), "repetitions": repetitions, "results": results}
        )
    )


def _row(got: Rates) -> str:
    return " | ".join(f"{100 * x:.1f}" for x in (got.failed, got.passed, 1 - got.failed - got.passed))


if __name__ == "__main__":
    main()
