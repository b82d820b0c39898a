"""Seconds and memory that the reading verbs take on many rows, also beside those of another checkout.

`python -m benchmarks.million_rows --points 100x1000,1000x1000 --before ../old`

Writes sealed runs of one pair as `run` would (ten methods, several adapters of each, under two controls
on ten tasks, with prompts, digests, failed documents and latencies of the first ones), and a second set
in which one method is worse; the runs of further adapters repeat the rows of the first. Then it runs each
verb in a process of its own. A point is RUNSxDOCUMENTS.
Digests of columns are real, those of rows in the first twenty runs: a sealed run is not held against them.
Both checkouts read the same folders, and what they print must be equal. Peak memory is that process's;
`floor` is one that only imports.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._common import ROOT, commit, cpu_model
from lcfbench.provenance import digest
from lcfbench.results.manifest import MANIFEST
from lcfbench.results.schema import COLUMNS, DIGEST, SAMPLES, SCHEMA_VERSION, row_sha256, schema
from lcfbench.results.validation import columns_sha256, documents_sha256
from lcfbench.results.writer import run_id_of

METHODS = (*"receiver sharer full_context t2t c2c lcf dense prefix kvcomm identical".split(),)
ALONE = METHODS[:3]  # send nothing
TASKS, TIMED, FAILED = 10, 50, 0.001
PAIR = "smollm2-135m:gemma3-270m"
TEXT = "Notes: The key of Kafi is in the orange box. Zona works as a farmer. " * 8  # some 500 characters
F1 = np.unique([2 * k / (p + g) for p in range(1, 9) for g in range(1, 9) for k in range(min(p, g) + 1)])
LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "lcfbench", "datasets", "numpy", "pyarrow")
REAL = 20  # runs whose rows have their real digests
LIMIT = 900.0  # seconds that a verb may take
AT_SCALE = "show verdict compare check plot report ls watch load_summary jsonl publish".split()


class Drawn(NamedTuple):
    """One task's documents. ease: what makes a document easy is the same in every run: they are paired."""

    name: str
    hashes: list[str]
    prompts: list[str]
    ease: np.ndarray
    graded: bool


def drawn(number: int, documents: int) -> Drawn:
    """The documents of a task; every other one is scored as F1."""
    hashes = [f"{number:02}{i:014x}" for i in range(documents)]
    prompts = [hashlib.sha256(text.encode()).hexdigest() for text in hashes]
    return Drawn(
        f"task{number}", hashes, prompts, np.random.default_rng(number).random(documents), number % 2 > 0
    )


def write_runs(out: Path, runs: int, documents: int) -> None:
    """Writes sealed runs: those of each task differ in method, control and adapter."""
    for t in range(TASKS):
        task, tables = drawn(t, documents), dict[tuple[str, str], tuple[pa.Table, dict[str, str]]]()
        asked = itertools.islice(_asked(), runs // TASKS + (t < runs % TASKS))
        for number, (variant, mode, control) in enumerate(asked):
            rng = np.random.default_rng([t, number])
            gain = 0.03 * METHODS.index(mode) * (control == "matched")
            score = (task.ease + 0.1 * rng.standard_normal(documents) + gain > 0.5).astype(float)
            if task.graded:
                score = F1[np.floor(score * rng.beta(4, 1, documents) * (len(F1) - 1)).astype(int)]
            identity = {"pair": PAIR, "receiver": PAIR.partition(":")[0], "sharer": PAIR.partition(":")[2]}
            identity |= {"mode": mode, "control": control, "task": task.name, "scoring": "cloze"}
            identity |= {"seed": 0, "limit": documents, "options": {}, "dtype": "float32", "device": "cpu"}
            identity |= {"versions": dict.fromkeys(LIBRARIES[:4], "1.2.3"), "behaviour": 2, "batch_size": 16}
            identity |= {"task_sha256": hashlib.sha256(task.name.encode()).hexdigest()}
            if mode not in ALONE:
                identity["adapter_sha256"] = hashlib.sha256(f"{mode} {variant}".encode()).hexdigest()
            elif variant:
                identity["task_options"] = {"variant": variant}
            if (mode, control) not in tables:
                table = rows_of(identity, task, score, rng, number * TASKS + t < REAL)
                tables[mode, control] = table, columns_sha256(table)
            write_run(out, identity, *tables[mode, control])


def write_other(base: Path, out: Path, documents: int, worse: float) -> None:
    """As `base`, of which all but the runs of lcf are linked."""
    runs = sorted(path for path in base.iterdir() if not path.name.startswith("lcf-"))
    for path in runs:
        (out / path.name).mkdir(parents=True)
        for file in path.iterdir():
            os.link(file, out / path.name / file.name)
    for path in base.glob("lcf-*"):
        manifest = json.loads((path / MANIFEST).read_text())
        table = pq.read_table(path / SAMPLES, schema=schema())
        rng = np.random.default_rng(documents)
        score = np.where(rng.random(documents) < worse, 0.0, table["score"].to_numpy())
        table = table.set_column(table.column_names.index("score"), schema().field("score"), pa.array(score))
        write_run(out, manifest["identity"], table, columns_sha256(table))


def _asked() -> Iterator[tuple[int, str, str]]:
    for variant in itertools.count():
        for mode, control in itertools.product(METHODS, ("matched", "deranged")):
            yield variant, mode, control


def rows_of(
    identity: dict[str, Any], task: Drawn, score: np.ndarray, rng: np.random.Generator, real: bool
) -> pa.Table:
    """The rows of a run. real: with real digests of the rows."""
    run_id, n, sends = run_id_of(identity), len(score), identity["mode"] not in ALONE
    timed = np.where(np.arange(n) < TIMED, 100 + 20 * rng.random(n), np.nan)
    failed = rng.random(n) < FAILED
    same = {k: v for k, v in identity.items() if k in COLUMNS and isinstance(v, COLUMNS[k])} | {
        **{"run_id": run_id, "schema_version": SCHEMA_VERSION, "metric": "f1" if task.graded else "acc"},
        **{"amortized_ms": 20.0, "prediction": "orange → Seoul", "gold": "Seoul", "parsed": True},
        **{"message_bytes": 1920 * sends, "adapter_bytes": 3_400_000 * sends, "flops": 3.8e10},
        **{"adapter_params": 1_600_000 * sends, "receiver_tokens": 140, "sharer_tokens": 150},
        **{"receiver_prompt": TEXT, "sharer_prompt": TEXT, "written_at": "2026-01-01T00:00:00+00:00"},
    }
    columns: dict[str, list[Any]] = {
        **{name: task.hashes for name in ("doc_hash", "doc_id")},
        **({"message_from": task.hashes} if sends else {}),
        **{f"{role}_prompt_sha256": task.prompts for role in ("receiver", "sharer")},
        **{"doc_index": list(range(n)), "score": np.where(failed, 0.0, score).tolist()},
        "error": ["CUDA out of memory" if bad else None for bad in failed.tolist()],
        **{
            name: [x * share if x == x else None for x in timed.tolist()]
            for name, share in (("ttft_ms", 1.0), ("ttea_ms", 1.2), ("sharer_ms", 0.4), ("prefill_ms", 0.6))
        },
    }
    columns[DIGEST] = digests(same, columns) if real else [rng.bytes(8).hex() for _ in range(n)]
    kinds = schema()
    arrays = [
        pa.array(columns[name], kinds.field(name).type)
        if name in columns
        else pa.repeat(pa.scalar(same.get(name), kinds.field(name).type), n)
        for name in COLUMNS
    ]
    return pa.Table.from_arrays(arrays, schema=kinds)


def write_run(out: Path, identity: dict[str, Any], table: pa.Table, sealed: dict[str, str]) -> None:
    """Rows as a run, as a `RunWriter` leaves it, without its waits for the disk. sealed: their digests."""
    folder, n = out / run_id_of(identity), len(table)
    name = pa.repeat(pa.scalar(folder.name), n)
    table = table.set_column(0, schema().field("run_id"), name)
    folder.mkdir(parents=True)
    pq.write_table(table, folder / SAMPLES, compression="zstd")
    environment = {"libraries": dict.fromkeys(LIBRARIES, "1.2.3"), "git": {"commit": 40 * "0"}}
    environment |= {"python": "3.11", "cpu": "a CPU", "cpus": 2, "device": "cpu", "threads": 1}
    facts = {"identity": identity, "digest": digest(identity), "schema_version": SCHEMA_VERSION}
    facts |= {"run_id": folder.name, "state": "complete", "pid": 1, "environment": environment}
    facts |= {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T01:00:00+00:00"}
    facts |= {"sessions": [{"at": facts["started_at"], "environment": environment}]}
    facts |= {"sends": identity["mode"] not in ALONE}
    facts |= {"recipe": {name: None for name in identity} | {"max_failed": "0.5"}, "chance": 0.25}
    facts |= {"documents": n, "documents_planned": n, "errors": n - table["error"].null_count}
    facts |= {"documents_sha256": documents_sha256(table["doc_hash"].to_pylist())}
    facts |= {"columns_sha256": sealed | columns_sha256(table.select(["run_id", "doc_hash"]))}
    facts |= {"samples_bytes": (folder / SAMPLES).stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2))


def digests(same: dict[str, Any], columns: dict[str, list[Any]]) -> list[str]:
    """`row_sha256` of every row, ten times as fast: the text of the constants is made once."""
    names = sorted({*same, *columns})
    parts = [f'"{name}": {json.dumps(same[name])}' if name in same else "" for name in names]
    texts = [[None if x is None else f'"{n}": {json.dumps(x)}' for x in columns.get(n, ())] for n in names]
    found = []
    for i in range(len(columns["doc_hash"])):
        row = (part or texts[k][i] for k, part in enumerate(parts))
        found.append(hashlib.sha256(f"{{{', '.join(filter(None, row))}}}".encode()).hexdigest()[:16])
    for i in {0, len(found) // 2, len(found) - 1} & {*range(len(found))}:
        assert found[i] == row_sha256(same | {name: values[i] for name, values in columns.items()})
    return found


CHILD = """
import resource, sys
sys.argv = ["lcfbench", *sys.argv[1:]]
if sys.argv[1] == "load_summary":
    import lcfbench
    print(lcfbench.load_summary(sys.argv[2]).to_csv())
else:
    from lcfbench import cli
    try:
        cli.main()
    except SystemExit:
        pass
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("used", peak, used.ru_utime + used.ru_stime, file=sys.stderr)
"""


class Used(NamedTuple):
    """What a verb took: wall clock and processor seconds, peak MB, and a digest of what it printed."""

    seconds: float
    cpu: float
    mb: float
    printed: str


def measure(checkout: Path, call: tuple[object, ...], limit: float = LIMIT) -> Used | None:
    """Runs a verb of a checkout; None where it takes longer than the limit."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "200"}
    began, found, size = time.perf_counter(), hashlib.sha256(), 0
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, call)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    late = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(int(limit))
    assert process.stdout is not None and process.stderr is not None
    for block in iter(lambda: process.stdout.read(1 << 20), b""):
        found.update(block)
        size += len(block)
    said = process.stderr.read().decode()
    code = process.wait()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, late)
    if code == -signal.SIGKILL and time.perf_counter() - began >= limit:
        return None
    words = said.split()
    if code or "used" not in words[-3:]:
        raise SystemExit(f"{' '.join(map(str, call))} ended with {code}: {said[-2000:]}")
    seconds = time.perf_counter() - began
    return Used(seconds, float(words[-1]), int(words[-2]) / 1024, f"{size} {found.hexdigest()[:16]}")


def calls(base: Path, new: Path, scratch: Path) -> dict[str, tuple[object, ...]]:
    """The verbs by name."""
    return {
        "show": ("show", base, "--csv"),
        "verdict": ("verdict", base, "--csv"),
        "compare": ("compare", base, new, "--csv"),
        "check": ("check", base, new),
        "plot": ("plot", "frontier", base, "--out", scratch),
        "report": ("report", base, "-o", scratch / "report.html"),
        "ls": ("ls", "runs", "--out", base, "--json"),
        "watch": ("watch", base, "--once", "--json"),
        "load_summary": ("load_summary", base),
        "jsonl": ("export", "jsonl", base, "-o", "/dev/stdout"),
        "publish": ("publish", base, "--dry-run", "--to", scratch / "published"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", default="200x500,1000x1000", help="RUNSxDOCUMENTS, by commas")
    parser.add_argument("--verbs", default=",".join(AT_SCALE), help="which of them, by commas")
    parser.add_argument("--before", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a verb may take")
    parser.add_argument("--scratch", type=Path, help="folder for the runs; the system's by default")
    args = parser.parse_args()
    sides = {"before": args.before.resolve()} if args.before else {}
    sides["now"] = ROOT
    floors = {name: measure(side, ("ls", "methods")) for name, side in sides.items()}
    found: dict[str, Any] = {"machine": cpu_model(), "commit": commit(), "load": list(os.getloadavg())}
    found["floor_mb"] = {name: round(floor.mb) for name, floor in floors.items() if floor}
    found["points"] = []
    print(f"{'verb':<14}{'runs':>8}{'rows':>12}{'side':>8}{'seconds':>10}{'cpu s':>10}{'peak MB':>10}")
    for point in args.points.split(","):
        runs, documents = map(int, point.split("x"))
        with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
            base, new = Path(temporary) / "a", Path(temporary) / "b"
            began = time.perf_counter()
            write_runs(base, runs, documents)
            if {"compare", "check"} & {*args.verbs.split(",")}:
                write_other(base, new, documents, worse=0.02)
            bytes_ = sum(p.stat().st_size for p in base.glob("*/*"))
            print(f"wrote {runs} runs, {bytes_ / 1e6:,.0f} MB, {time.perf_counter() - began:.0f} s")
            for verb, side in itertools.product(args.verbs.split(","), sides):
                with tempfile.TemporaryDirectory(dir=temporary) as scratch:
                    call = calls(base, new, Path(scratch))[verb]
                    used = measure(sides[side], call, args.limit)
                    files = [] if verb != "report" else [*Path(scratch).glob("report.html")]
                    made = [hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files]
                about = {"verb": verb, "runs": runs, "rows": runs * documents, "side": side}
                line = (
                    dict(zip(Used._fields[:3], map(round, used[:3], (2, 2, 0)), strict=True)) if used else {}
                )
                printed = [used.printed, *made] if used and verb not in ("plot", "publish", "watch") else []
                if verb == "report":  # it prints the file's path
                    printed = made
                if other := next(
                    (
                        p
                        for p in found["points"]
                        if p["verb"] == verb
                        and p["rows"] == about["rows"]
                        and p["runs"] == runs
                        and p["printed"]
                    ),
                    None,
                ):
                    assert not printed or other["printed"] == printed, f"{verb}: the two print other things"
                found["points"].append(about | line | {"printed": printed})
                told = [f"{line[k]:>10,}" if line else f"{'> limit':>10}" for k in Used._fields[:3]]
                print(f"{verb:<14}{runs:>8,}{about['rows']:>12,}{side:>8}{''.join(told)}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
