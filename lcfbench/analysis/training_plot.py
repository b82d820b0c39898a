"""What `lcfbench plot training` draws of training logs: the loss, and dev accuracy matched (solid) and deranged (dashed), a colour an adapter.

from lcfbench.analysis.training_plot import plot
plot([Path("adapters/new")], Path("adapters/new"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.frontier import COLOURS, GREY, INK, STYLE
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LOG = "training.parquet"
SMOOTH = 10  # steps over which the loss is averaged


def read(folders: Sequence[Path]) -> pd.DataFrame:
    """Rows (adapter, step, metric, value) of the logs under the folders; adapters of several folders are named by them.

    Raises UserError where there is none, or one cannot be read.
    """
    import pandas as pd

    files = [f for folder in folders for f in ([folder] if folder.is_file() else sorted(folder.glob(f"**/{LOG}")))]
    if not files:
        raise UserError(f"no {LOG} under {', '.join(map(str, folders))}.", "Name a folder that `lcfbench train` wrote.")
    frames = []
    for file in files:
        try:
            frame = pd.read_parquet(file, columns=["adapter", "step", "metric", "value"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{file} is no training log ({str(error).splitlines()[0]}).", "Name a folder that `lcfbench train` wrote."
            ) from error
        frames.append(frame.assign(adapter=[f"{file.parent.name} {a}" if len(files) > 1 and a else a for a in frame["adapter"]]))
    return pd.concat(frames)


def plot(folders: Sequence[Path], out_dir: Path) -> list[Path]:
    """Writes `training.png` and `training.svg` into `out_dir` and returns their paths."""
    import matplotlib

    rows = read(folders)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = draw(rows)
        paths = [out_dir / f"training.{kind}" for kind in ("png", "svg")]
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[0], metadata={"Software": None})
            figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
        except OSError as error:
            raise UserError(f"cannot write {out_dir}: {error.strerror or error}.", "Name another folder with --out.") from error
    return paths


def draw(rows: pd.DataFrame) -> Figure:
    """A panel for the loss and one for every dev task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = rows[rows["adapter"] != ""]
    adapters = list(dict.fromkeys(rows["adapter"]))
    tasks = sorted({m.rpartition("/")[0] for m in rows["metric"] if "/" in m})
    figure = Figure(figsize=(5.2 * (1 + len(tasks)), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(tasks), squeeze=False)[0]
    for i, name in enumerate(adapters):
        colour = COLOURS[i % len(COLOURS)]
        mine = rows[rows["adapter"] == name]
        loss = mine[mine["metric"] == "loss"].sort_values("step")
        axes[0].plot(loss["step"], loss["value"], color=colour, alpha=0.18, linewidth=0.8)
        axes[0].plot(loss["step"], loss["value"].rolling(SMOOTH, min_periods=1).mean(), color=colour, linewidth=1.8)
        for axis, task in zip(axes[1:], tasks, strict=True):
            for control, line in (("matched", "-"), ("deranged", "--")):
                part = mine[mine["metric"] == f"{task}/{control}"].sort_values("step")
                axis.plot(part["step"], 100 * part["value"], line, color=colour, marker="o", markersize=4, linewidth=1.6)
    axes[0].set(title=f"training loss (mean of {SMOOTH} steps)", xlabel="step", ylabel="cross-entropy, nats")
    axes[0].set_ylim(bottom=0)
    for axis, task in zip(axes[1:], tasks, strict=True):
        axis.set(title=f"{task}, dev split", xlabel="step", ylabel="score, %")
    for axis in axes:
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    handles: list[Any] = [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2, label=name) for i, name in enumerate(adapters)]
    if tasks:
        handles += [Line2D([], [], color=INK, label="matched"), Line2D([], [], color=GREY, linestyle="--", label="deranged")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    return figure
