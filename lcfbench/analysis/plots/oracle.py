"""Figures of the oracles, layer by layer: gains of enriched caches, and maps between caches.

    from lcfbench.analysis.plots.oracle import plot_enrich
    plot_enrich(rows, {"direct": "question alone", …}, "openbookqa, smollm2-135m", Path("results/oracle/…"))

From the tables alone: no model is needed. The same tables give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.plots.figures import COLOURS, GREY, INK, canvas, save, styled
from lcfbench.analysis.stats import mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONDITIONS = ("direct", "kept", "oracle")
BLUE, ORANGE, GREEN = COLOURS[0], COLOURS[1], COLOURS[2]
PARTS = {"k": ("keys", BLUE, "o"), "v": ("values", ORANGE, "s")}
CLOUDS = {
    "receiver": ("receiver's own", INK, "o"),
    "mapped": ("mapped from the sharer", ORANGE, "x"),
    "sharer": ("sharer's, as it is", BLUE, "^"),
}


@styled()
def plot_enrich(rows: pd.DataFrame, names: Mapping[str, str], title: str, folder: Path) -> list[Path]:
    """`enrich.png`, `enrich.svg`.

    rows: see `lcfbench.oracle.enrich.measure`. names: what each condition is, `direct: the question
    alone`.
    """
    layers = sorted(rows["layer"].dropna().unique())
    figure = canvas((13.0 if layers else 7.6, 4.9))
    left = figure.add_axes((0.045, 0.13, 0.29, 0.68) if layers else (0.1, 0.13, 0.85, 0.68))
    _conditions(left, rows)
    if layers:
        _by_layer(figure, rows, layers)
    _head(figure, title, "; ".join(names[c] for c in CONDITIONS))
    return save(figure, folder, "enrich")


@styled()
def plot_transform(rows: pd.DataFrame, title: str, subtitle: str, folder: Path) -> list[Path]:
    """Draws `layers.*` (R² and cosine of each layer); with several sharer layers also `matrix.*`."""
    chosen = rows[rows["chosen"]].sort_values("receiver_layer")
    figure = canvas((13.0, 4.9))
    boxes = (0.06, 0.13, 0.42, 0.68), (0.555, 0.13, 0.42, 0.68)
    measures = ("r2", "R² on held-out text"), ("cosine", "cosine on held-out text, mean over tokens")
    for box, (what, label) in zip(boxes, measures, strict=True):
        axes = figure.add_axes(box)
        for part, (name, colour, mark) in PARTS.items():
            look: dict[str, Any] = {"lw": 1.6, "color": colour}
            xs, ys = chosen["receiver_layer"], chosen[f"{what}_{part}"]
            axes.plot(xs, ys, marker=mark, ms=5, label=name, zorder=3, **look)
            if what == "cosine":
                ys = chosen["mean_cosine_" + part]
                axes.plot(xs, ys, ":", label=f"{name}, by their mean alone", zorder=2, **look)
        axes.set_ylim(min(0.0, float(chosen[[f"{what}_k", f"{what}_v"]].min().min())) - 0.02, 1.02)
        _layer_axis(axes, [int(t) for t in chosen["receiver_layer"]], "receiver layer")
        axes.set_title(label, loc="left", size=11.5)
        axes.grid(axis="y", color="#e4e4e4", lw=0.8, zorder=0)
        axes.legend(frameon=False, fontsize=10, ncols=2, loc="lower left")
    _head(figure, title, subtitle)
    paths = save(figure, folder, "layers")
    several = rows.groupby("receiver_layer").size().max() > 1
    return paths + (_matrix(rows, title, subtitle, folder) if several else [])


@styled()
def plot_points(points: pd.DataFrame, title: str, subtitle: str, folder: Path) -> list[Path]:
    """Draws `picture.*`: entries of some held-out tokens on two principal axes, for each layer."""
    layers, parts = sorted(points["receiver_layer"].unique()), ("key", "value")
    figure = canvas((3.3 * len(layers) + 0.7, 7.6))
    kinds = [k for k in CLOUDS if k in set(points["kind"])]
    for row, part in enumerate(parts):
        for column, layer in enumerate(layers):
            wide = 0.955 / len(layers)
            axes = figure.add_axes((0.035 + wide * column, 0.445 - 0.42 * row, wide - 0.02, 0.37))
            some = points[(points["receiver_layer"] == layer) & (points["part"] == part)]
            own, mapped = (some[some["kind"] == kind].set_index("token") for kind in ("receiver", "mapped"))
            for token in own.index:  # a token's true and mapped entry belong together
                xs, ys = zip(*((c.at[token, "x"], c.at[token, "y"]) for c in (own, mapped)), strict=True)
                axes.plot(xs, ys, color=GREY, lw=0.5, alpha=0.5, zorder=1)
            for kind in kinds:
                name, colour, mark = CLOUDS[kind]
                cloud = some[some["kind"] == kind]
                look: dict[str, Any] = {"ms": 4.5, "mfc": "none", "mec": colour, "mew": 0.9}
                axes.plot(cloud["x"], cloud["y"], mark, label=name, zorder=3 if mark == "x" else 2, **look)
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"layer {layer}", loc="left", size=11.5)
            if column == 0:
                axes.set_ylabel(f"{part}s", size=11.5)
    look = {"frameon": False, "fontsize": 10.5, "columnspacing": 1.4}
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(-0.01, 1.21), ncols=len(kinds), **look)
    _head(figure, title, f"{subtitle}; first two principal axes, a line joins a token's two entries")
    return save(figure, folder, "picture")


def _conditions(axes: Axes, rows: pd.DataFrame) -> None:
    """Score of each condition with its interval."""
    for place, (condition, colour) in enumerate(zip(CONDITIONS, (INK, GREEN, BLUE), strict=True)):
        found = mean_interval(rows.loc[rows["condition"] == condition, "score"].to_numpy())
        value, low, high = (100 * x for x in found[:3])
        look: dict[str, Any] = {"ms": 9, "elinewidth": 1.6, "capsize": 4, "zorder": 3, "color": colour}
        axes.errorbar(place, value, yerr=[[value - low], [high - value]], fmt="o", **look)
        near: dict[str, Any] = {"textcoords": "offset points", "xytext": (10, 0), "va": "center"}
        axes.annotate(f"{value:.1f}", (place, value), **near, size=11, color=colour)
    axes.set_xlim(-0.5, len(CONDITIONS) - 0.3)
    axes.set_xticks(range(len(CONDITIONS)), [c for c in CONDITIONS])
    axes.set_title("score, % (bars: 95 % intervals)", loc="left", size=11.5)
    axes.grid(axis="y", color="#e4e4e4", lw=0.8, zorder=0)
    axes.set_axisbelow(True)


def _by_layer(figure: Figure, rows: pd.DataFrame, layers: Sequence[int]) -> None:
    """Draws the change from enriching one layer: score above, log-likelihood below."""
    direct, whole = (rows[rows["condition"] == c].sort_values("doc_index") for c in ("direct", "oracle"))
    one = {
        layer: rows[(rows["condition"] == "layer") & (rows["layer"] == layer)].sort_values("doc_index")
        for layer in layers
    }
    panels = [("score", 100.0, "one layer enriched: change of the score, points")]
    if direct["gold_ll"].notna().all():
        label = "one layer enriched: change of the right answer's log-likelihood, nats"
        panels.append(("gold_ll", 1.0, label))
    for row, (column, unit, label) in enumerate(panels):
        high = 0.68 if len(panels) == 1 else 0.275
        axes = figure.add_axes((0.395, 0.13 if row or len(panels) == 1 else 0.535, 0.525, high))
        base = direct[column].to_numpy()
        for layer, some in one.items():
            value, low, high_end = _change(some[column].to_numpy(), base, column)
            axes.plot([layer, layer], [unit * low, unit * high_end], color=BLUE, lw=1.4, alpha=0.55, zorder=2)
            axes.plot(layer, unit * value, "o", ms=5.5, color=BLUE, zorder=3)
        all_at_once = unit * float((whole[column].to_numpy() - base).mean())
        axes.axhline(0, color=INK, lw=1.0, zorder=1)
        axes.axhline(all_at_once, color=BLUE, lw=1.2, ls="--", zorder=1)
        name, across = f" all layers:\n {all_at_once:+.1f}", axes.get_yaxis_transform()
        axes.text(1.0, all_at_once, name, transform=across, ha="left", va="center", size=9.5, color=BLUE)
        _layer_axis(axes, [int(layer) for layer in layers], "layer" if row == len(panels) - 1 else "")
        axes.set_title(label, loc="left", size=11.5)


def _change(values: Any, base: Any, column: str) -> tuple[float, float, float]:
    """Returns the mean paired change with its 95 % interval; log-likelihoods by the normal law."""
    if column == "score":
        found = paired_difference(values, base)
        return found.value, found.low, found.high
    change = values - base
    half = 1.96 * float(change.std()) / max(len(change) - 1, 1) ** 0.5
    return float(change.mean()), float(change.mean()) - half, float(change.mean()) + half


def _matrix(rows: pd.DataFrame, title: str, subtitle: str, folder: Path) -> list[Path]:
    """Draws R² of every receiver layer from every sharer layer; marks the best and equal depth."""
    figure = canvas((13.0, 6.4))
    rows = rows.assign(source=rows["sharer_layers"].astype(int))
    chosen = rows[rows["chosen"]]
    L, S = int(rows["receiver_layer"].max()) + 1, int(rows["source"].max()) + 1
    lowest = float(rows[["r2_k", "r2_v"]].min().min())
    low = max(0.0, int(10 * lowest) / 10)  # one scale for both panels
    for i, (part, (name, _, _)) in enumerate(PARTS.items()):
        axes = figure.add_axes((0.055 + 0.46 * i, 0.105, 0.41, 0.735))
        grid = rows.pivot(index="source", columns="receiver_layer", values=f"r2_{part}").to_numpy()
        image = axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=1)
        ring: dict[str, Any] = {"ms": 6, "mfc": "none", "mec": "white", "mew": 1.5}
        best = chosen["receiver_layer"], chosen["source"]
        axes.plot(*best, "o", label="best, keys and values together", **ring)
        depth = [t * (S - 1) / max(L - 1, 1) for t in range(L)]
        axes.plot(range(L), depth, color="white", lw=1.2, ls="--", label="equal relative depth")
        _layer_axis(axes, list(range(L)), "receiver layer")
        axes.set_yticks(range(0, S, 1 if S <= 12 else 2 if S <= 24 else 4))
        axes.set_title(f"R² of the {name} on held-out text", loc="left", size=11.5)
        axes.set_xlim(-0.5, L - 0.5)
        axes.set_ylim(-0.5, S - 0.5)
        if i == 0:
            axes.set_ylabel("sharer layer")
            box = {"framealpha": 0.75, "facecolor": "#444444", "edgecolor": "none"}
            axes.legend(loc="lower right", fontsize=9.5, labelcolor="white", **box)
    bar = figure.colorbar(image, cax=figure.add_axes((0.945, 0.105, 0.014, 0.735)))
    bar.outline.set_visible(False)  # type: ignore[operator]
    _head(figure, title, subtitle + ("; what is below 0 is drawn as 0" if lowest < 0 else ""))
    return save(figure, folder, "matrix")


def _head(figure: Figure, title: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.14 / height, title, weight="bold", size=13, va="top")
    figure.text(0.02, 1 - 0.45 / height, subtitle, size=10, color="#666666", va="top")


def _layer_axis(axes: Axes, layers: Sequence[int], label: str) -> None:
    step = 1 if len(layers) <= 12 else 2 if len(layers) <= 36 else 4
    axes.set_xticks(list(layers)[::step])
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_xlabel(label, size=10.5)
