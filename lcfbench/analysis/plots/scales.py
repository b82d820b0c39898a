"""The frontier's x axes: decimal-log scales, and a place left of a break for missing values.

axis = lay_out(PANELS[0], lines)             # where everything goes
points = positions(axes, PANELS[0], lines)   # the same on matplotlib's axes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.tables import reliable
from lcfbench.errors import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One x axis: summary column, label, and the name of the place for points without a value."""

    column: str
    label: str
    without: str | None


AXES = {
    "adapter": Panel("adapter_mb", "adapter size, MB", "no\nadapter"),
    "latency": Panel("ttft_ms", "time to first answer token, ms (median)", None),
    "bytes": Panel("message_bytes", "message, bytes (median)", "no\nmessage"),
    "flops": Panel("flops", "operations a document, estimated FLOPs (median)", None),
}
PANELS = tuple(AXES[name] for name in ("adapter", "latency", "bytes"))


def panels_of(names: Sequence[str]) -> tuple[Panel, ...]:
    """Returns the panels of these names of `AXES`, each once; of none the usual three. Raises UserError."""
    for name in names:
        if name not in AXES:
            raise unknown("axis", name, AXES, "lcfbench plot frontier --help")
    return tuple(AXES[name] for name in dict.fromkeys(names)) or PANELS


@dataclass
class Point:
    """One mark: its summary line (or a published number in that form) and its place."""

    line: dict[Any, Any]
    value: float  # log10, -inf without a value
    kind: str  # matched, deranged, other, published; failed: the score says little of the method
    x: float = 0.0

    @property
    def y(self) -> float:
        return 100 * float(self.line["score"])


@dataclass(frozen=True)
class Axis:
    """Places of marks and ticks. edge: where the axis is broken, None where all have a value."""

    points: list[Point]
    left: float
    right: float
    ticks: list[float]
    names: list[str]
    edge: float | None
    span: float


def lay_out(panel: Panel, marks: Sequence[dict[Any, Any]]) -> Axis | None:
    """Points on a decimal-log axis; those without a value stand side by side left of a break.

    None where there is nothing to show.
    """
    known: list[Point] = []
    absent: list[Point] = []
    for line in marks:
        value = line.get(panel.column)
        kind = line["control"] if line["control"] in ("matched", "deranged", "published") else "other"
        kind = kind if reliable(line) else "failed"
        if value is not None and value > 0:
            known.append(Point(line, math.log10(value), kind, math.log10(value)))
        elif panel.without and line.get("published_place", panel.column) == panel.column:
            absent.append(Point(line, -math.inf, kind))
    if not known and not absent:
        return None
    low, high = min((p.x for p in known), default=0.0), max((p.x for p in known), default=0.0)
    if (short := 0.7 - (high - low)) > 0:
        low, high = low - short / 2, high + short / 2
    span = high - low
    step = 0.10 * span
    for point in known:
        point.x += 0.018 * span if point.kind != "matched" else 0.0  # a twin at the same x must not hide
    edge = low - 0.15 * span
    left = _side_by_side(absent, edge, step)
    ticks = _ticks(low - 0.04 * span, high + 0.2 * span) if known else []
    names = [_short(10**tick) for tick in ticks]
    if absent:
        ticks, names = [sum(p.x for p in absent) / len(absent), *ticks], [panel.without or "", *names]
    return Axis(known + absent, left, high + 0.22 * span, ticks, names, edge if absent else None, span)


def _side_by_side(absent: Sequence[Point], edge: float, step: float) -> float:
    """Sets the places of points without a value, left of the break; returns the axis' left end.

    The points of one series stand nearer to each other; a deranged one stands beside its matched one.
    """
    if not absent:
        return edge
    own = [point for point in absent if point.kind != "deranged"]
    at: dict[tuple[Any, Any], float] = {}
    x, series = edge - 0.2 * step, None
    for point in reversed(own or absent):
        x -= step * (0.55 if series is not None and point.line.get("series") == series else 1)
        series = point.line.get("series")
        point.x = at[point.line["mode"], point.line["label"]] = x
    for point in absent if own else ():
        if point.kind == "deranged":
            twin = at.get((point.line["mode"], point.line["label"]))
            x = x - step if twin is None else x
            point.x = x if twin is None else twin + 0.2 * step
    return x - 1.2 * step


def positions(axes: Axes, panel: Panel, marks: list[dict[Any, Any]]) -> list[Point]:
    """As `lay_out`; sets limits and ticks and draws the break."""
    axis = lay_out(panel, marks)
    if axis is None:
        return []
    axes.set_xlim(axis.left, axis.right)
    if axis.edge is not None:
        for shift in (-0.013, 0.013):  # the axis is broken here
            x, lean = axis.edge + shift * axis.span, 0.008 * axis.span
            across = axes.get_xaxis_transform()
            axes.plot(
                [x - lean, x + lean], [-0.02, 0.02], transform=across, color="#222222", clip_on=False, lw=1.0
            )
    axes.set_xticks(axis.ticks, axis.names)
    return axis.points


def front(points: Sequence[Point], right: float) -> list[tuple[float, float]]:
    """Returns the corners of the Pareto front up to `right`: no smaller value is as good.

    A method that sends something counts where it communicates: one that only adapts is on no front.
    """
    best: list[Point] = []
    counted = [point for point in points if counts(point.line)]
    for point in sorted(counted, key=lambda p: (p.value, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    if not best:
        return []
    corners = [(best[0].x, best[0].y)]
    for point in best[1:]:
        corners += [(point.x, corners[-1][1]), (point.x, point.y)]
    return [*corners, (right, best[-1].y)]


def counts(line: Mapping[Any, Any]) -> bool:
    """Returns whether a matched line communicates, or sends nothing."""
    return line.get("verdict", "") in ("", "communicates")


def joined(points: Sequence[Point]) -> list[tuple[list[Point], bool]]:
    """Returns the lines of families: the points of each, and whether it leads to pruned ones.

    Whole ones in order of size or budget; then from each whole one to its pruned ones.
    """
    own = [point for point in points if point.kind in ("matched", "published") and point.line.get("series")]
    own.sort(key=lambda point: (point.line["place"], point.y))
    lines: dict[tuple[str, ...], list[Point]] = {}
    for point in (point for point in own if not point.line["pruned"]):
        lines.setdefault((point.kind, point.line["series"]), []).append(point)
    for point in (point for point in reversed(own) if point.line["pruned"]):
        series, name = (point.kind, point.line["series"]), point.line["whole"]
        whole = [p for p in lines.get(series, []) if p.line["whole"] == name]
        lines.setdefault((*series, name), whole[:1]).append(point)
    return [(found, len(key) > 2) for key, found in lines.items() if len(found) > 1]


def _ticks(low: float, high: float) -> list[float]:
    """Decimal-log tick positions: 1, 2, 5 a decade; decades alone where that would crowd."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [d + math.log10(s) for d in range(math.floor(low), math.ceil(high) + 1) for s in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= 6:
            break
    return found


def _short(value: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.999:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
