"""A process that ends at any step of opening, writing or sealing a run loses no row and leaves no litter."""

from __future__ import annotations

import itertools
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench.results import sealing, validation
from lcfbench.results.reader import read_runs, read_table
from lcfbench.results.schema import COLUMNS, SAMPLES, schema
from lcfbench.results.validation import columns_sha256
from lcfbench.results.writer import RunWriter
from tests.fuzz.kills import ENDS, Disturbance, disturb, recorded
from tests.helpers import IDENTITY, sample_row

DOCUMENTS = [f"h{i:03}" for i in range(4)]


def opened(out: Path) -> RunWriter:
    return RunWriter.open(out, IDENTITY, {"chance": 0.5}, documents=DOCUMENTS)


def whole(out: Path) -> None:
    """Answers all that has no row; document 3 fails at the first attempt."""
    writer = opened(out)
    for i, name in enumerate(DOCUMENTS):
        if name not in writer.done:
            failed = i == 3 and len(writer.manifest.sessions) == 1
            writer.append(sample_row(i, error="out of memory") if failed else sample_row(i))
    writer.finish()


def stopped(out: Path) -> None:
    """As Ctrl-C leaves it: sealed after half of the rows."""
    writer = opened(out)
    for i in range(2):
        writer.append(sample_row(i))
    writer.interrupt()


def ended(work: Callable[[], None], how: Disturbance, out: Path) -> bool:
    """Runs `work` in a process that ends at its step; tells whether it did."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, ENDS)
        return code == ENDS
    try:
        disturb(how, out)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


@pytest.mark.parametrize(
    "before, part",
    [*itertools.product(["nothing", "stopped", "failed"], ["before", "after"]), ("nothing", "half")],
)
def test_an_end_at_any_step_loses_no_row_and_leaves_no_litter(tmp_path, before, part):
    for step in itertools.count():
        out = tmp_path / f"{step}"
        out.mkdir()
        if before != "nothing":
            (stopped if before == "stopped" else whole)(out)
        known = recorded(out)
        died = ended(lambda out=out: whole(out), Disturbance("stop", step, part=part), out)
        for run, rows in known.items():
            kept = recorded(out)[run]
            assert all(kept[doc] == row for doc, row in rows.items() if "error" not in row), step
        if any(recorded(out).values()):
            assert len(read_runs([out]).rows) == sum(map(len, recorded(out).values())), step
        for _ in range(2):  # the failure is tried again
            whole(out)
        (folder,) = out.iterdir()
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "samples.parquet"], step
        rows = read_runs([out]).rows
        assert rows["doc_hash"].tolist() == DOCUMENTS and rows["error"].isna().all(), step
        assert rows["score"].tolist() == [0.0, 1.0, 0.0, 1.0], step
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["state"], manifest["documents"], manifest["errors"]) == ("complete", 4, 0), step
        if not died:
            break
    assert step > 10


def rows_of_two_sessions(out: Path) -> RunWriter:
    """A parquet file of an earlier session, and a journal that is newer: failures, gaps, other orders."""
    asked = [f"h{i:03}" for i in range(10)]
    first = RunWriter.open(out, IDENTITY, {}, documents=asked)
    for i in (2, 0, 5, 1):
        first.append(sample_row(i, prediction="ä" * i, message_bytes=i or None))
    first.append(sample_row(9, score=0.0, error="out of memory"))
    first.interrupt()
    second = RunWriter.open(out, IDENTITY, {}, documents=asked)
    for i in (9, 7, 3, 8, 4, 6):
        second.append(sample_row(i, doc_id=f"d{i}", parsed=bool(i % 2), gold=None if i % 3 else "gold"))
    second.append(sample_row(7, score=0.0, error="it failed again"))
    return second


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("rows, size", [(1000, 1 << 24), (3, 1 << 24), (1, 1 << 24), (1000, 1500), (1000, 1)])
def test_a_run_sealed_in_pieces_is_the_table_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, size: int, both: bool
) -> None:
    """Held against all rows as one table, with the digests that a table has."""
    for module in (sealing, validation):
        monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(sealing, "ROWS", rows)
    monkeypatch.setattr(sealing, "BYTES", size)
    monkeypatch.setattr(sealing, "OBJECTS", min(rows, 4))
    monkeypatch.setattr(sealing, "LINES", min(rows, 2))
    writer = rows_of_two_sessions(tmp_path)
    if not both:
        (writer.folder / SAMPLES).unlink()
    whole = read_table(writer.folder, tuple(COLUMNS), [], writer.run_id).cast(schema())
    expected = whole.sort_by([("doc_index", "ascending"), ("doc_hash", "ascending")])
    parts: list[int] = []
    read = sealing.RecordedRows._read
    monkeypatch.setattr(
        sealing.RecordedRows,
        "_read",
        lambda self, numbers, names: parts.append(len(numbers)) or read(self, numbers, names),
    )
    writer.finish()
    sealed = pq.read_table(writer.folder / SAMPLES)
    assert sealed.schema.equals(schema(), check_metadata=True) and sealed.equals(expected)
    assert writer.manifest.columns_sha256 == columns_sha256(expected)
    assert writer.manifest.documents == len(expected) == (10 if both else 6)
    assert writer.manifest.errors == 1
    assert writer.manifest.samples_bytes == (writer.folder / SAMPLES).stat().st_size
    assert max(parts) <= rows and (size > 1 or max(parts) <= 5), "rows in memory have no length"
    if (rows, size) == (1000, 1 << 24):
        assert len(parts) == 1
        with open(tmp_path / "at-once", "wb") as file:
            pq.write_table(expected, file, compression="zstd")
        assert (tmp_path / "at-once").read_bytes() == (writer.folder / SAMPLES).read_bytes()


@pytest.mark.parametrize(
    "value",
    [
        '"score": NaN',
        '"flops": 1e400',
        '"flops": 3',
        '"flops": -0.0',
        '"seed": 3.0',
        '"seed": 1e2',
        '"seed": 9007199254740993',
        '"gold": "a\\u0000b \\ud83d\\ude00 \\u00e4 ä"',
        '"gold": "one", "gold": "two"',
        '"parsed": true, "unknown": {"a": [1, null]}',
        '"gold": null',
    ],
)
def test_lines_become_the_table_that_python_makes_of_them(value: str) -> None:
    """Of values that pyarrow reads otherwise or not at all, too."""
    kinds = pa.schema([(name, schema().field(name).type) for name in ("score", "flops", "seed", "gold")])
    kinds = kinds.append(pa.field("parsed", pa.bool_()))
    lines = [b'{"gold": "x", "seed": 1}\n', f"{{{value}}}\n".encode()]
    found = sealing._parsed(lines, kinds)
    expected = pa.Table.from_pylist([json.loads(line) for line in lines], kinds)
    assert found.schema.equals(kinds) and str(found.to_pylist()) == str(expected.to_pylist())


def test_memory_of_sealing_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's and pyarrow's, beside some bytes a row; the rows have 4 kB each."""
    import tracemalloc

    monkeypatch.setattr(sealing, "ROWS", 200)

    def most(count: int) -> float:
        writer = RunWriter.open(tmp_path, IDENTITY | {"limit": count}, {})
        line = sample_row(0, receiver_prompt="x" * 4000)
        for i in range(count):
            writer.append(line | {"doc_hash": f"h{i:05}", "doc_index": i})
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        before = pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            writer.finish()
            return pool.max_memory() + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)

    few, many = most(500), most(1700)
    assert (many - few) / 1200 < 800, (few, many)
