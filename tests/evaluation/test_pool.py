"""Workers in other processes leave the rows that one process would have, also where some are killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcfbench.errors import Exit, UserError
from lcfbench.evaluation import pool, processes
from lcfbench.evaluation.processes import GPUS, THREADS, Child, Processes, how_it_died, shared_out, threads_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.service import Service
from lcfbench.models.memory import DeviceError
from tests.helpers import Watcher, manifest_of, rows, save, small_recipe, start
from tests.helpers import run_recipe as go

ASKED = {
    "mode": ["receiver", "t2t", "lcf"],
    "task": ["splitfacts", "splitfacts_heldout"],
    "control": ["matched", "deranged"],
    "seeds": [0, 1],
    "latency_documents": 2,
}
TIMED = ("sharer_ms", "message_ms", "fuse_ms", "prefill_ms", "decode_ms", "ttft_ms", "ttea_ms")


@pytest.fixture(scope="module")
def alone(pair, adapter, tmp_path_factory) -> list[Path]:
    """All runs, by one process."""
    return go(pair, tmp_path_factory.mktemp("alone"), adapter=[adapter], **ASKED)


class Killer(Watcher):
    """Kills a worker as soon as rows came back, and hears what the workers do."""

    def __init__(self, monkeypatch, kills: int) -> None:
        super().__init__()
        self.left, self.pools, self.doing = kills, [], []
        begin = Processes.__init__
        monkeypatch.setattr(
            Processes, "__init__", lambda pool, *a, **k: (self.pools.append(pool), begin(pool, *a, **k))[1]
        )

    def workers(self, doing):
        self.doing.append(list(doing))

    def update(self, title, right, done):
        super().update(title, right, done)
        if self.left:
            self.left -= 1
            os.kill(self.pools[0].children[self.left % 2].process.pid, signal.SIGKILL)


def equal(one: list[Path], two: list[Path]) -> None:
    assert [f.name for f in one] == [f.name for f in two] and len({f.name for f in one}) == len(one)
    for a, b in zip(one, two, strict=True):
        assert rows(a) == rows(b) and manifest_of(a)["state"] == manifest_of(b)["state"] == "complete"
        timed = [[[row[name] is not None for name in TIMED] for row in rows(f, set())] for f in (a, b)]
        assert timed[0] == timed[1]


def test_two_workers_of_which_some_are_killed_leave_what_one_process_does(
    pair, adapter, alone, tmp_path, monkeypatch
):
    assert len(alone) >= 12
    killer = Killer(monkeypatch, kills=2)
    found = go(pair, tmp_path, killer, adapter=[adapter], processes=2, **ASKED)
    equal(alone, found)
    died = [text for text in killer.warned if "was killed by SIGKILL" in text]
    assert 1 <= len(died) <= 2 and all("another takes its place" in text for text in died)
    assert any(len(d) == 2 and "batch" in d[0] + d[1] for d in killer.doing)
    recorded = manifest_of(found[0])
    assert [w["threads"] for w in recorded["workers"]] == [1] * len(recorded["workers"])
    assert not killer.pools[0].children  # none is left behind


class Here:
    """Workers within this process, which die at random: each call is lost with a probability."""

    def __init__(self, count: int, losses: float, seed: int, timing_threads: int = 1) -> None:
        self.count, self.timing_threads, self.random = count, timing_threads, random.Random(seed)
        self.losses, self.services, self.calls, self.died = losses, {}, [], 0
        self.threads = 1

    def start(self, number, order):
        self.services[number] = Service(pickle.dumps(order))

    def call(self, number, name, *args):
        self.calls.append((number, *pickle.loads(pickle.dumps((name, args)))))

    def wait(self):
        number, name, args = self.calls.pop(self.random.randrange(len(self.calls)))
        dies = self.random.random() < self.losses
        reply = self.services[number].call(name, *args) if not dies or self.random.random() < 0.5 else None
        self.died += dies
        return [(number, "died" if dies else pickle.loads(pickle.dumps(reply)))]

    def stop(self):
        self.services.clear()


@pytest.mark.parametrize(
    ("count", "losses", "timing"), [(1, 0.0, 1), (2, 0.0, 0), (3, 0.1, 1), (5, 0.2, 1), (4, 0.15, 0)]
)
def test_any_number_of_workers_and_any_deaths_change_no_row(
    pair, adapter, alone, tmp_path, monkeypatch, count, losses, timing
):
    monkeypatch.setattr(pool, "DEATHS", 1000)
    workers = Here(count, losses, seed=count, timing_threads=timing)
    recipe = small_recipe(pair, tmp_path, adapter=[adapter], **ASKED)
    with contextlib.ExitStack() as stack:
        found = [tmp_path / name for name in pool.Pool(recipe, Watcher(), workers, stack).run()]
    equal(alone, found)
    assert bool(workers.died) == bool(losses)


def test_what_a_method_learns_before_it_answers_is_recorded(tmp_path):
    save(tmp_path / "same")
    settings = {"mode": ["kvcomm"], "control": ["matched"], "options": {"layers": "0.5"}}
    one = f"{tmp_path / 'same'}:{tmp_path / 'same'}"
    [plain] = go(one, tmp_path / "a", **settings)
    with contextlib.ExitStack() as stack:
        recipe = small_recipe(one, tmp_path / "b", **settings)
        [name] = pool.Pool(recipe, Watcher(), Here(2, 0.0, 1), stack).run()
    facts = [manifest_of(f)["calibration"] for f in (plain, tmp_path / "b" / name)]
    assert facts[0] == facts[1] and name == plain.name


def test_aggregates_of_lm_eval_are_those_of_one_process(pair, tmp_path, mirror):
    settings = {"task": ["lm-eval/openbookqa"], "limit": 8}
    [plain] = go(pair, tmp_path / "a", **settings)
    with contextlib.ExitStack() as stack:
        recipe = small_recipe(pair, tmp_path / "b", **settings)
        [name] = pool.Pool(recipe, Watcher(), Here(2, 0.3, 1), stack).run()
    facts = [manifest_of(f)["lm_eval"] for f in (plain, tmp_path / "b" / name)]
    assert facts[0] == facts[1] and name == plain.name


def test_a_driver_that_is_killed_leaves_no_worker_and_the_same_command_goes_on(pair, tmp_path):
    flags = ["--mode", "receiver,t2t", "--task", "splitfacts", "--control", "matched", "--pair", pair]
    flags += ["--limit", "60", "--batch-size", "4", "--dtype", "float32", "--latency-documents", "0"]
    driver = start("run", *flags, "--out", tmp_path / "out", "--processes", "2")
    journals = []
    while not any(path.stat().st_size for path in journals):
        assert driver.poll() is None, driver.communicate()
        journals = [*(tmp_path / "out").glob("*/samples.jsonl")]
        time.sleep(0.02)
    workers = children_of(driver.pid)
    driver.kill()
    driver.communicate()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(alive, workers))
    settings = {"mode": ["receiver", "t2t"], "limit": 60, "options": {}}
    resumed = go(pair, tmp_path / "out", **settings)
    assert len(list((tmp_path / "out").iterdir())) == 2  # the same runs
    equal(go(pair, tmp_path / "whole", **settings), resumed)


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


PLUGIN = '''
import os, signal
from lcfbench.methods.receiver import Receiver

class Deadly(Receiver):
    """Ends its process."""

    def respond(self, batch):
        {how}
'''


def test_what_kills_every_worker_ends_the_command_in_one_line(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "DEATHS", 2)
    (tmp_path / "deadly.py").write_text(PLUGIN.format(how="os.kill(os.getpid(), signal.SIGKILL)"))
    watcher = Watcher()
    with pytest.raises(UserError) as raised:
        go(pair, tmp_path / "out", watcher, mode=[str(tmp_path / "deadly.py")], processes=2, limit=4)
    text = str(raised.value)
    assert raised.value.code is Exit.FAILED and "was killed by SIGKILL (did memory run out?)" in text
    assert "\n" not in text and len(watcher.warned) == 1  # one was replaced


def test_a_device_that_failed_is_left_and_at_last_said(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "Processes", lambda count, on_cpu: Here(count, 0.0, 1))
    (tmp_path / "deadly.py").write_text(PLUGIN.format(how="raise RuntimeError('CUDA error: illegal access')"))
    watcher = Watcher()
    with pytest.raises(DeviceError, match="the device failed"):
        go(pair, tmp_path / "out", watcher, mode=[str(tmp_path / "deadly.py")], processes=2, limit=4)
    assert len(watcher.warned) == pool.DEATHS - 1


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("os.kill(os.getpid(), 15)", "was killed by SIGTERM"),
        (
            "sys.stderr.write('first\\nthe last words\\n\\n'); sys.exit(7)",
            "ended with code 7 (the last words)",
        ),
        ("sys.exit(0)", "ended with code 0"),
        ("sys.stderr.buffer.write(b'\\xff bad'); sys.exit(1)", "ended with code 1 (\ufffd bad)"),
    ],
)
def test_the_end_of_a_process_is_told(does, words):
    child = Child()
    command = [sys.executable, "-c", f"import os, sys; {does}"]
    child.process = subprocess.Popen(command, stderr=child.errors)
    assert how_it_died(child) == words


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 1, "control": ["deranged"]},
        {"task_options": {"keys": "99999"}},
        {"options": {"nosuch": "1"}},
    ],
    ids=str,
)
def test_mistakes_are_those_of_one_process(pair, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(processes, "Processes", lambda count, on_cpu: Here(count, 0.0, 1))
    said = []
    for count in (1, 2):
        with pytest.raises(UserError) as raised:
            go(
                pair,
                tmp_path / f"{count}",
                mode=["t2t"],
                processes=count,
                **{"options": {"budget": "6"}, **wrong},
            )
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_an_error_keeps_its_kind_on_its_way_between_processes():
    from lcfbench.adapters.select import AdapterMissing

    for error in (UserError("a.", "b."), AdapterMissing("a.", "b.", ("w",)), DeviceError(RuntimeError("x"))):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
        assert again.code == error.code


@pytest.mark.parametrize(
    ("count", "around", "gpus", "expected"),
    [
        (2, {}, 0, [None, None]),
        (2, {}, 2, ["0", "1"]),
        (3, {}, 2, ["0", "1", "0"]),
        (2, {}, 8, ["0,1,2,3", "4,5,6,7"]),
        (2, {GPUS: "5,3"}, 2, ["5", "3"]),
        (4, {GPUS: "GPU-aa, GPU-bb"}, 2, ["GPU-aa", "GPU-bb", "GPU-aa", "GPU-bb"]),
    ],
)
def test_every_worker_has_its_share_of_the_gpus(count, around, gpus, expected):
    assert [shared_out(n, count, around, gpus).get(GPUS) for n in range(count)] == expected


def test_threads_are_divided_and_a_smaller_number_stays(monkeypatch):
    monkeypatch.setattr(processes, "usable_cpus", lambda: 8)
    assert shared_out(0, 2, {}, 0)[THREADS[0]] == "4" and shared_out(0, 16, {}, 0)[THREADS[0]] == "1"
    assert shared_out(0, 2, {THREADS[0]: "3"}, 0)[THREADS[1]] == "3" and threads_of({THREADS[1]: "x"}, 2) == 2


@pytest.mark.parametrize(
    "text", ["ray:/x", "ray://", "ray://host", "http://h:1", "ray://h:port", "ray://h :1", ""]
)
def test_addresses_that_are_none(text):
    with pytest.raises(UserError, match="ray://auto or"):
        Recipe.merge(None, {"on": text}) if text else Recipe.merge(None, {"on": " "})


def test_gpus_of_workers_need_workers():
    with pytest.raises(UserError, match="Add --on ray"):
        Recipe.merge(None, {"gpus_per_worker": 1})
