"""Runs that are followed while they are written: the numbers of `show`, each row read once, no damage."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from lcfbench.analysis.stats import mean_interval
from lcfbench.errors import UserError
from lcfbench.results.reader import read_runs
from lcfbench.results.writer import RunWriter
from lcfbench.watching import follow
from lcfbench.watching.follow import FollowedRun
from lcfbench.watching.results import Watched
from lcfbench.watching.table import names, table_of
from tests.helpers import IDENTITY, printed, sample_row
from tests.results import damages

FACTS = {"chance": 1 / 3, "recipe": {"max_failed": "0.5"}}


def begin(out: Path, documents: int = 40, **more: object) -> RunWriter:
    return RunWriter.open(out, {**IDENTITY, **more}, FACTS, documents=[f"h{i:03}" for i in range(documents)])


def fill(writer: RunWriter, some: range, **more: object) -> None:
    for i in some:
        writer.append(sample_row(i, prediction="x", metric="acc", amortized_ms=10.0 + i, **more))


def test_a_run_is_followed_from_its_first_row_to_its_end(tmp_path) -> None:
    writer = begin(tmp_path)
    run = FollowedRun(writer.folder)
    run.poll()
    assert (run.view().state, run.view().done, run.view().left) == ("new", 0, 40)
    for end in (1, 2, 17, 40):
        fill(writer, range(len(run.rows.scores), end))
        run.poll()
        view, found = run.view(), mean_interval([float(i % 2) for i in range(end)])
        assert (view.state, view.done, view.left) == ("running", end, 40 - end)
        assert (view.score, view.low, view.high) == (found.value, found.low, found.high)
        assert view.ms_per_document == pytest.approx(np.mean([10.0 + i for i in range(end)]))
    writer.finish({"documents_per_second": 5.0})
    run.poll()
    view = run.view()
    assert (view.state, view.done, view.left, view.eta_s) == ("complete", 40, 0, None)
    assert view.score == 0.5 and view.documents_per_s == 5.0
    assert view == _fresh(writer.folder)


def _fresh(folder: Path) -> follow.RunView:
    run = FollowedRun(folder)
    run.poll()
    return run.view()


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch) -> None:
    writer = begin(tmp_path, 400)
    fill(writer, range(300))
    run = FollowedRun(writer.folder)
    run.poll()
    read: list[int] = []
    real = follow.is_row
    monkeypatch.setattr(follow, "is_row", lambda row, name: read.append(1) or real(row, name))
    run.poll()
    assert not read
    fill(writer, range(300, 303))
    run.poll()
    assert len(read) == 3 and run.view().done == 303
    writer.close()


def test_half_a_line_counts_when_it_is_whole(tmp_path) -> None:
    writer = begin(tmp_path)
    fill(writer, range(3))
    journal = writer.folder / "samples.jsonl"
    whole = journal.read_bytes()
    cut = whole[: len(whole) - 30]
    journal.write_bytes(cut)
    run = FollowedRun(writer.folder)
    run.poll()
    assert (run.view().done, run.view().note) == (2, "")
    with open(journal, "ab") as file:
        file.write(whole[len(cut) :])
    run.poll()
    assert (run.view().done, run.view().note) == (3, "")
    writer.close()


def test_a_large_journal_is_read_in_portions_and_says_so(tmp_path, monkeypatch) -> None:
    writer = begin(tmp_path)
    fill(writer, range(40), receiver_prompt="long " * 200)
    monkeypatch.setattr(follow, "PORTION", 3000)
    run = FollowedRun(writer.folder)
    seen = []
    while not seen or run.behind:
        run.poll(until=0.0)
        seen.append(run.view().done)
    run.poll()
    assert len(seen) > 5 and seen == sorted(seen) and run.view().done == 40
    writer.close()


def test_failed_documents_count_as_wrong_until_they_are_answered(tmp_path) -> None:
    writer = begin(tmp_path, 10)
    for i in range(10):
        bad = (
            {"error": "boom", "score": 0.0}
            if i < 3
            else {"score": 1.0, "prediction": None if i == 9 else "x"}
        )
        writer.append(sample_row(i) | bad)
    writer.interrupt()
    view = _fresh(writer.folder)
    assert (view.state, view.score, view.errors, view.unparsed) == ("interrupted", 0.7, 3, 1)
    writer = begin(tmp_path, 10)
    run = FollowedRun(writer.folder)
    run.poll()
    assert run.view().state == "running"
    for i in range(2):
        writer.append(sample_row(i, prediction="x") | {"score": 1.0})
    run.poll()
    view = run.view()
    assert (view.score, view.errors, view.done) == (0.9, 1, 10)
    writer.finish()
    run.poll()
    assert (run.view().state, run.view().score) == ("complete", 0.9)


def test_a_run_killed_as_it_was_sealed_counts_no_row_twice(tmp_path) -> None:
    writer = begin(tmp_path, 10)
    fill(writer, range(10))
    kept = (writer.folder / "samples.jsonl").read_bytes()
    writer.finish()
    (writer.folder / "samples.jsonl").write_bytes(kept)
    view = _fresh(writer.folder)
    assert (view.done, view.left, view.score) == (10, 0, 0.5)


def test_starting_over_forgets_the_rows_before(tmp_path) -> None:
    writer = begin(tmp_path)
    fill(writer, range(20))
    run = FollowedRun(writer.folder)
    run.poll()
    writer.close()
    writer = RunWriter.open(tmp_path, IDENTITY, FACTS, fresh=True, documents=[f"h{i:03}" for i in range(40)])
    fill(writer, range(30))  # longer than what was read before
    run.poll()
    assert (run.view().done, run.view().note) == (30, "")
    writer.close()


def test_states(tmp_path, monkeypatch) -> None:
    killed = begin(tmp_path, mode="killed")
    fill(killed, range(3))
    killed.close()
    assert _fresh(killed.folder).state == "stopped"
    quiet = begin(tmp_path, mode="quiet")
    fill(quiet, range(3))
    old = time.time() - 3600
    for path in quiet.folder.iterdir():
        os.utime(path, (old, old))
    view = _fresh(quiet.folder)
    assert view.state == "stale" and "60 min" in view.note
    quiet.close()
    failed = begin(tmp_path, 4, mode="failed")
    for i in range(4):
        failed.append(sample_row(i) | {"error": "boom", "score": 0.0})
    failed.finish()
    assert _fresh(failed.folder).state == "failed"


def test_speed_and_time_left_are_by_the_clock(tmp_path, monkeypatch) -> None:
    rows = follow.Rows()
    for second in range(5):  # batches of eight, two seconds apart
        for i in range(8):
            at = f"2026-01-01T00:00:{2 * second:02}+00:00"
            rows.add({"doc_hash": f"{second}-{i}", "score": 1.0, "amortized_ms": 1.0, "written_at": at})
    assert rows.speed == 4.0
    one = follow.Rows()
    one.add({"doc_hash": "a", "score": 1.0, "amortized_ms": 250.0, "written_at": "2026-01-01T00:00:00+00:00"})
    assert one.speed == 4.0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    writer = begin(tmp_path_factory.mktemp("sound"), 12)
    fill(writer, range(12))
    writer.finish()
    return writer.folder


EVERY = {**damages.REFUSED, **damages.GONE, **damages.ODD}


@pytest.mark.parametrize("name", EVERY)
def test_of_a_damaged_run_nothing_is_shown_that_show_would_not_show(recorded, tmp_path, name) -> None:
    folder = tmp_path / recorded.name
    shutil.copytree(recorded, folder)
    EVERY[name](folder)
    run = FollowedRun(folder)
    run.poll()
    view = run.view()
    json.dumps(view.record())
    table_of([view], 0, "results").markdown()
    try:
        rows = read_runs([folder], ("score", "error")).rows
    except UserError:
        assert view.score is None and view.state in ("damaged", "unreadable", "stopped", "unknown"), view
    else:
        assert view.done == len(rows)
        if len(rows):
            assert view.score == pytest.approx(rows["score"].fillna(0.0).mean())
            assert view.errors == rows["error"].notna().sum()


def test_folders_appear_and_vanish(tmp_path) -> None:
    watched = Watched([tmp_path / "later"])
    assert watched.refresh() == []
    writer = begin(tmp_path / "later")
    fill(writer, range(2))
    watched._again = 0.0
    assert [view.done for view in watched.refresh()] == [2]
    writer.close()
    shutil.rmtree(tmp_path / "later")
    assert watched.refresh() == []


def test_of_many_runs_the_newest_are_followed_and_read(tmp_path) -> None:
    for i in range(30):
        writer = begin(tmp_path, 2, mode=f"m{i:02}")
        fill(writer, range(2))
        writer.finish()
        at = time.time() - 1000 + i
        for path in writer.folder.iterdir():
            os.utime(path, (at, at))
    watched = Watched([tmp_path], newest=5)
    assert {view.mode for view in watched.refresh()} == {f"m{i}" for i in range(25, 30)}
    assert watched.hidden == 25
    assert len(Watched([tmp_path]).refresh(wait=True)) == 30


def test_runs_of_one_name_are_told_apart(tmp_path) -> None:
    for out, seed in ((tmp_path / "a", 0), (tmp_path / "b", 0), (tmp_path / "b", 1)):
        begin(out, seed=seed).close()
    views = Watched([tmp_path]).refresh(wait=True)
    assert len(set(names(views))) == 3


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_a_narrow_terminal_loses_columns_but_never_digits(tmp_path, capsys, monkeypatch, width) -> None:
    writer = begin(tmp_path, 1_234)
    fill(writer, range(1000))
    writer.close()
    shown = printed(capsys, monkeypatch, width, table_of(Watched([tmp_path]).refresh(wait=True), 0, "x"))
    assert "50.0 ± 3.1" in shown and "1,000/1,234" in shown and "stopped" in shown
    assert width < 60 or max(map(len, shown.splitlines())) <= width


def test_hostile_names_reach_no_terminal(tmp_path) -> None:
    writer = begin(tmp_path, 2, task="a\x1b[31mb", control="<script>")
    fill(writer, range(2))
    writer.finish()
    view = _fresh(writer.folder)
    assert "\x1b" not in json.dumps(view.record(), ensure_ascii=False).replace("\\\\", "")
    assert view.task == "a\\u001b[31mb"
    assert not math.isnan(view.score)
