"""One table, whatever it is written as: Markdown and CSV here, a terminal in `lcfbench.cli.tables`.

>>> Table("", [Column("method"), Column("score %", right=True)], [["t2t", "65.6"]]).markdown()
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A column's heading. right: numbers line up at the right. wrap: long text may run over lines.

    optional: left out first where a terminal is too narrow; a cell is never cut.
    """

    name: str
    right: bool = False
    wrap: bool = False
    optional: bool = False


@dataclass
class Table:
    """Rows of text under headings, remarks below them, a legend last.

    rows: as many cells as columns. styles: one for each row, as rich names them ("" for plain).
    remarks: (style, text) of each bullet.
    """

    title: str
    columns: Sequence[Column]
    rows: list[list[str]]
    styles: list[str] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    legend: str = ""

    def markdown(self) -> str:
        """A GitHub table with its title above, remarks and legend below."""
        heads = [" ".join(c.name.split()) for c in self.columns]
        lines = [heads, ["---:" if c.right else "---" for c in self.columns], *self.rows]
        table = ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines]
        above = [f"**{self.title}**", ""] if self.title else []
        below = ["", *(f"- {text}" for _, text in self.remarks)] if self.remarks else []
        return "\n".join([*above, *table, *below, *(["", self.legend] if self.legend else []), ""])

    def csv(self) -> str:
        """Headings and rows, one line each, newlines inside cells kept."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerows([[" ".join(c.name.split()) for c in self.columns], *self.rows])
        return sink.getvalue()


def _escaped(cell: str) -> str:
    """A cell's text inside a Markdown table."""
    return cell.replace("|", "\\|").replace("\n", "<br>")
