"""A run's files: the columns, the journal line, the manifest, and writing that is all or nothing.

    from lcfbench.results.schema import COLUMNS, schema
    schema().field("ttft_ms")

What `store.py` is built from. A row travels as one JSON line while the run lasts and as one parquet row afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 2  # 2: the prompts as text
SAMPLES, JOURNAL = "samples.parquet", "samples.jsonl"
TAIL_BYTES = 1 << 16  # of a journal, read at once from its end


def _columns(kind: type, names: str) -> dict[str, type]:
    return dict.fromkeys(names.split(), kind)


COLUMNS: dict[str, type] = {
    **_columns(str, "run_id"),
    **_columns(int, "schema_version"),
    **_columns(str, "pair receiver sharer mode control task subject scoring"),
    **_columns(int, "seed"),
    **_columns(str, "doc_id doc_hash"),
    **_columns(int, "doc_index"),
    **_columns(str, "receiver_prompt_sha256 sharer_prompt_sha256 message_from prediction gold metric"),
    **_columns(float, "score"),
    **_columns(str, "metrics choices_loglikelihood error receiver_prompt sharer_prompt message_text"),
    **_columns(int, "batch_size"),
    **_columns(float, "amortized_ms ttft_ms ttea_ms sharer_ms message_ms fuse_ms prefill_ms decode_ms"),
    **_columns(
        int,
        "adapter_params adapter_bytes message_bytes message_cache_bytes sharer_tokens receiver_tokens answer_tokens",
    ),
    **_columns(float, "flops"),
    **_columns(int, "peak_memory_bytes"),
    **_columns(str, "written_at"),
}
KEYS = ("run_id", "schema_version", "doc_hash", "doc_index")  # never null


def schema() -> pa.Schema:
    """The one pyarrow schema, version `SCHEMA_VERSION` (a function, so that `--help` need not import pyarrow)."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    fields = [pa.field(name, kinds[kind], nullable=name not in KEYS) for name, kind in COLUMNS.items()]
    return pa.schema(fields, metadata={"lcfbench_schema_version": str(SCHEMA_VERSION)})


def answered(folder: Path) -> dict[str, float | None]:
    """doc_hash → score of every document that has its answer; one that failed has none. The journal is newer than the parquet file."""
    found: dict[str, float | None] = {}
    for row in chain(_parquet_rows(folder / SAMPLES), journal_rows(folder / JOURNAL)):
        if row.get("error") is None:
            found[row["doc_hash"]] = row.get("score")
        else:
            found.pop(row["doc_hash"], None)
    return found


def _parquet_rows(path: Path, names: Sequence[str] = ("doc_hash", "score", "error")) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    try:
        with pq.ParquetFile(path) as file:
            return file.read([name for name in names if name in file.schema_arrow.names]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """What is said of a file of a run that cannot be read."""
    return UserError(f"{path} cannot be read ({error}).", "Remove it, or start over with --fresh.")


def journal_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the journal, one at a time; none where there is no journal.

    A line that is not JSON (a power cut) is no row, nor is half a line, whose writer was killed.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("doc_hash"):
                yield row


def journal_end(path: Path) -> int:
    """Where the journal's last whole line ends, in bytes."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(end - TAIL_BYTES, 0)
            file.seek(begin)
            if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                return begin + found + 1
            end = begin
    return 0


def fit(name: str, value: Any) -> Any:
    """`value` as its column holds it. Checked row by row: a wrong type must not surface hours later, when the file is written."""
    kind = COLUMNS.get(name)
    if kind is None:
        raise TypeError(f"no column {name!r} in the schema")
    if value is None:
        return None
    if hasattr(value, "item"):  # numpy scalars
        value = value.item()
    if kind is str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return text.encode(
            "utf-8", "replace"
        ).decode()  # half a surrogate pair in a model's output is no valid text
    if not isinstance(value, (bool, int, float)) or (kind is int and value != int(value)):
        raise TypeError(f"column {name!r} holds {kind.__name__}, not {value!r}")
    return kind(value)
