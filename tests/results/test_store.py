"""The store: nothing recorded is lost, and one bad file spoils nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench.errors import UserError
from lcfbench.provenance import digest, environment, file_sha256
from lcfbench.results import schema as records
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.reader import list_runs, load_samples, read_runs
from lcfbench.results.schema import COLUMNS, DESCRIPTIONS, SCHEMA_VERSION, schema
from lcfbench.results.writer import RunWriter, run_id_of
from tests.helpers import IDENTITY
from tests.helpers import sample_row as row
from tests.helpers import start_run as start

TIMES = ["written_at", "row_sha256"]


def full(out: Path, n: int) -> Path:
    writer = start(out)
    for index in range(n):
        writer.append(row(index))
    writer.finish()
    return writer.folder


def test_manifest_is_there_before_the_first_row_and_rows_fill_the_schema(tmp_path: Path) -> None:
    writer = start(tmp_path)
    assert json.loads((writer.folder / "manifest.json").read_text())["state"] == "running"
    writer.append(row(1))
    writer.append(row(0, prediction="half a pair: \ud800"))
    writer.finish({"note": "done"})
    table = pq.read_table(writer.folder / "samples.parquet")
    assert table.schema.equals(schema()) and table["doc_index"].to_pylist() == [0, 1]
    assert table["pair"].to_pylist() == ["a:b"] * 2 and table["seed"].to_pylist() == [0, 0]
    assert json.loads(table["metrics"][1].as_py()) == {"acc": 1}
    manifest = json.loads((writer.folder / "manifest.json").read_text())
    assert (manifest["state"], manifest["documents"], manifest["errors"], manifest["note"]) == (
        "complete",
        2,
        0,
        "done",
    )
    assert sorted(p.name for p in writer.folder.iterdir()) == ["manifest.json", "samples.parquet"]
    assert writer.folder.name == run_id_of(IDENTITY) == f"lcf-splitfacts-matched-{digest(IDENTITY)[:10]}"


@pytest.mark.parametrize(
    "bad", [{"nope": 1}, {"message_bytes": "many"}, {"message_bytes": 1.5}, {"doc_hash": None}]
)
def test_a_row_that_does_not_fit_is_refused_at_once(tmp_path: Path, bad: dict) -> None:
    writer = start(tmp_path)
    with pytest.raises(TypeError):
        writer.append({**row(0), **bad})
    writer.append(row(0))
    writer.finish()
    assert len(read_runs([tmp_path]).rows) == 1


CHILD = """
import sys
from pathlib import Path
from lcfbench.results.writer import RunWriter
from tests.helpers import sample_row as row, start_run as start
writer = start(Path(sys.argv[1]))
for index in range(100_000):
    writer.append(row(index))
    print(index, flush=True)
"""


def test_kill_9_then_resume_equals_uninterrupted(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed")]
    child = subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    while int(child.stdout.readline()) < 20:
        pass
    with pytest.raises(UserError, match=f"another process \\(process {child.pid} on"):
        start(tmp_path / "killed")
    child.send_signal(signal.SIGKILL)
    told = [int(line) for line in child.stdout.read().split()]
    child.wait()
    written = max(told, default=20) + 1
    journal = tmp_path / "killed" / run_id_of(IDENTITY) / "samples.jsonl"
    with open(journal, "ab") as file:
        file.write(b'{"doc_hash": "torn", "doc_in')  # the kill came in the middle of a line
    assert len(read_runs([tmp_path / "killed"]).rows) >= written  # readable as it lies

    writer = start(tmp_path / "killed")
    assert len(writer.done) >= written and "torn" not in writer.done
    total = len(writer.done) + 5
    for index in range(total):
        if f"h{index:03}" not in writer.done:
            writer.append(row(index))
    writer.finish()
    whole = full(tmp_path / "whole", total)
    resumed = pq.read_table(writer.folder / "samples.parquet").drop_columns(TIMES)
    assert resumed.equals(pq.read_table(whole / "samples.parquet").drop_columns(TIMES))
    manifest = json.loads((writer.folder / "manifest.json").read_text())
    assert manifest["state"] == "complete" and len(manifest["sessions"]) == 2


def test_interrupt_keeps_rows_and_a_resumed_run_tries_errors_again(tmp_path: Path) -> None:
    writer = start(tmp_path)
    writer.append(row(0))
    writer.append(row(1, score=None, error="out of memory"))
    writer.interrupt()
    assert (
        not (writer.folder / "samples.jsonl").exists()
        and read_runs([tmp_path]).manifests[writer.run_id].errors == 1
    )
    again = start(tmp_path)
    assert again.done == {"h000"} and not again.complete
    again.append(row(1))
    again.finish()
    rows = read_runs([tmp_path]).rows
    assert (
        rows["doc_hash"].tolist() == ["h000", "h001"]
        and rows["error"].isna().all()
        and rows["score"].tolist() == [0.0, 1.0]
    )


def test_a_finished_run_is_not_run_again_unless_fresh(tmp_path: Path) -> None:
    folder = full(tmp_path, 3)
    before = (folder / "manifest.json").read_bytes(), (folder / "samples.parquet").read_bytes()
    writer = start(tmp_path)
    assert writer.complete and len(writer.done) == 3
    writer.finish()
    assert before == ((folder / "manifest.json").read_bytes(), (folder / "samples.parquet").read_bytes())
    fresh = RunWriter.open(tmp_path, IDENTITY, {}, fresh=True)
    assert not fresh.complete and fresh.done == set()
    fresh.append(row(0))
    fresh.finish()
    assert len(read_runs([folder]).rows) == 1


def test_two_writers_of_one_run(tmp_path: Path) -> None:
    writer = start(tmp_path)
    with pytest.raises(UserError, match="being written by another process"):
        start(tmp_path)
    start(tmp_path, seed=1).finish()  # another run is free
    writer.finish()
    assert start(tmp_path).complete


def test_a_full_disk_is_one_line_and_keeps_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start(tmp_path)
    writer.append(row(0))
    real = os.write

    def half(handle: int, data: bytes) -> int:
        real(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(UserError, match=r"No space left on device.*stays"):
            writer.append(row(1))
    assert writer.done == {"h000"}
    writer.append(row(2))  # the half line is gone
    with monkeypatch.context() as patch:
        patch.setattr(
            records.os,
            "replace",
            lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
        )
        with pytest.raises(UserError, match="No space left"):
            writer.finish()
    assert not list(writer.folder.glob(".*")) and read_runs([tmp_path]).rows["doc_hash"].tolist() == [
        "h000",
        "h002",
    ]
    writer.finish()
    assert read_runs([tmp_path]).rows["doc_hash"].tolist() == ["h000", "h002"]


def test_one_bad_file_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = full(tmp_path, 4)
    bad = tmp_path / "lcf-broken"
    bad.mkdir()
    (bad / "manifest.json").write_text("{}")
    (bad / "samples.parquet").write_bytes(b"PAR1 not a parquet file")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (good / "manifest.json").write_text("{ torn")  # its rows are still good
    runs = read_runs([tmp_path, tmp_path / "absent"])
    assert len(runs.rows) == 4 and set(runs.manifests) == {good.name}
    told = "\n".join(runs.warnings)
    assert (
        "lcf-broken: skipped" in told
        and "other.parquet: skipped" in told
        and "absent: no such" in told
        and "manifest.json" in told
    )
    with pytest.raises(UserError, match="lcf-broken"):
        read_runs([bad])
    states = {run.get("run_id", ""): run.get("state") for run in list_runs(tmp_path)}
    assert states[good.name] == "unreadable"


def test_older_and_newer_schemas_open(tmp_path: Path) -> None:
    folder = full(tmp_path, 2)
    table = pq.read_table(folder / "samples.parquet")
    older = table.select(["run_id", "doc_hash", "score", "mode"]).set_column(
        1, "doc_hash", table["doc_hash"].dictionary_encode()
    )
    pq.write_table(older, tmp_path / "older.parquet")
    rows = read_runs([tmp_path / "older.parquet"]).rows
    assert (
        list(rows.columns) == list(COLUMNS)
        and rows["ttft_ms"].isna().all()
        and rows["score"].tolist() == [0.0, 1.0]
    )
    second = table.set_column(1, "schema_version", pa.array([2, 2]))  # as version 2 wrote it
    second = second.drop_columns(["row_sha256"])
    pq.write_table(second, tmp_path / "second.parquet")
    assert read_runs([tmp_path / "second.parquet"]).rows["schema_version"].tolist() == [2, 2]
    newer = table.append_column("entropy", pa.array([0.1, 0.2]))
    pq.write_table(newer, folder / "samples.parquet")
    runs = read_runs([folder])
    assert len(runs.rows) == 2 and "entropy" in runs.warnings[0] and SCHEMA_VERSION == 6


def test_a_run_named_twice_is_read_once(tmp_path: Path) -> None:
    folder = full(tmp_path, 2)
    assert len(read_runs([tmp_path, folder, folder / "samples.parquet", folder / "manifest.json"]).rows) == 2
    assert list_runs(tmp_path)[0]["run_id"] == folder.name


def test_appending_is_cheap(tmp_path: Path) -> None:
    writer = start(tmp_path)
    begin = time.perf_counter()
    for index in range(500):
        writer.append(row(index))
    assert (time.perf_counter() - begin) / 500 < 0.005  # seconds a row, against tens of ms for a document


def test_provenance(tmp_path: Path) -> None:
    assert digest({"b": 1, "a": [1, 2]}) == digest({"a": (1, 2), "b": 1}) != digest({"a": [2, 1], "b": 1})
    with pytest.raises(TypeError):
        digest({"a": object()})
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    found = environment(device="cuda:0", threads=3)
    assert (
        found["libraries"]["pyarrow"] == pa.__version__
        and found["device"] == "cuda:0"
        and found["threads"] == 3
    )


def test_facts_recorded_while_a_run_is_open_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = start(tmp_path)
    writer.record(sends=True, together=2)
    writer.close()
    found = Manifest.lenient(read_manifest(writer.folder), writer.folder)[0]
    assert (found.sends, found.together, found.state, found.chance) == (True, 2, "running", 1 / 3)
    again = start(tmp_path)
    again.finish({"seconds": 1.5})
    found = Manifest.lenient(read_manifest(writer.folder), writer.folder)[0]
    assert (found.seconds, found.documents, len(found.sessions)) == (1.5, 0, 2)


@pytest.mark.parametrize("bad", [{"sittings": 3}, {"sessions": None}, {"state": []}, {"started_at": 1}])
def test_a_run_with_a_damaged_manifest_is_continued(tmp_path: Path, bad: dict) -> None:
    folder = full(tmp_path, 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "state": "interrupted", **bad}))
    again = start(tmp_path)
    assert len(again.done) == 2
    again.finish()
    assert start(tmp_path).complete


def test_files_left_by_killed_processes_go_when_the_run_is_opened(tmp_path: Path) -> None:
    writer = start(tmp_path)
    writer.close()
    for name in (".manifest.json.123", ".samples.parquet.45"):
        (writer.folder / name).write_text("half")
    start(tmp_path).close()
    assert sorted(p.name for p in writer.folder.iterdir()) == ["manifest.json", "samples.jsonl"]


def test_keys_under_their_older_names_are_read(tmp_path: Path) -> None:
    old = {"sittings": [{"at": "2026-01-01"}], "senders_sha256": "ab", "state": "complete", "entropy": 1}
    found, warnings = Manifest.lenient(old, tmp_path)
    assert not warnings and found.sessions[0].at == "2026-01-01" and found.message_from_sha256 == "ab"
    found.write(tmp_path)
    assert read_manifest(tmp_path) == {
        "sessions": [{"at": "2026-01-01"}],
        "message_from_sha256": "ab",
        "state": "complete",
        "entropy": 1,
    }


def test_every_key_and_every_column_is_described() -> None:
    assert all(field.description for field in Manifest.model_fields.values())
    assert set(DESCRIPTIONS) == set(COLUMNS) and all(DESCRIPTIONS.values())


def test_samples_are_loaded_as_one_frame(tmp_path: Path) -> None:
    folder = full(tmp_path, 3)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.warns(UserWarning, match=r"bad.parquet: skipped") as caught:
        frame = load_samples(str(tmp_path), ["doc_hash", "score"])
    assert caught[0].filename == __file__
    assert list(frame.columns) == ["doc_hash", "score", "run_id"] and len(frame) == 3
    assert list(load_samples([folder]).columns) == list(COLUMNS)


# -- a long run


@pytest.mark.parametrize("tail", [b"", b'{"doc_hash": "torn', b'{"doc_hash": "' + b"x" * 500])
@pytest.mark.parametrize("block", [1, 7, 100, 1 << 16])
def test_the_journals_last_whole_line_is_found_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes, block: int
) -> None:
    monkeypatch.setattr(records, "TAIL_BYTES", block)
    whole = b'{"doc_hash": "a"}\n' * 30
    (tmp_path / "journal").write_bytes(whole + tail)
    assert records.journal_end(tmp_path / "journal") == len(whole)
    (tmp_path / "journal").write_bytes(tail)
    assert records.journal_end(tmp_path / "journal") == 0


def test_scores_recorded_before_come_without_a_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a stopped session's parquet file and a killed one's journal; a later failure counts."""
    first = start(tmp_path)
    for index in range(4):
        first.append(row(index))
    first.append(row(4, score=0.0, error="out of memory"))
    first.interrupt()
    second = start(tmp_path)
    assert sorted(second.before) == [0.0, 0.0, 1.0, 1.0] and second.done == {"h000", "h001", "h002", "h003"}
    second.append(row(4, score=0.25))
    second.append(row(0, score=0.0, error="out of memory"))
    second.close()
    third = start(tmp_path)
    assert sorted(third.before) == [0.0, 0.25, 1.0, 1.0] and third.done == {"h001", "h002", "h003", "h004"}
    third.finish()
    assert third.manifest.documents == 5 and third.manifest.errors == 1
