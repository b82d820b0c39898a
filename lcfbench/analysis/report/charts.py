"""The report's figures as SVG in the page's own colours and fonts.

panel(PANELS[0], lines, classes={"lcf": "s1"})

Geometry only; colours are classes of page.css, so that light and dark need no second figure. A
panel is as wide as a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from lcfbench.analysis.plots.labels import ANGLES, RADII
from lcfbench.analysis.plots.scales import Panel, Point, front, joined, lay_out
from lcfbench.analysis.report.entries import known, plain
from lcfbench.analysis.report.layers import Heat

WIDE, HIGH = 372, 300  # of a panel, pixels
LEFT, RIGHT, TOP, FOOT = 38, 8, 10, 46  # its margins
GLYPH, TALL = 7.4, 14  # pixels a character and a line of 12px text take at most, on average over a label
DOT = '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4.5"/>'
CROSS = '<path class="dot" d="M{:.1f} {:.1f}m-4.5-4.5l9 9m0-9l-9 9"/>'  # many documents failed
NAME = 24  # characters of a label that are drawn; the legend has all


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


def panel(chosen: Panel, lines: Sequence[dict[Any, Any]], classes: Mapping[str, str], title: str) -> Markup:
    """Score against one quantity: matched filled, deranged hollow, the Pareto front as a step.

    classes: label → class of its colour.
    """
    axis = lay_out(chosen, lines)
    parts = [Markup("<title>{}</title>").format(title)]
    if axis is None:
        parts.append(_text("absent", (LEFT + WIDE - RIGHT) / 2, HIGH / 2 - 18, "not measured"))
        return _svg(parts + _name(chosen), title)
    low, high, chance = _limits(lines)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - axis.left) / (axis.right - axis.left)
        up = (y - low) / (high - low)
        return LEFT + across * (WIDE - LEFT - RIGHT), HIGH - FOOT - up * (HIGH - FOOT - TOP)

    for tick in _steps(low, high):
        _, y = at(axis.left, tick)
        parts.append(_line("grid", LEFT, WIDE - RIGHT, y, y))
        parts.append(_text("tick end", LEFT - 6, y + 4, plain(tick)))
    drawn: list[Box] = []  # lines that names had better not cover
    if chance is not None:
        _, y = at(axis.left, chance)
        drawn.append(Box(LEFT, y - 1, WIDE, y + 1))
        parts.append(_line("chance", LEFT, WIDE - RIGHT, y, y))
    for x, name in zip(axis.ticks, axis.names, strict=True):
        px = at(x, low)[0]
        for index, word in enumerate(name.split("\n")):
            parts.append(_text("tick mid", px, HIGH - FOOT + 15 + 11 * index, word))
    parts += _floor(at(axis.edge, low)[0] if axis.edge is not None else None) + _name(chosen)
    own = [point for point in axis.points if point.kind == "matched"]
    if corners := front(own, axis.right):
        ends = list(itertools.starmap(at, corners))
        drawn += [
            Box(min(a, c), min(b, d) - 1, max(a, c), max(b, d) + 1)
            for (a, b), (c, d) in itertools.pairwise(ends)
        ]
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in ends)
        parts.append(Markup('<polyline class="front" points="{}"/>').format(way))
    for members, pruned in joined(axis.points):
        ends = [at(point.x, point.y) for point in members]
        drawn += [
            Box(x - 2, y - 2, x + 2, y + 2)
            for one, two in itertools.pairwise(ends)
            for x, y in _dotted(*one, *two)
        ]
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in ends)
        kind = f"family{' pruned' if pruned else ''} {classes[str(members[0].line['label'])]}"
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, way))
    twins = {point.line["label"]: point for point in axis.points if point.kind == "deranged"}
    for point in own:
        if twin := twins.get(point.line["label"]):
            (x1, y1), (x2, y2) = at(point.x, point.y), at(twin.x, twin.y)
            drawn += [Box(x - 2, y - 2, x + 2, y + 2) for x, y in _dotted(x1, y1, x2, y2)]
            parts.append(_line(f"twin {classes[str(point.line['label'])]}", x1, x2, y1, y2))
    taken, dots = [], {}
    for point in sorted(axis.points, key=lambda p: p.kind == "matched"):
        px, py = dots[id(point)] = at(point.x, point.y)
        bar = Box(px, at(0, 100 * point.line["high"])[1], px, at(0, 100 * point.line["low"])[1])
        taken += [Box(px - 6, py - 6, px + 6, py + 6), Box(px - 3, bar.y0, px + 3, bar.y1)]
        parts.append(_mark(point, px, py, bar, classes[str(point.line["label"])]))
    parts += _labels(
        [
            (str(point.line["short"]), *dots[id(point)])
            for point in axis.points
            if point.kind in ("matched", "failed")
        ],
        taken,
        drawn,
    )
    return _svg(parts, title)


def strip(heat: Heat) -> Markup:
    """A square a layer, darker for larger values; numbers below, as many as can be read."""
    count = max(len(row.values) for row in heat.strips)
    left, row_high, top = 86, 24, 4
    size = (WIDE - left - 4) / count
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * size >= 19)
    parts = [Markup("<title>{}</title>").format(heat.said)]
    for index, row in enumerate(heat.strips):
        y = top + index * (row_high + 5)
        parts.append(_text("tick end", left - 6, y + row_high / 2 + 4, row.name))
        for layer, value in enumerate(row.values):
            where = (left + layer * size, y, max(size - 1, 1), row_high)
            if value is None:
                none = '<rect class="none" x="{:.2f}" y="{}" width="{:.2f}" height="{}"/>'
                parts.append(Markup(none).format(*where))
                continue
            dark = max(0.0, min(1.0, value / row.most))
            said = f"layer {layer}, {row.name} {plain(value, 2)}"
            rect = (
                '<rect class="heat" x="{:.2f}" y="{}" width="{:.2f}" height="{}" fill-opacity="{:.3f}">'
                "<title>{}</title></rect>"
            )
            parts.append(Markup(rect).format(*where, 0.04 + 0.96 * dark, said))
    y = top + len(heat.strips) * (row_high + 5)
    for layer in range(count):
        middle = left + (layer + 0.5) * size
        if layer in heat.marked:
            parts.append(Markup('<path class="sign" d="M{:.1f} {}l3.5 6h-7z"/>').format(middle, y))
        if layer % every == 0:
            parts.append(_text("tick mid", middle, y + 19, layer))
    parts.append(_text("tick end", left - 6, y + 19, "layer"))
    return _svg(parts, heat.said, y + 24)


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    line = '<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
    return Markup(line).format(kind, x1, x2, y1, y2)


def _text(kind: str, x: float, y: float, text: object) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def _svg(parts: Sequence[Markup], label: str, high: float = HIGH) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(
        WIDE, high, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _mark(point: Point, px: float, py: float, bar: Box, colour: str) -> Markup:
    line = point.line
    interval = f"[{100 * line['low']:.1f}, {100 * line['high']:.1f}]"
    said = f"{line['label']}, {line['control']}: {point.y:.1f} % {interval}"
    if failed := point.kind == "failed":
        said += f"; {line['errors']:,} of {line['n']:,} documents failed"
    dot = Markup(CROSS if failed else DOT).format(px, py)
    return Markup(
        '<g class="{} {}"><title>{}</title>'
        '<line class="bar" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
        "{}</g>"
    ).format("own" if point.kind == "matched" else "other", colour, said, px, px, bar.y0, bar.y1, dot)


def _labels(names: Sequence[tuple[str, float, float]], taken: list[Box], lines: list[Box]) -> list[Markup]:
    """Places names beside their points, over no mark; one without room is left to the legend."""
    frame = Box(LEFT, TOP - 6, WIDE - 2, HIGH - FOOT)
    parts = []
    for full, px, py in names:
        name = full if len(full) <= NAME else full[: NAME - 1] + "…"
        width = GLYPH * len(name)
        for drawn, radius, angle in itertools.product(
            (lines, []), RADII, ANGLES
        ):  # over a line only where nothing else is free
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            left = px + dx - (0 if abs(angle) < 80 else width / 2 if abs(angle) <= 100 else width)
            top = py - dy - (TALL / 2 if abs(angle) in (0, 180) else TALL if angle > 0 else 0)
            box = Box(left, top, left + width, top + TALL)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.meets(other) for other in itertools.chain(taken, drawn)):
                break
        else:
            continue
        taken.append(box)
        side = "mid" if 80 <= abs(angle) <= 100 else "end" if abs(angle) > 100 else ""
        x = (box.x0 + box.x1) / 2 if side == "mid" else box.x1 if side == "end" else box.x0
        if radius > RADII[1]:
            ends = (px, min(max(px, box.x0), box.x1), py, min(max(py, box.y0), box.y1))
            parts.append(_line("lead", *ends))
        parts.append(_text(f"label {side}", x, box.y0 + 11, name))
    return parts


def _dotted(x1: float, y1: float, x2: float, y2: float) -> list[tuple[float, float]]:
    """Points of a line, about 5 pixels apart."""
    steps = max(1, round(math.hypot(x2 - x1, y2 - y1) / 5))
    return [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1)]


def _floor(broken: float | None) -> list[Markup]:
    """The x axis, and where it is broken."""
    y = HIGH - FOOT
    signs = [] if broken is None else [broken - 2, broken + 2]
    across = _line("axis", LEFT, WIDE - RIGHT, y, y)
    return [across, *(_line("axis", x - 2, x + 2, y + 5, y - 5) for x in signs)]


def _name(chosen: Panel) -> list[Markup]:
    return [_text("name mid", (LEFT + WIDE - RIGHT) / 2, HIGH - 6, chosen.label)]


def _limits(lines: Sequence[dict[Any, Any]]) -> tuple[float, float, float | None]:
    """Ends of the score axis, %, and chance."""
    low, high = min(100 * line["low"] for line in lines), max(100 * line["high"] for line in lines)
    chance = next((100 * line["chance"] for line in lines if known(line.get("chance"))), None)
    if chance is not None:
        low, high = min(low, chance), max(high, chance)
    pad = max(2.0, 0.09 * (high - low))
    return low - pad, high + pad, chance


def _steps(low: float, high: float) -> list[float]:
    """Round numbers between, four to seven of them."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 25, 50) if (high - low) / step <= 7)
    return [step * i for i in range(math.ceil(max(low, 0) / step), math.floor(min(high, 100) / step) + 1)]
