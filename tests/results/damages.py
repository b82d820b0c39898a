"""Ways in which a recorded run gets damaged, by name; each changes the folder of a finished run.

REFUSED: the rows that are left cannot be relied on. GONE: rows are missing, the others are sound.
ODD: the manifest or a journal is damaged, the rows are not, or the run is as a kill leaves it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[Path], None]
HUGE = 10**400


def samples(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(folder: Path) -> None:
        table = pq.ParquetFile(folder / "samples.parquet").read()
        pq.write_table(change(table), folder / "samples.parquet")

    return damage


def column(name: str, value: Callable[[list], list], kind: Any = None) -> Damage:
    def change(table: pa.Table) -> pa.Table:
        values = pa.array(value(table[name].to_pylist()), kind or table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, values)

    return samples(change)


def first(new: Any) -> Callable[[list], list]:
    return lambda values: [new, *values[1:]]


def manifest(**facts: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return damage


def identity(**facts: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"identity": found["identity"] | facts}))

    return damage


def file(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str, end: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end]) and None


def text(old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return damage


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def journal(*lines: bytes, state: str = "running") -> Damage:
    """As a kill leaves it, with these lines after the first half of the rows."""

    def damage(folder: Path) -> None:
        rows = pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
        whole = [json.dumps(row).encode() + b"\n" for row in rows[: len(rows) // 2]]
        own = json.dumps(folder.name).encode()
        more = [one.replace(b'"OWN"', own) for one in lines]
        (folder / "samples.jsonl").write_bytes(b"".join([*whole, *more]))
        (folder / "samples.parquet").unlink()
        found = json.loads((folder / "manifest.json").read_text()) | {"state": state}
        for name in ("documents", "errors", "columns_sha256", "finished_at"):
            found.pop(name, None)
        (folder / "manifest.json").write_text(json.dumps(found))

    return damage


def line(**cells: Any) -> bytes:
    """A journal line; `journal` puts the damaged run's id in it. `...`: left out."""
    row = {"run_id": "OWN", "schema_version": 3, "doc_hash": "x", "doc_index": 0, "score": 1.0} | cells
    return json.dumps({k: v for k, v in row.items() if v is not ...}).encode() + b"\n"


def killed_at_once(folder: Path) -> None:
    journal()(folder)
    (folder / "samples.jsonl").write_bytes(b"")


def no_journal_either(folder: Path) -> None:
    killed_at_once(folder)
    (folder / "samples.jsonl").unlink()


def other_run(folder: Path) -> None:
    """The file of another run of the same size."""
    column("run_id", lambda values: ["lcf-other-matched-0123456789"] * len(values))(folder)


def mixed(folder: Path) -> None:
    column("run_id", first("lcf-other-matched-0123456789"))(folder)


def appended(table: pa.Table) -> pa.Table:
    one = table.slice(0, 1)
    hashes = pa.array(["another document"])
    one = one.set_column(one.column_names.index("doc_hash"), "doc_hash", hashes).cast(table.schema)
    return pa.concat_tables([table, one])


def _wide(table: pa.Table) -> pa.Table:
    names = [f"c{i}" for i in range(5000)]
    return pa.table([pa.nulls(len(table))] * len(names), names=names)


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def without(*names: str) -> Damage:
    """The manifest without these keys."""

    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in found.items() if k not in names}))

    return damage


def resumed(change: Damage) -> Damage:
    """A run that was interrupted, resumed and killed; the rows of its first session are changed."""

    def damage(folder: Path) -> None:
        path = folder / "samples.parquet"
        table = pq.ParquetFile(path).read()
        pq.write_table(table.slice(0, 6), path)
        change(folder)
        rows = table.slice(6).to_pylist()
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
        without("documents", "errors", "columns_sha256", "samples_bytes", "finished_at")(folder)
        manifest(state="running")(folder)

    return damage


def journal_row(**cells: Any) -> Damage:
    """A run that was killed; the first row of its journal is changed."""

    def damage(folder: Path) -> None:
        journal()(folder)
        path = folder / "samples.jsonl"
        begin, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([json.dumps(json.loads(begin) | cells) + "\n", *rest]))

    return damage


def deep(levels: int) -> Damage:
    return file("manifest.json", b'{"a":' * levels + b"1" + b"}" * levels)


EDITED, CUT = column("score", lambda v: [1.0 - v[0], *v[1:]]), samples(lambda t: t.slice(0, len(t) - 1))
REFUSED: dict[str, Damage] = {
    "a row twice": samples(lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    "a row twice, another gone": samples(lambda t: pa.concat_tables([t.slice(1), t.slice(1, 1)])),
    "a document too many": samples(appended),
    "other documents": column("doc_hash", lambda v: [f"z{i}" for i in range(len(v))]),
    "one other document": column("doc_hash", first("z")),
    "documents swapped": column("doc_hash", lambda v: [v[1], v[0], *v[2:]]),
    "a score edited": EDITED,
    "all scores edited": column("score", lambda v: [1.0 for _ in v]),
    "a score without value": column("score", first(None)),
    "a score above 1": column("score", first(7.0)),
    "a score of NaN": column("score", first(float("nan"))),
    "scores in percent": column("score", lambda v: [100 * x for x in v]),
    "an error added": column("error", first("RuntimeError: made up")),
    "a control edited": column("control", first("deranged")),
    "a time edited": column("ttft_ms", first(1.0)),
    "a message size edited": column("message_bytes", first(1)),
    "rows of another run": other_run,
    "a row of another run": mixed,
    "an empty file": file("samples.parquet", b""),
    "no parquet": file("samples.parquet", b"PAR1 not a parquet file PAR1"),
    "a torn file": cut("samples.parquet", -9),
    "a file cut in half": cut("samples.parquet", 900),
    "another schema": samples(lambda t: pa.table({"x": [1, 2]})),
    "no doc_hash": samples(lambda t: t.drop_columns(["doc_hash"])),
    "no run_id": samples(lambda t: t.drop_columns(["run_id"])),
    "no score": samples(lambda t: t.drop_columns(["score"])),
    "no columns": samples(lambda t: t.select([])),
    "doc_hash of null": column("doc_hash", first(None)),
    "scores as words": column("score", lambda v: ["many"] * len(v), pa.string()),
    "scores as lists": column("score", lambda v: [[1.0]] * len(v), pa.list_(pa.float64())),
    "hashes as structs": column("doc_hash", lambda v: [{"a": 1}] * len(v), pa.struct({"a": pa.int64()})),
    "no UTF-8 in hashes": column("doc_hash", lambda v: [b"\xff%d" % i for i in range(len(v))], pa.binary()),
    "many columns": samples(_wide),
    "a folder as samples": instead("samples.parquet", os.mkdir),
    "a link loop as samples": instead("samples.parquet", lambda p: os.symlink(p, p)),
    "an identity edited": identity(batch_size=1),
    "an identity edited, its digest gone": both(identity(batch_size=1), without("digest")),
    "a score edited, the identity's digest gone": both(EDITED, without("digest")),
    "a score edited, the columns' digests gone": both(EDITED, without("columns_sha256")),
    "a score edited, the run's name gone": both(EDITED, without("run_id")),
    "a score edited, all digests gone": both(EDITED, without("digest", "columns_sha256", "documents")),
    "a score edited, the manifest gone": both(EDITED, lambda f: (f / "manifest.json").unlink()),
    "a score edited, the manifest torn": both(EDITED, cut("manifest.json", 99)),
    "a score edited, another row gone": both(EDITED, CUT),
    "a score edited, half the rows gone": both(EDITED, samples(lambda t: t.slice(0, len(t) // 2))),
    "a prediction edited, another row gone": both(column("prediction", first("?")), CUT),
    "a time edited, another row gone": both(column("ttft_ms", first(1.0)), CUT),
    "an error added, another row gone": both(column("error", first("RuntimeError: made up")), CUT),
    "digests gone, a row gone": both(samples(lambda t: t.drop_columns(["row_sha256"])), CUT),
    "a digest edited, another row gone": both(column("row_sha256", first("0" * 16)), CUT),
    "digests swapped, a row gone": both(column("row_sha256", lambda v: [v[1], v[0], *v[2:]]), CUT),
    "resumed, killed, a score edited": resumed(EDITED),
    "resumed, killed, digests gone": resumed(samples(lambda t: t.drop_columns(["row_sha256"]))),
}  # fmt: skip
GONE: dict[str, Damage] = {
    "half the rows": samples(lambda t: t.slice(0, len(t) // 2)),
    "a row": samples(lambda t: t.slice(1)),
    "all rows": samples(lambda t: t.slice(0, 0)),
    "the file": lambda f: (f / "samples.parquet").unlink(),
}
ODD: dict[str, Damage] = {
    "killed at once": killed_at_once,
    "killed without a journal": no_journal_either,
    "a manifest alone": lambda f: [p.unlink() for p in f.iterdir() if p.name != "manifest.json"] and None,
    "sittings 3": manifest(sittings=3),
    "sessions null": manifest(sessions=None),
    "sessions of numbers": manifest(sessions=[1, None, {"environment": 3}]),
    "state a list": manifest(state=[]),
    "state null": manifest(state=None),
    "an identity of other kinds": identity(revisions=3, plugins=[1], options="x"),
    "identity a list": manifest(identity=[1]),
    "identity null": manifest(identity=None),
    "documents huge": manifest(documents=HUGE),
    "chance NaN": manifest(chance=float("nan")),
    "chance huge": manifest(chance=HUGE),
    "chance infinite": text('"chance"', '"chance": 1e999, "chances"'),
    "gates torn": manifest(gates={"layers": [1], "key": [0.5], "value": []}),
    "environment a word": manifest(environment="here"),
    "run_id a number": manifest(run_id=3),
    "columns a list": manifest(columns_sha256=[]),
    "a key twice": text('"state"', '"state": "running", "state"'),
    "torn JSON": cut("manifest.json", 99),
    "no JSON": file("manifest.json", b"hello"),
    "an empty manifest": file("manifest.json", b""),
    "a list": file("manifest.json", b"[[\"a\", 1]]"),
    "a number of many digits": file("manifest.json", b'{"documents": ' + b"9" * 5000 + b"}"),
    "no UTF-8": file("manifest.json", b'{"state": "\xff\xfe"}'),
    "UTF-16": file("manifest.json", '{"state": "complete"}'.encode("utf-16")),
    "NUL bytes": file("manifest.json", b"\0" * 100),
    "nested 60 deep": deep(60),
    "nested 900 deep": deep(900),
    "nested 100,000 deep": deep(100_000),
    "a folder as manifest": instead("manifest.json", os.mkdir),
    "a link loop as manifest": instead("manifest.json", lambda p: os.symlink(p, p)),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "half a line": journal(b'{"run_id": "x", "doc_hash": "to'),
    "a torn line in the middle": journal(b'{"run_id": "x", "doc_h\n', line()),
    "NUL lines": journal(b"\0\0\0\n\0\n"),
    "lines of another encoding": journal(line().decode().encode("utf-16"), b"\xff\xfe\n"),
    "lines that are no objects": journal(b"1\n", b"null\n", b"[]\n", b'"x"\n'),
    "lines of another run": journal(line(run_id="lcf-t"), line(run_id="lcf-t", doc_hash="y")),
    "lines that lack fields": journal(b"{}\n", line(run_id=...), line(doc_hash=...), line(score=...)),
    "lines of wrong types": journal(line(doc_hash=["x"]), line(score="1"), line(seed=1 << 63)),
    "lines of huge numbers": journal(line(score=HUGE), line(doc_index=-HUGE), line(score=float("inf"))),
    "a line nested deep": journal(b"[" * 50_000 + b"\n"),
    "an empty journal beside": file("samples.jsonl", b""),
    "a folder as journal": instead("samples.jsonl", os.mkdir),
    "a score edited in the journal": journal_row(score=1.0),
    "a digest edited in the journal": journal_row(row_sha256="0" * 16),
    "a digest gone from the journal": journal_row(row_sha256=None),
    "no digest of the columns": without("columns_sha256"),
    "no digest of the identity": without("digest"),
    "the manifest names no run": without("run_id"),
    "resumed and killed": resumed(lambda f: None),
    "an older journal": journal(state="interrupted"),
    "unknown columns": samples(lambda t: t.append_column("entropy", pa.array([0.5] * len(t)))),
}  # fmt: skip
ALL = {**REFUSED, **{f"gone: {k}": v for k, v in GONE.items()}, **ODD}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, symlinks=True))
