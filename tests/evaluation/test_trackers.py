"""Runs in trackers: the real packages, files read back; a tracker that fails costs no row."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcfbench import tracking
from lcfbench.api import run, train
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import IDENTITY_FIELDS
from lcfbench.evaluation.recipe import Recipe
from tests.helpers import Watcher, invoke, manifest_of, rows, small_recipe

NUMBERS = {"score", "score_low", "score_high", "documents", "failures", "unparsed", "ms_per_document"}


@pytest.fixture
def tracked(pair, tmp_path, monkeypatch):
    """Runs a small recipe with a tracker, files below tmp_path; returns the folders of the runs."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr("lcfbench.watching.tracked.LOG_SECONDS", 0.0)

    def go(kind: str | None, out: str = "results", progress: object = None, **more: object) -> list[Path]:
        if kind:
            pytest.importorskip(kind)
        chosen = {"mode": ["receiver", "t2t"], "control": ["matched"], "limit": 8, "batch_size": 2, **more}
        recipe = small_recipe(pair, tmp_path / out, tracker=kind, **chosen)
        return run(recipe, progress=progress or Watcher()).folders

    return go


def tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Numbers by tag as (step, value), and texts by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]
    }
    return scalars, texts


def test_tensorboard(tracked, tmp_path) -> None:
    for folder in tracked("tensorboard"):
        numbers, texts = tensorboard(tmp_path / "results" / "tensorboard" / folder.name)
        recorded = [row["score"] for row in rows(folder)]
        assert set(numbers) >= NUMBERS
        assert [step for step, _ in numbers["score"]][-2:] == [8, 8]
        assert [step for step, _ in numbers["documents"]] == [int(n) for _, n in numbers["documents"]]
        assert numbers["score"][-1][1] == pytest.approx(sum(recorded) / 8)
        low, high = numbers["score_low"][-1][1], numbers["score_high"][-1][1]
        assert low < numbers["score"][-1][1] < high
        assert json.loads(texts["config"])["mode"] == manifest_of(folder)["identity"]["mode"]
        assert json.loads(texts["summary"])["state"] == "complete"


@pytest.fixture
def trackio_folder(tmp_path, monkeypatch) -> Path:
    """trackio reads its folder as it is imported."""
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio"


def test_trackio(tracked, trackio_folder, capsys) -> None:
    folders = tracked("trackio")
    assert capsys.readouterr().out == ""
    with sqlite3.connect(next(trackio_folder.glob("*.db"))) as base:
        entries = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = dict(base.execute("select run_name, config from configs").fetchall())
    for folder in folders:
        mine = [(step, json.loads(text)) for name, step, text in entries if name == folder.name]
        scores = [(step, m["score"]) for step, m in mine if "score" in m]
        assert scores[-1] == (8, pytest.approx(sum(r["score"] for r in rows(folder)) / 8))
        assert mine[-1][1]["final/state"] == "complete"
        assert json.loads(configs[folder.name])["task"] == "splitfacts"


def wandb_records(data: bytes) -> Iterator[object]:
    """The records of a `.wandb` file: LevelDB's log format behind seven bytes, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts, block = 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block is padding
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb(tracked, tmp_path) -> None:
    folders = tracked("wandb")
    for folder in folders:
        (file,) = tmp_path.glob(f"wandb/offline-run-*-{folder.name}/run-*.wandb")
        history, summary, config = [], {}, {}
        for record in wandb_records(file.read_bytes()):
            config |= {u.key: u.value_json for u in record.run.config.update}
            history += [{i.key or i.nested_key[0]: i.value_json for i in record.history.item}]
            summary |= {i.key or i.nested_key[0]: i.value_json for i in record.summary.update}
        scores = [float(each["score"]) for each in history if "score" in each]
        assert scores[-1] == pytest.approx(sum(r["score"] for r in rows(folder)) / 8)
        assert json.loads(summary["state"]) == "complete" and json.loads(config["task"]) == "splitfacts"


class Breaks:
    """A tracker whose disk is full after some calls."""

    calls = 0

    def __init__(self, *_: object) -> None:
        self.log({}, 0)

    def log(self, values: object, step: int) -> None:
        type(self).calls += 1
        if self.calls > self.after:
            raise OSError(28, "No space left on device")

    def finish(self, summary: object, good: bool) -> None:
        self.log({}, 0)


@pytest.mark.parametrize("after", [0, 1, 3, 8, 11])
def test_a_tracker_that_fails_costs_no_row_and_is_told_once(tracked, monkeypatch, after) -> None:
    sound = tracked(None, "sound")
    kind = type("Breaking", (Breaks,), {"after": after, "calls": 0})
    monkeypatch.setitem(tracking.BACKENDS, "tensorboard", kind)
    watcher = Watcher()
    folders = tracked("tensorboard", progress=watcher)
    assert [rows(a) for a in folders] == [rows(a) for a in sound]
    said = [text for text in watcher.warned if "tracker" in text]
    assert len(said) == 1 and "No space left" in said[0]


def test_an_interruption_reaches_the_tracker(tracked, tmp_path) -> None:
    class Impatient(Watcher):
        def update(self, title, right, done):
            if done >= 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tracked("tensorboard", progress=Impatient(), mode=["receiver"])
    (folder,) = (tmp_path / "results" / "tensorboard").iterdir()
    numbers, texts = tensorboard(folder)
    assert numbers["documents"][-1] == (4, 4.0)
    assert json.loads(texts["summary"])["state"] != "complete"
    (done,) = tracked("tensorboard", mode=["receiver"])
    assert done.name == folder.name and manifest_of(done)["state"] == "complete"
    assert max(step for step, _ in tensorboard(folder)[0]["documents"]) == 8


def test_a_tracker_is_no_part_of_the_identity(tracked) -> None:
    assert "tracker" not in IDENTITY_FIELDS
    with_one = [f.name for f in tracked("tensorboard", "a")]
    assert with_one == [f.name for f in tracked(None, "b")]


@pytest.mark.parametrize("verb", ["run", "train"])
@pytest.mark.parametrize("kind", ["trackio", "wandb", "tensorboard"])
def test_a_package_that_is_missing_is_one_line(verb, kind, pair, tmp_path, capsys, monkeypatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == kind else real(name, *a)
    )
    more = ["--mode", "lcf"] if verb == "train" else []
    args = [verb, "--pair", pair, "--task", "splitfacts", "--tracker", kind, "--out", tmp_path / "x", *more]
    code, _, err = invoke(capsys, monkeypatch, *args)
    assert code == 2 and len(err.splitlines()) == 1 and 'pip install "lcfbench[track]"' in err
    assert not (tmp_path / "x").exists()


def test_wandb_without_a_login_is_one_line(monkeypatch, tmp_path) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        Recipe(mode=["receiver"], tracker="wandb").check_names()


@pytest.mark.parametrize("after", [None, 0, 2])
def test_a_training_s_numbers_and_a_tracker_that_breaks_it_not(pair, tmp_path, monkeypatch, after) -> None:
    pytest.importorskip("tensorboard")
    settings = {"adapters": ["lcf"], "task": ["splitfacts"], "steps": 3, "batch_size": 2, "dev_documents": 2}
    settings |= {"pair": pair, "device": "cpu", "dtype": "float32"}
    if after is not None:
        kind = type("Breaking", (Breaks,), {"after": after, "calls": 0})
        monkeypatch.setitem(tracking.BACKENDS, "tensorboard", kind)
    watcher = Watcher()
    (plain,) = train(out=tmp_path / "a" / "x", **settings)
    (tracked,) = train(out=tmp_path / "b" / "x", tracker="tensorboard", progress=watcher, **settings)
    weights = "adapter.safetensors"
    assert (plain / weights).read_bytes() == (tracked / weights).read_bytes()
    assert sum("tracker" in text for text in watcher.said) == (after is not None)
    if after is None:
        numbers, texts = tensorboard(next((tracked / "tensorboard").iterdir()))
        assert [step for step, _ in numbers["lcf/loss"]] == [1, 2, 3]
        assert [value for _, value in numbers["lcf/loss"]] == pytest.approx(watcher.losses, rel=1e-5)
        assert "lcf/splitfacts/matched" in numbers and json.loads(texts["config"])["steps"] == 3
