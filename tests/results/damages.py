"""Ways in which a recorded run gets damaged, by name; each changes the folder of a finished run.

REFUSED: the rows that are left cannot be relied on. ASIDE: nor can they, but no score is touched.
GONE: rows are missing, the others are sound. ODD: the manifest or a journal is damaged, the rows are
not, or the run is as a kill leaves it. SAME: the files look otherwise and hold the same.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcfbench.provenance import digest
from lcfbench.results.schema import DIGEST, row_sha256

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


def stored(**how: Any) -> Damage:
    """The same table, stored in another way."""

    def damage(folder: Path) -> None:
        path = folder / "samples.parquet"
        pq.write_table(pq.ParquetFile(path).read(), path, **how)

    return damage


def by_pandas(folder: Path) -> None:
    path = folder / "samples.parquet"
    pq.ParquetFile(path).read().to_pandas().to_parquet(path)


def by_duckdb(folder: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = str(folder / "samples.parquet")
    duckdb.sql(f"copy (select * from '{path}') to '{path}.new' (format parquet)")
    os.replace(f"{path}.new", path)


def shuffled(table: pa.Table) -> pa.Table:
    order = list(range(len(table)))
    random.Random(0).shuffle(order)
    return table.take(order)


def large(table: pa.Table) -> pa.Table:
    kinds = [(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema]
    return table.cast(pa.schema(kinds))


def encoded(table: pa.Table) -> pa.Table:
    for i, name in enumerate(table.column_names):
        if table.schema.field(name).type == pa.string():
            table = table.set_column(i, name, table[name].dictionary_encode())
    return table


def nullable(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([pa.field(f.name, f.type) for f in table.schema]))


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def zeros(content: bytes) -> bytes:
    """A block in the middle that the disk never wrote."""
    at = len(content) // 3
    return content[:at] + b"\0" * 512 + content[at + 512 :]


def neighbour(folder: Path) -> Path:
    """Another run, beside this one or one level higher."""
    places = (folder.parent, folder.parent.parent)
    found = [p for up in places for p in sorted(up.glob("lcf-*")) if not p.samefile(folder)]
    return found[0] if found else pytest.skip("no other run beside")


def other_folder(folder: Path) -> None:
    """Another run's folder under this run's name."""
    other = neighbour(folder)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def other_file(name: str) -> Damage:
    """A file of another run of the same size."""

    def damage(folder: Path) -> None:
        shutil.copyfile(neighbour(folder) / name, folder / name)

    return damage


def own_digest(folder: Path) -> None:
    """An edited identity, and the digest that it would have."""
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    found["identity"]["batch_size"] = 1
    path.write_text(json.dumps(found | {"digest": digest(found["identity"])}))


def told_complete(folder: Path) -> None:
    """Half the rows, and a manifest that says complete and nothing that tells how many there were."""
    samples(lambda t: t.slice(0, len(t) // 2))(folder)
    names = ("documents", "documents_planned", "documents_sha256", "errors", "columns_sha256")
    without(*names, "samples_bytes")(folder)


def told_no_errors(folder: Path) -> None:
    """A run with a failure, and a manifest that does not say so."""

    def failed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0] |= {"score": 0.0, "error": "out of memory"}
        rows[0][DIGEST] = row_sha256(rows[0])
        return pa.Table.from_pylist(rows, table.schema)

    samples(failed)(folder)
    without("errors", "columns_sha256", "samples_bytes")(folder)


def two_answers(folder: Path) -> None:
    """A journal beside the rows, as whole as they are, that has another score."""
    row = pq.ParquetFile(folder / "samples.parquet").read().to_pylist()[0]
    row["score"] = 1.0 - row["score"]
    row[DIGEST] = row_sha256(row)
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    without("documents", "errors", "columns_sha256", "samples_bytes", "finished_at")(folder)
    manifest(state="running")(folder)


def journal_lines(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    """A run that was killed after all its rows; its lines are changed."""

    def damage(folder: Path) -> None:
        rows = pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
        journal()(folder)
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        (folder / "samples.jsonl").write_bytes(b"".join(change(lines)))

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
    "a version edited, a score too, another row gone": both(
        EDITED, CUT, column("schema_version", lambda v: [99] * len(v))
    ),
    "a version edited, a score too, all digests gone": both(
        EDITED, without("digest", "columns_sha256"), column("schema_version", lambda v: [99] * len(v))
    ),
    "scores renamed": samples(
        lambda t: t.rename_columns([n.replace("score", "points") for n in t.column_names])
    ),
    "garbage behind": bytes_of("samples.parquet", lambda b: b + b"garbage"),
    "garbage in front": bytes_of("samples.parquet", lambda b: b"garbage" + b),
    "a block of zeros": bytes_of("samples.parquet", zeros),
    "nothing but zeros": bytes_of("samples.parquet", lambda b: b"\0" * len(b)),
    "compressed once more": bytes_of("samples.parquet", gzip.compress),
    "a pipe as samples": instead("samples.parquet", os.mkfifo),
    "a device as samples": instead("samples.parquet", lambda p: os.symlink("/dev/zero", p)),
    "a link to nothing as samples": instead("samples.parquet", lambda p: os.symlink("nothing", p)),
    "the file of another run": other_file("samples.parquet"),
    "the manifest of another run": other_file("manifest.json"),
    "an identity edited, its digest too": own_digest,
    "two answers that differ": two_answers,
    "resumed, killed, digests gone": resumed(samples(lambda t: t.drop_columns(["row_sha256"]))),
}  # fmt: skip
ASIDE: dict[str, Damage] = {
    "a document index edited": column("doc_index", first(7)),
    "predictions renamed": samples(
        lambda t: t.rename_columns([n.replace("prediction", "said") for n in t.column_names])
    ),
    "predictions gone": samples(lambda t: t.drop_columns(["prediction"])),
    "the folder of another run": other_folder,
}  # fmt: skip
GONE: dict[str, Damage] = {
    "half the rows": samples(lambda t: t.slice(0, len(t) // 2)),
    "a row": samples(lambda t: t.slice(1)),
    "all rows": samples(lambda t: t.slice(0, 0)),
    "the file": lambda f: (f / "samples.parquet").unlink(),
    "half the rows, a journal of no rows beside": both(
        samples(lambda t: t.slice(0, len(t) // 2)), file("samples.jsonl", b"\n")
    ),
    "half the rows, a torn journal beside": both(
        samples(lambda t: t.slice(0, len(t) // 2)), file("samples.jsonl", b'{"run_')
    ),
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
    "half the rows, said to be complete": told_complete,
    "a failure that the manifest hides": told_no_errors,
    "a manifest of null": file("manifest.json", b"null"),
    "a pipe as manifest": instead("manifest.json", os.mkfifo),
    "a pipe as journal": instead("samples.jsonl", os.mkfifo),
    "a pipe as journal, no rows": both(
        instead("samples.jsonl", os.mkfifo), lambda f: (f / "samples.parquet").unlink()
    ),
    "a device as journal": instead("samples.jsonl", lambda p: os.symlink("/dev/zero", p)),
    "a journal that ends in zeros": journal(b"\0" * 4096),
    "a journal of zeros": journal_lines(lambda lines: [b"\0" * 4096]),
    "a journal line of NaN": journal(line(score=float("nan")), line(doc_hash="y", ttft_ms=float("nan"))),
    "a journal line of 4 MB": journal(b"x" * (1 << 22) + b"\n", b"[" * (1 << 22) + b"\n"),
    "a journal without its first lines": journal_lines(lambda lines: lines[4:]),
    "a journal without its last newline": journal_lines(lambda lines: [*lines[:-1], lines[-1][:-1]]),
    "a journal of half lines": journal_lines(lambda lines: [x[: len(x) // 2] + b"\n" for x in lines]),
    "a compressed journal": journal_lines(lambda lines: [gzip.compress(b"".join(lines))]),
    "unknown columns": samples(lambda t: t.append_column("entropy", pa.array([0.5] * len(t)))),
}  # fmt: skip
SAME: dict[str, Damage] = {
    "written by pandas": by_pandas,
    "written by duckdb": by_duckdb,
    **{f"compressed by {name}": stored(compression=name) for name in ("none", "gzip", "snappy", "brotli")},
    "row groups of 2": stored(row_group_size=2),
    "version 1.0 of the format": stored(version="1.0"),
    "no dictionaries": stored(use_dictionary=False),
    "scores in single precision": column("score", list, pa.float32()),
    "rows in another order": samples(shuffled),
    "columns in another order": samples(lambda t: t.select(t.column_names[::-1])),
    "large texts": samples(large),
    "encoded texts": samples(encoded),
    "columns that may be null": samples(nullable),
    "empty columns gone": samples(lambda t: t.drop_columns(["gold", "thought"])),
    "a link to the file": lambda f: (
        shutil.move(f / "samples.parquet", f.parent.parent / "elsewhere")
        and os.symlink(f.parent.parent / "elsewhere", f / "samples.parquet")
    ),
    "a journal in another order": journal_lines(lambda lines: lines[::-1]),
    "a journal twice": journal_lines(lambda lines: [*lines, *lines]),
    "a journal with CRLF": journal_lines(lambda lines: [x[:-1] + b"\r\n" for x in lines]),
    "a journal with a byte order mark": journal_lines(lambda lines: [b"\xef\xbb\xbf", *lines]),
    "a journal spaced out": journal_lines(
        lambda lines: [json.dumps(json.loads(x), separators=(" ,\t", " : ")).encode() + b"\n" for x in lines]
    ),
    "a journal beside the rows that it holds": both(
        lambda f: (f / "samples.jsonl").write_bytes(
            b"".join(
                json.dumps(row).encode() + b"\n"
                for row in pq.ParquetFile(f / "samples.parquet").read().to_pylist()
            )
        )
        and None
    ),
    "the file copied": lambda f: (
        shutil.copyfile(f / "samples.parquet", f / "copy") and os.replace(f / "copy", f / "samples.parquet")
    ),
}  # fmt: skip
ALL = {**REFUSED, **{f"gone: {k}": v for k, v in GONE.items()}, **ODD}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, symlinks=True))
