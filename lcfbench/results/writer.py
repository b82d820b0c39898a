"""Writes a run: one folder, one row for each document, so that a killed process loses nothing.

    writer = RunWriter.open(Path("results"), identity, facts)   # equal identities are the same run
    for document in documents:
        if document.hash not in writer.done:
            writer.append({"doc_hash": document.hash, "doc_index": 0, "score": 1.0})
    writer.finish()

`<out>/<run_id>/manifest.json` is there before the first row. Rows go to a journal, `samples.jsonl`,
which is also the run's lock. `finish` and `interrupt` turn it into `samples.parquet`, then remove
it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lcfbench.errors import UserError
from lcfbench.files import now, write, writing
from lcfbench.provenance import digest as digest_of
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.reader import read_table
from lcfbench.results.schema import (
    COLUMNS,
    JOURNAL,
    KEYS,
    SAMPLES,
    SCHEMA_VERSION,
    answered,
    fit,
    journal_end,
    schema,
    unreadable,
)

SYNC_SECONDS = 1.0  # a killed process loses nothing; a power cut at most this much


def run_id_of(identity: Mapping[str, Any]) -> str:
    """Returns `mode-task-control-digest`: equal identities have equal names."""
    return f"{identity['mode']}-{identity['task']}-{identity['control']}-{digest_of(dict(identity))[:10]}"


class RunWriter:
    """The open files of one run. Use `open`; then `append` rows, and `finish` or `interrupt`.

    done: hashes of the documents that have their answer. before: scores of those that had one when
    the run was opened. complete: the run was finished before, and nothing is left to do.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, journal: int | None, found: Mapping[str, float | None]
    ) -> None:
        self.folder, self.manifest, self.done = folder, manifest, set(found)
        self.complete = journal is None
        self.before = [score for score in found.values() if score is not None]
        self._journal, self._synced = journal, 0.0
        named = manifest.identity.items()
        self._base = {k: v for k, v in named if k in COLUMNS and isinstance(v, COLUMNS[k])}

    @classmethod
    def open(
        cls, out: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], fresh: bool = False
    ) -> RunWriter:
        """Starts the run, or continues it with the documents that failed or have no answer.

        facts: further keys of the manifest. fresh: forget what is recorded. Raises UserError:
        another process writes this run; the folder cannot be written; a recorded file cannot be
        read.
        """
        run_id = run_id_of(identity)
        folder = Path(out) / run_id
        _checked(Manifest(), facts)  # before anything is touched
        before = Manifest() if fresh else _recorded(folder)
        if before.state == "complete" and not before.errors and (folder / SAMPLES).exists():
            return cls(folder, before, None, answered(folder))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            journal = lock(folder / JOURNAL)
        try:
            before = Manifest() if fresh else _recorded(folder)  # again: now no other process writes it
            # rows of an earlier session may come from another commit or machine
            session = {"at": now(), "environment": facts.get("environment")}
            own = {"run_id": run_id, "schema_version": SCHEMA_VERSION, "state": "running", "pid": os.getpid()}
            own |= {"identity": dict(identity), "digest": digest_of(dict(identity))}
            own |= {"started_at": before.started_at or now(), "sessions": [*before.sessions, session]}
            manifest = Manifest.model_validate({**facts, **own})
            with writing(folder):
                for part in [*folder.glob(".*.json.*"), *folder.glob(".*.parquet.*")]:  # of killed processes
                    part.unlink(missing_ok=True)
                manifest.write(folder)
                if fresh:
                    (folder / SAMPLES).unlink(missing_ok=True)
                os.ftruncate(journal, 0 if fresh else journal_end(folder / JOURNAL))  # a torn last line goes
            return cls(folder, manifest, journal, answered(folder))
        except BaseException:
            os.close(journal)
            raise

    @property
    def run_id(self) -> str:
        return self.folder.name

    def record(self, **facts: Any) -> None:
        """Adds facts to the manifest, on disk at once.

        Raises UserError where it cannot be written, or for a number that is not finite.
        """
        assert self._journal is not None, "this run is closed"
        self.manifest = _checked(self.manifest, facts)
        with writing(self.folder):
            self.manifest.write(self.folder)

    def append(self, row: Mapping[str, Any]) -> None:
        """Records one document; it survives `kill -9`.

        A later row of a document replaces an earlier one.

        Columns that the identity names (pair, task, seed, …) need not be repeated. Dicts and lists
        are stored as JSON. Raises UserError when the disk is full (recorded rows stay), TypeError
        for a value that its column cannot hold.
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

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Writes `samples.parquet` and the manifest with these facts, then removes the journal."""
        self._seal("complete", facts or {})

    def interrupt(self, facts: Mapping[str, Any] | None = None) -> None:
        """As `finish`, for a run that stops early; the same command resumes it."""
        self._seal("interrupted", facts or {})

    def close(self) -> None:
        """Releases the lock and leaves the journal as it is, as a kill would."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def _seal(self, state: str, facts: Mapping[str, Any]) -> None:
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
        self.manifest = self.manifest.update(**facts, **counts, state=state, finished_at=now())
        with writing(self.folder):
            write(self.folder / SAMPLES, sink.getvalue())
            self.manifest.write(self.folder)
            (self.folder / JOURNAL).unlink(missing_ok=True)
        self.close()


def _checked(manifest: Manifest, facts: Mapping[str, Any]) -> Manifest:
    """Returns the manifest with these facts. Raises UserError for a value that it cannot hold."""
    try:
        return manifest.update(**facts)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))} of this run cannot be recorded ({first['msg'].lower()})."
        raise UserError(what, "Check the models and the adapter for numbers that are not finite.") from error


def _recorded(folder: Path) -> Manifest:
    return Manifest.lenient(read_manifest(folder), folder)[0]


def lock(path: Path) -> int:
    """Opens and locks a run's journal; the lock ends with the process.

    Raises UserError where it is taken.
    """
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
