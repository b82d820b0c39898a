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
MEANINGS = dict(  # of every column: the documentation is written from this
    run_id="Name of the run and of its folder.",
    schema_version="Version of these columns.",
    pair="RECEIVER:SHARER.",
    receiver="Alias, Hub id, or folder name with revision.",
    sharer="As the receiver.",
    mode="Method.",
    control="matched, deranged, zero, noise, silent, or one that a plugin brings.",
    task="Name of the task.",
    subject="Part of the task, where it has parts (mmlu_redux); else empty.",
    scoring="letters, cloze or generate.",
    seed="Seed of what is drawn: documents, derangement, noise.",
    doc_id="The document's id in its data set.",
    doc_hash="Digest of everything that a model could see or be scored on; joins documents of two runs.",
    doc_index="Place in the run, counted from 0.",
    receiver_prompt_sha256="SHA-256 of `receiver_prompt`.",
    sharer_prompt_sha256="SHA-256 of `sharer_prompt`.",
    message_from="`doc_hash` of the document whose message was used; null where nothing is sent.",
    prediction="Answer: the text written, or the choices picked, step by step.",
    gold="Right answer.",
    metric="Metric that `score` holds.",
    score="Primary metric, 0 to 1; 0 for a document that failed.",
    metrics="All metrics, a JSON object.",
    choices_loglikelihood="Log-likelihood of each choice of each step, JSON lists.",
    error="Why the document failed; null where it has an answer.",
    receiver_prompt="Prompt of the receiver, template included.",
    sharer_prompt="Prompt of the sharer, template included; null where none was read.",
    message_text="Message, where it is text.",
    batch_size="Documents in the batch that was run; smaller than asked for after a failure.",
    amortized_ms="Time of the batch divided by its documents: throughput, not latency.",
    ttft_ms="Question to first answer token, one document alone, warm; null where not timed, as its parts.",
    ttea_ms="Question to end of answer.",
    sharer_ms="Part of `ttft_ms`: the sharer reads.",
    message_ms="Part: the message is made, such as a note that is written.",
    fuse_ms="Part: the adapter works.",
    prefill_ms="Part: the receiver reads.",
    decode_ms="Part of `ttea_ms`: the answer is written or its choices are ranked.",
    adapter_params="Parameters of the adapter as saved; 0 without one.",
    adapter_bytes="Bytes of the adapter's weights file; 0 without one.",
    message_bytes="Bytes that must cross: of a text, else of the smallest tensor that the receiver needs.",
    message_cache_bytes="The same before any projection.",
    sharer_tokens="Tokens that the sharer read or wrote.",
    receiver_tokens="Tokens of the receiver's prompt.",
    answer_tokens="Tokens written, or run to rank the choices.",
    flops="Operations of both models and the adapter, counted from their sizes and tokens.",
    peak_memory_bytes="Most memory in use while the batch ran: of the GPU, else of the process.",
    written_at="When the row was written, UTC, ISO 8601.",
)


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
