"""Runs are found below the folder that is named; where there are none, the line says where some are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.results import finding
from lcfbench.results.finding import places
from lcfbench.results.reader import list_runs, load_samples
from tests.helpers import invoke, start_run

PARTS = ("manifest.json", "samples.parquet", "samples.jsonl")


def run(folder: Path, part: str = "manifest.json") -> Path:
    folder.mkdir(parents=True)
    (folder / part).write_text("{}")
    return folder


def found(path: Path) -> tuple[list[Path], list[str]]:
    warnings: list[str] = []
    return [*places(path, warnings)], warnings


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "below", ["a", "demo/a", "x/y/a", "x/y/z/u/v/a", "with space/ü/a", "-o/a", "[x]/*/a"]
)
def test_a_run_at_any_level(tmp_path, below, part):
    place = run(tmp_path / below, part)
    assert found(tmp_path) == ([place], [])


def test_nothing_is_looked_for_inside_a_run(tmp_path):
    place = run(tmp_path / "a")
    run(place / "copy")
    assert found(tmp_path) == ([place], []) and found(place) == ([place], [])


@pytest.mark.parametrize("apart", [".gate", ".hidden/deep", "baseline", "demo/baseline", "baseline/v1"])
def test_what_is_left_out_is_read_where_it_is_named(tmp_path, monkeypatch, apart):
    monkeypatch.chdir(tmp_path)
    hidden = run(tmp_path / apart / "a")
    got, warnings = found(tmp_path)
    assert not got and f"there are runs in {apart}" in warnings[0]
    shown = run(tmp_path / "demo" / "b")
    got, warnings = found(tmp_path)
    assert got == [shown] and len(warnings) == ("baseline" in apart)
    assert found(tmp_path / apart) == ([hidden], [])


def to_itself(place: Path) -> None:
    (place / "again").symlink_to(place, target_is_directory=True)


def to_each_other(place: Path) -> None:
    for name in "xy":
        (place / name).mkdir()
    (place / "x" / "y").symlink_to(place / "y")
    (place / "y" / "x").symlink_to(place / "x")


def to_nothing(place: Path) -> None:
    (place / "gone").symlink_to(place / "nowhere")


def to_a_circle(place: Path) -> None:
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")


def to_the_root(place: Path) -> None:
    (place / "root").symlink_to("/proc/self/cwd")


@pytest.mark.parametrize("links", [to_itself, to_each_other, to_nothing, to_a_circle, to_the_root])
def test_links_end(tmp_path, monkeypatch, links):
    monkeypatch.chdir(tmp_path)
    place = run(tmp_path / "demo" / "a")
    links(tmp_path)
    got, _ = found(tmp_path)
    assert place in got and len({p.resolve() for p in got}) == 1


def test_a_linked_folder_of_runs_is_read(tmp_path):
    run(tmp_path / "disk" / "a")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "more").symlink_to(tmp_path / "disk")
    assert found(tmp_path / "results")[0] == [tmp_path / "results" / "more" / "a"]


def test_too_deep_is_not_found_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path.joinpath(*"abcdefghijk"))
    got, warnings = found(tmp_path)
    assert not got and "no runs in this folder" in warnings[0]


def test_a_huge_tree_ends_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "MOST", 100)
    for i in range(30):
        (tmp_path / f"f{i:02}").mkdir()
        for j in range(10):
            (tmp_path / f"f{i:02}" / str(j)).touch()
    _, warnings = found(tmp_path)
    assert "only its first 100 files were looked at" in warnings[0]


def test_thousands_of_runs_are_found_quickly(tmp_path):
    for i in range(3000):
        run(tmp_path / "demo" / f"r{i:04}")
    began = time.monotonic()
    assert len(found(tmp_path)[0]) == 3000
    assert time.monotonic() - began < 10


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "shut").mkdir(mode=0o000)
    assert "Permission denied" in found(tmp_path)[1][0]


@pytest.mark.parametrize("verb", ["show", "verdict", "report", "plot frontier", "check", "compare"])
@pytest.mark.parametrize("named", ["empty", "resluts", "empty/deeper"])
def test_where_runs_are(tmp_path, monkeypatch, capsys, verb, named):
    run(tmp_path / "results" / "demo" / "a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    twice = [named] if verb in ("check", "compare") else []
    code, out, err = invoke(capsys, monkeypatch, *verb.split(), named, *twice)
    assert (code, out) == (2, "") and "there are runs in results/demo" in err.splitlines()[-1]
    (tmp_path / "empty" / "manifest.json").unlink(missing_ok=True)


def test_nowhere_at_all(tmp_path, monkeypatch):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    with pytest.raises(UserError, match=r"make some with `lcfbench run` or `lcfbench demo`"):
        load_samples("results")


def test_listed_with_their_folders(tmp_path, monkeypatch, capsys):
    for below, task in (("demo", "splitfacts"), ("baseline", "openbookqa")):
        start_run(tmp_path / "results" / below, task=task).close()
    monkeypatch.chdir(tmp_path)
    assert len(list_runs(Path("results"))) == 2
    code, out, _ = invoke(capsys, monkeypatch, "ls", "runs")
    assert code == 0 and "demo/" in out and "baseline/" in out
    code, out, _ = invoke(capsys, monkeypatch, "ls", "runs", "--out", "demo")
    assert code == 0 and "there are runs in results/demo" in out
