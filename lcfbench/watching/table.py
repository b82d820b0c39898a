"""The table of followed runs, for a terminal and for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lcfbench.progress import duration
from lcfbench.tables import Column, Table
from lcfbench.watching.follow import RunView

COLUMNS = (
    Column("run", wrap=True),
    Column("state"),
    Column("score %", right=True),
    Column("n/N", right=True),
    Column("ETA", right=True, optional=True),
    Column("ms/doc", right=True, optional=True),
    Column("docs/s", right=True, optional=True),
    Column("left", right=True, optional=True),
    Column("errors", right=True, optional=True),
    Column("unparsed", right=True, optional=True),
)
STYLES = {
    "reading": "dim",
    "new": "cyan",
    "running": "green",
    "stale": "yellow",
    "stopped": "yellow",
    "interrupted": "yellow",
    "complete": "",
}


def cells(view: RunView, name: str) -> list[str]:
    """The cells of a run, one for each of COLUMNS; – for what is not known."""
    known = view.score is not None
    score = f"{100 * (view.score or 0):.1f} ± {50 * ((view.high or 0) - (view.low or 0)):.1f}"
    planned = "?" if view.planned is None else f"{view.planned:,}"
    return [
        name,
        view.state,
        score if known else "–",
        f"{view.done:,}/{planned}",
        "–" if view.eta_s is None else duration(view.eta_s),
        _number(view.ms_per_document),
        _number(view.documents_per_s),
        "–" if view.left is None else f"{view.left:,}",
        f"{view.errors:,}",
        f"{view.unparsed:,}",
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def names(views: Sequence[RunView]) -> list[str]:
    """Task, method and control of each run; where several have the same, more of what tells them apart."""
    made = [
        " · ".join(filter(None, (v.task, v.mode, v.control if v.control != "matched" else ""))) or v.run_id
        for v in views
    ]
    ids, same = Counter(v.run_id for v in views), Counter(made)
    for i, v in enumerate(views):
        if ids[v.run_id] > 1:
            made[i] += f" ({Path(v.folder).parent})"
        elif same[made[i]] > 1:
            made[i] += f" {v.run_id[-10:]}"
    return made


def table_of(views: Sequence[RunView], hidden: int, where: str) -> Table:
    """All runs as one table. hidden: runs that are not followed. where: the folders."""
    rows = [cells(view, name) for view, name in zip(views, names(views), strict=True)]
    remarks = [(STYLES.get(v.state, "red"), f"{v.run_id}: {v.note}") for v in views if v.note]
    if behind := sum(view.behind for view in views):
        remarks.append(("yellow", f"still reading what is recorded: {behind / 1e6:,.0f} MB left"))
    if hidden:
        remarks.append(("dim", f"{hidden:,} older runs are not shown; --all shows them"))
    if not views:
        remarks.append(("dim", f"no runs in {where} yet"))
    return Table("", COLUMNS, rows, [STYLES.get(view.state, "red") for view in views], remarks)
