"""A plan of many runs, disturbed again and again at random moments, ends as one that ran in peace.

After each disturbance the folder is read without the package: every answer that was recorded before is
there, unchanged in every column, once.

`LCFBENCH_KILLS=3000` tries so many disturbances, `LCFBENCH_KILLS_SEED=3` other ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import Exit
from lcfbench.models.causal_lm import CausalLM
from lcfbench.results.reader import list_runs, read_runs
from lcfbench.sources.models import find_model
from tests import helpers
from tests.fuzz import kills
from tests.fuzz.kills import Disturbance, Ended, disturbed, recorded

COUNT = int(os.environ.get("LCFBENCH_KILLS", "100"))
SEED = int(os.environ.get("LCFBENCH_KILLS_SEED", "0"))
RUN = ["run", "--recipe", "recipe.yaml", "--out", "out"]
RECIPE = {
    "mode": ["receiver", "t2t", "lcf"],
    "options": {"budget": "1"},
    "task": ["splitfacts", "table.csv"],
    "control": ["matched", "deranged"],
    "seeds": [0, 1],
    "limit": 3,
    "batch_size": 2,
    "dtype": "float32",
    "latency_documents": 0,
    "max_failed": "0.9",
}
WRONG_CLOCKS = (0.0, 0.0, -400 * 86400.0, -3600.0, 3600.0, 90 * 86400.0)
# of a manifest, what depends on when, by whom and in how many sessions a run was made
OF_SESSIONS = {"sessions", "started_at", "finished_at", "pid", "seconds", "documents_per_second", "together"}
OF_SESSIONS |= {"samples_bytes", "columns_sha256", "environment", "workers", "recipe"}


@dataclass(frozen=True)
class Ground:
    """A folder to work in, and what an undisturbed command leaves."""

    folder: Path
    rows: dict[str, dict[str, dict[str, Any]]]
    manifests: dict[str, dict[str, Any]]
    files: list[str]
    ended: Ended

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    torch.set_num_threads(1)
    helpers.save(folder / "receiver", layers=2, positions=400)
    helpers.save(folder / "sharer", bos=True, family="qwen3", layers=2, heads=1, vocabulary=330, seed=1)
    for kind in ("lcf", "lcfx"):
        _adapter(folder, kind)
    lines = [f"Which is {i}?,{i},{i + 1},{'ab'[i % 2]}" for i in range(3)]
    lines[2] = f"Which is {'very ' * 400}long?,a,b,a"  # no model reads it: an error row, tried each time
    (folder / "table.csv").write_text("\n".join(["question,a,b,answer", *lines, ""]))
    recipe = RECIPE | {"pair": "receiver:sharer", "adapter": ["lcf", "lcfx"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "out").mkdir()
    ended = disturbed(RUN, folder, Disturbance())
    assert ended.code == Exit.OK, ended.err
    out = folder / "out"
    whole = Ground(folder, recorded(out), manifests(out), files(out), ended)
    assert len(whole.rows) >= 12 and any(
        "error" in row for run in whole.rows.values() for row in run.values()
    )
    return whole


def _adapter(folder: Path, kind: str) -> None:
    ends = [CausalLM.load(find_model(str(folder / name)), dtype="float32") for name in ("receiver", "sharer")]
    made = helpers.random_adapter(kind, (ends[0], ends[1]))
    made.config = made.config.model_copy(
        update={"training": {"revisions": {"receiver": ends[0].revision, "sharer": ends[1].revision}}}
    )
    save_adapter(made, folder / kind, "")


def manifests(out: Path) -> dict[str, dict[str, Any]]:
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("*/manifest.json"))}
    return {name: {k: v for k, v in one.items() if k not in OF_SESSIONS} for name, one in found.items()}


def files(out: Path) -> list[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("*"))


def timeless(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        run: {doc: {k: v for k, v in row.items() if k not in helpers.TIMES} for doc, row in found.items()}
        for run, found in rows.items()
    }


def differing(found: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """The values that differ, by run and key."""
    pairs = {name: (found.get(name, {}), want.get(name, {})) for name in {*found, *want}}
    return {
        f"{name}: {key}": (a.get(key), b.get(key))
        for name, (a, b) in pairs.items()
        for key in {*a, *b}
        if a.get(key) != b.get(key)
    }


def drawn_disturbances(ground: Ground, seed: int) -> Iterator[Disturbance]:
    """Moments of one life of the plan, early and late ones."""
    drawn = random.Random(f"kills {seed}")
    while True:
        share = min(drawn.expovariate(4), 1.0)
        step, seconds = int(share * ground.ended.steps), share * ground.ended.seconds
        clock = drawn.choice(WRONG_CLOCKS)
        part = drawn.choice(["before", "half", "after"])
        how = drawn.choice(
            ["KILL", "TERM", "INT", "HUP", "stop", "stop", "stop", "full", "refused", "failing"]
        )
        yield Disturbance(how, step if how != "failing" else drawn.randrange(30), seconds, part, clock)


def tear(out: Path, drawn: random.Random) -> tuple[str, str] | None:
    """Tears the last line of a journal, as a power cut may; returns the run and the document of that row."""
    journals = [p for p in sorted(out.glob("*/samples.jsonl")) if p.stat().st_size]
    if not journals or drawn.random() < 0.5:
        return None
    path = drawn.choice(journals)
    lines = path.read_bytes().splitlines(keepends=True)
    end = lines[-1][: drawn.randrange(1, len(lines[-1]))]
    path.write_bytes(b"".join(lines[:-1]) + end)
    return (path.parent.name, json.loads(lines[-1])["doc_hash"]) if lines[-1].endswith(b"\n") else None


def check_kept(out: Path, known: dict[tuple[str, str], dict[str, Any]], told: object) -> None:
    """Every answer of before is there, as it was; then those of now are known too."""
    found = {(run, doc): row for run, rows in recorded(out).items() for doc, row in rows.items()}
    answers = {key: row for key, row in found.items() if "error" not in row}
    for key, row in known.items():
        assert answers.get(key) == row, (told, key, row, found.get(key))
    known |= answers


def check_readable(out: Path, told: object) -> None:
    """What lies there is read as it lies there."""
    states = {run["run_id"]: run["state"] for run in list_runs(out)}
    assert set(states.values()) <= {"stopped", "interrupted", "complete", "failed"}, (told, states)
    rows = sum(map(len, recorded(out).values()))
    if rows:
        assert len(read_runs([out]).rows) == rows, told


def test_a_plan_that_is_disturbed_at_random_ends_as_one_that_ran_in_peace(ground):
    print(f"LCFBENCH_KILLS={COUNT} LCFBENCH_KILLS_SEED={SEED}")
    count, lives, met = 0, 0, Counter[str]()
    while count < COUNT:
        seed = SEED * 1_000_003 + lives
        count += one_life(ground, seed, COUNT - count, met)
        lives += 1
    print(f"{count} disturbances in {lives} lives of {len(ground.rows)} runs: {dict(met)}")


def one_life(ground: Ground, seed: int, most: int, met: Counter[str]) -> int:
    """Runs the plan until it is done, disturbed each time; returns how often it was."""
    drawn, known, count = random.Random(seed), dict[tuple[str, str], dict[str, Any]](), 0
    shutil.rmtree(ground.out)
    ground.out.mkdir()
    for how in drawn_disturbances(ground, seed):
        if count == most:
            break
        done = disturbed(RUN, ground.folder, how)
        told = (f"LCFBENCH_KILLS_SEED={SEED}, life {seed}, call {count}", how, done.code, done.err[-1500:])
        check_end(done, how, told)
        count += 1
        met[how.how] += 1
        check_kept(ground.out, known, told)
        if torn := tear(ground.out, drawn):
            known.pop(torn, None)
            met["torn"] += 1
        check_readable(ground.out, told)
        if done.code == Exit.OK and how.how != "failing":
            break
    check_whole(ground, known, f"LCFBENCH_KILLS_SEED={SEED}, life {seed}, last call")
    return count


def check_whole(ground: Ground, known: dict[tuple[str, str], dict[str, Any]], told: object) -> None:
    """One more call, in peace: all is there as if there had been no other."""
    last = disturbed(RUN, ground.folder, Disturbance())
    told = (told, last.code, last.err[-1500:])
    assert last.code == Exit.OK, told
    check_kept(ground.out, known, told)
    assert differing(timeless(recorded(ground.out)), timeless(ground.rows)) == {}, told
    assert differing(manifests(ground.out), ground.manifests) == {}, told
    assert files(ground.out) == ground.files, told


def test_a_pool_whose_driver_and_workers_die_ends_as_one_process_in_peace(ground):
    """`LCFBENCH_KILLS=1000` has 30 such ends. Starting two workers takes seconds."""
    drawn, known = random.Random(f"pool {SEED}"), dict[tuple[str, str], dict[str, Any]]()
    shutil.rmtree(ground.out)
    ground.out.mkdir()
    for i in range(max(3, COUNT // 33)):
        name = ("both", "worker", "KILL", "TERM", "stop")[i % 5]
        how = Disturbance(
            name, int(min(drawn.expovariate(3), 1) * ground.ended.steps), clock=-3600.0 * (i % 2)
        )
        done = disturbed([*RUN, "--processes", "2"], ground.folder, how)
        told = (f"LCFBENCH_KILLS_SEED={SEED}, pool, call {i}", how, done.code, done.err[-1500:])
        check_end(done, how, told)
        check_kept(ground.out, known, told)
        check_readable(ground.out, told)
        if done.code == Exit.OK:
            check_whole(ground, known, told)
            shutil.rmtree(ground.out)
            ground.out.mkdir()
            known.clear()
    check_whole(ground, known, f"LCFBENCH_KILLS_SEED={SEED}, pool, last call")


def check_end(done: Ended, how: Disturbance, told: object) -> None:
    """It ended as this disturbance asks, or had ended before; a mistake is one line, never a traceback."""
    ends = {"KILL": -9, "HUP": -1, "TERM": -15, "INT": Exit.INTERRUPTED, "stop": kills.ENDS}
    ends |= {"full": Exit.USER, "refused": Exit.USER, "failing": Exit.FAILED}
    ends |= {"worker": Exit.OK, "both": -9}
    assert done.code in (Exit.OK, ends[how.how]), told
    lines = [line for line in done.err.splitlines() if line.startswith("lcfbench: ")]
    assert "Traceback" not in done.err and len(lines) == (done.code == Exit.USER), told
