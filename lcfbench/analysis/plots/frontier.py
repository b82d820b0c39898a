"""Draws score against adapter size, latency and message bytes, a row of panels for each task.

    from lcfbench.analysis.plots.frontier import plot
    plot(summarise(read_run_groups(paths).groups), Path("results"))

Filled: matched. Hollow: deranged, the same method with another document's message; where the two
meet nothing is communicated. The same summary gives the same bytes: fixed fonts, fixed ids, no
dates.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.plots.figures import COLOURS, GREY, INK, canvas, drawable, save, styled
from lcfbench.analysis.plots.labels import Line, place
from lcfbench.analysis.plots.published import Published
from lcfbench.analysis.plots.published import published as published_numbers
from lcfbench.analysis.plots.scales import PANELS, Panel, Point, front, positions
from lcfbench.analysis.summary import ALONE, GROUP, SHOWN
from lcfbench.analysis.tables import reliable
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# inches: figure, legend, one row of panels, its heading, its x axis
WIDTH, TOP, ROW, TITLE, FOOT = 14.0, 0.45, 4.5, 0.35, 0.95
LINE = 0.22  # inches a sentence under a heading takes
CROWD = 6  # with more methods than this the verdicts stay in the sentences above
SAID = {
    "adapts only": "adapts only",
    "does not communicate": "nothing communicated",
    "undecided": "no communication shown",
    "untested": "not tested",
}
SENTENCES = {
    "communicates": "{label} communicates: {facts} ({n})",
    "adapts only": "{label} adapts only, its message adds nothing: {facts} ({n})",
    "misleads": "{label} misleads, its own message does harm: {facts} ({n})",
    "does not communicate": "{label}: nothing is communicated: {facts} ({n})",
    "undecided": "{label}: no communication shown, undecided at {n}: {facts}",
    "untested": "{label}: whether anything is communicated was not tested (no deranged run)",
    "not judged": "{label} is {text}",
}


def plot(summary: pd.DataFrame, out_dir: Path, published: bool = False) -> list[Path]:
    """Write `frontier.png` and `frontier.svg` into `out_dir` and return their paths.

    published: also draw published numbers of the same pair and task, hollow and named so.
    Raises UserError where there is nothing to draw or the folder cannot be written.
    """
    if not len(summary):
        step = "Run something first, or name a folder with runs; `lcfbench ls runs` lists them."
        raise UserError("no runs to plot.", step)
    with styled():
        return save(draw(summary, published), out_dir, "frontier")


def draw(summary: pd.DataFrame, published: bool = False) -> Figure:
    """The figure, drawn without pyplot (and so without a display or global state)."""
    # no oracles, which have no size; no other controls; no run without documents
    summary = summary[summary["control"].isin(SHOWN) & (summary["n"] > 0)]
    named = {name: summary[name].map(drawable) for name in ("pair", "task", "scoring", "label", "metric")}
    if not len(summary):
        raise UserError(
            "no matched or deranged run with documents to plot.", "Run with --control matched,deranged."
        )
    summary = summary.assign(**named)
    rows = [
        (key, lines.to_dict("records")) for key, lines in summary.groupby(GROUP, sort=False, dropna=False)
    ]
    said = [_sentences(lines) for _, lines in rows]
    height = TOP + sum(ROW + LINE * len(words) for words in said)
    figure = canvas((WIDTH, height))
    others = list(dict.fromkeys(mode for mode in summary["mode"] if mode != ALONE))
    colours = {ALONE: INK} | {mode: COLOURS[i % len(COLOURS)] for i, mode in enumerate(sorted(others))}
    top = height - TOP
    extra = False
    for ((pair, task, scoring), lines), words in zip(rows, said, strict=True):
        receiver, _, sharer = str(pair).partition(":")
        head = f"{task}   ({scoring}; receiver {receiver}" + (f", sharer {sharer})" if sharer else ")")
        figure.text(0.055, (top - 0.1) / height, head, weight="bold", size=13, va="top")
        for index, (label, word) in enumerate(words):
            weight = (
                "bold"
                if label in ("does not communicate", "adapts only", "misleads", "not judged")
                else "normal"
            )
            place = (top - 0.1 - TITLE - LINE * index) / height
            figure.text(0.055, place, word, size=10.5, va="top", weight=weight)
        upper = top - TITLE - LINE * len(words) - 0.25
        lower = top - ROW - LINE * len(words) + FOOT
        theirs = published_numbers(str(pair), str(task)) if published else []
        extra = extra or bool(theirs)
        marks: list[dict[Any, Any]] = [*lines, *map(_as_line, theirs)]
        for index, panel in enumerate(PANELS):
            box = (0.055 + 0.322 * index, lower / height, 0.285, (upper - lower) / height)
            _panel(figure.add_axes(box), panel, marks, colours, first=index == 0)
        top -= ROW + LINE * len(words)
    _legend(figure, summary, extra)
    return figure


def _panel(
    axes: Axes, panel: Panel, marks: list[dict[Any, Any]], colours: dict[str, str], first: bool
) -> None:
    points = positions(axes, panel, marks)
    lines = _vertical(axes, marks, first)
    axes.set_xlabel(panel.label, size=10.5)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_xticks([])
        return
    own = [p for p in points if p.kind == "matched"]
    lines += _front(axes, own)
    for twin in (p for p in points if p.kind == "deranged"):
        for point in (p for p in own if p.line["label"] == twin.line["label"]):
            lines.append(([point.x, twin.x], [point.y, twin.y]))
            axes.plot(*lines[-1], ":", color=colours[point.line["mode"]], lw=1.4, zorder=2)
    for point in points:
        _mark(axes, point, colours.get(point.line["mode"], GREY))
    told = first and len(own) <= CROWD
    named = {"matched", "published", "failed"}
    labels = [(p.x, p.y, _name(p, told), colours.get(p.line["mode"], GREY), p.kind in named) for p in points]
    place(axes, labels, [(p.x, 100 * p.line["low"], 100 * p.line["high"]) for p in points], lines)


def _mark(axes: Axes, point: Point, colour: str) -> None:
    line = point.line
    if point.kind == "published":
        axes.plot(point.x, point.y, "D", ms=8, mfc="white", mec=colour, mew=1.6, zorder=4)
        return
    own = point.kind == "matched"
    if point.kind == "failed":
        axes.plot(point.x, point.y, "x", ms=9, mec=_greyed(colour), mew=1.8, zorder=4)
        return
    edge = colour if own else _greyed(colour)
    span = [[max(0.0, point.y - 100 * line["low"])], [max(0.0, 100 * line["high"] - point.y)]]
    bar: dict[str, Any] = {"ecolor": edge, "elinewidth": 1.6 if own else 1.0, "capsize": 3, "zorder": 3}
    axes.errorbar(point.x, point.y, yerr=span, fmt="none", **bar)
    fill, order = (colour, 5) if own else ("white", 4)
    axes.plot(point.x, point.y, "o", ms=9, mfc=fill, mec=edge, mew=1.6, zorder=order)


def _front(axes: Axes, points: list[Point]) -> list[Line]:
    """The Pareto front: no matched run with a smaller value is as good."""
    if not (corners := front(points, axes.get_xlim()[1])):
        return []
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    axes.plot(xs, ys, color=INK, lw=1.1, alpha=0.55, zorder=1)
    return [(xs, ys)]


def _vertical(axes: Axes, marks: list[dict[Any, Any]], first: bool) -> list[Line]:
    """Limits and grid of the score axis; returns the line of chance where it is known."""
    low, high = min(100 * m["low"] for m in marks), max(100 * m["high"] for m in marks)
    chances = (m["chance"] for m in marks if m.get("chance") is not None)
    chance = next((100 * share for share in chances if not math.isnan(share)), None)
    if chance is not None:
        low, high = min(low, chance), max(high, chance)
        axes.axhline(chance, color=GREY, ls=(0, (4, 3)), lw=1, zorder=0)
    pad = max(2.0, 0.09 * (high - low))
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.grid(True, color="#ececec", lw=0.8)
    axes.set_axisbelow(True)
    metric = next((m["metric"] for m in marks if m.get("metric")), "score")
    if first:
        axes.set_ylabel(f"{metric}, %")
    return [] if chance is None else [(list(axes.get_xlim()), [chance, chance])]


def _sentences(lines: list[dict[Any, Any]]) -> list[tuple[str, str]]:
    """(verdict, sentence): what the reader must not miss: who communicates and who does not."""
    found = []
    for line in lines:
        own, other = (f"{100 * line[f'{name}_score']:.1f} %" for name in ("matched", "deranged"))
        facts = f"{own} with its own message, {other} with another document's"
        words = {
            "label": line["label"],
            "n": f"n={line['content_n']:.0f}",
            "facts": facts,
            "text": line["verdict_text"],
        }
        if line["verdict"] in SENTENCES:
            found.append((line["verdict"], SENTENCES[line["verdict"]].format(**words)))
        elif not reliable(line):
            failed = f"{line['errors']:,} of {line['n']:,} documents failed, so its score says little of it"
            found.append(("not judged", f"{_whole_name(line)}: {failed}"))
    return found


def _name(point: Point, told: bool) -> str:
    if point.kind == "published":
        return f"{point.line['label']}, published"
    if point.kind == "failed":
        return f"{_whole_name(point.line)}: failed"
    said = SAID.get(point.line["verdict"]) if told else None
    return f"{point.line['label']}: {said}" if said else str(point.line["label"])


def _whole_name(line: dict[Any, Any]) -> str:
    return str(line["label"]) + ("" if line["control"] == "matched" else f" ({line['control']})")


def _legend(figure: Figure, summary: pd.DataFrame, published: bool) -> None:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 9, "color": INK}
    hollow = {"ls": ":", "mfc": "white", "color": GREY}
    shapes = [
        Line2D([], [], **dot, label="matched: its own document's message"),
        Line2D([], [], **{**dot, **hollow}, label="deranged: another document's message"),
        Line2D([], [], color=INK, alpha=0.55, lw=1.1, label="Pareto front"),
        Line2D([], [], ls="", marker="|", ms=12, mew=1.6, color=INK, label="95 % interval"),
    ]
    if summary["chance"].notna().any():
        shapes.append(Line2D([], [], ls=(0, (4, 3)), color=GREY, label="chance"))
    if not summary["reliable"].all():
        shapes.append(Line2D([], [], ls="", marker="x", ms=9, color=GREY, label="many documents failed"))
    if published:
        theirs = {**dot, "marker": "D", "ms": 8, "mfc": "white"}
        shapes.append(Line2D([], [], **theirs, label="published, not ours"))
    look: dict[str, Any] = {"frameon": False, "fontsize": 10.5, "columnspacing": 1.4}
    figure.legend(handles=shapes, loc="upper left", bbox_to_anchor=(0.045, 1.0), ncols=len(shapes), **look)


def _as_line(number: Published) -> dict[Any, Any]:
    """A published number in the form of a summary line.

    It has no interval, and no place on an axis its source is silent about.
    """
    line = {**vars(number), "control": "published", "low": number.score, "high": number.score, "verdict": ""}
    return {**line, "published_place": "adapter_mb" if number.without_adapter else ""}


def _greyed(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = (0.5 * part + 0.3 for part in to_rgb(colour))
    return red, green, blue
