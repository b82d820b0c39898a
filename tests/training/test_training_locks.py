"""One process at a time writes a folder; a killed one leaves no lock, and no work is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lcfbench.adapters.files import load, making
from lcfbench.errors import UserError
from lcfbench.files import finish, locked
from lcfbench.progress import Silent
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train
from tests import helpers

HOLD = (
    "import sys, time, pathlib\nfrom lcfbench.files import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def one_training(pair: str, out: Path, **settings) -> TrainRecipe:
    small = dict(steps=1, batch_size=2, dev_documents=2, train_documents=4, dtype="float32", offline=True)
    return TrainRecipe(pair=pair, out=out, **(small | settings))


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path, other):
    pair, out = helpers.save_pair(tmp_path), tmp_path / "out"
    for force in (False, True):
        with pytest.raises(UserError, match="another process is writing"):
            train(one_training(pair, out, force=force), Silent())
        with pytest.raises(UserError, match="another process is writing"), making(out, force):
            pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert train(one_training(pair, out), Silent()) == [out]
    assert not list(tmp_path.glob(".*.lock"))


def test_an_adapter_that_appeared_meanwhile_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="already holds an adapter"), making(out, False) as folder:
        (folder / "config.json").write_text("mine")
        out.mkdir()
        (out / "config.json").write_text("theirs")
    assert (out / "config.json").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["a", "a/b/c", "."])
def test_a_lock_is_freed_and_waited_for(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for wait in (False, True, False):
        refused = pytest.raises(UserError, match="another process")
        with locked(Path(place), wait=wait), refused, locked(Path(place)):
            pass
    assert not list(tmp_path.rglob("*.lock"))


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def _begin(*line: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lcfbench", *map(str, line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("verb", ["train", "prune"])
def test_of_two_writers_at_once_one_saves_and_the_other_is_told(tmp_path, verb):
    """Two real processes with random models of a few thousand weights."""
    pair, out = helpers.save_pair(tmp_path), tmp_path / "new" / "out"
    small = ["--task", "splitfacts", "--steps", "3", "--batch-size", "2", "--dev-documents", "2", "--force"]
    line = ["train", "--pair", pair, *small, "--dtype", "float32", "--offline", "--out", out]
    if verb == "prune":
        train(one_training(pair, tmp_path / "whole", steps=2, lr=1e-2), Silent())
        line = ["adapter", "prune", tmp_path / "whole", "--dev", "splitfacts", "--limit", "4", "--keep", "1"]
        line += ["--pair", pair, "--dtype", "float32", "--offline", "--force", "--out", out]
    both = [_begin(*line), _begin(*line)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in both]
    codes = sorted(code for *_, code in ended)
    assert codes == [0, 2], ended
    refused = next(err for _, err, code in ended if code == 2)
    assert "another process is writing" in refused.splitlines()[-1] and "Traceback" not in refused
    assert load(out).config.receiver and [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_lock_leaves_no_empty_folders(tmp_path):
    with locked(tmp_path / "a/b/c"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a/b/c"):
        (tmp_path / "a/kept").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["kept"]


def test_what_a_killed_process_was_writing_is_gone_when_the_next_one_has_the_folder(tmp_path):
    left = tmp_path / ".training.parquet.999999999"
    left.write_bytes(b"PAR1 half")
    kept = tmp_path / ".hidden.txt"
    kept.write_text("a user's own")
    with locked(tmp_path):
        finish(tmp_path)
    assert not left.exists() and kept.exists()
