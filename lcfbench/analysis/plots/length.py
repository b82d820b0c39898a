"""Draws what a longer context costs: score with its interval, and time to answer, over its tokens.

    from lcfbench.analysis.plots.length import plot
    plot(points_of(read_run_groups(paths), Choice(), warnings), Path("results"))

Two panels side by side for each pair, task, scoring and setting; the points of a method are joined in
order of length, both axes of the times are decimal logs. Dashed: the part of a time that is left once the
sharer has read its text. The same points give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.plots.figures import COLOURS, GREY, INK, canvas, drawable, save, styled
from lcfbench.analysis.summary import ALONE, GROUP
from lcfbench.analysis.tables import known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, ROW, TOP, FOOT = 11.0, 4.2, 0.75, 0.75  # inches
LEFT, BETWEEN = 0.75, 0.9
ASIDE = 0.012  # of the axis: the bars of two methods at one length must not hide each other

Line = Mapping[str, Any]


@styled()
def plot(points: Sequence[Line], folder: Path) -> list[Path]:
    """Writes `length.png` and `length.svg` into a folder; returns their paths. Raises UserError."""
    return save(draw(points), folder, "length")


def panels(points: Sequence[Line]) -> dict[str, list[Line]]:
    """The points of each pair, task, scoring and setting, under a title that says them."""
    found: dict[str, list[Line]] = {}
    for line in points:
        pair, task, scoring = (str(line[name]) for name in GROUP)
        receiver, _, sharer = pair.partition(":")
        title = f"{task} ({scoring}): receiver {receiver}" + (f", sharer {sharer}" if sharer else "")
        title += f"; {line['setting']}" if line["setting"] else ""
        found.setdefault(title, []).append(line)
    return found


def draw(points: Sequence[Line]) -> Figure:
    """Returns the figure."""
    modes = dict.fromkeys(str(line["method"]) for line in points)
    others = [name for name in modes if name != ALONE]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)} | {ALONE: INK}
    found = panels(points)
    height = (ROW + TOP) * len(found)
    figure = canvas((WIDE, height))
    width = (WIDE - 2 * LEFT - BETWEEN) / 2
    for index, (title, lines) in enumerate(found.items()):
        bottom = height - (ROW + TOP) * index - TOP - ROW + FOOT
        boxes = [(LEFT + k * (width + BETWEEN), bottom, width, ROW - FOOT) for k in range(2)]
        left, right = (figure.add_axes((x / WIDE, y / height, w / WIDE, h / height)) for x, y, w, h in boxes)
        figure.text(LEFT / WIDE, (bottom + ROW - FOOT + 0.25) / height, _title(title), size=12, weight="bold")
        _scores(left, lines, colours)
        _times(right, lines, colours)
        right.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=9, loc="best")
    return figure


def _title(title: str) -> str:
    """A title in the glyphs of the font; names are cut, the title is not."""
    return " ".join(drawable(word) for word in title.split(" "))


def count(lines: Sequence[Line]) -> str:
    """How many documents stand behind the points: `n=8 to 32`."""
    counts = sorted({int(line["documents"]) for line in lines})
    return f"n={counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")


def _by_method(lines: Sequence[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(str(line["method"]), []).append(line)
    return found


def _look(axes: Axes, lines: Sequence[Line], label: str) -> tuple[float, float]:
    """A log axis of tokens with ticks at the lengths that were measured; returns its ends as logs."""
    lengths = sorted({float(line["tokens"]) for line in lines})
    low, high = math.log10(lengths[0]), math.log10(lengths[-1])
    margin = max(0.06 * (high - low), 0.1)
    axes.set_xlim(low - margin, high + margin)
    kept: list[float] = []
    for tokens in lengths:  # one that stands on the name of another has none
        if not kept or math.log10(tokens / kept[-1]) > 0.09 * (high - low + 2 * margin):
            kept.append(tokens)
    axes.set_xticks([math.log10(tokens) for tokens in kept], [f"{tokens:,.0f}" for tokens in kept])
    axes.yaxis.grid(True, color="#ececec", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("tokens of the sharer's context (median)", size=10)
    axes.set_ylabel(label)
    return low - margin, high + margin


def _scores(axes: Axes, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    left, right = _look(axes, lines, f"{drawable(lines[0]['metric'])}, %, with 95 %")
    methods = _by_method(lines)
    for index, (name, own) in enumerate(methods.items()):
        aside = (index - (len(methods) - 1) / 2) * ASIDE * (right - left)
        xs = [math.log10(line["tokens"]) + aside for line in own]
        ys = [100 * line["score"] for line in own]
        spans = [
            [max(0.0, y - 100 * line["low"]) for y, line in zip(ys, own, strict=True)],
            [max(0.0, 100 * line["high"] - y) for y, line in zip(ys, own, strict=True)],
        ]
        look: dict[str, Any] = {"ms": 5.5, "lw": 1.4, "elinewidth": 1.1, "capsize": 2, "zorder": 3}
        axes.errorbar(xs, ys, yerr=spans, fmt="o-", color=colours[name], label=drawable(name), **look)
    if known(chance := lines[0]["chance"]):
        axes.axhline(100 * chance, color=GREY, ls=(0, (4, 3)), lw=1, zorder=0)
    axes.set_title(
        f"{count(lines)}; matched" + ("; dashed: guessing" if known(chance) else ""), loc="left", size=9
    )
    axes.set_ylim(0, 102)


def _times(axes: Axes, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    _look(axes, lines, "time to the end of the answer, s")
    timed = [line for line in lines if known(line["ttea_ms"]) and line["ttea_ms"] > 0]
    dashed = False
    for name, own in _by_method(timed).items():
        xs = [math.log10(line["tokens"]) for line in own]
        ys = [line["ttea_ms"] / 1000 for line in own]
        axes.plot(xs, ys, "o-", color=colours[name], ms=5.5, lw=1.4)
        after = [line["after_ms"] / 1000 for line in own]
        if own[0]["sends"] and all(known(y) and y > 0 for y in after):
            hollow: dict[str, Any] = {"mfc": "white", "ms": 5, "lw": 1.2}
            axes.plot(xs, after, "o", ls=(0, (3, 2)), color=colours[name], **hollow)
            dashed = True
    if not timed:
        axes.set_title("no document was timed alone", loc="left", size=9)
        axes.set_yticks([])
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    counts = sorted({int(line["ttea_n"]) for line in timed})
    of = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    head = f"alone, warm, median of {of}" + "; dashed: once the sharer has read" * dashed
    axes.set_title(head, loc="left", size=9)
