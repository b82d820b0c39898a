"""Direct labels that overlap neither each other nor the marks: the cheapest of a ring of places round each point.

place(axes, [(x, y, "lcf", "#0072B2", True)], bars=[(x, low, high)])
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Label = tuple[float, float, str, str, bool]  # x, y, text, colour, shown
Line = tuple[list[float], list[float]]  # corners, xs and ys
ANGLES = (0, 40, -40, 180, 140, -140, 90, -90, 65, -65, 115, -115)  # degrees; the right is preferred
RADII = (9, 14, 21, 30, 42, 56, 72, 90)  # points
FAR = 21  # from here on a thin line leads back to the point


def place(axes: Axes, labels: list[Label], bars: list[tuple[float, float, float]], lines: list[Line], size: float = 10.5) -> None:
    """Annotate every shown label.

    Marks of all labels, their vertical error bars (x, low, high) and other labels are kept free; lines where it costs little.
    """
    import numpy as np
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72  # pixels a point
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    dots = [axes.transData.transform((x, y)) for x, y, *_ in labels]
    taken = [Bbox.from_extents(px - 6 * scale, py - 6 * scale, px + 6 * scale, py + 6 * scale) for px, py in dots]
    for x, low, high in bars:
        (px, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
        taken.append(Bbox.from_extents(px - 3 * scale, bottom, px + 3 * scale, top))
    inked = np.concatenate([np.empty((0, 2)), *(_dotted(axes.transData.transform(np.column_stack(line))) for line in lines)])
    for (x, y, text, colour, shown), (px, py) in zip(labels, dots, strict=True):
        if not shown:
            continue
        note = axes.annotate(text, (x, y), textcoords="offset points", xytext=(0, 0), size=size, color=colour, zorder=6, gid="label")
        note.set_path_effects([withStroke(linewidth=3, foreground="white")])
        extent = note.get_window_extent(renderer)
        width, height = extent.width, extent.height
        best = None
        for radius in RADII:
            for rank, angle in enumerate(ANGLES):
                dx, dy = radius * scale * math.cos(math.radians(angle)), radius * scale * math.sin(math.radians(angle))
                left = px + dx - (0 if abs(angle) < 80 else width / 2 if abs(angle) <= 100 else width)
                bottom = py + dy - (height / 2 if abs(angle) in (0, 180) else 0 if angle > 0 else height)
                box = Bbox.from_extents(left - 2, bottom - 2, left + width + 2, bottom + height + 2)
                clashes = sum(_area(box, other) for other in taken)
                outside = box.width * box.height - _area(box, frame)
                inside = (inked > (box.x0, box.y0)) & (inked < (box.x1, box.y1))
                cost = 100 * clashes + 100 * outside + 1.5 * inside.all(axis=1).sum() + radius + 0.4 * rank
                if best is None or cost < best[0]:
                    best = (cost, left, bottom, box, radius)
        assert best is not None
        _, left, bottom, box, radius = best
        taken.append(box)
        note.set_position(((left - px) / scale, (bottom - py) / scale))
        note.set_horizontalalignment("left")
        note.set_verticalalignment("bottom")
        if radius >= FAR:
            axes.annotate(
                "",
                (x, y),
                textcoords="offset points",
                xytext=((min(max(px, box.x0), box.x1) - px) / scale, (min(max(py, box.y0), box.y1) - py) / scale),
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 5},
            )


def _dotted(corners: np.ndarray) -> np.ndarray:
    """A polyline as points about 4 pixels apart."""
    import numpy as np

    parts = []
    for start, end in itertools.pairwise(corners):
        steps = max(2, int(np.hypot(*(end - start)) / 4))
        parts.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(parts)


def _area(a: object, b: object) -> float:
    """Pixels that two boxes share."""
    wide = min(a.x1, b.x1) - max(a.x0, b.x0)  # type: ignore[attr-defined]
    high = min(a.y1, b.y1) - max(a.y0, b.y0)  # type: ignore[attr-defined]
    return max(0.0, wide) * max(0.0, high)
