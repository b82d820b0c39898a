"""The worth of messages by size: which recorded runs are read, and the files that are written.

from lcfbench.analysis.rate import draw
draw([Path("results")], Path("."), "splitfacts", "", warnings := [])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcfbench.analysis.plots import rate
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.selection import select
from lcfbench.analysis.summary import summarise


def draw(paths: Sequence[Path], folder: Path, task: str, pair: str, warnings: list[str]) -> list[Path]:
    """Draws `rate.png` and `rate.svg` of recorded runs into a folder; returns the files.

    task, pair: names, empty for all. warnings: gets what is left out and why. Raises UserError for names
    that no run has, and where nothing can be read or written.
    """
    found = read_run_groups(list(paths))
    warnings += found.warnings
    groups = select(found.groups, [task] if task else [], [pair] if pair else [])
    return rate.plot(summarise(groups), folder)
