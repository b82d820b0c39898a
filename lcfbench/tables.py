"""Text made safe to show, and one table for a terminal (`lcfbench.cli.tables`) and for Markdown.

>>> Table("", [Column("method"), Column("score %", right=True)], [["t2t", "65.6"]]).markdown()
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Cell: TypeAlias = "str | tuple[str, ...]"  # one line, or several below each other

MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
UNSEEN = re.compile(
    # control and format characters, line separators, surrogates: Unicode's Cc, Cf, Zl, Zp, Cs
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    # letters and marks that draw nothing
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
    f"|(?<=[{MARKS}]{{4}})[{MARKS}]"  # towers of accents that cover the lines above
)
NAMED = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # begins one in a spreadsheet


def printable(text: str, one_line: bool = False) -> str:
    r"""Returns a text with characters that are not seen written as `\u001b`.

    They could colour a terminal, reverse a line or hide words. Newlines and tabs stay unless `one_line`.
    """
    text = UNSEEN.sub(_written, text)
    return re.sub("[\n\t]", _written, text) if one_line else text


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return NAMED.get(found[0]) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is, on one line: no markup, link, HTML, mention or cell."""
    text = printable(text, one_line=True).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"\\(?![\w\s])", "&#92;", text)  # a backslash before a letter is only a backslash
    text = re.sub(
        r"[`*|~]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|^(?:#+|[-+=](?![\d.])|\d+[.)](?=\s))", _escaped, text
    )
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def _escaped(found: re.Match[str]) -> str:
    return f"{found[0][:-1]}\\{found[0][-1]}"


def csv_cell(value: Any) -> Any:
    """Returns a CSV value: text that a spreadsheet would compute gets a `'`; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if FORMULA.match(value) and not _is_number(value) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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

    title: Cell
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    styles: list[str] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    legend: str = ""

    def markdown(self) -> str:
        """A GitHub table with its title above, remarks and legend below."""
        heads = [markdown(" ".join(c.name.split())) for c in self.columns]
        rule = ["---:" if c.right else "---" for c in self.columns]
        cells = [heads, rule, *([_stacked(cell) for cell in row] for row in self.rows)]
        rows = ["| " + " | ".join(line) + " |" for line in cells]
        above = [f"**{_stacked(self.title)}**", ""] if self.title else []
        below = ["", *(f"- {markdown(text)}" for _, text in self.remarks)] if self.remarks else []
        legend = ["", markdown(self.legend)] if self.legend else []
        return "\n".join([*above, *rows, *below, *legend, ""])


def lines_of(cell: Cell) -> list[str]:
    """Returns the lines of a cell, each printable."""
    return [printable(line, one_line=True) for line in ((cell,) if isinstance(cell, str) else cell)]


def _stacked(cell: Cell) -> str:
    return "<br>".join(map(markdown, (cell,) if isinstance(cell, str) else cell))
