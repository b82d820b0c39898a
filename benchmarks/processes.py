"""How fast one recipe is on this machine: one process, several processes, actors of Ray.

    python -m benchmarks.processes --limit 128

Each way runs the same recipe into a fresh folder, in turn, `--repeats` times; the start is part of it.
Rows are held against those of the first way: every column but times and memory is equal. The
driver's and the workers' peak memory (of all children together, as they end) stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lcfbench.provenance import environment, usable_cpus

RECIPE = ["--mode", "receiver,t2t,lcf", "--task", "splitfacts,openbookqa", "--control", "matched,deranged"]
TIMES = ("_ms", "peak_memory_bytes", "written_at", "row_sha256")


def ways(cpus: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Each way: flags and environment variables."""
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        f"1 process x {cpus} threads": (["--processes", "1"], {}),
        "1 process x 1 thread": (["--processes", "1"], {"OMP_NUM_THREADS": "1"}),
        f"{cpus} processes x 1 thread": (["--processes", str(cpus)], {}),
    }
    if find_spec("ray"):
        found[f"Ray, {cpus} actors x 1 thread"] = (["--on", "ray", "--processes", str(cpus)], {})
    return found


def measured(flags: list[str], more: dict[str, str], limit: int, out: Path) -> float:
    """Seconds of one command, start included."""
    command = [sys.executable, "-m", "lcfbench", "run", *RECIPE, "--limit", str(limit), "--out", str(out)]
    around = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | more
    began = time.perf_counter()
    subprocess.run([*command, *flags], env=around, check=True, capture_output=True)
    return time.perf_counter() - began


def answers(out: Path) -> list[dict[str, Any]]:
    """All rows without times and memory, in one order."""
    from lcfbench.results.reader import load_samples

    rows = load_samples(out)
    kept = [name for name in rows.columns if not name.endswith(TIMES)]
    return json.loads(rows.sort_values(["run_id", "doc_hash"])[kept].to_json(orient="records"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    peak: dict[str, int] = {}
    first: list[dict[str, Any]] = []
    for _ in range(asked.repeats):
        for name, (flags, more) in ways(usable_cpus()).items():
            with tempfile.TemporaryDirectory() as folder:
                seconds.setdefault(name, []).append(measured(flags, more, asked.limit, Path(folder)))
                rows = answers(Path(folder))
            first = first or rows
            assert rows == first, f"{name}: other rows"
            peak[name] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # so far
    base = statistics.median(next(iter(seconds.values())))
    medians = {name: statistics.median(every) for name, every in seconds.items()}
    table = [{"way": n, "seconds": round(s, 1), "ratio": round(base / s, 2)} for n, s in medians.items()]
    found = {"rows": len(first), "table": table, "all_seconds": seconds, "environment": environment()}
    found["largest_process_bytes"] = max(peak.values())
    print("\n".join(f"{t['way']:28} {t['seconds']:8.1f} s  {t['ratio']:5.2f} x" for t in table))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
