"""A training's log: JSON lines while it lasts, a parquet file after each evaluation.

>>> pandas.read_parquet("adapters/new/training.parquet").query("metric == 'loss'")  # doctest: +SKIP
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from lcfbench.files import still, write, writing

LOG, JOURNAL = "training.parquet", "training.jsonl"
ROW = {"adapter": (str,), "step": (int,), "metric": (str,), "value": (float,)}


class TrainLog:
    """Rows (adapter, step, metric, value).

    table: those of a checkpoint, as `table` gave them. Rows after it are in no resumed log.
    """

    def __init__(self, folder: Path, table: bytes | None = None) -> None:
        import pyarrow.parquet as pq

        self.folder = folder
        self.rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(table)).to_pylist() if table else []
        path = folder / JOURNAL
        with writing(folder):
            write(path, "".join(json.dumps(r) + "\n" for r in self.rows).encode())
            self._file = path.open("a")

    def add(self, adapter: str, step: int, values: dict[str, float]) -> None:
        """Adds a row for each value. step: counted from 1."""
        new = [
            {"adapter": adapter, "step": step, "metric": name, "value": float(value)}
            for name, value in values.items()
        ]
        self.rows += new
        with writing(self.folder), still(self.folder):
            self._file.write("".join(json.dumps(r) + "\n" for r in new))
            self._file.flush()

    def seal(self) -> None:
        """Writes everything so far as parquet: `lcfbench plot training` draws it."""
        with writing(self.folder):
            write(self.folder / LOG, self.table())

    def table(self) -> bytes:
        """Returns everything so far as a parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [
            ("adapter", pa.string()),
            ("step", pa.int64()),
            ("metric", pa.string()),
            ("value", pa.float64()),
        ]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self.rows, schema=pa.schema(fields)), buffer)
        return buffer.getvalue()

    def close(self) -> None:
        self.seal()
        self._file.close()
        with still(self.folder):
            (self.folder / JOURNAL).unlink(missing_ok=True)
