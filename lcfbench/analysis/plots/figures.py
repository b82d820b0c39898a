"""Style, canvas and files of all figures: the same bytes every time, without pyplot.

with styled():
    figure = canvas((5, 4))
    paths = save(figure, Path("results"), "frontier")
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.files import write_output
from lcfbench.tables import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, then Tol's, distinct for colour-blind readers; the receiver alone is black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933", "#332288")
INK, GREY = "#222222", "#8a8a8a"
STYLE: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 11, "axes.edgecolor": GREY}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
STYLE |= dict.fromkeys(("xtick.color", "ytick.color", "text.color", "axes.labelcolor"), INK)
STYLE |= {"svg.hashsalt": "lcfbench", "svg.fonttype": "path", "figure.dpi": 150, "savefig.dpi": 150}
STYLE |= {"text.parse_math": False}  # a `$` in a name is a dollar
LONGEST = 48  # characters of a name in a figure
PNG: dict[str, Any] = {"Software": None}


def drawable(text: object) -> str:
    """Returns a name as a figure can draw it: printable, in the glyphs of its font, not too long."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    shown = "".join(
        c if ord(c) in glyphs else c.encode("ascii", "backslashreplace").decode()
        for c in printable(str(text), one_line=True)
    )
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


@contextmanager
def styled() -> Iterator[None]:
    """Sets the style for drawing and saving within the context. Also a decorator."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the figure
        matplotlib.rcParams.update(STYLE)
        yield


def canvas(size: tuple[float, float], layout: Any = None) -> Figure:
    """A figure of so many inches, without pyplot and so without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name.png` and `name.svg`, without dates or versions in them.

    Raises UserError where the folder takes no files.
    """
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("png", "svg")]
    for path, metadata in zip(paths, (PNG, {"Date": None, "Creator": None}), strict=True):
        data = image(figure, path.suffix[1:], metadata)
        if not (path.is_file() and path.read_bytes() == data):  # one that is there already stays
            write_output(path, data)
    return paths


def image(figure: Figure, kind: str = "png", metadata: dict[str, Any] = PNG) -> bytes:
    """Returns a figure as a file's bytes, without dates or versions in them."""
    sink = io.BytesIO()
    figure.savefig(sink, format=kind, metadata=metadata)
    return sink.getvalue()
