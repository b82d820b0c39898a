"""The data of a report: summary, scores, and on demand prompts of a few documents.

    source = read([Path("results")])
    source.lines[0]["verdict"], source.rows(["run-1"], ["9f3c…"])

Prompts are the widest columns there are, so they are read only for the documents that are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.groups import Average, averages
from lcfbench.analysis.run_groups import RunGroup, read_run_groups
from lcfbench.analysis.summary import summarise
from lcfbench.analysis.tables import notes
from lcfbench.results.finding import places
from lcfbench.results.reader import read_table
from lcfbench.results.schema import JOURNAL, SAMPLES

if TYPE_CHECKING:
    import pandas as pd

WIDE = tuple(
    """run_id doc_hash doc_id gold prediction score error message_from message_text message_bytes
    receiver_prompt sharer_prompt""".split()
)
TaskKey = tuple[str, str, str]  # pair, task, scoring


@dataclass(frozen=True)
class Source:
    """All that was read.

    summary: what `summarise` gives, a line a method, task and control. groups: the scores behind
    it. subjects: run id → subject → (mean score, documents), where a task has subjects. warnings: a
    sentence for everything unusable.
    """

    paths: tuple[Path, ...]
    summary: pd.DataFrame
    groups: list[RunGroup]
    subjects: Mapping[str, Mapping[str, tuple[float, int]]]
    warnings: list[str]

    @cached_property
    def lines(self) -> list[dict[Any, Any]]:
        return self.summary.to_dict("records")

    @cached_property
    def by_task(self) -> dict[TaskKey, list[dict[Any, Any]]]:
        """The summary's lines by pair, task and scoring, in the summary's order."""
        found: dict[TaskKey, list[dict[Any, Any]]] = {}
        for line in self.lines:
            found.setdefault((line["pair"], line["task"], line["scoring"]), []).append(line)
        return found

    @cached_property
    def averages(self) -> list[Average]:
        """Of the groups of which two tasks were run."""
        return averages(self.groups, self.summary)

    @cached_property
    def _places(self) -> dict[Path, bool]:
        """Everything that was read, once, and whether it is a folder."""
        found = dict.fromkeys(p.resolve() for path in self.paths for p in places(path, []))
        return {place: place.is_dir() for place in found}

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        """Run id → where its runs were read from."""
        found: dict[str, set[str]] = {}
        for run in (run for group in self.groups for run in group.runs):
            found.setdefault(run.run_id, set()).add(run.manifest.folder)
        return found

    @property
    def cautions(self) -> list[str]:
        """Returns cautions: unusable files, failed documents, unfinished runs."""
        found = list(self.warnings)
        for pair, task, scoring in self.by_task:
            lines = self.summary
            mine = lines[(lines["pair"] == pair) & (lines["task"] == task) & (lines["scoring"] == scoring)]
            found += [f"{task}: {note}" for note in notes(mine)]
        return found

    def groups_of(self, key: TaskKey) -> list[RunGroup]:
        """Its groups in the order of the summary's lines."""
        order = {(line["label"], line["control"]): i for i, line in enumerate(self.by_task[key])}
        found = [group for group in self.groups if (group.pair, group.task, group.scoring) == key]
        return sorted(found, key=lambda group: order.get((group.label, group.control), len(order)))

    def rows(
        self, run_ids: Iterable[str], hashes: Iterable[str], columns: Sequence[str] = WIDE
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """(run id, document hash) → the row with prompts and messages.

        A column the file lacks is absent from its rows.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.dataset as ds

        runs, wanted = set(run_ids), set(hashes)
        found: list[dict[str, Any]] = []
        folders = {folder for run in runs for folder in self._folders.get(run, ())}
        for place, is_folder in self._places.items():
            if is_folder and place.name not in runs and str(place) not in folders:
                continue
            if place.is_dir() and (place / JOURNAL).exists():
                table = read_table(place, columns, [])
                found += table.filter(
                    pc.is_in(table["doc_hash"], pa.array(sorted(wanted), pa.string()))
                ).to_pylist()
                continue
            try:
                file = ds.dataset(place / SAMPLES if place.is_dir() else place, format="parquet")
                chosen = ds.field("doc_hash").isin(list(wanted)) & ds.field("run_id").isin(list(runs))
                found += file.to_table(
                    [name for name in columns if name in file.schema.names], filter=chosen
                ).to_pylist()
            except (OSError, pa.ArrowException):  # named in `warnings` when the scores were read
                continue
        return {(row["run_id"], row["doc_hash"]): row for row in found if row["run_id"] in runs}


def read(paths: Sequence[Path]) -> Source:
    """Reads the runs under `paths`.

    Raises UserError where nothing can be read; what else is wrong is in `warnings`.
    """
    groups = read_run_groups(paths)
    return Source(
        tuple(map(Path, paths)),
        summarise(groups.groups),
        groups.groups,
        {run.run_id: run.subjects for group in groups.groups for run in group.runs if run.subjects},
        groups.warnings,
    )
