"""Scores and times by the length of the sharer's context: which runs are points of which line."""

from __future__ import annotations

import csv
import shutil
import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lcfbench.analysis.length import Choice, points_of, tables
from lcfbench.analysis.plots import length as figure
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.api import Results
from lcfbench.errors import UserError
from tests.helpers import ROOT, invoke, printed, run_recipe, save

LENGTHS = (0, 4, 9)
METHODS = {"receiver": [{}], "full_context": [{}], "kvcomm": [{}], "t2t": [{"budget": 2}, {"budget": 3}]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five methods at three lengths, matched and deranged."""
    folder = tmp_path_factory.mktemp("length")
    end = save(folder / "one")
    for distractors in LENGTHS:
        given = {"mode": "receiver,full_context,kvcomm,t2t:budget=2,3", "control": ["matched", "deranged"]}
        asked = {"task_options": {"distractors": str(distractors)}, "latency_documents": 1, "limit": 4}
        run_recipe(f"{end}:{end}", folder / "results", task="splitfacts", **given, **asked)
    return folder / "results"


def points(runs: Path, *more: Path, **chosen: str) -> tuple[list[dict], list[str]]:
    warnings: list[str] = []
    return points_of(read_run_groups([runs, *more]), Choice(**chosen), warnings), warnings


def test_each_method_is_a_line_over_the_lengths(runs: Path) -> None:
    found, warnings = points(runs)
    assert not warnings and {line["setting"] for line in found} == {""}
    names = ["receiver", "full_context", "kvcomm", "t2t budget=2", "t2t budget=3"]
    assert [line["method"] for line in found] == [name for name in names for _ in LENGTHS]
    read = [line["tokens"] for line in found[:3]]
    assert read == sorted(set(read)) and read * len(names) == [line["tokens"] for line in found]
    (title,) = figure.panels(found)
    assert title.startswith("splitfacts (cloze): receiver ")


def test_a_point_is_what_its_rows_say(runs: Path) -> None:
    for line in points(runs)[0]:
        own = pq.read_table(runs / line["run_id"] / "samples.parquet").to_pylist()
        assert line["score"] == pytest.approx(sum(r["score"] for r in own) / len(own))
        (timed,) = (r for r in own if r["ttea_ms"] is not None)
        assert (line["ttea_ms"], line["ttea_n"]) == (pytest.approx(timed["ttea_ms"]), 1)
        assert line["after_ms"] == pytest.approx(timed["ttea_ms"] - timed["sharer_ms"])
        assert (line["content"] == line["content"]) == (line["mode"] in ("kvcomm", "t2t"))
        if line["mode"] == "kvcomm":
            assert line["tokens"] == statistics.median(r["sharer_tokens"] for r in own)


def test_other_options_of_the_task_are_panels_of_their_own(runs: Path, tmp_path: Path) -> None:
    """Runs that ask another number of hops are not points of the same line."""
    end = runs.parent / "one"
    asked = {"task_options": {"distractors": "4", "hops": "1"}, "latency_documents": 0, "limit": 4}
    run_recipe(f"{end}:{end}", tmp_path, mode="kvcomm", control=["matched"], task="splitfacts", **asked)
    found, _ = points(runs, tmp_path)
    assert [title.partition("; ")[2] for title in figure.panels(found)] == ["hops=1", "hops=2"]
    assert sum(line["setting"] == "hops=1" for line in found) == 1
    by_hops, _ = points(runs, tmp_path, dial="hops")  # then the distractors tell the panels apart
    assert {line["setting"] for line in by_hops} == {f"distractors={n}" for n in LENGTHS}


def test_of_two_runs_of_one_context_the_larger_is_drawn_and_the_other_named(
    runs: Path, tmp_path: Path
) -> None:
    end = runs.parent / "one"
    asked = {"task_options": {"distractors": "4"}, "latency_documents": 0, "limit": 2}
    run_recipe(f"{end}:{end}", tmp_path, mode="kvcomm", control=["matched"], task="splitfacts", **asked)
    for given in ((runs, tmp_path), (tmp_path, runs)):
        found, warnings = points(*given)
        assert [line["documents"] for line in found if line["mode"] == "kvcomm"] == [4, 4, 4]
        assert len(warnings) == 1 and "has the same context and more documents" in warnings[0]
        assert warnings[0].startswith(next(tmp_path.glob("kvcomm-*")).name)


def test_without_a_sharer_no_length_is_known(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in runs.glob("receiver-*"):
        (alone / path.name).symlink_to(path)
    with pytest.raises(UserError, match="no run tells how long") as refused:
        points(alone)
    assert "kvcomm" in refused.value.next_step
    (alone / "one").symlink_to(next(runs.glob("kvcomm-*-matched-*")))
    found, warnings = points(alone)
    assert [line["mode"] for line in found] == ["receiver", "kvcomm"]
    assert warnings == [
        "receiver (splitfacts) is left out: no run of these documents tells how much a sharer read."
    ]


def test_the_verb_draws_and_prints(runs: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    table = tmp_path / "numbers.csv"
    argv = ("plot", "length", runs, "--task", "splitfacts", "--out", tmp_path, "--data", table)
    code, out, err = invoke(capsys, monkeypatch, *argv)
    assert code == 0 and not err and "full_context" in out
    assert out.split()[-3:] == [*(str(tmp_path / f"length.{kind}") for kind in ("png", "svg")), str(table)]
    Image.open(tmp_path / "length.png").load()
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    found = points(runs)[0]
    assert [(w["run_id"], float(w["score"])) for w in written] == [(p["run_id"], p["score"]) for p in found]
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("length.*")}
    again = Results([runs])
    assert {p.name: p.read_bytes() for p in again.plot_length(tmp_path / "again")} == drawn
    with pytest.raises(UserError, match="dail"):
        again.plot_length(tmp_path, dail="hops")


def test_the_numbers_beside_the_figure_are_those_of_its_rows() -> None:
    found, warnings = points(ROOT / "results" / "length")
    with (ROOT / "results" / "length.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert not warnings and [line["run_id"] for line in found] == [line["run_id"] for line in written]
    for line, kept in zip(found, written, strict=True):
        for name in ("tokens", "documents", "score", "content", "ttea_ms", "after_ms", "message_bytes"):
            assert (float(kept[name]) if kept[name] else None) == (
                pytest.approx(line[name]) if line[name] == line[name] else None
            ), (line["run_id"], name)


def test_a_terminal_of_80_columns_shows_the_table(runs: Path, capsys, monkeypatch) -> None:
    shown = printed(capsys, monkeypatch, 80, *tables(points(runs)[0]))
    assert max(map(len, shown.splitlines())) <= 80
    assert all(word in shown for word in ("content P", "answer", "then s:", "n=4"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--data", "numbers.txt"), "does not end in .csv. Name it numbers.csv."),
        (("--task", "planted"), "unknown task of these runs 'planted'"),
        (("--pair", "a:b"), "unknown pair of these runs 'a:b'"),
        (("--dial", "distractor"), "no run has a task option distractor. They have "),
    ],
)
def test_what_cannot_be_drawn_is_one_line(runs: Path, capsys, monkeypatch, tmp_path, given, said) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(capsys, monkeypatch, "plot", "length", runs, *given)
    assert code == 2 and not out and err.count("\n") == 1 and said in err, err


def test_a_run_that_has_only_begun_is_no_point(runs: Path, tmp_path: Path) -> None:
    for path in runs.glob("*-matched-*"):
        shutil.copytree(path, tmp_path / path.name)
    begun = next(tmp_path.glob("kvcomm-*"))
    table = pq.read_table(begun / "samples.parquet")
    pq.write_table(table.slice(0, 0), begun / "samples.parquet")
    found, _ = points(tmp_path)
    assert begun.name not in {line["run_id"] for line in found}
    assert len([line for line in found if line["mode"] == "kvcomm"]) == len(LENGTHS) - 1
