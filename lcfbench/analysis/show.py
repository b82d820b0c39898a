"""The summary as a table: for a terminal, or as JSON, CSV or Markdown.

from lcfbench.analysis.show import table
rich.print(table(summarise(read_run_groups(paths).cells)))
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.orf import DERIVED
from lcfbench.analysis.summary import GROUP

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

NONE = "–"
LEGEND = (
    "The receiver answers; the sharer passes on what it knows. matched: the receiver gets the message made for its own document. "
    "deranged: it gets the message of another document, so whatever remains of the score is not communication. zero, noise: the sharer's "
    "cache is emptied, or random with the same moments; silent: nothing is sent. 95 %: confidence interval over documents. "
    "first token ms: median time from question to first answer token, one document at a time, the sharer's work included. "
    "adapter: size of the trained module. message: median bytes sent. "
    f"{NONE}: none, or not measured."
)
STYLES = {
    "communicates": "green",
    "adapts only": "red",
    "does not communicate": "red",
    "misleads": "red",
    "undecided": "yellow",
    "untested": "dim",
}
HEADERS = ("method", "control", "docs", "score %", "95 %", "first\ntoken ms", "adapter\nMB", "message\nbytes")


def table(summary: pd.DataFrame) -> Group:
    """A heading, a table and the verdicts in words for each pair and task; readable from 80 columns up."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for head, lines in _tasks(summary):
        heading = Text(f"{head} {_metric(lines)}", style="bold")
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for index, name in enumerate(HEADERS):
            wide = index == 0
            grid.add_column(
                name,
                justify="left" if index < 2 else "right",
                no_wrap=not wide,
                overflow="fold",
                vertical="bottom",
            )
        for line in lines.to_dict("records"):
            grid.add_row(*cells(line), style="" if line["control"] in ("matched", DERIVED) else "dim")
        parts += [heading, Padding(grid, (0, 0, 0, 2))]
        words = Table.grid(
            padding=(0, 1, 0, 0)
        )  # two columns, so that long sentences hang under their first word
        for label, text in verdicts(lines):
            words.add_row(Text("•", style=STYLES.get(label, "")), Text(text))
        for note in notes(lines):
            words.add_row(Text("!", style="yellow"), Text(note, style="yellow"))
        parts += [Padding(words, (0, 0, 1, 2))]
    return Group(*parts, Text(LEGEND, style="dim"))


def verdicts(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """(label, sentence) for every matched run of one task that sends a message."""
    told = lines[lines["verdict"].fillna("") != ""]
    sentences = []
    for line in told.to_dict("records"):
        sentences.append((str(line["verdict"]), f"{line['label']}: {line['verdict_text']}"))
    return sentences


def notes(lines: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the lines: spread over seeds, failed documents, runs that did not end."""
    found = []
    for line in lines.to_dict("records"):
        if line["seeds"] > 1:
            spread = f"standard deviation of the score over {line['seeds']} seeds {100 * line['seed_sd']:.1f} points"
            found.append(f"{line['label']} ({line['control']}): {spread}; 95 % is over documents")
    for line in lines.to_dict("records"):
        name = f"{line['label']} ({line['control']})"
        if line["errors"]:
            found.append(f"{name}: {line['errors']} of {line['n']} documents failed and count as wrong")
        if line["state"] in ("running", "interrupted"):
            found.append(f"{name}: not finished, {line['n']} documents so far; repeat its command to resume")
    return found


def cells(line: Mapping[Any, Any]) -> tuple[str, ...]:
    """One summary line as text, in the order of `HEADERS`. A method that sends nothing has no control to speak of."""
    silent = line["control"] == "matched" and not line["sends"] and not line["verdict"]
    return (
        str(line["label"]),
        NONE if silent else str(line["control"]),
        str(line["n"]),
        _percent(line["score"]),
        f"{_percent(line['low'])}–{_percent(line['high'])}",
        _number(line["ttft_ms"]),
        _number(line["adapter_mb"], 1),
        _number(line["message_bytes"]),
    )


def to_json(summary: pd.DataFrame) -> str:
    """A JSON list with one object a line of the summary; what is not known is null."""
    lines = [{name: _plain(value) for name, value in line.items()} for line in summary.to_dict("records")]
    return json.dumps(lines, indent=2, ensure_ascii=False) + "\n"


def to_csv(summary: pd.DataFrame) -> str:
    """The summary as CSV with a header; what is not known is empty."""
    return summary.to_csv(index=False, lineterminator="\n")


def to_markdown(summary: pd.DataFrame) -> str:
    """GitHub tables, one a task, with the verdicts below each."""
    out = []
    for head, lines in _tasks(summary):
        out += [
            f"**{head}** {_metric(lines)}",
            "",
            "| " + " | ".join(name.replace("\n", " ") for name in HEADERS) + " |",
        ]
        out.append("| --- | --- |" + " ---: |" * (len(HEADERS) - 2))
        out += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(line)) + " |"
            for line in lines.to_dict("records")
        ]
        out += [
            "",
            *(f"- {text}" for _, text in verdicts(lines)),
            *(f"- note: {note}" for note in notes(lines)),
            "",
        ]
    return "\n".join([*out, LEGEND, ""])


def _tasks(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for (pair, task, scoring), lines in summary.groupby(GROUP, sort=False, dropna=False):
        receiver, _, sharer = str(pair).partition(":")
        yield f"{task} ({scoring}): receiver {receiver}" + (f", sharer {sharer}." if sharer else "."), lines


def _metric(lines: pd.DataFrame) -> str:
    chance = lines["chance"].dropna()
    guess = f"; guessing gives {100 * chance.iloc[0]:.1f} %" if len(chance) else ""
    return f"Score: {', '.join(dict.fromkeys(lines['metric']))}{guess}."


def _percent(value: float) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float, digits: int = 0) -> str:
    return (
        NONE if value is None or math.isnan(value) or (value == 0 and digits == 0) else f"{value:,.{digits}f}"
    )


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
