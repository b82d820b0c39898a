"""Puts the rows of shards, and of runs that came from elsewhere, into one run, and seals it.

>>> gather(Path("results"), run_id, folders, lambda manifest, metrics: {}).state   # doctest: +SKIP
'complete'

A run is complete where the rows of all its parts cover every planned document: which parts they are
decides nothing. Of several rows of a document the first that has an answer is taken.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.ownership import HeldError
from lcfbench.provenance import digest
from lcfbench.results.finding import is_run
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.messages import copy_message
from lcfbench.results.reader import read_place
from lcfbench.results.schema import COLUMNS, SAMPLES
from lcfbench.results.shards import SHARDS, is_shard, shards_of
from lcfbench.results.validation import documents_sha256
from lcfbench.results.writer import RunWriter, own, run_id_of

if TYPE_CHECKING:
    import pyarrow as pa

# manifest, scores of all documents in order → further facts, such as lm-eval's aggregates
Summary = Callable[[Manifest, Sequence[Mapping[str, Any] | None]], Mapping[str, Any]]
OF_A_PART = {  # keys of a manifest that say nothing about the whole run
    *(
        "run_id",
        "schema_version",
        "state",
        "pid",
        "identity",
        "digest",
        "started_at",
        "finished_at",
        "sessions",
    ),
    *("documents_planned", "documents_sha256", "columns_sha256", "samples_bytes", "documents", "errors"),
    *("documents_per_second", "seconds", "shard", "lm_eval", "folder", "together"),
}


@dataclass(frozen=True)
class Part:
    """Rows of a run in one folder."""

    folder: Path
    manifest: Manifest
    table: pa.Table

    @property
    def planned(self) -> tuple[int, str]:
        """The number of the whole run's documents, and the digest of their hashes."""
        told = self.manifest.shard or {
            "documents": self.manifest.documents_planned,
            "documents_sha256": self.manifest.documents_sha256,
        }
        count = told.get("documents")
        return count if isinstance(count, int) else 0, str(told.get("documents_sha256"))

    @property
    def odd(self) -> str:
        """Why its rows cannot be put beside those of other parts; empty where they can."""
        if self.manifest.digest is None or not self.planned[0]:
            return "left out, its manifest does not say what was asked"
        if is_shard(self.folder) and not self.manifest.shard:
            return "left out, its manifest does not say which part of the run it is"
        return ""

    @property
    def seconds(self) -> float:
        """The time that its rows took: as it was recorded, else the sum over its rows."""
        import pyarrow.compute as pc

        if self.manifest.seconds is not None:
            return self.manifest.seconds
        return (pc.sum(self.table["amortized_ms"]).as_py() or 0.0) / 1e3

    @property
    def asked(self) -> float:
        """The documents that were answered in that time."""
        rate = self.manifest.documents_per_second
        return len(self.table) if self.manifest.seconds is None else (rate or 0.0) * self.seconds


@dataclass(frozen=True)
class Gathered:
    """What came of gathering a run. rows: documents that have a row, of `documents`. parts: folders that
    rows came from. warnings: parts that could not be used.
    """

    run_id: str
    state: str  # complete or partial
    rows: int
    documents: int
    parts: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def is_sealed(folder: Path) -> bool:
    """Says whether a run's folder holds the rows of all its documents, as its manifest tells."""
    if not (folder / SAMPLES).is_file():
        return False
    manifest, _ = Manifest.lenient(read_manifest(folder), folder)
    size = (folder / SAMPLES).stat().st_size
    whole = manifest.state == "complete" and manifest.samples_bytes in (None, size)
    return whole and manifest.documents == manifest.documents_planned


def gather(
    out: Path, run_id: str, folders: Iterable[Path], summary: Summary, partial: bool = True
) -> Gathered:
    """Puts the rows of folders into a run in `out` and seals it where they cover all its documents.

    The shards of the run there are always among them, and go once it is sealed. partial: whether rows are
    put there where documents are missing too; the same command then goes on with the run. Other folders
    stay as they are. Raises UserError: HeldError where another process writes the run; parts of other
    settings; answers of one document that differ.
    """
    target = out / run_id
    if is_sealed(target):
        manifest = Manifest.lenient(read_manifest(target), target)[0]
        remove_shards(target)
        return Gathered(run_id, "complete", manifest.documents or 0, manifest.documents or 0)
    places = dict.fromkeys([target, *shards_of(target), *folders])
    parts, warnings = _read(places, ("doc_hash",))
    if not parts:
        return Gathered(run_id, "partial", 0, 0, [], warnings)
    covered, documents = _covered(parts)
    rows = len({name for part in parts for name in part.table["doc_hash"].to_pylist()})
    found = Gathered(run_id, "partial", rows, documents, [part.folder for part in parts], warnings)
    if not covered and not (partial and any(part.folder != target for part in parts)):
        return found
    parts, more = _read([part.folder for part in parts], tuple(COLUMNS))
    more += _contradictions(parts)
    covered, _ = _covered(parts)
    _check_agree(parts)
    others = [part for part in parts if part.folder != target]
    if not others and not covered:
        return Gathered(run_id, "partial", rows, documents, found.parts, [*warnings, *more])
    _merge(out, parts, covered, summary)
    if covered:
        remove_shards(target)
    state = "complete" if covered else "partial"
    return Gathered(run_id, state, rows, documents, found.parts, [*warnings, *more])


def _read(places: Iterable[Path], columns: Sequence[str]) -> tuple[list[Part], list[str]]:
    """The parts in some folders, and a sentence for each that cannot be used.

    Raises UserError for parts of different settings.
    """
    parts, warnings = [], []
    for folder in places:
        if not is_run(folder):
            continue
        try:
            table, manifest, odd = read_place(folder, columns)
        except UserError as error:
            if "no rows are recorded" not in error.what:
                warnings.append(f"{folder}: {error.what}")
            continue
        warnings += odd
        part = Part(folder, manifest, table)
        if part.odd:
            warnings.append(f"{folder}: {part.odd}")
        else:
            parts.append(part)
    for part in parts[1:]:
        if part.manifest.digest != parts[0].manifest.digest or part.planned != parts[0].planned:
            what = f"{part.folder} and {parts[0].folder} are parts of different runs."
            raise UserError(what, "Gather those of equal settings.")
    return parts, warnings


def _check_agree(parts: Sequence[Part]) -> None:
    """Raises UserError where two parts answered a document, and not with the same score."""
    known: dict[str, tuple[float, Path]] = {}
    for part in parts:
        rows = (part.table[name].to_pylist() for name in ("doc_hash", "score", "error"))
        for name, score, error in zip(*rows, strict=True):
            before, folder = known.setdefault(name, (score, part.folder)) if error is None else (score, None)
            if score != before:
                what = f"{part.folder} and {folder} have answers of one document that differ."
                raise UserError(what, "Leave out the one that is wrong, or answer it again with --fresh.")


def _covered(parts: Sequence[Part]) -> tuple[bool, int]:
    """Whether the parts have a row for every document, and how many documents there are."""
    documents, sha256 = parts[0].planned
    names = {name for part in parts for name in part.table["doc_hash"].to_pylist()}
    return len(names) == documents and documents_sha256(names) == sha256, documents


def _contradictions(parts: Sequence[Part]) -> list[str]:
    """A sentence for each part that has other answers than an earlier one."""
    first: dict[str, tuple[Path, tuple[Any, Any]]] = {}
    warnings = []
    for part in parts:
        places = Counter[Path]()
        for row in part.table.select(["doc_hash", "prediction", "score", "error"]).to_pylist():
            if row["error"] is None:
                answer = row["prediction"], row["score"]
                place, known = first.setdefault(row["doc_hash"], (part.folder, answer))
                places[place] += known != answer
        warnings += [
            f"{part.folder}: other answers to {count:,} documents than in {place}, whose rows are taken"
            for place, count in places.items()
            if count
        ]
    return warnings


def _merge(out: Path, parts: Sequence[Part], covered: bool, summary: Summary) -> None:
    """Writes the rows of parts into the run, and seals it."""
    newest = max(parts, key=lambda part: part.manifest.started_at or "")
    identity = newest.manifest.identity
    known = newest.manifest.model_dump(mode="json", exclude_unset=True)
    facts = {key: value for key, value in known.items() if key not in OF_A_PART}
    if isinstance(facts.get("recipe"), dict):
        facts["recipe"] = {**facts["recipe"], "shard": None}
    documents, sha256 = newest.planned
    names = {name for part in parts for name in part.table["doc_hash"].to_pylist()}
    told = {"documents_planned": documents, "documents_sha256": sha256}
    writer = RunWriter.open(out, identity, facts | told, documents=names if covered else None)
    if writer.complete:  # another process was first
        return
    try:
        sessions = {digest(s): s for part in parts for s in _sessions(part)}
        together = max((part.manifest.together or 1 for part in parts), default=1)
        begun = [part.manifest.started_at for part in parts if part.manifest.started_at]
        ordered = sorted(sessions.values(), key=lambda s: str(s.get("at")))
        writer.record(sessions=ordered, together=together, **({"started_at": min(begun)} if begun else {}))
        for row, folder in _best(parts, writer.folder, writer.done):
            copy_message(folder, writer.folder, row["doc_hash"])
            writer.adopt(row)
        if not covered:
            writer.interrupt()
            return
        seconds, asked = _times(parts)
        rate = asked / seconds if seconds else None
        more = summary(writer.manifest, writer.metrics())
        writer.finish({"documents_per_second": rate, "seconds": seconds, **more})
    finally:
        writer.close()


def _times(parts: Sequence[Part]) -> tuple[float, float]:
    """The seconds that parts took, and the documents that were answered in them.

    Of rows that several parts have only those of the first count.
    """
    seconds = asked = 0.0
    seen: set[str] = set()
    for part in parts:
        names = set(part.table["doc_hash"].to_pylist())
        share = len(names - seen) / len(names) if names else 0.0
        seconds, asked = seconds + share * part.seconds, asked + share * part.asked
        seen |= names
    return seconds, asked


def _sessions(part: Part) -> list[dict[str, Any]]:
    return [session.model_dump(mode="json", exclude_unset=True) for session in part.manifest.sessions]


def _best(parts: Sequence[Part], target: Path, done: Set[str]) -> list[tuple[dict[str, Any], Path]]:
    """The rows that a run's folder lacks: of each document the first with an answer, else the first.

    With the folder that each comes from.
    """
    best: dict[str, tuple[dict[str, Any], Path]] = {}
    failed = set()
    for part in parts:
        for row in part.table.to_pylist():
            name = row["doc_hash"]
            if part.folder == target:
                failed.add(name)
            elif name not in done and (name not in best or _better(row, best[name][0])):
                best[name] = row, part.folder
    return [each for name, each in best.items() if each[0]["error"] is None or name not in failed]


def _better(row: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
    """Whether a row has an answer and another one of its document has none."""
    return than["error"] is not None and row["error"] is None


def drop_shards(run: Path) -> None:
    """Forgets the shards of a run. Raises HeldError where a process writes one."""
    for folder in shards_of(run):
        own(folder, f"shard {folder.name} of run {run.name}").release()
    _remove(run)


def remove_shards(run: Path) -> None:
    """Removes the shards of a run that has all their rows; those that a process writes stay."""
    if is_sealed(run):
        _remove(run)


def _remove(run: Path) -> None:
    for folder in shards_of(run):
        with suppress(HeldError, FileNotFoundError):  # another process writes it, or was first
            owner = own(folder)
            try:
                folder.rename(folder.with_name(f".gone-{token_hex(4)}"))
            finally:
                owner.release()
    if (run / SHARDS).is_dir():
        for left in (run / SHARDS).glob(".gone-*"):
            shutil.rmtree(left, ignore_errors=True)
        if not any((run / SHARDS).iterdir()):
            shutil.rmtree(run / SHARDS, ignore_errors=True)


def found_in(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The parts of runs below some folders, by the run's id: runs, their shards, or a shard alone.

    Raises UserError for a folder that holds none, or where a part is not as its name says.
    """
    found: dict[str, list[Path]] = {}
    for top in folders:
        here = [*_below(top)]
        if not here:
            raise UserError(
                f"no run or shard is in {top}.", "Name a folder of results, of a run or of a shard."
            )
        for folder in here:
            identity = Manifest.lenient(read_manifest(folder), folder)[0].identity
            if not {"mode", "task", "control"} <= set(identity or {}):
                raise UserError(f"{folder} has no manifest that says what it asked.", "Leave it out.")
            found.setdefault(run_id_of(identity), []).append(folder)
    return found


def _below(top: Path, depth: int = 0) -> Iterable[Path]:
    """The folders of rows below a folder, the shards of a run after the run."""
    if is_run(top):
        yield top
        yield from shards_of(top)
    elif depth < 8 and top.is_dir():
        for path in sorted(top.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _below(path, depth + 1)
