"""What tables, tests and pictures are made of: scores by document, one `Cell` for the runs that differ in their seed only.

    from lcfbench.analysis.cells import joined, read_cells
    cells = read_cells([Path("results")])
    ours, theirs, _ = joined(cells.cells[0], cells.cells[1])

Rows are read once, run by run, and only the columns needed; what stays in memory is a code and a score a document. A document that failed
counts as wrong and stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.naming import labels
from lcfbench.provenance import digest
from lcfbench.reading import Reading

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

NAMES = ("pair", "receiver", "sharer", "task", "subject", "scoring", "mode", "control", "metric", "seed")
TIMED = ("ttft_ms", "ttea_ms", "sharer_ms", "message_ms", "fuse_ms", "prefill_ms", "decode_ms")  # of documents timed alone
TYPICAL = (
    *("amortized_ms", "message_bytes", "message_cache_bytes", "sharer_tokens", "receiver_tokens", "answer_tokens"),
    *("flops", "peak_memory_bytes", "adapter_params", "adapter_bytes"),
)
COLUMNS = (*NAMES, "doc_hash", "score", "error", *TIMED, *TYPICAL)
OF_THE_SEED = ("seed", "data_sha256", "split_manifest_sha256", "calibration_sha256")  # what another seed changes in a run's identity
STATES = ("running", "interrupted", "unknown", "complete")  # worst first


@dataclass(frozen=True)
class Recorded:
    """One run, as read. codes: (n,) uint64, one a row, equal where the document is; scores: (n,), failed ones 0; hashes: (n,) strings."""

    run_id: str
    names: Mapping[str, Any]
    manifest: Mapping[str, Any]
    codes: np.ndarray
    hashes: pa.ChunkedArray
    scores: np.ndarray
    errors: int
    timed: Mapping[str, tuple[np.ndarray, np.ndarray]]
    typical: Mapping[str, float]
    mean_amortized_ms: float


@dataclass
class Cell:
    """Runs that differ in their seed only.

    label: the mode and whatever tells it from the others that are shown. identity: of its first run, without what only the seed changes where
    there are several. codes: (n,) uint64, sorted, a document each; scores: (n,), the mean over the seeds that have the document.
    seed_scores: a mean a seed. timed: column → (codes, milliseconds) of the documents timed alone.
    """

    runs: list[Recorded]
    identity: dict[str, Any]
    label: str = ""
    codes: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        import numpy as np

        codes, scores = (np.concatenate([getattr(run, name) for run in self.runs]) for name in ("codes", "scores"))
        self.codes, self.scores = _means(codes, scores)

    def __getattr__(self, name: str) -> Any:  # pair, receiver, sharer, task, subject, scoring, mode, control, metric, seed
        if name in NAMES and "runs" in self.__dict__:
            return self.runs[0].names[name]
        raise AttributeError(name)

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.run_id for run in self.runs)

    @property
    def seeds(self) -> tuple[Any, ...]:
        return tuple(run.names["seed"] for run in self.runs)

    @property
    def seed_scores(self) -> list[float]:
        return [float(run.scores.mean()) if len(run.scores) else math.nan for run in self.runs]

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.runs[0].manifest

    @property
    def state(self) -> str:
        """The worst of its runs' states."""
        return min((str(run.manifest.get("state", "unknown")) for run in self.runs), key=_badness)

    @property
    def n(self) -> int:
        """Documents, each counted once."""
        return len(self.codes)

    @property
    def errors(self) -> int:
        return sum(run.errors for run in self.runs)

    @cached_property
    def hashes(self) -> np.ndarray:
        """(n,) document hashes, in the order of `codes`."""
        import numpy as np

        codes = np.concatenate([run.codes for run in self.runs])
        _, first = np.unique(codes, return_index=True)
        names = np.concatenate([np.asarray(run.hashes.to_pandas(), dtype=object) for run in self.runs])
        return names[first]

    @cached_property
    def timed(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        import numpy as np

        return {name: _means(*(np.concatenate(x) for x in zip(*(run.timed[name] for run in self.runs), strict=True))) for name in TIMED}

    def median(self, column: str) -> float:
        """Median over documents of a column of `TYPICAL`; over several seeds their mean. NaN where it was not measured."""
        known = [run.typical[column] for run in self.runs if not math.isnan(run.typical[column])]
        return sum(known) / len(known) if known else math.nan

    @property
    def documents_per_s(self) -> float:
        """Batched throughput."""
        known = [run.mean_amortized_ms for run in self.runs if run.mean_amortized_ms > 0]
        return 1000 * len(known) / sum(known) if known else math.nan


@dataclass
class Cells:
    """All that was read. manifests: by run id. warnings: a sentence for everything that could not be used."""

    cells: list[Cell]
    manifests: dict[str, dict[str, Any]]
    warnings: list[str]


def read_cells(paths: Sequence[Path], by_subject: bool = False) -> Cells:
    """Every run under `paths`, grouped by all that matters but the seed, in the order found.

    by_subject: a subject of a task (mmlu_redux) is a task of its own, `mmlu_redux/astronomy`. Raises UserError where nothing can be read.
    """
    reading = Reading(paths, COLUMNS)
    runs: list[Recorded] = []
    manifests: dict[str, dict[str, Any]] = {}
    for part in reading:
        manifests[part.run_id] = part.manifest
        runs += [_recorded(part.run_id, table, part.manifest, name) for name, table in _split(part.table, by_subject)]
    return Cells(grouped(runs), manifests, reading.warnings)


def grouped(runs: Iterable[Recorded]) -> list[Cell]:
    """Cells of these runs. Two runs of one seed never share a cell, whatever else they have in common."""
    groups: dict[str, list[Recorded]] = {}
    for run in runs:
        identity = run.manifest.get("identity")
        rest = {k: v for k, v in identity.items() if k not in OF_THE_SEED} if identity else {"run": run.run_id}
        groups.setdefault(digest([rest, run.names["task"]]), []).append(run)
    cells = []
    for group in groups.values():
        group.sort(key=lambda run: (repr(run.names["seed"]), run.run_id))
        apart = len({run.names["seed"] for run in group}) < len(group)
        for members in [[run] for run in group] if apart else [group]:
            identity = dict(members[0].manifest.get("identity") or {})
            cells.append(Cell(members, identity if len(members) == 1 else {k: v for k, v in identity.items() if k not in OF_THE_SEED}))
    for cell, label in zip(cells, labels(cells), strict=True):
        cell.label = label
    return cells


def joined(a: Cell, b: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of both and codes, of the documents both have."""
    import numpy as np

    codes, of_a, of_b = np.intersect1d(a.codes, b.codes, assume_unique=True, return_indices=True)
    return a.scores[of_a], b.scores[of_b], codes


def _split(table: pa.Table, by_subject: bool) -> list[tuple[str, pa.Table]]:
    if not by_subject:
        return [("", table)]
    import pyarrow.compute as pc

    names = [name for name in table["subject"].unique().to_pylist() if name]
    return [(name, table.filter(pc.equal(table["subject"], name))) for name in names] or [("", table)]


def _recorded(run_id: str, table: pa.Table, manifest: Mapping[str, Any], subject: str) -> Recorded:
    import numpy as np
    import pandas as pd

    names: dict[str, Any] = {name: next((x for x in table[name].unique().to_pylist() if x is not None), None) for name in NAMES}
    names |= {name: str(names[name] or "") for name in ("pair", "task", "subject", "scoring", "mode", "control")}
    receiver, _, sharer = names["pair"].partition(":")
    names |= {"receiver": names["receiver"] or receiver, "sharer": names["sharer"] or sharer, "metric": names["metric"] or "accuracy"}
    names |= {"subject": subject, "task": f"{names['task']}/{subject}" if subject else names["task"]}
    codes = pd.util.hash_array(np.asarray(table["doc_hash"].to_pandas(), dtype=object))
    failed = np.asarray(table["error"].is_valid())
    scores = np.nan_to_num(np.asarray(table["score"].to_pandas(), dtype=float))
    scores[failed] = 0.0
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
    return Recorded(run_id, names, manifest, codes, table["doc_hash"], scores, int(failed.sum()), timed, typical, amortized)


def _means(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted codes, each once, and the mean of what belongs to each."""
    import numpy as np

    found, index = np.unique(codes, return_inverse=True)
    if len(found) == len(codes):
        sorted_values = np.empty_like(values)
        sorted_values[index] = values
        return found, sorted_values
    return found, np.bincount(index, values) / np.bincount(index)


def _badness(state: str) -> int:
    return STATES.index(state) if state in STATES else STATES.index("unknown")
