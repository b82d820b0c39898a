"""Runs every benchmark of this folder, each in its own process.

Results go to `results/<name>.json` and `results/table.md`.

    python -m benchmarks.run_all                       # all that compare times; `make bench`
    python -m benchmarks.run_all --only fusion,dtype   # some; also those that are left out by default
    python -m benchmarks.run_all --quick               # fewer documents and repeats: shows that all run
    python -m benchmarks.run_all --table               # only the table again, from the JSON files

One that fails or outlasts its limit is reported and the rest go on; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, rounded
from benchmarks._table import table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LIMIT = 900.0  # seconds a benchmark may take
APART = ("gpu", "length", "million_rows", "processes", "roofline")  # run with --only
SIMULATIONS = ("gate_simulation", "statistics_simulation", "scale_simulation")
ONE = ("--repeats", "1")
QUICK: dict[str, tuple[str, ...]] = {
    "growth": ("--most", "1000", *ONE),
    "length": ("--pairs", "real", "--most", "2048", "--methods", "receiver,lcf"),
    "per_document": ("--documents", "4", *ONE),
    "receiver_vs_lm_eval": ("--documents", "8", *ONE),
    "controls_sharing": ("--documents", "8", *ONE),
    "sweep_sharing": ("--documents", "8", *ONE),
    "million_rows": ("--points", "40x50"),
}


def names() -> list[str]:
    """Every benchmark of this folder."""
    return sorted(
        p.stem
        for p in HERE.glob("*.py")
        if not p.stem.startswith("_") and p.stem not in (Path(__file__).stem, *SIMULATIONS)
    )


def quick(name: str) -> tuple[str, ...]:
    """Arguments of a short run.

    One repeat where a script knows repeats and nothing else is said here.
    """
    return QUICK.get(name, ONE if "repeats" in (HERE / f"{name}.py").read_text() else ())


def run_one(command: Sequence[str], limit: float) -> tuple[dict[str, Any] | None, str]:
    """The JSON line a command ends with, and why there is none.

    What it prints is passed on as it comes.
    """
    environment = {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # a session of its own, so that its children end with it
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    found = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                with contextlib.suppress(json.JSONDecodeError):
                    found = json.loads(line)
                    continue
            print(f"  {line}", end="", flush=True)
        code = process.wait()
    except BaseException:
        stop()
        process.wait()
        raise
    finally:
        timer.cancel()
    if late.is_set():
        return None, f"took longer than {limit:.0f} s"
    if code:
        why = found.get("failed") if isinstance(found, dict) else None
        return None, f"{why} (exit code {code})" if why else f"ended with exit code {code}"
    return (found, "") if isinstance(found, dict) else (None, "printed no JSON line")


def write(folder: Path, name: str, found: dict[str, Any]) -> None:
    """Writes one benchmark's results, keys sorted, so that two runs can be compared line by line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps(rounded(found), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


def main() -> None:
    """Runs, writes, and says what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"names, separated by commas: {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="few documents, one repeat")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table again")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"seconds a benchmark may take, default {LIMIT:.0f}"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the JSON files and the table"
    )
    given = parser.parse_args()
    asked = [name for name in given.only.split(",") if name] or [
        name for name in names() if name not in APART
    ]
    if unknown := set(asked) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    failed = []
    for name in [] if given.table else asked:
        began = time.perf_counter()
        print(f"{name}", flush=True)
        more = (
            *(quick(name) if given.quick else ()),
            *(("--figures", str(given.results)) if name in ("growth", "length") else ()),
        )
        found, why = run_one([sys.executable, "-m", f"benchmarks.{name}", *more], given.limit)
        if found is None:
            failed.append(name)
            found = {"failed": why}
        found = {"benchmark": name, **found} | ({"quick": True} if given.quick else {})
        write(given.results, name, found)
        print(f"  {f'failed: {why}' if why else 'done'}, {time.perf_counter() - began:.0f} s", flush=True)
    files = sorted(given.results.glob("*.json"))
    text = table([json.loads(path.read_text()) for path in files])
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "table.md").write_text(text)
    print(f"\n{text}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
