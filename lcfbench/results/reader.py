"""Reads recorded runs: one bad file spoils nothing, and only the columns asked for are read.

>>> reading = Reading([Path("results")], columns=("doc_hash", "score", "error"))  # doctest: +SKIP
>>> for run_id, table, manifest in reading: ...                                   # doctest: +SKIP
>>> reading.warnings  # a sentence for everything that could not be used          # doctest: +SKIP

One run is in memory at a time; a parquet file that holds several runs is read once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from lcfbench.errors import UserError
from lcfbench.files import LOCK
from lcfbench.ownership import holders, is_local
from lcfbench.results.finding import listed, places
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.schema import COLUMNS, DIGESTED, JOURNAL, SAMPLES, check_regular, journal_rows, schema
from lcfbench.results.shards import shards_of
from lcfbench.results.validation import altered_rows, damage, foreign

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa


Paths: TypeAlias = "Path | str | Sequence[Path | str]"
NEEDED = ("run_id", "doc_hash")
HELD = (*NEEDED, "score", "error", "schema_version")  # what a run is always held against
# of pyarrow on hostile files, beside its own
READ_ERRORS = (OSError, ArithmeticError, LookupError, TypeError, ValueError)
SEALED = ("complete", "interrupted")
AT_ONCE = 1000  # rows of a journal that become a table together
FEW_VALUES = (*"run_id pair receiver sharer mode control task subject scoring metric error".split(),)


class Part(NamedTuple):
    """One run: its rows in today's columns, and its manifest with its `folder`."""

    run_id: str
    table: pa.Table
    manifest: Manifest


class Reading:
    """Iterates over every run under `paths`: results folders, run folders or parquet files.

    columns: all by default. A file that cannot be read, and a run whose rows are not those that were
    recorded, is named in `warnings` and in `left_out`, and skipped; a run that is found twice is read
    once. Raises UserError where nothing can be read; with `damaged_too`, where nothing is there.
    """

    def __init__(
        self, paths: Sequence[Path], columns: Sequence[str] | None = None, damaged_too: bool = False
    ) -> None:
        self.paths, self.columns = [Path(p) for p in paths], tuple(columns or COLUMNS)
        self.damaged_too = damaged_too
        self.warnings: list[str] = []
        self.left_out: list[str] = []

    def __iter__(self) -> Iterator[Part]:
        import pyarrow.compute as pc

        self.warnings.clear()
        self.left_out.clear()
        found: dict[str, str] = {}
        every = (os.path.realpath(p) for path in self.paths for p in places(path, self.warnings))
        for place in map(Path, dict.fromkeys(every)):
            try:
                table, manifest, odd = read_place(place, self.columns)
            except UserError as error:
                self.left_out.append(f"{place}: {error.what}")
                self.warnings.append(self.left_out[-1])
                continue
            self.warnings += odd
            run_ids = table["run_id"].unique().to_pylist() or [manifest.run_id or place.name]
            for run_id in run_ids:
                if run_id in found:
                    again = f"run {run_id} was already read from {found[run_id]}"
                    self.warnings.append(f"{place}: skipped, {again}")
                    continue
                found[run_id] = str(place if place.is_dir() else place.parent)
                part = table if len(run_ids) == 1 else table.filter(pc.equal(table["run_id"], run_id))
                yield Part(run_id, part, manifest.update(run_id=run_id, folder=found[run_id]))
        if not found and not (self.damaged_too and self.left_out):
            reasons = "; ".join(self.warnings) or f"no runs in {', '.join(map(str, self.paths))}"
            step = "Name a results folder or a run folder; `lcfbench ls runs` lists them."
            raise UserError(f"nothing to read: {reasons}.", step)


def read_place(place: Path, columns: Sequence[str]) -> tuple[pa.Table, Manifest, list[str]]:
    """Returns the rows and the manifest of a run folder or parquet file, and sentences of warning.

    Raises UserError, `what` being why the run is left out: it cannot be read, or its rows are not
    those that were recorded.
    """
    import pyarrow as pa

    warnings: list[str] = []
    try:
        manifest, warnings = Manifest.lenient(read_manifest(place) if place.is_dir() else {}, place)
    except UserError as error:  # its rows are good all the same
        manifest, warnings = Manifest(), [error.what]
    older = (manifest.schema_version or DIGESTED) < DIGESTED
    try:
        begun = has_journal(place)
        by_row = begun or not (older or manifest.columns_sha256)  # the columns have no digest
        names = tuple(dict.fromkeys((*columns, *HELD)))
        table = read_table(place, names, warnings, manifest.run_id)
        check_scores(table)
        unsealed = begun and manifest.state == "running"
        why = (foreign if unsealed else damage)(table, manifest) if manifest.model_fields_set else ""
        samples = place / SAMPLES if place.is_dir() else place
        if why := why or (altered_rows(samples) if by_row and os.path.lexists(samples) else ""):
            raise UserError(f"left out, its rows are not those that were recorded ({why})")
        table = _without_impossible(table, place, warnings)
        if manifest.documents is None and manifest.state in SEALED and not older:
            warnings.append(f"{place}: the manifest does not say how many rows were recorded")
    except (*READ_ERRORS, pa.ArrowException) as error:
        why = "no rows are recorded" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise UserError(f"skipped, cannot be read ({why[:160]})") from error
    return table.select(list(dict.fromkeys((*columns, *NEEDED)))), manifest, warnings


def read_table(
    place: Path, columns: Sequence[str], warnings: list[str], run_id: str | None = None
) -> pa.Table:
    """Returns the rows of a run folder or parquet file, with `run_id` and `doc_hash`.

    The journal of an unfinished run is newer than its parquet file. run_id: of the journal's rows.
    Raises OSError, ValueError or pyarrow's errors; ValueError too for two answers of one document that
    differ.
    """
    import pyarrow as pa

    names = tuple(dict.fromkeys((*columns, *NEEDED)))
    samples = place / SAMPLES if place.is_dir() else place
    if not place.is_dir() or is_sealed_alone(place):
        return read_parquet(samples, place, names, warnings)
    parts = [read_parquet(samples, place, names, warnings)] if os.path.lexists(samples) else []
    kinds = pa.schema([(name, schema().field(name).type) for name in names])
    parts = [part.cast(kinds) for part in parts]
    odd: list[int] = []
    parts += [pa.Table.from_pylist(rows, kinds) for rows in _journal(place / JOURNAL, names, run_id, odd)]
    if odd:
        warnings.append(f"{place / JOURNAL}: {odd[0]:,} lines are no rows of this run (left out)")
    table = pa.concat_tables(parts) if parts else kinds.empty_table()
    if (last := is_last(table["doc_hash"])) is None:
        return table
    if {"score", "error"} <= set(names):
        check_answers(table)
    return table.filter(pa.array(last))


def is_sealed_alone(folder: Path) -> bool:
    """Says whether a run's rows are to be read from its parquet file alone: its journal has none."""
    return not (folder / JOURNAL).exists() or (os.path.lexists(folder / SAMPLES) and not has_journal(folder))


def is_last(names: pa.ChunkedArray) -> np.ndarray | None:
    """Says of each row whether it is the last of its document; None where no document has several."""
    import pyarrow.compute as pc

    if pc.count_distinct(names).as_py() == len(names):
        return None
    return ~names.to_pandas().duplicated(keep="last").to_numpy()


def check_answers(table: pa.Table) -> None:
    """Raises ValueError where a document has several answers that differ; failures are no answers."""
    rows = table.select(["doc_hash", "score", "error"]).to_pandas()
    scores = rows[rows["error"].isna()].groupby("doc_hash")["score"].nunique()
    if count := int((scores > 1).sum()):
        raise ValueError(f"{count:,} documents have several answers that differ")


def read_parquet(path: Path, place: Path, names: Sequence[str], warnings: list[str]) -> pa.Table:
    """Returns these columns of a parquet file of rows, nulls where it has none. Raises as `read_table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(path)
    metadata = pq.read_metadata(path)
    stored = metadata.schema.to_arrow_schema().names
    if absent := set(NEEDED) - set(stored):
        raise ValueError(f"not a samples file: no column {' or '.join(sorted(absent))}")
    if unknown := [name for name in stored if name not in COLUMNS]:
        few = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else "")
        warnings.append(f"{place}: columns unknown to this version are left out: {few}")
    encoded = [name for name in FEW_VALUES if name in stored]
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=encoded) as file:
        table = file.read([name for name in names if name in stored])
    arrays = [_conform(table, schema().field(name)) for name in names]
    nulls = [name for name, array in zip(names, arrays, strict=True) if array.null_count]
    if empty := [name for name in nulls if name in NEEDED]:
        raise ValueError(f"not a samples file: rows without {' or '.join(empty)}")
    table = pa.table(arrays, names=list(names))
    table.validate(full=True)  # or text that is no UTF-8 is found where it is shown
    return table


def _journal(
    path: Path, names: Sequence[str], run_id: str | None, odd: list[int]
) -> Iterator[list[dict[str, Any]]]:
    """Yields some rows at a time, in these columns only. odd: gets the number of other lines."""
    rows: list[dict[str, Any]] = []
    others = 0
    for row in journal_rows(path, run_id):
        if row is None:
            others += 1
            continue
        rows.append({name: row.get(name) for name in names})
        if len(rows) == AT_ONCE:
            yield rows
            rows = []
    if others:
        odd.append(others)
    if rows:
        yield rows


def _conform(table: pa.Table, field: pa.Field) -> Any:
    """Returns a column in today's type, nulls where the file has none.

    Columns of few values stay encoded.
    """
    import pyarrow as pa

    if field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    column = table[field.name]
    encoded = pa.types.is_dictionary(column.type) and field.name in FEW_VALUES
    return column if encoded else column.cast(field.type)


def check_scores(table: pa.Table) -> None:
    """Raises ValueError for scores outside 0 to 1, and for rows that have neither score nor error."""
    import pyarrow.compute as pc

    known = pc.drop_null(table["score"])
    within = pc.and_(pc.greater_equal(known, 0.0), pc.less_equal(known, 1.0))  # false for NaN
    if count := pc.sum(pc.invert(within)).as_py():
        raise ValueError(f"{count} scores are not between 0 and 1")
    if count := pc.sum(pc.and_(pc.is_null(table["score"]), pc.is_null(table["error"]))).as_py():
        raise ValueError(f"{count} rows have neither a score nor an error")


def _without_impossible(table: pa.Table, place: Path, warnings: list[str]) -> pa.Table:
    """Returns the table without negative and infinite times; adds a sentence for each column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in [n for n in table.column_names if n.endswith("_ms")]:
        good = pc.and_(pc.is_finite(table[name]), pc.greater_equal(table[name], 0.0))
        if count := pc.sum(pc.invert(good)).as_py():
            mended = pc.if_else(good, table[name], pa.scalar(None, pa.float64()))
            table = table.set_column(table.column_names.index(name), name, mended)
            warnings.append(f"{place}: {count} values of {name} are no times (left out)")
    return table


@dataclass(frozen=True)
class Runs:
    """All rows in one frame, each run's manifest, and warnings on files that are left out."""

    rows: pd.DataFrame
    manifests: dict[str, Manifest]
    warnings: list[str]


def read_runs(paths: Sequence[Path], columns: Sequence[str] | None = None) -> Runs:
    """Reads every run under `paths` at once. Raises UserError where nothing can be read."""
    import pyarrow as pa

    reading = Reading(paths, columns)
    parts = list(reading)
    plain = pa.schema([(name, schema().field(name).type) for name in parts[0].table.column_names])
    rows = pa.concat_tables(part.table.cast(plain) for part in parts).to_pandas()
    return Runs(rows, {part.run_id: part.manifest for part in parts}, reading.warnings)


def load_samples(paths: Paths, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns a row for each document of every run under `paths`.

    columns: all by default; `schema.DESCRIPTIONS` describes them. A file that cannot be read gives
    a UserWarning. Raises UserError where nothing can be read.
    """
    found = read_runs(as_paths(paths), columns)
    warn_all(found.warnings)
    return found.rows


def as_paths(paths: Paths) -> list[Path]:
    """Returns one path or several as a list."""
    return [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]


def warn_all(sentences: Sequence[str]) -> None:
    """Raises each sentence as a UserWarning, shown at the line that called the library."""
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)


def has_journal(folder: Path) -> bool:
    """Returns whether rows were recorded that are not sealed yet."""
    path = folder / JOURNAL
    return path.is_file() and path.stat().st_size > 0


def list_runs(out: Path) -> list[dict[str, Any]]:
    """Returns the manifests under `out`, oldest first, each with its `folder`.

    One that cannot be read has the state "unreadable"; one whose file has another number of rows than
    it says is "damaged"; a running one whose process is gone is "stopped", and has the `host` of its
    process where that is another; a finished one in which too many documents failed is "failed".
    """
    found = []
    running: dict[Path, dict[str, Any]] = {}
    for folder in listed(Path(out), sharded=True):
        try:
            manifest, odd = Manifest.lenient(read_manifest(folder), folder)
            state = "damaged" if odd or _rows_lack(folder, manifest) else manifest.state
            if state != "complete" and shards_of(folder):
                state = "partial"
            if state == "complete" and manifest.too_many(manifest.errors or 0, manifest.documents or 0):
                state = "failed"
            known = {
                "run_id": folder.name,
                **manifest.model_dump(mode="json", exclude_unset=True, fallback=str),
            }
            found.append({**known, "state": state, "folder": str(folder)})
            if state == "running":
                running[folder / LOCK] = found[-1]
        except UserError as error:
            found.append(
                {"run_id": folder.name, "state": "unreadable", "error": error.what, "folder": str(folder)}
            )
    for lock, owner in holders(running).items():
        if owner is None:
            running[lock]["state"] = "stopped"
        elif not is_local(owner, lock):
            running[lock]["host"] = owner.host
    return sorted(found, key=lambda manifest: str(manifest.get("started_at", "")))


def _rows_lack(folder: Path, manifest: Manifest) -> bool:
    """Whether a sealed run's file has not the rows that its manifest says, by the file's own count."""
    if has_journal(folder) or not os.path.lexists(folder / SAMPLES):
        return bool(manifest.documents) and not has_journal(folder)
    if manifest.samples_bytes is not None and (folder / SAMPLES).lstat().st_size == manifest.samples_bytes:
        return False  # nothing heavy is imported for a file that is as it was

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_regular(folder / SAMPLES)
        rows = pq.read_metadata(folder / SAMPLES).num_rows
    except (OSError, pa.ArrowException):
        return True
    return manifest.documents not in (None, rows)
