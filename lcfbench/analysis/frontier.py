"""The frontier of recorded runs: which of them are read and pooled, and the files that are written.

from lcfbench.analysis.frontier import Choice, draw
draw([Path("results")], Path("."), Choice(x="adapter,flops", pool_seeds=True))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lcfbench.analysis.plots import frontier
from lcfbench.analysis.plots.scales import panels_of
from lcfbench.analysis.pooling import averaged, pool_adapters
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.selection import select
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from lcfbench.files import FIGURE, check_output, write_output

Names = str | Sequence[str]


@dataclass(frozen=True)
class Choice:
    """The choices of a frontier: x axes, tasks and pairs, each separated by commas or a list.

    No names take the usual axes, all tasks, all pairs. average: one panel for all tasks. pool_seeds:
        adapters that differ in their training seed are one point.
    """

    x: Names = ()
    task: Names = ()
    pair: Names = ()
    published: bool = False
    average: bool = False
    pool_seeds: bool = False


def draw(
    paths: Sequence[Path], folder: Path, chosen: Choice, data: Path | None, warnings: list[str]
) -> list[Path]:
    """Draws the frontier of recorded runs into a folder; returns the files.

    data: a .csv or .figure.parquet that gets the numbers. warnings: gets what is left out and why.
    Raises UserError for names that no run has, and where nothing can be read or written.
    """
    panels = panels_of(_split(chosen.x))
    if data is not None:
        if not data.name.endswith((".csv", FIGURE)):
            what = f"--data {data} ends in neither .csv nor {FIGURE}."
            name = data.stem.strip(".") or "frontier"
            raise UserError(what, f"Name it {name}.csv or {name}{FIGURE}.")
        check_output(data)
    found = read_run_groups(list(paths))
    warnings += found.warnings
    groups = select(found.groups, _split(chosen.task), _split(chosen.pair))
    if chosen.average:
        pooled = averaged(groups)
        warnings += pooled.left_out
        groups = pooled.groups
    if chosen.pool_seeds:
        groups = pool_adapters(groups)
    summary = summarise(groups)
    files = frontier.plot(summary, folder, chosen.published, panels)
    if data is not None:
        write_output(data, frontier.data(summary, data.suffix[1:], chosen.published))
        files.append(data)
    return files


def _split(values: Names) -> list[str]:
    """Names that were given as a list or separated by commas."""
    texts = [values] if isinstance(values, str) else values
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
