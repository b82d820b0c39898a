"""Recorded runs, read so that one bad file spoils nothing and no column is read that nobody asked for.

    from lcfbench.reading import Reading
    reading = Reading([Path("results")], columns=("doc_hash", "score", "error"))
    for run_id, table, manifest in reading:
        ...
    reading.warnings                                            # a sentence for everything that could not be used

One run is in memory at a time; a parquet file that holds several is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.errors import UserError
from lcfbench.records import COLUMNS, JOURNAL, MANIFEST, SAMPLES, read_manifest, recorded, schema

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = ("run_id", "doc_hash")
FEW_VALUES = ("run_id", "pair", "receiver", "sharer", "mode", "control", "task", "subject", "scoring", "metric", "error")


class Part(NamedTuple):
    """One run: its rows under today's column names, and its manifest with `folder` and, where unknown, state "unknown"."""

    run_id: str
    table: pa.Table
    manifest: dict[str, Any]


class Reading:
    """Iterates over every run under `paths`: results folders, run folders or parquet files, finished or not.

    columns: those wanted, all by default. What cannot be read is named in `warnings` and skipped; a run met twice is read once.
    Iterating raises UserError where nothing at all can be read.
    """

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        self.paths, self.columns, self.warnings = [Path(p) for p in paths], tuple(columns or COLUMNS), list[str]()

    def __iter__(self) -> Iterator[Part]:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.warnings.clear()
        found: dict[str, str] = {}
        for place in dict.fromkeys(p.resolve() for path in self.paths for p in places(path, self.warnings)):
            try:
                table = self._table(place)
            except (OSError, pa.ArrowException, ValueError, KeyError, UserError) as error:
                self.warnings.append(f"{place}: skipped, cannot be read ({' '.join(str(error).split())[:120]})")
                continue
            try:
                manifest = read_manifest(place) if place.is_dir() else {}
            except UserError as error:  # its rows are good all the same
                manifest = {}
                self.warnings.append(error.what)
            run_ids = table["run_id"].unique().to_pylist() or [manifest.get("run_id", place.name)]
            for run_id in run_ids:
                if run_id in found:
                    self.warnings.append(f"{place}: skipped, run {run_id} was already read from {found[run_id]}")
                    continue
                found[run_id] = str(place if place.is_dir() else place.parent)
                part = table if len(run_ids) == 1 else table.filter(pc.equal(table["run_id"], run_id))
                yield Part(run_id, part, {"run_id": run_id, "state": "unknown", **manifest, "folder": found[run_id]})
        if not found:
            reasons = "; ".join(self.warnings) or f"no runs in {', '.join(map(str, self.paths))}"
            raise UserError(f"nothing to read: {reasons}.", "Name a results folder or a run folder; `lcfbench ls runs` lists them.")

    def _table(self, place: Path) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = tuple(dict.fromkeys((*self.columns, *NEEDED)))
        if place.is_dir() and (place / JOURNAL).exists():
            return pa.Table.from_pylist(list(recorded(place).values()), schema=schema()).select(wanted)
        path = place / SAMPLES if place.is_dir() else place
        names = pq.read_schema(path).names
        with pq.ParquetFile(path, read_dictionary=[name for name in FEW_VALUES if name in names]) as file:
            if absent := set(NEEDED) - set(names):
                raise ValueError(f"not a samples file: no column {' or '.join(sorted(absent))}")
            if unknown := [name for name in names if name not in COLUMNS]:
                self.warnings.append(f"{place}: columns unknown to this version are left out: {', '.join(unknown)}")
            table = file.read([name for name in wanted if name in names])
        kinds = schema()
        arrays = [_conform(table, kinds.field(name)) for name in wanted]
        if empty := [name for name, array in zip(wanted, arrays, strict=True) if name in NEEDED and array.null_count]:
            raise ValueError(f"not a samples file: rows without {' or '.join(empty)}")
        return pa.table(arrays, names=list(wanted))


def _conform(table: pa.Table, field: pa.Field) -> Any:
    """A column in today's type; nulls where the file has none. What has few values stays encoded."""
    import pyarrow as pa

    if field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    column = table[field.name]
    if pa.types.is_dictionary(column.type):
        return column if field.name in FEW_VALUES else column.cast(field.type)
    return column.cast(field.type)


def places(path: Path, warnings: list[str]) -> Iterator[Path]:
    """The run folders and parquet files that a path stands for; where there are none, a warning."""
    if path.is_file():
        yield path.parent if path.name in (MANIFEST, SAMPLES, JOURNAL) else path
    elif is_run(path):
        yield path
    elif path.is_dir():
        found = sorted(child for child in path.iterdir() if is_run(child) or child.suffix == ".parquet")
        if not found:
            warnings.append(f"{path}: no runs in this folder")
        yield from found
    else:
        warnings.append(f"{path}: no such file or folder")


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, however far it came."""
    return any((path / name).exists() for name in (MANIFEST, SAMPLES, JOURNAL))
