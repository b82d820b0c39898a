"""Makes a run's parquet file of its recorded rows, a few of which are in memory at a time.

>>> found = RecordedRows.find(Path("results/receiver-splitfacts-matched-0123456789"))  # doctest: +SKIP
>>> found.columns_sha256(); found.write(file)                                    # doctest: +SKIP

A first reading of the journal finds which rows count, and keeps 60 bytes or so of each. The digests take
the rows in the order of their documents' hashes, the file in the order of the run.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lcfbench.results.reader import check_answers, is_last, is_sealed_alone, read_parquet
from lcfbench.results.schema import COLUMNS, JOURNAL, SAMPLES, placed_rows, schema
from lcfbench.results.validation import AT_ONCE, ColumnDigest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ROWS, BYTES = 1000, 16 << 20  # of the journal that are in memory together, and that a row group holds
OBJECTS, LINES = 50, 100  # of these that are Python's objects, or parsed by pyarrow, together
KEYS = ["doc_hash", "doc_index", "score", "error"]


@dataclass(frozen=True)
class RecordedRows:
    """The rows of a run that count, the last of each document, where they lie.

    journal: the file of lines. earlier: rows of a parquet file that an earlier session sealed, or None.
    keys: their `KEYS`, a row each of N. places (N, 2): where a line begins and ends in the journal, or the
    number of a row in `earlier` and -1. empty (N, bytes): a bit for each column that has no value.
    """

    journal: Path
    earlier: pa.Table | None
    keys: pa.Table
    places: np.ndarray
    empty: np.ndarray

    @classmethod
    def find(cls, folder: Path, run_id: str | None = None) -> RecordedRows:
        """Looks through the rows of a run's folder.

        Raises OSError, ValueError or pyarrow's errors; ValueError too for two answers of one document
        that differ.
        """
        import numpy as np
        import pyarrow as pa

        kinds = pa.schema([(name, schema().field(name).type) for name in KEYS])
        parts, places, empty = [kinds.empty_table()], array("q"), bytearray()
        earlier = None
        if (alone := is_sealed_alone(folder)) or os.path.lexists(folder / SAMPLES):
            earlier = read_parquet(folder / SAMPLES, folder, tuple(COLUMNS), []).cast(schema())
            parts.append(earlier.select(KEYS).cast(kinds))
            for number in range(len(earlier)):
                places.extend((number, -1))
            empty += _bits(np.stack([np.asarray(earlier[name].is_null()) for name in COLUMNS], axis=1))
        keys = list[list[Any]]()
        for rows, at in () if alone else _portions(folder / JOURNAL, run_id):
            keys += [[row.get(name) for name in KEYS] for row in rows]
            for place in at:
                places.extend(place)
            empty += _bits([[row.get(name) is None for name in COLUMNS] for row in rows])
            if len(keys) >= ROWS:
                parts.append(_keys(keys, kinds))
                keys = []
        found = pa.concat_tables([*parts, _keys(keys, kinds)])
        where = np.frombuffer(places, np.int64).reshape(-1, 2)
        lacking = np.frombuffer(empty, np.uint8).reshape(-1, -(-len(COLUMNS) // 8))
        if (last := is_last(found["doc_hash"])) is not None:
            check_answers(found)
            found, where, lacking = found.filter(pa.array(last)), where[last], lacking[last]
        return cls(folder / JOURNAL, earlier, found.combine_chunks(), where, lacking)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def errors(self) -> int:
        """The number of documents that failed."""
        return len(self) - int(self.keys["error"].null_count)

    def columns_sha256(self) -> dict[str, str]:
        """Digest of each column that is not empty, as `validation.columns_sha256` has it."""
        import numpy as np
        import pyarrow.compute as pc

        order = np.asarray(pc.sort_indices(self.keys["doc_hash"]))
        found = {}
        for i, name in enumerate(COLUMNS):  # bit 0 of a byte is its highest
            valid = self.empty[order, i // 8] & (128 >> i % 8) == 0
            if valid.any():
                found[name] = ColumnDigest(valid)
        names = [name for name in found if COLUMNS[name] is str]
        for begin in range(0, len(self), AT_ONCE):
            portion = order[begin : begin + AT_ONCE]
            for table in self._tables(portion, list(found)):
                for name, digest in found.items():
                    digest.values(table[name])
            for table in self._tables(portion, names):
                for name in names:
                    found[name].texts(table[name])
        return {name: digest.hexdigest() for name, digest in found.items()}

    def write(self, file: IO[bytes]) -> int:
        """Writes the parquet file, rows in the order of the run; returns its size in bytes."""
        import numpy as np
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        keys = [("doc_index", "ascending"), ("doc_hash", "ascending")]
        order = np.asarray(pc.sort_indices(self.keys, sort_keys=keys))
        with pq.ParquetWriter(file, schema(), compression="zstd") as writer:
            for table in self._tables(order, list(COLUMNS)):
                writer.write_table(table)
        return file.tell()

    def _tables(self, order: np.ndarray, names: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of the rows of these numbers, in this order, some at a time."""
        import numpy as np

        if len(self) <= ROWS and self._bytes.sum() <= BYTES:
            yield self._whole.select(names).take(order)
            return
        sizes = np.cumsum(self._bytes[order])
        begin = 0
        while begin < len(order):
            before = sizes[begin - 1] if begin else 0
            end = int(np.searchsorted(sizes, before + BYTES, side="right"))
            end = min(max(end, begin + 1), begin + ROWS)
            yield self._read(order[begin:end], names)
            begin = end

    @property
    def _bytes(self) -> np.ndarray:
        """The length of each row's line; 0 for rows that are in memory."""
        import numpy as np

        return np.maximum(self.places[:, 1] - self.places[:, 0], 0)

    @cached_property
    def _whole(self) -> pa.Table:
        """All rows, where they are few."""
        import numpy as np

        return self._read(np.arange(len(self)), list(COLUMNS))

    def _read(self, numbers: np.ndarray, names: Sequence[str]) -> pa.Table:
        """These columns of the rows of these numbers, in this order."""
        import numpy as np
        import pyarrow as pa

        fields = [schema().field(name) for name in names]
        kinds = pa.schema([(field.name, field.type) for field in fields])
        places = self.places[numbers]
        lines = places[:, 1] >= 0
        parts = [kinds.empty_table()]
        if lines.any():
            with open(self.journal, "rb", buffering=0) as file:
                for some in np.split(places[lines], range(LINES, int(lines.sum()), LINES)):
                    parts.append(_parsed([_line(file, *place) for place in some.tolist()], kinds))
        table = pa.concat_tables(parts).combine_chunks().cast(pa.schema(fields, schema().metadata))
        if self.earlier is None or lines.all():
            return table
        table = pa.concat_tables([table, self.earlier.select(names).take(places[~lines, 0])])
        order = np.argsort(np.concatenate([np.flatnonzero(lines), np.flatnonzero(~lines)]))
        return table.take(order)


def _line(file: IO[bytes], begin: int, end: int) -> bytes:
    """A line of the journal."""
    file.seek(begin)
    if len(line := file.read(end - begin)) != end - begin:
        raise OSError("the journal was cut short")
    return line


def _parsed(lines: Sequence[bytes], kinds: pa.Schema) -> pa.Table:
    """Lines of a journal that hold rows (`schema.is_row`) as a table of these columns.

    pyarrow reads them twice as fast as Python. What a row's values are never written as (3.0 in a column
    of whole numbers, a name twice) it refuses, and Python reads it.
    """
    import pyarrow as pa
    from pyarrow import json as arrow

    data = b"".join(lines)
    reading = arrow.ReadOptions(use_threads=False, block_size=len(data) + 1)
    columns = arrow.ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    try:
        return arrow.read_json(pa.BufferReader(data), reading, columns).select(kinds.names)
    except pa.ArrowInvalid:
        return pa.Table.from_pylist([json.loads(line) for line in lines], kinds)


def _portions(
    journal: Path, run_id: str | None
) -> Iterator[tuple[list[dict[str, Any]], list[tuple[int, int]]]]:
    """The rows of a journal and where each begins and ends, some at a time."""
    rows, places, size = list[dict[str, Any]](), list[tuple[int, int]](), 0
    for row, begin, end in placed_rows(journal, run_id):
        if row is None:
            continue
        if rows and (len(rows) == OBJECTS or size + end - begin > BYTES):
            yield rows, places
            rows, places, size = [], [], 0
        rows.append(row)
        places.append((begin, end))
        size += end - begin
    if rows:
        yield rows, places


def _keys(rows: Sequence[Sequence[Any]], kinds: pa.Schema) -> pa.Table:
    """Rows of `KEYS` as a table."""
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else [()] * len(KEYS)
    both = zip(columns, kinds.types, strict=True)
    return pa.table([pa.array(values, kind) for values, kind in both], schema=kinds)


def _bits(lacking: Any) -> bytes:
    """Truth values (N, columns) as bits (N, bytes)."""
    import numpy as np

    return np.packbits(np.array(lacking, bool).reshape(-1, len(COLUMNS)), axis=1).tobytes()
