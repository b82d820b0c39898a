"""Scores by document: one `RunGroup` for the runs that differ in their seed only.

    from lcfbench.analysis.run_groups import joined, read_run_groups
    groups = read_run_groups([Path("results")])
    ours, theirs, _ = joined(groups.groups[0], groups.groups[1])

Rows are read once, run by run, and only the columns needed; what stays in memory is a byte or two a
row (recorded.py). A document that failed counts as wrong and stays in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.naming import labels
from lcfbench.analysis.recorded import COLUMNS, NAMES, PROMPTS, WINNERS, Packed, Recorded, read_run, shared
from lcfbench.analysis.recorded import by_subject as subjects_of
from lcfbench.provenance import digest
from lcfbench.results.manifest import Manifest
from lcfbench.results.reader import Reading

if TYPE_CHECKING:
    import numpy as np

# what another seed changes in a run's identity
OF_THE_SEED = ("seed", *(f"{name}_sha256" for name in ("data", "split_manifest", "calibration", "prompts")))
MOST_FAILED = 0.05  # share of the documents of a comparison; beyond it nothing is concluded
STATES = ("running", "interrupted", "unknown", "complete")  # worst first


@dataclass
class RunGroup:
    """Runs that differ in their seed only.

    label: the mode and the settings that tell it from the others. identity: of its first
    run, without what only the seed changes where there are several. codes: (n,) uint64, sorted, a
    document each; scores: (n,), the mean over the seeds that have the document. seed_scores: a mean
    a seed. adapters: number of those that the runs used, equal but for the seed of their training.
    """

    runs: list[Recorded]
    identity: dict[str, Any]
    label: str = ""
    adapters: int = 1
    codes: np.ndarray = field(init=False, repr=False)
    packed: Packed | None = field(init=False, repr=False)  # of several rows a document; else its run's

    def __post_init__(self) -> None:
        import numpy as np

        documents = self.runs[0].documents
        if len(self.runs) == 1 and not documents.repeated:
            self.codes, self.packed = documents.ordered, None
            return
        codes, scores = (
            np.concatenate([getattr(run, name) for run in self.runs]) for name in ("codes", "scores")
        )
        codes, scores = _means(codes, scores)
        self.codes, self.packed = shared(codes), Packed(scores)

    def __getattr__(
        self, name: str
    ) -> Any:  # pair, receiver, sharer, task, subject, scoring, mode, control, metric, seed
        if name in NAMES and "runs" in self.__dict__:
            return self.runs[0].names[name]
        raise AttributeError(name)

    @property
    def scores(self) -> np.ndarray:
        run = self.runs[0]
        return self.packed.values if self.packed else run.scores[run.documents.order]

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
    def manifest(self) -> Manifest:
        return self.runs[0].manifest

    @property
    def state(self) -> str:
        """The worst of its runs' states."""
        return min((run.manifest.state for run in self.runs), key=badness)

    @property
    def n(self) -> int:
        """Documents, each counted once."""
        return len(self.codes)

    @property
    def errors(self) -> int:
        return sum(len(run.failed_at) for run in self.runs)

    @property
    def unparsed(self) -> float:
        """Share of the rows whose answer could not be read; NaN where none says."""
        told = [run for run in self.runs if run.unparsed is not None]
        rows = sum(len(run.codes) for run in told)
        return sum(run.unparsed or 0 for run in told) / rows if rows else math.nan

    @cached_property
    def failed(self) -> np.ndarray:
        """Codes of the documents that failed under any seed, sorted."""
        import numpy as np

        return np.unique(np.concatenate([run.codes[run.failed_at] for run in self.runs]))

    @property
    def reliable(self) -> bool:
        """Whether few enough documents failed for the score to say something of the method."""
        return len(self.failed) <= MOST_FAILED * self.n and all(run.usable for run in self.runs)

    @property
    def sends(self) -> bool:
        """Whether anything is sent, be it an empty note."""
        return any(run.sends for run in self.runs)

    @property
    def hashes(self) -> np.ndarray:
        """(n,) document hashes, in the order of `codes`."""
        import numpy as np

        codes = np.concatenate([run.codes for run in self.runs])
        _, first = np.unique(codes, return_index=True)
        names = np.concatenate([np.asarray(run.hashes.to_pandas(), dtype=object) for run in self.runs])
        return names[first]

    def timed(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns codes and milliseconds of the documents timed alone. column: one of `TIMED`."""
        import numpy as np

        codes, values = zip(*(run.timed[column] for run in self.runs), strict=True)
        return _means(np.concatenate(codes), np.concatenate(values))

    def won(self, winner: str) -> np.ndarray:
        """Returns (n,) for each document that says who won its conflict, how often `winner` did.

        winner: one of `WINNERS`. Under several seeds a document's is the mean; empty where none says.
        """
        import numpy as np

        codes, values = [np.zeros(0, np.uint64)], [np.zeros(0)]
        for run in self.runs:
            if run.won is not None:
                codes.append(run.codes[run.won >= 0])
                values.append((run.won[run.won >= 0] == WINNERS.index(winner)).astype(float))
        return _means(np.concatenate(codes), np.concatenate(values))[1]

    def prompts(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns codes of documents and of their prompts, where they were read and recorded."""
        import numpy as np

        parts = [run.prompts[role] for run in self.runs if role in run.prompts]
        codes, prompts = (
            np.concatenate([np.zeros(0, np.uint64), *x])
            for x in (zip(*parts, strict=True) if parts else ((), ()))
        )
        codes, first = np.unique(codes, return_index=True)
        return codes, prompts[first]

    def median(self, column: str) -> float:
        """Median over documents of a column of `TYPICAL`; over several seeds their mean.

        NaN where it was not measured.
        """
        known = [run.typical[column] for run in self.runs if not math.isnan(run.typical[column])]
        return sum(known) / len(known) if known else math.nan

    @property
    def documents_per_s(self) -> float:
        """Batched throughput."""
        known = [run.mean_amortized_ms for run in self.runs if run.mean_amortized_ms > 0]
        return 1000 * len(known) / sum(known) if known else math.nan


@dataclass
class RunGroups:
    """All that was read.

    warnings: a sentence for everything that could not be used. left_out: those on whole runs and files.
    """

    groups: list[RunGroup]
    warnings: list[str]
    left_out: list[str] = field(default_factory=list)


def read_run_groups(
    paths: Sequence[Path], by_subject: bool = False, prompts: bool = False, damaged_too: bool = False
) -> RunGroups:
    """Every run under `paths`, grouped by all that matters but the seed, in the order found.

    by_subject: a subject of a task (mmlu_redux) is a task of its own, `mmlu_redux/astronomy`.
    prompts: also read what tells prompts apart, which costs as much again. damaged_too: no error where
    all that is there is damaged. Raises UserError where nothing can be read.
    """
    reading = Reading(paths, (*COLUMNS, *PROMPTS) if prompts else COLUMNS, damaged_too)
    runs: list[Recorded] = []
    for part in reading:
        parts = subjects_of(part.table) if by_subject else [("", part.table)]
        runs += [read_run(part.run_id, table, part.manifest, subject) for subject, table in parts]
    return RunGroups(grouped(runs), reading.warnings, reading.left_out)


def grouped(runs: Iterable[Recorded]) -> list[RunGroup]:
    """RunGroups of these runs.

    Two runs of one seed never share a group.
    """
    together: dict[str, list[Recorded]] = {}
    for run in runs:
        identity = run.manifest.identity
        rest = {k: v for k, v in identity.items() if k not in OF_THE_SEED} or {"run": run.run_id}
        together.setdefault(digest([rest, run.names["task"]]), []).append(run)
    groups = []
    for members_ in together.values():
        members_.sort(key=lambda run: (repr(run.names["seed"]), run.run_id))
        apart = len({run.names["seed"] for run in members_}) < len(members_)
        for members in [[run] for run in members_] if apart else [members_]:
            identity = members[0].manifest.identity
            if len(members) > 1:
                identity = {k: v for k, v in identity.items() if k not in OF_THE_SEED}
            groups.append(RunGroup(members, identity))
    for group, label in zip(groups, labels(groups), strict=True):
        group.label = label
    return groups


def joined(a: RunGroup, b: RunGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of both and codes, of the documents both have."""
    import numpy as np

    if a.codes is b.codes:
        return a.scores, b.scores, a.codes
    codes, of_a, of_b = np.intersect1d(a.codes, b.codes, assume_unique=True, return_indices=True)
    return a.scores[of_a], b.scores[of_b], codes


def comparable_scores(a: RunGroup, b: RunGroup) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns scores of both on shared documents, without those that failed in either.

    Returns their number too.
    """
    import numpy as np

    ours, theirs, codes = joined(a, b)
    if not len(a.failed) and not len(b.failed):
        return ours, theirs, 0
    whole = ~np.isin(codes, np.union1d(a.failed, b.failed))
    return ours[whole], theirs[whole], int((~whole).sum())


def too_many_failed(a: RunGroup, b: RunGroup) -> str:
    """Says why nothing follows from the two; empty where few enough of the shared documents failed."""
    import numpy as np

    codes = a.codes if a.codes is b.codes else np.intersect1d(a.codes, b.codes, assume_unique=True)
    counts = [(int(np.isin(codes, group.failed).sum()), group) for group in (a, b)]
    either = int(np.isin(codes, np.union1d(a.failed, b.failed)).sum())
    over = [group for _, group in counts if not all(run.usable for run in group.runs)]
    if not over and either <= MOST_FAILED * len(codes):
        return ""
    told = [
        f"{count:,} of {len(codes):,} documents failed in {group.label or group.mode} ({group.control})"
        for count, group in (counts[:1] if a is b else counts)
        if count
    ]
    return " and ".join(told or [f"more documents failed than {over[0].label}'s --max-failed allows"])


def _means(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted codes, each once, and the mean of what belongs to each."""
    import numpy as np

    found, index = np.unique(codes, return_inverse=True)
    if len(found) == len(codes):
        sorted_values = np.empty_like(values)
        sorted_values[index] = values
        return found, sorted_values
    return found, np.bincount(index, values) / np.bincount(index)


def badness(state: str) -> int:
    """Returns a state's place among all, the worst first."""
    return STATES.index(state) if state in STATES else STATES.index("unknown")
