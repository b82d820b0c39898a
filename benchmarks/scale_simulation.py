"""Plays a plan of thousands of runs on 1–1,024 workers: makespan, use of the workers, what breaks first.

`python -m benchmarks.scale_simulation --figure benchmarks/results/scale_simulation.png`

Service times are measured here first: a real run of several methods gives loading, a run's set-up and the
time of every batch; a `RunWriter` of its rows gives what the process that writes takes a row and a run.
All are seconds of one processor, whatever else the machine does; waits for the disk are added.
Then events are played, blocks of batches at a time, in three ways:

- pool: one process hands batches out as workers become free, and appends and seals every row itself
  (`run --processes`, `run --on ray`); a worker has one block at a time and waits until it is recorded.
- shards: worker i of n answers its n-th part of the batches of every run (`run --shard i/n`).
- runs: worker i of n does every n-th run alone (a job array over `plan`).

Some workers are slow (Pareto), all are preempted at exponential times: the batch at hand is lost, and
the models are loaded again. The same seed gives the same numbers.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._common import ROOT, commit, cpu_model, rounded

RUNS, DOCUMENTS, BATCH = 10_000, 10_000, 16
WORKERS = tuple(2**i for i in range(11))
BLOCK = 100  # batches that are played as one event, fewer towards the end
PAIR, MODES, TASK = "smollm2-135m:gemma3-270m", ("receiver", "t2t", "lcf"), "splitfacts"


@dataclass(frozen=True)
class Service:
    """Seconds that parts of the work take. batches: of whole batches, drawn from with replacement.

    load: importing and loading the models. setup: of a run at a worker. append: of a row at the process
    that writes. hand: of a call and its reply there. opening, seal: of a run there; gather: of a shard.
    """

    batches: tuple[float, ...]
    load: float
    setup: float
    append: float
    hand: float
    opening: float
    seal: float
    gather: float


@dataclass(frozen=True)
class World:
    """What happens to workers.

    slow: share of workers that are slow, by a factor 1 + Pareto(tail), 10 at most. preempted: mean seconds
    between two preemptions of a worker; away: seconds until it is back.
    """

    slow: float = 0.05
    tail: float = 1.5
    preempted: float = math.inf
    away: float = 60.0
    seed: int = 0


class Played(NamedTuple):
    """Seconds until all is sealed, share of the workers' time that was spent on batches that count, share of
    the writing process's time that it was busy, preemptions."""

    makespan: float
    used: float
    writing: float
    preemptions: int


class Plan(NamedTuple):
    """runs × documents in batches; block: batches played as one event."""

    runs: int = RUNS
    documents: int = DOCUMENTS
    batch: int = BATCH
    block: int = BLOCK

    @property
    def batches(self) -> int:
        """Of one run."""
        return math.ceil(self.documents / self.batch)


def slowness(workers: int, world: World) -> np.ndarray:
    """(workers,) factors of their times, 1 for most."""
    rng = np.random.default_rng([world.seed, 1])
    factors = np.minimum(1 + rng.pareto(world.tail, WORKERS[-1] + workers)[:workers], 10.0)
    return np.where(rng.random(workers) < world.slow, factors, 1.0)


def ideal(plan: Plan, service: Service, workers: int) -> float:
    """Seconds without waits, slow workers and preemptions, the work cut as finely as one likes."""
    work = plan.runs * (plan.batches * statistics.fmean(service.batches))
    return service.load + work / workers


class _Draws:
    """Sums of k batch times, drawn many at a time."""

    def __init__(self, service: Service, seed: int) -> None:
        self.times, self.rng = np.array(service.batches), np.random.default_rng([seed, 2])
        self.kept: dict[int, list[float]] = {}

    def __call__(self, k: int) -> float:
        if not self.kept.get(k):
            self.kept[k] = self.rng.choice(self.times, (4096, k)).sum(axis=1).tolist()
        return self.kept[k].pop()


def play_pool(plan: Plan, service: Service, workers: int, world: World) -> Played:
    """One process hands out blocks, the runs one after another, and writes; see the module."""
    rng, draw = np.random.default_rng([world.seed, 3]), _Draws(service, world.seed)
    slow = slowness(workers, world).tolist()
    left = [[run, plan.batches] for run in reversed(range(plan.runs))]  # batches to hand out
    undone = dict[int, int]()  # batches that did not come back, of open runs
    writer = spent = end = 0.0  # when the writing process is free; how long it was busy
    useful, preemptions, remaining = 0.0, 0, plan.runs * plan.batches
    next_loss = (
        (np.array([service.load] * workers) + rng.exponential(world.preempted, workers)).tolist()
        if math.isfinite(world.preempted)
        else [math.inf] * workers
    )
    at_hand = [-1] * workers
    # (when, order, worker, run, batches, answered): what a worker brings at that time
    events = [(service.load, i, i, -1, 0, 0) for i in range(workers)]
    order = workers
    while events:
        when, _, worker, run, count, answered = heapq.heappop(events)
        busy = max(when, writer)
        cost = 0.0
        if run >= 0:
            rows = min(answered * plan.batch, plan.documents)
            cost += service.hand + rows * service.append
            undone[run] -= answered
            remaining -= answered
            if count > answered:  # preempted: what was lost is handed out again, first
                left.append([run, count - answered])
            if not undone[run]:
                del undone[run]
                cost += service.seal
        if left:
            mine = left[-1]
            if mine[0] not in undone:
                undone[mine[0]] = plan.batches
                cost += service.opening
        writer, spent = busy + cost, spent + cost
        end = max(end, writer)
        if not left:
            continue
        run, ready = mine[0], writer
        count = min(plan.block, mine[1], max(1, remaining // (2 * workers)))
        mine[1] -= count
        if not mine[1]:
            left.pop()
        if at_hand[worker] != run:
            ready, at_hand[worker] = ready + service.setup * slow[worker], run
        taken = draw(count) * slow[worker]
        answered = count
        if ready + taken > next_loss[worker]:
            answered = max(0, int(count * (next_loss[worker] - ready) / taken))
            preemptions += 1
            at_hand[worker] = -1
            back = max(next_loss[worker], ready) + world.away + service.load * slow[worker]
            useful += taken * answered / count
            finished = back
            next_loss[worker] = back + float(rng.exponential(world.preempted))
        else:
            useful, finished = useful + taken, ready + taken
        heapq.heappush(events, (finished, order, worker, run, count, answered))
        order += 1
    return Played(end, useful / (workers * end), spent / end, preemptions)


def play_apart(plan: Plan, service: Service, workers: int, world: World, whole_runs: bool) -> Played:
    """Workers that write for themselves and do not know of each other; see the module."""
    rng, slow = np.random.default_rng([world.seed, 4]), slowness(workers, world)
    numbers = np.arange(workers)
    if whole_runs:
        runs = (plan.runs - numbers + workers - 1) // workers
        batches = runs * plan.batches
    else:
        each = np.maximum((plan.batches - numbers + workers - 1) // workers, 0)  # of every run
        runs, batches = np.where(each > 0, plan.runs, 0), each * plan.runs
    times = np.array(service.batches)
    answering = (
        times.mean() * batches + times.std() * np.sqrt(batches) * rng.standard_normal(workers)
    ) * slow
    rows = np.minimum(batches * plan.batch, runs * plan.documents)
    own = service.opening + service.setup * slow + service.seal * rows / np.maximum(runs, 1) / plan.documents
    work = answering + runs * own + rows * service.append
    taken, lost = work.copy(), np.zeros(workers, dtype=int)
    if math.isfinite(world.preempted):
        lost = rng.poisson(work / world.preempted)
        again = world.away + (service.load + service.setup + times.mean() / 2) * slow
        lost += rng.poisson(lost * again / world.preempted)
        taken += lost * again
    end = float((service.load * slow + taken)[batches > 0].max())
    gathering = 0.0 if whole_runs or workers == 1 else _gathering(plan, service, workers)
    return Played(
        end + gathering, float(answering.sum() / (workers * (end + gathering))), 0.0, int(lost.sum())
    )


def _gathering(plan: Plan, service: Service, workers: int) -> float:
    """The last run's: the shards of the others are gathered while workers still answer."""
    return service.gather * min(workers, plan.batches) + service.seal


WAYS: dict[str, Callable[[Plan, Service, int, World], Played]] = {
    "pool": play_pool,
    "shards": partial(play_apart, whole_runs=False),
    "runs": partial(play_apart, whole_runs=True),
}


def files(plan: Plan, way: str, workers: int) -> int:
    """Files and folders at the fullest moment: a manifest and a table of each run, or of each shard."""
    if way != "shards" or workers == 1:
        return 3 * plan.runs
    return plan.runs * (2 + 3 * min(workers, plan.batches))  # before they are gathered


# -- what is measured -----------------------------------------------------------------------------


def measured(documents: int) -> tuple[Service, dict[str, Any]]:
    """Runs methods on real rows in a process of its own, then writes their rows again."""
    with tempfile.TemporaryDirectory() as temporary:
        code = (
            "import time, json, sys; import lcfbench\n"
            f"lcfbench.load_pair({PAIR!r}); load = time.process_time(); began = time.perf_counter()\n"
            f"lcfbench.run(pair={PAIR!r}, mode={list(MODES)}, task=[{TASK!r}], limit={documents},"
            f" dtype='float32', batch_size={BATCH}, latency_documents=0, out=sys.argv[1])\n"
            "print(json.dumps([load, time.process_time() - load, time.perf_counter() - began]))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, temporary],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        ).stdout
        load, whole, by_the_clock = json.loads(said.splitlines()[-1])
        from lcfbench.results.reader import load_samples

        rows = load_samples(temporary)
    batches: dict[str, list[float]] = {}
    share = min(1.0, whole / by_the_clock)  # of the processor that this run had
    for (mode, ms, size), part in rows.groupby(["mode", "amortized_ms", "batch_size"]):
        batches.setdefault(mode, []).extend([share * ms * size / 1000] * max(1, round(len(part) / size)))
    every = [seconds for times in batches.values() for seconds in times]
    setup = max(0.0, whole - sum(every)) / len(MODES)
    written = writing(rows.drop(columns=["run_id", "schema_version", "written_at", "row_sha256"]))
    own = {name: written[name] for name in ("append", "hand", "opening", "seal", "gather")}
    told = {mode: {"median_s": statistics.median(times), "n": len(times)} for mode, times in batches.items()}
    return Service(tuple(every), load, setup, **own), {
        "batches": told,
        **written,
        "run_s": whole,
        "share": share,
    }


def writing(rows: Any, documents: int = DOCUMENTS) -> dict[str, float]:
    """Seconds of the process that writes: a row, a run, a shard; MB that an open run of `documents` takes."""
    from lcfbench.results.reader import read_table
    from lcfbench.results.schema import COLUMNS
    from lcfbench.results.writer import RunWriter

    plain = [{k: v for k, v in row.items() if v == v and v is not None} for row in rows.to_dict("records")]
    plain = [{k: int(v) if COLUMNS[k] is int else v for k, v in row.items()} for row in plain]
    identity = {k: plain[0].get(k) for k in ("pair", "mode", "task", "control", "seed")}
    with tempfile.TemporaryDirectory() as temporary:
        before, began = _resident(), time.process_time()
        hashes = [f"{i:016x}" for i in range(documents)]
        writer = RunWriter.open(Path(temporary), identity, {}, documents=hashes)
        opening = time.process_time() - began + 2 * _sync(Path(temporary))
        began = time.process_time()
        for i, doc_hash in enumerate(hashes):
            writer.append(plain[i % len(plain)] | {"doc_hash": doc_hash, "doc_index": i})
        append, memory = (time.process_time() - began) / documents, _resident() - before
        journal = (writer.folder / "samples.jsonl").stat().st_size
        began = time.process_time()
        writer.finish()
        seal = time.process_time() - began + 3 * _sync(Path(temporary))
        small = RunWriter.open(Path(temporary) / "shard", identity, {}, documents=hashes[:BATCH])
        for i, doc_hash in enumerate(hashes[:BATCH]):
            small.append(plain[i % len(plain)] | {"doc_hash": doc_hash, "doc_index": i})
        small.finish()
        began = time.process_time()
        read_table(small.folder, tuple(COLUMNS), [])
        gather = time.process_time() - began
        sealed = (writer.folder / "samples.parquet").stat().st_size
    return {
        **{"append": append, "opening": opening, "seal": seal, "gather": gather, "hand": _hand()},
        **{"open_run_mb": memory, "journal_bytes_a_row": journal / documents},
        "sealed_bytes_a_row": sealed / documents,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _sync(folder: Path, times: int = 15) -> float:
    """Median seconds until a small file is on the disk."""
    taken = []
    with open(folder / "synced", "wb") as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _resident() -> float:
    """MB that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _hand(calls: int = 200) -> float:
    """Seconds of a call and its reply through pipes, a batch's rows pickled."""
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    line = json.dumps(["x" * 1000] * BATCH) + "\n"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            child.stdin.write(line)
            child.stdin.flush()
            json.loads(child.stdout.readline())
            times.append(time.perf_counter() - began)
        child.stdin.close()
    return statistics.median(times)


# -- what is shown --------------------------------------------------------------------------------


def curves(
    plan: Plan, service: Service, worlds: dict[str, World], speeds: Sequence[float]
) -> list[dict[str, Any]]:
    """A line for each way, world, speed of the workers and number of them."""
    lines = []
    for speed in speeds:
        faster = replace(
            service, batches=tuple(t / speed for t in service.batches), setup=service.setup / speed
        )
        for (name, world), (way, play), workers in (
            (w, p, n) for w in worlds.items() for p in WAYS.items() for n in WORKERS
        ):
            got = play(plan, faster, workers, world)
            best = ideal(plan, faster, workers)
            line = {"way": way, "world": name, "speed": speed, "workers": workers, **got._asdict()}
            lines.append(
                line | {"ideal": best, "over": got.makespan / best, "files": files(plan, way, workers)}
            )
    return lines


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Makespan over its ideal, and the use of the workers; a row for each speed of the workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    speeds = sorted({line["speed"] for line in lines})
    figure, axes = plt.subplots(len(speeds), 2, figsize=(9, 3.2 * len(speeds)), squeeze=False, sharex=True)
    styles = dict(
        zip(sorted({line["world"] for line in lines}, reverse=True), ("-", "--", ":"), strict=False)
    )
    colours = dict(zip(WAYS, ("#1b6ca8", "#c1440e", "#4f772d"), strict=True))
    for row, speed in zip(axes, speeds, strict=True):
        for (world, style), (way, colour) in ((w, c) for w in styles.items() for c in colours.items()):
            mine = [x for x in lines if (x["speed"], x["world"], x["way"]) == (speed, world, way)]
            at = [x["workers"] for x in mine]
            for axis, field in zip(row, ("over", "used"), strict=True):
                label = f"{way}, {world}"
                axis.plot(at, [x[field] for x in mine], style, color=colour, label=label, lw=1.4)
        row[0].set(xscale="log", yscale="log", ylabel=f"makespan / ideal\n(workers {speed:g}× as fast)")
        row[1].set(ylabel="share of workers' time used", ylim=(0, 1.02))
        for axis in row:
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("workers")
        axis.set_xticks(WORKERS[::2], [f"{n:,}" for n in WORKERS[::2]])
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", type=int, default=64, help="documents of the real run")
    parser.add_argument("--service", type=Path, help="JSON of an earlier call: its service times are used")
    parser.add_argument("--hours", type=float, default=6.0, help="mean hours between two preemptions")
    parser.add_argument("--speeds", default="1,50", help="how many times as fast as here the workers are")
    parser.add_argument("--figure", type=Path, help="PNG or SVG of the curves")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.service:
        earlier = json.loads(args.service.read_text())
        service, about = Service(**earlier["service"]), earlier["measured"]
        service = replace(service, batches=tuple(service.batches))
    else:
        service, about = measured(args.measure)
        if args.out:
            args.out.write_text(json.dumps({"service": asdict(service), "measured": about}) + "\n")
    calm = World(slow=0.0)
    rough = World(preempted=args.hours * 3600)
    began = time.perf_counter()
    speeds = [float(x) for x in args.speeds.split(",")]
    lines = curves(Plan(), service, {"even": calm, "slow and preempted": rough}, speeds)
    a_row = service.append + (service.seal + service.opening) / DOCUMENTS + service.hand / BATCH
    found = {
        **{
            "benchmark": "scale_simulation",
            "machine": cpu_model(),
            "commit": commit(),
            "load": list(os.getloadavg()),
        },
        **{"plan": Plan()._asdict(), "service": asdict(service), "measured": about},
        **{"writer_rows_per_s": 1 / a_row, "simulated_in_s": time.perf_counter() - began, "lines": lines},
    }
    if args.figure:
        draw(lines, args.figure)
    text = json.dumps(rounded(found))
    if args.out:
        args.out.write_text(text + "\n")
    for line in lines:
        told = f"{line['way']:<8}{line['world']:<20}{line['speed']:>6g}{line['workers']:>7,}"
        told += f"{line['makespan'] / 86400:>12,.3f} d{line['over']:>9.3f}{line['used']:>8.3f}"
        print(f"{told}{line['writing']:>8.3f}{line['files']:>14,}")
    print(text)


if __name__ == "__main__":
    main()
