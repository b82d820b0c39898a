"""Recorded rows as JSON Lines or CSV: every column, one run in memory at a time.

>>> warnings = write_rows([Path("results")], "jsonl", Path("rows.jsonl"))         # doctest: +SKIP
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from lcfbench.files import output
from lcfbench.results.reader import Reading
from lcfbench.results.schema import COLUMNS
from lcfbench.tables import csv_cell

AT_ONCE = 1_000  # rows that become text together


def write_rows(
    paths: Sequence[Path], form: Literal["jsonl", "csv"], out: Path, columns: Sequence[str] = ()
) -> list[str]:
    """Writes the rows of all runs under `paths`; returns sentences on what was left out.

    columns: all by default. Types stay: in JSON numbers are numbers and what is not known is null; in CSV
    it is empty, and text begins no formula of a spreadsheet. out: a file, which is written whole or not
    at all, or a stream. Raises UserError where nothing can be read or the file cannot be written.
    """
    reading, unfinished = Reading(paths, columns or None), list[str]()
    parts = iter(reading)
    first = next(parts)  # what cannot be read is said before the file is begun
    with written(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        if form == "csv":
            writer.writerow(columns or COLUMNS)
        for part in chain([first], parts):
            if part.manifest.state in ("running", "interrupted"):
                unfinished.append(f"{part.run_id} is not finished: {len(part.table):,} rows so far")
            table = part.table.select(list(columns or COLUMNS))
            for batch in table.to_batches(max_chunksize=AT_ONCE):
                rows = batch.to_pylist()
                if form == "csv":
                    writer.writerows([_known(csv_cell(v)) for v in row.values()] for row in rows)
                else:
                    file.writelines(f"{to_line(row)}\n" for row in rows)
    return [*reading.warnings, *unfinished]


def to_line(row: Mapping[str, Any]) -> str:
    """Returns a row as one line of JSON; a number that is none is null."""
    return json.dumps({k: _known(v) for k, v in row.items()}, ensure_ascii=False, allow_nan=False)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def written(out: Path) -> Iterator[IO[str]]:
    """Gives a text file that takes the place of `out` when the block ends well; a stream is written on."""
    with output(out) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        try:
            yield file
        finally:
            file.detach()
