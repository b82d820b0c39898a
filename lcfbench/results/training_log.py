"""A training's log: JSON lines while it lasts, a parquet file after each evaluation.

>>> pandas.read_parquet("adapters/new/training.parquet").query("metric == 'loss'")  # doctest: +SKIP
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcfbench.files import write, writing

LOG, JOURNAL = "training.parquet", "training.jsonl"
ROW = {"adapter": (str,), "step": (int,), "metric": (str,), "value": (float,)}


class TrainLog:
    """Rows (adapter, step, metric, value). A resumed training drops rows after its checkpoint."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        path = folder / JOURNAL
        with writing(folder):
            if resumed_at is not None and path.exists():
                kept = [
                    row
                    for line in path.read_text(errors="replace").splitlines()
                    if (row := _row(line)) and row["step"] <= resumed_at
                ]
                self.rows = kept
            write(path, "".join(json.dumps(r) + "\n" for r in self.rows).encode())
            self._file = path.open("a")

    def add(self, adapter: str, step: int, values: dict[str, float]) -> None:
        """Adds a row for each value. step: counted from 1."""
        new = [
            {"adapter": adapter, "step": step, "metric": name, "value": float(value)}
            for name, value in values.items()
        ]
        self.rows += new
        with writing(self.folder):
            self._file.write("".join(json.dumps(r) + "\n" for r in new))
            self._file.flush()

    def seal(self) -> None:
        """Writes everything so far as parquet: `lcfbench plot training` draws it."""
        import io

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
        with writing(self.folder):
            write(self.folder / LOG, buffer.getvalue())

    def close(self) -> None:
        self.seal()
        self._file.close()
        (self.folder / JOURNAL).unlink(missing_ok=True)


def _row(line: str) -> dict[str, Any] | None:
    """Returns a row of the journal, None for a torn or foreign line, as a killed training may leave."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or any(type(row.get(name)) not in kinds for name, kinds in ROW.items()):
        return None
    return row if 0 <= row["step"] < 2**63 else None
