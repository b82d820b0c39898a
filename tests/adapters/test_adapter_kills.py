"""A process that is killed at any step leaves the old adapter or the new one, whole."""

from __future__ import annotations

import itertools
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lcfbench.adapters import hub
from lcfbench.adapters.base import build
from lcfbench.adapters.config import CONFIG, SOURCE, WEIGHTS, pair_config, read_config, weights_sha256
from lcfbench.adapters.files import REPORT, load, making, save
from lcfbench.adapters.select import adapters_table
from lcfbench.errors import UserError
from lcfbench.files import settle
from lcfbench.geometry import Geometry

GEOMETRY = Geometry(layers=2, kv_heads=1, head_dim=8)
STEPS = ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync", "chmod", "open")


def adapter(receiver: str, width: int) -> object:
    torch.set_num_threads(1)
    torch.manual_seed(width)
    options = {"width": width, "standardise": True, "gate": "soft"}
    return build(pair_config("lcfx", (receiver, GEOMETRY), ("s", GEOMETRY), options=options))


def by_save(out: Path, new: Path) -> None:
    """As a training saves under --force, and at each interruption."""
    save(adapter("new", 8), out, "# new", replace=True)


def by_making(out: Path, new: Path) -> None:
    """As a pruning and an import save."""
    with making(out, force=True) as made:
        save(adapter("new", 8), made, "# new")


def by_pull(out: Path, new: Path) -> None:
    """The test has set `LCFBENCH_MIRROR`."""
    hub.pull("me/new", out, force=True, offline=True)


def killed(work: Callable[[], None], step: int, after: bool) -> bool:
    """Runs `work` in a process that dies at its `step`-th change of the disk; tells whether it died."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    counter = itertools.count()

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if next(counter) == step:
                try:
                    if after:
                        real(*args, **kwargs)
                finally:
                    os._exit(9)
            return real(*args, **kwargs)

        return call

    try:
        for name in STEPS:
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


@pytest.mark.parametrize("there", ["adapter", "folder", "nothing", "link"])
@pytest.mark.parametrize("write", [by_save, by_making, by_pull], ids=lambda w: w.__name__)
def test_a_kill_at_any_step_leaves_one_adapter_whole(tmp_path, monkeypatch, write, there):
    monkeypatch.chdir(tmp_path)
    new = tmp_path / "mirror"
    monkeypatch.setenv("LCFBENCH_MIRROR", str(new))
    save(adapter("new", 8), new / "adapters/me/new", "# new")
    save(adapter("old", 4), tmp_path / "kept", "# old")
    (tmp_path / "kept" / REPORT).write_text("of the old one")
    sums = {"old": weights_sha256(tmp_path / "kept"), "new": weights_sha256(new / "adapters/me/new")}
    seen = set()
    for step, after in ((n // 2, bool(n % 2)) for n in itertools.count()):
        top = tmp_path / f"step{step}{after}"
        out = top / "out"
        top.mkdir()
        if there in ("adapter", "link"):
            shutil.copytree(tmp_path / "kept", top / "real")
            (top / "real").rename(out) if there == "adapter" else out.symlink_to("real")
        elif there == "folder":
            out.mkdir()
        if there != "nothing":
            (out / "training.jsonl").write_text("kept")
        died = killed(lambda out=out: write(out, new), step, after)
        rows = adapters_table([top])[-1:]
        if (found := found_at(out)) is not None:
            assert weights_sha256(out) == sums[found] and load(out).config.receiver == found
            assert (out / REPORT).exists() == (found == "old")
            assert rows[0]["pair"] == f"{found}:s"
        else:
            assert there in ("folder", "nothing") and not (out / WEIGHTS).exists()
        assert there == "nothing" or (out / "training.jsonl").read_text() == "kept"
        seen.add(found)
        write(out, new)  # it goes through, and tidies up
        assert found_at(out) == "new" and weights_sha256(out) == sums["new"]
        expected = {"README.md", WEIGHTS, CONFIG, *(["training.jsonl"] if there != "nothing" else [])}
        expected |= {SOURCE} if write is by_pull else set()
        assert {p.name for p in out.iterdir()} == expected
        left = {p.name for p in top.iterdir() if not p.name.endswith(".lock")}
        assert left == ({"out", "real"} if there == "link" else {"out"})
        if not died:
            break
    assert step > 8 and seen == {"new", "old" if there in ("adapter", "link") else None}


def found_at(out: Path) -> str | None:
    try:
        return read_config(out).receiver
    except UserError as error:
        assert "holds no adapter" in str(error)
        return None


def test_an_exchange_that_another_process_is_doing_is_waited_for(tmp_path, monkeypatch):
    from lcfbench.files import READY, locked

    (tmp_path / "out" / READY).mkdir(parents=True)
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another process is writing"):
        settle(tmp_path / "out")
    assert sum(naps) > 3
    settle(tmp_path / "out")
    assert not (tmp_path / "out" / READY).exists()
