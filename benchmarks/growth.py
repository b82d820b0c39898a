"""Cost growth.

Documents a second and memory from 100 to 10,000 documents, prefill by prompt length, and resuming a
long run.

python benchmarks/growth.py --out benchmarks/results/growth.json --figures benchmarks/results
python benchmarks/growth.py --real                 # also the embedded receiver, on 100 and 1,000 documents

Documents are generated (splitfacts). A random model of two narrow layers answers them, so that the
harness's own work shows: what it does a document must not depend on how many there are. Every size
runs in a process of its own, since memory once taken is not given back.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import ROOT, parser, report

SIZES = (100, 1000, 5000, 10_000)
FEW = 1000  # documents that the longest run is held against
REAL_SIZES = (100, 1000)
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
FLAT = 1.25  # the slowest part of the largest run may cost so many times the median part
RESUME_SECONDS = 10.0


class Watch:
    """A run's progress with the moment and the memory of every batch."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.began, self.stop_at = time.perf_counter(), stop_at
        self.rows: list[
            tuple[int, float, float, int]
        ] = []  # documents recorded, seconds, CPU seconds, bytes resident at most

    def say(self, text: str) -> None: ...

    warn = say

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.update(title, right, done)

    def rolling(self) -> None: ...

    def update(self, title: str, right: float, done: int) -> None:
        self.rows.append(
            (done, time.perf_counter() - self.began, time.process_time(), resident_bytes("VmHWM"))
        )
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt

    def end(self, title: str) -> None: ...


def resident_bytes(name: str) -> int:
    """`VmRSS` or, since a run last reset it, `VmHWM`; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def once(given: argparse.Namespace) -> dict[str, Any]:
    """One run in this process: what the watch saw."""
    from lcfbench.evaluation.recipe import Recipe
    from lcfbench.evaluation.runner import run
    from lcfbench.progress import quiet_libraries

    quiet_libraries()
    chosen = {
        "pair": f"{given.model}:{given.model}",
        "mode": ["receiver"],
        "processes": 1,
        "limit": given.documents,
        "out": given.folder,
    }
    chosen |= {
        "task_options": {"n": str(given.most)},
        "latency_documents": 0,
        "batch_size": given.batch_size,
        "dtype": given.dtype,
    }
    watch = Watch(given.stop_at or None)
    try:
        list(run(Recipe.model_validate(chosen), watch))
    except KeyboardInterrupt:
        if not given.stop_at:
            raise
    return {
        "rows": watch.rows,
        "seconds": time.perf_counter() - watch.began,
        "peak_bytes": max((resident_bytes("VmHWM"), *(row[3] for row in watch.rows))),
    }


def apart(
    out: Path, model: str, documents: int, most: int, batch_size: int, dtype: str, stop_at: int = 0
) -> dict[str, Any]:
    """`once` in a fresh process. most: documents of the task, the same for all sizes of one curve."""
    line = [
        sys.executable,
        __file__,
        "--one",
        "--folder",
        str(out),
        "--model",
        model,
        "--documents",
        str(documents),
        "--most",
        str(most),
    ]
    line += ["--batch-size", str(batch_size), "--dtype", dtype, "--stop-at", str(stop_at)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def parts(rows: list[list[float]], pieces: int = 10) -> list[float]:
    """CPU milliseconds a document in successive parts of a run."""
    edges = [rows[round(i * (len(rows) - 1) / pieces)] for i in range(min(pieces, len(rows) - 1) + 1)]
    return [1e3 * (b[2] - a[2]) / (b[0] - a[0]) for a, b in pairwise(edges) if b[0] > a[0]]


def sizes_of(
    name: str, model: str, sizes: tuple[int, ...], given: argparse.Namespace, folder: Path, dtype: str
) -> list[dict[str, Any]]:
    """One result a size."""
    out = []
    for n in sizes:
        seen = apart(folder / f"{name}-{n}", model, n, n, given.batch_size, dtype)
        rows, each = seen["rows"], parts(seen["rows"])
        found = {
            "case": f"{name}, {n} documents",
            "documents": n,
            "documents_per_s": n / (rows[-1][1] - rows[0][1]),
            "cpu_ms_per_document": 1e3 * (rows[-1][2] - rows[0][2]) / n,
            "cpu_ms_per_document_in_tenths": each,
            "seconds_before_the_first_batch": rows[0][1],
            "seconds_after_the_last_batch": seen["seconds"] - rows[-1][1],
            "bytes_at_the_first_batch": rows[1][3],
            "peak_bytes": seen["peak_bytes"],
        }
        print(
            f"{found['case']}: {found['documents_per_s']:.1f} documents/s, "
            f"{found['cpu_ms_per_document']:.2f} CPU ms each, "
            f"{rows[0][1]:.1f} s before, {found['seconds_after_the_last_batch']:.2f} s after, "
            f"peak {seen['peak_bytes'] / 1e6:.0f} MB"
        )
        out.append(found)
    return out


def resumed(model: str, given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Seconds from the start of the command's work to its first new row.

    Of a run stopped near its end, and of a killed one; and to the end of one that was complete.
    """
    n, out = given.most, folder / "resume"
    stopped = apart(
        out, model, n, n, given.batch_size, "float32", stop_at=n - max(n // 100, 2 * given.batch_size)
    )
    again = apart(out, model, n, n, given.batch_size, "float32")
    complete = apart(out, model, n, n, given.batch_size, "float32")
    assert again["rows"][0][0] == stopped["rows"][-1][0] and not complete["rows"], (
        "nothing is run twice, nothing is left out"
    )
    results = []
    for case, seconds in (
        (f"{n} rows, stopped at {stopped['rows'][-1][0]}", again["rows"][1][1]),
        (f"{n} rows, complete", complete["seconds"]),
    ):
        print(f"resume, {case}: {seconds:.1f} s")
        what = "is found complete" if "complete" in case else "writes its first new row"
        claim = f"a resumed run ({case}) {what} within {RESUME_SECONDS:g} s, imports included"
        results.append(
            {
                "case": f"resume: {case}",
                "claim": claim,
                "ratio": seconds,
                "unit": "s",
                "target": RESUME_SECONDS,
                "better": "lower",
            }
        )
    return results


def prefill(name: str, repeats: int) -> dict[str, Any]:
    """Milliseconds to prefill a prompt of each length, a fit a + b·n + c·n², attention's share of FLOPs."""
    import torch

    from lcfbench.models.causal_lm import CausalLM
    from lcfbench.progress import quiet_libraries
    from lcfbench.sources.models import find_model

    quiet_libraries()
    end = CausalLM.load(find_model(name))
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(10, len(end.tokenizer) - 10, (max(LENGTHS),), generator=seeded).tolist()
    ms: dict[int, list[float]] = {n: [] for n in LENGTHS}
    with torch.inference_mode():
        for number in range(repeats + 1):
            for n in LENGTHS:
                began = time.perf_counter()
                end.prefill([ids[:n]])
                if number:
                    ms[n].append(1e3 * (time.perf_counter() - began))
    taken = {n: min(each) for n, each in ms.items()}  # the least disturbed; medians are beside it
    x, y = np.array(LENGTHS, float), np.array(list(taken.values()))
    a, b, c = np.linalg.lstsq(
        np.stack([np.ones_like(x), x, x * x], 1) / y[:, None], np.ones_like(y), rcond=None
    )[0]  # errors in per cent
    share = {n: end.attention_flops(n, tokens=(n + 1) / 2) / end.flops(n) for n in LENGTHS}
    off = max(abs(a + b * n + c * n * n - t) / t for n, t in taken.items())
    print(
        f"prefill of {name}: {a:.2f} + {b:.4f}·n + {c:.3e}·n² ms, at most {100 * off:.0f} % off; "
        f"attention {100 * share[2048]:.0f} % of FLOPs at 2048"
    )
    return {
        "case": f"prefill of {name}, 32 to 2048 tokens",
        "ms": taken,
        "median_ms": {n: statistics.median(each) for n, each in ms.items()},
        "tokens_per_s": {n: 1e3 * n / t for n, t in taken.items()},
        "fit_ms": {"constant": a, "per_token": b, "per_token_squared": c, "largest_error": off},
        "attention_share_of_flops": share,
        "quadratic_share_of_ms": {n: c * n * n / (a + b * n + c * n * n) for n in LENGTHS},
        "dtype": str(end.dtype).removeprefix("torch."),
    }


def draw(results: list[dict[str, Any]], folder: Path) -> None:
    """Three small pictures in one file: cost a document, memory, prefill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (cost, memory, length) = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    curves: dict[str, list[dict[str, Any]]] = {}
    for result in (r for r in results if "documents" in r):
        curves.setdefault(result["case"].partition(",")[0], []).append(result)
    for name, curve in curves.items():
        x = [r["documents"] for r in curve]
        cost.plot(x, [r["cpu_ms_per_document"] for r in curve], "o-", label=name)
        memory.plot(x, [r["peak_bytes"] / 1e6 for r in curve], "o-", label=name)
    for axes, label in ((cost, "CPU ms a document"), (memory, "peak memory, MB")):
        axes.set(xscale="log", xlabel="documents", ylabel=label, ylim=(0, 1.15 * axes.dataLim.y1))
        axes.legend(frameon=False)
    for result in (r for r in results if "fit_ms" in r):
        fit, x = result["fit_ms"], np.geomspace(min(LENGTHS), max(LENGTHS), 100)
        (line,) = length.plot(
            x, fit["constant"] + fit["per_token"] * x + fit["per_token_squared"] * x * x, lw=1
        )
        length.plot(
            list(result["ms"]),
            list(result["ms"].values()),
            "o",
            color=line.get_color(),
            label=result["case"].split(",")[0],
        )
    length.set(
        xscale="log", yscale="log", xlabel="prompt tokens", ylabel="ms, batch 1 (line: a + b·n + c·n²)"
    )
    length.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "growth.png", dpi=90)


def main() -> None:
    """Prints a line a measurement, then JSON."""
    made = parser(__doc__, documents=0, most=max(SIZES), batch_size=16, repeats=3, dtype="float32", stop_at=0)
    made.add_argument(
        "--real", action="store_true", help="also the embedded receiver, on 100 and 1,000 documents: minutes"
    )
    made.add_argument("--receiver", default="smollm2-135m")
    made.add_argument("--figures", type=Path, help="folder for growth.png")
    made.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--model", help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.one:
        print(json.dumps(once(given)))
        return
    from benchmarks._tiny_model import save_tiny

    with tempfile.TemporaryDirectory() as folder:
        tiny = str(save_tiny(Path(folder) / "tiny"))
        sizes = tuple(n for n in SIZES if n <= given.most)
        results = sizes_of("a model of 2 narrow layers", tiny, sizes, given, Path(folder), "float32")
        tenths = results[-1]["cpu_ms_per_document_in_tenths"]
        steady = max(tenths) / statistics.median(tenths)
        of = dict(zip(sizes, results, strict=True))
        few, many = max(n for n in sizes[:-1] if n <= FEW), sizes[-1]
        grown = of[many]["cpu_ms_per_document"] / of[few]["cpu_ms_per_document"]
        flat = {"better": "lower", "target": FLAT}
        results += [
            {
                "case": "cost a document",
                "claim": f"a document of {many} costs what one of {few} does",
                "ratio": grown,
                **flat,
            },
            {
                "case": "cost within a run",
                "claim": "no tenth of the longest run costs more than the median tenth",
                "ratio": steady,
                **flat,
            },
        ]
        for less in dict.fromkeys((few, sizes[-2])):
            from_ = "" if less == few else f", beyond {less} documents"
            results.append(
                {
                    "case": f"memory{from_}",
                    "claim": f"bytes of memory a further document needs{from_} (its text lies in a file)",
                    "ratio": (of[many]["peak_bytes"] - of[less]["peak_bytes"]) / (many - less),
                    "unit": "B",
                    "better": "lower",
                    "target": 2_000,
                }
            )
        results += resumed(tiny, given, Path(folder))
        if given.real:
            results += sizes_of(given.receiver, given.receiver, REAL_SIZES, given, Path(folder), "auto")
    results.append(prefill(given.receiver, given.repeats))
    if given.figures:
        draw(results, given.figures)
    report("growth", results, given.out)


if __name__ == "__main__":
    main()
