"""Seconds and memory that the reading verbs take on many rows.

`python benchmarks/million_rows.py --rows 1000000`.

Writes runs of one pair as `run` would (ten methods under two controls on ten tasks, each with its
prompts), and a second set in which one method is worse; then runs each verb in a process of its
own. Peak memory is that process's; `floor` is one that only imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcfbench.files import write_json
from lcfbench.results.schema import COLUMNS, SCHEMA_VERSION, schema

METHODS = (
    "receiver",
    "sharer",
    "full_context",
    "t2t",
    "c2c",
    "lcf",
    "dense",
    "prefix",
    "kvcomm",
    "identical",
)
PAIR = "smollm2-135m:gemma3-270m"
TEXT = (
    "Notes: The key of Kafi is in the orange box. Zona works as a farmer. " * 8
)  # a prompt of some 500 characters


def write_runs(out: Path, rows: int, worse: float = 0.0, seed: int = 0) -> None:
    """`rows` rows as 20 runs on each of ten tasks; F1-like scores on every other task."""
    documents = rows // (len(METHODS) * 2 * 10)
    for t in range(10):
        # what makes a document easy is the same in every run, so that runs are paired
        ease, hashes = (
            np.random.default_rng(t).random(documents),
            [f"{t:02}{i:014x}" for i in range(documents)],
        )
        for m, mode in enumerate(METHODS):
            for control in ("matched", "deranged"):
                rng = np.random.default_rng([seed, t, m, control == "matched"])
                gain = 0.03 * m * (control == "matched") - worse * (mode == "lcf")
                score = (ease + 0.1 * rng.standard_normal(documents) + gain > 0.5).astype(float)
                if t % 2:
                    score = np.clip(score * rng.beta(4, 1, documents), 0, 1)
                identity = {
                    "pair": PAIR,
                    "mode": mode,
                    "control": control,
                    "task": f"task{t}",
                    "scoring": "cloze",
                    "seed": 0,
                    "options": {},
                }
                _write(out / f"{mode}-task{t}-{control}-{seed:010}", identity, hashes, score, rng)


def _write(
    folder: Path, identity: dict, hashes: list[str], score: np.ndarray, rng: np.random.Generator
) -> None:
    n = len(hashes)
    sends = identity["mode"] not in METHODS[:3]
    timed = np.where(np.arange(n) < 50, 100 + 20 * rng.random(n), np.nan)
    columns = {
        **{name: identity[name] for name in ("pair", "mode", "control", "task", "scoring", "seed")},
        **{
            "run_id": folder.name,
            "schema_version": SCHEMA_VERSION,
            "receiver": "smollm2-135m",
            "sharer": "gemma3-270m",
        },
        **{
            "doc_hash": hashes,
            "doc_id": hashes,
            "doc_index": np.arange(n),
            "metric": "f1" if identity["task"][-1] in "13579" else "acc",
        },
        **{
            "score": score,
            "ttft_ms": timed,
            "ttea_ms": timed * 1.2,
            "sharer_ms": timed * 0.4,
            "prefill_ms": timed * 0.6,
        },
        **{
            "amortized_ms": 20.0,
            "message_bytes": 1920 * sends,
            "adapter_bytes": 3_400_000 * sends,
            "adapter_params": 1_600_000 * sends,
        },
        **{
            "prediction": "orange → Seoul",
            "gold": "Seoul",
            "message_from": hashes,
            "receiver_prompt": TEXT,
            "sharer_prompt": TEXT,
        },
    }
    kinds = schema()
    arrays = []
    for name in COLUMNS:
        value, kind = columns.get(name), kinds.field(name).type
        whole = (
            pa.array(value, kind, from_pandas=True)
            if isinstance(value, (list, np.ndarray))
            else pa.repeat(pa.scalar(value, kind), n)
        )
        arrays.append(whole)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), folder / "samples.parquet", compression="zstd")
    write_json(
        folder / "manifest.json",
        {"run_id": folder.name, "state": "complete", "identity": identity, "documents": n, "errors": 0},
    )


CHILD = """
import resource, sys
sys.argv = ["lcfbench", *sys.argv[1:]]
from lcfbench import cli
try:
    cli.main()
except SystemExit:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def measure(*args: object) -> tuple[float, float]:
    """(seconds, peak MB) of a verb."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, args)], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, int(done.stderr.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each of the two sets")
    parser.add_argument("--smaller", type=int, default=100_000, help="rows of the set they are held against")
    args = parser.parse_args()
    floor = measure("ls", "methods")
    found = {"rows": args.rows, "floor_mb": round(floor[1])}
    print(
        f"{'verb':<10}{'rows':>10}{'seconds':>10}{'peak MB':>10}    "
        f"(an empty process: {floor[0]:.1f} s, {floor[1]:.0f} MB)"
    )
    for rows in (args.smaller, args.rows):
        with tempfile.TemporaryDirectory() as temporary:
            base, new = Path(temporary) / "a", Path(temporary) / "b"
            write_runs(base, rows)
            write_runs(new, rows, worse=0.02, seed=1)
            verbs = {
                "show": ("show", base, "--csv"),
                "verdict": ("verdict", base, "--csv"),
                "compare": ("compare", base, new, "--csv"),
                "check": ("check", base, new),
                "plot": ("plot", "frontier", base, "--out", temporary),
                "report": ("report", base, "-o", Path(temporary) / "report.html"),
            }
            for name, call in verbs.items():
                seconds, peak = measure(*call)
                found[f"{name}_{rows}"] = [round(seconds, 2), round(peak)]
                print(f"{name:<10}{rows:>10,}{seconds:>10.1f}{peak:>10.0f}", flush=True)
    found["this_process_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
