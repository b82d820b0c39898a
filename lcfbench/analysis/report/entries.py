"""What tables are made of, and how numbers are written: the same for HTML and Markdown.

Table("verdicts", "…", (Head("method"), Head("score %", number=True)), [Row([text("lcf"), percent(0.5)])])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from markupsafe import Markup

from lcfbench.analysis.tables import NONE


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    value: what it is sorted by, None where it goes last. note: a smaller second line. more: unfolds
    below the text. drawing: SVG, in HTML only.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    style: str = ""
    more: str = ""
    drawing: Markup = field(default_factory=Markup)


@dataclass(frozen=True)
class Head:
    """A column's heading.

    title: what it means, where the word alone does not say it. drawn: it holds drawings, which
    Markdown leaves out.
    """

    text: str
    number: bool = False
    title: str = ""
    drawn: bool = False


@dataclass(frozen=True)
class Row:
    """Entries in the order of the headings; what the filter and the styles need to know of them."""

    entries: list[Entry]
    task: str = ""
    method: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """name: unique on the page. caption: said above it."""

    name: str
    caption: str
    heads: Sequence[Head]
    rows: list[Row]


def known(value: Any) -> TypeGuard[Any]:
    """Neither missing nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def text(value: Any, note: str = "", style: str = "") -> Entry:
    said = str(value) if known(value) and value != "" else NONE
    return Entry(said, said.lower() if said != NONE else None, note, style)


def percent(value: float | None, note: str = "") -> Entry:
    return Entry(f"{100 * value:.1f}", value, note) if known(value) else Entry(NONE)


def points(value: float, low: float, high: float) -> Entry:
    """A difference in points with its 95 % interval below it."""
    return Entry(signed(value), value, f"[{signed(low)}, {signed(high)}]") if known(value) else Entry(NONE)


def number(value: float | None, digits: int = 0) -> Entry:
    return Entry(plain(value, digits), float(value)) if known(value) else Entry(NONE)


def p_value(value: float | None) -> Entry:
    if not known(value):
        return Entry(NONE)
    return Entry("< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}", value)


def signed(value: float, digits: int = 1) -> str:
    """A share as points, with a true minus sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−") if known(value) else NONE


def plain(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def duration(value: float) -> str:
    """Milliseconds to three digits or so: 0.42, 6.7, 123."""
    return plain(value, 0 if value >= 100 else 1 if value >= 1 else 2)


def places_named(pair: str) -> str:
    """`a:b` in words."""
    receiver, _, sharer = pair.partition(":")
    return f"receiver {receiver}" + (f", sharer {sharer}" if sharer else "")


def cut(text: str, most: int) -> str:
    """At most so many characters, and how many are missing."""
    return text if len(text) <= most else f"{text[:most]} … ({plain(len(text) - most)} more characters)"
