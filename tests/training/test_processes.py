"""Training in several processes: what they compute, how they resume, and how they end together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from lcfbench.adapters.config import read_config
from lcfbench.adapters.files import load
from lcfbench.cli.launch import launch
from lcfbench.files import locked
from lcfbench.training import processes
from tests import helpers

SMALL = (
    "--task splitfacts --steps 6 --batch-size 4 --dev-documents 2 --train-documents 16 --eval-every 3 "
    "--save-every 2 --lr 3e-3 --warmup 1 --dtype float32 --offline -o width=8"
)
FAILING = """\
\"\"\"failing: as lcf; its second process ends in the first step.\"\"\"

import os
from lcfbench.methods.lcf import LCF


class Failing(LCF):
    def respond(self, batch):
        if os.environ.get("RANK") == "1":
            {does}
        return super().respond(batch)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> Path:
    """An undisturbed training with random gates, in two processes."""
    out = tmp_path_factory.mktemp("two") / "whole"
    codes, said = begin(pair, out, "-o", "gate=gumbel").end()
    assert codes == [0, 0] and said.count("2 processes") == 1, said
    return out


def begin(pair: str, out: Path, *more: object, folders: Sequence[Path] = ()) -> helpers.Processes:
    arguments = ["train", "--pair", pair, *SMALL.split(), "--out", out, *more]
    return helpers.Processes(arguments, folders or [out.parent] * 2)


def weights(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def table(folder: Path) -> pd.DataFrame:
    found = pd.read_parquet(folder / "training.parquet")
    return found[found["metric"] != "examples_per_s"].reset_index(drop=True)


def test_two_processes_compute_what_one_does_to_rounding(pair, tmp_path):
    """They add the same gradients in another order: 1e-4 of a loss."""
    codes, said = begin(pair, tmp_path / "two").end()
    assert codes == [0, 0], said
    arguments = ["train", "--pair", pair, *SMALL.split(), "--out", tmp_path / "one"]
    assert helpers.forked(*arguments, cwd=tmp_path)[0] == 0
    one, two = (load(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, t in one.items():
        assert torch.allclose(t, two[name], atol=1e-2, rtol=1e-2), name
    losses = [
        t[t["metric"] == "loss"]["value"].to_numpy() for t in map(table, (tmp_path / "one", tmp_path / "two"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_number_of_processes_is_in_config_card_and_log(whole):
    assert read_config(whole).training["processes"] == 2
    assert "2 processes" in (whole / "README.md").read_text()
    rows = table(whole)
    assert set(rows[rows["metric"] == "processes"]["value"]) == {2.0}


def test_killed_and_resumed_it_is_the_uninterrupted_one_and_other_numbers_are_refused(pair, whole, tmp_path):
    out = tmp_path / "killed"
    begun = begin(pair, out, "-o", "gate=gumbel")
    begun.until(out / "checkpoint.pt")
    os.kill(begun.pids[1], signal.SIGKILL)
    codes, said = begun.end(60)
    assert codes == [2, -signal.SIGKILL] and said.count("lcfbench: ") == 1 and "Traceback" not in said
    assert "process 1 of 2" in said and "it was killed" in said
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    streams = [own["random"] for own in state["trainings"][0]["own"]]
    assert state["processes"] == 2 and all({"python", "numpy", "torch", "cuda"} == set(s) for s in streams)
    assert len(streams) == 2 and not torch.equal(streams[0]["torch"], streams[1]["torch"])
    arguments = ["train", "--pair", pair, *SMALL.split(), "-o", "gate=gumbel", "--out", out]
    code, _, refused = helpers.forked(*arguments, cwd=tmp_path)
    assert code == 2 and "is of a training with 2 processes" in refused and "--processes 2" in refused
    codes, said = begin(pair, out, "-o", "gate=gumbel").end()
    assert codes == [0, 0] and "goes on from step" in said
    assert weights(out) == weights(whole) and table(out).equals(table(whole))
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        ("bytearray(1 << 60)", 2, "process 1 of 2 .*: out of memory at step 1. Raise --accumulate"),
        ("batch.documents[99]", 1, "IndexError"),
        ("os._exit(0)", 2, "process 1 of 2 .* ended without a word"),
    ],
    ids=["memory", "bug", "exit"],
)
def test_one_that_fails_ends_both_with_one_message(pair, tmp_path, does, code, message):
    (tmp_path / "failing.py").write_text(FAILING.format(does=does))
    begun = begin(pair, tmp_path / "out", "--mode", tmp_path / "failing.py")
    began = time.monotonic()
    codes, said = begun.end(60)
    assert codes[0] == code and codes[1] in (code, 0) and time.monotonic() - began < 60
    assert len(re.findall(message, said)) == 1, said
    assert said.count("lcfbench: ") + said.count("Traceback (most recent call last)") == 1, said


@pytest.mark.parametrize(("moves", "said"), [(False, "gave no sign of life"), (True, "got no further")])
def test_a_process_that_is_stopped_or_hangs_is_noticed(monkeypatch, moves, said):
    """Its beats end, or they go on and it neither works nor waits."""
    monkeypatch.setattr(processes, "BEAT", 0.01)
    monkeypatch.setattr(processes, "DEAD", 9 if not moves else 10**9)
    monkeypatch.setattr(processes, "HUNG", 9)
    store = torch.distributed.HashStore()
    group = processes.Group(0, 2, store)
    who = {"system": "elsewhere", "pid": 1, "began": "0", "host": "node7"}
    store.set("who/1", json.dumps(who))
    for n in range(200):
        store.set("life/1", json.dumps([n if moves else 3, 5, 0]))
        try:
            with group.waiting():
                time.sleep(0.02)
        except processes.OtherEndedError as error:
            assert f"process 1 of 2 (node7) {said}" in error.record["what"]
            break
    else:
        raise AssertionError
    group.close()


def test_ctrl_c_is_one_line(pair, tmp_path):
    begun = begin(pair, tmp_path / "out", "--steps", "9000")
    begun.until(tmp_path / "out" / "checkpoint.pt")
    for pid in begun.pids:
        os.kill(pid, signal.SIGINT)
    codes, said = begun.end(60)
    assert codes == [130, 130] and said.count("interrupted.") == 1 and "Traceback" not in said
    assert said.count("the same command goes on from there") == 1


def test_a_process_with_other_models_is_named(tmp_path):
    for place, seed in (("a", 1), ("b", 9)):
        helpers.save(tmp_path / place / "receiver", layers=2)
        helpers.save(tmp_path / place / "sharer", layers=2, heads=1, vocabulary=330, seed=seed)
    folders = (tmp_path / "a", tmp_path / "b")
    codes, said = begin("./receiver:./sharer", tmp_path / "out", folders=folders).end()
    assert codes == [2, 2] and said.count("lcfbench: ") == 1
    assert "process 1 (" in said and "has other models than process 0" in said


def test_a_folder_that_another_training_writes_is_refused_once(pair, tmp_path):
    with locked(tmp_path / "out"):
        codes, said = begin(pair, tmp_path / "out").end()
    assert codes == [2, 2] and said.count("lcfbench: ") == 1 and "another process is writing" in said


@pytest.mark.parametrize("verb", ["run", "ls", "show"])
def test_other_verbs_are_refused_once(capsys, monkeypatch, verb):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert helpers.invoke(capsys, monkeypatch, verb)[::2] == (2, "")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, said = helpers.invoke(capsys, monkeypatch, verb)
    assert code == 2 and f"2 processes of a launcher would each do the same `lcfbench {verb}`" in said


def test_accelerate_that_starts_one_process_for_two_is_refused(capsys, monkeypatch, pair, tmp_path):
    """As `accelerate launch --cpu --num_processes 2` sets the environment."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    arguments = ["train", "--pair", pair, "--out", tmp_path / "out"]
    code, _, said = helpers.invoke(capsys, monkeypatch, *arguments)
    assert code == 2 and "--processes N" in said and not (tmp_path / "out").exists()


def test_processes_of_the_command_line_end_with_one_line_and_its_code(capfd):
    assert launch(2, ["train", "--task", "nosuch", "--processes", "2"]) == 2
    assert capfd.readouterr().err.count("lcfbench: ") == 1


def test_accelerate_launch_starts_two(pair, tmp_path, whole):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", "lcfbench", "train", "--pair", pair, *SMALL.split()]
    command += ["-o", "gate=gumbel", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=helpers.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path / "out") == weights(whole)
