"""Holds recorded rows against what the run's manifest says of them.

    why = damage(table, manifest)    # "" where the rows are those that were recorded

A run that is sealed records the number of its rows, of its failures, which documents it asked, and a
digest of every column. A reader checks the columns that it reads. Each row has a digest too, which
holds where rows are missing and before a run is sealed. Runs of older versions record less, and less is
checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lcfbench.provenance import digest
from lcfbench.results.manifest import Manifest
from lcfbench.results.schema import DIGESTED, as_written, schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

AT_ONCE = 10_000  # values of a column that are hashed together


def documents_sha256(hashes: Iterable[str]) -> str:
    """Digest of a set of documents, in any order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def columns_sha256(table: pa.Table) -> dict[str, str]:
    """Digest of each column that is not empty, rows ordered by document; 16 hex digits each."""
    import pyarrow.compute as pc

    order = pc.sort_indices(table["doc_hash"].cast("string"))
    return {  # a column at a time, so that no second copy of the table is in memory
        name: _column_sha256(table[name].take(order))
        for name in table.column_names
        if table[name].null_count < len(table)
    }


def damage(table: pa.Table, manifest: Manifest) -> str:
    """Says how sealed rows differ from the recorded ones; empty where they do not.

    table: all rows of the run, of `run_id`, `doc_hash`, `score`, `error` and `schema_version` at least.
    """
    if why := foreign(table, manifest):
        return why
    n = len(table)
    if manifest.documents is not None and n != manifest.documents:
        return f"{n:,} rows of {manifest.documents:,} recorded ones"
    if manifest.state == "complete" and manifest.documents_planned not in (None, n):
        return f"{n:,} rows of {manifest.documents_planned:,} planned documents"
    failed = n - table["error"].null_count
    if manifest.errors is not None and failed != manifest.errors:
        return f"{failed:,} failed documents, {manifest.errors:,} recorded"
    planned = manifest.documents_sha256 if manifest.state == "complete" else None
    if planned is not None and documents_sha256(table["doc_hash"].to_pylist()) != planned:
        return "other documents than the run asked"
    if recorded := manifest.columns_sha256:
        found = columns_sha256(table)
        other = [name for name in table.column_names if found.get(name) != recorded.get(name)]
        if other:
            return f"other values than recorded in {', '.join(other[:5])}{', …' if len(other) > 5 else ''}"
    return ""


def altered_rows(path: Path) -> str:
    """Says how many rows of a parquet file are not as they were written; empty where all are.

    A few rows are in memory at a time. Raises OSError or pyarrow's errors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(AT_ONCE // 10):
            kinds = [field for field in schema() if field.name in batch.schema.names]
            columns = [batch[field.name].cast(field.type) for field in kinds]
            rows = pa.table(columns, names=[field.name for field in kinds]).to_pylist()
            count += sum(not as_written(row) for row in rows)
    return f"{count:,} rows are not as they were written" if count else ""


def foreign(table: pa.Table, manifest: Manifest) -> str:
    """Says why rows or settings cannot be this run's at all, finished or not; empty where they can."""
    if manifest.identity:
        own = digest(manifest.identity)
        name = manifest.run_id if (manifest.schema_version or 0) >= DIGESTED else None
        if manifest.digest not in (None, own) or (name and not name.endswith(own[:10])):
            return "the manifest's identity is not the one that its digest was computed from"
    if manifest.run_id:
        others = [name for name in table["run_id"].unique().to_pylist() if name != manifest.run_id]
        if others:
            return f"rows of another run, {others[0]}"
    version = manifest.schema_version
    if version and any(row and row > version for row in table["schema_version"].unique().to_pylist()):
        return f"rows of a newer schema than the run's, {version}"
    if table["doc_hash"].cast("string").unique().__len__() != len(table):
        return "several rows of one document"
    return ""


def _column_sha256(column: pa.ChunkedArray) -> str:
    """Digest of a column's values and of where it has none; chunks and encoding do not matter."""
    import numpy as np

    digest = ColumnDigest(np.asarray(column.is_valid()))
    for begin in range(0, len(column), AT_ONCE):
        digest.values(column.slice(begin, AT_ONCE))
        digest.texts(column.slice(begin, AT_ONCE))
    return digest.hexdigest()


class ColumnDigest:
    """Digest of a column whose rows come in portions of `AT_ONCE`, each whole or in pieces.

    Of every portion it takes the `values` of all pieces, then the `texts` of all. valid: whether each
    row of the column has a value.
    """

    def __init__(self, valid: np.ndarray) -> None:
        import numpy as np

        self._found = hashlib.sha256(np.packbits(valid).tobytes())

    def values(self, piece: pa.ChunkedArray) -> None:
        """Takes numbers, or the lengths of texts."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        piece = _plain(piece)
        if pa.types.is_string(piece.type):
            lengths = pc.binary_length(pc.fill_null(piece, ""))
            self._found.update(np.asarray(lengths).astype(np.int64).tobytes())
        else:
            self._found.update(np.asarray(pc.fill_null(piece, 0)).tobytes())

    def texts(self, piece: pa.ChunkedArray) -> None:
        """Takes texts; nothing of numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        piece = _plain(piece)
        if pa.types.is_string(piece.type):
            for chunk in pc.fill_null(piece, "").chunks:
                self._found.update(_text(chunk))

    def hexdigest(self) -> str:
        """The digest, 16 hex digits."""
        return self._found.hexdigest()[:16]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts or numbers as it is digested."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return column.cast("string")
    return column.cast("int8") if pa.types.is_boolean(column.type) else column


def _text(values: pa.StringArray) -> memoryview:
    """All texts of an array without nulls, one behind the other, as UTF-8."""
    import numpy as np

    _, places, data = values.buffers()
    if not len(values) or data is None:
        return memoryview(b"")
    ends = np.frombuffer(places, np.int32)[values.offset : values.offset + len(values) + 1]
    return memoryview(data)[ends[0] : ends[-1]]
