"""Draws training logs: the loss, and dev accuracy matched (solid) and deranged (dashed).

from lcfbench.analysis.plots.training import plot
plot([Path("adapters/new")], Path("adapters/new"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.plots.figures import COLOURS, GREY, INK, canvas, drawable, save, styled
from lcfbench.errors import UserError
from lcfbench.results.training_log import LOG, ROW

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SEED = r"-seed-\d+"  # in an adapter's label
SMOOTH = 10  # steps over which the loss is averaged


def read(folders: Sequence[Path], warnings: list[str] | None = None) -> pd.DataFrame:
    """Reads rows (adapter, step, metric, value); adapters of several folders carry their names.

    warnings: gets a sentence for each log that cannot be read. Raises UserError where none can.
    """
    import pandas as pd
    import pyarrow as pa
    from pandas.api.types import is_numeric_dtype, is_string_dtype

    # as a pattern: a plain name passes over links that lead nowhere
    files = [
        f
        for folder in folders
        for f in ([folder] if folder.is_file() else sorted(folder.glob(f"**/[{LOG[0]}]{LOG[1:]}")))
    ]
    if not files:
        raise UserError(
            f"no {LOG} under {', '.join(map(str, folders))}.", "Name a folder that `lcfbench train` wrote."
        )
    frames: list[pd.DataFrame] = []
    warnings = [] if warnings is None else warnings
    for file in files:
        try:
            frame = pd.read_parquet(file, columns=[*ROW])
            for name, (kind, *_) in ROW.items():
                of_kind = is_string_dtype if kind is str else is_numeric_dtype
                if not of_kind(frame[name]) or (name != "value" and frame[name].isna().any()):
                    raise ValueError(f"column {name} holds other values")
            steps = frame["step"].astype("int64")
            if not len(steps) or steps.min() < 0 or (steps != frame["step"]).any():
                raise ValueError("no rows" if not len(steps) else "column step holds other values")
            frame = frame.assign(step=steps)
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            why = " ".join(str(error).split())[:160] or type(error).__name__
            warnings.append(f"{file} is no training log ({why})")
            continue
        frames.append(
            frame.assign(
                adapter=[f"{file.parent.name} {a}" if len(files) > 1 and a else a for a in frame["adapter"]]
            )
        )
    if not frames:
        raise UserError(f"{'; '.join(warnings)}.", "Name a folder that `lcfbench train` wrote.")
    return pd.concat(frames)


def plot(folders: Sequence[Path], out_dir: Path, warnings: list[str] | None = None) -> list[Path]:
    """Writes `training.png` and `training.svg` into `out_dir` and returns their paths.

    warnings: gets a sentence for each log that cannot be read.
    """
    rows = read(folders, warnings)
    with styled():
        return save(draw(rows), out_dir, "training")


def draw(rows: pd.DataFrame) -> Figure:
    """A panel for the loss and one for every dev task.

    Seeds of one adapter share a colour: thin lines each, a thick one their mean.
    """
    from matplotlib.lines import Line2D

    rows = rows[rows["adapter"] != ""].assign(**{n: rows[n].map(drawable) for n in ("adapter", "metric")})
    rows = rows.assign(group=lambda r: r["adapter"].str.replace(SEED, "", regex=True))
    groups = list(dict.fromkeys(rows["group"]))
    tasks = sorted({m.rpartition("/")[0] for m in rows["metric"] if "/" in m})
    panels = 1 + len(tasks)
    columns = max(min(len(groups), int(panels * 5.2 / (0.9 + 0.09 * max(map(len, groups))))), 1)
    deep = 4.2 + 0.26 * (-(-len(groups) // columns) + 1)
    figure = canvas((5.2 * panels, deep), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(groups)}
    for name in groups:
        mine = rows[rows["group"] == name]
        loss = _wide(mine, "loss").rolling(SMOOTH, min_periods=1).mean()
        axes[0].plot(loss.index, loss, color=colours[name], alpha=0.3, linewidth=0.8)
        axes[0].plot(loss.index, loss.mean(axis=1), color=colours[name], linewidth=1.8)
        for axis, task in zip(axes[1:], tasks, strict=True):
            for control, line, fill in (("matched", "-", colours[name]), ("deranged", "--", "white")):
                part = 100 * _wide(mine, f"{task}/{control}")
                if len(part):
                    look: dict[str, Any] = {"markersize": 3.5, "markerfacecolor": fill, "alpha": 0.5}
                    axis.plot(part.index, part, "o", color=colours[name], **look)
                    axis.plot(part.index, part.mean(axis=1), line, color=colours[name], linewidth=1.6)
    axes[0].set(title=f"training loss (mean of {SMOOTH} steps)", xlabel="step", ylabel="cross-entropy, nats")
    axes[0].set_ylim(bottom=0)
    for axis, task in zip(axes[1:], tasks, strict=True):
        axis.set(title=f"{task}, dev split", xlabel="step", ylabel="score, %")
    for axis in axes:
        axis.set_xlim(0, 1.03 * rows["step"].max())
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    handles: list[Any] = [
        Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    if tasks:
        dot: dict[str, Any] = {"marker": "o", "markersize": 4}
        dashed: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white", "color": GREY}
        marks = [
            Line2D([], [], **dot, color=INK, label="matched"),
            Line2D([], [], **dot, **dashed, label="deranged"),
        ]
        axes[-1].legend(handles=marks, loc="best", frameon=False)
    return figure


def _wide(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Steps down, adapters across."""
    return rows[rows["metric"] == metric].pivot_table(index="step", columns="adapter", values="value")
