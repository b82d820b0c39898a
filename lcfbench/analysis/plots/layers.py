"""A strip a layer: its gates, what leaving it out costs, and which layers stay.

Drawn from a pruning report; imports no torch.

>>> draw_layers(json.loads(Path("adapters/mine-9L/pruning.json").read_text()), Path("pruning.png"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcfbench.analysis.plots.figures import GREY, INK, canvas, drawable, image, styled
from lcfbench.files import write_output

GATES = (("gate_key", "gate, keys"), ("gate_value", "gate, values"))
LOSSES = (("importance", "score lost without it"), ("loglik_importance", "log-likelihood lost without it"))


def draw_layers(report: dict[str, Any], path: Path) -> None:
    """Writes the figure as PNG, the same bytes every time."""
    with styled():
        write_output(path, image(_figure(report)))


def _figure(report: dict[str, Any]) -> Any:
    rows = report["layers"]
    figure = canvas((9.0, 3.1))
    whole, pruned = report["whole"], report["pruned"]
    head = f"{drawable(report['adapter'])}: {pruned['layers']} of {whole['layers']} layers kept"
    figure.text(0.02, 0.93, head, weight="bold", size=11)
    figure.text(
        0.02,
        0.86,
        f"{drawable(report['task'])}, {report['documents']} dev documents: "
        f"{100 * whole['matched']['score']:.1f} % whole, {100 * pruned['matched']['score']:.1f} % pruned",
        size=9,
    )
    for n, (key, label) in enumerate(GATES + LOSSES):
        axes = figure.add_axes((0.27, 0.66 - 0.14 * n, 0.6, 0.11))
        values = [[float("nan") if row[key] is None else row[key] for row in rows]]
        if (key, label) in GATES:
            axes.imshow(values, aspect="auto", cmap=_colours("Greys"), vmin=0, vmax=1)
            ends = "0 to 1"
        else:  # around zero: blue where the layer helps, red where it hurts
            most = max((abs(row[key]) for row in rows if row[key] is not None), default=0.0) or 1.0
            axes.imshow(values, aspect="auto", cmap=_colours("RdBu"), vmin=-most, vmax=most)
            ends = f"±{most:.3g}"
        axes.set_yticks([0], [label], size=9)
        axes.tick_params(length=0)
        axes.set_xticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        figure.text(0.885, 0.69 - 0.14 * n, ends, size=8, color=GREY)
    axes.set_xticks(range(len(rows)), [str(row["layer"]) for row in rows], size=7)
    kept = [i for i, row in enumerate(rows) if row["fate"] == "kept"]
    axes.plot(kept, [1.6] * len(kept), "^", ms=5, color=INK, clip_on=False)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0.5, -0.5)
    figure.text(0.27, 0.03, "receiver layer; ▲ kept; light grey: gates shut, not tried", size=8.5, color=INK)
    return figure


def _colours(name: str) -> Any:
    """A colormap in which what was not measured is light grey."""
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad="#e4e4e4")
