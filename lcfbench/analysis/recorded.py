"""One run's scores and figures, out of its rows: columns in, a few arrays and medians out.

from lcfbench.results.manifest import Manifest
from lcfbench.analysis.recorded import COLUMNS, read_run
runs = [read_run(run_id, table, manifest) for run_id, table, manifest in Reading(paths, COLUMNS)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
COLUMNS = (*NAMES, "doc_hash", "score", "error", *TIMED, *TYPICAL)


@dataclass(frozen=True)
class Recorded:
    """One run, as read.

    codes: (n,) uint64, one a row, equal where the document is; scores: (n,), failed ones 0; failed:
    (n,) bool; hashes: (n,) strings. usable: whether no more failed than the run's --max-failed. sends:
    whether its method sends anything.
    """

    run_id: str
    names: Mapping[str, Any]
    manifest: Manifest
    codes: np.ndarray
    hashes: pa.ChunkedArray
    scores: np.ndarray
    failed: np.ndarray
    usable: bool
    sends: bool
    timed: Mapping[str, tuple[np.ndarray, np.ndarray]]
    typical: Mapping[str, float]
    mean_amortized_ms: float
    prompts: Mapping[str, tuple[np.ndarray, np.ndarray]]


def by_subject(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """A table a subject, or the whole one where a task has none."""
    import pyarrow.compute as pc

    names = [name for name in table["subject"].unique().to_pylist() if name]
    return [(name, table.filter(pc.equal(table["subject"], name))) for name in names] or [("", table)]


def read_run(run_id: str, table: pa.Table, manifest: Manifest, subject: str = "") -> Recorded:
    """A run, or one subject of it as a task of its own. table: of `COLUMNS`."""
    import numpy as np
    import pandas as pd
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
    codes = pd.util.hash_array(np.asarray(table["doc_hash"].to_pandas(), dtype=object))
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
            timed[name] = codes[known], values[known]
            continue
        typical[name] = float(np.median(values[known])) if known.any() else math.nan
        if name == "amortized_ms" and known.any():
            amortized = float(values[known].mean())
    sends = manifest.sends
    if sends is None:
        sends = bool(pc.any(pc.greater(table["message_bytes"], 0)).as_py())
    prompts = {role: _prompts(table, role, codes) for role in ROLES if PROMPTS[0] in table.column_names}
    return Recorded(
        run_id,
        names,
        manifest,
        codes,
        table["doc_hash"],
        scores,
        failed,
        not manifest.too_many(*counts),
        sends,
        timed,
        typical,
        amortized,
        prompts,
    )


def _prompts(table: pa.Table, role: str, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes of documents and of a model's prompts, without those that hold a message."""
    import numpy as np
    import pandas as pd

    prompts = table[f"{role}_prompt_sha256"]
    known = np.asarray(prompts.is_valid())
    if role == "receiver":
        known &= ~np.asarray(table["message_text"].is_valid())
    return codes[known], pd.util.hash_array(np.asarray(prompts.to_pandas(), dtype=object)[known])
