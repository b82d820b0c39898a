"""Places labels beside their points: the cheapest of a ring of places round each.

place(axes, [(x, y, "lcf", "#0072B2", True)], bars=[(x, low, high)])
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Label = tuple[float, float, str, str, bool]  # x, y, text, colour, shown
Line = tuple[list[float], list[float]]  # corners, xs and ys
ANGLES = (0, 40, -40, 180, 140, -140, 90, -90, 65, -65, 115, -115)  # degrees; the right is preferred
RADII = (9, 14, 21, 30, 42, 56, 72, 90)  # points
PLACES = [(radius, angle) for radius in RADII for angle in ANGLES]
COSTS = [radius + 0.4 * ANGLES.index(angle) for radius, angle in PLACES]  # near is better, and the right is
FAR = 21  # from here on a thin line leads back to the point


def place(
    axes: Axes,
    labels: list[Label],
    bars: list[tuple[float, float, float]],
    lines: list[Line],
    size: float = 10.5,
) -> None:
    """Annotate every shown label.

    Marks of all labels, their vertical error bars (x, low, high) and other labels are kept free;
    lines where it costs little.
    """
    import numpy as np
    from matplotlib.patheffects import withStroke

    scale = axes.figure.dpi / 72  # pixels a point
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    dots = [axes.transData.transform((x, y)) for x, y, *_ in labels]
    taken = [(px - 6 * scale, py - 6 * scale, px + 6 * scale, py + 6 * scale) for px, py in dots]
    for x, low, high in bars:
        (px, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
        taken.append((px - 3 * scale, bottom, px + 3 * scale, top))
    inked = np.concatenate(
        [np.empty((0, 2)), *(_dotted(axes.transData.transform(np.column_stack(line))) for line in lines)]
    )
    for (x, y, text, colour, shown), (px, py) in zip(labels, dots, strict=True):
        if not shown:
            continue
        look: dict[str, Any] = {"size": size, "color": colour, "zorder": 6, "gid": "label"}
        note = axes.annotate(text, (x, y), textcoords="offset points", xytext=(0, 0), **look)
        note.set_path_effects([withStroke(linewidth=3, foreground="white")])
        extent = note.get_window_extent(renderer)
        boxes = np.array(
            [_box(px, py, radius * scale, angle, extent.width, extent.height) for radius, angle in PLACES]
        )
        free = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        outside = free[0] * free[1] - _shared(boxes, np.array([frame.extents]))[:, 0]
        covered = _shared(boxes, np.array(taken)).sum(1)
        inside = ((inked[None] > boxes[:, None, :2]) & (inked[None] < boxes[:, None, 2:])).all(2).sum(1)
        chosen = int(np.argmin(100 * covered + 100 * outside + 1.5 * inside + COSTS))
        box, radius = boxes[chosen], PLACES[chosen][0]
        taken.append(tuple(box))
        note.set_position(((box[0] + 2 - px) / scale, (box[1] + 2 - py) / scale))
        note.set_horizontalalignment("left")
        note.set_verticalalignment("bottom")
        if radius >= FAR:
            near = min(max(px, box[0]), box[2]) - px, min(max(py, box[1]), box[3]) - py
            arrow = {"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 5}
            where = near[0] / scale, near[1] / scale
            axes.annotate("", (x, y), textcoords="offset points", xytext=where, arrowprops=arrow)


def _dotted(corners: np.ndarray) -> np.ndarray:
    """A polyline as points about 4 pixels apart."""
    import numpy as np

    parts = []
    for start, end in itertools.pairwise(corners):
        steps = max(2, int(np.hypot(*(end - start)) / 4))
        parts.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(parts)


def _box(
    px: float, py: float, distance: float, angle: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """Returns a label's box in pixels, `distance` from its mark at `angle`, with a margin of 2."""
    dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
    left = px + dx - (0 if abs(angle) < 80 else width / 2 if abs(angle) <= 100 else width)
    bottom = py + dy - (height / 2 if abs(angle) in (0, 180) else 0 if angle > 0 else height)
    return left - 2, bottom - 2, left + width + 2, bottom + height + 2


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns (n, m) areas that each of n boxes shares with each of m others, pixels."""
    import numpy as np

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0.0, None).prod(2)
