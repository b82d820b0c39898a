"""What `compare` prints: a table for a terminal, or JSON, CSV, Markdown.

>>> print_compare([Path("results/a")], [Path("results/b")], "table", [])
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcfbench.analysis.matching import first_few
from lcfbench.cli.console import out, warn

if TYPE_CHECKING:
    from rich.console import Group

    from lcfbench.analysis.compare import Comparison, Line

NONE = "–"
HEADERS = ("what", "docs", "A", "B", "B − A", "95 %", "p", "Holm")
FEW_HASHES = 3
LEGEND = (
    "A, B: mean scores in %; B − A in points, over the documents both have, with its 95 % interval. p: of no difference (0/1 scores: "
    "McNemar, exact). Holm: p corrected for the number of lines. Ratios are B / A."
)


def print_compare(a: Sequence[Path], b: Sequence[Path], form: str, allow: Sequence[str]) -> None:
    """Compares what is recorded under `a` and `b`. form: table, json, csv or markdown. Raises UserError: nothing comparable."""
    from lcfbench.analysis.compare import compare
    from lcfbench.analysis.run_groups import read_run_groups

    ours, theirs = read_run_groups(list(a)), read_run_groups(list(b))
    for warning in ours.warnings + theirs.warnings:
        warn(warning)
    found = compare(ours, theirs, allow)
    if form == "table":
        out.print(table(found))
    else:
        typer.echo({"json": to_json, "csv": to_csv, "markdown": to_markdown}[form](found), nl=False)


def table(found: Comparison) -> Group:
    """Readable from 80 columns up."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(HEADERS):
        grid.add_column(
            name,
            justify="left" if index == 0 else "right",
            no_wrap=index > 0,
            overflow="fold",
            vertical="top",
        )
    for line in found.lines:
        grid.add_row(*cells(line), style="bold" if line.overall else "")
    words = Table.grid(padding=(0, 1, 0, 0))
    for line in found.lines:
        for text in remarks(line):
            words.add_row("•", f"{line.what}: {text}")
    for text in unmatched(found):
        words.add_row("•", text)
    return Group(grid, words, Text(LEGEND, style="dim"))


def cells(line: Line) -> tuple[str, ...]:
    """A line as text, in the order of `HEADERS`."""
    interval = NONE if math.isnan(line.low) else f"{100 * line.low:+.1f} to {100 * line.high:+.1f}"
    means = (_points(line.mean_a), _points(line.mean_b), _points(line.difference, "+"))
    return (line.what, f"{line.n:,}", *means, interval, _p(line.p), _p(line.p_holm))


def remarks(line: Line) -> list[str]:
    """Cost, what differs, documents of one side only, and cautions."""
    ratios = [f"first token ×{line.latency_ratio:.2f} (n={line.latency_n})"] if line.latency_n else []
    ratios += [
        f"{name} ×{x:.2f}"
        for name, x in (("message", line.message_ratio), ("adapter", line.adapter_ratio))
        if not math.isnan(x)
    ]
    found = [", ".join(ratios)] if ratios else []
    if line.differs:
        found.append(f"differs: {'; '.join(line.differs)}")
    for side, hashes in (("A", line.only_a), ("B", line.only_b)):
        if hashes:
            few = ", ".join(hashes[:FEW_HASHES]) + (", …" if len(hashes) > FEW_HASHES else "")
            found.append(f"only {side} has {len(hashes):,} documents: {few}")
    return [*found, *line.notes]


def unmatched(found: Comparison) -> list[str]:
    """What only one side holds; of many only the first."""
    sides = (("A", found.unmatched_a), ("B", found.unmatched_b))
    return [f"only {side} holds {first_few(names)}" for side, names in sides if names]


def to_json(found: Comparison) -> str:
    """{"lines": […], "only_a": […], "only_b": […]}; scores are fractions, what is not known is null."""
    lines = [{name: _plain(value) for name, value in line._asdict().items()} for line in found.lines]
    whole = {"lines": lines, "only_a": found.unmatched_a, "only_b": found.unmatched_b}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def to_csv(found: Comparison) -> str:
    """A row a line; documents of one side only as counts, sentences joined by semicolons."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for index, line in enumerate(found.lines):
        fields = line._asdict()
        fields |= {"only_a": len(line.only_a), "only_b": len(line.only_b)}
        fields |= {"differs": "; ".join(line.differs), "notes": "; ".join(line.notes)}
        if not index:
            writer.writerow(fields)
        writer.writerow("" if _plain(value) is None else value for value in fields.values())
    return sink.getvalue()


def to_markdown(found: Comparison) -> str:
    """A GitHub table, remarks below."""
    rows = [HEADERS, ("---", *("---:",) * (len(HEADERS) - 1)), *map(cells, found.lines)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", *(f"- {line.what}: {text}" for line in found.lines for text in remarks(line))]
    return "\n".join([*lines, *(f"- {text}" for text in unmatched(found)), "", LEGEND, ""])


def _points(value: float, sign: str = "") -> str:
    return NONE if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _p(value: float) -> str:
    return NONE if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
