"""One folder a run, one row a document: written so that a kill loses nothing, read so that one bad file spoils nothing.

    writer = RunWriter.open(Path("results"), identity, manifest)   # identity: everything that changes the answer
    for document in documents:
        if document.hash not in writer.done:
            writer.append({"doc_hash": document.hash, "doc_index": 0, "score": 1.0})
    writer.finish({})
    runs = read_runs([Path("results")])

`<out>/<run_id>/manifest.json` is there before the first row. Rows go to a journal, `samples.jsonl`, which is also the run's lock;
`finish` and `interrupt` turn it into `samples.parquet` and only then remove it.
"""

from __future__ import annotations
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from itertools import chain
from lcfbench.errors import UserError
from lcfbench.files import now
from lcfbench.files import write
from lcfbench.files import write_json
from lcfbench.files import writing
from lcfbench.provenance import digest as digest_of
from lcfbench.results.reader import Reading
from lcfbench.results.reader import read_table
from lcfbench.results.schema import COLUMNS
from lcfbench.results.schema import JOURNAL
from lcfbench.results.schema import KEYS
from lcfbench.results.schema import MANIFEST
from lcfbench.results.schema import SAMPLES
from lcfbench.results.schema import SCHEMA_VERSION
from lcfbench.results.schema import answered
from lcfbench.results.schema import fit
from lcfbench.results.schema import journal_end
from lcfbench.results.schema import read_manifest
from lcfbench.results.schema import schema
from lcfbench.results.schema import unreadable
from pathlib import Path
from typing import Any
from typing import TYPE_CHECKING
import errno
import fcntl
import json
import os
import time


if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import ReadableBuffer as Buffer
    import pandas as pd


SYNC_SECONDS = 1.0  # a killed process loses nothing; a power cut at most this much


def run_id_of(identity: Mapping[str, Any]) -> str:
    """`mode-task-control-digest`: the same question to the same pair always has the same name."""
    return f"{identity['mode']}-{identity['task']}-{identity['control']}-{digest_of(dict(identity))[:10]}"


class RunWriter:
    """The open file of one run. Use `open`; then `append` rows, and `finish` or `interrupt`.

    done: hashes of the documents that have their answer. before: the scores of those that had it when the run was opened.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], journal: int | None, found: Mapping[str, float | None]) -> None:
        self.folder, self.manifest, self.done = folder, manifest, set(found)
        self.before = [score for score in found.values() if score is not None]
        self._journal, self._synced = journal, 0.0
        self._base = {k: v for k, v in manifest["identity"].items() if k in COLUMNS and isinstance(v, COLUMNS[k])}

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any], manifest: Mapping[str, Any], fresh: bool = False) -> RunWriter:
        """Start the run, or go on with it where it was.

        A finished run comes back with `complete` set and nothing to do, unless documents failed: those are tried again.
        fresh: forget what is recorded and start over.
        Raises UserError: another process writes this run; the folder cannot be written; what is recorded cannot be read.
        """
        run_id = run_id_of(identity)
        folder = Path(out) / run_id
        before = {} if fresh else read_manifest(folder)
        if before.get("state") == "complete" and not before.get("errors") and (folder / SAMPLES).exists():
            return cls(folder, before, None, answered(folder))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            journal = lock(folder / JOURNAL)
        try:
            before = {} if fresh else read_manifest(folder)  # again: now nobody else writes it
            whole = {**manifest, "run_id": run_id, "schema_version": SCHEMA_VERSION, "state": "running", "pid": os.getpid()}
            whole |= {"identity": dict(identity), "digest": digest_of(dict(identity))}
            whole |= {"started_at": before.get("started_at", now())}
            # rows of an earlier sitting may come from another commit or machine: each sitting says which
            whole |= {"sittings": [*before.get("sittings", []), {"at": now(), "environment": manifest.get("environment")}]}
            with writing(folder):
                write_json(folder / MANIFEST, whole)
                if fresh:
                    (folder / SAMPLES).unlink(missing_ok=True)
                os.ftruncate(journal, 0 if fresh else journal_end(folder / JOURNAL))  # a torn last line goes
            return cls(folder, whole, journal, answered(folder))
        except BaseException:
            os.close(journal)
            raise

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def complete(self) -> bool:
        """True when the run was finished before and there is nothing to do."""
        return self._journal is None and self.manifest["state"] == "complete"

    def append(self, row: Mapping[str, Any]) -> None:
        """Record one document; it survives `kill -9` once this returns. A later row of the same document replaces an earlier one.

        Columns that the identity names (pair, task, seed, …) need not be repeated. Dicts and lists are stored as JSON.
        Raises UserError when the disk is full (what is recorded stays), TypeError for a value that its column cannot hold.
        """
        assert self._journal is not None, "this run is closed"
        fixed = {"run_id": self.run_id, "schema_version": SCHEMA_VERSION, "written_at": now()}
        whole = {name: fit(name, value) for name, value in {**self._base, **row, **fixed}.items()}
        if missing := [key for key in KEYS if whole.get(key) is None]:
            raise TypeError(f"row without {', '.join(missing)}")
        line = json.dumps(whole).encode() + b"\n"
        with writing(self.folder):
            end = os.fstat(self._journal).st_size
            try:
                if os.write(self._journal, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(self._journal, end)  # half a line must not spoil the next one
                raise
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._journal)
                self._synced = time.monotonic()
        if whole.get("error") is None:
            self.done.add(whole["doc_hash"])

    def finish(self, update: Mapping[str, Any] | None = None) -> None:
        """Every document has its row: write `samples.parquet`, close the manifest with `update`, remove the journal."""
        self._seal("complete", update or {})

    def interrupt(self, update: Mapping[str, Any] | None = None) -> None:
        """As `finish`, for a run that stops early; the same command resumes it."""
        self._seal("interrupted", update or {})

    def close(self) -> None:
        """Let go of the lock and leave the journal as it is (as a kill would)."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _seal(self, state: str, update: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._journal is None:  # already complete: nothing was added
            return
        with writing(self.folder):
            os.fsync(self._journal)
        try:
            rows = read_table(self.folder, tuple(COLUMNS), []).cast(schema())
        except (OSError, pa.ArrowException, ValueError) as error:
            raise unreadable(self.folder / SAMPLES, error) from error
        rows = rows.sort_by([("doc_index", "ascending"), ("doc_hash", "ascending")])
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        counts = {"documents": len(rows), "errors": len(rows) - rows["error"].null_count}
        self.manifest |= {**update, "state": state, "finished_at": now(), **counts}
        with writing(self.folder):
            write(self.folder / SAMPLES, sink.getvalue())
            write_json(self.folder / MANIFEST, self.manifest)
            (self.folder / JOURNAL).unlink(missing_ok=True)
        self.close()








def lock(path: Path) -> int:
    """The journal, opened and locked; the lock ends with the process, however that ends. Raises UserError where it is taken."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            owner = f" (process {pid})" if (pid := read_manifest(path.parent).get("pid")) else ""
            what = f"run {path.parent.name} is being written by another process{owner}."
            raise UserError(what, "Wait for it, stop it, or use another --out.") from None
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
        os.close(handle)  # its former owner finished and removed it in between
