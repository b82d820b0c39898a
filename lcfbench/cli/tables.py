"""Prints tables in a terminal, as wide as it is.

>>> show(Table("", [Column("method"), Column("score %", right=True)], [["t2t", "65.6"]]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from lcfbench.cli.clean import clean
from lcfbench.cli.console import echo
from lcfbench.cli.terminal import out
from lcfbench.tables import Cell, Table, lines_of

GAP = 2  # columns of space between two cells
READABLE = 16  # a wrapping column is not made narrower than this before optional columns go


def show(*tables: Table, form: Literal["table", "markdown"] = "table") -> None:
    """Prints tables on stdout, one below the other. Equal legends are printed once, at the end."""
    if form == "markdown":
        echo("\n".join(table.markdown() for table in tables), end="")
        return
    for index, table in enumerate(tables):
        if index:
            out.print()
        for part in rendered(table, out.width).renderables:
            out.print(part, soft_wrap=isinstance(part, Text) and "\n" in part.plain)
    for legend in dict.fromkeys(table.legend for table in tables if table.legend):
        out.print(Text(clean(legend), "dim"))


def rendered(table: Table, width: int) -> Group:
    """Returns title, grid and remarks as a terminal of `width` columns shows them.

    Wrapping columns fold at spaces; where that is not enough, optional columns are left out, and
    where no grid fits, each row becomes a block of lines, a cell a line. No cell is ever cut.
    """
    rows = [[_text(cell) for cell in row] for row in table.rows]
    styles = table.styles or [""] * len(rows)
    parts: list[RenderableType] = [Text(_text(table.title), "bold")] if table.title else []
    kept, widths = _fitted(table, rows, width)
    if widths:
        parts.append(_grid(table, rows, kept, widths, styles))
        gone = [" ".join(c.name.split()) for i, c in enumerate(table.columns) if i not in kept]
        if gone:
            parts.append(Text(f"left out at {width} columns: {', '.join(gone)}", "dim"))
    else:
        parts.append(_blocks(table, rows, styles))
    if table.remarks:
        words = Grid.grid(padding=(0, 1, 0, 0))  # two columns: long sentences hang under their first word
        for style, text in table.remarks:
            words.add_row(Text(clean("•"), style), Text(clean(text, one_line=True)))
        parts.append(words)
    return Group(*parts)


def _text(cell: Cell) -> str:
    """The lines of a cell in the characters that the terminal has."""
    return "\n".join(map(clean, lines_of(cell)))


def _fitted(table: Table, rows: list[list[str]], width: int) -> tuple[list[int], list[int]]:
    """Chooses the columns that are shown and their widths; no widths where no choice fits."""
    cells = [[clean(c.name), *(row[i] for row in rows)] for i, c in enumerate(table.columns)]
    full = [
        max(cell_len(line) for cell in column for line in (cell.splitlines() or [""])) for column in cells
    ]
    word = [max((cell_len(w) for cell in column for w in cell.split()), default=0) for column in cells]
    least = [max(word[i], min(full[i], READABLE)) if c.wrap else full[i] for i, c in enumerate(table.columns)]
    kept = list(range(len(cells)))
    room = width - GAP * (len(kept) - 1)
    for i in [i for i in reversed(kept) if table.columns[i].optional]:
        if sum(least[k] for k in kept) > room:
            kept.remove(i)
            room += GAP
    if sum(least[k] for k in kept) > room:
        least = [word[i] if c.wrap else full[i] for i, c in enumerate(table.columns)]
    spare = room - sum(least[k] for k in kept)
    if spare < 0:
        return kept, []
    growing = sorted((k for k in kept if full[k] > least[k]), key=lambda k: full[k] - least[k])
    for index, k in enumerate(growing):  # an even share of the spare room, less where less is needed
        more = min(full[k] - least[k], spare // (len(growing) - index))
        least[k], spare = least[k] + more, spare - more
    return kept, [least[k] for k in kept]


def _grid(
    table: Table, rows: list[list[str]], kept: list[int], widths: Sequence[int], styles: Sequence[str]
) -> Grid:
    """The columns that are kept, side by side."""
    grid = Grid(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for k, wide in zip(kept, widths, strict=True):
        column = table.columns[k]
        grid.add_column(
            clean(column.name),
            justify="right" if column.right else "left",
            width=wide,
            vertical="top",
            overflow="fold",
        )
    for row, style in zip(rows, styles, strict=True):
        grid.add_row(*(row[k] for k in kept), style=style)
    return grid


def _blocks(table: Table, rows: list[list[str]], styles: Sequence[str]) -> Text:
    """The rows of a table that is too wide, one below the other: a line a cell, indented below the first."""
    heads = [clean(" ".join(c.name.split())) for c in table.columns]
    text = Text()
    for row, style in zip(rows, styles, strict=True):
        first, *others = [" ".join(cell.split()) for cell in row]
        lines = [first, *(f"  {head}: {cell}" for head, cell in zip(heads[1:], others, strict=True) if cell)]
        text.append("\n".join(lines) + "\n", style)
    text.rstrip()
    return text
