"""One run's scores and figures, out of its rows: columns in, a few arrays and medians out.

from lcfbench.results.manifest import Manifest
from lcfbench.analysis.recorded import COLUMNS, read_run
runs = [read_run(run_id, table, manifest) for run_id, table, manifest in Reading(paths, COLUMNS)]

Thousands of runs stay in memory together: runs of the same documents share one list of them, and the
scores of a run take a byte a document where it has up to 256 different ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from lcfbench.results.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

NAMES = (*"pair receiver sharer task subject scoring mode control metric seed".split(),)
# of documents timed alone
TIMED = (*"ttft_ms ttea_ms sharer_ms message_ms fuse_ms prefill_ms decode_ms".split(),)
TYPICAL = tuple(
    """amortized_ms message_bytes message_cache_bytes sharer_tokens receiver_tokens answer_tokens flops
    peak_memory_bytes adapter_params adapter_bytes""".split()
)
ROLES = ("receiver", "sharer")
PROMPTS = (*(f"{role}_prompt_sha256" for role in ROLES), "message_text")
WINNERS = ("message", "text", "neither")  # whose value was answered under control conflict
COLUMNS = (*NAMES, "doc_hash", "score", "error", "parsed", "conflict_winner", *TIMED, *TYPICAL)


_ARRAYS: WeakValueDictionary[bytes, np.ndarray] = WeakValueDictionary()
_DOCUMENTS: WeakValueDictionary[bytes, Documents] = WeakValueDictionary()


def shared(array: np.ndarray) -> np.ndarray:
    """Returns the array, or an equal one that is in use already; neither is changed by anyone."""
    return _ARRAYS.setdefault(_key(array.dtype.str, array.tobytes()), array)


def _key(*parts: str | bytes) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.digest()


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents in the order of a run's rows; `of` gives runs of equal documents the same object.

    hashes: (n,) strings; codes: (n,) uint64, equal where the document is.
    """

    hashes: pa.StringArray
    codes: np.ndarray

    @classmethod
    def of(cls, hashes: pa.ChunkedArray, codes: np.ndarray | None = None) -> Documents:
        """Returns the documents of these hashes. codes: those of the hashes where none are given."""
        import numpy as np
        import pandas as pd
        import pyarrow as pa

        text = hashes.cast(pa.string()).combine_chunks()
        key = _key("".join(values := text.to_pylist()), np.array([len(x) for x in values]).tobytes())
        key += b"" if codes is None else _key(codes.tobytes())
        if (known := _DOCUMENTS.get(key)) is None:
            if codes is None:
                codes = pd.util.hash_array(np.array(values, dtype=object))
            known = _DOCUMENTS.setdefault(key, cls(text, shared(codes)))
        return known

    @cached_property
    def order(self) -> np.ndarray:
        """Places of the documents by code, of several rows of one the first."""
        import numpy as np

        return np.unique(self.codes, return_index=True)[1]

    @cached_property
    def ordered(self) -> np.ndarray:
        """The codes, sorted, each once."""
        return shared(self.codes[self.order])

    @property
    def repeated(self) -> bool:
        """Whether a document has several rows."""
        return len(self.order) < len(self.codes)


class Packed:
    """Numbers, bit for bit: the different ones once, and a byte or two for each place."""

    def __init__(self, values: np.ndarray) -> None:
        import numpy as np

        kinds, places = np.unique(values.view(np.int64), return_inverse=True)
        small = next((kind for kind in (np.uint8, np.uint16) if len(kinds) <= np.iinfo(kind).max + 1), None)
        self.kinds = shared(values if small is None else kinds.view(np.float64))
        self.places = None if small is None else places.astype(small)

    @property
    def values(self) -> np.ndarray:
        """(n,) as they were, float64."""
        return self.kinds if self.places is None else self.kinds[self.places]


@dataclass(frozen=True)
class Recorded:
    """One run, as read.

    codes: (n,) uint64, one a row, equal where the document is; scores: (n,), failed ones 0; failed:
    (n,) bool; hashes: (n,) strings. usable: whether no more failed than the run's --max-failed.
    unparsed: answers that could not be read, None where the rows do not say. sends: whether its method
    sends anything. won: (n,) the place in `WINNERS` of who won a conflict, −1 where the row does not say;
    None where none does. timed: column → (codes, milliseconds) of the documents timed alone. subjects: mean
    score and number of documents of each, where the task has subjects.
    """

    run_id: str
    names: Mapping[str, Any]
    manifest: Manifest
    documents: Documents
    packed: Packed
    failed_at: np.ndarray
    usable: bool
    unparsed: int | None
    sends: bool
    won: np.ndarray | None
    timed: Mapping[str, tuple[np.ndarray, np.ndarray]]
    typical: Mapping[str, float]
    mean_amortized_ms: float
    prompts: Mapping[str, tuple[np.ndarray, np.ndarray]]
    subjects: Mapping[str, tuple[float, int]]

    @property
    def codes(self) -> np.ndarray:
        return self.documents.codes

    @property
    def hashes(self) -> pa.StringArray:
        return self.documents.hashes

    @property
    def scores(self) -> np.ndarray:
        return self.packed.values

    @property
    def failed(self) -> np.ndarray:
        import numpy as np

        found = np.zeros(len(self.codes), dtype=bool)
        found[self.failed_at] = True
        return found


def by_subject(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """A table a subject, or the whole one where a task has none."""
    import pyarrow.compute as pc

    names = [name for name in table["subject"].unique().to_pylist() if name]
    return [(name, table.filter(pc.equal(table["subject"], name))) for name in names] or [("", table)]


def read_run(run_id: str, table: pa.Table, manifest: Manifest, subject: str = "") -> Recorded:
    """A run, or one subject of it as a task of its own. table: of `COLUMNS`."""
    import numpy as np
    import pyarrow.compute as pc

    asked = manifest.identity  # a run that has just begun has no rows
    names: dict[str, Any] = {
        name: next((x for x in table[name].unique().to_pylist() if x is not None), asked.get(name))
        for name in NAMES
    }
    names |= {
        name: str(names[name] or "") for name in ("pair", "task", "subject", "scoring", "mode", "control")
    }
    receiver, _, sharer = names["pair"].partition(":")
    names |= {
        "receiver": names["receiver"] or receiver,
        "sharer": names["sharer"] or sharer,
        "metric": names["metric"] or "accuracy",
    }
    names |= {"subject": subject, "task": f"{names['task']}/{subject}" if subject else names["task"]}
    documents = Documents.of(table["doc_hash"])
    codes = documents.codes
    failed = np.asarray(table["error"].is_valid())
    scores = np.nan_to_num(np.asarray(table["score"].to_pandas(), dtype=float))
    scores[failed] = 0.0
    counts = int(failed.sum()), len(failed)
    if manifest.errors is not None and manifest.documents is not None:  # the whole run, of a subject
        counts = manifest.errors, manifest.documents
    timed, typical, amortized = {}, {}, math.nan
    for name in (*TIMED, *TYPICAL):
        values = np.asarray(table[name].to_pandas(), dtype=float)
        known = ~np.isnan(values)
        if name in TIMED:
            timed[name] = shared(codes[known]), shared(values[known])
            continue
        typical[name] = float(np.median(values[known])) if known.any() else math.nan
        if name == "amortized_ms" and known.any():
            amortized = float(values[known].mean())
    sends = manifest.sends
    if sends is None:
        sends = bool(pc.any(pc.greater(table["message_bytes"], 0)).as_py())
    said = pc.drop_null(table["parsed"])
    unparsed = int(pc.sum(pc.invert(said)).as_py()) if len(said) else None
    prompts = {role: _prompts(table, role, codes) for role in ROLES if PROMPTS[0] in table.column_names}
    return Recorded(
        run_id,
        names,
        manifest,
        documents,
        Packed(scores),
        np.flatnonzero(failed),
        not manifest.too_many(*counts),
        unparsed,
        sends,
        _winners(table),
        timed,
        typical,
        amortized,
        prompts,
        _subjects(table),
    )


def _winners(table: pa.Table) -> np.ndarray | None:
    """(n,) int8, the place in `WINNERS` of who won, −1 where a row does not say; None where none does."""
    import numpy as np

    if table["conflict_winner"].null_count == table.num_rows:
        return None
    places = {name: place for place, name in enumerate(WINNERS)}
    told = table["conflict_winner"].to_pylist()
    return shared(np.array([places.get(name, -1) for name in told], dtype=np.int8))


def _subjects(table: pa.Table) -> dict[str, tuple[float, int]]:
    """Mean score and number of documents of each subject; empty where there are none."""
    import pyarrow.compute as pc

    if not any(table["subject"].unique().to_pylist()):
        return {}
    score = pc.if_else(table["error"].is_valid(), 0.0, pc.fill_null(table["score"], 0.0))
    means = (
        table.append_column("right", score)
        .group_by("subject")
        .aggregate([("right", "mean"), ("right", "count")])
    )
    columns = (means[name].to_pylist() for name in ("subject", "right_mean", "right_count"))
    return {subject: (mean, count) for subject, mean, count in zip(*columns, strict=True) if subject}


def _prompts(table: pa.Table, role: str, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes of documents and of a model's prompts, without those that hold a message."""
    import numpy as np
    import pandas as pd

    prompts = table[f"{role}_prompt_sha256"]
    known = np.asarray(prompts.is_valid())
    if role == "receiver":
        known &= ~np.asarray(table["message_text"].is_valid())
    hashed = pd.util.hash_array(np.asarray(prompts.to_pandas(), dtype=object)[known])
    return shared(codes[known]), shared(hashed)
