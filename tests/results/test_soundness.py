"""Broken manifests, impossible numbers and unfinished runs: named, never fatal for the rest."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
from lcfbench.results.manifest import Manifest
from lcfbench.results.reader import Reading
from lcfbench.results.writer import RunWriter
from tests.helpers import invoke

NAMES = {"pair": "a:b", "receiver": "a", "sharer": "b", "task": "t", "scoring": "letters", "seed": 0}


def write(
    out: Path, mode: str, scores: list[float], control: str = "matched", failed: set[int] = frozenset(), **row
) -> Path:
    writer = RunWriter.open(out, {**NAMES, "mode": mode, "control": control}, {"sends": mode != "receiver"})
    for i, score in enumerate(scores):
        error = {"error": "RuntimeError: out of memory", "score": 0.0} if i in failed else {"score": score}
        writer.append({"doc_hash": f"d{i}", "doc_index": i, "metric": "acc", **row, **error})
    writer.finish()
    return writer.folder


BAD = {
    "identity": "a string",
    "chance": "abc",
    "sessions": "x",
    "sittings": 3,
    "environment": {"libraries": "x"},
    "sources": "x",
    "gates": {"layers": [0, 1], "key": [0.5], "value": [0.5, 0.5]},
    "calibration": {"scores": ["a"]},
    "state": 3,
}


@pytest.mark.parametrize("name", BAD)
def test_a_field_of_another_shape_is_left_out_and_named(name, tmp_path, capsys, monkeypatch):
    write(tmp_path, "receiver", [1.0, 0.0])
    bad = write(tmp_path, "t2t", [1.0, 1.0], message_bytes=9)
    write(tmp_path, "t2t", [1.0, 0.0], "deranged", message_bytes=9)
    manifest = json.loads((bad / "manifest.json").read_text())
    if name == "sittings":  # the older name of the sessions
        del manifest["sessions"]
    (bad / "manifest.json").write_text(json.dumps(manifest | {name: BAD[name]}))
    page = tmp_path / "page.html"
    for verb in (
        ["show", tmp_path],
        ["verdict", tmp_path],
        ["compare", tmp_path, tmp_path],
        ["report", tmp_path, "-o", page],
    ):
        code, out, err = invoke(capsys, monkeypatch, *verb)
        assert code == 0 and f"manifest field {name}" in (page.read_text() if verb[0] == "report" else err)


def test_a_manifest_that_nobody_writes_is_kept_as_far_as_it_goes():
    kept, told = Manifest.lenient({"identity": {"x": math.nan}, "chance": 0.25, "news": [1]}, Path("run"))
    assert (
        kept.model_dump(exclude_unset=True) == {"chance": 0.25, "news": [1]}
        and len(told) == 1
        and "identity" in told[0]
    )
    assert Manifest.lenient({}, Path("run")) == (Manifest(), [])


@pytest.mark.parametrize("score", [2.0, -3.0, math.inf])
def test_scores_that_are_none_make_a_file_unreadable_and_the_rest_stays(score, tmp_path):
    write(tmp_path, "receiver", [1.0, 0.0])
    folder = write(tmp_path, "t2t", [1.0, 0.0])
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(
        table.set_column(table.column_names.index("score"), "score", pa.array([1.0, score])),
        folder / "samples.parquet",
    )
    found = read_run_groups([tmp_path])
    assert [cell.mode for cell in found.groups] == [
        "receiver"
    ] and "1 scores are not between 0 and 1" in found.warnings[0]


def test_times_that_are_none_are_left_out(tmp_path):
    folder = write(tmp_path, "t2t", [1.0, 0.0, 1.0])
    table = pq.read_table(folder / "samples.parquet")
    times = pa.array([math.inf, -5.0, 40.0])
    table = table.set_column(table.column_names.index("ttft_ms"), "ttft_ms", times)
    table = table.set_column(1, "schema_version", pa.array([3, 3, 3])).drop_columns(["row_sha256"])
    pq.write_table(table, folder / "samples.parquet")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"schema_version": 3}
    del manifest["columns_sha256"]  # as a version that did not look at times recorded it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = read_run_groups([tmp_path])
    assert (
        found.groups[0].timed("ttft_ms")[1].tolist() == [40.0]
        and "2 values of ttft_ms are no times" in found.warnings[0]
    )


def test_a_run_that_has_just_begun_has_its_names(tmp_path):
    writer = RunWriter.open(tmp_path, {**NAMES, "mode": "lcf", "control": "matched"}, {})
    line = summarise(read_run_groups([tmp_path]).groups).iloc[0]
    assert (line["mode"], line["task"], line["pair"], line["n"], line["state"]) == (
        "lcf",
        "t",
        "a:b",
        0,
        "running",
    )
    writer.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_killed_before_its_first_row_breaks_nothing(tmp_path, capsys, monkeypatch, beside):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write(whole, "lcf", [1.0, 0.0] * 200)
    RunWriter.open(killed, {**NAMES, "mode": "lcf", "control": "matched"}, {}).close()
    if beside:
        write(killed, "receiver", [1.0, 0.0] * 200)
    page, page2 = tmp_path / "page.html", tmp_path / "page.md"
    expected = {
        ("show", killed): 0,
        ("report", killed, "-o", page): 0,
        ("report", killed, "--markdown", "-o", page2): 0,
        ("plot", "frontier", killed, "--out", tmp_path): 0 if beside else 2,
        ("verdict", killed): 2,
        ("compare", whole, killed): 2,
        ("check", whole, killed): 4,
    }
    for verb, code in expected.items():
        got, out, err = invoke(capsys, monkeypatch, *verb)
        assert (got, "Traceback" in out + err) == (code, False), (verb, out, err)


def test_the_journal_is_read_as_the_parquet_file_is(tmp_path):
    writer = RunWriter.open(tmp_path, {**NAMES, "mode": "lcf", "control": "matched"}, {})
    for i in range(3):
        row = {"doc_hash": f"d{i}", "doc_index": i, "score": 0.0, "receiver_prompt": "long " * 100}
        writer.append(row | ({"error": "out of memory"} if i == 1 else {}))
    writer.interrupt()
    writer = RunWriter.open(tmp_path, {**NAMES, "mode": "lcf", "control": "matched"}, {})
    writer.append({"doc_hash": "d1", "doc_index": 1, "score": 1.0})  # the answer of the one that failed
    with open(writer.folder / "samples.jsonl", "ab") as journal:
        journal.write(b'{"doc_hash": "d9", "score": 1.0}\nnot json\n{"run_id": "x", "doc_ha')
    (part,) = Reading([tmp_path], ("doc_hash", "score"))
    assert part.table.column_names == ["doc_hash", "score", "run_id"]
    assert dict(zip(part.table["doc_hash"].to_pylist(), part.table["score"].to_pylist(), strict=True)) == {
        "d0": 0.0,
        "d1": 1.0,
        "d2": 0.0,
    }


def test_a_long_journal_costs_what_its_columns_cost(tmp_path):
    writer = RunWriter.open(tmp_path, {**NAMES, "mode": "lcf", "control": "matched"}, {})
    with open(writer.folder / "samples.jsonl", "a") as journal:
        for i in range(20_000):
            row = {
                "run_id": writer.run_id,
                "doc_hash": f"d{i}",
                "doc_index": i,
                "score": 1.0,
                "receiver_prompt": "x" * 1500,
            }
            journal.write(json.dumps(row) + "\n")
    tracemalloc.start()
    (part,) = Reading([tmp_path], ("doc_hash", "score"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(part.table) == 20_000 and peak < 12e6, f"{peak / 1e6:.0f} MB for a file of 30 MB"


def test_what_broke_in_the_other_run_makes_nothing_look_good(tmp_path, capsys, monkeypatch):
    """Right answers of the deranged run fail; counted as wrong, the method would communicate."""
    scores = [1.0, 0.0] * 40
    write(tmp_path, "receiver", scores, failed=set(range(0, 60, 2)))
    write(tmp_path, "t2t", scores, message_bytes=9)
    write(tmp_path, "t2t", scores, "deranged", failed=set(range(0, 60, 2)), message_bytes=9)
    line = (
        summarise(read_run_groups([tmp_path]).groups).set_index(["mode", "control"]).loc[("t2t", "matched")]
    )
    assert line["verdict"] == "not judged" and line["content_n"] == line["gain_n"] == 0
    assert "30 of 80 documents failed in t2t (deranged)" in line["verdict_text"]
    assert "no gain: 30 of 80 documents failed in receiver" in line["note"]
    code, out, _ = invoke(capsys, monkeypatch, "verdict", tmp_path)
    assert code == 0 and "30 of 80 documents failed and count as wrong" in " ".join(out.split())


def test_a_method_whose_notes_are_empty_still_sends(tmp_path):
    write(tmp_path, "t2t", [1.0, 0.0], message_bytes=0)
    assert summarise(read_run_groups([tmp_path]).groups).iloc[0]["verdict"] == "untested"
    write(tmp_path, "receiver", [1.0, 0.0], message_bytes=0)
    assert summarise(read_run_groups([tmp_path]).groups).set_index("mode").loc["receiver", "verdict"] == ""
