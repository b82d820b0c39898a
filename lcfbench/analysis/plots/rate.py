"""Draws what a message is worth against its size: content P with its interval over bytes.

    from lcfbench.analysis.plots.rate import plot, points_of
    plot(points_of(summarise(read_run_groups(paths).groups)), Path("results"))

P is that of the verdict, paired over documents: points that a document's own message adds over another
one's, or over zeros, noise or none where that scores better. The points of one method are joined in order
of bytes. Where points say what they keep of a whole message (kept.py), two thin lines bound what was aimed
at: above the one, left of the other. The same points give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.plots.figures import COLOURS, GREY, canvas, drawable, save, styled
from lcfbench.analysis.plots.labels import Line, place
from lcfbench.analysis.plots.scales import AXES, lay_out
from lcfbench.analysis.summary import GROUP
from lcfbench.analysis.tables import known
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, ROW, TOP, LEFT, FOOT = 9.0, 4.6, 0.5, 0.8, 0.65  # inches
LABELLED = 14  # with more points only methods are named, in the legend
NAMED = 28  # characters of a point's name
WIRE = re.compile(r"\bwire=(\S+)")  # in a label: the form in which messages crossed
MADE = "`lcfbench plot rate RUNS --data NAME.csv` makes one."
WORD = re.compile(r"\b(?!wire=)\w+=([A-Za-z]\S*)")  # in a label: a setting that is no number
DASHES = ("-", "--", ":", "-.")  # of a method's wire forms, in turn
# of a file of points: those of the summary, then what is kept of a whole message (kept.py)
SUMMARY = (
    *GROUP,
    *"mode label control n metric score low high message_bytes".split(),
    *"content content_low content_high content_n matched_score deranged_score".split(),
)
KEPT = tuple("kept_of of_bytes whole_content of_content above above_low above_high reached".split())
COLUMNS = (*SUMMARY, *KEPT, "share", "share_of_bytes")
NUMBERS = ("message_bytes", "content", "content_low", "content_high", "content_n")  # every point has them


@styled()
def plot(points: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes `rate.png` and `rate.svg` into a folder; returns their paths."""
    return save(draw(points), folder, "rate")


def key(point: dict[str, Any]) -> tuple[str, ...]:
    """What tells a point from others: pair, task, scoring, label."""
    return tuple(str(point[name]) for name in (*GROUP, "label"))


def in_order(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By pair, task and scoring, in order of bytes."""
    return sorted(points, key=lambda point: (*(str(point[g]) for g in GROUP), point["message_bytes"]))


def points_of(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the matched lines that sent a message and have a deranged run, in order of bytes.

    Raises UserError where there are none.
    """
    records: list[dict[Any, Any]] = summary.to_dict("records")
    found = [
        line
        for line in records
        if line["control"] == "matched" and known(line["content"]) and (line["message_bytes"] or 0) > 0
    ]
    if not found:
        raise _lacking(records)
    return in_order(found)


def _lacking(lines: Sequence[dict[str, Any]]) -> UserError:
    """What is missing for a point, where no line of a summary is one."""
    matched = [line for line in lines if line["control"] == "matched"]
    sized = [line for line in matched if (line["message_bytes"] or 0) > 0]
    if judged := [line["label"] for line in matched if known(line["content"])]:
        names = ", ".join(dict.fromkeys(judged))
        what = f"no message of {names} has a size: message_bytes is 0 or not recorded."
        return UserError(what, "Bytes stand on a log axis; --wire native counts those that cross.")
    places = {(*(line[g] for g in GROUP), line["mode"]) for line in lines if line["control"] == "deranged"}
    if beside := [x["label"] for x in sized if (*(x[g] for g in GROUP), x["mode"]) in places]:
        names = ", ".join(dict.fromkeys(beside))
        what = (
            f"{names}: the deranged run has other settings than the matched one, other documents, or failed."
        )
        return UserError(what, "`lcfbench verdict` on the same folders says which.")
    what = "no run with a message and a deranged run to compare it with."
    return UserError(what, "Run methods that send one with --control matched,deranged.")


def read(path: Path, task: str = "", pair: str = "") -> list[dict[str, Any]]:
    """Returns the points that a figure wrote into a .csv, those of a task and pair where one is named.

    Raises UserError where the file is none of a figure, or has no such points.
    """
    import pandas as pd

    text = dict.fromkeys((*GROUP, "mode", "label", "control", "metric", "kept_of", "reached"), str)
    try:
        lines = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={n: [""] for n in COLUMNS})
        for name in (*NUMBERS, "share", "share_of_bytes"):
            lines[name] = lines[name].astype(float)
        missing = [name for name in COLUMNS if name not in lines]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as the numbers of a figure.", MADE) from error
    named = not missing and bool(lines[[*GROUP, "mode", "label", "control"]].notna().all(axis=None))
    whole = named and bool((lines[list(NUMBERS)].abs() < math.inf).all(axis=None))
    if not len(lines) or not whole or not (lines["message_bytes"] > 0).all():
        raise UserError(f"{path} does not hold the numbers of a figure.", MADE)
    records: list[dict[Any, Any]] = lines.to_dict("records")
    found = [x for x in records if task in ("", x["task"]) and pair in ("", x["pair"])]
    if not found:
        asked = " and ".join(name for name in (task, pair) if name)
        raise UserError(f"{path} has no points of {asked}.", "Leave --task and --pair out, or name others.")
    return in_order(found)


def draw(points: Sequence[dict[str, Any]]) -> Figure:
    """Returns the figure: a panel for each pair, task and scoring."""
    modes = sorted({line["mode"] for line in points})
    colours = {mode: COLOURS[i % len(COLOURS)] for i, mode in enumerate(modes)}
    panels: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in points:
        panels.setdefault(tuple(str(line[name]) for name in GROUP), []).append(line)
    height = (ROW + TOP) * len(panels)
    figure = canvas((WIDE, height))
    for index, (group, lines) in enumerate(panels.items()):
        top = height - (ROW + TOP) * index
        box = (LEFT / WIDE, (top - TOP - ROW + FOOT) / height, 1 - 1.0 / WIDE, (ROW - FOOT) / height)
        axes = figure.add_axes(box)
        pair, task, scoring = map(drawable, group)
        receiver, _, sharer = pair.partition(":")
        head = f"{task}   ({scoring}; receiver {receiver}" + (f", sharer {sharer})" if sharer else ")")
        axes.set_title(head, loc="left", size=12, weight="bold")
        _panel(axes, lines, colours)
    return figure


def _joined(lines: list[dict[str, Any]]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Returns the points that a line joins: the method, the name in the legend, the dash, the points.

    Settings that are words (a selector, a request) tell lines apart, those that are numbers are points of
    one. Several wire forms are one line where the form is all that varies; with other sizes beside it each
    form has its own, for the sizes of two forms cross.
    """
    found = []
    for mode in dict.fromkeys(line["mode"] for line in lines):
        lined: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for kind, own in _by_word(line for line in lines if line["mode"] == mode).items():
            wires: dict[str, list[dict[str, Any]]] = {}
            for line in own:
                wire = WIRE.search(line["label"])
                wires.setdefault(wire[1] if wire else "", []).append(line)
            if len(wires) == 1 or all(len(points) == 1 for points in wires.values()):
                lined[kind] = own
            else:
                lined |= {(*kind, form): points for form, points in wires.items()}
        for number, (words, points) in enumerate(lined.items()):
            found.append((mode, " ".join((mode, *words)).rstrip(), DASHES[number % len(DASHES)], points))
    return found


def _by_word(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The points by the settings in their labels that are words, wire forms left out."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(tuple(WORD.findall(line["label"])), []).append(line)
    return found


def _panel(axes: Axes, lines: list[dict[str, Any]], colours: dict[str, str]) -> None:
    axis = lay_out(AXES["bytes"], lines)
    assert axis is not None, "every line has a size"
    axes.set_xlim(axis.left, axis.right)
    axes.set_xticks(axis.ticks, axis.names)
    axes.axhline(0, color=GREY, ls=(0, (4, 3)), lw=1, zorder=0)
    axes.yaxis.grid(True, color="#ececec", lw=0.8)
    axes.set_axisbelow(True)
    aimed = ""
    for line in [line for line in lines if line["label"] == line.get("kept_of")][:1]:
        aimed = (
            f"; lines: {100 * line['share']:.3g} % of P and {100 * line['share_of_bytes']:.3g} % of the bytes"
        )
        aimed += f" of {drawable(line['mode'])}"
        axes.axhline(100 * line["share"] * line["content"], color=GREY, lw=0.9, zorder=1)
        axes.axvline(math.log10(line["share_of_bytes"] * line["message_bytes"]), color=GREY, lw=0.9, zorder=1)
    named: list[tuple[float, float, str, Any, bool]] = []
    bars: list[tuple[float, float, float]] = []
    drawn: list[Line] = []
    for mode, form, dash, own in _joined(lines):
        xs = [math.log10(line["message_bytes"]) for line in own]
        ys = [100 * line["content"] for line in own]
        spans = [
            [y - 100 * line["content_low"] for y, line in zip(ys, own, strict=True)],
            [100 * line["content_high"] - y for y, line in zip(ys, own, strict=True)],
        ]
        look: dict[str, Any] = {"ms": 7, "lw": 1.2, "elinewidth": 1.3, "capsize": 2.5, "zorder": 3}
        axes.errorbar(xs, ys, yerr=spans, fmt="o", ls=dash, color=colours[mode], label=drawable(form), **look)
        drawn += [(xs, ys)] if len(xs) > 1 else []
        for x, y, (below, above), line in zip(xs, ys, zip(*spans, strict=True), own, strict=True):
            bars.append((x, y - below, y + above))
            if len(lines) <= LABELLED and len(own) > 1:
                text = drawable(line["label"]).removeprefix(f"{drawable(mode)} ")[:NAMED]
                named.append((x, y, text, colours[mode], True))
    axes.set_ylim(axes.get_ylim())  # the limits are settled before names are placed
    place(axes, named, bars, drawn, 9)
    count = sorted({int(line["content_n"]) for line in lines})
    of = f"n={count[0]:,}" if len(count) == 1 else f"n={count[0]:,} to {count[-1]:,}"
    axes.set_xlabel(f"{AXES['bytes'].label}; bars: 95 % intervals, {of}{aimed}", size=10)
    axes.set_ylabel("content P, points")
    axes.legend(frameon=False, fontsize=10, loc="best")
