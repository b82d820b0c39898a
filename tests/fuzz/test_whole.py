"""Every verb that writes: several at once, killed at any moment, on a disk that ends. What is there is whole.

A command that ran alone and undisturbed is the measure. After several side by side, or after kills
and a last undisturbed call, the folder holds the same files with the same content, none half, none
doubled, none left over.

`LCFBENCH_FUZZ=20` tries twenty times as many moments; `LCFBENCH_FUZZ_SEED=3` other ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lcfbench.errors import Exit
from tests import helpers
from tests.fuzz.verbs import FP, PAIR, TEXT
from tests.fuzz.world import Outcome, World
from tests.helpers import TIMES

MORE = float(os.environ.get("LCFBENCH_FUZZ", "1"))
SEED = int(os.environ.get("LCFBENCH_FUZZ_SEED", "0"))
BENCH = f"bench {PAIR} --mode receiver --task splitfacts --prompt-tokens 40 --answer-tokens 1 --repeats 1"
WRITING = {
    "run": "run --recipe run.yaml --mode receiver,lcf,t2t -o budget=3 --limit 8 --out out",
    "train": "train --recipe train.yaml --steps 6 --out out",
    "import-c2c": "adapter import-c2c fuser --out out",
    "prune": f"adapter prune adapters/lcf {PAIR} --dev splitfacts --limit 4 --keep 1 --out out {FP}",
    "pull": "adapter pull org/tiny --out out",
    "enrich": f"oracle enrich --model models/receiver --task splitfacts --limit 4 --out out {FP}",
    "transform": f"oracle transform {PAIR} {TEXT} --out out",
    "bench": f"{BENCH} --drift 0 --warm-up 1 --dtype float32 --out out/bench.json",
    "report": "report results -o out/report.html",
    "frontier": "plot frontier results --out out",
    "rate": "plot rate results --out out --data out/rate.csv",
    "length": "plot length results --out out --data out/length.csv",
    "training": "plot training adapters/lcf --out out",
}
RESUMED = ("run", "train", "import-c2c", "prune", "enrich", "pull")
MEASURED = {"minutes", "seconds", "ms", "examples_per_s", "time", "wall_time", "at", *TIMES}


@pytest.fixture(scope="module")
def alone(world) -> dict[str, tuple[dict[str, Any], float]]:
    """What each command writes alone, and its seconds; made when it is first asked for."""
    return {}


def measure(world: World, alone: dict[str, Any], verb: str) -> tuple[dict[str, Any], float]:
    if verb not in alone:
        fresh(world)
        done = world.run(WRITING[verb].split())
        assert done.code == 0, done.err
        alone[verb] = content(world), done.seconds
    return alone[verb]


def fresh(world: World) -> None:
    world.reset()
    (world.now / "work" / "out").mkdir()


def content(world: World) -> dict[str, Any]:
    """The files of `out`, by name, without times and process ids. Fails for a file that is not whole."""
    found: dict[str, Any] = {}
    out = world.now / "work" / "out"
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"):
        name = str(path.relative_to(out))
        if path.suffix == ".parquet":
            rows = pq.ParquetFile(path).read().to_pylist()
            rows = [row for row in rows if row.get("metric") not in MEASURED]
            found[name] = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
        elif path.suffix == ".png":
            Image.open(path).load()
            found[name] = "picture"
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".json":
            found[name] = sorted(json.loads(path.read_text()))
            if path.name == "manifest.json":
                found[name] = json.loads(path.read_text()).get("identity")
        elif path.suffix in (".html", ".svg"):
            assert path.read_text().rstrip().endswith(f"</{path.suffix[1:]}>")
            found[name] = "page"
        else:
            found[name] = bool(path.read_text())
    return found


def check(done: Outcome, *codes: int) -> None:
    """It ended with one of these codes, with one line where it refused, and without a traceback."""
    told = [line for line in done.err.splitlines() if line.startswith("lcfbench: ")]
    assert not done.hung and done.code in codes and "Traceback" not in done.err, (done.code, done.err[-3000:])
    assert "Exception ignored" not in done.err and len(told) == (done.code == Exit.USER), done.err[-3000:]


def differs(found: dict[str, Any], want: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*found, *want}) if found.get(name) != want.get(name)]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("verb", WRITING)
def test_several_at_once_into_one_folder_leave_what_one_leaves(world, alone, verb, count):
    want, seconds = measure(world, alone, verb)
    drawn = random.Random(f"{verb}{count}{SEED}")
    for attempt in range(max(1, round(MORE))):
        fresh(world)
        late = 0.0 if attempt % 2 == 0 else seconds
        argv = WRITING[verb].split()
        done = world.together([{"argv": argv, "delay": drawn.uniform(0, late)} for _ in range(count)])
        for one in done:
            check(one, Exit.OK, Exit.USER)
        assert any(one.code == Exit.OK for one in done)
        assert differs(content(world), want) == []


def test_trainings_of_different_settings_into_one_folder_never_lose_one_silently(world):
    """Each that says `saved` is the adapter that lies there."""
    fresh(world)
    argv = WRITING["train"].split()
    done = world.together([{"argv": [*argv, "--seed", str(i)]} for i in range(3)])
    for one in done:
        check(one, Exit.OK, Exit.USER)
    assert [one.code for one in done].count(Exit.OK) == 1


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT", "INT INT"])
@pytest.mark.parametrize("verb", RESUMED)
def test_killed_at_any_moment_and_called_again_is_as_uninterrupted(world, alone, verb, how):
    want, seconds = measure(world, alone, verb)
    drawn = random.Random(f"{verb}{how}{SEED}")
    numbers = [signal.Signals[f"SIG{name}"] for name in how.split()]
    for _ in range(max(1, round(MORE))):
        fresh(world)
        for _ in range(2):  # killed, resumed and killed again
            moment = drawn.uniform(0, seconds)
            kills = [(moment + i * drawn.uniform(0, 0.03), n) for i, n in enumerate(numbers)]
            done = world.run(WRITING[verb].split(), kills=kills)
            if done.code != -numbers[0]:
                refused = [Exit.USER] if "already holds" in done.err else []
                check(done, Exit.OK, Exit.INTERRUPTED, *refused)
        last = world.run(WRITING[verb].split())
        check(last, Exit.OK, *([Exit.USER] if "already holds" in last.err else []))
        assert differs(content(world), want) == [], (moment, done.err, last.err)


@pytest.mark.parametrize("verb", WRITING)
def test_files_that_cannot_grow_are_one_line_and_the_next_call_mends_it(world, alone, verb):
    """A limit on the size of files, as a quota has it."""
    want, _ = measure(world, alone, verb)
    drawn = random.Random(f"{verb}{SEED}")
    for _ in range(max(1, round(MORE))):
        fresh(world)
        limit = drawn.choice([5_000, 6_000, 9_000, 20_000, 60_000])
        done = world.run(WRITING[verb].split(), file_bytes=limit, log="/dev/null")
        check(done, Exit.OK, Exit.USER)
        content(world)  # what is there is whole
        last = world.run(WRITING[verb].split())
        check(last, Exit.OK, *([Exit.USER] if "already holds" in last.err else []))
        assert differs(content(world), want) == [], (limit, done.err)


@pytest.mark.parametrize("command", ["show results", "verdict results --csv", "ls models", "--help"])
def test_a_full_disk_behind_stdout_is_one_line(world, command):
    world.reset()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lcfbench", *command.split()],
            cwd=world.now / "work",
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    check(Outcome([], done.returncode, False, 0.0, "", done.stderr), Exit.USER)


def environment() -> dict[str, str]:
    own = {"LCFBENCH_MIRROR": "mirror", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH") or str(helpers.ROOT), **own}


FULL = 'mount -t tmpfs -o size=$SIZE tmpfs out && { "$@"; echo $? > code; cp -r out saved; }'


def on_a_small_disk(world: World, size: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """The command with `out` on a disk of this size; what is there afterwards is kept in `saved`."""
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL, "sh"]
    return subprocess.run(
        [*own, sys.executable, "-m", "lcfbench", *argv],
        cwd=world.now / "work",
        env=environment() | {"SIZE": size},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_disk_that_is_full_in_the_middle_of_a_run_loses_no_row(world, alone):
    want, _ = measure(world, alone, "run")
    fresh(world)
    done = on_a_small_disk(world, "48k", WRITING["run"].split())
    work = world.now / "work"
    if not (work / "code").exists():
        pytest.skip(f"no small disk can be mounted here: {done.stderr[-200:]}")
    code = int((work / "code").read_text())
    check(Outcome([], code, False, 0.0, done.stdout, done.stderr), Exit.USER)
    assert "No space left" in done.stderr
    journals = [line for p in (work / "saved").rglob("*.jsonl") for line in p.read_text().splitlines()]
    assert len(journals) > 2 and all(json.loads(line)["doc_hash"] for line in journals)
    shutil.rmtree(work / "out")
    (work / "saved").rename(work / "out")
    check(world.run(WRITING["run"].split()), Exit.OK)
    assert differs(content(world), want) == []


@pytest.mark.parametrize(
    "reader", ["show out", "ls runs --out out", "report out -o report.html", "verdict out"]
)
def test_readers_beside_a_run_that_is_writing(world, alone, reader):
    """What is being written is read as far as it goes."""
    want, seconds = measure(world, alone, "run")
    fresh(world)
    shutil.copytree(world.now / "work" / "results", world.now / "work" / "out", dirs_exist_ok=True)
    readers = [{"argv": reader.split(), "delay": seconds * i / 6} for i in range(6)]
    writer, *read = world.together([{"argv": WRITING["run"].split()}, *readers])
    check(writer, Exit.OK)
    for one in read:
        check(one, Exit.OK, *([Exit.USER] if reader.startswith("verdict") else []))
    found = {k: v for k, v in content(world).items() if k in want}
    assert differs(found, want) == []
