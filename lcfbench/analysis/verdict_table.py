"""Does knowledge cross: gain, content and a verdict for every method and task, best first.

    from lcfbench.analysis.verdict_table import judged, table
    rich.print(table(summarise(cells), delta=0.02))

Gain G is matched minus the receiver alone, content P is matched minus deranged, both in points with a 95 % interval over documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.orf import DERIVED
from lcfbench.analysis.show import NONE, STYLES, notes
from lcfbench.analysis.summary import GROUP
from lcfbench.analysis.verdict import LABELS
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

HEADERS = ("method", "docs", "score", "gain G", "content P", "p", "ms", "bytes")
LEGEND = (
    "gain G: matched minus the receiver alone; content P: matched minus deranged (another document's message); points, with their 95 % "
    "interval over documents. p: of the content, after Holm's correction over all verdicts shown. communicates: P is surely above 0. "
    "nothing is communicated: P is none within ±{delta:g} points (two one-sided tests); adapts only: the same, while G is surely above 0. "
    "misleads: P is surely below 0. Each kind of claim is corrected over all verdicts shown. score ±: standard deviation over seeds. "
    "ms: median to the first token. bytes: median message."
)


def judged(summary: pd.DataFrame) -> pd.DataFrame:
    """The lines that have a verdict, by task, best first. Raises UserError where there are none."""
    lines = summary[~summary["verdict"].fillna("").isin(["", DERIVED])]
    if not len(lines):
        raise UserError(
            "no run here sends a message.", "Run a method that does, with --control matched,deranged."
        )
    rank = lines["verdict"].map({label: i for i, label in enumerate(LABELS)})
    keys = lines.assign(_rank=rank, _content=-lines["content"].fillna(-9.0)).sort_values(
        [*GROUP, "_rank", "_content"], kind="stable"
    )
    return lines.loc[keys.index].reset_index(drop=True)


def table(summary: pd.DataFrame, delta: float) -> Group:
    """For a terminal of 80 columns or more: a table a task with the verdicts in words and what to mind below. Errors as `judged`."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for (pair, task, scoring), group in judged(summary).groupby(GROUP, sort=False):
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        for i, name in enumerate(HEADERS):
            grid.add_column(
                name,
                justify="left" if i == 0 else "right",
                no_wrap=i > 0,
                min_width=12 if i == 0 else None,
                overflow="fold",
            )
        words = Table.grid(padding=(0, 1, 0, 0))
        for line in group.to_dict("records"):
            grid.add_row(*(x.replace(" [", "\n[") for x in cells(line)))
            words.add_row(
                Text("•", style=STYLES.get(line["verdict"], "")),
                Text(f"{line['label']}: {line['verdict_text']}"),
            )
        parts += [
            Text(f"{task} ({scoring}, {group['metric'].iloc[0]}): {pair}", style="bold"),
            Padding(grid, (0, 0, 0, 2)),
        ]
        for note in _minded(summary, pair, task, scoring):
            words.add_row(Text("!", style="yellow"), Text(note, style="yellow"))
        parts.append(Padding(words, (0, 0, 1, 2)))
    return Group(*parts, Text(LEGEND.format(delta=100 * delta), style="dim"))


def cells(line: Mapping[Any, Any]) -> tuple[str, ...]:
    """A line as text, in the order of `HEADERS`."""
    spread = "" if math.isnan(line["seed_sd"]) else f" ± {100 * line['seed_sd']:.1f}"
    return (
        str(line["label"]),
        str(line["n"]),
        f"{100 * line['score']:.1f}{spread}",
        points(line["gain"], line["gain_low"], line["gain_high"]),
        points(line["content"], line["content_low"], line["content_high"]),
        probability(line["p_holm"]),
        NONE if math.isnan(line["ttft_ms"]) else f"{line['ttft_ms']:,.0f}",
        NONE if math.isnan(line["message_bytes"]) else f"{line['message_bytes']:,.0f}",
    )


def points(value: float, low: float, high: float) -> str:
    """`+54.7 [+42.6, +66.3]`."""
    return NONE if math.isnan(value) else f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def probability(p: float) -> str:
    """A p-value in three digits; tiny ones as `<.001`."""
    return NONE if p is None or math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def to_markdown(summary: pd.DataFrame) -> str:
    """A GitHub table a pair, with the verdicts in words and what to mind below. Errors as `judged`."""
    out = []
    for pair, group in judged(summary).groupby("pair", sort=False):
        out += [f"**{pair}**", "", "| task | " + " | ".join(HEADERS) + " | verdict |"]
        out.append("| --- | --- |" + " ---: |" * (len(HEADERS) - 1) + " --- |")
        for line in group.to_dict("records"):
            shown = [f"{line['task']} ({line['scoring']})", *cells(line), line["verdict"]]
            out.append("| " + " | ".join(str(x).replace("|", "\\|") for x in shown) + " |")
        out += ["", *(f"- {x['task']}, {x['label']}: {x['verdict_text']}" for x in group.to_dict("records"))]
        tasks = group[["task", "scoring"]].drop_duplicates().itertuples(index=False)
        out += [
            *(
                f"- note: {task}, {note}"
                for task, scoring in tasks
                for note in _minded(summary, pair, task, scoring)
            ),
            "",
        ]
    return "\n".join(out)


def _minded(summary: pd.DataFrame, pair: Any, task: Any, scoring: Any) -> list[str]:
    """Notes on every run of a task, also on those that a verdict is held against."""
    return notes(
        summary[(summary["pair"] == pair) & (summary["task"] == task) & (summary["scoring"] == scoring)]
    )
