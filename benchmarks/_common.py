"""What the benchmarks of this folder share.

Both sides in turn, the paired ratio with its spread, the machine, one JSON line at the end.

>>> times = turns({"ours": ours, "theirs": theirs}, repeats=5)          # ours, theirs, ours, theirs, …
>>> results = [{"case": "prefill", "ratio": ratio(times, of="theirs", to="ours"), "target": 2.0}]
>>> report("my_benchmark", results, given.out, dtype="bfloat16")

A result is a flat dict. For the table (`python benchmarks/run_all.py --table`) give it `case`,
`claim` (one sentence), `ratio` (from `ratio`, or a number) and `target`; `met` is worked out: the
ratio is at least the target, or, with `"better": "lower"`, at most it. A result without a `target`
is shown for information. `differing`: how many answers differ between the sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
CLOCKS = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}  # cpu: where others use the machine; one thread
ROOT = Path(__file__).resolve().parents[1]


def turns(
    sides: Mapping[str, Callable[[], T]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    check: Callable[[dict[str, T]], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, run in turn.

    The order swaps every round (A, B, B, A, …), so that neither always follows the other.

    warm_up: rounds before the clock counts. check: gets what the sides returned, after every round,
    before its times count; it raises where they may not be compared. clock: one of `CLOCKS`. CUDA
    work is waited for.
    """
    assert repeats > 0, "nothing would be measured"
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm_up, repeats):
        order, returned, taken = list(sides), {}, {}
        for name in order[:: -1 if number % 2 else 1]:
            _wait()
            began = clock()
            returned[name] = sides[name]()
            _wait()
            taken[name] = clock() - began
        if check is not None:
            check(returned)
        if number >= 0:
            for name in sides:
                times[name].append(taken[name])
    return times


def _wait() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, float]:
    """Time of `of` ÷ time of `to`, paired round by round: the median, the lowest and the highest.

    "theirs" of "ours" says how many times faster ours is.
    """
    pairs = [a / b for a, b in zip(times[of], times[to], strict=True)]
    return {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}


def seconds(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(taken) for name, taken in times.items()}


def shown(found: Mapping[str, float] | float) -> str:
    """`3.14 (3.02–3.31)`."""
    if isinstance(found, Mapping):
        return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
    return f"{found:.3g}"


def facts() -> dict[str, Any]:
    """Where and with what it was measured."""
    import torch
    import transformers

    import lcfbench

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "machine": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lcfbench": lcfbench.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def cpu_model() -> str:
    """The processor's name where the system tells, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with `+` where files differ from it; None outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.strip() else "")


def rounded(value: Any, digits: int = 4) -> Any:
    """The same with floats to so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, (list, tuple)) else value


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with --out (where the JSON goes too) and, by keyword, the options many share.

    Repeats, documents, dtype, …
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        made.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )
    made.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: on a busy machine, with OMP_NUM_THREADS=1"
    )
    made.add_argument("--out", type=Path, help="also write the JSON here")
    return made


def report(name: str, results: Sequence[Mapping[str, Any]], out: Path | None = None, **more: Any) -> None:
    """Prints the JSON line that ends a benchmark; with `out`, also writes it there, keys sorted."""
    line = {"benchmark": name, **facts(), **more, "results": list(results)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rounded(line), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(json.dumps(rounded(line), ensure_ascii=False))


@contextmanager
def told(name: str) -> Iterator[None]:
    """Makes the reason of a failure the JSON line that ends the process."""

    def hook(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        traceback.print_exception(kind, error, at)
        why = " ".join(f"{kind.__name__}: {error}".split())[:500]
        print(json.dumps({"benchmark": name, "failed": why}), flush=True)

    before, sys.excepthook = sys.excepthook, hook
    yield
    sys.excepthook = before
