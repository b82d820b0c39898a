"""The columns of a run's rows and the journal they are written to first.

>>> from lcfbench.results.schema import COLUMNS, DESCRIPTIONS
>>> COLUMNS["ttft_ms"], DESCRIPTIONS["ttft_ms"]                                  # doctest: +SKIP

A row is one JSON line while the run lasts, and one parquet row afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# 2: the prompts as text. 3: manifests say `sessions`, identities library versions. 4: a digest each row.
# 5: who won a conflict, requests. 6: the messages of several sharers, the form of messages
SCHEMA_VERSION = 6
DIGESTED = 4  # rows of this version and later ones have a digest
SAMPLES, JOURNAL = "samples.parquet", "samples.jsonl"
LARGEST = 1 << 63  # of a column of whole numbers, exclusive
TAIL_BYTES = 1 << 16  # of a journal, read at once from its end

_TABLE: dict[str, tuple[type, str]] = {
    "run_id": (str, "Run that the row belongs to."),
    "schema_version": (int, "Version of these columns that the row was written with."),
    "pair": (str, "Both models: receiver:sharer."),
    "receiver": (str, "Model that answers."),
    "sharer": (str, "Model that passes on its knowledge."),
    "mode": (str, "Method, such as receiver, t2t or lcf."),
    "control": (
        str,
        "matched: the document's own message; deranged: another document's; others see `ls controls`.",
    ),
    "task": (str, "Task."),
    "subject": (str, "Subject within the task, where it has subjects."),
    "scoring": (str, "How an answer is taken from the model: letters, cloze or generate."),
    "seed": (int, "Seed of the task: which documents a limit draws, and what a generated task generates."),
    "doc_id": (str, "The document's name in its task."),
    "doc_hash": (str, "Digest of the document's content; equal documents of two runs have equal hashes."),
    "doc_index": (int, "Place of the document in the run, counted from 0."),
    "receiver_prompt_sha256": (str, "SHA-256 of the receiver's prompt."),
    "sharer_prompt_sha256": (str, "SHA-256 of the sharer's prompt."),
    "message_from": (str, "Hash of the document whose message was used; null where nothing is sent."),
    "prediction": (
        str,
        "Text that was generated, or the choice that was picked; null where a thought has no end (unparsed).",
    ),
    "parsed": (
        bool,
        "Whether an answer was read from the text; false behind an endless thought; null where none is read.",
    ),
    "parsed_by": (str, "Rule by which the answer was found, or why none was; docs/tasks.md names the rules."),
    "gold": (str, "Right answer."),
    "conflict_winner": (
        str,
        "Under control conflict, whose value was answered: message, text (the receiver's) or neither.",
    ),
    "metric": (str, "Name of the score, such as acc or f1."),
    "score": (float, "Score, 0 to 1."),
    "metrics": (str, "All scores of the document, JSON."),
    "choices_loglikelihood": (str, "Log-likelihood of each choice in nats, a list for each step, JSON."),
    "error": (str, "Why the document failed; null where it has an answer."),
    "receiver_prompt": (str, "Text that the receiver read."),
    "sharer_prompt": (str, "Text that the sharer read."),
    "message_text": (str, "Message, where it is text."),
    "batch_size": (int, "Documents answered together with this one, itself included."),
    "amortized_ms": (float, "Time of the batch divided by its documents, ms; not comparable with ttft_ms."),
    "ttft_ms": (float, "Time to the first answer token, ms, alone and warm; for the first documents only."),
    "ttea_ms": (float, "Time to the end of the answer, ms, measured as ttft_ms."),
    "sharer_ms": (float, "Part of ttea_ms in which the sharer reads or writes, ms."),
    "message_ms": (float, "Part of ttea_ms in which the message is made, ms."),
    "fuse_ms": (float, "Part of ttea_ms in which the message enters the receiver's cache, ms."),
    "prefill_ms": (float, "Part of ttea_ms in which the receiver reads its prompt, ms."),
    "decode_ms": (float, "Part of ttea_ms in which the answer is decoded or ranked, ms."),
    "adapter_params": (int, "Parameters of the adapter as saved."),
    "adapter_bytes": (int, "Size of the adapter's weights as saved, bytes."),
    "wire": (
        str,
        "Form in which the message crossed as bytes, such as native or int8; null where it was handed over.",
    ),
    "message_bytes": (
        int,
        "Size of the message in the smallest form that the receiver's side needs, bytes; under --wire the "
        "length of what was read.",
    ),
    "each_message_bytes": (
        str,
        "message_bytes of each of several sharers, in their order, JSON; null with one sharer.",
    ),
    "each_sharer_tokens": (
        str,
        "sharer_tokens of each of several sharers, in their order, JSON; null with one sharer.",
    ),
    "each_message_from": (
        str,
        "message_from of each of several sharers, in their order, JSON; null with one sharer.",
    ),
    "message_cache_bytes": (int, "Size of the same message before any projection, bytes."),
    "message_token_bytes": (
        int,
        "Size of the ids of the tokens whose entries are sent, bytes; null where a method does not say.",
    ),
    "request_bytes": (
        int,
        "Size of the receiver's request before the message, bytes; null for methods that have none.",
    ),
    "sharer_tokens": (int, "Tokens that the sharer read or wrote."),
    "receiver_tokens": (int, "Tokens of the receiver's prompt."),
    "answer_tokens": (
        int,
        "Tokens of the answer, or of the choices that were ranked; a thought before it and its end count.",
    ),
    "thought": (str, "Thought that the model wrote before its answer; null where it wrote none."),
    "thought_tokens": (int, "Tokens of that thought, as written; a part of answer_tokens."),
    "flops": (float, "Floating-point operations of both models and the adapter, estimated."),
    "peak_memory_bytes": (
        int,
        "Most memory that the process or its accelerator used during the batch, bytes.",
    ),
    "written_at": (str, "When the row was written, UTC, ISO 8601."),
    "row_sha256": (str, "Digest of the row's other values as it was written, 16 hex digits."),
}
COLUMNS: dict[str, type] = {name: kind for name, (kind, _) in _TABLE.items()}
DESCRIPTIONS: dict[str, str] = {name: text for name, (_, text) in _TABLE.items()}
DIGEST = "row_sha256"
_DIGESTED = sorted(COLUMNS.keys() - {DIGEST})
KEYS = ("run_id", "schema_version", "doc_hash", "doc_index")  # never null


@cache
def schema() -> pa.Schema:
    """Returns the pyarrow schema of `SCHEMA_VERSION`.

    A function, so that `--help` imports no pyarrow.
    """
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
    fields = [pa.field(name, kinds[kind], nullable=name not in KEYS) for name, kind in COLUMNS.items()]
    return pa.schema(fields, metadata={"lcfbench_schema_version": str(SCHEMA_VERSION)})


def row_sha256(row: Mapping[str, Any]) -> str:
    """Returns the digest of a row's values, without the columns that are empty or unknown here."""
    values = {name: value for name in _DIGESTED if (value := row.get(name)) is not None}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def as_written(row: Mapping[str, Any]) -> bool:
    """Returns whether a row holds its digest; rows of older and of newer versions pass."""
    version = row.get("schema_version") or 0
    if row.get(DIGEST) is None:
        return version < DIGESTED
    return version > SCHEMA_VERSION or row[DIGEST] == row_sha256(row)


def unreadable(path: Path, error: Exception) -> UserError:
    """Returns the error for a file of a run that cannot be read."""
    why = " ".join(str(error).split())[:200]
    if isinstance(error, PermissionError):
        why, step = error.strerror or why, "Give yourself the right to read it (chmod u+rX), and repeat."
    else:
        step = "Start over with --fresh, which keeps it beside."
    return UserError(f"{path} cannot be read ({why}).", step)


def check_regular(path: Path) -> None:
    """Raises OSError for a file that is none: reading a pipe or a device might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")


def journal_rows(path: Path, run_id: str | None = None) -> Iterator[dict[str, Any] | None]:
    """Yields the journal's rows; None for a line that is none of this run.

    Such a line is not JSON (a power cut), holds what no column can, has neither score nor error, does not
    hold its digest, or belongs to another run. A last line that is not whole (a kill) is left out.
    Raises OSError.
    """
    return (row for row, _, _ in placed_rows(path, run_id))


def placed_rows(path: Path, run_id: str | None = None) -> Iterator[tuple[dict[str, Any] | None, int, int]]:
    """As `journal_rows`, with the bytes at which each line begins and ends."""
    if not path.exists():
        return
    check_regular(path)
    end = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            begin, end = end, end + len(line)
            try:
                row = json.loads(line)
                found = row if is_row(row, run_id) else None
            except (ValueError, TypeError, ArithmeticError, RecursionError):
                found = None
            yield found, begin, end


def is_row(row: Any, run_id: str | None) -> bool:
    """Returns whether a line of a journal is a row of a run.

    Raises ValueError, TypeError or ArithmeticError for values that no column holds.
    """
    if not isinstance(row, dict) or not (isinstance(row.get("doc_hash"), str) and row["doc_hash"]):
        return False
    if not isinstance(row.get("run_id"), str) or (run_id and row["run_id"] != run_id):
        return False
    for name, value in row.items():
        if value is None:
            continue
        if type(value) is not COLUMNS.get(name, type(value)):
            fit(name, value)
            if COLUMNS[name] in (str, bool) or isinstance(value, bool):
                return False
        elif type(value) is int and abs(value) >= LARGEST:
            return False
        elif type(value) is str and not value.isascii():
            value.encode()
    score = row.get("score")
    whole = row.get("error") is not None or (score is not None and 0 <= score <= 1)
    return whole and as_written(row)


def journal_end(path: Path) -> int:
    """Returns where the journal's last whole line ends, in bytes."""
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
    """Returns `value` as its column holds it.

    Raises TypeError, so that a wrong type shows at once.
    """
    kind = COLUMNS.get(name)
    if kind is None:
        raise TypeError(f"no column {name!r} in the schema")
    if value is None:
        return None
    if hasattr(value, "item"):  # numpy scalars
        value = value.item()
    if kind is str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if text.isascii():
            return text
        return text.encode(
            "utf-8", "replace"
        ).decode()  # half a surrogate pair in a model's output is no valid text
    if kind is bool and not isinstance(value, bool):
        raise TypeError(f"column {name!r} holds true or false, not {value!r}")
    if not isinstance(value, (bool, int, float)) or (kind is int and value != int(value)):
        raise TypeError(f"column {name!r} holds {kind.__name__}, not {value!r}")
    if kind is int and abs(value) >= LARGEST:
        raise TypeError(f"column {name!r} holds 64 bits, not {value!r}")
    return kind(value)
