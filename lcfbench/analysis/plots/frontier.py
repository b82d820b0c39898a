"""Draws score against adapter size, latency, message bytes or computation, a block for each task.

    from lcfbench.analysis.plots.frontier import plot
    plot(summarise(read_run_groups(paths).groups), Path("results"))

Filled: matched. Hollow: deranged, the same method with another document's message; where the two
meet nothing is communicated. Thin lines join one method's points in order of adapter size or
budget. The same summary gives the same bytes: fixed fonts, fixed ids, no dates.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.plots.figures import COLOURS, GREY, INK, canvas, drawable, save, styled
from lcfbench.analysis.plots.labels import Line, place
from lcfbench.analysis.plots.published import NUMBERS, Published
from lcfbench.analysis.plots.published import TOGETHER as TASKS
from lcfbench.analysis.plots.published import published as published_numbers
from lcfbench.analysis.plots.scales import PANELS, Panel, Point, counts, front, joined, positions
from lcfbench.analysis.summary import ALONE, GROUP, SHOWN
from lcfbench.analysis.tables import known, reliable, to_csv
from lcfbench.analysis.verdict import LABELS, SENT
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# inches
WIDE, NARROW, SIDE, GAP = 11.0, 9.0, 0.75, 0.85  # the figure: of several panels, of one; its margins
ROW, ROOM = 4.4, 0.95  # a row of panels, and the part of it that the x axis' names take
TITLE, WRAPPED, LINE = 0.4, 0.25, 0.21  # the heading of a task, its further lines, a line of text under it
LEGEND = 0.24  # a row of the legend
BOLD = 0.115  # width of a letter of a heading
LETTER = 0.083  # width of a letter of that text, on average
CROWD = 6  # with more methods than this a sentence tells of all that have one verdict
SENTENCES = {
    "communicates": "{label} communicates: {facts} ({n})",
    "adapts only": "{label} adapts only, its message adds nothing: {facts} ({n})",
    "misleads": "{label} misleads, its own message does harm: {facts} ({n})",
    "does not communicate": "{label}: nothing is communicated: {facts} ({n})",
    "undecided": "{label}: no communication shown, undecided at {n}: {facts}",
    "untested": "{label}: whether anything is communicated was not tested (no deranged run)",
    "not judged": "{label} is {text}",
}
TOGETHER = {  # of many methods; the numbers are points over another document's message
    "communicates": "Communicate, by so many points over another document's message",
    "adapts only": "Adapt only; points that their own message adds",
    "misleads": "Mislead; points that their own message adds",
    "does not communicate": "Nothing is communicated; points that their own message adds",
    "undecided": "No communication shown, undecided; points that their own message adds",
    "untested": "Not tested (no deranged run)",
    "not judged": "Not judged, too many documents failed",
}
WARNED = ("does not communicate", "adapts only", "misleads", "not judged")


class Block(NamedTuple):
    """One task's part of a figure: lines of its heading, sentences that warn or not, and all its marks."""

    head: list[str]
    said: list[tuple[bool, str]]
    marks: list[dict[str, Any]]


def plot(
    summary: pd.DataFrame, out_dir: Path, published: bool = False, panels: Sequence[Panel] = PANELS
) -> list[Path]:
    """Write `frontier.png` and `frontier.svg` into `out_dir` and return their paths.

    published: also draw published numbers of the same pair and task, hollow and named so. panels: one
    for each x axis. Raises UserError where there is nothing to draw or the folder cannot be written.
    """
    with styled():
        return save(draw(summary, published, panels), out_dir, "frontier")


def data(summary: pd.DataFrame, kind: str, published: bool = False) -> bytes:
    """Returns the numbers of a figure as a file: a row for each mark, published numbers too.

    kind: csv or parquet. `source` is "measured", or where a number was published.
    """
    import io

    import pandas as pd

    columns = ["source", *summary.columns]
    lines = pd.DataFrame(marks_of(summary, published), columns=columns)
    if kind == "csv":
        return to_csv(lines).encode()
    for name in [name for name in columns if lines[name].dtype == object]:  # text, or None
        lines[name] = lines[name].map(lambda value: str(value) if known(value) else None)
    sink = io.BytesIO()
    lines.to_parquet(sink, index=False)
    return sink.getvalue()


def marks_of(summary: pd.DataFrame, published: bool = False) -> list[dict[str, Any]]:
    """Returns the lines of a summary that are drawn, and after those of a task what was published on it.

    Raises UserError where there are none.
    """
    if not len(summary):
        step = "Run something first, or name a folder with runs; `lcfbench ls runs` lists them."
        raise UserError("no runs to plot.", step)
    # no oracles, which have no size; no other controls; no run without documents
    own = summary[summary["control"].isin(SHOWN) & (summary["n"] > 0)]
    if not len(own):
        raise UserError(
            "no matched or deranged run with documents to plot.", "Run with --control matched,deranged."
        )
    found: list[dict[str, Any]] = []
    for (pair, task, scoring), lines in own.groupby(GROUP, sort=False, dropna=False):
        records: list[dict[Any, Any]] = lines.to_dict("records")
        found += [{"source": "measured", **line} for line in records]
        if published:
            named = {"pair": pair, "task": task, "scoring": scoring}
            found += [_as_line(x) | named for x in published_numbers(str(pair), str(task))]
    return found


def draw(summary: pd.DataFrame, published: bool = False, panels: Sequence[Panel] = PANELS) -> Figure:
    """The figure, drawn without pyplot (and so without a display or global state)."""
    marks = [_drawable(line) for line in marks_of(summary, published)]
    blocks: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in marks:
        blocks.setdefault(tuple(line[name] for name in GROUP), []).append(line)
    columns = min(len(panels), 2)
    width = WIDE if columns > 1 else NARROW
    beside = len(panels) % 2 == 1 and columns > 1  # sentences stand where a panel is missing
    cell = (width - SIDE - 0.25 - GAP * (columns - 1)) / columns
    room = int((cell if beside else width - SIDE - 0.25) / LETTER)
    laid = [_block(key, lines, room, int((width - SIDE) / BOLD)) for key, lines in blocks.items()]
    rows = math.ceil(len(panels) / columns)
    words = [0.0 if beside else LINE * len(block.said) for block in laid]
    shapes = _shapes(marks)
    top = 0.12 + LEGEND * math.ceil(len(shapes) / (columns + 1))
    height = top + sum(
        TITLE + WRAPPED * (len(block.head) - 1) + tall + ROW * rows
        for block, tall in zip(laid, words, strict=True)
    )
    figure = canvas((width, height))
    look: dict[str, Any] = {"frameon": False, "fontsize": 10, "columnspacing": 1.4, "labelspacing": 0.35}
    ncols = columns + 1
    figure.legend(handles=shapes, loc="upper left", bbox_to_anchor=(0.02, 1.0), ncols=ncols, **look)
    colours = _colours(marks)
    down = top
    for block, tall in zip(laid, words, strict=True):
        for index, text in enumerate(block.head):
            down += WRAPPED * (index > 0)
            figure.text(SIDE / width, 1 - (down + 0.08) / height, text, weight="bold", size=12.5, va="top")
        down += TITLE
        places = [
            (SIDE + (cell + GAP) * (i % columns), down + tall + ROW * (i // columns))
            for i in range(rows * columns)
        ]
        said_at = places[-1] if beside else (SIDE, down)
        for index, (warns, text) in enumerate(block.said):
            at = said_at[0] / width, 1 - (said_at[1] + LINE * index) / height
            figure.text(*at, text, size=10, va="top", weight="bold" if warns else "normal")
        for index, (panel, (left, upper)) in enumerate(zip(panels, places, strict=False)):
            box = (left / width, 1 - (upper + ROW - ROOM) / height, cell / width, (ROW - ROOM) / height)
            _panel(figure.add_axes(box), panel, block.marks, colours, first=index % columns == 0)
        down += tall + ROW * rows
    return figure


def _block(key: tuple[str, ...], lines: list[dict[str, Any]], room: int, wide: int) -> Block:
    """key: pair, task and scoring. room, wide: letters of a line of text, and of the heading."""
    pair, task, scoring = key
    receiver, _, sharer = pair.partition(":")
    head = f"{task}   ({scoring}; receiver {receiver}" + (f", sharer {sharer})" if sharer else ")")
    said = [
        (verdict in WARNED, part)
        for verdict, text in _sentences([line for line in lines if line["control"] != "published"])
        for part in textwrap.wrap(text, room, subsequent_indent="    ", break_on_hyphens=False)
    ]
    return Block(textwrap.wrap(head, wide), said, lines)


def _colours(marks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Mode → colour; the receiver alone is black."""
    others = sorted({line["mode"] for line in marks} - {ALONE})
    return {ALONE: INK} | {mode: COLOURS[i % len(COLOURS)] for i, mode in enumerate(others)}


def _panel(
    axes: Axes, panel: Panel, marks: list[dict[str, Any]], colours: dict[str, str], first: bool
) -> None:
    points = positions(axes, panel, marks)
    lines = _vertical(axes, marks, first)
    placed = {id(point.line) for point in points}
    notes = [panel.label]
    for control, lacks in (("matched", "not measured"), ("published", "not published")):
        absent = [x["short"] for x in marks if id(x) not in placed and x["control"] == control]
        notes += (
            textwrap.wrap(f"{lacks}: {', '.join(absent)}", 60, break_on_hyphens=False)[:2] if absent else []
        )
    axes.set_xlabel("\n".join(notes), size=10)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_xlabel(panel.label, size=10)
        axes.set_xticks([])
        return
    own = [p for p in points if p.kind == "matched"]
    lines += _front(axes, own)
    for members, pruned in joined(points):
        style = (0, (4, 2)) if members[0].kind == "published" else (0, (3, 1.5)) if pruned else "-"
        lines.append(([p.x for p in members], [p.y for p in members]))
        axes.plot(*lines[-1], ls=style, color=colours[members[0].line["mode"]], lw=1.1, zorder=2)
    for twin in (p for p in points if p.kind == "deranged"):
        for point in (p for p in own if p.line["label"] == twin.line["label"]):
            lines.append(([point.x, twin.x], [point.y, twin.y]))
            axes.plot(*lines[-1], ":", color=colours[point.line["mode"]], lw=1.2, alpha=0.5, zorder=1.5)
    for point in points:
        _mark(axes, point, colours[point.line["mode"]])
    named = {"matched", "published", "failed"}
    labels = [(p.x, p.y, _name(p), colours[p.line["mode"]], p.kind in named) for p in points]
    place(axes, labels, [(p.x, 100 * p.line["low"], 100 * p.line["high"]) for p in points], lines, 10)


def _mark(axes: Axes, point: Point, colour: str) -> None:
    line = point.line
    shape = "s" if line["pruned"] else "o"
    if point.kind == "published":
        axes.plot(point.x, point.y, "D", ms=7.5, mfc="white", mec=colour, mew=1.6, zorder=4)
        return
    own = point.kind == "matched"
    if point.kind == "failed":
        axes.plot(point.x, point.y, "x", ms=9, mec=_mixed(colour, 0.5, 0.3), mew=1.8, zorder=4)
        return
    edge = colour if own else _mixed(colour, 0.5, 0.3)
    span = [[max(0.0, point.y - 100 * line["low"])], [max(0.0, 100 * line["high"] - point.y)]]
    bar: dict[str, Any] = {"ecolor": edge, "elinewidth": 1.4 if own else 0.9, "capsize": 2.5, "zorder": 3}
    axes.errorbar(point.x, point.y, yerr=span, fmt="none", **bar)
    if known(line["seed_sd"]):
        spread = [point.y - 100 * line["seed_sd"], point.y + 100 * line["seed_sd"]]
        axes.plot([point.x] * 2, spread, color=edge, lw=6, alpha=0.3, solid_capstyle="butt", zorder=2.5)
    fill = "white" if not own else colour if counts(line) else _mixed(colour, 0.3, 0.7)
    order, size = (5, 8) if own else (4, 6)
    axes.plot(point.x, point.y, shape, ms=size, mfc=fill, mec=edge, mew=1.5, zorder=order)


def _front(axes: Axes, points: list[Point]) -> list[Line]:
    """The Pareto front: no matched run with a smaller value is as good."""
    if not (corners := front(points, axes.get_xlim()[1])):
        return []
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    axes.plot(xs, ys, color=INK, lw=1.1, alpha=0.55, zorder=1)
    return [(xs, ys)]


def _vertical(axes: Axes, marks: list[dict[str, Any]], first: bool) -> list[Line]:
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


def _sentences(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(verdict, sentence): what the reader must not miss: who communicates and who does not."""
    found = []
    tested = [line for line in lines if line["verdict"] in SENTENCES]
    for line in tested if len(tested) <= CROWD else ():
        control = str(line.get("worst_control"))
        own, other = (
            f"{100 * x:.1f} %"
            for x in (line["matched_score"], line.get("worst_score", line["deranged_score"]))
        )
        with_other = SENT[control] if control in SENT and control != "deranged" else "another document's"
        facts = f"{own} with its own message, {other} with {with_other}"
        words = {"label": line["short"], "n": f"n={line['content_n']:.0f}", "facts": facts}
        words["text"] = line["verdict_text"]
        found.append((line["verdict"], SENTENCES[line["verdict"]].format(**words)))
    if len(tested) > CROWD:
        found += _together(tested)
    for line in lines:
        if line["verdict"] not in SENTENCES and not reliable(line):
            failed = f"{line['errors']:,} of {line['n']:,} documents failed, so its score says little of it"
            found.append(("not judged", f"{_whole_name(line)}: {failed}"))
    return found


def _together(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A sentence for each verdict."""
    found: list[tuple[str, str]] = []
    for verdict in LABELS:
        mine = [line for line in lines if line["verdict"] == verdict]
        names = [line["short"] for line in mine]
        counted: dict[str, list[str]] = {}
        if all(known(line["content"]) for line in mine):
            for line in mine:
                name = f"{line['short']} {100 * line['content']:+.1f}"
                counted.setdefault(f"{line['content_n']:.0f}", []).append(name)
            points = [f"{', '.join(names)} (n={n})" for n, names in counted.items()]
            names = ["; ".join(points)]
        if mine:
            found.append((verdict, f"{TOGETHER[verdict]}: {', '.join(names)}"))
    return found


def _name(point: Point) -> str:
    if point.kind == "failed":
        return f"{_whole_name(point.line)}: failed"
    return f"{point.line['short']}, published" if point.kind == "published" else str(point.line["short"])


def _whole_name(line: dict[str, Any]) -> str:
    return str(line["short"]) + ("" if line["control"] == "matched" else f" ({line['control']})")


def _shapes(marks: list[dict[str, Any]]) -> list[Any]:
    """The legend's entries: of what is drawn."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 8, "color": INK}
    pale = {**dot, "mfc": _mixed(INK, 0.3, 0.7)}
    hollow = {**dot, "ls": ":", "mfc": "white", "color": GREY, "ms": 6}
    own = [line for line in marks if line["control"] == "matched" and reliable(line)]
    shapes = [
        Line2D([], [], **dot, label="matched: its own document's message"),
        Line2D([], [], **hollow, label="deranged: another document's message"),
    ]
    if not all(map(counts, own)):
        shapes.append(Line2D([], [], **pale, label="matched, no communication shown: on no front"))
    shapes.append(Line2D([], [], color=INK, alpha=0.55, lw=1.1, label="Pareto front"))
    shapes.append(Line2D([], [], ls="", marker="|", ms=12, mew=1.4, color=INK, label="95 % interval"))
    if any(known(line["seed_sd"]) for line in own):
        shapes.append(Line2D([], [], color=INK, lw=6, alpha=0.3, label="± standard deviation over seeds"))
    if any(line["pruned"] for line in own):
        shapes.append(
            Line2D(
                [],
                [],
                **{**dot, "marker": "s", "ls": (0, (3, 1.5)), "lw": 1.1},
                label="pruned to fewer layers (9L: 9)",
            )
        )
    if any(known(line.get("chance")) for line in marks):
        shapes.append(Line2D([], [], ls=(0, (4, 3)), color=GREY, label="chance"))
    if not all(map(reliable, marks)):
        shapes.append(Line2D([], [], ls="", marker="x", ms=9, color=GREY, label="many documents failed"))
    if any(line["control"] == "published" for line in marks):
        shapes.append(
            Line2D([], [], **{**dot, "marker": "D", "ms": 7.5, "mfc": "white"}, label="published, not ours")
        )
    return shapes


def _drawable(line: dict[str, Any]) -> dict[str, Any]:
    names = ("pair", "scoring", "label", "metric", "short")
    shown = {name: drawable(line[name]) for name in names if line.get(name) is not None}
    return {**line, **shown, "task": TASKS.join(map(drawable, str(line["task"]).split(TASKS)))}


def _as_line(number: Published) -> dict[str, Any]:
    """A published number in the form of a summary line.

    It has no interval, and no place on an axis its source is silent about.
    """
    line = {**vars(number), "control": "published", "low": number.score, "high": number.score, "verdict": ""}
    line |= {"short": number.label, "series": number.mode, "place": NUMBERS.index(number)}
    line |= {"whole": number.whole or number.label, "pruned": bool(number.whole), "seed_sd": math.nan}
    return {**line, "published_place": "adapter_mb" if number.without_adapter else ""}


def _mixed(colour: str, share: float, white: float) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = (share * part + white for part in to_rgb(colour))
    return red, green, blue
