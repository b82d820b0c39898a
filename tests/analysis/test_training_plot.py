"""The figure of a training holds every adapter and dev task; a file that is no log is named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lcfbench.analysis.plots.training import draw, plot, read
from lcfbench.errors import UserError


def log(folder: Path) -> Path:
    rows = [
        {"adapter": a, "step": s, "metric": m, "value": v / s}
        for a in ("lcf-seed-0", "lcf-seed-1", "c2c")
        for s in range(1, 21)
        for m, v in (("loss", 3.0), *((("t/matched", 0.9), ("t/deranged", 0.3)) if s % 10 == 0 else ()))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([*rows, {"adapter": "", "step": 1, "metric": "examples_per_s", "value": 4.0}]).to_parquet(
        folder / "training.parquet"
    )
    return folder


def test_seeds_share_a_colour_and_every_task_has_a_panel(tmp_path):
    figure = draw(read([log(tmp_path / "a")]))
    assert [a.get_title() for a in figure.axes] == ["training loss (mean of 10 steps)", "t, dev split"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["lcf", "c2c"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert (
        colours[:3] == [colours[0]] * 3 and colours[0] != colours[-1]
    )  # two seeds and their mean, then the other adapter


def test_the_same_log_gives_the_same_bytes(tmp_path):
    one, two = (plot([log(tmp_path / "a")], tmp_path / n) for n in "bc")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two] and one[0].name == "training.png"


def test_adapters_of_several_trainings_are_told_apart(tmp_path):
    names = set(read([log(tmp_path / "a"), log(tmp_path / "b")])["adapter"])
    assert {"a c2c", "b c2c"} <= names


def test_what_is_no_log_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no training.parquet"):
        read([tmp_path])
    (tmp_path / "training.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="is no training log"):
        read([tmp_path])
