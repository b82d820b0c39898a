"""Writes a run: one folder, one row for each document, so that a killed process loses nothing.

    writer = RunWriter.open(Path("results"), identity, facts)   # equal identities are the same run
    for document in documents:
        if document.hash not in writer.done:
            writer.append({"doc_hash": document.hash, "doc_index": 0, "score": 1.0})
    writer.finish()

`<out>/<run_id>/manifest.json` is there before the first row. Rows go to a journal, `samples.jsonl`.
`finish` and `interrupt` turn it into `samples.parquet`, then remove it. `.lock` says which process
writes the run.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, KeysView, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lcfbench import ownership
from lcfbench.errors import UserError
from lcfbench.files import LOCK, now, remove_stale, whole, writing
from lcfbench.provenance import digest as digest_of
from lcfbench.results.manifest import MANIFEST, Manifest, read_manifest
from lcfbench.results.messages import forget_messages, keep_message, kept_names
from lcfbench.results.reader import READ_ERRORS, check_scores, has_journal, read_table
from lcfbench.results.schema import (
    COLUMNS,
    DIGEST,
    JOURNAL,
    KEYS,
    SAMPLES,
    SCHEMA_VERSION,
    fit,
    journal_end,
    row_sha256,
    unreadable,
)
from lcfbench.results.shards import Shard
from lcfbench.results.validation import altered_rows, damage, documents_sha256, foreign

if TYPE_CHECKING:
    from lcfbench.ownership import Owner
    from lcfbench.results.messages import KeptMessage

SYNC_SECONDS = 1.0  # a killed process loses nothing; a power cut at most this much


def run_id_of(identity: Mapping[str, Any]) -> str:
    """Returns `mode-task-control-digest`: equal identities have equal names.

    It names a folder, so signs of a task's name that a path may not hold are written as `_`.
    """
    task = re.sub(r"[^\w.+-]+", "_", str(identity["task"]))
    return f"{identity['mode']}-{task}-{identity['control']}-{digest_of(dict(identity))[:10]}"


class RunWriter:
    """The open files of one run. Use `open`; then `append` rows, and `finish` or `interrupt`.

    done: hashes of the documents that have their answer. before: scores of those that had one when
    the run was opened. complete: the run was finished before, and nothing is left to do. warnings: what
    was wrong with the recorded rows and was mended.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, owned: tuple[Owner, int] | None, found: Mapping[str, float]
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._done = dict.fromkeys(found)  # a set takes 70 bytes of each in place of 26
        self.complete = owned is None
        self.before = list(found.values())
        self.warnings: list[str] = []
        self._planned: int | None = None  # documents that are asked, where the caller says
        self._owned, self._synced = owned, 0.0
        named = manifest.identity.items()
        self._base = {k: v for k, v in named if k in COLUMNS and isinstance(v, COLUMNS[k])}

    @classmethod
    def open(
        cls,
        out: Path,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
        fresh: bool = False,
        documents: Iterable[str] | None = None,
        shard: Shard | None = None,
    ) -> RunWriter:
        """Starts the run, or continues it with the documents that failed or have no answer.

        facts: further keys of the manifest. fresh: forget what is recorded. documents: hashes of all
        that are asked. shard: the part of the run that is written, in its own folder. Raises UserError:
        another process writes this run; the folder cannot be
        written; a recorded file cannot be read, or holds other rows than were recorded.
        """
        run_id = run_id_of(identity)
        folder = Path(out) / run_id if shard is None else shard.folder(Path(out) / run_id)
        asked = None if documents is None else frozenset(documents)
        if asked is not None:
            facts = {**facts, "documents_planned": len(asked), "documents_sha256": documents_sha256(asked)}
        _checked(Manifest(), facts)  # before anything is touched
        if not fresh and not os.path.lexists(folder / JOURNAL):
            found = _recorded(folder, run_id, asked)
            whole = (
                not found.manifest.errors and not found.missing and (asked or set()) <= found.scores.keys()
            )
            if found.manifest.state == "complete" and whole:
                remove_stale(folder)
                if os.path.lexists(folder / LOCK):  # of a process that was killed when all was done
                    with suppress(ownership.HeldError, OSError):
                        own(folder).release()
                return cls(folder, found.manifest.update(run_id=run_id), None, found.scores)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            owner = own(folder, f"run {run_id}" if shard is None else f"shard {shard} of run {run_id}")
        try:
            if _no_journal(folder):
                _set_aside(folder / JOURNAL)
            if fresh:
                _set_damaged_aside(folder, run_id, asked)
            found = _Found() if fresh else _recorded(folder, run_id, asked)  # now no other process writes it
            before = found.manifest
            # rows of an earlier session may come from another commit or machine
            session = {"at": now(), "environment": facts.get("environment")}
            named = {"run_id": run_id, "schema_version": SCHEMA_VERSION, "state": "running"}
            named |= {"pid": os.getpid(), "identity": dict(identity), "digest": digest_of(dict(identity))}
            named |= {"started_at": before.started_at or now(), "sessions": [*before.sessions, session]}
            manifest = Manifest.model_validate({**facts, **named})
            with writing(folder):
                remove_stale(folder, locked=True)
                if found.odd:  # sealing leaves them out, and nothing that was recorded is lost
                    _set_aside(folder / JOURNAL, copy=True)
                manifest.write(folder)
                if fresh:
                    (folder / SAMPLES).unlink(missing_ok=True)
                    forget_messages(folder)
                journal = _open_journal(owner, folder / JOURNAL, fresh)
            writer = cls(folder, manifest, (owner, journal), found.scores)
            writer.warnings, writer._planned = found.warnings, None if asked is None else len(asked)
            return writer
        except BaseException:
            owner.release()
            raise

    @property
    def done(self) -> KeysView[str]:
        return self._done.keys()

    @property
    def run_id(self) -> str:
        return str(self.manifest.run_id)

    def record(self, **facts: Any) -> None:
        """Adds facts to the manifest, on disk at once.

        Raises UserError where it cannot be written, or for a number that is not finite.
        """
        assert self._owned is not None, "this run is closed"
        self.manifest = _checked(self.manifest, facts)
        with writing(self.folder):
            self.manifest.write(self.folder)

    def append(self, row: Mapping[str, Any]) -> None:
        """Records one document; it survives `kill -9`.

        A later row of a document replaces one that failed; two answers must agree in their score.

        Columns that the identity names (pair, task, seed, …) need not be repeated. Dicts and lists
        are stored as JSON. Raises UserError when the disk is full (recorded rows stay), TypeError
        for a value that its column cannot hold.
        """
        fixed = {"run_id": self.run_id, "schema_version": SCHEMA_VERSION, "written_at": now()}
        whole = {name: fit(name, value) for name, value in {**self._base, **row, **fixed}.items()}
        if missing := [key for key in KEYS if whole.get(key) is None]:
            raise TypeError(f"row without {', '.join(missing)}")
        score = whole.get("score")
        if whole.get("error") is None and not (score is not None and 0 <= score <= 1):
            raise TypeError(f"row without an error whose score is {score}, not 0 to 1")
        self.adopt(whole | {DIGEST: row_sha256(whole)})

    def adopt(self, whole: Mapping[str, Any]) -> None:
        """Records a row as another process wrote it, with its digest."""
        assert self._owned is not None, "this run is closed"
        owner, journal = self._owned
        line = json.dumps(whole).encode() + b"\n"
        with writing(self.folder):
            owner.confirm()
            end = os.fstat(journal).st_size
            try:
                if os.write(journal, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(journal, end)  # half a line must not spoil the next one
                raise
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(journal)
                self._synced = time.monotonic()
        if whole.get("error") is None:
            self._done[whole["doc_hash"]] = None

    def keep(self, message: KeptMessage) -> None:
        """Stores a document's message, before its row. Raises UserError where it cannot be written."""
        assert self._owned is not None, "this run is closed"
        self._owned[0].confirm()
        keep_message(self.folder, message)

    def lacking_messages(self) -> int:
        """Counts the documents that have an answer from a message that is not kept."""
        if not self.done:
            return 0
        names = ("doc_hash", "message_bytes", "error")
        rows = read_table(self.folder, names, [], self.run_id).to_pylist()
        kept = kept_names(self.folder)
        return sum(
            bool(row["message_bytes"]) and row["error"] is None and row["doc_hash"] not in kept
            for row in rows
        )

    def metrics(self) -> list[dict[str, Any] | None]:
        """The recorded scores of every document in order; None for one that failed.

        Empty where the run was complete before.
        """
        if self._owned is None:
            return []
        rows = read_table(self.folder, ("doc_index", "doc_hash", "metrics", "error"), [], self.run_id)
        found = rows.sort_by([("doc_index", "ascending"), ("doc_hash", "ascending")]).to_pylist()
        return [None if row["error"] is not None else json.loads(row["metrics"]) for row in found]

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Writes `samples.parquet` and the manifest with these facts, then removes the journal."""
        self._seal("complete", facts or {})

    def interrupt(self, facts: Mapping[str, Any] | None = None) -> None:
        """As `finish`, for a run that stops early; the same command resumes it."""
        self._seal("interrupted", facts or {})

    def close(self) -> None:
        """Gives the run up and leaves the journal as it is, as a kill would."""
        if self._owned is not None:
            owner, journal = self._owned
            self._owned = None
            if journal >= 0:
                os.close(journal)
            owner.release()

    def _seal(self, state: str, facts: Mapping[str, Any]) -> None:
        if self._owned is None:  # already complete: nothing was added
            return
        owner, journal = self._owned
        try:
            with writing(self.folder):
                os.fsync(journal)
            os.close(journal)  # not every system removes a file that is open
            self._owned = owner, -1
            self._seal_rows(owner, state, facts)
        finally:
            self.close()

    def _seal_rows(self, owner: Owner, state: str, facts: Mapping[str, Any]) -> None:
        import pyarrow as pa

        from lcfbench.results.sealing import RecordedRows  # numpy

        try:
            rows = RecordedRows.find(self.folder, self.run_id)
            digests = rows.columns_sha256()
        except (*READ_ERRORS, pa.ArrowException) as error:
            raise unreadable(_at_fault(self.folder), error) from error
        if state == "complete" and self._planned is not None and len(rows) < self._planned:
            state = "interrupted"  # a document that has no row was not asked
        counts: dict[str, Any] = {"documents": len(rows), "errors": rows.errors, "columns_sha256": digests}
        manifest = self.manifest.update(**facts, **counts, state=state, finished_at=now())
        with writing(self.folder):
            with whole(self.folder / SAMPLES) as file:
                size = rows.write(file)
            self.manifest = manifest.update(samples_bytes=size)
            self.manifest.write(self.folder)
            owner.remove(self.folder / JOURNAL)


def _checked(manifest: Manifest, facts: Mapping[str, Any]) -> Manifest:
    """Returns the manifest with these facts. Raises UserError for a value that it cannot hold."""
    try:
        return manifest.update(**facts)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))} of this run cannot be recorded ({first['msg'].lower()})."
        raise UserError(what, "Check the models and the adapter for numbers that are not finite.") from error


@dataclass
class _Found:
    """What is recorded of a run. scores: of the documents that have an answer, by hash.

    missing: rows that were recorded and are gone. odd: whether the journal has lines that are no rows
    of this run.
    """

    manifest: Manifest = field(default_factory=Manifest)
    scores: dict[str, float] = field(default_factory=dict)
    missing: int = 0
    odd: bool = False
    warnings: list[str] = field(default_factory=list)


def _recorded(folder: Path, run_id: str, asked: frozenset[str] | None) -> _Found:
    """Returns the rows of a run that may be relied on.

    Rows that are gone are answered again. Raises UserError where what is left cannot be relied on: a
    file that cannot be read, rows that are not those that were recorded.
    """
    import pyarrow as pa

    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise unreadable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    manifest, warnings = Manifest.lenient(read_manifest(folder), folder)
    if _no_journal(folder):
        raise unreadable(folder / JOURNAL, OSError("no regular file"))
    begun = has_journal(folder)
    if not begun and not os.path.lexists(folder / SAMPLES):
        gone = manifest.documents or 0
        return _Found(manifest, missing=gone, warnings=_gone(folder, gone))
    try:
        table = read_table(folder, tuple(COLUMNS), warnings, run_id)
        check_scores(table)
    except (*READ_ERRORS, pa.ArrowException) as error:
        raise unreadable(_at_fault(folder), error) from error
    missing = 0
    why = foreign(table, manifest.update(run_id=run_id))
    if not why and asked is not None and (others := set(table["doc_hash"].to_pylist()) - asked):
        why = f"{len(others):,} documents that this run does not ask"
    if not why and not (begun and manifest.state == "running"):
        missing = max((manifest.documents or 0) - len(table), 0)
        why = "" if missing else damage(table, manifest)
    newest = max(filter(None, table["schema_version"].to_pylist()), default=0)
    if not why and newest > SCHEMA_VERSION and (missing or manifest.state != "complete"):
        why = f"a newer version wrote them, with schema {newest}"
    if not why and (begun or missing or not manifest.columns_sha256) and os.path.lexists(folder / SAMPLES):
        why = altered_rows(folder / SAMPLES)
    if why:
        what = f"the rows of {folder} are not those that were recorded ({why})."
        raise UserError(what, "Start over with --fresh; it keeps the file beside as .damaged-….")
    answers = zip(*(table[name].to_pylist() for name in ("doc_hash", "score", "error")), strict=True)
    scores = {name: score for name, score, error in answers if error is None}
    odd = any("are no rows of this run" in text for text in warnings)
    return _Found(manifest, scores, missing, odd, [*warnings, *_gone(folder, missing)])


def _no_journal(folder: Path) -> bool:
    """Whether something else has the journal's place; through a link, other files would be written."""
    path = folder / JOURNAL
    return os.path.lexists(path) and (path.is_symlink() or not path.is_file())


def _at_fault(folder: Path) -> Path:
    """The file of a run's rows that an error is about."""
    return folder / (SAMPLES if os.path.lexists(folder / SAMPLES) else JOURNAL)


def _gone(folder: Path, count: int) -> list[str]:
    return [f"{folder.name}: {count:,} recorded rows are gone; they are answered again."] if count else []


def _set_damaged_aside(folder: Path, run_id: str, asked: frozenset[str] | None) -> None:
    """Keeps the files of a run that starts over beside it, where they cannot be relied on."""
    try:
        kept = not _recorded(folder, run_id, asked).odd
    except UserError:
        kept = False
    if not kept:
        for name in (MANIFEST, SAMPLES, JOURNAL):
            _set_aside(folder / name, copy=name == JOURNAL)


def _set_aside(path: Path, copy: bool = False) -> None:
    """Renames or copies a file to `.damaged-<time>-<name>`."""
    begin = f".damaged-{now().replace(':', '')[:17]}"
    with writing(path.parent):
        beside = path.with_name(f"{begin}-{path.name}")
        for i in itertools.count(2):  # one of the same second stays
            if not os.path.lexists(beside):
                break
            beside = path.with_name(f"{begin}-{i}-{path.name}")
        if copy and path.is_file() and path.stat().st_size:
            shutil.copyfile(path, beside)
        elif not copy and os.path.lexists(path):
            os.replace(path, beside)


def own(folder: Path, name: str = "") -> Owner:
    """Becomes the owner of a run. name: in messages. Raises HeldError where another process writes it."""
    busy = f"{name or f'run {folder.name}'} is being written by another process"
    return ownership.acquire(folder / LOCK, folder, busy)


def _open_journal(owner: Owner, path: Path, fresh: bool) -> int:
    """Opens the journal at its end; a torn last line goes.

    It becomes another file where a former owner may live and write to it.
    """
    end = 0 if fresh or not path.exists() else journal_end(path)
    if owner.feared and path.exists():
        with owner.still() as place:
            copy = open(place / path.name, "wb")  # noqa: SIM115
        with copy, path.open("rb") as old:
            shutil.copyfileobj(old, copy, 1 << 20)
            copy.truncate(end)
            copy.flush()
            os.fsync(copy.fileno())
        owner.put(path.name, path)
    binary = getattr(os, "O_BINARY", 0)  # Windows would change the ends of lines
    journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | binary, 0o644)
    try:
        os.ftruncate(journal, end)
    except BaseException:
        os.close(journal)
        raise
    return journal
