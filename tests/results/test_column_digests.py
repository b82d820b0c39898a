"""Digests of text columns: over all texts joined, however the column lies in memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from lcfbench.results.validation import AT_ONCE, columns_sha256

TEXTS = [None if i % 5 == 0 else "ä€x"[: i % 4] * (i % 3) for i in range(AT_ONCE + 17)]
OVER_BYTES = pa.StringArray.from_buffers(  # the second text is null, and bytes lie below it
    3, pa.array([0, 2, 4, 6], pa.int32()).buffers()[1], pa.py_buffer(b"aabbcc"), pa.py_buffer(b"\x05")
)


def plainly(texts: list[str | None]) -> str:
    """The digest as docs/reference/results.md promises it: validity, then lengths and bytes of a portion."""
    found = hashlib.sha256(np.packbits([text is not None for text in texts]).tobytes())
    for begin in range(0, len(texts), AT_ONCE):
        part = [text or "" for text in texts[begin : begin + AT_ONCE]]
        found.update(np.array([len(text.encode()) for text in part], np.int64).tobytes())
        found.update("".join(part).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([TEXTS], pa.string()),
        pa.chunked_array([TEXTS[:9], [], TEXTS[9:]], pa.string()),
        pa.chunked_array([pa.array(["other", *TEXTS, "more"], pa.string())[1:-1]]),
        pa.chunked_array([TEXTS], pa.string()).dictionary_encode(),
        pa.chunked_array([OVER_BYTES]),
        pa.chunked_array([["", ""]], pa.string()),
    ],
)
def test_a_digest_is_of_the_texts_alone(column: pa.ChunkedArray) -> None:
    order = pa.array([f"{i:09}" for i in range(len(column))])
    found = columns_sha256(pa.table({"doc_hash": order, "gold": column}))
    assert found["gold"] == plainly(column.cast(pa.string()).to_pylist())
