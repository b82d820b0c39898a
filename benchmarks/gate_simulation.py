"""How often `lcfbench check` fails, passes and cannot say, when the truth is known. Prints tables, then one JSON line.

    python benchmarks/gate_simulation.py --repetitions 5000

What is simulated: tests/gate_simulation.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.gate_simulation import MAX_DROP, Rates, simulate, simulate_times


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
