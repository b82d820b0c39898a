"""Runs in which so many documents failed that they are no result, and what failed in them.

>>> [run.sentence for run in failed_runs([Path("results")])]                 # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lcfbench.results.reader import Reading

KINDS, LONGEST = 3, 300  # errors that are told in full, and characters of each
NUMBER = re.compile(r"\d[\d.,:e+-]*")


@dataclass(frozen=True)
class FailedRun:
    """A run that is no result. reasons: each error as it first came, and how often, the first one first."""

    run_id: str
    failed: int
    documents: int
    reasons: Sequence[tuple[str, int]]

    @property
    def sentence(self) -> str:
        """One line: how many failed, the first error, and how often each came."""
        every = self.failed == self.documents
        count = "every document" if every else f"{self.failed:,} of {self.documents:,} documents"
        (first, often), *others = self.reasons
        text = f"{count} of {self.run_id}; the first: {_short(first)} ({_times(often)})"
        for reason, times in others[: KINDS - 1]:
            text += f"; {_times(times)}: {_short(reason)}"
        rest = others[KINDS - 1 :]
        return text + (f"; {len(rest)} other errors, {_times(sum(n for _, n in rest))}" if rest else "")


def failed_runs(folders: Sequence[Path]) -> list[FailedRun]:
    """Returns the runs of these folders in which too many documents failed."""
    found = []
    for folder in folders:
        for run_id, table, manifest in Reading([folder], ("doc_index", "error")):
            failed = len(table) - table["error"].null_count
            if not manifest.too_many(failed, len(table)):
                continue
            errors = table.sort_by("doc_index")["error"].drop_null().to_pylist()
            firsts: dict[str, str] = {}
            for text in errors:  # errors that differ in a number are of one kind
                firsts.setdefault(NUMBER.sub("#", text), text)
            counts = Counter(NUMBER.sub("#", text) for text in errors)
            first, *others = ((text, counts[kind]) for kind, text in firsts.items())
            others.sort(key=lambda each: -each[1])
            found.append(FailedRun(run_id, failed, len(table), [first, *others]))
    return found


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
