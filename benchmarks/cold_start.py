"""Cold start.

Seconds until `--help` and lists are there, and until the first row of a run is on disk, each in a
fresh process.

python benchmarks/cold_start.py --repeats 3 --out benchmarks/results/cold_start.json

The embedded pair's models and OpenBookQA must be on this disk already (run each line once). Rows
are waited for in the run's journal; then the run is stopped. Commands take turns, so that a busy
minute hits all of them. Python keeps compiled modules, as it does unless it is told not to: without
them each start compiles this package anew (0.3 s).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import ROOT, parser, report, turns

CLI = [sys.executable, "-m", "lcfbench.cli"]
FIRST_ROW_SECONDS = 6.0  # on the machine this was written on
RUNS = {
    "receiver, openbookqa": "--mode receiver --task openbookqa --scoring letters",
    "lcf, splitfacts": "--mode lcf --task splitfacts",
    "lcf, openbookqa": "--mode lcf --task openbookqa --scoring letters",
}


def answered(arguments: list[str], environment: dict[str, str]) -> None:
    """A command that ends by itself. Raises where it fails."""
    subprocess.run([*CLI, *arguments], env=environment, check=True, capture_output=True, timeout=120)


def first_row(arguments: list[str], environment: dict[str, str], times: list[float]) -> None:
    """Starts a run, waits for its first row and stops it.

    The seconds go to `times`, since stopping is not to count.
    """
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*CLI, "run", *arguments, "--out", out, "--fresh"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while not any(path.stat().st_size for path in Path(out).glob("*/samples.*")):
                if process.poll() is not None:
                    raise SystemExit(
                        f"no row came: {(process.stderr.read() if process.stderr else '').strip()[-400:]}"
                    )
                time.sleep(0.005)
            times.append(time.perf_counter() - began)
        finally:
            process.kill()
            process.communicate()


def main() -> None:
    """Prints a line a command, then JSON."""
    made = parser(__doc__, repeats=3, documents=16)
    made.add_argument(
        "--threads", type=int, default=0, help="OMP_NUM_THREADS of the runs; 0 leaves it as it is"
    )
    given = made.parse_args()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {"OMP_NUM_THREADS": str(given.threads)} if given.threads else {}
    waited: dict[str, list[float]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as recorded:
        few = [
            "--mode",
            "receiver",
            "--task",
            "splitfacts",
            "--limit",
            "16",
            "--latency-documents",
            "0",
            "--out",
            recorded,
        ]
        answered(["run", *few], environment)
        verbs = {"--help": ["--help"], "ls tasks": ["ls", "tasks"], "show": ["show", recorded]}
        sides: dict[str, Callable[[], Any]] = {
            name: partial(answered, line, environment) for name, line in verbs.items()
        }
        for name, line in RUNS.items():
            arguments = [*line.split(), "--limit", str(given.documents)]
            sides[name] = partial(first_row, arguments, environment, waited[name])
        times = turns(sides, given.repeats)
    times |= {
        name: taken[-given.repeats :] for name, taken in waited.items()
    }  # the first one was the warm-up
    results = []
    for name, taken in times.items():
        limit = FIRST_ROW_SECONDS if name in RUNS else 1.0
        median = statistics.median(taken)
        claim = f"`{name}` answers" if name not in RUNS else f"first row of `run` ({name})"
        found = {"median": median, "low": min(taken), "high": max(taken)}
        results.append(
            {
                "case": name,
                "claim": f"{claim} within {limit:g} s",
                "ratio": found,
                "unit": "s",
                "target": limit,
                "better": "lower",
            }
        )
        print(f"{name}: {median:.2f} s ({min(taken):.2f}–{max(taken):.2f})")
    report("cold_start", results, given.out, documents=given.documents)


if __name__ == "__main__":
    main()
